"""The figures of a report. Each gives inline SVG and leaves its numbers to the tables beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from noisebench._report_ranks import Separation
from noisebench._report_runs import Line, Reliability, thinned
from noisebench._report_svg import INK, STYLE, inline, look
from noisebench.finding import cut
from noisebench.metrics import METRICS
from noisebench.table import Table
from noisebench.table_cells import ALPHA, Column, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noisebench.config import Benchmark, Noise

SIZE = (4.6, 3.1)  # inches; the page shows it in about its own size, so that text stays legible on a phone
FEW_BANDS = 4
"""Up to so many methods every band of seeds is visible; of more, that of a method picked in the legend."""
BAND_POINTS = 30
"""So many points has a band that is not visible from the start."""
MARKED = 12
"""Up to so many methods lines bear markers; of more they hide each other."""
LEAST = 10
"""A bin of fewer predictions says nothing of calibration, and is not drawn."""


def _panel(xlabel: str, ylabel: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axis = figure.add_axes((0.58 / size[0], 0.5 / size[1], 1 - 0.7 / size[0], 1 - 0.62 / size[1]))
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axis


def epochs(name: str, title: str, ylabel: str, lines: Mapping[int, Line], methods: Sequence[str]) -> str:
    """A quantity in [0, 1] over the epochs in %, a line a method: the mean over seeds, and from their least to most.

    Args:
        lines: by the method's place in `methods`.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure, axis = _panel("epoch", ylabel)
        for i, line in lines.items():
            style = look(i)
            if line.seeds > 1:
                at = thinned(range(len(line.epochs)), BAND_POINTS if len(lines) > FEW_BANDS else len(line.epochs))
                low, high = ([100 * values[k] for k in at] for values in (line.low, line.high))
                axis.fill_between(
                    [line.epochs[k] for k in at], low, high, color=style["color"], alpha=0.18, linewidth=0, gid=f"b{i}"
                )
            every = (i * 7 % 10 / 50, 0.2)  # where lines meet their markers should not
            axis.plot(
                line.epochs,
                [100 * v for v in line.mean],
                markevery=every if len(lines) <= MARKED and len(line.epochs) > 1 else None,
                gid=f"s{i}",
                **(style if len(lines) <= MARKED or len(line.epochs) == 1 else {**style, "marker": ""}),
            )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axis.margins(x=0.02)
        told = _ends(lines, methods)
        return inline(figure, name, title, told, [one_line(m) for m in methods])


def _ends(lines: Mapping[int, Line], methods: Sequence[str]) -> str:
    last = {i: "–" if math.isnan(line.mean[-1]) else f"{100 * line.mean[-1]:.1f}" for i, line in lines.items()}
    ends = [f"{one_line(methods[i])} {text}" for i, text in last.items()]
    return f"At the last epoch, in %: {', '.join(ends)}."


