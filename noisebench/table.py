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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebench.errors import UserError, unknown
from noisebench.files import write_text
from noisebench.metrics import METRICS, RULES, SCORES, score_of
from noisebench.statistics import mean_ranks, mean_sd
from noisebench.table_cells import (
    ALPHA,
    SECONDS,
    Cell,
    Column,
    Kind,
    Place,
    cell_of,
    judged,
    numbers_of,
    one_line,
    ordered,
    placed,
    ranking_in,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from noisebench.drawing import Details, RichTable
    from noisebench.published import Published

RECORD = (
    *("method", "dataset", "noise", "epoch", "metric", "ranking", "mean", "sd", "n", "expected", "failed", "missing"),
    *("p", "p_holm", "significant", "best", "mean_rank", "privileged", "values"),
)
"""The keys of a record."""


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
        published: a paper's figures, shown beside these; see `beside_paper`.
        damaged: the most images that did not decode in one run, a grey one in the place of each.
        unavailable: column -> why none of its cells could run here: its data is not there.
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
    published: Published | None = None
    damaged: int = 0
    unavailable: Mapping[Column, str] = field(default_factory=dict)

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
        published: Published | None = None,
    ) -> Table:
        """Build the table from one dict a cell, in any order.

        A cell gives ``label`` (its row), ``dataset``, ``noise``, ``seed`` and ``status``: "finished" (with
        ``metrics``: rule -> metric -> number, ``seconds``, ``privileged``, ``rules``), "failed" (with ``reason``) or
        "missing" (with a ``reason`` where its data is not there). The seeds of a column are all seeds that any of its
        cells names; a method without a cell for one of them is missing it.

        Args:
            results: the cells.
            title: of the table.
            metric: what is ranked, one of `METRICS`. Either of `SCORES` stands for the column's own: a board may mix
                columns of one label and of several labels an image.
            which: the epoch it is taken at: "selected", "last" or "best". By default "selected" where every finished
                run has it (a board with a validation split), else "last".
            methods_order: rows in the order of the board; it settles ties in rank and shows rows with no cell yet.
            columns_order: (dataset, noise) in the order of the board. What is not named comes after, by name.
            published: a paper's figures, to be shown beside these.

        Raises:
            UserError: an unknown metric, rule or status, a cell without its names, or two cells in one place.
        """
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        if which is not None and which not in RULES:
            raise unknown("which", which, RULES)
        by_place = placed(results)
        given = {place: numbers_of(result) for place, result in by_place.items() if result["status"] == "finished"}
        if which is None:
            has_split = bool(given) and all(any(kind.rule == "selected" for kind in cell) for cell in given.values())
            which = "selected" if has_split else "last"
        known = {kind for cell in given.values() for kind in cell}
        columns = ordered([Column(*pair) for pair in columns_order], (place.column for place in by_place))
        scores = {c: score_of(k.metric for p, cell in given.items() if p.column == c for k in cell) for c in columns}
        if metric in SCORES and given and metric not in {scores[place.column] for place in given}:
            metric = next(scores[column] for column in columns if any(place.column == column for place in given))
        ranking = Kind(which, metric)
        ranked_by = {column: ranking_in(scores[column], ranking) for column in columns}
        if given and ranking not in known:
            offered = ", ".join(sorted(f"{kind.metric} at {kind.rule}" for kind in known if kind.rule))
            raise UserError(f"which '{which}': no finished run has {metric} there; there are: {offered}")
        further = sorted({kind.metric for kind in known if kind.rule} - set(METRICS))
        all_kinds = [Kind(rule, name) for rule in RULES for name in (*METRICS, *further)]
        kinds = (*(kind for kind in all_kinds if kind in known | {ranking}), SECONDS)

        methods = ordered(methods_order, (place.method for place in by_place))
        seeds = {column: tuple(sorted({p.seed for p in by_place if p.column == column})) for column in columns}
        failed = {
            place: one_line(str(result.get("reason") or "no reason recorded"))
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
                row = {m: cell_of([Place(m, column, s) for s in seeds[column]], kind, given, failed) for m in methods}
                if kind != SECONDS:
                    row |= judged({m: row[m] for m in fair if row[m].complete}, kind, test=kind == ranked_by[column])
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
            title=one_line(title),
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
            published=published,
            damaged=max((int(result.get("damaged", 0)) for result in by_place.values()), default=0),
            unavailable={
                place.column: one_line(str(result["reason"]))
                for place, result in by_place.items()
                if result["status"] == "missing" and result.get("reason")
            },
        )

    def ranking_of(self, column: Column) -> Kind:
        """The kind of number that ranks a column: where it is a score, that of the column."""
        return ranking_in(self.scores[column], self.ranking)

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

    def __repr__(self) -> str:
        counts = f"{len(self.methods)} methods, {len(self.columns)} columns, {len(self.failures)} failed cells"
        return f"<Table {self.title!r}: {counts}>"

    def _repr_html_(self) -> str:
        """What Jupyter shows: the terminal's numbers, marks and notes, every name escaped."""
        from noisebench.written_forms import html

        return html(self)

    def plot(self) -> Figure:
        """The ranking as dots with sd and seeds, a panel a column and a row a method, in the table's order.

        `Figure.savefig` writes it; a cell of a notebook that ends with it shows it, with no pyplot.
        """
        from noisebench.plots import ranking

        return ranking(self)

    def to_markdown(self) -> str:
        """GitHub Markdown with the full details, and every name shown literally."""
        from noisebench.written_forms import markdown

        return markdown(self)

    def to_latex(self) -> str:
        """LaTeX (booktabs) tables of at most five columns each, with the full details and every name escaped."""
        from noisebench.written_forms import latex

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
        document: dict[str, Any] = {
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
        if self.damaged:
            document["damaged"] = self.damaged
        if self.unavailable:
            document["unavailable"] = [{**column._asdict(), "reason": why} for column, why in self.unavailable.items()]
        if self.published:
            from noisebench import beside_paper

            document["published"] = beside_paper.to_json(self)
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_pandas(self) -> pd.DataFrame:
        """The records as a data frame; ``values`` holds dicts of seed -> number. Without records it has its columns."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records(), columns=list(RECORD))

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write leaderboard.csv, .json, .md and .tex into `folder`, each aside and then renamed; the paths written.

        With a paper's figures there is leaderboard-published.csv too: ours, the paper's and the difference.
        """
        forms = {".csv": self.to_csv, ".json": self.to_json, ".md": self.to_markdown, ".tex": self.to_latex}
        if self.published:
            from noisebench import beside_paper

            forms["-published.csv"] = lambda: beside_paper.to_csv(self)
        else:
            Path(folder, "leaderboard-published.csv").unlink(missing_ok=True)  # of this board, when it still had some
        paths = [Path(folder, f"leaderboard{suffix}") for suffix in forms]
        for path, form in zip(paths, forms.values(), strict=True):
            write_text(path, form())
        return paths
