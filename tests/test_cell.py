"""A run folder through kills, full disks and rivals: whole, never doubled, and bit-equal to an undisturbed run."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import tempfile
import time
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebench import cell as cell_module
from noisebench import noise
from noisebench.assembly import Setup, method_class, split
from noisebench.cell import run_cell, summarise, weights_sha256
from noisebench.cell_folder import Folder, save_tensors
from noisebench.config import Cell, Noise, build
from noisebench.loading import load_dataset
from noisebench.training import TrainingFailed

pytestmark = pytest.mark.usefixtures("one_picture")

EPOCHS = 4
RECIPE = {"epochs": EPOCHS, "batch_size": 64, "lr": 0.05, "train_size": 200, "checkpoint_seconds": 0}
FILES = {"config.json", "metrics.jsonl", "result.json", "model.pt", "system.jsonl", "log.txt", "lock"}


def cell_of(method: str = "ce", seed: int = 0, **recipe: Any) -> Cell:
    made: Cell = build(
        Cell,
        {
            "method": method,
            "dataset": "digits",
            "noise": {"kind": "symmetric", "rate": 0.4},
            "seed": seed,
            "recipe": RECIPE | recipe,
        },
        "test",
    )
    return made


def multilabel_cell(**recipe: Any) -> Cell:
    missing = build(Noise, {"kind": "asymmetric", "rate": 0.3, "mapping": {1: 0}}, "noise")
    return cell_of(**recipe).model_copy(update={"dataset": "multi_digits", "noise": missing})


def run(cell: Cell, out: Path) -> dict[str, Any]:
    return run_cell(cell, out, accelerator="cpu")


def lines(cell: Cell, out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock gives."""
    text = (out / cell.folder() / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{"epoch": f["epoch"], "metrics": {k: v for k, v in f["metrics"].items() if k != "seconds"}} for f in found]


