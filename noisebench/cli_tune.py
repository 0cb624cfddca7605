"""The command `noisebench tune`: nothing heavy is imported before it runs."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisebench._cli import (
    DEFAULT_OUT,
    DataRoot,
    Device,
    Download,
    Jobs,
    Json,
    Methods,
    Out,
    Set,
    completes,
    console,
    fail,
    rows_named,
    stop_like_ctrl_c,
)
from noisebench.files import data_root_from

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.config import Benchmark, Cell
    from noisebench.studies import Trial
    from noisebench.tuning import Tuning
    from noisebench.tuning_plan import Row


TUNE_HELP = r"""Tune methods on the noisy validation split, with the same number of trials for each that has a space.

Each row of the board gets one setting for all its columns: the one that does best on the held-out noisy labels, on a \
seed that the board does not use. Neither the test set nor a clean label is used. Rows with nothing to search run \
once, and the board's title names them. The result is a board of its own, tuned.yaml (the one of another search is \
moved aside), whose tables say that they are tuned; run it with noisebench leaderboard.

For example:

noisebench tune digits --methods ce,gce --search gce.q=0.1:1.0 --trials 20

noisebench tune cifar10-small --methods elr --search "weight=\[1, 3, 7]" --search momentum=0.5:0.99

Stopped or killed, the same command goes on from there; with more --trials it goes on too. Trials that failed are \
run again.""".replace("\\\n", "")


def tune(
    benchmark: Annotated[
        str, typer.Argument(help="A shipped benchmark or a YAML file.", autocompletion=completes("benchmark"))
    ] = "digits",
    trials: Annotated[
        int, typer.Option(help="Settings tried for every method that has some to search, its own included.", min=1)
    ] = 20,
    methods: Methods = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=WHAT",
            help=r"What to try for a setting: LOW:HIGH, LOW:HIGH:log or \[a, b, c]; METHOD.KEY=... for one method. "
            "It stands beside what the methods search by themselves, or in its place; METHOD.KEY goes before KEY.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="What the trials run on; none of the board's seeds.", min=0, max=2**31 - 1)
    ] = 1000,
    settings: Set = None,
    jobs: Jobs = None,
    out: Out = DEFAULT_OUT,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Tune methods on the noisy validation split, with the same number of trials for every one."""
    from noisebench.config import load_benchmark

    config = load_benchmark(benchmark, list(settings or []))
    if methods is not None:
        config = config.retitled(f"methods {methods}", methods=rows_named(config, methods))
    from noisebench import tuning
    from noisebench.executors import Place

    place = Place(out.absolute(), data_root_from(data_root), download, device)
    terminal = console(stderr=as_json)
    stop_like_ctrl_c()
    with TrialProgress(terminal, config) as progress:
        try:
            found = tuning.tune(config, place, trials, seed, search or (), jobs, progress)
        except KeyboardInterrupt:
            progress.close()
            terminal.print(f"\nStopped with {progress.summary()}. The same command goes on from there.")
            raise typer.Exit(130) from None
    if as_json:
        print(found.to_json())
    else:
        _show(found, terminal)
    if not as_json and not found.empty:
        if found.aside:
            text = f"The tuned board of another search stood there; it is {_short(found.aside)} now."
            terminal.print(text, soft_wrap=True, markup=False, highlight=False)
        command = ["noisebench", "leaderboard", _short(found.file)]
        command += ["--out", str(out)] if out != DEFAULT_OUT else []
        if data_root and str(data_root) != os.environ.get("NOISEBENCH_DATA"):
            command += ["--data-root", str(data_root)]
        terminal.print(f"Next: {shlex.join(command)}", soft_wrap=True, markup=False, highlight=False)
    lost = [row for row in found.rows if row.best is None]
    if lost:
        reason = lost[0].trials[0].reason
        fail(f"every trial of {', '.join(row.row.spec.label for row in lost)} failed; the first: {reason}", 1)


