"""Transfer of what was learned under noise: finished runs' backbones, fine-tuned on a few images of other datasets.

Collier et al. 2021, section 4.2: the head of every upstream run is replaced by a new plain one, the whole network is
fine-tuned on 1,000 clean images of each of several downstream datasets, and the mean of its test accuracies is the
score. How the backbone was trained alone is compared: every row is fine-tuned in the same way.

A transfer board is an ordinary board. Its rows have the labels of the upstream board, its cells differ in
`recipe.start`: a cell of seed s begins with the upstream run of seed s, so that the sd covers the upstream seeds too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from noisebench.board import Outcome, Progress, board_folder, run_board, table_of
from noisebench.config import Benchmark, Cell, MethodSpec, Start, build, check_names, override, slugify
from noisebench.errors import UserError
from noisebench.executors import Place, run_cells
from noisebench.fingerprints import digest
from noisebench.standing import result_of
from noisebench.table import Table

SIZE = 1000
"""Training images of a downstream dataset, as in VTAB-1k."""

FINE_TUNING: dict[str, Any] = {
    "epochs": 33,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.03,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "schedule": {"kind": "multistep", "milestones": [0.4, 0.6, 0.8], "gamma": 0.1, "warmup": 0.2},
    "clip_norm": None,
    "validation": 0.0,
    "train_size": None,
    "evaluate": (),
    "start": None,
}
"""How a row is fine-tuned; the rest of the recipe (backbone, augmentation, precision) is the upstream board's.

Collier et al. take what Kolesnikov et al. 2020 ("Big Transfer") set for small datasets; in their code that is SGD with
momentum 0.9, no weight decay, and 500 steps, of which the first 100 warm up, with a tenth of the rate from each of
steps 200, 300 and 400. So it is here (33 epochs of 15 batches of 64). Batches of 64 in place of 512 and the rate 0.03
in place of 0.003 are our choice: at the paper's rate a small network with BatchNorm hardly moves in 500 steps.
No validation split: nothing is chosen on it.
"""


class TransferBoard(Benchmark):
    """A board whose rows are one method on backbones of finished runs.

    Attributes:
        starts: a row's label -> seed -> the run that it begins with.
        given: a row's label -> what its upstream method was given beyond noisy labels; those alone that were.
    """

    starts: dict[str, dict[int, Start]]
    given: dict[str, tuple[str, ...]]

    @model_validator(mode="after")
    def _no_twins(self) -> TransferBoard:
        """In place of the benchmark's: the rows are one method under the same settings, from different weights."""
        for row in self.methods:
            for seed in self.seeds:
                if seed not in self.starts.get(row.label, {}):
                    raise ValueError(f"seeds: {seed}: the upstream board has no such run of '{row.label}'")
        return self

    def cells(self) -> list[Cell]:
        """The cells of a benchmark, each with its start."""
        return [
            cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"start": self._start(cell)})})
            for cell in super().cells()
        ]

    def _start(self, cell: Cell) -> Start:
        return self.starts[cell.method.label][cell.seed]


@dataclass(frozen=True)
class Transferred:
    """A transfer board after a run.

    Attributes:
        outcome: as of any board; its table has a column a downstream dataset.
        mean: the same rows with one column, the mean over the downstream datasets, seed by seed.
    """

    outcome: Outcome
    mean: Table

    def to_json(self) -> str:
        """Both tables, for programs."""
        return json.dumps(
            {"transfer": json.loads(self.outcome.table.to_json()), "mean": json.loads(self.mean.to_json())}, indent=1
        )


# ------------------------------------------------------------------------------------------------ the board


