"""A benchmark to its table: places cells, runs what is not finished, gathers what is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from noisebench import dataset_names, tracking
from noisebench.board_files import with_changes
from noisebench.config import Benchmark, Cell, Recipe, load_benchmark
from noisebench.errors import BrokenPlugin, UserError
from noisebench.executors import Place, Results, run_cells
from noisebench.files import data_root_from, is_held, write_json
from noisebench.grid_figure import draw_grid, sizes_of
from noisebench.standing import driving, missing, named, result_of
from noisebench.table import Table

DEFAULT_OUT = Path("noisebench-runs")


class Progress(Protocol):
    """Told what happens while a board runs."""

    def start(self, todo: list[Cell], finished: int, out: Path) -> None:
        """Before the first cell: what is to do and how many were finished before."""

    def tick(self) -> None:
        """Several times a second."""

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """A cell ended."""

    def warn(self, text: str) -> None:
        """Something that the user should know and that stops nothing."""


class Silent:
    """Progress that shows nothing."""

    def start(self, todo: list[Cell], finished: int, out: Path) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Outcome:
    """A board after a run: its table, its results, what could not be sent to MLflow."""

    table: Table
    results: list[dict[str, Any]]
    unsent: str | None

    @property
    def failed(self) -> int:
        """How many cells failed."""
        return sum(result["status"] == "failed" for result in self.results)


def board_folder(benchmark: Benchmark, out: Path) -> Path:
    """Where a board's tables are written."""
    return out / "boards" / benchmark.name


def describe_board(benchmark: Benchmark, out: Path) -> None:
    """Write board.json, from which the sender knows what belongs to the board."""
    cells = [cell.identity() | {"folder": cell.folder()} for cell in benchmark.cells()]
    write_json(
        board_folder(benchmark, out) / "board.json",
        {
            "name": benchmark.name,
            "title": benchmark.title,
            "description": benchmark.description,
            "config": benchmark.model_dump(mode="json"),
            "cells": cells,
        },
    )


def table_of(benchmark: Benchmark, results: list[dict[str, Any]]) -> Table:
    """The table of a benchmark's results, from wherever they were read."""
    return Table.from_results(
        results,
        title=benchmark.title or benchmark.name,
        which=benchmark.which,
        methods_order=[m.label for m in benchmark.methods],
        columns_order=[(d, n.label) for d in benchmark.datasets for n in benchmark.noise],
        published=benchmark.published,
    )


def check_settings(benchmark: Benchmark, place: Place) -> dict[str, str]:
    """Refuse what would fail every cell before the first one starts: settings, data, backbone.

    A plug-in that cannot be imported fails its own cells only; a source of outliers that is missing is refused.

    Returns:
        The datasets that cannot be had here and why: their cells cannot run. Some of several; of a board that stands
        beside a paper's figures all of them may be.

    Raises:
        UserError: the key, the value, what would be right.
    """
    import torch

    from noisebench.assembly import NEEDS, check_several, make_hparams, method_class
    from noisebench.given_labels import check_given
    from noisebench.image_data import is_encoded
    from noisebench.loading import load_dataset, load_source, whole_dataset
    from noisebench.nn import make_backbone

    rows = []
    for i, spec in enumerate(benchmark.methods):
        with suppress(BrokenPlugin):  # its cells fail with the reason, the others go on
            cls = method_class(spec.name)
            hparams = make_hparams(cls, spec.hparams, f"{benchmark.name}: methods[{i}] '{spec.name}'")
            if "outliers" in cls.needs_with(hparams) and all(noise.source is None for noise in benchmark.noise):
                raise UserError(f"{benchmark.name}: methods[{i}] '{spec.name}' needs {NEEDS['outliers']}")
            rows.append((cls, hparams))
    recipes = [with_changes(benchmark.recipe, row.recipe) for row in benchmark.methods]
    problems: dict[str, UserError] = {}
    several = ""
    for name in benchmark.datasets:
        try:
            data = load_dataset(name, place.data_root, place.download)
        except UserError as error:
            problems[name] = error
            continue
        if data.multilabel:
            several = several or name
        size, most = dataset_names.sized(name)[1], len(data.train_labels)
        if size is not None and size > most:
            raise UserError(f"{benchmark.name}: datasets: '{name}': there are {most} training images")
        if is_encoded(data.train_images):
            check_encoded(benchmark, recipes, name)
        for test in dict.fromkeys(test for recipe in recipes for test in recipe.evaluate):
            data.extra_test(test)
        for i, noise in enumerate(benchmark.noise):
            try:
                check_given(noise.kind, noise.given, data, name)
                load_source(noise, data, name, place.data_root, place.download)
            except UserError as error:
                raise UserError(f"{benchmark.name}: noise[{i}] on {name}: {error}") from None
    for cls, hparams in rows if several else ():
        check_several(cls, hparams, f"dataset '{several}'")
    whole_dataset.cache_clear()
    if len(problems) == len(benchmark.datasets) and benchmark.published is None:
        raise next(iter(problems.values()))
    for recipe in {repr([one.backbone, one.backbone_options]): one for one in recipes}.values():
        if not recipe.backbone.startswith("timm:"):  # those cannot be made without their weights' memory
            with torch.device("meta"):
                make_backbone(recipe.backbone, (3, 32, 32), **recipe.backbone_options)
    return {name: str(error) for name, error in problems.items()}


