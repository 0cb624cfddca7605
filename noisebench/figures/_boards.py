"""Figures of a board: Sukhbaatar et al. 2014, Fig. 2a, 2b, 4a; Collier et al., CVPR 2021, Table 9.

Numbers are the table's: the score (accuracy or gAP) of a column at the epoch that ranks, mean and sd over the seeds.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from noisebench import dataset_names
from noisebench.errors import UserError
from noisebench.finding import LINES, MARKERS, Finding, drawn, plain, wrapped
from noisebench.grid_figure import sizes_of
from noisebench.metrics import METRICS, RULES
from noisebench.table import Table
from noisebench.table_cells import Cell, Column, Kind, one_line

LEVEL = re.compile(r"(\d+(?:\.\d+)?)%")
CLEAN = "clean"
OPEN_SET = "open-set"
PER_ROW = 3
LEGEND = 36
"""Characters a line of a legend."""
COUNTS = ("train_samples", "eval_samples")


class Point(NamedTuple):
    """A point of a line: where it is, what its axis says there, and its cell."""

    x: float
    tick: str
    cell: Cell


@dataclass
class Panel:
    """Lines by name over one axis."""

    title: str
    xlabel: str
    lines: dict[str, list[Point]]


@drawn
def error_by_size(table: Table) -> Finding:
    """Test error against the number of training images (Sukhbaatar et al., Fig. 2a): a panel a noise.

    Args:
        table: of a board with several sizes of a dataset (``name@n``).

    Returns:
        A row a point: panel, line (the method), training images, error and its sd over the seeds in per cent, how many
        seeds are finished, and of how many.

    Raises:
        UserError: no dataset has several sizes, the whole set's is not known, or no cell is finished.
    """
    several = sizes_of(table)
    if not several:
        raise UserError(f"{table.title}: each dataset has one size; error-by-size needs several, as name@n")
    panels = []
    for noise in dict.fromkeys(column.noise for column in table.columns):
        for plain_name, names in several.items():
            at = {name: _images(name) for name in names if Column(name, noise) in table.columns}
            lines = {
                method: [
                    Point(size, f"{size:,}", _cell(table, method, Column(name, noise))) for name, size in at.items()
                ]
                for method in table.methods
            }
            panels.append(Panel(f"{noise} on {plain_name}", "training images", lines))
    return _lines(table, panels, "training_images", logarithmic=True)


@drawn
def error_by_noise(table: Table) -> Finding:
    """Test error against the noise level (Sukhbaatar et al., Fig. 2b): a panel a dataset and kind of noise.

    The level is the rate as it was asked for, which the noise's name has; clean labels are level 0 of every kind.

    Args:
        table: of a board with several rates of a noise.

    Returns:
        A row a point, as `error_by_size`, with the level in per cent.

    Raises:
        UserError: no kind of noise has several rates, or no cell is finished.
    """
    panels = _by_level(table, lambda kind: True, lambda dataset, level: f"{level:g}")
    if not panels:
        raise UserError(f"{table.title}: no kind of noise has several rates; error-by-noise needs them")
    return _lines(table, panels, "noise_level_percent")


@drawn
def outlier_error(table: Table) -> Finding:
    """Test error against the outliers in the training set (Sukhbaatar et al., Fig. 4a and 4c).

    Their share is the rate of open-set noise, and clean labels are none; where the size of the training set is known,
    the axis has their number too, those of a validation split included. Rows with and without an outlier model are the
    board's.

    Args:
        table: of a board with several rates of open-set noise.

    Returns:
        A row a point, as `error_by_size`, with the share of outliers in per cent, and last how many there are for each
        other image, the paper's N_out / N_in.

    Raises:
        UserError: no open-set noise of several rates, or no cell is finished.
    """

    def tick(dataset: str, level: float) -> str:
        try:
            return f"{level:g}\n({round(level / 100 * _images(dataset)):,})"
        except UserError:
            return f"{level:g}"

    panels = _by_level(table, lambda kind: kind.startswith(OPEN_SET), tick)
    if not panels:
        raise UserError(f"{table.title}: no open-set noise of several rates; outlier-error needs it")
    for panel in panels:
        panel.xlabel = "outliers in the training set (%; images)"
    made = _lines(table, panels, "outliers_percent")
    at = made.columns.index("outliers_percent")
    made.columns = (*made.columns, "outliers_per_inlier")
    made.rows = [(*row, row[at] / (100 - row[at]) if row[at] < 100 else math.inf) for row in made.rows]
    return made


@drawn
def samples_of_rows(table: Table, *, settings: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Test score against Monte-Carlo samples of rows that differ in these alone (Collier et al., Table 9).

    What varies is said by the axis: samples of training and evaluation together, as in the paper, or of one alone.

    Args:
        table: of a board with such rows.
        settings: row -> its settings, defaults included, and under "method" its method.

    Returns:
        A row a point: panel, line, samples, score and its sd over the seeds in per cent, finished seeds, of how many.

    Raises:
        UserError: no rows differ in their samples alone, or no cell is finished.
    """
    families: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for varied in (COUNTS, COUNTS[:1], COUNTS[1:]):
        for row in table.methods:
            own = settings.get(row, {})
            counts = {own.get(key) for key in varied}
            count = counts.pop()
            if count is None or counts:
                continue
            rest = json.dumps({k: v for k, v in own.items() if k not in varied}, sort_keys=True, default=str)
            families.setdefault((" and ".join(varied), rest), []).append((int(count), row))
    found = {key: sorted(rows) for key, rows in families.items() if len({count for count, _ in rows}) > 1}
    together = {row for (axis, _), rows in found.items() if " and " in axis for _, row in rows}
    found = {k: rows for k, rows in found.items() if " and " in k[0] or not {row for _, row in rows} <= together}
    if not found:
        raise UserError(f"{table.title}: no rows differ in {' or '.join(COUNTS)} alone; samples needs such rows")
    panels = []
    for column in table.columns:
        for axis in dict.fromkeys(axis for axis, _ in found):
            own = {rest: rows for (name, rest), rows in found.items() if name == axis}
            methods = [json.loads(rest).get("method", "") for rest in own]
            lines = {
                method if methods.count(method) == 1 else rows[0][1]: [
                    Point(count, f"{count:,}", _cell(table, row, column)) for count, row in rows
                ]
                for method, rows in zip(methods, own.values(), strict=True)
            }
            label = "Monte-Carlo samples, training and evaluation"
            label = label if " and " in axis else f"{axis} alone"
            panels.append(Panel(f"{column.noise} on {column.dataset}", label, lines))
    return _lines(table, panels, "samples", logarithmic=True, error=False)


