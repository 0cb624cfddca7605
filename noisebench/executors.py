"""Where cells run: what an executor is, and the one that a board names. Imports neither torch nor an engine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from noisebench.config import Cell
from noisebench.errors import UserError
from noisebench.execution import EXECUTORS, Execution
from noisebench.files import epochs_of

Ended = tuple[Cell, dict[str, Any]]
"""A cell and what `cell.run_cell` gave for it."""
Results = Generator[Ended, None, None]


@dataclass(frozen=True)
class Place:
    """What a worker must know beside the cell: where to write, where data lies, on what to compute, how to run."""

    out: Path
    data_root: Path | None = None
    download: bool = False
    accelerator: str = "auto"
    execution: Execution = field(default_factory=Execution)


MAX_DEATHS = 3
"""A cell whose process died so often without having got further (out of memory, say) is given up."""


class Deaths:
    """How often the process of a cell died."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seen: dict[str, tuple[int, int]] = {}

    def __contains__(self, cell: Cell) -> bool:
        return cell.fingerprint() in self._seen

    def count(self, cell: Cell, more: int = 1) -> int:
        """So many more deaths. How many there were without a further epoch: one that gets on may die at any time."""
        epochs = epochs_of(self._out / cell.folder())
        before, then = self._seen.get(cell.fingerprint(), (0, epochs))
        now = more if epochs > then else before + more
        self._seen[cell.fingerprint()] = now, epochs
        return now

    def forget(self, cell: Cell) -> None:
        """It came to its end."""
        self._seen.pop(cell.fingerprint(), None)


class Executor(Protocol):
    """Places cells with an engine, takes them up again where their process was lost, and cancels them."""

    def check(self, place: Place, cells: Sequence[Cell]) -> None:
        """Refuse what cannot work before the first cell starts.

        Raises:
            UserError: the option or key, its value, what would be right.
        """

    def __call__(
        self,
        cells: Sequence[Cell],
        place: Place,
        jobs: int | None,
        idle: Callable[[], None] = ...,
        more: Callable[[], list[Cell]] = ...,
    ) -> Results:
        """Run cells, in this order as far as they can be placed; yields each with its result as it ends.

        A cell whose process died goes on from its checkpoint in another; one that died too often is yielded as
        {"status": "failed", "reason": ...}. Closing it cancels what it placed.

        Args:
            cells: what to run.
            place: where.
            jobs: how many at once; as many as there is room for by default.
            idle: called several times a second while waiting (progress display).
            more: asked after every result for cells that follow from it.
        """


def executor(name: str) -> Executor:
    """The executor of this name."""
    module, _, attribute = EXECUTORS[name].partition(":")
    made: Executor = getattr(importlib.import_module(module), attribute)()
    return made


def run_cells(
    cells: Sequence[Cell],
    place: Place,
    jobs: int | None = None,
    idle: Callable[[], None] = lambda: None,
    more: Callable[[], list[Cell]] = list,
) -> Results:
    """Run cells with the executor that `place` names; see `Executor`. Checks at once, runs as it is iterated.

    Raises:
        UserError: what `Executor.check` refuses.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("torchrun is for one cell (noisebench run); a board starts the ranks of its cells by itself")
    chosen = executor(place.execution.executor)
    chosen.check(place, cells)
    return chosen(cells, place, jobs, idle, more)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
