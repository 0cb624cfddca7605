"""Training losses of right and of wrong labels: Arazo et al., ICML 2019, Fig. 1 and 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import beta, norm

from noisebench.errors import UserError
from noisebench.figures._shared import legend_of, number, titles, told_apart
from noisebench.finding import BLUE, ORANGE, Finding, drawn, plain, wrapped
from noisebench.nn import BetaMixture, GaussianMixture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from noisebench.finished import FinishedRun

QUARTILES = ("q25", "median", "q75")
SIDES = {"right": BLUE, "wrong": ORANGE}
PER_ROW = 4
FLATTEST = 1e-6
"""Losses that differ by less, in nats (relative to the largest, if that is above 1), hold nothing to fit."""
MOST_BINS = 1000


@drawn
def loss_curves(*runs: FinishedRun) -> Finding:
    """Cross-entropy of rightly and of wrongly labelled training images over the epochs (Arazo et al., Fig. 1).

    Lines are medians, shaded areas go from the first to the third quartile; a panel a run. An epoch without a finite
    number is a gap.

    Args:
        runs: trained with ``recipe.record_losses=true``.

    Returns:
        A row an epoch of each run: run (its label; its title where several have one), epoch, and the quartiles of
        both in nats.

    Raises:
        UserError: no run, or one whose losses were not recorded.
    """
    names, shared = titles(runs, 34)
    across = min(len(runs), PER_ROW)
    down = -(-len(runs) // across)
    figure = Figure(figsize=(max(5.2, 0.7 + 3.4 * across), 1.2 + 2.8 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    rows: list[tuple[Any, ...]] = []
    for run, label, name, axis in zip(runs, told_apart(runs), names, axes.flat, strict=False):
        epochs, found = _recorded(run)
        for side, colour in SIDES.items():
            low, middle, high = (found[f"{side}.{quartile}"] for quartile in QUARTILES)
            if not np.isfinite(middle).any():
                continue
            axis.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
            mark = "o" if len(epochs) == 1 else ""  # a line of one point is not seen
            style = "-" if side == "right" else "--"
            axis.plot(epochs, middle, style, color=colour, linewidth=1.8, marker=mark, label=f"{side} labels")
        axis.set_title(name, size=10)
        axis.set(xlabel="epoch", xlim=(epochs[0], max(epochs[-1], epochs[0] + 1)))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        plain(axis)
        values = [found[f"{side}.{quartile}"].tolist() for side in SIDES for quartile in QUARTILES]
        rows += [(label, *row) for row in zip(epochs, *values, strict=True)]
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    axes[0, 0].set_ylim(bottom=0)
    for axis in axes[:, 0]:
        axis.set_ylabel("cross-entropy (nats)")
    handles = legend_of(axes.flat)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    told = "training images under the labels as given; line: median, area: quartiles"
    figure.suptitle("\n".join(filter(None, (wrapped(shared, figure), wrapped(told, figure)))), size=10)
    columns = ("run", "epoch", *(f"{side}_{quartile}" for side in SIDES for quartile in QUARTILES))
    of = "cross-entropy in nats of training labels as given, in eval mode"
    last = {row[0]: row for row in rows}.values()  # of each run
    told = "; ".join(f"{row[0]}, epoch {row[1]}: median {row[3]:.3f} of right, {row[6]:.3f} of wrong" for row in last)
    return Finding(columns, rows, {"of": of, "summary": f"{told} labels (nats)"}, figure)


def _recorded(run: FinishedRun) -> tuple[list[int], dict[str, NDArray[np.float64]]]:
    """The epochs of a run, and "right.q25" and so on over them; NaN where there is none."""
    lines = run.history()
    found = {
        f"{side}.{quartile}": np.array(
            [_number(line["metrics"].get(f"train.loss_{side}.{quartile}")) for line in lines], dtype=np.float64
        )
        for side in SIDES
        for quartile in QUARTILES
    }
    if not any(np.isfinite(values).any() for values in found.values()):
        known = any(f"train.loss_{side}.median" in line["metrics"] for line in lines for side in SIDES)
        if known:
            raise UserError(f"{run.folder.name}: its recorded losses are all NaN")
        why = "train it with --set recipe.record_losses=true"
        if not run.noisy.known:
            why = f"nobody knows which labels are wrong under noise {run.noisy.description}"
        raise UserError(f"{run.folder.name}: its losses were not recorded; {why}")
    return [line["epoch"] for line in lines], found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


@drawn
def loss_histogram(run: FinishedRun, *, bins: int = 50) -> Finding:
    """Training losses of right and of wrong labels, and the mixtures fitted to them (Arazo et al., Fig. 2).

    The losses of the weights at the end, without augmentation, trimmed to their 5th to 95th percentile and scaled to
    [0, 1] as the authors do (see `noisebench.nn.BetaMixture`). Areas of right and wrong together are 1; so are those of
    the components, each times its weight.

    Args:
        run: whose wrong labels are known.
        bins: bars of the histogram, 2 to 1000.

    Returns:
        A row a bar: its edges, the densities of right and wrong labels, and those of the four components at its middle.
        The facts have both fits, their mean log-likelihood in nats and how well each tells wrong labels (AUC).

    Raises:
        UserError: nobody knows which labels are wrong, an image has several, or the losses are NaN or do not differ.
    """
    bins, wrong, losses = number("bins", bins, 2, MOST_BINS), run.wrong().numpy(), run.losses()
    if not bool(losses.isfinite().all()):
        raise UserError(f"{run.config['label']}: its training losses are not finite; the training has diverged")
    if float(losses.max() - losses.min()) <= FLATTEST * max(1.0, float(losses.max())):
        raise UserError(f"{run.config['label']}: its training losses do not differ: there is nothing to fit")
    betas, gaussians = BetaMixture().fit(losses), GaussianMixture().fit(losses)
    low, width = float(betas.low), float(betas.width)
    x = (losses.numpy() - low) / width
    kept = (x >= -1.00001e-5 / width) & (x <= 1 + 1e-9)  # the least that is fitted is 1e-5 nats below `low`
    edges = np.linspace(0, 1, bins + 1)
    middles, area = (edges[1:] + edges[:-1]) / 2, kept.sum() / bins
    right, bad = (np.histogram(x[kept & side].clip(0, 1), edges)[0] / area for side in (~wrong, wrong))

    def components(at: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        a, b, part = (value.tolist() for value in (betas.alpha, betas.beta, betas.weight))
        mean, sd, share = (v.tolist() for v in (gaussians.mean, gaussians.variance.sqrt(), gaussians.weight))
        both = enumerate(("clean", "noisy"))
        return {
            f"{mixture}_{side}": density
            for i, side in both
            for mixture, density in (
                ("beta", part[i] * beta.pdf(at, a[i], b[i])),
                ("gaussian", share[i] * norm.pdf(at, mean[i], sd[i])),
            )
        }

    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    fine, summary, facts = np.linspace(0.002, 0.998, 499), [], {}
    seen = np.where(x[kept] <= 0, 0.001, x[kept].clip(1e-4, 1 - 1e-4))  # the observations as they are fitted
    fitted, curves = components(seen), components(fine)
    models: tuple[tuple[str, BetaMixture | GaussianMixture], ...] = (("beta", betas), ("gaussian", gaussians))
    for axis, (mixture, model) in zip(axes, models, strict=True):
        likelihood = float(np.log(fitted[f"{mixture}_clean"] + fitted[f"{mixture}_noisy"]).mean())
        auc = _auc(model.posterior(losses).numpy(), wrong)
        facts[mixture] = {"log_likelihood": likelihood, "auc": auc, **_parameters(model)}
        told = f"mean log-likelihood {likelihood:.3f}, AUC {auc:.3f}"
        summary.append(f"{mixture} mixture: {told}")
        for side, heights, colour in (("right", right, BLUE), ("wrong", bad, ORANGE)):
            name = f"{side} labels ({int(kept[wrong == (side == 'wrong')].sum()):,})"
            axis.stairs(heights, edges, fill=True, color=colour, alpha=0.3, label=name)
            axis.stairs(heights, edges, color=colour, linewidth=0.7, alpha=0.8)
        axis.stairs(right + bad, edges, color="0.45", linewidth=0.9, label="all")
        clean, noisy = curves[f"{mixture}_clean"], curves[f"{mixture}_noisy"]
        axis.plot(fine, clean, color=BLUE, linewidth=1.8, label="clean component")
        axis.plot(fine, noisy, "--", color=ORANGE, linewidth=1.8, label="noisy component")
        axis.plot(fine, clean + noisy, ":", color="black", linewidth=1.6, label="mixture")
        axis.set_title(f"{mixture.capitalize()} mixture\n{told}", size=10)
        axis.set(xlim=(0, 1), xlabel="training loss, scaled: 5th percentile 0, 95th percentile 1")
        plain(axis)
    axes[0].set(
        ylabel="density", ylim=(0, 1.08 * float((right + bad).max()))
    )  # a beta density may go to infinity at an edge
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    told = f"{len(wrong):,} training labels, {wrong.mean():.1%} of them wrong"
    figure.suptitle(f"{wrapped(run.title, figure)}\n{wrapped(told, figure)}", size=10.5)
    told = "; ".join([told, *summary])
    rows = [
        tuple(map(float, row))
        for row in zip(edges[:-1], edges[1:], right, bad, *components(middles).values(), strict=True)
    ]
    of = "losses within their 5th to 95th percentile, scaled as Arazo et al. do; densities of their sum"
    scale = {"low_nats": low, "width_nats": width, "labels": len(wrong), "kept": int(kept.sum())}
    columns = ("loss_from", "loss_to", "right", "wrong", *components(middles))
    return Finding(columns, rows, {"of": of, "wrong": int(wrong.sum()), **scale, **facts, "summary": told}, figure)


def _parameters(model: BetaMixture | GaussianMixture) -> dict[str, list[float]]:
    names = ("alpha", "beta", "weight") if isinstance(model, BetaMixture) else ("mean", "variance", "weight")
    return {name: getattr(model, name).tolist() for name in names}


def _auc(scores: NDArray[np.float32], wrong: NDArray[np.bool_]) -> float:
    """The area under the ROC curve; NaN where all labels are right, or all wrong."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(wrong, scores)) if 0 < wrong.sum() < len(wrong) else float("nan")
