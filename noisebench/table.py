"""The table of a leaderboard: from the results of cells to numbers, and from numbers to text in six forms.

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
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from noisebench.errors import UserError, unknown
from noisebench.files import write_text
from noisebench.statistics import compare_with_best, mean_ranks, mean_sd

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult

T = TypeVar("T", bound=Hashable)
ALPHA = 0.05
RULES = {
    "selected": "the epoch selected on held-out noisy labels",
    "last": "the last epoch",
    "best": "the best test epoch (an oracle: no one can pick it without the test labels)",
}
STATUSES = ("finished", "failed", "missing")


class Metric(NamedTuple):
    """How a metric is named, compared and shown."""

    title: str
    percent: bool
    higher_is_better: bool


METRICS = {
    "accuracy": Metric("accuracy", True, True),
    "top5": Metric("top-5", True, True),
    "nll": Metric("NLL", False, False),
    "ece": Metric("ECE", False, False),
    "memorised": Metric("memorised", True, False),
    "noise_auc": Metric("noise AUC", True, True),
    "transition_error": Metric("T error", False, False),
}


class Column(NamedTuple):
    """A column of the board: what all its methods were trained on."""

    dataset: str
    noise: str


class Kind(NamedTuple):
    """What a number is: a metric, at the epoch that a rule picks ("" for seconds, which belong to the whole run)."""

    rule: str
    metric: str


SECONDS = Kind("", "seconds")


class Parts(NamedTuple):
    """The text of a cell: the mean or why there is none, the sd, and the marks behind them."""

    mean: str
    sd: str = ""
    marks: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.mean, f"± {self.sd}" if self.sd else "", self.marks) if part)


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

    def parts(self, metric: str) -> Parts:
        """The cell as text, e.g. ``91.20 ± 0.31 †``."""
        if self.mean is not None:
            mean, sd = _rounded(self.mean, self.sd, metric)
            short = "" if self.complete else f"({len(self.numbers)}/{self.expected})"
            return Parts(mean, sd, "†" if self.significant else short)
        if self.values:
            return Parts("not finite")
        if self.failed + self.missing < self.expected:
            return Parts("–")  # it ran, and its method does not offer this metric
        if self.failed:
            return Parts("failed" if self.failed == self.expected else f"{self.failed}/{self.expected} failed")
        return Parts("not run")


class Grid(NamedTuple):
    """A table ready to be drawn: heads are tuples of lines, a row is its name and its entries (cell text, bold).

    The last `references` rows are those of privileged methods.
    """

    title: str
    heads: list[tuple[str, ...]]
    rows: list[tuple[str, list[tuple[Parts, bool]]]]
    references: int

    def pieces(self, sizes: Iterable[int]) -> Iterator[Grid]:
        """The grid cut into grids of so many columns each."""
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            yield self._replace(heads=self.heads[part], rows=[(name, row[part]) for name, row in self.rows])
            start += size


@dataclass(frozen=True)
class Table:
    """A leaderboard: every number of it, and its forms for people and for machines.

    Attributes:
        title: shown above the table.
        ranking: the kind of number that the rows are ranked by.
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
            metric: what is ranked, one of `METRICS`.
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
        by_place: dict[tuple[str, Column, int], Mapping[str, Any]] = {}
        for result in results:
            for key in ("label", "dataset", "noise", "seed", "status"):
                if key not in result:
                    raise UserError(f"results: a cell without '{key}' (it has: {', '.join(sorted(result))})")
            if result["status"] not in STATUSES:
                raise unknown("results: status", result["status"], STATUSES)
            place = (str(result["label"]), Column(str(result["dataset"]), str(result["noise"])), int(result["seed"]))
            if place in by_place:
                raise UserError(
                    f"results: two cells for {place[0]} on {' / '.join(place[1])}, seed {place[2]}; give one"
                )
            by_place[place] = result

        given = {place: _finished(result) for place, result in by_place.items() if result["status"] == "finished"}
        if which is None:
            has_split = bool(given) and all(any(kind.rule == "selected" for kind in cell) for cell in given.values())
            which = "selected" if has_split else "last"
        ranking = Kind(which, metric)
        if given and not any(ranking in cell for cell in given.values()):
            known = sorted({f"{kind.metric} at {kind.rule}" for cell in given.values() for kind in cell if kind.rule})
            raise UserError(f"which '{which}': no finished run has {metric} there; there are: {', '.join(known)}")

        methods = _ordered(methods_order, (place[0] for place in by_place))
        columns = _ordered([Column(*pair) for pair in columns_order], (place[1] for place in by_place))
        seeds = {column: tuple(sorted({p[2] for p in by_place if p[1] == column})) for column in columns}
        known_kinds = {kind for cell in given.values() for kind in cell} | {ranking, SECONDS}
        all_kinds = [Kind(rule, name) for rule in RULES for name in METRICS] + [SECONDS]
        kinds = tuple(kind for kind in all_kinds if kind in known_kinds)
        failed = {place: result for place, result in by_place.items() if result["status"] == "failed"}
        privileged: dict[str, set[str]] = {}
        for (method, _, _), result in by_place.items():
            if result.get("privileged"):
                privileged.setdefault(method, set()).update(map(str, result["privileged"]))

        cells: dict[tuple[str, Column, Kind], Cell] = {}
        for method in methods:
            for column in columns:
                places = [(method, column, seed) for seed in seeds[column]]
                n_failed = sum(place in failed for place in places)
                n_missing = sum(place not in failed and place not in given for place in places)
                for kind in kinds:
                    values = tuple((p[2], given[p][kind]) for p in places if p in given and kind in given[p])
                    cell = Cell(values, len(places), n_failed, n_missing)
                    if cell.numbers:
                        mean, sd = mean_sd(cell.numbers)
                        cell = replace(cell, mean=mean, sd=sd)
                    cells[method, column, kind] = cell
        fair = [method for method in methods if method not in privileged]
        higher = METRICS[metric].higher_is_better
        for column in columns:
            for kind in kinds[:-1]:
                whole = {m: cells[m, column, kind] for m in fair if cells[m, column, kind].complete}
                means = [cell.mean for cell in whole.values() if cell.mean is not None]
                top = (max if METRICS[kind.metric].higher_is_better else min)(means, default=None)
                for m, cell in whole.items():
                    cells[m, column, kind] = replace(cell, best=cell.mean == top)
            group = {m: cells[m, column, ranking].numbers for m in fair if cells[m, column, ranking].complete}
            for m, verdict in compare_with_best(group, higher, ALPHA).items():
                cells[m, column, ranking] = replace(cells[m, column, ranking], **vars(verdict))
        ranks = mean_ranks(
            {
                str(i): {m: cells[m, c, ranking].mean if cells[m, c, ranking].complete else None for m in fair}
                for i, c in enumerate(columns)
            },
            higher,
        )

        def place_in_table(method: str) -> tuple[Any, ...]:
            """Ranked rows by rank; then by how much is finished and how good that is; reference rows last."""
            row = [cells[method, column, ranking] for column in columns]
            means = [cell.mean for cell in row if cell.mean is not None]
            rank = ranks.get(method)
            average = mean_sd(means)[0] if means else 0.0
            return (
                method in privileged,
                rank is None,
                rank or -sum(len(cell.numbers) for cell in row),
                -average if higher else average,
                methods.index(method),
            )

        shown = tuple(sorted(methods, key=place_in_table))
        return cls(
            title=_line(title),
            ranking=ranking,
            methods=shown,
            columns=columns,
            kinds=kinds,
            cells=cells,
            seeds=seeds,
            ranks={method: ranks.get(method) for method in shown},
            privileged={method: tuple(sorted(privileged[method])) for method in shown if method in privileged},
            failures=tuple(
                (method, column, seed, _line(str(failed[method, column, seed].get("reason") or "no reason recorded")))
                for method in shown
                for column in columns
                for seed in seeds[column]
                if (method, column, seed) in failed
            ),
            rules=tuple(sorted({int(result["rules"]) for result in by_place.values() if "rules" in result})),
        )

    # ------------------------------------------------------------------ for people

    def main_grid(self) -> Grid:
        """Rows by rank, one column a dataset and noise, in the ranking number."""
        many = len(self.columns) > 1
        rows = []
        for method in self.methods:
            rank = self.ranks[method]
            text = "–" if rank is None else f"{rank:.2f}" if many else f"{rank:g}"
            cells = [self.cells[method, column, self.ranking] for column in self.columns]
            entries = [(cell.parts(self.ranking.metric), cell.best) for cell in cells]
            rows.append((self._name(method), [(Parts(text), False), *entries]))
        heads = [("mean", "rank") if many else ("rank",), *(tuple(map(_line, column)) for column in self.columns)]
        return Grid(self.title, heads, rows, len(self.privileged))

    def detail_grids(self) -> list[Grid]:
        """One grid a column: accuracy at all three epochs, the other metrics at the ranking epoch, seconds."""
        kinds = [Kind(rule, "accuracy") for rule in RULES]
        kinds += [Kind(self.ranking.rule, name) for name in METRICS if name != "accuracy"]
        kinds = [kind for kind in [*kinds, SECONDS] if kind in self.kinds]
        names = {"selected": "selected", "last": "last", "best": "best (oracle)"}
        heads: list[tuple[str, ...]] = []
        for kind in kinds:
            metric = METRICS.get(kind.metric, Metric(kind.metric, False, False))
            name = names[kind.rule] if kind.metric == "accuracy" else metric.title
            heads.append((name, "%") if metric.percent else (name,))
        return [
            Grid(
                _line(" · ".join(column)),
                heads,
                [
                    (
                        self._name(method),
                        [(cell.parts(kind.metric), cell.best) for kind, cell in zip(kinds, row, strict=True)],
                    )
                    for method in self.methods
                    for row in [[self.cells[method, column, kind] for kind in kinds]]
                ],
                len(self.privileged),
            )
            for column in self.columns
        ]

    def footer(self) -> list[str]:
        """What the numbers are, and what went wrong: plain lines."""
        metric = METRICS[self.ranking.metric]
        counts = sorted({len(seeds) for seeds in self.seeds.values()})
        n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0] if counts else 0)
        unit = f"{metric.title} in %" if metric.percent else metric.title
        better = "higher" if metric.higher_is_better else "lower"
        spread = "no sd from one seed" if n == "1" else f"mean ± sd over {n} seeds"
        lines = [f"{unit} ({better} is better) at {RULES[self.ranking.rule]}; {spread}; bold: best of the column."]
        ranking = [self.cells[method, column, self.ranking] for method in self.methods for column in self.columns]
        if any(cell.p is not None for cell in ranking):
            lines.append(
                "†: differs from the best of the column: unpaired two-tailed t-test (Welch), "
                f"Holm-corrected over the column, p < {ALPHA}."
            )
        else:
            lines.append("No significance test: it takes two complete methods with two seeds each.")
        used = sum(any(self.cells[m, c, self.ranking].complete for m in self.ranks) for c in self.columns)
        ranked = sum(rank is not None for rank in self.ranks.values())
        lines.append(
            f"Rank: mean over {used} column{'s' * (used != 1)} (1 is best, ties shared) "
            f"of the {ranked} method{'s' * (ranked != 1)} complete in {'all of them' if used != 1 else 'it'}."
        )
        if any(0 < len(cell.numbers) < cell.expected for cell in self.cells.values()):
            lines.append("(k/n): only k of the n seeds gave a number; such a mean is not tested, ranked or best.")
        for method, names in self.privileged.items():
            what = _line(", ".join(names))
            lines.append(
                f"‡ {_line(method)} was given more than noisy labels ({what}): a reference row, not ranked or tested."
            )
        lines.append(
            "Details: three accuracies, never mixed; other metrics are at the epoch of the ranking, seconds per run."
        )
        versions = ", ".join(map(str, self.rules)) or "unknown"
        mixed = " (mixed: numbers under different rules do not compare)" if len(self.rules) > 1 else ""
        lines.append(f"Rules of the leaderboard: version {versions}{mixed}.")
        for method, column, seed, reason in self.failures[:5]:
            lines.append(f"failed: {_line(method)} on {_line(' / '.join(column))}, seed {seed}: {reason}")
        if len(self.failures) > 5:
            lines.append(f"... and {len(self.failures) - 5} more failed")
        return lines

    def to_rich(self, details: bool = True) -> RichTable:
        """What `rich.print` draws in any width: wide boards are stacked, never cut. `details`: the second table too."""
        return RichTable(self, details)

    def to_markdown(self) -> str:
        """GitHub Markdown, with every name shown literally."""

        def draw(grid: Grid) -> list[str]:
            lines = [["method", *(" ".join(head) for head in grid.heads)]]
            lines = [[_markdown(text) for text in line] for line in lines] + [["---"] * (len(grid.heads) + 1)]
            for name, entries in grid.rows:
                texts = [(_markdown(str(parts)), bold) for parts, bold in entries]
                lines.append([_markdown(name), *(f"**{text}**" if bold else text for text, bold in texts)])
            return [f"| {' | '.join(line)} |" for line in lines]

        lines = [f"# {_markdown(self.title)}", "", *draw(self.main_grid()), ""]
        lines += [f"- {_markdown(line)}" for line in self.footer()]
        for grid in self.detail_grids():
            lines += ["", f"## {_markdown(grid.title)}", "", *draw(grid)]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        """LaTeX (booktabs) tables of at most five columns each, with every name escaped."""

        def draw(grid: Grid) -> Iterator[str]:
            for piece in grid.pieces(_even(len(grid.heads), -(-len(grid.heads) // 5))):
                heads = [r" \\ ".join(map(_latex, head)) for head in piece.heads]
                yield rf"\begin{{tabular}}{{l{'r' * len(heads)}}}"
                yield r"\toprule"
                yield " & ".join(["method", *(rf"\shortstack[r]{{{head}}}" for head in heads)]) + r" \\"
                yield r"\midrule"
                for i, (name, entries) in enumerate(piece.rows):
                    if 0 < i == len(piece.rows) - piece.references:
                        yield r"\midrule"
                    texts = [(_latex(str(parts)), bold) for parts, bold in entries]
                    row = [_latex(name), *(rf"\textbf{{{text}}}" if bold else text for text, bold in texts)]
                    yield " & ".join(row) + r" \\"
                yield r"\bottomrule"
                yield r"\end{tabular}\par\medskip"

        lines = [r"% needs \usepackage{booktabs}"]
        for i, grid in enumerate([self.main_grid(), *self.detail_grids()]):
            lines += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}", *draw(grid)]
            if i == 0:
                lines += [r"\begin{minipage}{\linewidth}\footnotesize"]
                lines += [*(_latex(line) + r"\par" for line in self.footer()), r"\end{minipage}"]
            lines += [r"\end{table}", ""]
        return "\n".join(lines)

    # ------------------------------------------------------------------ for machines

    def records(self) -> list[dict[str, Any]]:
        """One flat record a method, column and kind of number; unrounded, None where there is no number."""
        return [
            {
                "method": method,
                "dataset": column.dataset,
                "noise": column.noise,
                "epoch": kind.rule or None,
                "metric": kind.metric,
                "ranking": kind == self.ranking,
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

    def __rich__(self) -> RichTable:
        return self.to_rich()

    def _name(self, method: str) -> str:
        return _line(method) + (" ‡" if method in self.privileged else "")


class RichTable:
    """A `Table` for the terminal. How it is cut into stacked tables is decided by the width it is drawn in."""

    def __init__(self, table: Table, details: bool) -> None:
        self.table = table
        self.details = details

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield from self._draw(self.table.main_grid(), options.max_width)
        yield ""
        for line in self.table.footer():
            yield Text(line, "red" if line.startswith("failed: ") else "dim", overflow="fold")
        for grid in self.table.detail_grids() if self.details else ():
            yield ""
            yield from self._draw(grid, options.max_width)

    @staticmethod
    def _draw(grid: Grid, width: int) -> RenderResult:
        """The grid as a stack of tables, each at most `width` wide; only names and heads ever wrap."""
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table as Drawing
        from rich.text import Text

        gap = 2
        name_width = min(max(map(cell_len, ["method", *(name for name, _ in grid.rows)])), max(16, width // 3))
        columns = [_aligned([entries[i][0] for _, entries in grid.rows]) for i in range(len(grid.heads))]
        narrow, wide = [], []
        for head, column in zip(grid.heads, columns, strict=True):
            cells = max(map(cell_len, column), default=0)
            words = max(cell_len(word) for line in head for word in (line.split() or [""]))
            narrow.append(max(cells, min(words, 24)))
            wide.append(max(cells, *map(cell_len, head)))
        room = width - name_width

        sizes = _packed([size + gap for size in narrow], room)
        start = 0
        for k, piece in enumerate(grid.pieces(sizes)):
            part = slice(start, start + len(piece.heads))
            start += len(piece.heads)
            widths = _widened(narrow[part], wide[part], room - gap * len(piece.heads))
            title = Text(grid.title, "bold", overflow="fold") if k == 0 else None
            drawing = Drawing(
                title=title,
                title_justify="left",
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                padding=(0, 1, 0, 0),
            )
            drawing.add_column("method", width=name_width, overflow="fold")
            for head, size in zip(piece.heads, widths, strict=True):
                drawing.add_column(Text("\n".join(head)), width=size, overflow="fold")
            for i, (name, entries) in enumerate(piece.rows):
                texts = [Text(column[i], _style(*entry)) for column, entry in zip(columns[part], entries, strict=True)]
                last_fair = i + 1 == len(piece.rows) - piece.references
                drawing.add_row(Text(name), *texts, end_section=last_fair)
            if k:
                yield ""
            yield drawing


def _finished(result: Mapping[str, Any]) -> dict[Kind, float | None]:
    """Every number of a finished result that a table knows; None where it is not finite."""
    numbers = {
        Kind(rule, name): result["metrics"][rule][name]
        for rule in RULES
        for name in METRICS
        if name in result.get("metrics", {}).get(rule, {})
    }
    if "seconds" in result:
        numbers[SECONDS] = result["seconds"]
    return {kind: None if v is None or not math.isfinite(float(v)) else float(v) for kind, v in numbers.items()}


def _rounded(mean: float, sd: float | None, metric: str) -> tuple[str, str]:
    """Mean and sd as text: percent with two decimals, all else with three or four digits."""
    if metric in METRICS and METRICS[metric].percent:
        return f"{100 * mean:.2f}", "" if sd is None else f"{100 * sd:.2f}"
    size = max(abs(mean), sd or 0.0)
    if size and not 1e-4 <= size < 1e6:
        form = ".2e"
    else:
        exponent = math.floor(math.log10(size)) if size else 0
        form = f".{max(0, 3 - exponent if exponent >= 0 else 2 - exponent)}f"
    return f"{mean:{form}}", "" if sd is None else f"{sd:{form}}"


def _line(name: str) -> str:
    """A name as one printable line: an error message or a name may hold line breaks and terminal codes."""
    return " ".join("".join(char if char.isprintable() else " " for char in name).split())


def _ordered(first: Iterable[T], others: Iterable[T]) -> tuple[T, ...]:
    """`first` as given, then the others by name, where 20% comes before 100%."""

    def natural(name: T) -> tuple[Any, ...]:
        text = str(name)
        return [
            (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)
        ], text

    return tuple(dict.fromkeys([*first, *sorted(set(others), key=natural)]))


def _even(count: int, pieces: int) -> list[int]:
    """`count` cut into so many nearly equal sizes, the larger first."""
    return [count // pieces + (i < count % pieces) for i in range(pieces)] if count else []


def _packed(widths: Sequence[int], room: int) -> list[int]:
    """How many columns each of the fewest pieces holds that fit `room`; even where even sizes fit."""
    sizes, used = [0], 0
    for width in widths:
        if sizes[-1] and used + width > room:
            sizes.append(0)
            used = 0
        sizes[-1] += 1
        used += width
    even, start = _even(len(widths), len(sizes)), 0
    for size in even:
        if sum(widths[start : start + size]) > room:
            return sizes
        start += size
    return even


def _widened(narrow: Sequence[int], wide: Sequence[int], room: int) -> list[int]:
    """Column widths between `narrow` and `wide` that use the room, the narrowest growing first."""
    widths = list(narrow)
    while sum(widths) < room:
        growing = [i for i, width in enumerate(widths) if width < wide[i]]
        if not growing:
            break
        widths[min(growing, key=lambda i: widths[i])] += 1
    return widths


def _aligned(column: Sequence[Parts]) -> list[str]:
    """The cells of a column with their means, sds and marks under each other."""
    numeric = [parts for parts in column if NUMBER.fullmatch(parts.mean)]
    mean = max((len(parts.mean) for parts in numeric), default=0)
    sd = max((len(parts.sd) for parts in numeric), default=0)
    texts = []
    for parts in column:
        spread = f" ± {parts.sd:>{sd}}" if parts.sd else " " * (sd + 3 if sd and parts.marks else 0)
        text = f"{parts.mean:>{mean}}{spread} {parts.marks}".rstrip()
        texts.append(text if parts in numeric else str(parts))
    return texts


def _style(parts: Parts, bold: bool) -> str:
    if "failed" in parts.mean or parts.mean == "not finite":
        return "red"
    return "bold green" if bold else "dim" if parts.mean in ("not run", "–") or "/" in parts.marks else ""


def _markdown(text: str) -> str:
    """`text` such that Markdown shows it literally, inside a table too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


NUMBER = re.compile(r"-?[0-9.]+(e[-+][0-9]+)?")
LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # \\ at the end of the row before would take [ or * for its own argument
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "·": r"$\cdot$",
    "–": r"\textendash{}",
}


def _latex(text: str) -> str:
    """`text` such that LaTeX shows it literally."""
    return "".join(LATEX.get(char, char) for char in text).replace("--", "-{}-")  # no dash for two hyphens