def check_encoded(benchmark: Benchmark, recipes: Iterable[Recipe], dataset: str) -> None:
    """Refuse what a board, or a row by its recipe, asks for that images of any size do not have.

    Raises:
        UserError: the key and what would be right.
    """
    why = f"images of {dataset} are of any size"
    for recipe in recipes:
        if recipe.padding:
            raise UserError(f"{benchmark.name}: recipe.padding: {recipe.padding}: {why}, cropped by crop_area; give 0")
        if recipe.loader == "resident":
            raise UserError(f"{benchmark.name}: recipe.loader: {why}; give auto or streaming")
    if any(noise.kind == "instance" for noise in benchmark.noise):
        raise UserError(f"{benchmark.name}: noise instance: {why}, and it needs one; give another kind")


def run_board(
    benchmark: Benchmark,
    place: Place,
    jobs: int | None = None,
    progress: Progress | None = None,
    run: Callable[..., Any] = run_cells,
) -> Outcome:
    """Run what is not finished, with MLflow kept up to date beside it, and write the tables.

    Cells that another driver of the same board, or of another, is at are waited for.

    Args:
        benchmark: the board.
        place: where cells run and write.
        jobs: cells at once; as many as there is room for by default.
        progress: told what happens.
        run: runs cells, see `executors.run_cells`.

    Raises:
        UserError: settings of a method that are wrong, or a place where cells cannot run.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    progress = progress or Silent()
    out = place.out
    cells = benchmark.cells()
    results = {cell.fingerprint(): result_of(cell, out) for cell in cells}
    todo = [cell for cell in cells if results[cell.fingerprint()]["status"] != "finished"]
    ended: Results = (_ for _ in ())
    warning = tracking.check_store(out, benchmark.name)
    if todo:
        lacking = check_settings(benchmark, place)
        for cell in todo:
            if cell.dataset in lacking:
                results[cell.fingerprint()] = missing(cell) | named(cell) | {"reason": lacking[cell.dataset]}
        todo = [cell for cell in todo if cell.dataset not in lacking]
    if todo:
        ended = _waiting(todo, lambda cells: run(cells, place, jobs, progress.tick), out, progress.tick)
    describe_board(benchmark, out)
    sender = tracking.start(out, benchmark.name)
    try:
        progress.start(todo, sum(result["status"] == "finished" for result in results.values()), out)
        if warning is not None:
            progress.warn(warning)
        with driving(board_folder(benchmark, out), place), closing(ended):  # an error, Ctrl-C too, ends the workers
            for cell, result in ended:
                found = result_of(cell, out)
                if found["status"] == "finished":  # whoever finished it, and if its worker died right after
                    result = found
                elif result["status"] == "failed":
                    result = found | result
                    write_json(out / cell.folder() / "failure.json", result)  # a worker that died could not
                results[cell.fingerprint()] = result_of(cell, out) | result | named(cell)
                progress.done(cell, result)
    finally:
        try:
            table = table_of(benchmark, list(results.values()))
            table.write(board_folder(benchmark, out))
            if sizes_of(table):
                draw_grid(table, board_folder(benchmark, out))
        finally:
            unsent = sender.finish()
    return Outcome(table, list(results.values()), unsent)


def _waiting(cells: list[Cell], run: Callable[[list[Cell]], Results], out: Path, tick: Callable[[], None]) -> Results:
    """Run cells; those that another process holds are waited for, and run here if it leaves them unfinished.

    The executor checks and places when this is called, not when it is iterated.
    """

    def ended(batch: Results) -> Results:
        held: list[Cell] = []
        while True:
            with closing(batch) as results:
                for cell, result in results:
                    if result["status"] == "held":
                        held.append(cell)
                    else:
                        yield cell, result
            left: list[Cell] = []
            while held and not left:
                for cell in [cell for cell in held if not is_held(out / cell.folder())]:
                    held.remove(cell)
                    found = result_of(cell, out)
                    if found["status"] == "missing":
                        left.append(cell)
                    else:
                        yield cell, found
                if held and not left:
                    tick()
                    time.sleep(0.3)
            if not left:
                return
            batch = run(left)

    return ended(run(cells))


def rebuild(benchmark: Benchmark, out: Path, source: Literal["runs", "mlflow"]) -> Table:
    """The table of what is finished, from the run folders alone or from MLflow alone."""
    if source == "runs":
        return table_of(benchmark, [result_of(cell, out) for cell in benchmark.cells()])
    stored = {r["fingerprint"]: r for r in tracking.read_results(tracking.store_uri(out), benchmark.name)}
    found = [missing(c) | stored.get(c.fingerprint(), {}) | named(c) for c in benchmark.cells()]
    return table_of(benchmark, found)


def leaderboard(
    benchmark: str | Benchmark = "digits",
    *,
    out: str | Path = DEFAULT_OUT,
    jobs: int | None = None,
    data_root: str | Path | None = None,
    settings: list[str] | None = None,
    scale: str | None = None,
    progress: bool | None = None,
) -> Table:
    """Run a leaderboard from Python; the same as ``noisebench leaderboard``.

    Args:
        benchmark: a shipped name, a YAML file, or a `Benchmark`.
        out: where runs, tables and the MLflow store go.
        jobs: cells at once; the cores by default.
        data_root: torchvision's layout; NOISEBENCH_DATA by default.
        settings: overrides such as ``["recipe.epochs=30"]``.
        scale: one of the board's own, e.g. "cpu" for a paper's table made small.
        progress: whether to show how far it is; by default in a notebook, and on standard error if it is a terminal.

    Raises:
        UserError: anything wrong in the benchmark.
        Stopped: Ctrl-C, or the notebook's stop button; a KeyboardInterrupt that says in one line how to go on.
    """
    from noisebench.progress import board_progress

    board = load_benchmark(benchmark, settings, scale) if isinstance(benchmark, str) else benchmark
    place = Place(Path(out).absolute(), data_root_from(data_root), execution=board.execution)
    with board_progress(progress, board) as watcher:
        return run_board(board, place, jobs, watcher).table
