"""What `Table.plot` and `Result.plot` draw: figures that a notebook shows by themselves, without pyplot.

Names are shown literally: one may hold dollars, which Matplotlib would read as formulas.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from noisebench.drawing import Parts, name_of
from noisebench.finding import BLUE, ORANGE, cut
from noisebench.metrics import METRICS, RULES, score_of
from noisebench.table_cells import Cell, one_line

if TYPE_CHECKING:
    from noisebench.fitting import Result
    from noisebench.table import Table

GREEN, GREY = "#009e73", "#767676"  # beside finding's
PER_ROW = 3
"""Panels beside each other in a ranking."""


class Picture(Figure):
    """A figure that Jupyter shows as the last value of a cell.

    Jupyter itself shows a `Figure` only after pyplot was imported, and would draw one made with pyplot twice.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The PNG at twice its size on the screen, for screens with small dots; and that size in pixels."""
        file = io.BytesIO()
        with rc_context({"text.parse_math": False}):
            self.savefig(file, format="png", dpi=2 * self.dpi)
        png = file.getvalue()
        size = (int.from_bytes(png[at : at + 4], "big") // 2 for at in (16, 20))  # of the PNG's header
        return png, dict(zip(("width", "height"), size, strict=True))


def curves(result: Result) -> Figure:
    """See `Result.plot`."""
    with rc_context({"text.parse_math": False}):
        return _curves(result)


def ranking(table: Table) -> Figure:
    """See `Table.plot`."""
    with rc_context({"text.parse_math": False}):
        return _ranking(table)


# ------------------------------------------------------------------------------------------ a run's curves


def _curves(result: Result) -> Figure:
    figure = Picture(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    score = score_of(name.removeprefix("test.") for name in result.history[-1]["metrics"])
    title = METRICS[score].title
    drawn = (
        (f"test.{score}", f"test {title}", BLUE, "-", "o"),
        (f"val.{score}", f"{title} on held-out noisy labels", GREEN, "--", "s"),
        ("train.memorised", "wrong labels memorised", ORANGE, "-.", "^"),
    )
    epochs = [line["epoch"] for line in result.history]
    every = max(1, len(epochs) // 12)
    for name, label, colour, dashes, marker in drawn:
        values = [_percent(line["metrics"].get(name)) for line in result.history]
        if not all(map(math.isnan, values)):
            look: dict[str, Any] = {"linestyle": dashes, "marker": marker, "markevery": every, "markersize": 4}
            axes.plot(epochs, values, label=label, color=colour, **look)
    if "selected" in result.metrics:
        axes.axvline(
            result.metrics["selected"]["epoch"], color=GREY, linewidth=1, linestyle=":", label="selected epoch"
        )
    axes.set(xlabel="epoch", ylabel="share of images (%)", ylim=(0, 101), title=one_line(result.title))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes, "both")
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _percent(share: float | None) -> float:
    return math.nan if share is None else 100 * share


# ------------------------------------------------------------------------------------------ a board's ranking


def _ranking(table: Table) -> Figure:
    wide = max(1, min(PER_ROW, len(table.columns)))
    high = max(1, math.ceil(len(table.columns) / wide))
    names = [cut(name_of(table, method)) for method in table.methods]
    apart = 0 < len(table.privileged) < len(table.methods)  # by a line, as in the table
    places = {method: i + (apart and method in table.privileged) for i, method in enumerate(table.methods)}
    width = 0.09 * max(map(len, names), default=0) + 3.0 * wide + 0.4
    height = high * (0.28 * (len(names) + apart) + 1.0) + 0.9
    figure = Picture(figsize=(max(width, 6.0), height), layout="constrained")
    panels = figure.subplots(high, wide, sharey=True, squeeze=False)
    shown: dict[str, Line2D] = {}
    for axes, column in zip(panels.flat, table.columns, strict=False):
        metric = METRICS[table.ranking_of(column).metric]
        for method, place in places.items():
            cell = table.cells[method, column, table.ranking_of(column)]
            if cell.mean is None:
                why, middle = str(Parts.of(cell, metric.title)), axes.get_yaxis_transform()
                axes.text(0.5, place, why, transform=middle, ha="center", va="center", color=GREY, fontsize="small")
            else:
                handle = _dot(axes, place, cell, 100 if metric.percent else 1, method in table.privileged)
                shown.setdefault(str(handle.get_label()), handle)
        axes.set_title("\n".join(cut(one_line(name), 36) for name in column), fontsize="medium")
        axes.set_xlabel(f"test {metric.title} (%)" if metric.percent else f"test {metric.title}")
        axes.set_yticks(list(places.values()), names)
        axes.tick_params(axis="y", length=0)
        _plain(axes, "x")
        if apart:
            axes.axhline(len(table.methods) - len(table.privileged), color=GREY, linewidth=0.8)
    panels.flat[0].set_ylim(len(table.methods) + apart - 0.3, -0.7)
    for axes in list(panels.flat)[len(table.columns) :]:
        axes.set_axis_off()
    figure.suptitle(cut(one_line(table.title), 16 + int(10 * width)), fontweight="bold")
    if not table.columns:
        figure.text(0.5, 0.5, "no cells", ha="center", color=GREY)
    if shown:
        spread = "bars: sd over seeds; small dots: the seeds"
        if all(len(cell.numbers) < 2 for cell in table.cells.values()):
            spread = "one seed, so no sd"
        about = f"at {RULES[table.ranking.rule]}; {spread}"
        look: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": "small"}
        handles = sorted(shown.values(), key=lambda handle: handle.get_label() != "best")
        figure.legend(handles=handles, title=about, title_fontsize="small", **look)
    return figure


def _dot(axes: Axes, place: float, cell: Cell, scale: float, privileged: bool) -> Line2D:
    """Draw a cell that has a mean; what the legend says of it."""
    look: dict[str, Any]
    if not cell.complete:
        look, label = {"marker": "x", "color": GREY}, "(k/n): not all seeds; not tested, ranked or best"
    elif privileged:
        look, label = {"marker": "s", "color": GREY}, "‡: given more than noisy labels"
    elif cell.best:
        look, label = {"marker": "D", "color": ORANGE}, "best"
    elif cell.significant:
        look, label = {"marker": "o", "color": BLUE, "markerfacecolor": "white"}, "†: differs from the best"
    else:
        look, label = (
            {"marker": "o", "color": BLUE},
            "no significant difference" if cell.p is not None else "not tested",
        )
    numbers = [scale * value for value in cell.numbers]
    if len(numbers) > 1:
        axes.plot(numbers, [place + 0.3] * len(numbers), ".", color=GREY, markersize=3)
    spread = None if cell.sd is None else scale * cell.sd
    axes.errorbar(scale * (cell.mean or 0.0), place, xerr=spread, capsize=2, markersize=6, **look)
    return Line2D([], [], linestyle="none", label=label, **look)


def _plain(axes: Axes, lines: Literal["x", "both"]) -> None:
    """Thin grid lines behind what is drawn, and no box."""
    axes.grid(axis=lines, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
