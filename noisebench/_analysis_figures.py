"""The figures of `noisebench.analysis`, and how they and their numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from noisebench.finding import BLUE, ORANGE, Finding, cut, plain, wrapped
from noisebench.metrics import METRICS, score_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from noisebench.analysis import Pair, Point
    from noisebench.finished import FinishedRun

    Pictures = tuple[NDArray[np.uint8] | None, ...]

MOST_BINS = 50
"""A histogram of ranks has a bar a rank up to so many, then so many bars."""
FEW = 20
"""Up to so many classes a matrix is drawn with its names."""


def _pair(pair: Pair) -> str:
    return f"{cut(pair.a)} – {cut(pair.b)}"


def covariances(run: FinishedRun, mean: Tensor, pairs: Sequence[Pair], pictures: Sequence[Pictures] = ()) -> Finding:
    """The top pairs as bars; beside them the whole mean matrix where the classes are few.

    `pictures` are images [H, W, C] of the classes of each pair, put beside the names; None where there is none.
    """
    classes = [cut(name) for name in run.data.classes]
    few = len(classes) <= FEW
    matrix_width = 2.2 + 0.34 * len(classes) if few else 0.0
    height = max(3.4, 1.6 + (0.4 if pictures else 0.3) * len(pairs), matrix_width - 0.9)
    longest = max(len(_pair(pair)) for pair in pairs)
    bars_width = 4.2 + 0.09 * longest
    widths = [0.85] * bool(pictures) + [bars_width] + [matrix_width] * few
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    bars = axes[1 if pictures else 0]
    values = [pair.covariance for pair in pairs]
    bars.barh(range(len(pairs)), values, color=[ORANGE if value < 0 else BLUE for value in values])
    bars.set_yticks(range(len(pairs)), [_pair(pair) for pair in pairs])
    bars.set_ylim(len(pairs) - 0.4, -0.6)
    bars.axvline(0, color="black", linewidth=0.8)
    reach = max(map(abs, values))
    for i, value in enumerate(values):
        side, text = ("right", -4) if value < 0 else ("left", 4), f"{value:.3g}".replace("-", "−")
        bars.annotate(text, (value, i), (side[1], 0), textcoords="offset points", va="center", size=8, ha=side[0])
    room = 0.4 * reach  # for the numbers
    bars.set_xlim(min(0.0, *values) - room * (min(values) < 0), max(0.0, *values) + room * (max(values) > 0))
    bars.xaxis.set_major_locator(MaxNLocator(6))
    bars.set(
        title=f"top {len(pairs)} pairs of classes", xlabel="mean covariance of the logits over the test set (nats²)"
    )
    plain(bars)
    if pictures:
        _beside(axes[0], bars, pictures)
    if few:
        grid = axes[-1]
        shown = mean.numpy().copy()
        np.fill_diagonal(shown, np.nan)
        colours = LinearSegmentedColormap.from_list("signs", [ORANGE, "white", BLUE]).with_extremes(bad="0.85")
        image = grid.imshow(shown, cmap=colours, vmin=-reach, vmax=reach)
        turn = 45 if max(map(len, classes)) > 2 else 0
        grid.set_xticks(range(len(classes)), classes, rotation=turn, ha="right" if turn else "center",
                        rotation_mode="anchor")  # fmt: skip
        grid.set_yticks(range(len(classes)), classes)
        grid.set(title="all pairs (variances left out)")
        figure.colorbar(image, ax=grid, label="mean covariance (nats²)", shrink=0.85)
    figure.suptitle(wrapped(run.title, figure), size=11)
    facts = {"of": "mean over the test set of the covariance of the latent noise", "images": len(run.test_labels)}
    return Finding(("a", "b", "covariance"), [tuple(pair) for pair in pairs], facts, figure)


def _beside(axis: Axes, bars: Axes, pictures: Sequence[Pictures]) -> None:
    """An image of each class of a pair, in the pair's row."""
    axis.set(xlim=(0, 2), ylim=bars.get_ylim())
    axis.set_axis_off()
    for row, images in enumerate(pictures):
        for column, image in enumerate(images):
            if image is not None:
                shown = image if image.shape[2] == 3 else image[..., 0]
                small = OffsetImage(shown, zoom=22 / max(shown.shape[:2]), cmap="gray", interpolation="nearest")
                axis.add_artist(AnnotationBbox(small, (column + 0.5, row), frameon=False, pad=0))


