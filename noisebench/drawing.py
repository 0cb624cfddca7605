"""A leaderboard's table for people: what is shown, and how the terminal shows it (`written_forms`: how files do).

The terminal shows the details first and the ranking last, where a person looks, but for a paper's figures under it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from noisebench.metrics import METRICS, RULES, SCORES, Metric, about
from noisebench.table import Table
from noisebench.table_cells import ALPHA, SECONDS, Cell, Column, Kind, one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Details = Literal["short", "full", "none"]
DETAILS: tuple[Details, ...] = get_args(Details)
MAX_FAILURES = 5


class Parts(NamedTuple):
    """The text of a cell: the mean or why there is none, the sd, and the marks behind them."""

    mean: str
    sd: str = ""
    marks: str = ""
    bold: bool = False

    @classmethod
    def of(cls, cell: Cell, metric: str, brief: bool = False) -> Parts:
        """The cell as text, e.g. ``91.20 ± 0.31 †``; `brief` without the †, and without the sd of too few seeds."""
        if cell.mean is not None:
            mean, sd = _rounded(cell.mean, cell.sd, metric)
            if not cell.complete:
                return cls(mean, "" if brief else sd, f"({len(cell.numbers)}/{cell.expected})")
            return cls(mean, sd, "†" if cell.significant and not brief else "", cell.best)
        if cell.values:
            return cls("not finite")
        if cell.failed + cell.missing < cell.expected:
            return cls("–")  # it ran, and its method does not offer this metric
        if cell.failed:
            return cls("failed" if cell.failed == cell.expected else f"{cell.failed}/{cell.expected} failed")
        return cls("not run")

    @property
    def style(self) -> str:
        """How Rich shows it."""
        if "failed" in self.mean or self.mean == "not finite":
            return "red"
        return "bold green" if self.bold else "dim" if self.mean in ("not run", "–") or "/" in self.marks else ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.mean, f"± {self.sd}" if self.sd else "", self.marks) if part)


class Grid(NamedTuple):
    """A table ready to be drawn: heads are tuples of lines, a row is its name and its cells.

    The last `references` rows are those of privileged methods. Columns belong together by so many as `group` says.
    """

    title: str
    heads: list[tuple[str, ...]]
    rows: list[tuple[str, list[Parts]]]
    references: int
    group: int = 1

    def pieces(self, sizes: Iterable[int]) -> Iterator[Grid]:
        """The grid cut into grids of so many columns each."""
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            yield self._replace(heads=self.heads[part], rows=[(name, row[part]) for name, row in self.rows])
            start += size

    @property
    def last_fair(self) -> int:
        """The row above the line under which the reference rows stand; -1 where there is no such line."""
        return len(self.rows) - self.references - 1 if self.references else -1


# ---------------------------------------------------------------------- what is shown


def main_grid(table: Table) -> Grid:
    """Rows by rank, one column a dataset and noise, in the ranking number."""
    many = len(table.columns) > 1
    rows = []
    for method in table.methods:
        rank = table.ranks[method]
        text = "–" if rank is None else f"{rank:.2f}" if many else f"{rank:g}"
        kinds = [table.ranking_of(column) for column in table.columns]
        cells = [table.cells[method, column, kind] for column, kind in zip(table.columns, kinds, strict=True)]
        parts = [Parts.of(cell, kind.metric) for cell, kind in zip(cells, kinds, strict=True)]
        rows.append((name_of(table, method), [Parts(text), *parts]))
    heads = [("mean", "rank") if many else ("rank",), *(tuple(map(one_line, column)) for column in table.columns)]
    titles = [METRICS[table.ranking_of(column).metric].title for column in table.columns]
    if len(set(titles)) > 1:  # else the notes say it
        heads[1:] = [(*head, title) for head, title in zip(heads[1:], titles, strict=True)]
    return Grid(table.title, heads, rows, len(table.privileged))


OF_TRAINING = ("memorised", "noise_auc", "transition_error")


def detail_grids(table: Table, details: Details = "full") -> list[Grid]:
    """One grid a column: its score at all three epochs, other metrics at the ranking epoch, and seconds.

    What tells of training (the memorised share, noise scores, T) is that of the last epoch: at the chosen one it had
    often not begun.

    "short" has the memorised share and the accuracy of further tests as the only other metrics, and fits 80 columns
    without the latter. A column whose data is not there, and never was, has none.
    """
    if details == "none":
        return []
    return [
        _detail_grid(table, column, brief=details == "short")
        for column in table.columns
        if column not in table.unavailable or any(cell.values for (_, c, _), cell in table.cells.items() if c == column)
    ]


def _detail_grid(table: Table, column: Column, brief: bool) -> Grid:
    score = table.scores[column]
    further = list(dict.fromkeys(kind.metric for kind in table.kinds if "." in kind.metric))
    if brief:
        others = ["memorised", *(name for name in further if name.rpartition(".")[2] in SCORES)]
    else:
        others = [*(name for name in METRICS if name not in SCORES), *further]
    kinds = [Kind(rule, score) for rule in RULES] + [
        Kind("last" if name in OF_TRAINING else table.ranking.rule, name) for name in others
    ]
    kinds = [kind for kind in [*kinds, *([] if brief else [SECONDS])] if kind in table.kinds]
    heads: list[tuple[str, ...]] = []
    for kind in kinds:
        metric = about(kind.metric) or Metric(kind.metric, False, False)
        rule = "best (oracle)" if kind.rule == "best" else kind.rule
        title = f"{metric.title} (last)" if kind.metric in OF_TRAINING else metric.title
        head = (rule if kind.metric == score else title, *(["%"] if metric.percent else []))
        heads.append((" ".join(head),) if brief else head)
    title = one_line(" · ".join(column))
    return Grid(
        title if score == SCORES[0] else f"{title} · {METRICS[score].title}",
        heads,
        [
            (
                name_of(table, method),
                [Parts.of(table.cells[method, column, kind], kind.metric, brief) for kind in kinds],
            )
            for method in table.methods
        ],
        len(table.privileged),
    )


def notes(table: Table, details: Details = "full") -> list[str]:
    """What the numbers are: plain lines."""
    metric = METRICS[table.ranking.metric]
    counts = sorted({len(seeds) for seeds in table.seeds.values()}) or [0]
    n = "–".join(map(str, sorted({counts[0], counts[-1]})))
    used_metrics = dict.fromkeys(table.ranking_of(column).metric for column in table.columns) or [table.ranking.metric]
    unit = (
        " / ".join(METRICS[name].title for name in used_metrics)
        + (" in %" if metric.percent else "")
        + ("" if metric.higher_is_better else " (lower is better)")
    )
    spread = "no sd from one seed" if n == "1" else f"mean ± sd over {n} seeds"
    lines = [f"{unit} at {RULES[table.ranking.rule]}; {spread}; bold: best."]
    by_column = [(column, table.ranking_of(column)) for column in table.columns]
    ranking = [table.cells[method, column, kind] for method in table.methods for column, kind in by_column]
    if any(cell.p is not None for cell in ranking):
        lines.append(
            f"†: differs from the best (two-tailed Welch t-test, Holm-corrected over the column, p < {ALPHA})."
        )
    else:
        lines.append("No significance test: it takes two complete methods with two seeds each.")
    used = sum(any(table.cells[m, column, kind].complete for m in table.ranks) for column, kind in by_column)
    ranked = sum(rank is not None for rank in table.ranks.values())
    lines.append(
        f"Rank: mean over {used} column{'s' * (used != 1)} (1 is best, ties shared) "
        f"of the {ranked} method{'s' * (ranked != 1)} complete in {'all of them' if used != 1 else 'it'}."
    )
    ranking = [cell for (_, _, kind), cell in table.cells.items() if kind.metric in used_metrics]
    if any(0 < len(cell.numbers) < cell.expected for cell in ranking):
        lines.append("(k/n): only k of the n seeds gave a number; such a mean is not tested, ranked or best.")
    if table.privileged:
        given = "; ".join(
            f"{one_line(method)}: {one_line(', '.join(what))}" for method, what in table.privileged.items()
        )
        lines.append(f"‡: given more than noisy labels ({given}); for reference, not ranked or tested.")
    if table.damaged:
        lines.append(f"Images that do not decode: {table.damaged} in a run; grey in their place, log.txt names them.")
    lacking: dict[str, list[str]] = {}
    for column, why in table.unavailable.items():
        lacking.setdefault(why, []).append(one_line(column.dataset))
    lines += [f"Not run, {', '.join(dict.fromkeys(names))}: {why}" for why, names in lacking.items()]
    scores = dict.fromkeys(METRICS[table.scores[column]].title for column in table.columns) or ["accuracy"]
    more = {
        "short": "NLL, ECE and the rest: in the written files (or with --details). ",
        "full": f"Details: metrics but {' and '.join(scores)} are at the epoch of the ranking. ",
        "none": "",
    }
    versions = ", ".join(map(str, table.rules)) or "unknown"
    mixed = " (mixed: numbers under different rules do not compare)" if len(table.rules) > 1 else ""
    lines.append(f"{more[details]}Leaderboard rules: version {versions}{mixed}.")
    return lines


def failures(table: Table) -> list[str]:
    """What went wrong: one line for all cells of a method whose reasons are the same but for numbers (epoch, step)."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for method, column, seed, reason in table.failures:
        place = f"{one_line(method)} on {one_line(' / '.join(column))}, seed {seed}"
        groups.setdefault((method, re.sub(r"\d+", "#", reason)), []).append((place, reason))
    lines = []
    for (method, _), failed in groups.items():
        place, reason = failed[0]
        if len(failed) == 1:
            lines.append(f"{place} failed: {reason}")
        else:
            example = "" if len({why for _, why in failed}) == 1 else ", e.g."
            lines.append(f"{one_line(method)}: {len(failed)} cells failed{example}: {reason}")
    rest = sum(len(failed) for failed in list(groups.values())[MAX_FAILURES:])
    return lines[:MAX_FAILURES] + ([f"... and {rest} more failed"] if rest else [])


