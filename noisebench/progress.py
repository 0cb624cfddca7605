"""What a person sees while a board runs or is tuned: a live bar in a terminal, a line a cell or trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from noisebench.config import Benchmark, Cell
from noisebench.files import epochs_of
from noisebench.metrics import METRICS, SCORES, score_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from noisebench.studies import Trial
    from noisebench.tuning_plan import Row

AHEAD = 16
"""Cells run in order, so whatever runs is among the first so many that have not ended."""


class _Live:
    """A bar in a terminal. Follows cells through their run folders, so that it works whoever runs them."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        self._console, self._title, self._epochs = console, benchmark.name, benchmark.recipe.epochs
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[to_go]}"),
            TextColumn("[dim]{task.fields[running]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._total = self._ended = self._failed = 0
        self._looked = 0.0

    def __enter__(self) -> Self:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End the display."""
        self.close()

    def close(self) -> None:
        """End the display; a second call does nothing."""
        self._bar.stop()

    def _begin(self, out: Path, total: int) -> None:
        self._out = out
        self._task = self._bar.add_task(escape(self._title), total=total, count="", to_go="", running="")

    def _due(self) -> bool:
        """Whether to look at what runs: in a terminal alone, at most twice a second."""
        if self._bar.disable or time.monotonic() - self._looked < 0.5:
            return False
        self._looked = time.monotonic()
        return True

    def _running(self, cells: Iterable[Cell]) -> list[tuple[Cell, int]]:
        """Those of the cells that are in the middle of their training, with the epochs they have."""
        return [(cell, n) for cell in cells if 0 < (n := self._epochs_of(cell)) < self._epochs]

    def _epochs_of(self, cell: Cell) -> int:
        return epochs_of(self._out / cell.folder())

    def _and_failed(self) -> str:
        return f", {self._failed} failed" if self._failed else ""

    def warn(self, text: str) -> None:
        """A line that stays."""
        self._say(text, "yellow")

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


class BoardProgress(_Live):
    """What a person sees while a board runs."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        super().__init__(console, benchmark)
        self._open: list[Cell] = []

    def start(self, todo: list[Cell], finished: int, out: Path) -> None:
        """Before the first cell."""
        self._open, self._total = list(todo), finished + len(todo)
        self._begin(out, self._total * self._epochs)
        if todo:
            self._say(f"{self._title}: {self._total} cells{_before(finished)}; {out}")
        self._began = time.monotonic()
        self._recorded = sum(map(self._epochs_of, todo))  # of earlier, stopped attempts
        self.tick()

    def tick(self) -> None:
        """Look at what runs, at most twice a second."""
        if not self._due():
            return
        running = self._running(self._open[:AHEAD])
        partial = sum(n for _, n in running)
        gained = self._ended * self._epochs + partial - self._recorded
        left = len(self._open) * self._epochs - partial
        names = "  ".join(f"{cell.method.label} s{cell.seed} {n}/{self._epochs}" for cell, n in running[:4])
        self._bar.update(
            self._task,
            completed=(self._total - len(self._open)) * self._epochs + partial,
            count=self.summary(),
            to_go=f"{clock((self._looked - self._began) * left / gained)} to go" if gained > 0 else "",
            running=escape(names),
        )

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell ended: a line of its own where nobody watches a bar, and for every failure."""
        self._open.remove(cell)
        self._ended += 1
        name = f"{cell.method.label} · {cell.dataset} · {cell.noise.label} · seed {cell.seed}"
        if result["status"] == "finished":
            if self._bar.disable:
                last = result["metrics"]["last"]
                score = score_of(last)
                what = "last" if score == SCORES[0] else f"last {METRICS[score].title}"
                self._say(f"[{self.summary()}] {name}: {what} {percent(last[score])}%, {result['seconds']:.1f} s")
        else:
            self._failed += 1
            status = f"[red]{result['status']}[/]"
            reason = escape(f"{name}: {result.get('reason', '')}")
            self._console.print(f"{status} {reason}", soft_wrap=True, highlight=False)
        self._looked = 0.0
        self.tick()

    def summary(self) -> str:
        """How far it is, e.g. ``31/72 cells``."""
        return f"{self._total - len(self._open)}/{self._total} cells{self._and_failed()}"


class TrialProgress(_Live):
    """What a person sees while a board is tuned."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        super().__init__(console, benchmark)
        self._open: dict[tuple[str, int], list[Cell]] = {}

    def start(self, rows: list[Row], finished: int, out: Path) -> None:
        """Before the first cell."""
        self._ended, self._total = finished, sum(row.budget for row in rows)
        self._begin(out, self._total)
        self._say(f"{self._title}: {self._total} trials of {len(rows)} methods{_before(finished)}; {out}")
        for row in rows:
            space = ", ".join(f"{key} in {values}" for key, values in row.space.items())
            self._say(f"  {row.spec.label}: {space or 'nothing to search; run once'}")

    def opened(self, label: str, trial: Trial, cells: list[Cell]) -> None:
        """A trial begins."""
        self._open[label, trial.number] = cells

    def tick(self) -> None:
        """Look at what runs, at most twice a second."""
        if not self._due():
            return
        running = self._running(cell for cells in list(self._open.values()) for cell in cells)
        names = "  ".join(f"{cell.method.label} {n}/{self._epochs}" for cell, n in running[:4])
        self._bar.update(self._task, completed=self._ended, count=self.summary(), running=escape(names))

    def done(self, label: str, trial: Trial, best: float | None) -> None:
        """A trial ended: a line of its own where nobody watches a bar, and for every failure."""
        self._open.pop((label, trial.number), None)
        self._ended += 1
        settings = ", ".join(f"{key}={number(value)}" for key, value in trial.settings.items()) or "as it stands"
        name = f"{label} #{trial.number} ({settings})"
        if trial.score is None:
            self._failed += 1
            self._say(f"failed {name}: {trial.reason}", "red")
        elif self._bar.disable:
            text = f", best {percent(best)}%" if trial.number else ""
            self._say(f"[{self.summary()}] {name}: {percent(trial.score)}%{text}")

    def summary(self) -> str:
        """How far it is, e.g. ``31/60 trials``."""
        return f"{self._ended}/{self._total} trials{self._and_failed()}"


def number(value: Any) -> str:
    """A setting's value, a float with four figures."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(score: float | None) -> str:
    """A score from 0 to 1 in per cent, e.g. ``93.12``; ``failed`` where there is none."""
    return "failed" if score is None else f"{100 * score:.2f}"


def _before(finished: int) -> str:
    return f", {finished} finished before" if finished else ""


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
