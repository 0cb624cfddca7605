"""What a report reads: the run folders of a board and its noise artefacts, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisebench.config import Benchmark
from noisebench.files import read_json
from noisebench.standing import result_of
from noisebench.table_cells import Column


@dataclass(frozen=True)
class Run:
    """A cell of the board as its folder tells it.

    Attributes:
        method, column, seed: where it stands in the table.
        folder: below the output folder; "" where nothing is there yet.
        result: of result.json or failure.json, or a "missing" one; its ``status`` says which.
        config: of config.json.
        epochs: the metrics of each epoch of a finished run from the first, none of one that its file does not tell.
    """

    method: str
    column: Column
    seed: int
    folder: str
    result: dict[str, Any]
    config: dict[str, Any]
    epochs: list[dict[str, Any]]

    @property
    def finished(self) -> bool:
        """Whether it has numbers."""
        return bool(self.result["status"] == "finished")


def read_runs(benchmark: Benchmark, out: Path) -> list[Run]:
    """All cells of a board, in its order."""
    lacking = _lacking(out / "boards" / benchmark.name / "leaderboard.json")
    runs = []
    for cell in benchmark.cells():
        result, column = result_of(cell, out), Column(*cell.column)
        if result["status"] == "missing" and column in lacking:
            result = {"reason": lacking[column]} | result
        path = out / cell.folder()
        there = path.is_dir()
        config = (read_json(path / "config.json") or {}) if there else {}
        epochs = _epochs(path / "metrics.jsonl", cell.recipe.epochs) if result["status"] == "finished" else []
        folder = cell.folder() if there else ""
        runs.append(Run(cell.method.label, column, cell.seed, folder, result, config, epochs))
    return runs


def _lacking(file: Path) -> dict[Column, str]:
    """Why cells of a column could not run when the board last ran: its data was not there."""
    with suppress(KeyError, TypeError):
        told = (read_json(file) or {}).get("unavailable", ())
        return {Column(one["dataset"], one["noise"]): str(one["reason"]) for one in told}
    return {}


def _epochs(file: Path, count: int) -> list[dict[str, Any]]:
    """The metrics of each epoch, none where there is no whole line of it."""
    found: dict[int, dict[str, Any]] = {}
    with suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                found[int(told["epoch"])] = dict(told["metrics"])
    return [found.get(epoch, {}) for epoch in range(1, count + 1)] if found else []


# ------------------------------------------------------------------------------------------------ lines of epochs


@dataclass(frozen=True)
class Line:
    """A quantity of a method over the epochs, over its seeds.

    Attributes:
        epochs: 1, 2, ..., or some of them, evenly spread, the first and the last among them.
        mean, low, high: over the seeds that have a finite number there, NaN where none has.
        seeds: how many runs it is made of.
    """

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def line_of(runs: Sequence[Run], key: str, most: int) -> Line | None:
    """The line of some runs of one method and column, of so many epochs at most; None where none reports it."""
    told = [[_number(metrics.get(key)) for metrics in run.epochs] for run in runs]
    told = [values for values in told if any(map(math.isfinite, values))]
    if not told:
        return None
    shown = thinned(range(max(map(len, told))), most)
    at = [[values[i] for values in told if i < len(values) and math.isfinite(values[i])] for i in shown]
    return Line(
        [i + 1 for i in shown],
        [math.fsum(values) / len(values) if values else math.nan for values in at],
        [min(values, default=math.nan) for values in at],
        [max(values, default=math.nan) for values in at],
        len(told),
    )


def thinned(places: Sequence[int], most: int) -> list[int]:
    """At most so many of some places, evenly spread, the first and the last among them."""
    if len(places) <= most:
        return list(places)
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


# ---------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Reliability:
    """Predictions on the test set by their confidence, the seeds together; bins without any are left out.

    Attributes:
        bins: which of the equal-width bins, the least sure first; of: how many there are.
        confidence, accuracy: the means within each bin, in [0, 1].
        count: predictions in each bin.
    """

    bins: list[int]
    of: int
    confidence: list[float]
    accuracy: list[float]
    count: list[int]


def reliability_of(runs: Sequence[Run]) -> Reliability | None:
    """Of some runs of one method and column; None where none of them has written it."""
    sums: dict[int, list[float]] = {}
    of = 0
    for run in runs:
        bins = run.result.get("calibration")
        if not isinstance(bins, dict):
            continue
        with suppress(KeyError, TypeError, ValueError):
            of = max(of, len(bins["count"]))
            for i, (n, confidence, accuracy) in enumerate(
                zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
            ):
                told = n and math.isfinite(_number(confidence)) and math.isfinite(_number(accuracy))
                if told:
                    here = sums.setdefault(i, [0.0, 0.0, 0.0])
                    here[0] += n
                    here[1] += n * confidence
                    here[2] += n * accuracy
    if not sums:
        return None
    order = [sums[i] for i in sorted(sums)]
    confidence, accuracy = [s[1] / s[0] for s in order], [s[2] / s[0] for s in order]
    return Reliability(sorted(sums), of, confidence, accuracy, [int(s[0]) for s in order])


# -------------------------------------------------------------------------------------------------------- facts


def distinct(values: Iterable[object]) -> list[str]:
    """The different ones among some values as text, without the missing, the most frequent first."""
    counts: dict[str, int] = {}
    for value in values:
        if value not in (None, ""):
            counts[str(value)] = counts.get(str(value), 0) + 1
    return sorted(counts, key=lambda text: (-counts[text], text))


def grouped(runs: Iterable[Run]) -> dict[tuple[str, Column], list[Run]]:
    """The runs of each place of the table, one a seed."""
    found: dict[tuple[str, Column], list[Run]] = {}
    for run in runs:
        found.setdefault((run.method, run.column), []).append(run)
    return found
