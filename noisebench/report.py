"""The report of a board: one HTML file with its tables, figures, noise and how to make it again.

It needs no network to be read: styles, script and figures (SVG) stand in it. The same runs give the same bytes. What it
shows is read from the run folders alone; MLflow gets a copy, and lends the addresses of its runs where it is a server.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisebench.board import DEFAULT_OUT, board_folder, table_of
from noisebench.config import Benchmark, load_benchmark
from noisebench.errors import UserError
from noisebench.files import write_text


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: the file.
        facts: of the board: cells, finished, failed, missing, bytes.
        tracked: what became of it in MLflow, in one line.
        logged: whether MLflow has it.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    tracked: str = ""
    logged: bool = False


def report(
    benchmark: str | Benchmark = "digits",
    out: str | Path = DEFAULT_OUT,
    *,
    settings: list[str] | None = None,
    scale: str | None = None,
) -> Path:
    """Write the report of a board that was run; the same as ``noisebench report``.

    Args:
        benchmark: a shipped name, a YAML file, or a `Benchmark`.
        out: the folder that the board wrote to.
        settings: the overrides that it ran with, e.g. ``["recipe.epochs=30"]``.
        scale: that it ran at, e.g. "cpu".

    Returns:
        ``out/boards/NAME/report.html``.

    Raises:
        UserError: anything wrong in the benchmark, or no cell of it has run there.
    """
    words = [*(f"--set={one}" for one in settings or ()), *([] if scale is None else [f"--scale={scale}"])]
    if isinstance(benchmark, str):
        return write_report(load_benchmark(benchmark, settings, scale), Path(out), [benchmark, *words]).path
    return write_report(benchmark, Path(out)).path


def write_report(benchmark: Benchmark, out: Path, words: Sequence[str] | None = None) -> Report:
    """Write report.html into the board's folder, and log it to the board's run in MLflow.

    A store that is away costs the report its links and the copy there, no more.

    Args:
        benchmark: the board, with whatever was changed of it.
        out: the folder that it wrote to.
        words: what follows ``noisebench leaderboard`` to make it again; by default see `rerun.board_command`.

    Raises:
        UserError: no cell of the board has run there.
    """
    from noisebench._report_page import page
    from noisebench._report_runs import read_runs
    from noisebench._report_tracking import find_board
    from noisebench.rerun import board_command

    given, out = out, out.absolute()
    where = "" if given == DEFAULT_OUT else f" --out {shlex.quote(str(given))}"
    command = "" if words is None else f"{shlex.join(['noisebench', 'leaderboard', *words])}{where}"
    runs = read_runs(benchmark, out)
    counts = {state: sum(run.result["status"] == state for run in runs) for state in ("finished", "failed", "missing")}
    if counts["missing"] == len(runs) and benchmark.published is None:
        first = command or "noisebench.leaderboard"
        raise UserError(f"{benchmark.name}: no cell of this board has run in {given}; run it first: {first}")
    folder = board_folder(benchmark, out)
    command = command or board_command(benchmark.model_dump(mode="json"), folder) + where
    board_run = find_board(out, benchmark.name)
    table = table_of(benchmark, [run.result for run in runs])
    path = folder / "report.html"
    text = page(benchmark, table, runs, out, command, board_run)
    write_text(path, text)
    tracked = board_run.log([path])
    facts = {"board": benchmark.name, "cells": len(runs), **counts, "bytes": len(text.encode())}
    return Report(path, facts, tracked, tracked.startswith("MLflow: logged"))
