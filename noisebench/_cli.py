"""What the commands share: their options, the terminal, how they end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.config import Benchmark, MethodSpec


def completes(what: str) -> Any:
    """Completes the names of one kind in a shell."""

    def complete(incomplete: str) -> list[str]:
        from noisebench import execution, registry

        of: dict[str, Callable[[], Iterable[str]]] = {
            "benchmark": registry.benchmarks,
            "executor": lambda: execution.EXECUTORS,
            "method": lambda: registry.methods().entries,
            "dataset": lambda: registry.datasets().entries,
        }
        known = of[what]()
        return [name for name in known if name.startswith(incomplete)]

    return complete


Out = Annotated[Path, typer.Option("--out", help="Where runs, tables and the MLflow store are written.")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Datasets in torchvision's layout.", envvar="NOISEBENCH_DATA", show_envvar=True),
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download a dataset that is missing.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the benchmark, e.g. --set recipe.epochs=30."),
]
ScaleName = Annotated[
    str | None,
    typer.Option(
        "--scale",
        metavar="NAME",
        help="Run a board of a paper small: cpu shows the whole table in minutes, on a small network and a subset.",
    ),
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="These seeds, by commas, e.g. 0,1,2,3,4.")]
BoardEpochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of every run (recipe.epochs).")]
Methods = Annotated[str | None, typer.Option("--methods", help="Only these rows, by commas.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Cells at once; by default as many as the cores or the GPUs hold.", min=1)
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Where cells run: local, slurm or ray; what they ask for is execution.* of the benchmark or of --set.",
        autocompletion=completes("executor"),
    ),
]
DEFAULT_OUT = Path("noisebench-runs")


def rows_named(config: Benchmark, names: str) -> tuple[MethodSpec, ...]:
    """The board's rows of these labels or methods; a label may hold commas, so that its method's name serves too."""
    chosen: dict[str, MethodSpec] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        found = {row.label: row for row in config.methods if name in (row.label, row.name)}
        if not found:
            raise unknown("--methods: row", name, {known for row in config.methods for known in (row.label, row.name)})
        chosen |= found
    if not chosen:
        raise UserError("--methods: no row is named; give rows by commas, e.g. --methods ce,gce")
    return tuple(chosen.values())


def board_chosen(
    benchmark: str,
    methods: str | None,
    seeds: str | None,
    epochs: int | None,
    settings: list[str] | None,
    scale: str | None,
) -> Benchmark:
    """The board that a command is about, as its options change it."""
    from noisebench.config import load_benchmark

    extra = list(settings or [])
    if seeds is not None:
        extra.append(f"seeds=[{seeds}]")
    if epochs is not None:
        extra.append(f"recipe.epochs={epochs}")
    config = load_benchmark(benchmark, extra, scale)
    return config if methods is None else config.retitled(f"methods {methods}", methods=rows_named(config, methods))


def with_executor(config: Benchmark, name: str | None) -> Benchmark:
    """The board with the executor that --executor names, if it does."""
    if name is None:
        return config
    from noisebench.execution import EXECUTORS

    if name not in EXECUTORS:
        raise unknown("--executor", name, EXECUTORS)
    return config.model_copy(update={"execution": config.execution.model_copy(update={"executor": name})})


def console(stderr: bool = False) -> Console:
    """A terminal to write to."""
    from rich.console import Console

    return Console(stderr=stderr)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def stop_like_ctrl_c() -> None:
    """Make SIGTERM a KeyboardInterrupt."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
