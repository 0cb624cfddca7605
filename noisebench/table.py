"""The table of a leaderboard: from the results of cells to numbers, and to forms for machines (`drawing`: for people).

`Table.from_results` takes what the runs wrote (``result.json``, ``failure.json``, and placeholders for cells that have
not run) in any order and always gives the same bytes. A failed or missing cell never becomes a number: the mean of the
others is shown marked "(2/3)", and is neither tested, ranked nor the best of its column.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from noisebench.errors import UserError, unknown
from noisebench.files import write_text
from noisebench.metrics import METRICS, RULES, SCORES, score_of
from noisebench.statistics import compare_with_best, mean_ranks, mean_sd

if TYPE_CHECKING:
    import pandas as pd

    from noisebench.drawing import Details, RichTable

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


@dataclass(frozen=True)
class Table:
    """A leaderboard: every number of it, and its forms for people and for machines.

    Attributes:
        title: shown above the table.
        ranking: the kind of number that the rows are ranked by; see `ranking_of` for one column.
        scores: column -> the one of `SCORES` that its runs report.
        methods: row names, in the order shown.
        columns: in the order shown.
        kinds: the kinds of numbers that any finished run reports.
        cells: (method, column, kind) -> Cell, for every combination.
        seeds: column -> its seeds.
        ranks: method -> mean rank over the columns, see `statistics.mean_ranks`; None: not ranked.
        privileged: method -> what it was given beyond noisy labels; only methods that were given something.
        failures: (method, column, seed, reason) of every failed cell.
        rules: versions of the leaderboard's rules among the results.
    """

    title: str
    ranking: Kind
    scores: Mapping[Column, str]
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    kinds: tuple[Kind, ...]
    cells: Mapping[tuple[str, Column, Kind], Cell]
    seeds: Mapping[Column, tuple[int, ...]]
    ranks: Mapping[str, float | None]
    privileged: Mapping[str, tuple[str, ...]]
    failures: tuple[tuple[str, Column, int, str], ...]
    rules: tuple[int, ...]

    @classmethod
    def from_results(
        cls,
        results: Iterable[Mapping[str, Any]],
        *,
        title: str = "leaderboard",
        metric: str = "accuracy",
        which: str | None = None,
        methods_order: Sequence[str] = (),
        columns_order: Sequence[tuple[str, str]] = (),
    ) -> Table:
        """Build the table from one dict a cell, in any order.

        A cell gives ``label`` (its row), ``dataset``, ``noise``, ``seed`` and ``status``: "finished" (with
        ``metrics``: rule -> metric -> number, ``seconds``, ``privileged``, ``rules``), "failed" (with ``reason``) or
        "missing". The seeds of a column are all seeds that any of its cells names; a method without a cell for one of
        them is missing it.

        Args:
            results: the cells.
            title: of the table.
            metric: what is ranked, one of `METRICS`. Either of `SCORES` stands for the column's own: a board may mix
                columns of one label and of several labels an image.
            which: the epoch it is taken at: "selected", "last" or "best". By default "selected" where every finished
                run has it (a board with a validation split), else "last".
            methods_order: rows in the order of the board; it settles ties in rank and shows rows with no cell yet.
            columns_order: (dataset, noise) in the order of the board. What is not named comes after, by name.

        Raises:
            UserError: an unknown metric, rule or status, a cell without its names, or two cells in one place.
        """
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        if which is not None and which not in RULES:
            raise unknown("which", which, RULES)
        by_place = _by_place(results)
        given = {place: _numbers(result) for place, result in by_place.items() if result["status"] == "finished"}
        if which is None:
            has_split = bool(given) and all(any(kind.rule == "selected" for kind in cell) for cell in given.values())
            which = "selected" if has_split else "last"
        known = {kind for cell in given.values() for kind in cell}
        columns = _ordered([Column(*pair) for pair in columns_order], (place.column for place in by_place))
        scores = {c: score_of(k.metric for p, cell in given.items() if p.column == c for k in cell) for c in columns}
        if metric in SCORES and given and metric not in {scores[place.column] for place in given}:
            metric = next(scores[column] for column in columns if any(place.column == column for place in given))
        ranking = Kind(which, metric)
        ranked_by = {column: _ranking_in(scores[column], ranking) for column in columns}
        if given and ranking not in known:
            offered = ", ".join(sorted(f"{kind.metric} at {kind.rule}" for kind in known if kind.rule))
            raise UserError(f"which '{which}': no finished run has {metric} there; there are: {offered}")
        all_kinds = [Kind(rule, name) for rule in RULES for name in METRICS]
        kinds = (*(kind for kind in all_kinds if kind in known | {ranking}), SECONDS)

        methods = _ordered(methods_order, (place.method for place in by_place))
        seeds = {column: tuple(sorted({p.seed for p in by_place if p.column == column})) for column in columns}
        failed = {
            place: _line(str(result.get("reason") or "no reason recorded"))
            for place, result in by_place.items()
            if result["status"] == "failed"
        }
        privileged: dict[str, set[str]] = {}
        for place, result in by_place.items():
            if result.get("privileged"):
                privileged.setdefault(place.method, set()).update(map(str, result["privileged"]))

        fair = [method for method in methods if method not in privileged]
        cells: dict[tuple[str, Column, Kind], Cell] = {}
        for column in columns:
            for kind in kinds:
                row = {m: _cell([Place(m, column, s) for s in seeds[column]], kind, given, failed) for m in methods}
                if kind != SECONDS:
                    row |= _judged({m: row[m] for m in fair if row[m].complete}, kind, test=kind == ranked_by[column])
                cells |= {(method, column, kind): cell for method, cell in row.items()}

        higher = METRICS[metric].higher_is_better
        complete = {key: cell.mean for key, cell in cells.items() if cell.complete}
        ranks = mean_ranks({str(c): {m: complete.get((m, c, ranked_by[c])) for m in fair} for c in columns}, higher)

        def place_in_table(method: str) -> tuple[Any, ...]:
            """Ranked rows by rank; then by how much is finished and how good that is; reference rows last."""
            row = [cells[method, column, ranked_by[column]] for column in columns]
            means = [cell.mean for cell in row if cell.mean is not None]
            average = mean_sd(means)[0] if means else 0.0
            rank = ranks.get(method) or math.inf
            return method in privileged, rank, -sum(len(cell.numbers) for cell in row), -average if higher else average

        shown = tuple(sorted(methods, key=place_in_table))
        return cls(
            title=_line(title),
            ranking=ranking,
            scores=scores,
            methods=shown,
            columns=columns,
            kinds=kinds,
            cells=cells,
            seeds=seeds,
            ranks={method: ranks.get(method) for method in shown},
            privileged={method: tuple(sorted(privileged[method])) for method in shown if method in privileged},
            failures=tuple(
                (*place, failed[place])
                for place in sorted(failed, key=lambda p: (shown.index(p.method), columns.index(p.column), p.seed))
            ),
            rules=tuple(sorted({int(result["rules"]) for result in by_place.values() if "rules" in result})),
        )

    def ranking_of(self, column: Column) -> Kind:
        """The kind of number that ranks a column: where it is a score, that of the column."""
        return _ranking_in(self.scores[column], self.ranking)

    def to_rich(self, details: Details = "short") -> RichTable:
        """What `rich.print` draws in any width; wide boards are stacked, never cut.

        `details` stand above the ranking, a table a column: "short" for the scores and the memorised share, "full"
        for every metric and the seconds, "none" for nothing; UserError for anything else.
        """
        from noisebench.drawing import DETAILS, RichTable

        if details not in DETAILS:
            raise unknown("details", details, DETAILS)
        return RichTable(self, details)

    def __rich__(self) -> RichTable:
        return self.to_rich()

    def to_markdown(self) -> str:
        """GitHub Markdown with the full details, and every name shown literally."""
        from noisebench.drawing import markdown

        return markdown(self)

    def to_latex(self) -> str:
        """LaTeX (booktabs) tables of at most five columns each, with the full details and every name escaped."""
        from noisebench.drawing import latex

        return latex(self)

    def records(self) -> list[dict[str, Any]]:
        """One flat record a method, column and kind of number; unrounded, None where there is no number."""
        return [
            {
                "method": method,
                "dataset": column.dataset,
                "noise": column.noise,
                "epoch": kind.rule or None,
                "metric": kind.metric,
                "ranking": kind == self.ranking_of(column),
                "mean": cell.mean,
                "sd": cell.sd,
                "n": len(cell.numbers),
                "expected": cell.expected,
                "failed": cell.failed,
                "missing": cell.missing,
                "p": cell.p,
                "p_holm": cell.p_holm,
                "significant": cell.significant,
                "best": cell.best,
                "mean_rank": self.ranks[method],
                "privileged": method in self.privileged,
                "values": dict(cell.values),
            }
            for method in self.methods
            for column in self.columns
            for kind in self.kinds
            for cell in [self.cells[method, column, kind]]
        ]

    def to_csv(self) -> str:
        """One line a record; ``values`` is ``seed=value`` separated by blanks (``nan`` where not finite)."""
        out = io.StringIO()
        records = self.records()
        fields = list(records[0]) if records else []
        writer = csv.DictWriter(out, fields, lineterminator="\n")
        writer.writeheader()
        for record in records:
            pairs = record["values"].items()
            record["values"] = " ".join(f"{seed}={'nan' if v is None else repr(v)}" for seed, v in pairs)
            writer.writerow({k: str(v).lower() if isinstance(v, bool) else v for k, v in record.items()})
        return out.getvalue()

    def to_json(self) -> str:
        """Everything, unrounded; null where there is no number or it is not finite."""
        document = {
            "title": self.title,
            "ranking": {"metric": self.ranking.metric, "epoch": self.ranking.rule},
            "test": {"name": "Welch t-test, two-tailed", "correction": "Holm, over the column", "alpha": ALPHA},
            "rules": list(self.rules),
            "methods": [
                {"label": m, "mean_rank": self.ranks[m], "privileged": list(self.privileged.get(m, ()))}
                for m in self.methods
            ],
            "columns": [{**column._asdict(), "seeds": list(self.seeds[column])} for column in self.columns],
            "cells": self.records(),
            "failures": [{"method": m, **c._asdict(), "seed": s, "reason": why} for m, c, s, why in self.failures],
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_pandas(self) -> pd.DataFrame:
        """The records as a data frame; ``values`` holds dicts of seed -> number."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records())

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write leaderboard.csv, .json, .md and .tex into `folder`, each aside and then renamed; the paths written."""
        forms = {".csv": self.to_csv, ".json": self.to_json, ".md": self.to_markdown, ".tex": self.to_latex}
        paths = [Path(folder, f"leaderboard{suffix}") for suffix in forms]
        for path, form in zip(paths, forms.values(), strict=True):
            write_text(path, form())
        return paths


def _by_place(results: Iterable[Mapping[str, Any]]) -> dict[Place, Mapping[str, Any]]:
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


def _numbers(result: Mapping[str, Any]) -> dict[Kind, float | None]:
    """Every number of a finished result that a table knows; None where it is not finite."""
    metrics = result.get("metrics", {})
    numbers = {Kind(rule, name): v for rule in RULES for name, v in metrics.get(rule, {}).items() if name in METRICS}
    if "seconds" in result:
        numbers[SECONDS] = result["seconds"]
    return {kind: None if v is None or not math.isfinite(float(v)) else float(v) for kind, v in numbers.items()}


def _ranking_in(score: str, ranking: Kind) -> Kind:
    """The board's ranking in a column of that score."""
    return ranking._replace(metric=score) if ranking.metric in SCORES else ranking


