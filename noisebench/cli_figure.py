"""The command `noisebench figure`: nothing heavy is imported before it runs."""

from __future__ import annotations

import functools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisebench._cli import DEFAULT_OUT, DataRoot, Device, Json, Methods, Set, console, rows_named
from noisebench.errors import UserError, unknown
from noisebench.files import data_root_from, read_json

if TYPE_CHECKING:
    from noisebench.config import Benchmark
    from noisebench.figures.catalogue import Entry
    from noisebench.finding import Finding

ENDINGS = {".png", ".pdf", ".csv", ".json"}
FIGURE_HELP = r"""Draw a figure of a paper from finished runs or from a board: PDF, PNG, numbers as CSV and JSON.

NAME is one of those of [bold]noisebench list figures[/], which says what each shows and takes, or the paper's, e.g. \
arazo2019-fig1.

WHAT is folders of finished runs (below runs/), the first of which the figure is of; or a board: a shipped benchmark, \
a YAML file, or its folder (below boards/). A board's cells are read where --runs says; nothing is trained. \
The figure of a run that MLflow knows is put on its record there.

For example:

noisebench figure error-by-noise sukhbaatar2014-grid

noisebench figure loss-curves noisebench-runs/runs/ce-digits-... noisebench-runs/runs/m-dyr-h-digits-...

noisebench figure examples noisebench-runs/runs/het-full-digits-... \
--against noisebench-runs/runs/ce-digits-...""".replace("\\\n", "")


def _completes(incomplete: str) -> list[str]:
    from noisebench.figures.catalogue import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def figure(
    name: Annotated[str, typer.Argument(help="Of noisebench list figures.", autocompletion=_completes)],
    what: Annotated[
        list[str] | None, typer.Argument(metavar="WHAT...", help="Folders of finished runs, or a board.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="STEM",
            help="STEM.pdf, .png, .csv and .json, or a folder that is there; "
            "by default analysis/ of the first run, figures/ of a board.",
        ),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="RUN", help="A further run; as one more WHAT.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the figure, e.g. count=12.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where a board's runs are.")] = DEFAULT_OUT,
    methods: Methods = None,
    settings: Set = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw a figure of a paper from finished runs, or from a board."""
    from noisebench.figures import catalogue
    from noisebench.reading import override

    entry, given = catalogue.find(name), [*(what or []), *(against or [])]
    options = override({}, option or [], "--option")
    folders = [_is_run(one) for one in given]
    if len(given) > 1 and any(folders) and not all(folders):
        odd = given[folders.index(False)]
        raise UserError(f"figure {entry.name} takes {entry.takes}; {odd} is no folder of a finished run")
    if all(folders) and (given or not entry.of_board):
        for value, flag in ((methods, "--methods"), (settings, "--set")):
            if value:
                raise UserError(f"{flag}: it is of a board, and runs were given")
        made, stem, track = _of_runs(entry, given, options, data_root_from(data_root), device)
    else:
        if len(given) != 1:
            none = "nothing was given" if not given else f"{' and '.join(given)} were given"
            raise UserError(f"figure {entry.name} takes {entry.takes}; {none}")
        made, stem = _of_board(entry, given[0], options, runs, methods, list(settings or []))
        track = None
    files = made.write(stem.absolute() if out is None else _stem(out, stem.name))
    tracked = track(files) if track else ""
    if as_json:
        told = {"found": made.as_json(), "files": [str(file) for file in files], "mlflow": tracked}
        print(json.dumps(told, indent=1))
        return
    terminal = console()
    terminal.print(f"{entry.name}: {entry.shows} ({entry.paper})", soft_wrap=True, markup=False, highlight=False)
    if made.facts.get("summary"):
        terminal.print(made.facts["summary"], soft_wrap=True, markup=False, highlight=False)
    written = ", ".join(file.suffix for file in files[1:])
    terminal.print(f"{files[0]}, {written}", soft_wrap=True, markup=False, highlight=False)
    if tracked:
        terminal.print(tracked, soft_wrap=True, markup=False, highlight=False)


def _stem(out: Path, name: str) -> Path:
    """What the files are called: within a folder that is there as they would be, without an ending of one of them."""
    out = out.absolute()
    if out.is_dir():
        return out / name
    return out.with_suffix("") if out.suffix in ENDINGS else out


def _is_run(what: str) -> bool:
    """Whether it is a folder that is no board's: of a run, or one that is to be told that it is none."""
    return Path(what).is_dir() and not (Path(what) / "board.json").exists()


def _of_runs(
    entry: Entry, given: Sequence[str], options: dict[str, Any], root: Path | None, device: str
) -> tuple[Finding, Path, Callable[[Sequence[Path]], str] | None]:
    """The figure, what its files are called, and what logs them to the MLflow run of the first."""
    from noisebench.figures import catalogue

    if not entry.of_runs:
        raise UserError(f"figure {entry.name} takes {entry.takes}; {' and '.join(given)} was given")
    catalogue.check_options(entry, options)
    from noisebench import analysis

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda text, *_, **__: print("warning:", " ".join(str(text).split()), file=sys.stderr)
        loaded = [analysis.FinishedRun.load(folder, root, device) for folder in given]
    made = catalogue.of_runs(entry, *loaded, **options)
    name = analysis.file_stem(entry, *loaded)
    if not loaded:
        return made, Path(name), None
    return made, loaded[0].folder / "analysis" / name, functools.partial(analysis.track, loaded[0])


def _of_board(
    entry: Entry, what: str, options: dict[str, Any], runs: Path, methods: str | None, settings: list[str]
) -> tuple[Finding, Path]:
    from noisebench.figures import catalogue

    if not entry.of_board:
        raise UserError(f"figure {entry.name} takes {entry.takes}; {what} is no folder of a finished run")
    catalogue.check_options(entry, options)
    config, out = _board(what, runs, settings)
    if methods is not None:
        config = config.retitled(f"methods {methods}", methods=rows_named(config, methods))
    from noisebench import board

    table = board.rebuild(config, out.absolute(), "runs")
    rows = {row.label: {**row.resolved, "method": row.name} for row in config.methods}
    made = catalogue.of_board(entry, table, rows, **options)
    return made, board.board_folder(config, out) / "figures" / entry.name.replace("-", "_")


def _board(what: str, runs: Path, settings: list[str]) -> tuple[Benchmark, Path]:
    """The board of a shipped name, a YAML file or a board's folder, and where its runs are."""
    from noisebench import registry
    from noisebench.config import Benchmark, build, load_benchmark, override

    folder = Path(what)
    if folder.is_dir():
        found = read_json(folder / "board.json")
        if found is None or not isinstance(found.get("config"), dict):
            raise UserError(f"{folder / 'board.json'} cannot be read; give the benchmark's name or file")
        config: Benchmark = build(Benchmark, override(found["config"], settings), f"{folder.name}/board.json")
        return config, folder.absolute().parent.parent
    if Path(what).suffix not in {".yaml", ".yml"} and what not in registry.benchmarks():
        near = str(unknown("benchmark", what, registry.benchmarks()))
        raise UserError(f"{near}; or give a YAML file, a board's folder, or folders of finished runs")
    return load_benchmark(what, settings), runs