def _short(file: Path) -> str:
    """The path from here where it is below."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _show(found: Tuning, terminal: Console) -> None:
    """A row a line: its settings and its validation score before and after."""
    from rich.table import Table
    from rich.text import Text

    tuned = found.benchmark.tuned
    assert tuned is not None
    table = Table(title=f"{found.benchmark.title}\n{tuned.objective}", title_justify="left", title_style="bold")
    for name, side in (("method", "left"), ("settings", "left"), ("own %", "right"), ("tuned %", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("trials", justify="right")
    for row in found.rows:
        count = str(len(row.trials)) + (f" ({len(row.failed)} failed)" if row.failed else "")
        chosen = row.best.settings if row.best else {}
        lines = [
            f"{key} {_number(row.row.own.get(key, 'default'))}"
            + (f" → {_number(chosen[key])}" if key in chosen else "")
            for key in row.row.space
        ]
        text = "\n".join(lines) if row.row.space else "nothing to search; run once"
        scores = [_percent(row.trials[0].score), _percent(row.best.score if row.best else None)]
        table.add_row(Text(row.spec.label), Text(text), *scores, count)
    terminal.print(table)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(score: float | None) -> str:
    return "failed" if score is None else f"{100 * score:.2f}"


class TrialProgress:
    """What a person sees while a board is tuned: a live bar in a terminal, a line a trial elsewhere."""

    def __init__(self, terminal: Console, benchmark: Benchmark) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._terminal, self._name, self._epochs = terminal, benchmark.name, benchmark.recipe.epochs
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[trials]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[running]}"),
            console=terminal,
            disable=not terminal.is_terminal,
            transient=True,
        )
        self._open: dict[tuple[str, int], list[Cell]] = {}
        self._total = self._ended = self._failed = 0
        self._looked = 0.0

    def __enter__(self) -> TrialProgress:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End the display."""
        self.close()

    def close(self) -> None:
        """End the display; a second call does nothing."""
        self._bar.stop()

    def start(self, rows: list[Row], finished: int, out: Path) -> None:
        """Before the first cell."""
        from rich.markup import escape

        self._out, self._ended, self._total = out, finished, sum(row.budget for row in rows)
        before = f", {finished} finished before" if finished else ""
        text = f"{self._name}: {self._total} trials of {len(rows)} methods{before}; {out}"
        self._terminal.print(text, soft_wrap=True, highlight=False, markup=False)
        for row in rows:
            space = ", ".join(f"{key} in {values}" for key, values in row.space.items())
            self._terminal.print(
                f"  {row.spec.label}: {space or 'nothing to search; run once'}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        self._task = self._bar.add_task(escape(self._name), total=self._total, trials="", running="")

    def opened(self, label: str, trial: Trial, cells: list[Cell]) -> None:
        """A trial begins."""
        self._open[label, trial.number] = cells

    def tick(self) -> None:
        """Look at what runs, at most twice a second."""
        from rich.markup import escape

        now = time.monotonic()
        if self._bar.disable or now - self._looked < 0.5:
            return
        self._looked = now
        running = [
            f"{cell.method.label} {epoch}/{self._epochs}"
            for cells in list(self._open.values())
            for cell in cells
            if 0 < (epoch := self._epoch(cell)) < self._epochs
        ]
        self._bar.update(
            self._task, completed=self._ended, trials=self.summary(), running=escape("  ".join(running[:4]))
        )

    def _epoch(self, cell: Cell) -> int:
        try:
            return (self._out / cell.folder() / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def done(self, label: str, trial: Trial, best: float | None) -> None:
        """A trial ended."""
        self._open.pop((label, trial.number), None)
        self._ended += 1
        settings = ", ".join(f"{key}={_number(value)}" for key, value in trial.settings.items()) or "as it stands"
        if trial.score is None:
            self._failed += 1
            text = f"failed {label} #{trial.number} ({settings}): {trial.reason}"
            self._terminal.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
        elif self._bar.disable:
            text = f"[{self.summary()}] {label} #{trial.number} ({settings}): {_percent(trial.score)}%"
            text += f", best {_percent(best)}%" if trial.number else ""
            self._terminal.print(text, soft_wrap=True, highlight=False, markup=False)

    def summary(self) -> str:
        """How far it is, e.g. ``31/60 trials``."""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended}/{self._total} trials{failed}"