def beside_the_paper(table: Table) -> list[tuple[Grid, list[str]]]:
    """A grid a column with ours, the paper's and the difference, and the lines below it; none where there is none."""
    if table.published is None:
        return []
    from noisebench import beside_paper

    grids = beside_paper.grids(table)
    return [(grid, beside_paper.notes(table) if grid is grids[-1] else []) for grid in grids]


def name_of(table: Table, method: str) -> str:
    """The row's name as one line, marked where the method is privileged."""
    return one_line(method) + (" ‡" if method in table.privileged else "")


def _rounded(mean: float, sd: float | None, metric: str) -> tuple[str, str]:
    """Mean and sd as text: percent with two decimals, all else with three or four digits."""
    known = about(metric)
    if known and known.percent:
        return f"{100 * mean:.2f}", "" if sd is None else f"{100 * sd:.2f}"
    size = max(abs(mean), sd or 0.0)
    if size and not 1e-4 <= size < 1e6:
        form = ".2e"
    else:
        exponent = math.floor(math.log10(size)) if size else 0
        form = f".{max(0, 3 - exponent if exponent >= 0 else 2 - exponent)}f"
    return f"{mean:{form}}", "" if sd is None else f"{sd:{form}}"


# ---------------------------------------------------------------------- in the terminal


