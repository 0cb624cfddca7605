"""The command `noisebench tune`: nothing heavy is imported before it runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisebench._cli import (
    DEFAULT_OUT,
    DataRoot,
    Device,
    Download,
    ExecutorName,
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
    with_executor,
)
from noisebench.files import data_root_from

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.tuning import Tuning


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
    executor: ExecutorName = None,
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
    from noisebench.progress import TrialProgress

    config = with_executor(config, executor)
    place = Place(out.absolute(), data_root_from(data_root), download, device, config.execution)
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

    from noisebench.progress import number, percent

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
            f"{key} {number(row.row.own.get(key, 'default'))}" + (f" → {number(chosen[key])}" if key in chosen else "")
            for key in row.row.space
        ]
        text = "\n".join(lines) if row.row.space else "nothing to search; run once"
        scores = [percent(row.trials[0].score), percent(row.best.score if row.best else None)]
        table.add_row(Text(row.spec.label), Text(text), *scores, count)
    terminal.print(table)
