"""What a person sees while a run trains, a board runs or is tuned.

A live bar in a terminal and in a notebook, a line an epoch, cell or trial elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from noisebench import notebook
from noisebench.config import Benchmark, Cell
from noisebench.files import epochs_of
from noisebench.metrics import METRICS, SCORES, score_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from noisebench.studies import Trial
    from noisebench.tuning_plan import Row

AHEAD = 16
"""Cells run in order, so whatever runs is among the first so many that have not ended."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button. The message says how far it was and how to go on."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows below the cell in the place of a traceback."""
        return [str(self)]


def console_for(progress: bool | None) -> Console | None:
    """Where a function called from Python shows how far it is: None for nowhere.

    By default (None) in a notebook, and on standard error where that is a terminal.
    """
    if progress is False:
        return None
    if notebook.in_notebook():
        return notebook.stream()
    return Console(stderr=True) if progress or sys.stderr.isatty() else None


def _bar_of(console: Console) -> Progress | notebook.Bar:
    if notebook.in_notebook():
        return notebook.Bar()
    return Progress(
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


class EpochProgress:
    """What a person sees while `fit` trains: a bar over its epochs with the latest numbers.

    Told of each epoch; used as a context, in which Ctrl-C becomes `Stopped`.
    """

    def __init__(self, console: Console | None, title: str, epochs: int) -> None:
        self._console, self._title, self._epochs, self._ended = console, title, epochs, 0
        self._bar = None if console is None else _bar_of(console)

    def __enter__(self) -> Self:
        """Start the display."""
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(escape(self._title), total=self._epochs, count="", to_go="", running="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End the display."""
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            raise Stopped(
                f"Stopped after {self._ended} of {self._epochs} epochs. A run in memory begins anew; "
                "noisebench.leaderboard goes on from where it was stopped."
            ) from None

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch, from 1, ended with these metrics."""
        self._ended = epoch
        if self._bar is None or self._console is None:
            return
        score = score_of(name.removeprefix("test.") for name in metrics)
        known = ((f"test {METRICS[score].title}", f"test.{score}"), ("memorised", "train.memorised"))
        numbers = ", ".join(f"{title} {percent(metrics[name])}%" for title, name in known if name in metrics)
        left = (time.monotonic() - self._began) / epoch * (self._epochs - epoch)
        count, to_go = f"{epoch}/{self._epochs} epochs", f"{clock(left)} to go"
        self._bar.update(self._task, completed=epoch, count=count, to_go=to_go, running=numbers)
        if self._bar.disable:
            self._console.print(f"[{count}] {self._title}: {numbers}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def board_progress(progress: bool | None, benchmark: Benchmark) -> Iterator[BoardProgress | None]:
    """What `board.run_board` tells how far it is, None for nothing; in this context Ctrl-C becomes `Stopped`.

    Args:
        progress: see `console_for`.
        benchmark: the board.
    """
    console = console_for(progress)
    bar = None if console is None else BoardProgress(console, benchmark)
    try:
        yield bar
    except KeyboardInterrupt:
        far = "Stopped." if bar is None else f"Stopped with {bar.summary()}."
        raise Stopped(f"{far} The same call goes on from there.") from None
    finally:
        if bar is not None:
            bar.close()


class _Live:
    """A live bar. Follows cells through their run folders, so that it works whoever runs them."""

    def __init__(self, console: Console, benchmark: Benchmark) -> None:
        self._console, self._title, self._epochs = console, benchmark.name, benchmark.recipe.epochs
        self._bar = _bar_of(console)
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
        return [(cell, n) for cell in cells if 0 < (n := self._epochs_of(cell)) < cell.recipe.epochs]

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
        self._left = sum(cell.recipe.epochs for cell in todo)
        self._before = finished * self._epochs  # rows may have recipes of their own, and nobody watches these
        self._all = self._left
        self._begin(out, self._before + self._all)
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
        left = self._left - sum(n for _, n in running)
        gained = self._all - left - self._recorded
        names = "  ".join(f"{cell.method.label} s{cell.seed} {n}/{cell.recipe.epochs}" for cell, n in running[:4])
        self._bar.update(
            self._task,
            completed=self._before + self._all - left,
            count=self.summary(),
            to_go=f"{clock((self._looked - self._began) * left / gained)} to go" if gained > 0 else "",
            running=escape(names),
        )

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell ended: a line of its own where nobody watches a bar, and for every failure."""
        self._open.remove(cell)
        self._left -= cell.recipe.epochs
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
        names = "  ".join(f"{cell.method.label} {n}/{cell.recipe.epochs}" for cell, n in running[:4])
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