def calibration(name: str, title: str, lines: Mapping[int, Reliability], methods: Sequence[str]) -> str:
    """Reliability diagram: accuracy of test predictions by their confidence; on the diagonal they are calibrated."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axis = _panel("confidence", "accuracy", (SIZE[0], 3.4))
        axis.plot([0, 1], [0, 1], color=INK, alpha=0.5, linestyle=(0, (2, 2)), linewidth=1)
        for i, line in lines.items():
            drawn = [(c, a) for c, a, n in zip(line.confidence, line.accuracy, line.count, strict=True) if n >= LEAST]
            if drawn:
                style = look(i) if len(lines) <= MARKED or len(drawn) == 1 else {**look(i), "marker": ""}
                axis.plot(*zip(*drawn, strict=True), gid=f"s{i}", **style)
        axis.set(xlim=(0, 1.01), ylim=(-0.01, 1.01))
        gaps = [f"{one_line(methods[i])} {_gap(line):+.3f}" for i, line in lines.items()]
        told = f"Mean confidence less accuracy (above 0: too sure): {', '.join(gaps)}."
        return inline(figure, name, title, told, [one_line(m) for m in methods])


def _gap(line: Reliability) -> float:
    total = sum(line.count)
    return sum(n * (c - a) for n, c, a in zip(line.count, line.confidence, line.accuracy, strict=True)) / total


# ------------------------------------------------------------------------------------------ against the noise rate


class Rates(NamedTuple):
    """Columns of a dataset that differ in the rate of one kind of noise: (rate, column), the lowest first."""

    dataset: str
    kind: str
    columns: list[tuple[float, Column]]


def families(benchmark: Benchmark) -> tuple[list[Rates], list[Rates]]:
    """The columns that make a curve over the noise rate, and those of a kind with one rate alone.

    Clean labels are the rate 0 of every kind.
    """
    kinds: dict[str, list[tuple[float, Noise]]] = {}
    clean = [noise for noise in benchmark.noise if noise.kind == "none" or noise.rate == 0]
    for noise in benchmark.noise:
        if noise.rate and noise.kind != "none":
            key = f"{noise.kind} {sorted((k, str(v)) for k, v in noise.options.items())}"
            kinds.setdefault(key, []).append((noise.rate, noise))
    several: list[Rates] = []
    single: list[Rates] = []
    for dataset in benchmark.datasets:
        for members in kinds.values():
            found = sorted({r: Column(dataset, n.label) for r, n in [(0.0, c) for c in clean[:1]] + members}.items())
            label = one_line(_without_rate(members[0][1]))
            (several if len(found) > 1 else single).append(Rates(dataset, label, found))
    return several, single


def _without_rate(noise: Noise) -> str:
    """``symmetric (excl. true)`` of ``symmetric 40% (excl. true)``."""
    rate = f"{100 * (noise.rate or 0):g}%"
    return " ".join(word for word in noise.label.split() if word != rate)


def against_rate(name: str, title: str, table: Table, rates: Rates, methods: Sequence[str]) -> str:
    """The score that ranks against the noise rate, a line a method: mean and sd over seeds."""
    from matplotlib import rc_context

    metric = METRICS[table.ranking_of(rates.columns[0][1]).metric]
    scale = 100.0 if metric.percent else 1.0
    with rc_context(STYLE):
        figure, axis = _panel("noise rate asked (%)", f"{metric.title}{' (%)' if metric.percent else ''}")
        told = []
        for i, method in enumerate(methods):
            cells = [(rate, table.cells[method, c, table.ranking_of(c)]) for rate, c in rates.columns]
            points = [(100 * rate, cell.mean, cell.sd or 0.0) for rate, cell in cells if cell.mean is not None]
            if not points:
                continue
            x, mean, sd = zip(*points, strict=True)
            y = [scale * v for v in mean]
            if any(sd):
                low = [v - scale * s for v, s in zip(y, sd, strict=True)]
                high = [v + scale * s for v, s in zip(y, sd, strict=True)]
                axis.fill_between(x, low, high, color=look(i)["color"], alpha=0.18, linewidth=0, gid=f"b{i}")
            axis.plot(x, y, gid=f"s{i}", **look(i))
            told.append(f"{one_line(method)} {' '.join(f'{v:.1f}' for v in y)}")
        axis.set_xticks([100 * rate for rate, _ in rates.columns])
        return inline(figure, name, title, "; ".join(told), [one_line(m) for m in methods])


# ---------------------------------------------------------------------------------------------- critical difference


def critical_difference(name: str, title: str, found: Separation) -> str:
    """Mean ranks on a line, with a bar over methods that are not told apart (Demšar 2006, Fig. 1)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from scikit_posthocs import critical_difference_diagram

    names = {
        method: f"{i}\0{cut(one_line(method))}" for i, method in enumerate(found.ranks)
    }  # shortened ones may be alike
    ranks = {names[method]: rank for method, rank in found.ranks.items()}
    p_values = found.p_values.rename(index=names, columns=names)
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True}):
        figure = Figure(figsize=(7.6, 0.9 + 0.22 * (len(ranks) / 2 + _levels(found))))
        axis = figure.add_axes((0.3, 0.02, 0.4, 0.74))
        ink = {"color": INK}
        drawn = critical_difference_diagram(
            ranks,
            p_values,
            ax=axis,
            alpha=ALPHA,
            label_fmt_left="{label}  {rank:.2f}",
            label_fmt_right="{rank:.2f}  {label}",
            label_props={"fontsize": 9},
            elbow_props={**ink, "linewidth": 0.8},
            marker_props={**ink, "s": 14},
            text_h_margin=0.02 * (max(ranks.values()) - min(ranks.values())),
            crossbar_props={"color": INK, "linewidth": 3.5, "alpha": 0.55, "solid_capstyle": "round"},
        )
        for label in drawn["labels"]:
            label.set_text(_plain(label.get_text()))
        low, high = min(ranks.values()), max(ranks.values())
        axis.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low) + 1e-6)
        axis.set_xlabel("mean rank (1 is best)")
        axis.xaxis.set_label_position("top")
        told = ", ".join(f"{one_line(m)} {r:.2f}" for m, r in sorted(found.ranks.items(), key=lambda pair: pair[1]))
        return inline(figure, name, title, f"Mean ranks: {told}.", tight=True)


def _plain(label: str) -> str:
    """Without the number that keeps names apart."""
    head, _, name = label.partition("\0")
    return name if head.isdigit() else f"{head.rpartition('  ')[0]}  {name}"


def _levels(found: Separation) -> int:
    """About how many bars are drawn above each other."""
    return 1 + min(len(found.ranks) // 2, found.pairs)