def log_of(cell: Cell, out: Path) -> str:
    return (out / cell.folder() / "log.txt").read_text()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Killed(BaseException):
    """What no `except Exception` catches: the nearest thing to a kill within one process."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


def stopped_after(epoch: int, cell: Cell, out: Path, monkeypatch: pytest.MonkeyPatch, before_saving: bool) -> None:
    """Run the cell and stop it at the end of an epoch, just before or just after its checkpoint."""
    checkpoint = Folder.checkpoint

    def stop(self: Folder, state: dict[str, Any], last: bool) -> None:
        if state["epoch"] == epoch and before_saving:
            raise Killed
        checkpoint(self, state, last)
        if state["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "checkpoint", stop)
        with pytest.raises(Killed):
            run(cell, out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], list[Any]]]:
    """Result and metrics of a cell that nobody disturbed, by method; each is run once."""
    out = tmp_path_factory.mktemp("undisturbed")

    def result(method: str = "ce") -> tuple[dict[str, Any], list[Any]]:
        found = run(cell_of(method), out)
        return found, lines(cell_of(method), out)

    return result


Undisturbed = Callable[..., tuple[dict[str, Any], list[Any]]]


# ----------------------------------------------------------------------------------------------- a run and its folder


def test_a_finished_folder_is_whole(tmp_path: Path) -> None:
    cell = cell_of()
    result = run(cell, tmp_path)
    folder = tmp_path / cell.folder()
    assert result["status"] == "finished"
    assert {file.name for file in folder.iterdir()} - {"selected.pt"} == FILES
    assert result == json.loads((folder / "result.json").read_text())
    assert result["epochs"] == len(lines(cell, tmp_path)) == EPOCHS
    assert result["metrics"]["last"]["accuracy"] == lines(cell, tmp_path)[-1]["metrics"]["test.accuracy"]
    # model.pt holds the very weights that the hash is of.
    state = torch.load(folder / "model.pt", weights_only=True)
    holder = torch.nn.Module()
    for name, value in state.items():
        holder.register_buffer(name.replace(".", "/"), value)
    renamed = {name.replace("/", "."): value for name, value in holder.state_dict().items()}
    holder.state_dict = lambda: renamed  # type: ignore[method-assign,assignment]
    assert weights_sha256(holder) == result["weights_sha256"]


def test_a_result_tells_of_the_machine_and_of_calibration(undisturbed: Undisturbed) -> None:
    result = undisturbed()[0]
    assert result["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "core" in result["hardware"]
    counts, accuracies = result["calibration"]["count"], result["calibration"]["accuracy"]
    assert sum(counts) == len(load_dataset("digits", None).test_labels)
    right = sum(n * accuracy for n, accuracy in zip(counts, accuracies, strict=True) if n)
    assert right / sum(counts) == pytest.approx(result["metrics"]["last"]["accuracy"], abs=1e-5)
    if Path("/proc/self/status").exists():
        assert 50 < result["peak_memory_mb"] < 20_000


def test_the_weights_of_the_selected_epoch_are_kept_through_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def selected(cell: Cell, out: Path) -> tuple[int, dict[str, torch.Tensor]]:
        result = run(cell, out)
        folder = out / cell.folder()
        epoch = int(result["metrics"]["selected"]["epoch"])
        assert (folder / "selected.pt").exists() == (epoch < result["epochs"]), "else model.pt has them"
        return epoch, torch.load(folder / ("selected.pt" if epoch < result["epochs"] else "model.pt"))

    checkpoint = Folder.checkpoint
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(self: Folder, state: dict[str, Any], last: bool) -> None:
        seen[state["epoch"]] = {name: value.clone() for name, value in state["method"].items()}
        checkpoint(self, state, last)

    early = cell_of(epochs=6, clip_norm=1e-9)  # which cannot learn, so that it never gets better than it begins
    for i, cell in enumerate([early, cell_of(epochs=6, validation=0.2)]):
        epoch, weights = selected(cell, tmp_path / f"{i}")
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "checkpoint", keep)
            run(cell, tmp_path / f"seen {i}")
        assert all(torch.equal(weights[name], value) for name, value in seen[epoch].items())
        stopped_after(epoch, cell, tmp_path / f"killed {i}", monkeypatch, before_saving=True)
        again = selected(cell, tmp_path / f"killed {i}")
        assert again[0] == epoch
        assert all(torch.equal(weights[name], value) for name, value in again[1].items())


def test_a_finished_cell_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(epochs=2)
    first = run(cell, tmp_path)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / cell.folder()).iterdir()}
    monkeypatch.setattr(cell_module, "_run", full)
    assert run(cell, tmp_path) == first
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in (tmp_path / cell.folder()).iterdir()} == before
    # The label is no part of the fingerprint: the row may be called otherwise by now.
    other = cell.model_copy(update={"method": cell.method.model_copy(update={"label": "baseline"})})
    assert other.fingerprint() == cell.fingerprint()


def test_noise_is_made_once_and_shared_by_the_methods(tmp_path: Path) -> None:
    results = [run(cell_of(method, epochs=1), tmp_path) for method in ("ce", "gce")]
    (folder,) = [path for path in (tmp_path / "noise").iterdir() if path.is_dir()]
    facts = json.loads((folder / "noise.json").read_text())
    assert {result["noise_sha256"] for result in results} == {facts["sha256"]}
    assert {f.name for f in folder.iterdir()} == {"noise.npz", "noise.json", "transition.json", "transition.png"}
    for method in ("ce", "gce"):
        config = json.loads((tmp_path / cell_of(method, epochs=1).folder() / "config.json").read_text())
        assert tmp_path / config["noise_folder"] == folder
        assert config["noise_sha256"] == facts["sha256"]


def test_a_kill_while_the_noise_is_drawn_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("noisebench.loading.noise.draw_transition", killed)
        with pytest.raises(Killed):
            run(cell, tmp_path)
    assert run(cell, tmp_path)["status"] == "finished"
    assert len(list((tmp_path / "noise").glob("*/transition.png"))) == 1


def test_noise_is_only_read_by_the_second_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(cell_of("ce", epochs=1), tmp_path)
    monkeypatch.setattr("noisebench.loading.make_noise", full)
    assert run(cell_of("gce", epochs=1), tmp_path)["status"] == "finished"
    assert run(cell_of("ce", seed=1, epochs=1), tmp_path)["status"] == "failed"  # another seed needs its own


# ---------------------------------------------------------------------------------------------------- stopped, resumed


@pytest.mark.parametrize("method", ["ce", "elr", "co_teaching"])
@pytest.mark.parametrize("before_saving", [True, False], ids=["before-checkpoint", "after-checkpoint"])
def test_a_resumed_run_is_bit_equal(
    method: str, before_saving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of(method)
    stopped_after(2, cell, tmp_path, monkeypatch, before_saving)
    assert len(lines(cell, tmp_path)) == 2
    result = run(cell, tmp_path)
    expected, expected_lines = undisturbed(method)
    assert f"resumed after epoch {1 if before_saving else 2} " in log_of(cell, tmp_path)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert lines(cell, tmp_path) == expected_lines
    assert {file.name for file in (tmp_path / cell.folder()).iterdir()} - {"selected.pt"} == FILES


def test_stopped_after_its_last_checkpoint_it_trains_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of()
    stopped_after(EPOCHS, cell, tmp_path, monkeypatch, before_saving=False)
    monkeypatch.setattr("noisebench.training.Run.begin_epoch", full)
    assert run(cell, tmp_path)["weights_sha256"] == undisturbed()[0]["weights_sha256"]
    assert len(lines(cell, tmp_path)) == EPOCHS


def test_a_torn_last_line_is_cut_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of()
    stopped_after(3, cell, tmp_path, monkeypatch, before_saving=True)
    file = tmp_path / cell.folder() / "metrics.jsonl"
    os.truncate(file, file.stat().st_size - 7)
    assert len(Folder(file.parent).history) == 2
    assert file.read_bytes().endswith(b"}\n")
    assert run(cell, tmp_path)["weights_sha256"] == undisturbed()[0]["weights_sha256"]
    assert lines(cell, tmp_path) == undisturbed()[1]


@pytest.mark.parametrize("left", [0, 1])
def test_lines_that_a_checkpoint_is_ahead_of_are_not_skipped(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    """After a power failure: checkpoints are synced to the disk, lines are not."""
    cell = cell_of()
    stopped_after(3, cell, tmp_path, monkeypatch, before_saving=False)
    file = tmp_path / cell.folder() / "metrics.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:left]))
    result = run(cell, tmp_path)
    assert lines(cell, tmp_path) == undisturbed()[1]
    assert result["metrics"] == undisturbed()[0]["metrics"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_with_a_damaged_checkpoint_it_starts_anew_and_says_so(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of()
    stopped_after(2, cell, tmp_path, monkeypatch, before_saving=False)
    file = tmp_path / cell.folder() / "checkpoint.pt"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"no checkpoint"}[damage])
    result = run(cell, tmp_path)
    assert result["status"] == "finished", result["reason"]
    assert result["weights_sha256"] == undisturbed()[0]["weights_sha256"]
    assert "checkpoint" in log_of(cell, tmp_path)
    assert lines(cell, tmp_path) == undisturbed()[1]


def test_a_run_whose_epoch_comes_out_otherwise_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    """Another library or device: two runs must not end up in one record."""
    cell = cell_of()
    stopped_after(2, cell, tmp_path, monkeypatch, before_saving=True)
    file = tmp_path / cell.folder() / "metrics.jsonl"
    file.write_text(file.read_text().replace('"epoch": 2, ', '"epoch": 2, ').replace('"test.nll": ', '"test.nll": 9'))
    result = run(cell, tmp_path)
    assert "epoch 2 came out otherwise" in log_of(cell, tmp_path)
    assert result["metrics"] == undisturbed("ce")[0]["metrics"]
    assert '"test.nll": 9' not in file.read_text()


def test_a_checkpoint_of_another_device_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of()
    stopped_after(2, cell, tmp_path, monkeypatch, before_saving=False)
    file = tmp_path / cell.folder() / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    state["run"]["device"] = "cuda"
    torch.save(state, file)
    result = run(cell, tmp_path)
    assert "the checkpoint is of another device (cuda, now cpu): started anew" in log_of(cell, tmp_path)
    assert result["weights_sha256"] == undisturbed("ce")[0]["weights_sha256"]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\n", b"\xff\xfe\n", b"[1]\n", b'{"epoch": 9, "metrics": {}}\n'])
def test_lines_that_a_loss_of_power_left_are_cut_off(damage: bytes, tmp_path: Path, undisturbed: Undisturbed) -> None:
    cell = cell_of()
    folder = tmp_path / cell.folder()
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(damage)
    (folder / "result.json").write_bytes(b"\xff\xfe\x00")
    assert run(cell, tmp_path)["metrics"] == undisturbed("ce")[0]["metrics"]


def test_an_artefact_of_other_labels_is_refused(tmp_path: Path) -> None:
    first = cell_of(epochs=1)
    run(first, tmp_path)
    (file,) = tmp_path.glob("noise/*/noise.json")
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"true_sha256": "0" * 64}))
    result = run(cell_of("gce", epochs=1), tmp_path)
    assert result["status"] == "failed"
    assert "was made for other labels than digits has now; remove it" in result["reason"]


# -------------------------------------------------------------------------------------------- failures, a full disk


@pytest.mark.parametrize("where", ["save", "fsync"])
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    cell = cell_of()
    folder = tmp_path / cell.folder()
    save, fsync, saved = torch.save, os.fsync, []

    def save_some(state: dict[str, Any], file: Any) -> None:
        if Path(file.name).stem == "checkpoint":
            saved.append(state)
            if len(saved) == 2 and where == "save":
                full()
        save(state, file)

    def sync_some(file: int) -> None:  # the bytes were taken, and turn out not to fit
        if len(saved) == 2:
            full()
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_some)
        if where == "fsync":
            patch.setattr(os, "fsync", sync_some)
        result = run(cell, tmp_path)
    assert result["status"] == "failed"
    assert result["reason"] == "checkpoint.pt could not be written ([Errno 28] No space left on device); " + (
        "the last good one stays"
    )
    if where == "save":
        assert json.loads((folder / "failure.json").read_text()) == result
    assert not list(folder.glob("*.tmp"))
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 1
    result = run(cell, tmp_path)
    assert "resumed after epoch 1" in log_of(cell, tmp_path)
    assert result["weights_sha256"] == undisturbed()[0]["weights_sha256"]
    assert lines(cell, tmp_path) == undisturbed()[1]
    assert {file.name for file in folder.iterdir()} - {"selected.pt"} == FILES


def test_on_a_full_disk_the_reason_is_told_even_if_it_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "save_tensors", full)
        patch.setattr(Folder, "log", full)
        result = run(cell, tmp_path)
    assert result["status"] == "failed"
    assert "No space left on device" in result["reason"]
    assert not FileLock(tmp_path / cell.folder() / "lock").is_locked


def test_a_failure_is_stored_and_gone_after_a_run_that_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(epochs=1)
    file = tmp_path / cell.folder() / "failure.json"
    with monkeypatch.context() as patch:
        patch.setattr(method_class("ce"), "loss", lambda self, batch, run: self(batch.x).mean() / 0)
        result = run(cell, tmp_path)
    assert result["reason"] in {f"the loss became {value} in epoch 1, step 1" for value in ("inf", "-inf", "nan")}
    assert json.loads(file.read_text()) == result
    assert "metrics" not in result
    assert run(cell, tmp_path)["status"] == "finished"
    assert not file.exists()


def test_an_error_in_a_method_is_one_line_and_its_trace_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, batch: Any, run: Any) -> None:
        raise KeyError("no\nsuch thing")

    monkeypatch.setattr(method_class("ce"), "loss", broken)
    cell = cell_of(epochs=1)
    reason = run(cell, tmp_path)["reason"]
    assert reason.startswith("KeyError: ")
    assert "\n" not in reason
    assert "Traceback" in log_of(cell, tmp_path)
    assert "in broken" in log_of(cell, tmp_path)


# ----------------------------------------------------------------------------------------------- two at once on a cell


def test_a_folder_that_another_process_holds_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(epochs=1)
    folder = tmp_path / cell.folder()
    folder.mkdir(parents=True)
    monkeypatch.setattr(cell_module, "FileLock", lambda file, timeout: FileLock(file, timeout=min(timeout, 0.2)))
    with FileLock(folder / "lock"):
        result = run(cell, tmp_path)
    assert result["status"] == "held"
    assert result["reason"] == f"{folder} is held by another process; let it finish, or stop it and start again"
    assert {file.name for file in folder.iterdir()} <= {"lock"}


def _run_at(begin: float, cell: Cell, out: Path) -> dict[str, Any]:
    time.sleep(max(0, begin - time.time()))
    return run(cell, out)


def test_two_processes_at_once_give_one_result(tmp_path: Path) -> None:
    cell = cell_of()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_run_at, 0, cell_of(epochs=1), tmp_path).result()  # all is imported
        begin = time.time() + 0.5
        other = pool.submit(_run_at, begin, cell, tmp_path)
        mine = _run_at(begin, cell, tmp_path)
        assert mine == other.result()
    assert mine["status"] == "finished"
    assert log_of(cell, tmp_path).count("finished") == log_of(cell, tmp_path).count("started") == 1
    assert len(lines(cell, tmp_path)) == EPOCHS


# --------------------------------------------------------------------------------------------------- the three numbers


def line(epoch: int, test: float, val: float | None = None) -> dict[str, Any]:
    metrics = {"test.accuracy": test, "test.nll": 1.0 + epoch, "train.loss": 0.5, "train.memorised": 0.25}
    return {"epoch": epoch, "metrics": metrics if val is None else metrics | {"val.accuracy": val}}


def test_selected_is_chosen_by_validation_and_best_by_test_and_ties_go_to_the_first() -> None:
    found = summarise([line(1, 0.5, 0.1), line(2, 0.9, 0.3), line(3, 0.8, 0.7), line(4, 0.9, 0.7), line(5, 0.6, 0.2)])
    assert {which: numbers["epoch"] for which, numbers in found.items()} == {"last": 5, "best": 2, "selected": 3}
    assert found["selected"] == {"epoch": 3, "accuracy": 0.8, "nll": 4.0, "memorised": 0.25}


def test_with_several_labels_an_image_the_numbers_are_chosen_by_gap() -> None:
    history = [
        {"epoch": i + 1, "metrics": {"test.gap": test, "val.gap": val, "test.nll": 3.0, "test.ece": 0.1}}
        for i, (test, val) in enumerate([(0.5, 0.6), (0.9, 0.5), (0.7, 0.4)])
    ]
    found = summarise(history)
    assert {which: numbers["epoch"] for which, numbers in found.items()} == {"last": 3, "best": 2, "selected": 1}
    assert found["last"] == {"epoch": 3, "gap": 0.7, "nll": 3.0, "ece": 0.1}


def test_a_cell_of_several_labels_survives_a_stop_and_keeps_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = multilabel_cell()
    whole = run(cell, tmp_path / "whole")
    assert whole["status"] == "finished", whole
    stopped_after(2, cell, tmp_path / "cut", monkeypatch, before_saving=False)
    resumed = run(cell, tmp_path / "cut")
    assert "resumed after epoch 2" in log_of(cell, tmp_path / "cut")
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert lines(cell, tmp_path / "cut") == lines(cell, tmp_path / "whole")
    assert set(whole["metrics"]["last"]) == {"epoch", "gap", "nll", "ece", "memorised"}

    (folder,) = (f for f in (tmp_path / "whole" / "noise").iterdir() if f.is_dir())
    noisy, data = noise.load(folder), load_dataset("multi_digits", None)
    assert noisy.sha256 == whole["noise_sha256"]
    assert not (noisy.labels & ~data.train_labels).any(), "labels only went missing"
    assert noisy.realised_transition(data.train_labels)[1, 0] == pytest.approx(0.3, abs=0.03)
    assert (folder / "transition.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_validation_split_nothing_is_selected() -> None:
    assert summarise([line(1, 0.5), line(2, 0.4)]).keys() == {"last", "best"}
    assert "selected" not in run_in_new_folder(cell_of(epochs=1, validation=0))["metrics"]


def run_in_new_folder(cell: Cell) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as out:
        return run(cell, Path(out))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_best_is_never_below_selected_and_both_are_epochs_of_the_run(accuracies: list[tuple[float, float]]) -> None:
    history = [line(i + 1, test, val) for i, (test, val) in enumerate(accuracies)]
    found = summarise(history)
    assert found["best"]["accuracy"] == max(test for test, _ in accuracies) >= found["selected"]["accuracy"]
    chosen = int(found["selected"]["epoch"]) - 1
    assert accuracies[chosen][1] == max(val for _, val in accuracies)
    assert all(val < accuracies[chosen][1] for _, val in accuracies[:chosen])
    assert found["last"]["epoch"] == len(history)


# ------------------------------------------------------------------------------------------------------- the journal


@settings(deadline=None, max_examples=60)
@given(
    attempts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), max_size=6),
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
)
def test_no_epoch_is_written_twice_whatever_was_stopped_where(
    attempts: list[tuple[int, int]], values: list[float]
) -> None:
    """Attempts, each from some checkpoint to some epoch, the last line torn somewhere; then one to the end."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        for reached, torn in [*attempts, (6, 0)]:
            folder = Folder(path)
            start = len(folder.history) * (torn % 2)  # from the last line's checkpoint, or from the start
            for epoch in range(start + 1, reached + 1):
                folder.epoch(epoch, {"test.accuracy": values[epoch - 1]})
            file = path / "metrics.jsonl"
            if torn and file.exists():
                with file.open("ab") as handle:
                    handle.write(b'{"epoch": 7, "time": 1795230705649, "metrics": {"x": 1}}'[:torn])
        written = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in written] == [1, 2, 3, 4, 5, 6]
        assert [line["metrics"]["test.accuracy"] for line in written] == values
        stamps = [line["time"] for line in written]
        assert stamps == sorted(stamps)


