"""The noisebench command. Neither torch nor MLflow is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from noisebench._cli import (
    DEFAULT_OUT,
    DataRoot,
    Device,
    Download,
    Json,
    Out,
    Set,
    completes,
    console,
    fail,
    stop_like_ctrl_c,
)
from noisebench.cli_analyse import ANALYSE_HELP, analyse
from noisebench.cli_data import data_app, show_datasets
from noisebench.cli_figure import FIGURE_HELP, figure
from noisebench.cli_leaderboard import leaderboard
from noisebench.cli_report import REPORT_HELP, report
from noisebench.cli_sync import SYNC_HELP, sync
from noisebench.cli_transfer import TRANSFER_HELP, transfer
from noisebench.cli_tune import TUNE_HELP, tune
from noisebench.errors import UserError, unknown
from noisebench.files import data_root_from

app = typer.Typer(
    help="Benchmarks for learning with noisy labels: the same noise for every method, statistics in the table.\n\n"
    "Start with: noisebench leaderboard (the default board on scikit-learn's digits, about a minute and a half).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


app.command()(leaderboard)
app.command(help=TUNE_HELP)(tune)
app.command(help=REPORT_HELP)(report)
app.command(help=SYNC_HELP)(sync)
app.command(help=ANALYSE_HELP)(analyse)
app.command(help=FIGURE_HELP)(figure)
app.command(help=TRANSFER_HELP)(transfer)
app.add_typer(data_app, name="data")


@app.command()
def run(
    method: Annotated[str, typer.Option(help="A method's name.", autocompletion=completes("method"))] = "ce",
    dataset: Annotated[str, typer.Option(help="A dataset's name.", autocompletion=completes("dataset"))] = "digits",
    noise: Annotated[str | None, typer.Option(help="A kind of noise; symmetric 0.4 if none is given.")] = None,
    rate: Annotated[float | None, typer.Option(help="The noise's rate.")] = None,
    noise_option: Annotated[
        list[str] | None, typer.Option("--noise-option", metavar="KEY=VALUE", help="e.g. include_true=true")
    ] = None,
    hparam: Annotated[
        list[str] | None, typer.Option("--hparam", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the run and of the noise.", min=0)] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs (recipe.epochs).")] = None,
    settings: Set = None,
    out: Out = DEFAULT_OUT,
    data_root: DataRoot = None,
    download: Download = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run one method on one dataset under one noise; resumable like a board of one cell."""
    from noisebench.config import Benchmark, build, check_names, override

    if noise is None:
        noise, rate = "symmetric", 0.4 if rate is None else rate
    data: dict[str, Any] = {
        "name": "single-runs",
        "datasets": [dataset],
        "noise": [override({"kind": noise, "rate": rate}, noise_option or [], "--noise-option")],
        "seeds": [seed],
        "methods": [{"name": method, "hparams": override({}, hparam or [], "--hparam")}],
        "recipe": {} if epochs is None else {"epochs": epochs},
    }
    config = build(Benchmark, override(data, settings or []), "run")
    check_names(config, "run")
    cells = config.cells()
    if len(cells) != 1:
        raise UserError(f"--set: run trains one cell, and this makes {len(cells)}; use noisebench leaderboard")
    from noisebench.board import check_settings
    from noisebench.cell import run_cell
    from noisebench.cell_folder import damage
    from noisebench.executors import Place
    from noisebench.seats import is_first

    place = Place(out.absolute(), data_root_from(data_root), download, device)
    check_settings(config, place)
    stop_like_ctrl_c()
    try:
        result = run_cell(cells[0], place.out, place.data_root, place.download, place.accelerator)
    except KeyboardInterrupt:
        console(stderr=True).print("\nStopped. The same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None
    if not is_first():  # of several ranks one speaks
        raise typer.Exit(int(result["status"] != "finished"))
    if as_json:
        print(json.dumps(result, indent=1))
    elif result["status"] == "finished":
        terminal = console()
        title = f"{result['label']} on {result['dataset']}, {result['noise']}, seed {seed}"
        terminal.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
        for which, metrics in result["metrics"].items():
            numbers = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k != "epoch")
            name = "best (oracle)" if which == "best" else which
            terminal.print(f"  {name:<14} epoch {metrics['epoch']:>3}: {numbers}", highlight=False, soft_wrap=True)
        if "damaged" in result:
            terminal.print(f"  {damage(result['damaged'])} (log.txt names them)", highlight=False, soft_wrap=True)
        terminal.print(f"  {out / cells[0].folder()}", soft_wrap=True, highlight=False, markup=False)
    if result["status"] != "finished":
        fail(str(result["reason"]), 1)


