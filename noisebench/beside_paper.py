"""Ours beside the paper's, cell by cell, for a table whose board carries published figures; see `published`.

Nothing here ranks, tests or marks a best.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from noisebench.drawing import Grid, Parts, name_of
from noisebench.metrics import RULES, about
from noisebench.published import Entry, Place, in_percent
from noisebench.table import Table
from noisebench.table_cells import Cell, Column, Kind, one_line

CONFIDENCE = 0.95
EPOCHS = {rule: "best (oracle)" if rule == "best" else rule for rule in RULES}


@dataclass(frozen=True)
class Comparison:
    """A figure of the paper beside ours, in % where the metric is a share, else as the metric is (NLL in nats).

    Attributes:
        method, column, kind: the place: row, column, and the metric at the epoch.
        cell: ours.
        paper: the paper's.
        reason: why ours cannot be run anywhere; "" where it can.
    """

    method: str
    column: Column
    kind: Kind
    cell: Cell
    paper: Entry
    reason: str = ""

    @property
    def unit(self) -> float:
        """What one of our numbers is multiplied by: 100 for %."""
        return 100.0 if in_percent(self.kind.metric) else 1.0

    @property
    def published(self) -> float:
        """The paper's figure."""
        return self.paper.value

    @property
    def ours(self) -> float | None:
        """Our mean; None where no run has finished."""
        return None if self.cell.mean is None else self.unit * self.cell.mean

    @property
    def sd(self) -> float | None:
        """Our sd over the seeds; None for fewer than two, or where one is missing."""
        return None if self.cell.sd is None or not self.cell.complete else self.unit * self.cell.sd

    @property
    def difference(self) -> float | None:
        """Ours - the paper's, in the metric's unit; percentage points for %."""
        return None if self.ours is None else self.ours - self.published

    @property
    def difference_sd(self) -> float | None:
        """The standard deviation of the difference; None without an sd of ours.

        Where the paper gives an sd s' over n' runs, both are means: sqrt(s^2/n + s'^2/n'). Where it does not give n',
        its figure is taken for that of one run (n' = 1); where it gives no sd either, for that of one run with an sd
        like ours: s sqrt(1/n + 1).
        """
        if self.sd is None:
            return None
        theirs = self.sd if self.paper.sd is None else self.paper.sd
        return math.sqrt(self.sd**2 / len(self.cell.numbers) + theirs**2 / (self.paper.runs or 1))

    @property
    def in_sd(self) -> float | None:
        """The difference as a multiple of its sd; None where there is none, or where it is 0."""
        return self.difference / self.difference_sd if self.difference is not None and self.difference_sd else None

    @property
    def outside(self) -> bool | None:
        """Whether 0 lies outside the 95% t-interval around the difference; None without an sd of the difference.

        With an sd and a number of runs of the paper's it is Welch's t-test of two means; else the degrees of freedom
        are ours, n - 1, and the interval is that in which one more run would fall.
        """
        if self.difference is None or self.sd is None or self.difference_sd is None:
            return None
        if self.difference_sd == 0:
            return self.difference != 0
        from scipy.stats import t

        n = len(self.cell.numbers)
        freedom = float(n - 1)
        if self.paper.sd is not None and self.paper.runs is not None:
            a, b = self.sd**2 / n, self.paper.sd**2 / self.paper.runs
            freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (self.paper.runs - 1))
        return abs(self.difference) > float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * self.difference_sd

    def record(self) -> dict[str, Any]:
        """One flat record, unrounded."""
        return {
            "method": self.method,
            "dataset": self.column.dataset,
            "noise": self.column.noise,
            "epoch": self.kind.rule,
            "metric": self.kind.metric,
            "unit": "%" if self.unit > 1 else "",
            "ours": self.ours,
            "sd": None if self.cell.sd is None else self.unit * self.cell.sd,
            "n": len(self.cell.numbers),
            "published": self.published,
            "published_sd": self.paper.sd,
            "published_n": self.paper.runs,
            "difference": self.difference,
            "difference_sd": self.difference_sd,
            "in_sd": self.in_sd,
            "outside": self.outside,
            "reason": self.reason or None,
        }


def comparisons(table: Table) -> list[Comparison]:
    """Every published figure that has a place: by column, then by method, metric and epoch as they are shown.

    Rows and columns that the board cannot have (`Published.not_here`) come last, in the paper's order.
    """
    if table.published is None:
        return []
    entries, not_here = table.published.entries(), table.published.not_here
    methods = (*table.methods, *(name for name in _once(p.method for p in entries) if name in not_here))
    columns = (*table.columns, *_once(Column(p.dataset, p.noise) for p in entries if p.dataset in not_here))
    found = []
    for column, method in itertools.product(columns, methods):
        for metric, rule in itertools.product(_once(place.metric for place in entries), RULES):
            entry = entries.get(Place(method, column.dataset, column.noise, rule, metric))
            if entry is not None:
                score = table.scores.get(column, "accuracy")
                kind = Kind(rule, metric or score)
                reason = not_here.get(method) or not_here.get(column.dataset) or ""
                cell = Cell((), 0, 0, 0) if reason else _cell(table, method, column, kind)
                found.append(Comparison(method, column, kind, cell, entry, reason))
    return found