def test_checkpoints_are_as_far_apart_as_the_recipe_says_and_the_last_is_always_stored(tmp_path: Path) -> None:
    folder = Folder(tmp_path, checkpoint_seconds=1000)
    folder.epoch(1, {})
    folder.checkpoint({"epoch": 1, "method": {}, "run": {}}, last=False)
    assert folder.stored_state() is None
    last = {"epoch": 1, "method": {}, "run": {}}
    folder.checkpoint(last, last=True)
    assert folder.stored_state() == last


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    for name in ("checkpoint.tmp", "model.tmp", ".result.json.123.tmp"):
        (tmp_path / name).write_bytes(b"half")
    Folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_file_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingFailed, match=r"^model\.pt could not be written .*; there was none before$"):
        save_tensors({}, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- what a method can and cannot look at


def reachable(*start: Any) -> list[np.ndarray[Any, Any]]:
    """Every array and tensor that `start` leads to by attributes, containers and closures."""
    seen: dict[int, Any] = {}
    queue = list(start)
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType)):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):  # its globals are its module's, not the run's
            queue += [thing.__closure__, thing.__defaults__]
        else:
            queue += gc.get_referents(thing)
    found = (t.detach().cpu().numpy() if isinstance(t, torch.Tensor) else t for t in seen.values())
    return [array for array in found if isinstance(array, np.ndarray)]


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize("method", ["ce", "forward", "co_teaching"])
def test_no_method_can_reach_a_clean_label_or_the_test_set(method: str, loader: str) -> None:
    data = load_dataset("digits", None)
    cls = method_class(method)
    labels = (data.train_labels + 1) % data.num_classes  # all of them wrong, so that clean ones show
    recipe = cell_of(train_size=None, loader=loader, workers=0).recipe
    noisy = noise.inject(data.train_labels, "pairflip", 1.0, num_classes=data.num_classes, seed=0)
    np.testing.assert_array_equal(noisy.labels, labels)
    true_transition = noisy.transition
    setup = Setup(cls, cls.Hparams(), data, labels, recipe, 0, noisy, "cpu")
    train_at, val_at = (at.numpy() for at in split(len(labels), recipe, 0))
    secrets = {
        "clean labels": data.train_labels,
        "clean labels of the training split": data.train_labels[train_at],
        "clean labels of the validation split": data.train_labels[val_at],
        "noisy labels of the validation split": labels[val_at],
        "test labels": data.test_labels,
        "test images": data.test_images,
        "test images for torch": np.transpose(np.asarray(data.test_images), (0, 3, 1, 2)),
        "which labels are wrong": np.ones(len(train_at), dtype=bool),
        "T": true_transition,
    }

    def known_to(*start: Any) -> set[str]:
        arrays = reachable(*start)
        return {name for name, value in secrets.items() if any(np.array_equal(a, value) for a in arrays)}

    batches = setup.run.loader()  # open, as during an epoch
    batch = next(batches)
    assert known_to(setup.method, setup.run, batches, batch) == set(cls.needs and {"T"})
    assert known_to(setup.evaluator) >= {
        "test labels",
        "which labels are wrong",
        "noisy labels of the validation split",
    }
    assert torch.equal(batch.y, torch.from_numpy(labels[train_at])[batch.index])


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_no_method_can_reach_a_clean_row_or_the_test_set_of_several_labels(loader: str) -> None:
    data, cls = load_dataset("multi_digits", None), method_class("ce")
    labels = 1 - np.asarray(data.train_labels)  # every entry wrong
    recipe = multilabel_cell(train_size=None, loader=loader, workers=0).recipe
    setup = Setup(cls, cls.Hparams(), data, labels, recipe, 0, accelerator="cpu")
    train_at, val_at = (at.numpy() for at in split(len(labels), recipe, 0))
    secrets = [data.train_labels, data.train_labels[train_at], labels[val_at], data.test_labels, data.test_images]
    batch = next(setup.run.loader())
    arrays = reachable(setup.method, setup.run, batch)
    assert not any(np.array_equal(array, secret) for array in arrays for secret in secrets)
    assert torch.equal(batch.y, torch.from_numpy(labels[train_at])[batch.index].float())
