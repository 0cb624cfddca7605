"""One cell of a board: from its description to a finished run folder, through any number of kills.

The folder is the truth for resuming. Every file in it is either appended to line by line (metrics.jsonl, log.txt) or
written aside and renamed, so that whatever moment a kill picks, the next start finds something whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from noisebench.assembly import Setup, load_dataset, load_source, make_hparams, method_class, stored_noise
from noisebench.config import Cell
from noisebench.errors import TrainingFailed, UserError
from noisebench.files import read_json, write_json
from noisebench.metrics import SCORES, score_of


def weights_sha256(method: nn.Module) -> str:
    """SHA-256 of all that a method learned: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def summarise(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The three numbers of a run, always apart: last, selected (best noisy validation epoch), best (oracle).

    Best by its score: accuracy, or gAP where an image may have several labels.
    """
    score = score_of(name.removeprefix("test.") for name in history[-1]["metrics"])

    def at(line: dict[str, Any]) -> dict[str, float]:
        metrics = line["metrics"]
        names = {f"test.{k}": k for k in (*SCORES, "top5", "nll", "ece", "inlier_auc", "inlier_ap")}
        names |= {f"train.{k}": k for k in ("memorised", "noise_auc", "transition_error")}
        return {"epoch": line["epoch"]} | {short: metrics[k] for k, short in names.items() if k in metrics}

    found = {"last": at(history[-1]), "best": at(max(history, key=lambda r: r["metrics"][f"test.{score}"]))}
    if f"val.{score}" in history[-1]["metrics"]:
        found["selected"] = at(max(history, key=lambda r: r["metrics"][f"val.{score}"]))
    return found


# --------------------------------------------------------------------------------------------- the run folder


class Differs(Exception):
    """An epoch that was run again came out otherwise."""


class Folder:
    """A run folder as the journal of its run. Hold its lock while using it."""

    def __init__(self, path: Path, checkpoint_seconds: float = 0) -> None:
        self.path = path
        self._every = checkpoint_seconds
        self.begin()
        path.mkdir(parents=True, exist_ok=True)
        for torn in path.glob("*.tmp"):
            if not torn.name.startswith(".sent-"):  # those are the sender's, which may be writing
                torn.unlink(missing_ok=True)
        self.history = self._read_history()

    def begin(self) -> None:
        """Start the clocks of epochs and checkpoints."""
        self._saved = self._epoch_began = time.monotonic()

    def _read_history(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; what a kill or a loss of power left behind them is cut off."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        content, whole = file.read_bytes(), 0
        history: list[dict[str, Any]] = []
        for line in content.splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                found = None
            if not isinstance(found, dict) or found.get("epoch") != len(history) + 1:
                break
            history.append(found)
            whole += len(line)
        if whole < len(content):
            os.truncate(file, whole)
        return history

    def clear(self) -> None:
        """Forget the run, to start it anew."""
        for name in ("metrics.jsonl", "checkpoint.pt"):
            (self.path / name).unlink(missing_ok=True)
        self.history = []

    def log(self, text: str) -> None:
        """One more line in log.txt."""
        log(self.path, text)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Append an epoch's line. An epoch run again after a kill must repeat its line, and is not written twice.

        Raises:
            Differs: it does not repeat it (another library, say): two runs must not end up in one record.
        """
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        if epoch <= len(self.history):
            before = {k: v for k, v in self.history[epoch - 1]["metrics"].items() if k != "seconds"}
            if json.dumps(metrics, sort_keys=True) != json.dumps(before, sort_keys=True):  # NaN equals NaN here
                raise Differs(f"epoch {epoch} came out otherwise than before the interruption")
            return
        line = {"epoch": epoch, "time": int(time.time() * 1000), "metrics": metrics | {"seconds": round(seconds, 4)}}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.history.append(line)

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        """Store the state if it is time: written aside, then renamed, so that the last good one stays."""
        if last or time.monotonic() - self._saved >= self._every:
            with suppress(FileNotFoundError), (self.path / "metrics.jsonl").open("rb") as lines:
                os.fsync(lines.fileno())  # a checkpoint must not survive a loss of power that its lines do not
            save_tensors(state, self.path / "checkpoint.pt")
            self._saved = time.monotonic()

    def stored_state(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one that can be used; the run starts anew otherwise, and the log says why."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            epoch, _, _ = state["epoch"], state["method"], state["run"]
        except Exception as error:  # torch raises many kinds for a damaged file
            self.log(f"checkpoint.pt is damaged ({type(error).__name__}): started anew")
            return None
        if epoch > len(self.history):  # the machine lost power, and lines that were not yet on the disk
            self.log(f"metrics.jsonl ends at epoch {len(self.history)}, checkpoint.pt at {epoch}: started anew")
            return None
        return state


def log(folder: Path, text: str) -> None:
    """One more line in a run folder's log.txt."""
    with (folder / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def save_tensors(state: Mapping[str, Any], file: Path) -> None:
    """torch.save, written aside and renamed; on a full disk nothing half-written stays and the old file does."""
    aside = file.with_suffix(".tmp")
    try:
        with aside.open("wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(file)
    except Exception as error:
        with suppress(OSError):
            aside.unlink()
        cause = error if isinstance(error, OSError) else (error.__cause__ or error.__context__ or error)
        kept = "the last good one stays" if file.exists() else "there was none before"
        raise TrainingFailed(f"{file.name} could not be written ({cause}); {kept}") from error


def run_cell(
    cell: Cell, out: Path, data_root: Path | None = None, download: bool = False, accelerator: str = "auto"
) -> dict[str, Any]:
    """Run a cell to its end, from its checkpoint where there is one; a finished cell is only read.

    Returns:
        What result.json or failure.json holds; a cell that fails never raises.
    """
    base = cell.identity()
    path = out / cell.folder()
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / "lock", timeout=10)
    try:
        lock.acquire()
    except Timeout:
        reason = f"{path} is held by another process; let it finish, or stop it and start again"
        return base | {"status": "missing", "privileged": [], "reason": reason}
    try:
        done = read_json(path / "result.json")
        if done is not None:
            (path / "checkpoint.pt").unlink(missing_ok=True)  # a kill may have come just before its end
            return done | {"label": cell.method.label}
        (path / "failure.json").unlink(missing_ok=True)
        try:
            folder = Folder(path, cell.recipe.checkpoint_seconds)
            try:
                return _run(cell, folder, base, out, data_root, download, accelerator)
            except Differs as error:
                folder.log(f"{error}: started anew")
                folder.clear()
                return _run(cell, folder, base, out, data_root, download, accelerator)
        except Exception as error:
            known = isinstance(error, (UserError, TrainingFailed))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            result = base | {"status": "failed", "privileged": [], "reason": " ".join(reason.split())[:500]}
            with suppress(OSError):  # a full disk must not hide the reason
                log(path, f"failed: {reason}" if known else f"failed:\n{traceback.format_exc()}")
                write_json(path / "failure.json", result)
            return result
    finally:
        lock.release()


def _run(
    cell: Cell,
    folder: Folder,
    base: dict[str, Any],
    out: Path,
    data_root: Path | None,
    download: bool,
    accelerator: str,
) -> dict[str, Any]:
    cls = method_class(cell.method.name)
    hparams = make_hparams(cls, cell.method.hparams, f"method '{cell.method.name}'")
    data = load_dataset(cell.dataset, data_root, download)
    source = load_source(cell.noise, data, cell.dataset, data_root, download)
    noisy, noise_folder = stored_noise(cell, data, out, source)
    write_json(
        folder.path / "config.json",
        base
        | {
            "given": cell.method.hparams,
            "hparams": {f.name: getattr(hparams, f.name) for f in fields(hparams)},
            "noise": cell.noise.model_dump(mode="json") | {"seed": cell.noise_seed},
            "noise_label": cell.noise.label,
            "noise_folder": str(noise_folder.relative_to(out)),
            "noise_sha256": noisy.sha256,
            "recipe": cell.recipe.model_dump(mode="json"),
            "privileged": list(cls.needs_with(hparams)),
            "paper": cls.paper,
            "torch": torch.__version__,
        },
    )
    setup = Setup(cls, hparams, data, noisy.labels, cell.recipe, cell.seed, noisy, accelerator, source)
    device = setup.run.device.type
    state = folder.stored_state()
    if state is not None and state["run"]["device"] != device:
        folder.log(f"the checkpoint is of another device ({state['run']['device']}, now {device}): started anew")
        folder.clear()
        state = None
    folder.log(f"{'resumed after epoch ' + str(state['epoch']) if state else 'started'} (process {os.getpid()})")
    folder.begin()
    setup.train(folder, state)
    save_tensors(setup.method.state_dict(), folder.path / "model.pt")
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
    }
    write_json(folder.path / "result.json", result)
    folder.log("finished")
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return result
