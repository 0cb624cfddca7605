"""The command `noisebench report`: nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from noisebench._cli import (
    DEFAULT_OUT,
    BoardEpochs,
    Json,
    Methods,
    Out,
    ScaleName,
    Seeds,
    Set,
    board_chosen,
    completes,
)

REPORT_HELP = r"""Write the report of a board that was run: one HTML file, OUT/boards/NAME/report.html.

It has the table with its tests, every seed with its run, learning curves, calibration, time and memory, the exact \
noise, versions, and the command that makes it again. It needs no network, and MLflow's run of the board gets a copy.

Give the benchmark and the options that the board ran with:

noisebench leaderboard digits --seeds 0,1,2,3,4

noisebench report digits --seeds 0,1,2,3,4 --open""".replace("\\\n", "")


def report(
    benchmark: Annotated[
        str, typer.Argument(help="A shipped benchmark or a YAML file.", autocompletion=completes("benchmark"))
    ] = "digits",
    methods: Methods = None,
    seeds: Seeds = None,
    epochs: BoardEpochs = None,
    settings: Set = None,
    scale: ScaleName = None,
    out: Out = DEFAULT_OUT,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write the report of a board that was run: one HTML file."""
    from noisebench.report import write_report

    words = [benchmark]
    for option, value in (("--methods", methods), ("--seeds", seeds), ("--epochs", epochs), ("--scale", scale)):
        words += [] if value is None else [option, str(value)]
    words += [word for one in settings or () for word in ("--set", one)]
    config = board_chosen(benchmark, methods, seeds, epochs, settings, scale)
    done = write_report(config, out, words)
    if as_json:
        print(json.dumps({"path": str(done.path), **done.facts, "mlflow": done.tracked, "logged": done.logged}))
    else:
        counts = ", ".join(f"{done.facts[state]} {state}" for state in ("finished", "failed", "missing"))
        print(f"{done.path}")
        print(f"{done.facts['cells']} cells: {counts}; {done.facts['bytes'] / 1e6:.1f} MB")
        print(done.tracked if done.logged else f"{done.tracked}; the report is complete")
    if open_it:
        import webbrowser

        if not webbrowser.open(done.path.as_uri()):
            print("--open: there is no browser to open it in", file=sys.stderr)
