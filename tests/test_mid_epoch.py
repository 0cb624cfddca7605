"""Resumed within an epoch: the same samples in the same order, the same draws, and in the end the same bits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from noisebench.assembly import Setup
from noisebench.augment import Augmentation
from noisebench.cell import run_cell, weights_sha256
from noisebench.cell_folder import Folder
from noisebench.checks import RECIPE, WITHIN, check_method, sample_data
from noisebench.config import Cell, Recipe, build
from noisebench.data import make_loader
from noisebench.errors import TrainingFailed, UserError
from noisebench.fitting import Memory
from noisebench.method import Batch, Classifier, Task
from noisebench.training import Run

pytestmark = pytest.mark.usefixtures("one_picture")

DATA = sample_data()  # 84 images after the split: 5 batches of 16, and 4 images that no batch has
STEPS = 5


class Draws(Classifier):
    """Cross-entropy that draws from every generator there is, and notes what it was given."""

    name = "draws"
    paper = "none"
    seen: list[list[int]]
    shown: list[Tensor]

    def build(self, task: Task) -> None:
        super().build(task)
        self.register_buffer("mean_loss", torch.zeros(()))
        self.seen, self.shown = [], []  # for the test, and no part of what is learned

    def loss(self, batch: Batch, run: Run) -> Tensor:
        self.seen.append(batch.index.tolist())
        self.shown.append(batch.x.clone())
        x = F.dropout(batch.x, 0.1)  # torch's global generator
        x = x + 0.1 * torch.randn(x.shape, generator=run.generator)
        x = x * (1 + 0.1 * random.random() + 0.1 * float(np.random.standard_normal()))  # noqa: NPY002
        again = next(run.loader(batch_size=8))  # a pass of its own: its order depends on how many came before
        loss = F.cross_entropy(self(x), batch.y) + 0.1 * F.cross_entropy(self(again.x), again.y)
        run.log(step=run.step, half=0.5 * loss, average=self.mean_loss)
        self.mean_loss.lerp_(loss.detach(), 0.3)
        return loss


class OwnEpoch(Draws):
    name = "own-epoch"

    def epoch(self, run: Run) -> Iterator[Batch]:
        yield from run.loader()


class Stops(Folder):
    """A run folder that stores the state after a given batch of an epoch (0-based), and stops the run there."""

    def __init__(self, path: Path, epoch: int, batch: int) -> None:
        super().__init__(path)
        self.asked, self.at = 0, STEPS * epoch + batch

    def due(self) -> bool:
        self.asked += 1
        return self.asked == self.at

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        super().checkpoint(state, last)
        if "batch" in state:
            raise KeyboardInterrupt


def setup_of(cls: type[Classifier] = Draws, **changes: Any) -> Setup:
    recipe = Recipe(**(RECIPE.model_dump() | {"epochs": 3} | changes))
    return Setup(cls, cls.Hparams(), DATA, DATA.train_labels, recipe, 3, accelerator="cpu")


@cache
def whole(**changes: Any) -> tuple[Draws, list[dict[str, Any]]]:
    setup, journal = setup_of(**changes), Memory()
    setup.train(journal)
    assert isinstance(setup.method, Draws)
    return setup.method, journal.history


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"epoch": line["epoch"], "metrics": {k: v for k, v in line["metrics"].items() if k != "seconds"}}
        for line in history
    ]


def interrupted(path: Path, epoch: int, batch: int, **changes: Any) -> tuple[Draws, list[list[int]], Folder]:
    """Stop a run after a batch and take it up from its file: the method, all samples it saw, the folder."""
    first = setup_of(**changes)
    with pytest.raises(KeyboardInterrupt):
        first.train(Stops(path, epoch, batch))
    folder = Folder(path)
    state = folder.stored_state()
    assert state is not None
    assert (state["epoch"], state["batch"]) == (epoch, batch)
    second = setup_of(**changes)
    torch.rand(3), random.random(), np.random.standard_normal()  # noqa: NPY002  # whatever came between
    second.train(folder, state)
    assert isinstance(first.method, Draws)
    assert isinstance(second.method, Draws)
    return second.method, first.method.seen + second.method.seen, folder


# ----------------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("batch", range(1, STEPS + 1))
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_after_any_batch_of_any_epoch_it_goes_on_bit_for_bit(epoch: int, batch: int, tmp_path: Path) -> None:
    expected, history = whole()
    method, seen, folder = interrupted(tmp_path, epoch, batch)
    assert seen == expected.seen
    rest = expected.shown[STEPS * epoch + batch :]
    assert all(torch.equal(a, b) for a, b in zip(method.shown, rest, strict=True))
    assert weights_sha256(method) == weights_sha256(expected)
    assert without_seconds(folder.history) == history


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 0.01},
        {"precision": "bf16-mixed"},
        {"padding": 0, "flip": False},
        {"batch_size": 64, "train_size": 48},
        {"loader": "streaming", "workers": 0},
        {"loader": "streaming", "workers": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_so_it_does_under_other_recipes(changes: dict[str, Any], tmp_path: Path) -> None:
    expected, history = whole(**changes)
    method, seen, folder = interrupted(tmp_path, 0, min(3, len(expected.seen) // 3), **changes)
    assert seen == expected.seen
    assert weights_sha256(method) == weights_sha256(expected)
    assert without_seconds(folder.history) == history


def test_stopped_twice_in_one_epoch_it_goes_on_from_the_second(tmp_path: Path) -> None:
    expected, history = whole()
    seen: list[list[int]] = []
    for batch in (2, 2):  # two batches, and two more
        setup, folder = setup_of(), Stops(tmp_path, 0, batch)
        with pytest.raises(KeyboardInterrupt):
            setup.train(folder, folder.stored_state())
        seen += setup.method.seen  # type: ignore[union-attr,operator]
    state = Folder(tmp_path).stored_state()
    assert state is not None
    assert state["batch"] == 4
    setup, folder = setup_of(), Stops(tmp_path, 9, 9)
    setup.train(folder, state)
    assert seen + setup.method.seen == expected.seen  # type: ignore[operator]
    assert weights_sha256(setup.method) == weights_sha256(expected)
    assert without_seconds(folder.history) == history


def test_asking_and_storing_change_nothing(tmp_path: Path) -> None:
    class Always(Folder):
        def due(self) -> bool:
            return True

    expected, history = whole()
    setup, folder = setup_of(), Always(tmp_path)
    setup.train(folder)
    assert weights_sha256(setup.method) == weights_sha256(expected)
    assert without_seconds(folder.history) == history


def test_a_method_with_an_epoch_of_its_own_has_states_after_epochs_only() -> None:
    journal = Memory(keep_states=True)
    journal.due = lambda: True  # type: ignore[method-assign]
    setup_of(OwnEpoch).train(journal)
    assert [state["epoch"] for state in journal.states] == [1, 2, 3]
    assert not any("batch" in state for state in journal.states)


def test_a_loss_that_was_not_finite_before_the_interruption_is_named_with_its_step(tmp_path: Path) -> None:
    class Breaks(Draws):
        def loss(self, batch: Batch, run: Run) -> Tensor:
            return super().loss(batch, run) * (float("nan") if run.step == 6 else 1)

    with pytest.raises(KeyboardInterrupt):
        setup_of(Breaks).train(Stops(tmp_path, 1, 4))
    folder = Folder(tmp_path)
    with pytest.raises(TrainingFailed, match="the loss became nan in epoch 2, step 7"):
        setup_of(Breaks).train(folder, folder.stored_state())


def test_a_logged_buffer_counts_as_it_was_when_it_was_logged() -> None:
    class Counts(Classifier):
        name = "counts"

        def build(self, task: Task) -> None:
            super().build(task)
            self.register_buffer("steps", torch.zeros(()))

        def loss(self, batch: Batch, run: Run) -> Tensor:
            run.log(steps=self.steps)
            self.steps += 1
            return F.cross_entropy(self(batch.x), batch.y)

    setup, journal = setup_of(Counts), Memory()
    setup.train(journal)
    assert [line["metrics"]["train.steps"] for line in journal.history] == [2, 7, 12]


def test_the_suite_finds_state_that_no_checkpoint_within_an_epoch_has() -> None:
    """Kept in an attribute from batch to batch, and forgotten between epochs."""

    class Remembers(Classifier):
        name = "remembers"
        paper = "none"
        before: tuple[int, Tensor] | None = None

        def loss(self, batch: Batch, run: Run) -> Tensor:
            loss = F.cross_entropy(self(batch.x), batch.y)
            weight = 1 if self.before is None or self.before[0] != run.epoch else 1 + self.before[1]
            self.before = run.epoch, loss.detach()
            return weight * loss

    failed = [o for o in check_method(Remembers, raise_on_failure=False) if o.status == "failed"]
    assert [o.name.split()[0] for o in failed] == ["resumes"]
    assert f"resumed after epoch 1, batch {WITHIN - 5}: other weights" in failed[0].detail


# --------------------------------------------------------------------------------------------------------- the loader


class Counted:
    """Images in a folder, say: which were read is told by marks on the disk, since workers are other processes."""

    def __init__(self, images: np.ndarray, folder: Path) -> None:
        self.images, self.folder = images, folder
        self.shape = images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int, /) -> np.ndarray:
        with (self.folder / str(i)).open("ab") as file:
            file.write(b".")
        return self.images[i]

    def read(self) -> dict[int, int]:
        return {int(file.name): file.stat().st_size for file in self.folder.iterdir()}


@pytest.mark.parametrize("options", [{}, {"augment": False}, {"views": 2}, {"shuffle": False}], ids=str)
@pytest.mark.parametrize("workers", [None, 0, 2])
def test_batches_from_a_later_one_on_are_those_of_the_whole_pass(
    workers: int | None, options: dict[str, Any], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    counted = Counted(images, tmp_path)
    loader = make_loader(
        images if workers is None else counted,
        torch.from_numpy(draw.integers(0, 4, 70)),
        device="cpu",
        augmentation=Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3, padding=2, flip=True),
        mode="resident" if workers is None else "streaming",
        workers=workers or 0,
    )
    given: dict[str, Any] = {"batch_size": 16, "order_seed": 5, "augment_seed": 6} | options
    expected = list(loader.batches(**given))
    for start in range(len(expected) + 2):
        for file in tmp_path.iterdir():
            file.unlink()
        found = list(loader.batches(start=start, **given))
        assert len(found) == max(0, len(expected) - start)
        for a, b in zip(found, expected[start:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if workers is not None:  # each image once, and none of those before
            assert counted.read() == {int(i): 1 for batch in found for i in batch.index}


def test_a_negative_start_is_refused() -> None:
    with pytest.raises(UserError, match="start is -1; give 0 or more"):
        next(setup_of().run._loader.batches(batch_size=2, order_seed=0, augment_seed=0, start=-1))


# ---------------------------------------------------------------------------------------------------------- the cell


def cell_of(method: str, **recipe: Any) -> Cell:
    small = {"epochs": 3, "batch_size": 32, "lr": 0.05, "train_size": 200, "padding": 1, "checkpoint_seconds": 0}
    noise = {"kind": "symmetric", "rate": 0.4}
    given = {"method": method, "dataset": "digits", "noise": noise, "seed": 0, "recipe": small | recipe}
    made: Cell = build(Cell, given, "test")
    return made


class Killed(BaseException):
    """What no `except Exception` catches: the nearest thing to a kill within one process."""


def killed_at(steps: Sequence[int]) -> Callable[[Folder], bool]:
    """A `due` that stores after every batch, and kills when it is asked so often (in each attempt)."""
    asked, left = 0, list(steps)

    def due(self: Folder) -> bool:
        nonlocal asked
        asked += 1
        if left and asked == left[0]:
            left.pop(0)
            asked = 0
            raise Killed
        return True

    return due


@pytest.mark.parametrize("method", ["ce", "elr", "co_teaching", "mixup"])
def test_a_cell_killed_in_the_middle_of_epochs_ends_as_undisturbed(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(method)
    expected = run_cell(cell, tmp_path / "undisturbed", accelerator="cpu")
    assert expected["status"] == "finished", expected["reason"]
    monkeypatch.setattr(Folder, "due", killed_at([3, 4, 4]))
    for _ in range(3):
        with pytest.raises(Killed):
            run_cell(cell, tmp_path, accelerator="cpu")
    result = run_cell(cell, tmp_path, accelerator="cpu")
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    histories = [
        without_seconds([json.loads(line) for line in (out / cell.folder() / "metrics.jsonl").read_text().splitlines()])
        for out in (tmp_path, tmp_path / "undisturbed")
    ]
    assert histories[0] == histories[1]
    log = (tmp_path / cell.folder() / "log.txt").read_text()
    assert [line.split(" ", 2)[2].partition(" (")[0] for line in log.splitlines()] == [
        "started",
        "resumed after epoch 0, batch 2",
        "resumed after epoch 1",
        "resumed after epoch 1, batch 3",
        "finished",
    ]
    assert not (tmp_path / cell.folder() / "checkpoint.pt").exists()


def test_when_a_checkpoint_within_an_epoch_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, writing = 100.0, 0.0

    def save(state: Any, file: Path) -> None:
        nonlocal now
        now += writing

    monkeypatch.setattr("noisebench.cell_folder.time.monotonic", lambda: now)
    monkeypatch.setattr("noisebench.cell_folder.save_tensors", save)
    folder = Folder(tmp_path, checkpoint_seconds=20)
    now += 19
    assert not folder.due()
    now += 1
    assert folder.due()
    writing = 4
    folder.checkpoint({"epoch": 0, "batch": 3}, last=False)
    now += 79
    assert not folder.due()  # a twentieth of the time for what takes 4 s
    now += 1
    assert folder.due()
    only_after_epochs = Folder(tmp_path, checkpoint_seconds=0)
    now += 1000
    assert not only_after_epochs.due()


def test_an_epochs_seconds_are_those_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("noisebench.cell_folder.time.monotonic", lambda: now)
    folder = Folder(tmp_path, checkpoint_seconds=20)
    now += 30
    folder.checkpoint({"epoch": 0, "batch": 3, "method": {}, "run": {}}, last=False)
    now += 5  # lost: what came after the checkpoint is done again
    later = Folder(tmp_path, checkpoint_seconds=20)
    state = later.stored_state()
    assert state is not None
    later.begin(state["seconds"])
    now += 12
    later.epoch(1, {})
    assert later.history[0]["metrics"]["seconds"] == 42
