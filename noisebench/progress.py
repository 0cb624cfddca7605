"""What a person sees while a board runs: a live bar in a terminal, a line per cell elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from noisebench.config import Benchmark, Cell
from noisebench.metrics import METRICS, SCORES, score_of

AHEAD = 16
"""Cells run in order, so whatever runs is among the first so many that have not ended."""


class BoardProgress:
    """Follows a board through its run folders, so that it works whoever runs the cells."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        self._console = console
        self._epochs = benchmark.recipe.epochs
        self._title = benchmark.name
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[cells]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[to_go]}"),
            TextColumn("[dim]{task.fields[running]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._open: list[Cell] = []
        self._total = self._failed = self._ended = 0
        self._looked = 0.0

    def __enter__(self) -> BoardProgress:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End the display."""
        self.close()

    def close(self) -> None:
        """End the display; a second call does nothing."""
        self._bar.stop()

    def start(self, todo: list[Cell], finished: int, out: Path) -> None:
        """Before the first cell."""
        self._open, self._out = list(todo), out
        self._total = finished + len(todo)
        before = f", {finished} finished before" if finished else ""
        if todo:
            text = f"{self._title}: {self._total} cells{before}; {out}"
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        self._began = time.monotonic()
        self._recorded = sum(map(self._epochs_of, todo))  # of earlier, stopped attempts
        self._task = self._bar.add_task(
            escape(self._title), total=self._total * self._epochs, cells="", to_go="", running=""
        )
        self.tick()

    def _epochs_of(self, cell: Cell) -> int:
        try:
            return (self._out / cell.folder() / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def tick(self) -> None:
        """Look at what runs, at most twice a second."""
        now = time.monotonic()
        if self._bar.disable or now - self._looked < 0.5:
            return
        self._looked = now
        running = [(cell, n) for cell in self._open[:AHEAD] if 0 < (n := self._epochs_of(cell)) < self._epochs]
        partial = sum(n for _, n in running)
        gained = self._ended * self._epochs + partial - self._recorded
        left = len(self._open) * self._epochs - partial
        names = "  ".join(f"{cell.method.label} s{cell.seed} {n}/{self._epochs}" for cell, n in running[:4])
        self._bar.update(
            self._task,
            completed=(self._total - len(self._open)) * self._epochs + partial,
            cells=self.summary(),
            to_go=f"{clock((now - self._began) * left / gained)} to go" if gained > 0 else "",
            running=escape(names),
        )

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell ended: a line of its own where nobody watches a bar, and for every failure."""
        self._open.remove(cell)
        self._ended += 1
        name = escape(f"{cell.method.label} · {cell.dataset} · {cell.noise.label} · seed {cell.seed}")
        if result["status"] == "finished":
            if self._bar.disable:
                last = result["metrics"]["last"]
                score = score_of(last)
                what = "last" if score == SCORES[0] else f"last {METRICS[score].title}"
                text = f"[{self.summary()}] {name}: {what} {100 * last[score]:.2f}%, {result['seconds']:.1f} s"
                self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        else:
            self._failed += 1
            reason = escape(str(result.get("reason", "")))
            self._console.print(f"[red]{result['status']}[/] {name}: {reason}", soft_wrap=True, highlight=False)
        self._looked = 0.0
        self.tick()

    def summary(self) -> str:
        """How far it is, e.g. ``31/72 cells``."""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._total - len(self._open)}/{self._total} cells{failed}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
