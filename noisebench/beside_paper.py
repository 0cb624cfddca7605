"""Ours beside the paper's, cell by cell, for a table whose board carries published figures; see `published`.

Nothing here ranks, tests or marks a best.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import dataclass
from typing import Any

from noisebench.drawing import Grid, Parts, name_of
from noisebench.metrics import RULES, about
from noisebench.table import Table
from noisebench.table_cells import Cell, Column, Kind, one_line

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """A figure of the paper beside ours.

    Attributes:
        method, column, kind: the place: row, column, and the score at the epoch.
        cell: ours.
        published: the paper's, in %.
    """

    method: str
    column: Column
    kind: Kind
    cell: Cell
    published: float

    @property
    def ours(self) -> float | None:
        """Our mean in %; None where no run has finished."""
        return None if self.cell.mean is None else 100 * self.cell.mean

    @property
    def difference(self) -> float | None:
        """Ours - the paper's, in percentage points."""
        return None if self.ours is None else self.ours - self.published

    @property
    def outside(self) -> bool | None:
        """Whether the paper's figure lies outside the 95% t-interval in which one more run of ours would fall.

        A paper's figure is that of a run, not of a mean over many, so that it is the interval for a run: mean
        ± t sd sqrt(1 + 1/n). None with one seed, or where a seed is missing.
        """
        if self.difference is None or self.cell.sd is None or not self.cell.complete:
            return None
        from scipy.stats import t

        n = len(self.cell.numbers)
        reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * 100 * self.cell.sd * math.sqrt(1 + 1 / n)
        return abs(self.difference) > reach

    def record(self) -> dict[str, Any]:
        """One flat record, in % and percentage points, unrounded."""
        return {
            "method": self.method,
            "dataset": self.column.dataset,
            "noise": self.column.noise,
            "epoch": self.kind.rule,
            "metric": self.kind.metric,
            "ours": self.ours,
            "sd": None if self.cell.sd is None else 100 * self.cell.sd,
            "n": len(self.cell.numbers),
            "published": self.published,
            "difference": self.difference,
            "outside": self.outside,
        }


def comparisons(table: Table) -> list[Comparison]:
    """Every published figure that has a place in the table: by column, then by method and epoch as they are shown."""
    figures = table.published.figures() if table.published else {}
    found = []
    metrics = dict.fromkeys(place[-1] for place in figures)
    for column in table.columns:
        for method in table.methods:
            for rule, metric in itertools.product(RULES, metrics):
                kind, place = Kind(rule, metric or table.scores[column]), (method, *column, rule, metric)
                if place in figures:
                    # A kind that no run reports has no cell; nothing of it has run then.
                    cell = table.cells.get((method, column, kind)) or Cell((), len(table.seeds[column]), 0, 0)
                    found.append(Comparison(method, column, kind, cell, figures[place]))
    return found


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
    about = {"source": table.published.source, "note": table.published.note, "unit": "%"}
    return {**about, "cells": [found.record() for found in comparisons(table)]}


def grids(table: Table) -> list[Grid]:
    """A grid a column: at each epoch ours, the paper's and the difference."""
    found = comparisons(table)
    drawn = []
    for column in dict.fromkeys(one.column for one in found):
        here = {(one.method, one.kind): one for one in found if one.column == column}
        kinds = sorted(dict.fromkeys(kind for _, kind in here), key=lambda kind: list(RULES).index(kind.rule))
        methods = list(dict.fromkeys(method for method, _ in here))
        heads: list[tuple[str, ...]] = [
            (_head(kind, table.scores[column]), what) for kind in kinds for what in ("ours %", "paper %", "difference")
        ]
        rows = [(name_of(table, m), [part for k in kinds for part in _parts(here.get((m, k)))]) for m in methods]
        title = f"Beside the paper: {one_line(' · '.join(column))}"
        drawn.append(Grid(title, heads, rows, sum(method in table.privileged for method in methods)))
    return drawn


def notes(table: Table) -> list[str]:
    """What the paper's figures are: plain lines; none where there are no figures to show."""
    found = comparisons(table)
    if table.published is None or not found:
        return []
    metrics = " / ".join(dict.fromkeys(_title(one.kind.metric) for one in found))
    lines = [f"Paper: {one_line(table.published.source)}."]
    lines += [one_line(table.published.note)] if table.published.note else []
    lines.append(f"difference: ours - paper, in percentage points of {metrics}; it ranks and tests nothing.")
    if any(one.outside for one in found):
        lines.append("*: the paper's figure is outside the 95% t-interval in which one more run of ours would fall.")
    return lines


def _title(metric: str) -> str:
    known = about(metric)
    return known.title if known else metric


def _head(kind: Kind, score: str) -> str:
    rule = "best (oracle)" if kind.rule == "best" else kind.rule
    return rule if kind.metric == score else f"{rule}, {_title(kind.metric)}"


def _parts(found: Comparison | None) -> list[Parts]:
    if found is None:
        return [Parts("–")] * 3
    ours = Parts.of(found.cell, found.kind.metric, brief=True)._replace(bold=False)
    digits = 1 if round(found.published, 1) == found.published else 2
    gap = found.difference
    difference = "–" if gap is None else f"{round(gap, 2) + 0.0:+.2f}"
    return [ours, Parts(f"{found.published:.{digits}f}"), Parts(difference, marks="*" if found.outside else "")]