def transfer_board(
    benchmark: Benchmark,
    to: Iterable[str],
    out: Path,
    *,
    method: str,
    size: int = SIZE,
    column: str | None = None,
    settings: Iterable[str] = (),
) -> TransferBoard:
    """The board that fine-tunes the finished runs of another.

    Args:
        benchmark: the upstream board; all runs of its column must be finished.
        to: downstream datasets, NAME or NAME@N.
        out: where the upstream runs are.
        method: what fine-tunes them, with its defaults.
        size: training images of a dataset that does not say its own.
        column: the upstream column, as ``dataset / noise`` or one of the two; needed where the board has several.
        settings: changes such as ``recipe.epochs=10``.

    Raises:
        UserError: no such column, a run that is not finished, an unknown dataset, a wrong setting.
    """
    upstream = only_column(benchmark, column)
    starts, given = find_starts(upstream, out)
    dataset, noise = upstream.datasets[0], upstream.noise[0].label
    # Of a board with several columns each has tables of its own.
    slug = f"-{slugify(f'{dataset}-{noise}')[:24]}-{digest([dataset, noise])[:6]}"
    of = "" if upstream == benchmark else slug
    name, settings = f"{benchmark.name[: 54 - len(of)]}-transfer{of}", list(settings)
    data = {
        "name": name,
        "title": f"Transfer from {dataset} / {noise}: {benchmark.title or benchmark.name}",
        "description": f"Backbones trained on {dataset} / {noise}, fine-tuned with a new head.",
        "datasets": list(dict.fromkeys(each if "@" in each else f"{each}@{size}" for each in to)),
        "noise": [{"kind": "none"}],
        "seeds": upstream.seeds,
        "methods": [MethodSpec(name=method, label=row.label).model_dump() for row in upstream.methods],
        "recipe": upstream.recipe.model_dump() | FINE_TUNING,
        "starts": {label: {seed: start.model_dump() for seed, start in by.items()} for label, by in starts.items()},
        "given": given,
    }
    board: TransferBoard = build(TransferBoard, override(data, settings), name)
    check_names(board, name)
    return board.retitled(", ".join(settings)) if settings else board  # type: ignore[return-value]


def only_column(benchmark: Benchmark, column: str | None = None) -> Benchmark:
    """The benchmark with one of its columns, named as in `transfer_board`.

    Raises:
        UserError: not one column; lists them.
    """
    columns = {
        f"{dataset} / {noise.label}": (dataset, noise) for dataset in benchmark.datasets for noise in benchmark.noise
    }
    found = [
        (dataset, noise)
        for label, (dataset, noise) in columns.items()
        if column is None or column in (label, dataset, noise.label)
    ]
    if len(found) != 1:
        what = f"column '{column}'" if column else "no column is chosen, and runs of one alone are transferred"
        raise UserError(f"{benchmark.name}: {what}; give one of: {'; '.join(columns)}")
    dataset, noise = found[0]
    return benchmark.model_copy(update={"datasets": (dataset,), "noise": (noise,)})


def find_starts(benchmark: Benchmark, out: Path) -> tuple[dict[str, dict[int, Start]], dict[str, list[str]]]:
    """What the rows of a board's only column begin with, by label and seed; and what rows were given, see `given`.

    Raises:
        UserError: a run that is not finished, or without its weights.
    """
    starts: dict[str, dict[int, Start]] = {}
    given: dict[str, list[str]] = {}
    for cell in benchmark.cells():
        label, folder, result = cell.method.label, out / cell.folder(), result_of(cell, out)
        if result["status"] != "finished":
            raise UserError(
                f"{benchmark.name}: '{label}' on {' / '.join(cell.column)}, seed {cell.seed}: no finished run below "
                f"{out} ({result['status']}); run the board first, with the same code and settings"
            )
        if not (folder / "model.pt").is_file():
            raise UserError(f"{folder / 'model.pt'} is missing; remove the folder and run the board again")
        starts.setdefault(label, {})[cell.seed] = Start(run=str(folder), weights=result["weights_sha256"])
        if result["privileged"]:
            given[label] = list(result["privileged"])
    return starts, given


# ------------------------------------------------------------------------------------------------ running it