# ---------------------------------------------------------------------------------------------- what they share


def _cell(table: Table, method: str, column: Column) -> Cell:
    """The score of a method in a column; a cell without numbers where nothing is finished."""
    kind = Kind(table.ranking.rule, table.scores[column])
    seeds = len(table.seeds[column])
    return table.cells.get((method, column, kind), Cell((), seeds, 0, seeds))


def _images(dataset: str) -> int:
    """How many training images a dataset has, as a board names it.

    Raises:
        UserError: it names no number, and its file has no SIZE.
    """
    name, size = dataset_names.sized(dataset)
    if size is None:
        known = dataset_names.dataset_of(name).constants.get("SIZE")
        size = known.get("train") if isinstance(known, dict) else None
    if not isinstance(size, int):
        raise UserError(f"dataset '{dataset}': how many training images it has is not known; write {name}@N")
    return size


def _by_level(table: Table, wanted: Callable[[str], bool], tick: Callable[[str, float], str]) -> list[Panel]:
    """A panel a dataset and kind of noise with two levels or more; clean labels are level 0 of each."""
    panels = []
    for dataset in dict.fromkeys(column.dataset for column in table.columns):
        kinds: dict[str, dict[float, Column]] = {}
        clean = {0.0: Column(dataset, CLEAN)} if Column(dataset, CLEAN) in table.columns else {}
        for column in table.columns:
            level = LEVEL.search(column.noise)
            if column.dataset == dataset and level is not None:
                kind = " ".join(LEVEL.sub("", column.noise, count=1).split())
                kinds.setdefault(kind, dict(clean))[float(level[1])] = column
        for kind, at in kinds.items():
            if not wanted(kind) or len(at) < 2:
                continue
            lines = {
                method: [Point(x, tick(dataset, x), _cell(table, method, at[x])) for x in sorted(at)]
                for method in table.methods
            }
            panels.append(Panel(f"{kind} on {dataset}", "noise level (%)", lines))
    return panels