def ranks(run: FinishedRun, reference: FinishedRun, found: Tensor, p_value: float) -> Finding:
    """The histogram of ranks beside what uniform ranks would give."""
    most, count = run.data.num_classes - 1, len(found)
    edges = np.arange(most + 1) + 0.5
    if most > MOST_BINS:
        edges = np.unique(np.linspace(0, most, MOST_BINS + 1).round()) + 0.5
    heights = np.histogram(found.numpy(), edges)[0]
    expected = count * np.diff(edges) / most
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    axis.stairs(expected, edges, baseline=None, color=ORANGE, linestyle="--", linewidth=1.6,
                label="if every rank were as likely")  # fmt: skip
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    theirs = reference.config["label"]
    axis.set(
        xlim=(edges[0], edges[-1]),
        xlabel=f"rank of |cov(true class, {cut(theirs)}'s prediction)| among {most} (1: largest)",
        ylabel="test images",
    )
    chance = "p < 0.001" if p_value < 1e-3 else f"p = {p_value:.3f}"
    axis.set_title(
        f"{wrapped(run.title, figure)}\n"
        f"{wrapped(f'{count} test images that it gets right and {theirs} wrong', figure)}\n"
        f"mean rank {float(found.double().mean()):.2f}; of uniform ranks {(most + 1) / 2:.1f} ({chance}, one-sided)",
        size=10,
    )
    axis.legend(frameon=False, loc="upper right")
    plain(axis)
    mean, middle = float(found.double().mean()), (most + 1) / 2
    facts = {
        "summary": f"mean rank {mean:.2f}, uniform {middle:.1f}, one-sided p = {p_value:.2g}",
        "reference": {key: reference.config[key] for key in ("fingerprint", "method", "label")},
        "images": count,
        "mean_rank": mean,
        "uniform_mean_rank": middle,
        "p_value": p_value,
        "ranks": found.tolist(),
    }
    rows = [
        (int(a + 0.5), int(b - 0.5), int(n), float(e))
        for a, b, n, e in zip(edges[:-1], edges[1:], heights, expected, strict=True)
    ]
    return Finding(("rank_from", "rank_to", "images", "uniform"), rows, facts, figure)


def against(run: FinishedRun, setting: str, points: Sequence[Point]) -> Finding:
    """Score and NLL against a setting, that of the run marked."""
    name = score_of(run.result["metrics"]["last"])
    own, own_metrics = run.hparams.get(setting), run.result["metrics"]["last"]
    figure = Figure(figsize=(8.6, 3.7), layout="constrained")
    axes = figure.subplots(1, 2)
    points = sorted(points)
    x = [point.value for point in points]
    for axis, key, index in zip(axes, (name, "nll"), (1, 2), strict=True):
        factor = 100 if METRICS[key].percent else 1
        axis.plot(x, [factor * point[index] for point in points], color=BLUE, marker="o", linewidth=1.6,
                  label="changed at evaluation alone")  # fmt: skip
        if isinstance(own, (int, float)) and own > 0:
            axis.plot(own, factor * own_metrics[key], marker="D", markersize=9, markerfacecolor="none",
                      markeredgewidth=1.6, color=ORANGE, linestyle="none",
                      label=f"as it was evaluated ({setting} {own:g})")  # fmt: skip
        if min(x) > 0 and max(x) / min(x) >= 10:
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(x)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        title = METRICS[key].title
        axis.set(xlabel=setting, ylabel=f"test {title} (%)" if factor == 100 else f"test {title} (nats)")
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
        plain(axis)
    axes[0].legend(frameon=False, fontsize=8)
    about = f"{len(run.test_labels):,} test images; no way to choose {setting}: noisebench tune does that"
    figure.suptitle(f"{wrapped(run.title, figure)}\n{about}", size=10.5)
    facts = {"setting": setting, "own": own, "at": "evaluation alone, the weights as they are", "score": name}
    return Finding((setting, name, "nll"), [tuple(point) for point in points], facts, figure)
