"""The command `noisebench leaderboard`: nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisebench._cli import (
    DEFAULT_OUT,
    BoardEpochs,
    DataRoot,
    Device,
    Download,
    ExecutorName,
    Jobs,
    Json,
    Methods,
    Out,
    ScaleName,
    Seeds,
    Set,
    board_chosen,
    completes,
    console,
    fail,
    stop_like_ctrl_c,
    with_executor,
)
from noisebench.errors import UserError
from noisebench.files import data_root_from

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.config import Benchmark
    from noisebench.table import Table


class Source(str, Enum):
    """Where a table can be rebuilt from."""

    runs = "runs"
    mlflow = "mlflow"


def leaderboard(
    benchmark: Annotated[
        str, typer.Argument(help="A shipped benchmark or a YAML file.", autocompletion=completes("benchmark"))
    ] = "digits",
    methods: Methods = None,
    seeds: Seeds = None,
    epochs: BoardEpochs = None,
    settings: Set = None,
    scale: ScaleName = None,
    jobs: Jobs = None,
    executor: ExecutorName = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it, then leave it running in the background; see --status.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Run nothing: say what is finished, running, failed and left.")
    ] = False,
    out: Out = DEFAULT_OUT,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    rebuild: Annotated[
        Source | None, typer.Option(help="Run nothing: make the table from the run folders or from MLflow alone.")
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="Show every metric: NLL, ECE, top-5, seconds, ...")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a leaderboard and print its table. Stopped or killed, the same command goes on from there."""
    from noisebench import board
    from noisebench.executors import Place

    config = board_chosen(benchmark, methods, seeds, epochs, settings, scale)
    config = with_executor(config, executor)
    place = Place(out.absolute(), data_root_from(data_root), download, device, config.execution)
    if sum((detach, status, rebuild is not None)) > 1:
        raise UserError("--detach, --status and --rebuild: give one of them")
    if status:
        from noisebench.standing import standing

        stands = standing(config, place.out)
        print(json.dumps(stands, indent=1)) if as_json else _show_standing(stands, console())
        return
    if detach:
        _detach(config, place.out, as_json)
        return
    terminal = console(stderr=as_json)
    if rebuild is not None:
        _show(board.rebuild(config, place.out, rebuild.value), details, as_json)
        return
    from noisebench.progress import BoardProgress

    stop_like_ctrl_c()
    with BoardProgress(terminal, config) as progress:
        try:
            outcome = board.run_board(config, place, jobs, progress)
        except KeyboardInterrupt:
            progress.close()
            terminal.print(f"\nStopped with {progress.summary()}. The same command goes on from there.")
            raise typer.Exit(130) from None
    _show(outcome.table, details, as_json)
    folder = board.board_folder(config, out)
    terminal.print(f"Tables: {folder}/leaderboard.csv, .json, .md, .tex", soft_wrap=True, markup=False)
    if outcome.unsent:
        terminal.print(f"MLflow: {outcome.unsent}; the run folders are complete.", soft_wrap=True, markup=False)
    else:
        from noisebench._reaching import shown, store_uri

        uri = shown(store_uri(out))  # with --detach this goes to a file
        curves = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        terminal.print(f"Curves: {curves}", soft_wrap=True, markup=False)
    if outcome.failed:
        fail(f"{outcome.failed} of {len(outcome.results)} cells failed; the table's footer has the reasons", 1)


def _show(table: Table, details: bool, as_json: bool) -> None:
    if as_json:
        print(table.to_json())
    else:
        console().print(table.to_rich("full" if details else "short"))


def _detach(benchmark: Benchmark, out: Path, as_json: bool) -> None:
    """Start the same command without --detach in the background; wait until it drives the board, or is done.

    Raises:
        UserError: somebody drives it already.
        typer.Exit: it ended at once: it had nothing to do, or an error stopped it.
    """
    from noisebench.board import board_folder
    from noisebench.standing import drivers

    folder = board_folder(benchmark, out)
    for one in drivers(folder):
        where = f"process {one['process']} on {one['host']}"
        raise UserError(f"--detach: {benchmark.name} is driven by {where} already; --status says how far it is")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "driver.log"
    words = [word for word in sys.argv[1:] if word not in ("--detach", "--json")]
    with log.open("wb") as file:
        # Its own session: neither Ctrl-C here nor the end of this terminal reaches it.
        process = subprocess.Popen(
            [sys.executable, "-m", "noisebench", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    us = {"host": socket.gethostname(), "process": process.pid}
    try:
        while process.poll() is None and not any(us.items() <= one.items() for one in drivers(folder)):
            time.sleep(0.2)
    except KeyboardInterrupt:
        process.terminate()
        raise
    if process.returncode is not None:
        print(log.read_text("utf-8", errors="replace").rstrip(), file=sys.stderr)
        raise typer.Exit(process.returncode)
    if as_json:
        print(json.dumps({"process": process.pid, "log": str(log)}, indent=1))
        return
    print(f"Running in the background (process {process.pid}); its output: {log}")
    print("How far it is: the same command with --status in the place of --detach")
    print(f"To stop it: kill {process.pid}; the same command goes on from there")


def _show_standing(stands: dict[str, Any], terminal: Console) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    from noisebench.standing import STATES

    counts = ", ".join(f"{stands[state]} {state}" for state in STATES)
    terminal.print(f"{stands['board']}: {stands['cells']} cells: {counts}", highlight=False)
    grid = Grid("", box=None, pad_edge=False)
    for state in STATES:
        grid.add_column(state, justify="right")
    for label, row in stands["rows"].items():
        grid.add_row(Text(label), *(str(row[state] or "-") for state in STATES))
    terminal.print(grid)
    for state, about in (("running", "{epochs}/{of} epochs"), ("failed", "{reason}")):
        for cell in stands[f"{state}_cells"]:
            name = "{label} · {dataset} · {noise} · seed {seed}".format(**cell)
            text = Text(f"{state} {name}: {about.format(**cell)}", "red" if state == "failed" else "")
            terminal.print(text, soft_wrap=True)
    for one in stands["drivers"]:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["since"]))
        where = f"process {one['process']} on {one['host']}"
        terminal.print(f"driven by {where} ({one['executor']}) since {since}", soft_wrap=True, highlight=False)
    if not stands["drivers"] and stands["finished"] < stands["cells"]:
        terminal.print("Nobody drives it now; the same command without --status goes on from there.", soft_wrap=True)