def _cell(
    places: Sequence[Place], kind: Kind, given: Mapping[Place, Mapping[Kind, float | None]], failed: Container[Place]
) -> Cell:
    """One kind of number over the places of a method in a column."""
    n_failed = sum(place in failed for place in places)
    n_missing = len(places) - n_failed - sum(place in given for place in places)
    values = tuple((place.seed, given[place][kind]) for place in places if kind in given.get(place, ()))
    cell = Cell(values, len(places), n_failed, n_missing)
    mean, sd = mean_sd(cell.numbers) if cell.numbers else (None, None)
    return replace(cell, mean=mean, sd=sd)


def _judged(cells: Mapping[str, Cell], kind: Kind, test: bool) -> dict[str, Cell]:
    """The complete cells of a column's fair methods with the best marked, and tested against it where asked."""
    higher = METRICS[kind.metric].higher_is_better
    if test:
        verdicts = compare_with_best({method: cell.numbers for method, cell in cells.items()}, higher, ALPHA)
        return {method: replace(cell, **vars(verdicts[method])) for method, cell in cells.items()}
    means = [cell.mean for cell in cells.values() if cell.mean is not None]
    top = (max if higher else min)(means, default=None)
    return {method: replace(cell, best=cell.mean == top) for method, cell in cells.items()}


def _line(name: str) -> str:
    """A name as one printable line: an error message or a name may hold line breaks and terminal codes."""
    return " ".join("".join(char if char.isprintable() else " " for char in name).split())


def _ordered(first: Iterable[T], others: Iterable[T]) -> tuple[T, ...]:
    """`first` as given, then the others by name, where 20% comes before 100%."""

    def natural(name: T) -> tuple[list[str | int], str]:
        # Text and digits take turns, so the same place always holds the same type.
        parts = re.split(r"(\d+)", str(name))
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(name)

    return tuple(dict.fromkeys([*first, *sorted(set(others), key=natural)]))
