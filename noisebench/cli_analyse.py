"""The command `noisebench analyse`: nothing heavy is imported before it runs."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from noisebench._cli import DataRoot, Device, Json, console, fail
from noisebench.errors import UserError
from noisebench.files import data_root_from

if TYPE_CHECKING:
    from rich.console import Console

    from noisebench.analysis import Analyses

Value = TypeVar("Value", int, float)
MOST_ROWS = 20
"""A longer table is for its file."""

ANALYSE_HELP = r"""Look into a finished run: what its noise model has learned, and how its settings matter.

Every figure of [bold]noisebench list figures[/] that the run has something for and that costs little is drawn and \
written to RUN/analysis/ as PNG, PDF, CSV and JSON; the run of a board has them in MLflow as well.

top covariances: which pairs of classes have noise that goes together (Collier et al. 2021, Table 4).

covariance ranks and examples, with --against: where the mistakes of another run, e.g. of ce, that this one does not \
make stand among the covariances of the true class (their Fig. 2; rank 1 is the largest), and images of such (Table 5).

taylor: what the covariance adds to the log-likelihood, to second order, where the predictions lie (their Fig. 3, 4).

accuracy against samples, and against the temperature: both changed at evaluation alone, the weights as they are.

learned transition: T as asked, as realised in the training split, and as learned (Sukhbaatar et al. 2014, Fig. 2c).

inlier detection, under open-set noise: precision and recall of telling test images from outliers (their Fig. 4b); \
with --against the other run's curve too.

loss curves, where recipe.record_losses was set, and loss histogram: losses of right and of wrong training labels \
(Arazo et al. 2019, Fig. 1 and 2); noise scores: the method's own scores of them, their AUC and calibration.

All of it looks at the test set or at clean labels. It describes a run and is no way to choose a setting: noisebench \
tune does that.

For example:

noisebench analyse noisebench-runs/runs/het-full-digits-... --against noisebench-runs/runs/ce-digits-...""".replace(
    "\\\n", ""
)


def analyse(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run, below runs/.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another method's run on the same data, noise and seed, to compare."),
    ] = None,
    samples: Annotated[
        str | None, typer.Option(help="Monte-Carlo samples of a prediction, by commas.", show_default="1,10,100,1000")
    ] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Temperatures of a prediction, by commas.", show_default="0.1,0.3,1,3")
    ] = None,
    count: Annotated[int, typer.Option("--pairs", help="So many top covariances.", min=1)] = 10,
    data_root: DataRoot = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look into a finished run: what its noise model has learned, and how its settings matter."""
    counts = None if samples is None else _numbers("--samples", samples, int)
    taus = None if temperatures is None else _numbers("--temperatures", temperatures, float)
    from noisebench import analysis

    root = data_root_from(data_root)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda text, *_, **__: print("warning:", " ".join(str(text).split()), file=sys.stderr)
        loaded = analysis.FinishedRun.load(run, root, device)
        reference = None if against is None else analysis.FinishedRun.load(against, root, device)
    done = analysis.analyse(loaded, reference, counts or analysis.SAMPLES, taus or analysis.TEMPERATURES, count)
    if as_json:
        files = [str(file) for file in done.files]
        print(json.dumps({"found": done.found, "skipped": done.skipped, "files": files, "mlflow": done.tracked}))
    else:
        _show(done, loaded.title, console())
    asked = (
        (against, ("covariance_ranks", "examples", "inlier_detection")),
        (counts, ("accuracy_eval_samples",)),
        (taus, ("accuracy_temperature",)),
    )
    for given, names in asked:
        if given and all(name in done.skipped for name in names):
            fail("; ".join(f"{name} was asked for: {done.skipped[name]}" for name in names), 1)
    if not done.found:
        fail(f"no analysis applies to {loaded.config['label']}", 1)


def _numbers(option: str, text: str, kind: Callable[[str], Value]) -> list[Value]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        example = "1,10,100" if kind is int else "0.3,1,3"
        raise UserError(f"{option}: '{text}'; give numbers by commas, e.g. {example}")
    return found


def _show(done: Analyses, title: str, terminal: Console) -> None:
    from rich.table import Table

    terminal.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    for name, found in done.found.items():
        rows = found["rows"]
        if len(rows) > MOST_ROWS:
            terminal.print()
            terminal.print(name.replace("_", " "), style="bold", markup=False, highlight=False)
            told = f"{found['summary']}\n" if "summary" in found else ""
            terminal.print(f"{told}{len(rows)} rows: {name}.csv", soft_wrap=True, markup=False, highlight=False)
            continue
        table = Table(title=name.replace("_", " "), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for key in rows[0]:
            table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        terminal.print()
        terminal.print(table)
        if "summary" in found:
            terminal.print(found["summary"], soft_wrap=True, markup=False, highlight=False)
    if done.skipped:
        terminal.print()
    for name, reason in done.skipped.items():
        terminal.print(f"left out, {name.replace('_', ' ')}: {reason}", soft_wrap=True, markup=False, highlight=False)
    if done.files:
        where = done.files[0].parent
        terminal.print(f"\nFigures: {where}/*.png, .pdf", soft_wrap=True, markup=False, highlight=False)
        terminal.print(done.tracked, soft_wrap=True, markup=False, highlight=False)
