"""The cells of a leaderboard's table, and how they come from the results of runs."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from noisebench.errors import UserError, unknown
from noisebench.metrics import RULES, SCORES, about
from noisebench.statistics import compare_with_best, mean_sd

T = TypeVar("T", bound=Hashable)
ALPHA = 0.05
STATUSES = ("finished", "failed", "missing")


class Column(NamedTuple):
    """A column of the board: what all its methods were trained on."""

    dataset: str
    noise: str


class Kind(NamedTuple):
    """What a number is: a metric, at the epoch that a rule picks ("" for seconds, which belong to the whole run)."""

    rule: str
    metric: str


SECONDS = Kind("", "seconds")


class Place(NamedTuple):
    """Where a result stands in the table."""

    method: str
    column: Column
    seed: int


@dataclass(frozen=True)
class Cell:
    """One method in one column, in one kind of number, over its seeds.

    Attributes:
        values: (seed, number) of the finished runs that report this metric, by seed; None where it is not finite.
        expected: seeds of the column. A cell with fewer finite values is incomplete.
        failed: seeds that failed.
        missing: seeds that have not run.
        mean, sd: over the finite values; None for none, sd also for one.
        p, p_holm, significant: see `statistics.Comparison`; of the ranking kind only, where a test was made.
        best: the best mean of the column among complete cells of methods that are not privileged.
    """

    values: tuple[tuple[int, float | None], ...]
    expected: int
    failed: int
    missing: int
    mean: float | None = None
    sd: float | None = None
    p: float | None = None
    p_holm: float | None = None
    significant: bool = False
    best: bool = False

    @property
    def numbers(self) -> list[float]:
        """The finite values, by seed."""
        return [value for _, value in self.values if value is not None]

    @property
    def complete(self) -> bool:
        """Every seed of the column has a number."""
        return 0 < len(self.numbers) == self.expected


def placed(results: Iterable[Mapping[str, Any]]) -> dict[Place, Mapping[str, Any]]:
    """The results by where they stand in the table, each checked to have its names and a place of its own."""
    by_place: dict[Place, Mapping[str, Any]] = {}
    for result in results:
        for key in ("label", "dataset", "noise", "seed", "status"):
            if key not in result:
                raise UserError(f"results: a cell without '{key}' (it has: {', '.join(sorted(result))})")
        if result["status"] not in STATUSES:
            raise unknown("results: status", result["status"], STATUSES)
        column = Column(str(result["dataset"]), str(result["noise"]))
        place = Place(str(result["label"]), column, int(result["seed"]))
        if place in by_place:
            where = f"{place.method} on {' / '.join(column)}, seed {place.seed}"
            raise UserError(f"results: two cells for {where}; give one")
        by_place[place] = result
    return by_place


def numbers_of(result: Mapping[str, Any]) -> dict[Kind, float | None]:
    """Every number of a finished result that a table knows; None where it is not finite."""
    metrics = result.get("metrics", {})
    numbers = {Kind(rule, name): v for rule in RULES for name, v in metrics.get(rule, {}).items() if about(name)}
    if "seconds" in result:
        numbers[SECONDS] = result["seconds"]
    return {kind: None if v is None or not math.isfinite(float(v)) else float(v) for kind, v in numbers.items()}


def ranking_in(score: str, ranking: Kind) -> Kind:
    """The board's ranking in a column of that score."""
    return ranking._replace(metric=score) if ranking.metric in SCORES else ranking


def cell_of(
    places: Sequence[Place], kind: Kind, given: Mapping[Place, Mapping[Kind, float | None]], failed: Container[Place]
) -> Cell:
    """One kind of number over the places of a method in a column."""
    n_failed = sum(place in failed for place in places)
    n_missing = len(places) - n_failed - sum(place in given for place in places)
    values = tuple((place.seed, given[place][kind]) for place in places if kind in given.get(place, ()))
    cell = Cell(values, len(places), n_failed, n_missing)
    mean, sd = mean_sd(cell.numbers) if cell.numbers else (None, None)
    return replace(cell, mean=mean, sd=sd)


def judged(cells: Mapping[str, Cell], kind: Kind, test: bool) -> dict[str, Cell]:
    """The complete cells of a column's fair methods with the best marked, and tested against it where asked."""
    metric = about(kind.metric)
    higher = metric is not None and metric.higher_is_better
    if test:
        verdicts = compare_with_best({method: cell.numbers for method, cell in cells.items()}, higher, ALPHA)
        return {method: replace(cell, **vars(verdicts[method])) for method, cell in cells.items()}
    means = [cell.mean for cell in cells.values() if cell.mean is not None]
    top = (max if higher else min)(means, default=None)
    return {method: replace(cell, best=cell.mean == top) for method, cell in cells.items()}


def one_line(name: str) -> str:
    """A name as one printable line: an error message or a name may hold line breaks and terminal codes."""
    return " ".join("".join(char if char.isprintable() else " " for char in name).split())


def ordered(first: Iterable[T], others: Iterable[T]) -> tuple[T, ...]:
    """`first` as given, then the others by name, where 20% comes before 100%."""

    def natural(name: T) -> tuple[list[str | int], str]:
        # Text and digits take turns, so the same place always holds the same type.
        parts = re.split(r"(\d+)", str(name))
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(name)

    return tuple(dict.fromkeys([*first, *sorted(set(others), key=natural)]))