@app.command()
def inject(
    out: Annotated[
        Path, typer.Option(help="Folder for the artefact: noise.npz, noise.json, transition.json, transition.png.")
    ],
    dataset: Annotated[str, typer.Option(help="A dataset's name.", autocompletion=completes("dataset"))] = "digits",
    noise: Annotated[str, typer.Option(help="A kind of noise; see noisebench list noise.")] = "symmetric",
    rate: Annotated[float | None, typer.Option(help="In [0, 1].")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="e.g. include_true=true")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.", min=0)] = 0,
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Inject label noise into a dataset's training labels and store the artefact, readable by any code.

    Open-set noise (--noise open_set --option source=NAME) says which image of which dataset stands in for which sample.
    """
    from noisebench import dataset_names
    from noisebench.config import Noise, build, override

    dataset_names.dataset_of(dataset)
    if dataset_names.sized(dataset)[1] is not None:
        raise UserError(f"--dataset {dataset}: noise is drawn for the whole training set; leave out @ and the number")
    spec: Noise = build(Noise, override({"kind": noise, "rate": rate}, option or [], "--option"), "noise")
    from noisebench import noise as noise_module
    from noisebench.loading import draw_noise, load_dataset, load_source, make_noise

    data = load_dataset(dataset, data_root_from(data_root), download)
    seed = seed if spec.seed is None else spec.seed
    source = load_source(spec, data, dataset, data_root_from(data_root), download)
    made = make_noise(spec, data, seed, source, dataset)
    noise_module.save(made, out, name=f"{dataset} {spec.label}", true_labels=data.train_labels)
    draw_noise(made, data, out)
    facts = {
        "dataset": dataset,
        "noise": spec.label,
        "seed": seed,
        "labels": len(made.labels),
        "rate_asked": made.rate,
        "rate_expected": made.expected_rate,
        "rate_realised": made.realised_rate,
        "sha256": made.sha256,
        "folder": str(out),
    }
    if made.outliers is not None and made.labelled is not None:
        facts |= {"source": spec.source, "outliers": int((made.outliers >= 0).sum())}
        facts["labelled"] = int(made.labelled.sum())
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    asked = "none" if made.rate is None else f"{made.rate:.4f}"
    expected, realised = (
        "unknown" if rate is None else f"{rate:.4f}" for rate in (made.expected_rate, made.realised_rate)
    )
    print(f"{dataset}, {spec.label}, seed {seed}: {len(made.labels)} labels")
    print(f"  rate asked     {asked}")
    print(f"  wrong expected {expected}   (share of wrong labels that T gives on these labels)")
    print(f"  wrong realised {realised}")
    if "source" in facts:
        print(
            f"  outliers       {facts['outliers']} from {facts['source']}, {facts['labelled']} of them labelled as such"
        )
    print(f"  sha256         {made.sha256}")
    print(
        f"  {out}/noise.npz, noise.json"
        + (", transition.json, transition.png" if (out / "transition.png").exists() else "")
    )


class What(str, Enum):
    """What can be listed."""

    methods = "methods"
    datasets = "datasets"
    noise = "noise"
    benchmarks = "benchmarks"
    backbones = "backbones"
    figures = "figures"


@app.command("list")
def list_(what: Annotated[What | None, typer.Argument(help="One kind only.")] = None, as_json: Json = False) -> None:
    """List methods, datasets, kinds of noise, benchmarks, backbones and the papers' figures."""
    from noisebench.listing import everything

    found = everything()
    if what is not None:
        found = {what.value: found[what.value], "problems": found["problems"]}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    terminal = console()
    from rich.table import Table
    from rich.text import Text

    for kind, rows in found.items():
        if kind == "problems":
            continue
        if what is What.datasets:  # alone, with all that is known of each
            show_datasets(rows, terminal)
            continue
        table = Table(title=kind, title_style="bold", title_justify="left", box=None, show_header=False, pad_edge=False)
        for row in rows:
            text = Text(row["summary"])
            if row.get("origin", "noisebench") != "noisebench":
                text.append(f"  ({row['origin']})", "dim")
            if "takes" in row:
                told = [row["paper"], f"of {row['takes']}", *row["aliases"]]
                text.append(f"  ({'; '.join(told)})", "dim")
            table.add_row(Text(row["name"], "cyan"), text)
        terminal.print(table)
        terminal.print()
    for problem in found["problems"]:
        console(stderr=True).print(f"left out: {problem}", style="yellow", soft_wrap=True, markup=False)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A method or a dataset.", autocompletion=completes("method"))],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Run the conformance suite on a method or a dataset and print each check."""
    from noisebench import dataset_names, registry

    known = {**registry.methods().entries, **registry.datasets().entries}
    if dataset_names.with_path(name)[0] not in known:
        raise unknown("method or dataset", name, known)
    from noisebench import checks

    if name in registry.methods().entries:
        outcomes = checks.check_method(registry.methods()[name].load(), raise_on_failure=False)
    else:
        root = data_root_from(data_root)
        outcomes = checks.check_dataset(dataset_names.dataset_module(name, root), root, raise_on_failure=False)
    if as_json:
        print(json.dumps([outcome.__dict__ for outcome in outcomes], indent=1))
    else:
        terminal = console()
        for outcome in outcomes:
            mark = {"passed": "[green]ok[/]  ", "failed": "[red]FAIL[/]", "skipped": "[yellow]skip[/]"}[outcome.status]
            terminal.print(f"{mark} {outcome.name}", highlight=False)
            if outcome.detail:
                terminal.print(f"       {outcome.detail}", highlight=False, markup=False, soft_wrap=True)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if failed:
        fail(f"{name}: {failed} of {len(outcomes)} checks failed", 1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the method or dataset, e.g. my_method.")],
    folder: Annotated[Path, typer.Option("--in", help="Where the package's folder is made.")] = Path(),
    dataset: Annotated[bool, typer.Option("--dataset", help="With a dataset in place of a method.")] = False,
) -> None:
    """Write a working, installable plug-in package with a method or a dataset, and its test."""
    from noisebench.scaffold import setting, write_plugin

    what: Literal["method", "dataset"] = "dataset" if dataset else "method"
    made = write_plugin(name, folder, what)
    print(f"Wrote {made}. Next:")
    print(f"  pip install -e {made}")
    print(f"  noisebench check {name}")
    print(f"  noisebench leaderboard --set '{setting(name, what)}'")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"noisebench {version('noisebench')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `noisebench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a folder that cannot be made, a full disk
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
