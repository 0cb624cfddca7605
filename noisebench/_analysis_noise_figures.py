"""The figures of `noisebench.analysis` that set what a run learned of the noise beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from noisebench._noise_drawing import transition_figure
from noisebench.evaluation import ECE_BINS
from noisebench.finding import BLUE, ORANGE, Finding, cut, plain, wrapped

if TYPE_CHECKING:
    from noisebench.analysis import Detection, Transitions
    from noisebench.finished import FinishedRun

MOST_NUMBERS = 12
"""Up to so many classes the cells of a T hold their numbers."""
MOST_STORED = 100
"""Up to so many classes the JSON file holds the matrices."""
ABOVE: dict[str, Any] = {
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "ncols": 2,
    "frameon": False,
    "fontsize": 9,
}
RECALLS = (0.5, 0.9, 0.99)
"""Where a precision-recall curve is read off for the table."""


def transitions(run: FinishedRun, found: Transitions) -> Finding:
    """T asked, realised and learned as heat maps; the table has errors of the learned T and of the identity."""
    names = [cut(name) for name in run.data.classes]
    names = ["absent", "present"] if run.data.multilabel else names
    names += ["outlier"] * (len(found.learned) - len(names))
    panels = {"T asked": found.asked, "T realised (training split)": found.realised, "T learned": found.learned}
    figure = transition_figure(panels, names, MOST_NUMBERS)
    rows = [
        (name, found.error(matrix, found.asked), found.error(matrix, found.realised))
        for name, matrix in (("learned", found.learned), ("identity", np.eye(len(found.learned))))
    ]
    (_, asked, realised), (_, at_asked, at_realised) = rows
    summary = (
        f"mean absolute error of the learned T: {asked:.3f} against the identity's {at_asked:.3f} to the T asked, "
        f"{realised:.3f} against {at_realised:.3f} to the T realised"
    )
    figure.suptitle(f"{wrapped(run.title, figure)}\n{wrapped(summary, figure)}", size=11)
    facts: dict[str, Any] = {"of": "T[i, j] = P(noisy j | true i); errors are means over the cells", "summary": summary}
    if len(names) <= MOST_STORED:
        facts["states"] = names
        for key, matrix in found._asdict().items():  # JSON has no NaN
            facts[key] = [[None if np.isnan(p) else p for p in row] for row in matrix.tolist()]
    return Finding(("T", "error_to_asked", "error_to_realised"), rows, facts, figure)


def inliers(run: FinishedRun, curves: Sequence[tuple[FinishedRun, Tensor, Tensor]]) -> Finding:
    """Precision against recall of telling test inliers from outliers; for each run its curve, that of `run` first."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis = figure.subplots()
    rows: list[tuple[Any, ...]] = []
    drawn, share = [], float(curves[0][1][-1])
    for (one, precision, recall), (colour, style) in zip(curves, ((BLUE, "-"), (ORANGE, "--")), strict=False):
        label, last = one.config["label"], one.result["metrics"]["last"]
        area, roc = last["inlier_ap"], last["inlier_auc"]
        axis.plot(
            recall, precision, style, color=colour, linewidth=1.8, label=f"{cut(label)}: AP {area:.4f}, AUC {roc:.4f}"
        )
        read = [float(precision[int((recall >= at).nonzero()[0])]) for at in RECALLS]
        rows.append((label, area, roc, *read))
        about = {"run": label, "fingerprint": one.config["fingerprint"]}
        drawn.append(about | {"recall": recall.tolist(), "precision": precision.tolist()})
    told = f"no skill: the share of inliers, {share:.3f}"
    axis.axhline(share, color="0.4", linestyle=":", linewidth=1.4, label=told)
    low = min(float(precision.min()) for _, precision, _ in curves)
    axis.set(xlim=(0, 1), ylim=(max(0.0, low - 0.05), 1.01), xlabel="recall of inliers", ylabel="precision")
    inside, source = len(run.test_labels), run.config["noise"]["source"]
    summary = f"{inside:,} test images of its classes among {round(inside / share) - inside:,} of {source}"
    axis.set_title(f"{wrapped(run.title, figure)}\n{wrapped(summary, figure)}", size=10)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="best")
    plain(axis)
    columns = ("run", "ap", "auc", *(f"p_at_r{at:g}" for at in RECALLS))
    of = "telling test images of the classes from outliers; p_at_r0.5: precision at recall 0.5"
    facts = {"of": of, "inliers": inside, "share": share}
    return Finding(columns, rows, {**facts, "summary": summary, "curves": drawn}, figure)


def scores(run: FinishedRun, found: Detection) -> Finding:
    """Histograms of the scores of right and of wrong labels; beside them, for probabilities, how often they hold."""
    values, wrong = found.scores.numpy(), found.wrong.numpy()
    probable = found.ece is not None
    edges = np.histogram_bin_edges(values, ECE_BINS, (0.0, 1.0) if probable else None)
    at = np.digitize(values, edges[1:-1], right=True)
    bad, total, sums = (np.bincount(at, weights, ECE_BINS) for weights in (wrong, None, values))
    filled = total > 0
    mean, share = (np.divide(part, total, np.full(ECE_BINS, np.nan), where=filled) for part in (sums, bad))

    figure = Figure(figsize=(9.8 if probable else 6.2, 4.4), layout="constrained")
    axes = figure.subplots(1, 1 + probable, width_ratios=(1.5, 1.0)[: 1 + probable], squeeze=False)[0]
    width = np.diff(edges) * 0.42
    for heights, name, colour, left in ((total - bad, "right", BLUE, 0.06), (bad, "wrong", ORANGE, 0.52)):
        start = edges[:-1] + left * np.diff(edges)
        label = f"labels that are {name} ({int(heights.sum()):,})"
        axes[0].bar(start, heights, width, align="edge", color=colour, label=label)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set(xlabel="noise score", ylabel="training labels (log scale)", ylim=(0.7, None))
    axes[0].legend(**ABOVE)
    plain(axes[0])
    summary = f"AUC {found.auc:.3f}"
    if probable:
        summary += f", ECE {found.ece:.3f} ({ECE_BINS} bins)"
        axes[0].set(xlabel="P(wrong) as the method has it")
        axes[1].plot((0, 1), (0, 1), color="0.4", linestyle="--", linewidth=1.2, label="calibrated")
        axes[1].scatter(mean[filled], share[filled], 12 + 160 * total[filled] / total.max(), color=BLUE, alpha=0.8,
                        edgecolor="none", label="a bin; area: its labels")  # fmt: skip
        room = (-0.05, 1.05)
        axes[1].set(xlabel="mean P(wrong) in a bin", ylabel="share that is wrong", xlim=room, ylim=room)
        axes[1].legend(**ABOVE)
        plain(axes[1])
    about = f"noise scores of {len(wrong):,} training labels, {wrong.mean():.1%} of them wrong: {summary}"
    figure.suptitle(f"{wrapped(run.title, figure)}\n{wrapped(about, figure)}", size=10.5)
    rows = [
        (float(low), float(high), int(n - b), int(b), float(m) if n else None)
        for low, high, n, b, m in zip(edges[:-1], edges[1:], total, bad, mean, strict=True)
    ]
    facts = {"labels": len(wrong), "wrong": int(wrong.sum()), "auc": found.auc, "ece": found.ece, "summary": about}
    return Finding(("score_from", "score_to", "right", "wrong", "mean_score"), rows, facts, figure)
