"""The command `noisebench transfer`: nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Annotated

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
    completes,
    console,
    fail,
    rows_named,
    stop_like_ctrl_c,
    with_executor,
)
from noisebench.errors import UserError
from noisebench.files import data_root_from

TRANSFER_HELP = r"""Fine-tune the finished runs of a board on a few images of other datasets, and compare them.

The backbone of every run gets a new plain head; the whole network is then fine-tuned on 1,000 clean images of each \
dataset (Collier et al. 2021, section 4.2). Two tables come of it: one with a column a dataset, and one with the mean \
over the datasets; both stand in boards/BOARD-transfer below --out. Run the board itself first, with the same --out.

For example:

noisebench leaderboard fashion-mnist --methods ce,gce

noisebench transfer fashion-mnist --methods ce,gce --column "symmetric 40% (excl. true)" --to mnist,fashion_mnist

Stopped or killed, the same command goes on from there.""".replace("\\\n", "")


def transfer(
    benchmark: Annotated[
        str,
        typer.Argument(help="A shipped benchmark or a YAML file that was run.", autocompletion=completes("benchmark")),
    ] = "digits",
    to: Annotated[str, typer.Option("--to", help="Datasets by commas: NAME, or NAME@N for N images of it.")] = "",
    size: Annotated[
        int, typer.Option(help="Training images of every dataset that does not say its own.", min=2)
    ] = 1000,
    column: Annotated[
        str | None, typer.Option(help='The board\'s column, where it has several: "dataset / noise", or one of both.')
    ] = None,
    methods: Methods = None,
    by: Annotated[
        str, typer.Option(help="The method that fine-tunes, with its defaults.", autocompletion=completes("method"))
    ] = "ce",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the fine-tuning, e.g. --set recipe.epochs=10."),
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option("--upstream", metavar="KEY=VALUE", help="What --set changed when the board was run."),
    ] = None,
    jobs: Jobs = None,
    executor: ExecutorName = None,
    out: Out = DEFAULT_OUT,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    details: Annotated[bool, typer.Option("--details", help="Show every metric: NLL, ECE, seconds, ...")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a board's finished runs on other datasets."""
    from noisebench import transfer as module
    from noisebench.board import board_folder
    from noisebench.config import load_benchmark
    from noisebench.executors import Place

    names = [name.strip() for name in to.split(",") if name.strip()]
    if not names:
        raise UserError("--to: give the datasets to fine-tune on by commas, e.g. --to mnist,fashion_mnist@500")
    config = load_benchmark(benchmark, list(upstream or []))
    if methods is not None:
        config = config.retitled(f"methods {methods}", methods=rows_named(config, methods))
    config = with_executor(config, executor)
    place = Place(out.absolute(), data_root_from(data_root), download, device, config.execution)
    board = module.transfer_board(
        config, names, place.out, method=by, size=size, column=column, settings=settings or ()
    )
    terminal = console(stderr=as_json)
    from noisebench.progress import BoardProgress

    stop_like_ctrl_c()
    with BoardProgress(terminal, board) as progress:
        try:
            found = module.transfer(board, place, jobs, progress)
        except KeyboardInterrupt:
            progress.close()
            terminal.print(f"\nStopped with {progress.summary()}. The same command goes on from there.")
            raise typer.Exit(130) from None
    if as_json:
        print(found.to_json())
    else:
        for table in (found.outcome.table, found.mean):
            terminal.print(table.to_rich("full" if details else "short"))
        folder = board_folder(board, out)
        terminal.print(f"Tables: {folder}/leaderboard.* and mean/leaderboard.*", soft_wrap=True, markup=False)
    outcome = found.outcome
    if outcome.unsent:
        terminal.print(f"MLflow: {outcome.unsent}; the run folders are complete.", soft_wrap=True, markup=False)
    if outcome.failed:
        fail(f"{outcome.failed} of {len(outcome.results)} cells failed; the table's footer has the reasons", 1)