class RichTable:
    """A `Table` for the terminal. How it is cut into stacked tables is decided by the width it is drawn in."""

    def __init__(self, table: Table, details: Details) -> None:
        self.table = table
        self.details = details

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if self.table.columns:
            for grid in [*detail_grids(self.table, self.details), main_grid(self.table)]:
                yield from _draw(grid, options.max_width)
                yield ""
            for line in notes(self.table, self.details):
                yield Text(line, "dim", overflow="fold")
        else:
            yield Text(self.table.title, "bold", overflow="fold")
        for line in failures(self.table):
            yield Text(line, "red", overflow="fold")
        for grid, below in beside_the_paper(self.table):
            yield ""
            yield from _draw(grid, options.max_width)
            for line in below:
                yield Text(line, "dim", overflow="fold")


def _draw(grid: Grid, width: int) -> RenderResult:
    """The grid as a stack of tables, each at most `width` wide; only names and heads ever wrap."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as Drawing
    from rich.text import Text

    gap = 2
    columns = [_aligned([row[i] for _, row in grid.rows]) for i in range(len(grid.heads))]
    narrow, wide = [], []
    for head, column in zip(grid.heads, columns, strict=True):
        cells = max(map(cell_len, column), default=0)
        words = max(cell_len(word) for line in head for word in (line.split() or [""]))
        narrow.append(max(cells, min(words, 24)))
        wide.append(max(cells, *map(cell_len, head)))
    name_width = max(16, width // 3)
    beside = width - sum(narrow) - gap * len(narrow)
    if beside >= 16:  # better a name that wraps than a second table
        name_width = min(name_width, beside)
    name_width = min(name_width, max(map(cell_len, ["method", *(name for name, _ in grid.rows)])))
    room = width - name_width

    sizes = _packed([size + gap for size in narrow], room, grid.group)
    start = 0
    yield Text(grid.title, "bold", overflow="fold")
    for k, piece in enumerate(grid.pieces(sizes)):
        part = slice(start, start + len(piece.heads))
        start += len(piece.heads)
        drawing = Drawing(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        drawing.add_column("method", width=name_width, overflow="fold")
        widths = _widened(narrow[part], wide[part], room - gap * len(piece.heads))
        for head, size in zip(piece.heads, widths, strict=True):
            drawing.add_column(Text("\n".join(head)), width=size, overflow="fold")
        for i, (name, row) in enumerate(piece.rows):
            texts = [Text(column[i], parts.style) for column, parts in zip(columns[part], row, strict=True)]
            drawing.add_row(Text(name), *texts, end_section=i == piece.last_fair)
        if k:
            yield ""
        yield drawing


def even(count: int, pieces: int) -> list[int]:
    """`count` cut into so many nearly equal sizes, the larger first."""
    return [count // pieces + (i < count % pieces) for i in range(pieces)]


def _packed(widths: Sequence[int], room: int, group: int = 1) -> list[int]:
    """How many columns each of the fewest even pieces holds that fit `room`; one each where nothing fits.

    Groups of columns are cut only where one alone does not fit.
    """
    groups = len(widths) // group
    for pieces in range(1, groups + 1):
        sizes, rest = [group * size for size in even(groups, pieces)], iter(widths)
        if all(sum(next(rest) for _ in range(size)) <= room for size in sizes):
            return sizes
    return [1] * len(widths) if group == 1 else _packed(widths, room)


def _widened(narrow: Sequence[int], wide: Sequence[int], room: int) -> list[int]:
    """Column widths between `narrow` and `wide` that use the room, the narrowest growing first."""
    widths = list(narrow)
    for _ in range(room - sum(widths)):
        growing = [i for i, width in enumerate(widths) if width < wide[i]]
        if growing:
            widths[min(growing, key=lambda i: widths[i])] += 1
    return widths


def _aligned(column: Sequence[Parts]) -> list[str]:
    """The cells of a column with their means and sds under each other."""
    numeric = [parts for parts in column if re.fullmatch(r"[-+]?[0-9.]+(e[-+][0-9]+)?", parts.mean)]
    mean = max((len(parts.mean) for parts in numeric), default=0)
    sd = max((len(parts.sd) for parts in numeric), default=0)
    return [
        str(parts._replace(mean=f"{parts.mean:>{mean}}", sd=parts.sd and f"{parts.sd:>{sd}}"))
        if parts in numeric
        else str(parts)
        for parts in column
    ]
