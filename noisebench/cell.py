"""One cell of a board: from its description to a finished run folder, through any number of kills."""

from __future__ import annotations

import os
import socket
import traceback
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from noisebench.assembly import Setup, make_hparams, method_class
from noisebench.cell_folder import BEGUN, Folder, damage, log, one_line, save_tensors, selected_epoch
from noisebench.config import Cell
from noisebench.errors import TrainingFailed, UserError
from noisebench.files import read_json, write_json
from noisebench.loading import load_dataset, load_source, stored_noise
from noisebench.machine import forget_peak, hardware, peak_memory_mb, versions
from noisebench.metrics import SCORES, about, score_of
from noisebench.mlflow_model import input_facts
from noisebench.ranks import Group, RankLost, join
from noisebench.seats import check_devices, is_restarted, seat_for
from noisebench.shared_folder import Differs, SharedFolder
from noisebench.starting import sha256_of_state
from noisebench.system_metrics import sampling


def weights_sha256(method: nn.Module) -> str:
    """SHA-256 of all that a method learned: names, dtypes, shapes and bytes."""
    return sha256_of_state(method.state_dict())


def summarise(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The three numbers of a run, always apart: last, selected (best noisy validation epoch), best (oracle).

    Best by its score: accuracy, or gAP where an image may have several labels.
    """
    score = score_of(name.removeprefix("test.") for name in history[-1]["metrics"])
    selected = selected_epoch(history)

    def at(line: dict[str, Any]) -> dict[str, float]:
        metrics = line["metrics"]
        names = {f"test.{k}": k for k in (*SCORES, "top5", "nll", "ece", "inlier_auc", "inlier_ap")}
        names |= {f"train.{k}": k for k in ("memorised", "noise_auc", "transition_error")}
        names |= {k: k for k in metrics if about(k) and k.partition(".")[0] not in ("test", "val", "train")}
        return {"epoch": line["epoch"]} | {short: metrics[k] for k, short in names.items() if k in metrics}

    found = {"last": at(history[-1]), "best": at(max(history, key=lambda r: r["metrics"][f"test.{score}"]))}
    if selected is not None:
        found["selected"] = at(history[selected - 1])
    return found


KNOWN = (UserError, TrainingFailed, RankLost)
"""Errors whose message says it all."""

Where = tuple[Path, Path | None, bool, str]
"""What `run_cell` is given beside the cell."""


def run_cell(
    cell: Cell, out: Path, data_root: Path | None = None, download: bool = False, accelerator: str = "auto"
) -> dict[str, Any]:
    """Run a cell to its end, from its checkpoint where there is one; a finished cell is only read.

    One of several ranks is started once more for each of them, unless torchrun or srun did so: then each calls this.

    Returns:
        What result.json or failure.json holds, or {"status": "held", ...} where another process is at it; a cell that
        fails never raises.
    """
    base = cell.identity()
    path = out / cell.folder()
    path.mkdir(parents=True, exist_ok=True)
    where = out, data_root, download, accelerator
    try:
        seat = seat_for(cell.recipe.ranks)
        if seat is None:
            return _start_ranks(cell, path, base, where)
        group = join(cell.recipe, accelerator, seat) if seat.ranks > 1 else None
        told: dict[str, Any] | None = None if group is None or group.rank == 0 else group.same(None)
    except (UserError, RankLost) as error:  # the folder may be another's
        if isinstance(error, RankLost) and is_restarted():
            raise
        return _failure(base, error)
    if told is not None:
        return told
    if group is not None and group.rank > 0:
        return _attempt(cell, SharedFolder(group, path), base, where, group)
    lock = FileLock(path / "lock", timeout=1)
    try:
        lock.acquire()
    except Timeout:
        reason = f"{path} is held by another process; let it finish, or stop it and start again"
        return _told(group, base | {"status": "held", "privileged": [], "reason": reason})
    try:
        done = read_json(path / "result.json")
        if done is not None:
            (path / "checkpoint.pt").unlink(missing_ok=True)  # a kill may have come just before its end
            return _told(group, done | {"label": cell.method.label})
        (path / "failure.json").unlink(missing_ok=True)
        return _attempt(cell, None, base, where, group)
    finally:
        lock.release()


def _told(group: Group | None, result: dict[str, Any]) -> dict[str, Any]:
    return result if group is None else group.same(result)


def _attempt(
    cell: Cell, folder: SharedFolder | None, base: dict[str, Any], where: Where, group: Group | None
) -> dict[str, Any]:
    """Run a cell whose folder is held; a rank that has no folder yet is the first, or the only one."""
    path = where[0] / cell.folder()
    try:
        own: Folder | SharedFolder = folder or Folder(path, cell.recipe.checkpoint_seconds)
        if group is not None and isinstance(own, Folder):
            group.same(None)  # the others may begin
            own = SharedFolder(group, path, own)
        if group is not None:
            for seen, host in group.all(((path / "lock").exists(), socket.gethostname())):
                if not seen:
                    raise UserError(f"{path} on {host} is not the first rank's folder; give an --out that all share")
        try:
            return _run(cell, own, base, *where, group)
        except Differs as error:
            own.log(f"{error}: started anew")
            own.clear()
            return _run(cell, own, base, *where, group)
    except Exception as error:
        found = read_json(path / "failure.json")
        if found is not None:  # another rank said why
            return found
        result = _failure(base, error)
        if isinstance(error, RankLost):  # no failure of the cell: started again, it goes on from its checkpoint
            log(path, f"stopped: {error}")
            if is_restarted():
                raise
            return result
        with suppress(OSError):  # a full disk must not hide the reason
            known = isinstance(error, KNOWN)
            log(path, f"failed: {error}" if known else f"failed:\n{traceback.format_exc()}")
            write_json(path / "failure.json", result)
        return result


def _failure(base: dict[str, Any], error: Exception) -> dict[str, Any]:
    reason = str(error) if isinstance(error, KNOWN) else f"{type(error).__name__}: {error}"
    return base | {"status": "failed", "privileged": [], "reason": one_line(reason)[:500]}


def _start_ranks(cell: Cell, path: Path, base: dict[str, Any], where: Where) -> dict[str, Any]:
    """Run a cell in processes of its own.

    Raises:
        UserError: less GPUs than ranks.
    """
    from noisebench.launching import RankDied, launch_again

    done = read_json(path / "result.json")
    if done is not None:  # without starting anything
        (path / "checkpoint.pt").unlink(missing_ok=True)
        return done | {"label": cell.method.label}
    check_devices(cell.recipe.ranks, where[-1])
    try:
        found = launch_again(lambda text: log(path, text), run_cell, cell.recipe.ranks, cell, *where, ends=_is_failure)
    except RankDied as error:
        result = _failure(base, TrainingFailed(str(error)))
        write_json(path / "failure.json", result)
        return result
    told: list[dict[str, Any]] = [result for result in found if result is not None]
    return next(filter(_is_failure, told), told[0])


def _is_failure(result: dict[str, Any]) -> bool:
    return bool(result["status"] == "failed")


def _run(
    cell: Cell,
    folder: Folder | SharedFolder,
    base: dict[str, Any],
    out: Path,
    data_root: Path | None,
    download: bool,
    accelerator: str,
    group: Group | None,
) -> dict[str, Any]:
    cls = method_class(cell.method.name)
    hparams = make_hparams(cls, cell.method.hparams, f"method '{cell.method.name}'")
    with nullcontext() if group is None else group.in_turn():  # the first downloads, and makes the noise
        data = load_dataset(cell.dataset, data_root, download)
        source = load_source(cell.noise, data, cell.dataset, data_root, download)
        noisy, noise_folder = stored_noise(cell, data, out, source)
    first = group is None or group.rank == 0
    config = base | {
        "given": cell.method.hparams,
        "hparams": {f.name: getattr(hparams, f.name) for f in fields(hparams)},
        "noise": cell.noise.model_dump(mode="json") | {"seed": cell.noise_seed},
        "noise_label": cell.noise.label,
        "noise_folder": str(noise_folder.relative_to(out)),
        "noise_sha256": noisy.sha256,
        "recipe": cell.recipe.model_dump(mode="json"),
        "privileged": list(cls.needs_with(hparams)),
        "paper": cls.paper,
        "inputs": input_facts(data, cell.recipe),
        "torch": torch.__version__,
    }
    if first:
        write_json(folder.path / "config.json", config)
    setup = Setup(cls, hparams, data, noisy.labels, cell.recipe, cell.seed, noisy, accelerator, source, group)
    device = setup.run.device.type
    forget_peak(setup.run.device)
    state = folder.stored_state()
    if state is not None and state["run"]["device"] != device:
        folder.log(f"the checkpoint is of another device ({state['run']['device']}, now {device}): started anew")
        folder.clear()
        state = None
    batch = f", batch {state['batch']}" if state and "batch" in state else ""
    begun = f"resumed after epoch {state['epoch']}{batch}" if state else BEGUN
    folder.log(f"{begun} (process {os.getpid()})")
    folder.begin(state.get("seconds", 0) if state else 0)
    setup.on_damaged(folder.damaged)
    with sampling(folder.path) if first else nullcontext():
        setup.train(folder, state)
        calibration = setup.calibration()
    if group is not None and not first:
        told: dict[str, Any] = group.same({})
        return told
    save_tensors(setup.method.state_dict(), folder.path / "model.pt")
    if selected_epoch(folder.history) in (None, len(folder.history)):
        (folder.path / "selected.pt").unlink(missing_ok=True)  # the last epoch's, which model.pt has
    result = base | {
        "status": "finished",
        "privileged": list(cls.needs_with(hparams)),
        "noise_sha256": noisy.sha256,
        "weights_sha256": weights_sha256(setup.method),
        "device": device,
        "torch": torch.__version__,
        "seconds": round(sum(line["metrics"]["seconds"] for line in folder.history), 3),
        "epochs": len(folder.history),
        "metrics": summarise(folder.history),
        "calibration": calibration,
        "peak_memory_mb": peak_memory_mb(setup.run.device),
        "hardware": hardware(setup.run.device),
        "versions": versions(),
    }
    result |= {"damaged": folder.num_damaged} if folder.num_damaged else {}
    write_json(folder.path / "result.json", result)
    folder.log("finished")
    if folder.num_damaged:
        folder.log(damage(folder.num_damaged))
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return _told(group, result)