def _cell(table: Table, method: str, column: Column, kind: Kind) -> Cell:
    """Ours; of a kind that no run reports there is none, but what ran there is told by the ranking's."""
    found = table.cells.get((method, column, kind))
    if found is not None:
        return found
    ranking = table.cells[method, column, table.ranking_of(column)]
    return replace(ranking, values=(), mean=None, sd=None, best=False)


def _once(names: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


def to_csv(table: Table) -> str:
    """A line a published figure."""
    out = io.StringIO()
    records = [found.record() for found in comparisons(table)]
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in r.items()} for r in records)
    return out.getvalue()


def to_json(table: Table) -> dict[str, Any]:
    """What leaderboard.json holds of it; `table` has published figures."""
    assert table.published is not None
    about = {"source": table.published.source, "note": table.published.note}
    return {**about, "cells": [found.record() for found in comparisons(table)]}


def grids(table: Table) -> list[Grid]:
    """A grid a column: for each metric and epoch ours, the paper's, the difference, and it as a multiple of its sd."""
    found = comparisons(table)
    drawn = []
    for column in _once(one.column for one in found):
        here = {(one.method, one.kind): one for one in found if one.column == column}
        metrics = _once(kind.metric for _, kind in here)
        rules = [rule for rule in RULES if any(kind.rule == rule for _, kind in here)]
        kinds = [Kind(rule, metric) for metric, rule in itertools.product(metrics, rules)]
        kinds = [kind for kind in kinds if any(kind == other for _, other in here)]
        told = len(metrics) > 1 or metrics[0] != table.scores.get(column, metrics[0])
        heads: list[tuple[str, ...]] = []
        for kind in kinds:
            which = [EPOCHS[kind.rule]] * (len(rules) > 1) + [_title(kind.metric)] * told
            unit = " %" if in_percent(kind.metric) else ""
            for what in (f"ours{unit}", f"paper{unit}", "difference", "in sd"):
                heads.append((*([", ".join(which)] if which else []), what))
        digits = {kind: _decimals(one.paper.sd for (_, k), one in here.items() if k == kind) for kind in kinds}
        methods = _once(method for method, _ in here)
        rows = [
            (name_of(table, m), [part for k in kinds for part in _parts(here.get((m, k)), digits[k])]) for m in methods
        ]
        epoch = "" if len(rules) > 1 else f" · {EPOCHS[rules[0]]} epoch"
        drawn.append(Grid(f"Beside the paper: {one_line(' · '.join(column))}{epoch}", heads, rows, 0, group=4))
    return drawn


def notes(table: Table) -> list[str]:
    """What the paper's figures are: plain lines; none where there are no figures to show."""
    found = comparisons(table)
    if table.published is None or not found:
        return []
    lines = [f"Paper: {one_line(table.published.source)}."]
    lines += [one_line(table.published.note)] if table.published.note else []
    for reason in _once(one.reason for one in found if one.reason):
        names = {n: why for n, why in table.published.not_here.items() if why == reason}
        lines.append(f"Not run, {one_line(', '.join(names))}: {one_line(reason)}.")
    lines.append(
        "difference: ours - paper (of %: percentage points) ± its sd; in sd: divided by it. It ranks and tests nothing."
    )
    tried = [one for one in found if one.cell.numbers]
    both = [one for one in tried if one.paper.sd is not None]
    if any(one.paper.runs for one in both):
        lines.append("Its sd, of two means: sqrt(sd²/n + paper's sd²/paper's n); *: p < 0.05 in Welch's t-test.")
    if any(not one.paper.runs for one in both):
        lines.append("Its sd where the paper does not say over how many runs, as if of one: sqrt(sd²/n + paper's sd²).")
    if len(both) < len(tried):
        lines.append("Its sd where the paper gives none, as if of one run with an sd like ours: sd sqrt(1/n + 1).")
    if any(one.outside and not one.paper.runs for one in tried):
        of = " there" if any(one.paper.runs for one in both) else ""
        lines.append(f"*{of}: the paper's figure is outside the 95% t-interval in which one more run would fall.")
    if any(one.sd is None for one in tried):
        lines.append("No sd of the difference where ours is of one seed, or not yet of all.")
    return lines


def _title(metric: str) -> str:
    known = about(metric)
    return known.title if known else metric


def _parts(found: Comparison | None, sd_digits: int) -> list[Parts]:
    if found is None:
        return [Parts("–")] * 4
    ours = Parts.of(found.cell, found.kind.metric, brief=True)._replace(bold=False)
    percent = in_percent(found.kind.metric)
    mark = "*" if found.outside else ""
    gap, sd, times, digits = found.difference, found.difference_sd, found.in_sd, 2 if percent else 4
    return [
        ours,
        Parts(
            _as_printed(found.published, percent), "" if found.paper.sd is None else f"{found.paper.sd:.{sd_digits}f}"
        ),
        Parts("–") if gap is None else Parts(_signed(gap, digits), "" if sd is None else f"{sd:.{digits}f}", mark),
        Parts("–" if times is None else _signed(times, 1)),
    ]


def _signed(number: float, digits: int) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"  # no -0.00


def _decimals(numbers: Iterable[float | None]) -> int:
    """So many digits behind the point as the longest of them has."""
    return max((len(f"{number:g}".partition(".")[2]) for number in numbers if number is not None), default=0)


def _as_printed(figure: float, percent: bool) -> str:
    """With the digits that it has; one behind the point at least where it is in %."""
    return f"{figure:.1f}" if percent and round(figure, 1) == figure else f"{figure:g}"