def transfer(
    board: TransferBoard,
    place: Place,
    jobs: int | None = None,
    progress: Progress | None = None,
    run: Callable[..., Any] = run_cells,
) -> Transferred:
    """Fine-tune what is not finished, and write both tables: `leaderboard.*`, and `mean/leaderboard.*` below it.

    Args:
        board: of `transfer_board`.
        place, jobs, progress, run: as for `board.run_board`.

    Raises:
        UserError: a dataset that is too small, or whose images the backbones do not take.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    if any(result_of(cell, place.out)["status"] != "finished" for cell in board.cells()):
        check_images(board, place)
    outcome = run_board(board, place, jobs, progress, run)
    results = [
        result | {"privileged": sorted({*result.get("privileged", ()), *board.given.get(result["label"], ())})}
        for result in outcome.results
    ]
    table, mean, folder = table_of(board, results), mean_table(board, results), board_folder(board, place.out)
    table.write(folder)
    mean.write(folder / "mean")
    return Transferred(Outcome(table, results, outcome.unsent), mean)


def check_images(board: TransferBoard, place: Place) -> None:
    """Refuse downstream datasets whose images no row's backbone takes: another number of channels, mostly.

    Raises:
        UserError: the first that does not fit, and those that do.
    """
    from noisebench.loading import load_dataset, whole_dataset
    from noisebench.nn import make_backbone
    from noisebench.starting import start_from

    problems: dict[str, UserError] = {}
    several: dict[bool, str] = {}
    firsts = {cell.method.label: cell.recipe for cell in board.cells()}.values()
    for name in board.datasets:
        data = load_dataset(name, place.data_root, place.download)
        several.setdefault(data.multilabel, name)
        misfits = []
        for recipe in firsts:
            shape = data.image_shape_at(recipe.image_size)
            try:
                start_from(make_backbone(recipe.backbone, shape, **recipe.backbone_options), recipe, shape)
                break
            except UserError as error:
                misfits.append(error)
        if len(misfits) == len(firsts):
            problems[name] = misfits[0]
    whole_dataset.cache_clear()
    if problems:
        name, reason = next(iter(problems.items()))
        fitting = ", ".join(each for each in board.datasets if each not in problems)
        raise UserError(f"{name}: {reason}; of the datasets that were named, {fitting or 'none'} would fit")
    if len(several) == 2:
        raise UserError(
            f"{several[True]} has several labels an image and {several[False]} one: their scores have no mean"
        )


def mean_table(board: TransferBoard, results: Iterable[Mapping[str, Any]]) -> Table:
    """The board with one column: the mean over its datasets, seed by seed.

    A seed counts where it is finished on all of them. Every metric that all of them report is averaged, seconds are
    summed; the t-test and the sd are over the seeds.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["label"], result["seed"]), []).append(result)
    column = f"mean of {', '.join(board.datasets)}", ", ".join(noise.label for noise in board.noise)
    return Table.from_results(
        [_mean_of(group) | dict(zip(("dataset", "noise"), column, strict=True)) for group in groups.values()],
        title=f"{board.title}: the mean",
        which=board.which,
        methods_order=[row.label for row in board.methods],
        columns_order=[column],
    )


def _mean_of(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One row and seed on several datasets as one result."""
    lost = next((result for result in group if result["status"] != "finished"), None)
    if lost is not None:
        return {**lost, "reason": f"{lost['dataset']}: {lost.get('reason') or lost['status']}"}
    metrics: dict[str, dict[str, float]] = {}
    for rule in set.intersection(*(set(result["metrics"]) for result in group)):
        each = [result["metrics"][rule] for result in group]
        names = sorted(set.intersection(*map(set, each)) - {"epoch"})
        metrics[rule] = {name: math.fsum(one[name] for one in each) / len(each) for name in names}
    return {**group[0], "metrics": metrics, "seconds": math.fsum(result["seconds"] for result in group)}