def _lines(table: Table, panels: list[Panel], x: str, logarithmic: bool = False, error: bool = True) -> Finding:
    """The panels as a figure: means with bands of one sd, and what is incomplete marked and said."""
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    there = [point.cell for point in points if point.cell.mean is not None]
    if not there:
        raise UserError(f"{table.title}: no cell of this figure is finished")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    across = 2 if len(panels) == 4 else min(len(panels), PER_ROW)
    down = -(-len(panels) // across)
    keys = {name: textwrap.fill(one_line(name), LEGEND) for name in names}
    longest = max(len(line) for key in keys.values() for line in key.split("\n"))
    told = sum(key.count("\n") + 1 for key in keys.values())  # lines of the legend
    size = (1.2 + 3.3 * across + 0.085 * longest, max(1.0 + 2.9 * down, 0.4 + 0.19 * told))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    rows: list[tuple[Any, ...]] = []
    handles: dict[str, Line2D] = {}
    for panel, axis in zip(panels, axes.flat, strict=False):
        rows += _draw(panel, axis, names, handles, logarithmic, error)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    scores = {METRICS[table.scores[column]].title for column in table.columns}
    score = scores.pop() if len(scores) == 1 else "score"
    unit = f"test {score} (%)" if not error else "test error (%)" if score == "accuracy" else f"100 − {score} (%)"
    for axis in axes[:, 0]:
        axis.set_ylabel(unit)
    if axes[0, 0].get_ylim()[0] < 0:  # a band may go there, an error cannot
        axes[0, 0].set_ylim(bottom=0)
    shown = [name for name in names if name in handles]
    legend = figure.legend([handles[name] for name in shown], list(map(str, range(len(shown)))),
                           loc="outside right center", frameon=False, fontsize=9, handlelength=3.2)  # fmt: skip
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(keys[name])  # as a label one that begins with _ would be left out
    notes = _notes([point.cell for point in points])
    notes += [f"not run: {', '.join(map(one_line, column))} ({why})" for column, why in table.unavailable.items()]
    head = f"{one_line(table.title)}; at {RULES[table.ranking.rule]}"
    figure.suptitle("\n".join(wrapped(line, figure) for line in (head, "; ".join(notes))), size=10)
    column = "error_percent" if error else "score_percent"
    facts = {"epoch": RULES[table.ranking.rule], "score": score, "notes": notes, "summary": "; ".join(notes)}
    columns = ("panel", "x_is", "line", x, column, "sd", "seeds_finished", "seeds")
    return Finding(columns, rows, facts, figure)


def _draw(
    panel: Panel, axis: Axes, names: list[str], handles: dict[str, Line2D], logarithmic: bool, error: bool
) -> list[tuple[Any, ...]]:
    """Draw a panel; `handles` gets a line of each name. The rows of its numbers."""
    rows: list[tuple[Any, ...]] = []
    ticks: dict[float, str] = {}
    for name, line in panel.lines.items():
        look = names.index(name)
        colour, marker = LINES[look % len(LINES)], MARKERS[look % len(MARKERS)]
        # Lines that lie on each other are told apart, and so are the first and the ninth.
        style = ("-", "--", "-.", ":")[(look + look // len(LINES)) % 4]
        drawn_points = []
        for point in line:
            cell = point.cell
            ticks[point.x] = point.tick
            value = None if cell.mean is None else 100 * (1 - cell.mean) if error else 100 * cell.mean
            sd = None if cell.sd is None else 100 * cell.sd
            rows.append((panel.title, panel.xlabel, name, point.x, value, sd, len(cell.numbers), cell.expected))
            if value is not None:
                drawn_points.append((point.x, value, 0.0 if sd is None else sd, cell.complete))
        if not drawn_points:
            continue
        xs, ys, sds, complete = zip(*drawn_points, strict=True)
        if any(sds):
            low, high = ([y + sign * sd for y, sd in zip(ys, sds, strict=True)] for sign in (-1, 1))
            axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
        (handles[name],) = axis.plot(xs, ys, style, color=colour, linewidth=1.6, marker=marker, markersize=5)
        unfinished = [(px, py) for px, py, whole in zip(xs, ys, complete, strict=True) if not whole]
        if unfinished:
            axis.plot(*zip(*unfinished, strict=True), marker, color=colour, markerfacecolor="white", markersize=6)
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_title(one_line(panel.title), size=10)
    axis.set(xlabel=panel.xlabel)
    axis.tick_params(labelleft=True)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    plain(axis)
    return rows


def _notes(cells: list[Cell]) -> list[str]:
    """What must be said of the points beside their place."""
    most, finished = max(cell.expected for cell in cells), [cell for cell in cells if cell.mean is not None]
    one = all(len(cell.numbers) == 1 for cell in finished)
    notes = ["one finished seed, so there is no sd" if one else f"mean ± sd over {most} seeds"]
    partial = sum(not cell.complete for cell in finished)
    if partial:
        notes.append(f"open markers ({partial}): not all seeds are finished")
    if len(finished) < len(cells):
        notes.append(f"{len(cells) - len(finished)} of {len(cells)} points have no finished run")
    return notes
