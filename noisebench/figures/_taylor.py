"""The covariance in the log-likelihood to second order: Collier et al., CVPR 2021, appendix C, Fig. 3 and 4.

To second order log E[softmax(u)_k] is log s_k + 1/2 tr(H_k Sigma) / s_k, with log(1 + t) ~ t. With s_j + s_k <= 1, the
coefficients of its entries are

    Sigma_kk: (1 - s_k) (1 - 2 s_k) / 2,   Sigma_jj: -s_j (1 - 2 s_j) / 2,   Sigma_jk: -s_j (1 - 2 s_k).

The last is of the two equal entries (j, k) and (k, j) together; the paper's Eq. 13 has half of it. Under a temperature
tau, Sigma is the covariance of u / tau: that of the logits over tau^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from noisebench.errors import UserError
from noisebench.finding import BLUE, ORANGE, Finding, drawn, plain, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noisebench.finished import FinishedRun

STEPS = 101
BARS = 20
LEVELS = (-0.8, -0.6, -0.4, -0.2, -0.1, -0.05, 0.05, 0.1)
MOST_POINTS = 2000
"""Where predictions lie is drawn for so many test images at most, the first ones."""

Array = NDArray[np.float64]


def of_true_variance(s: Array) -> Array:
    """The coefficient of Sigma_kk, k the class of the label, at s_k (Eq. 12)."""
    found: Array = (1 - s) * (1 - 2 * s) / 2
    return found


def of_other_variance(s: Array) -> Array:
    """The coefficient of Sigma_jj, j another class, at s_j (Eq. 11)."""
    found: Array = -s * (1 - 2 * s) / 2
    return found


def of_covariance(other: Array, true: Array) -> Array:
    """The coefficient of Sigma_jk = Sigma_kj, at s_j (`other`) and s_k (`true`)."""
    found: Array = -other * (1 - 2 * true)
    return found


@drawn
def taylor(run: FinishedRun | None = None) -> Finding:
    """Coefficients of the covariance in the log-likelihood, as functions of probabilities (Collier et al., Fig. 3, 4).

    Of a run, also where its test images lie: p of the true class, and p of the likeliest other one. These are its
    predictions, noise included, which stand for the softmax without it.

    Args:
        run: of a method that offers a covariance; None for the functions alone.

    Returns:
        A row for each probability 0, 0.01, ..., 1: the coefficients of both variances, and, of a run, the shares of
        test images whose probabilities round to it. The facts of a run have the means of the coefficients over them.

    Raises:
        UserError: the run's method offers no covariance, or its images have several labels.
    """
    s = np.linspace(0, 1, STEPS)
    rows = list(zip(s.round(2).tolist(), of_true_variance(s).tolist(), of_other_variance(s).tolist(), strict=True))
    columns: tuple[str, ...] = ("p", "of_true_variance", "of_other_variance")
    facts: dict[str, Any] = {
        "of": "coefficients of Sigma_kk at p = s_k, k the label's class, and of Sigma_jj at p = s_j, another class, in "
        "the log-likelihood to second order; that of Sigma_jk = Sigma_kj is -s_j (1 - 2 s_k)"
    }
    figure = Figure(figsize=(10.2, 5.0 if run is None else 6.2), layout="constrained")
    if run is None:
        curves, heat = figure.subplots(1, 2)
        shares = None
    else:
        grid = figure.add_gridspec(2, 2, height_ratios=(2.4, 1))
        curves, shares, heat = (figure.add_subplot(at) for at in (grid[0, 0], grid[1, 0], grid[:, 1]))
    curves.axhline(0, color="0.4", linewidth=0.8)
    curves.plot(s, of_true_variance(s), color=BLUE, linewidth=1.8, label="of Σₖₖ, at p = sₖ: (1 − p)(1 − 2p) / 2")
    curves.plot(s, of_other_variance(s), "--", color=ORANGE, linewidth=1.8, label="of Σⱼⱼ, at p = sⱼ: −p(1 − 2p) / 2")
    curves.set(xlim=(0, 1), xlabel="probability p", ylabel="coefficient in the log-likelihood (nats)")
    curves.set_title("of the variances of the label's class, k, and of another, j", size=10)
    curves.legend(frameon=False, fontsize=9)
    plain(curves)
    _heat(heat, s)
    told = "what the covariance adds to the log-likelihood of label k, to second order"
    if run is not None:
        assert shares is not None
        true, other = _probabilities(run)
        bars, edges = [true, other], np.linspace(0, 1, BARS + 1)
        for p, name, colour, left in zip(bars, ("true class", "likeliest other"), (BLUE, ORANGE), (0, 1), strict=True):
            heights = 100 * np.histogram(p, edges)[0] / len(p)
            shares.bar(edges[:-1] + (0.07 + 0.43 * left) / BARS, heights, 0.43 / BARS, align="edge", color=colour,
                       label=f"p of the {name}")  # fmt: skip
        shares.set(xlim=(0, 1), xlabel="predicted probability p", ylabel="test images (%)")
        shares.legend(frameon=False, fontsize=9)
        plain(shares)
        few = slice(MOST_POINTS)
        heat.scatter(other[few], true[few], s=9, facecolor="black", edgecolor="white", linewidths=0.4, zorder=3,
                     clip_on=False, label=f"test images ({len(true[few]):,})", rasterized=len(true) > 500)  # fmt: skip
        heat.legend(loc="upper right", fontsize=9)
        means = {
            "mean_of_true_variance": float(of_true_variance(true).mean()),
            "mean_of_other_variance": float(of_other_variance(other).mean()),
            "mean_of_covariance": float(of_covariance(other, true).mean()),
        }
        summary = "mean coefficients over the test images: " + ", ".join(
            f"{value:.3f} of {name}" for name, value in zip(("Σkk", "Σjj", "Σjk"), means.values(), strict=True)
        )
        facts |= {"images": len(true), **means, "summary": summary}
        counts = [np.bincount((100 * p).round().astype(int), minlength=STEPS) / len(p) for p in bars]
        rows = [(*row, float(a), float(b)) for row, a, b in zip(rows, *counts, strict=True)]
        columns = (*columns, "share_true", "share_other")
        told += f"; {len(true):,} test images"
    head = [] if run is None else [wrapped(run.title, figure)]
    figure.suptitle("\n".join([*head, wrapped(told, figure)]), size=10.5)
    return Finding(columns, rows, facts, figure)


def _heat(axis: Axes, s: Array) -> None:
    """The coefficient of a covariance over both probabilities, as far as they sum to one at most."""
    other, true = np.meshgrid(s, s)
    shown = of_covariance(other, true)
    colours = LinearSegmentedColormap.from_list("signs", [ORANGE, "white", BLUE])
    image = axis.imshow(
        shown, cmap=colours, vmin=-1, vmax=1, origin="lower", extent=(0, 1, 0, 1), interpolation="bilinear"
    )
    there = np.where(other + true <= 1, shown, np.nan)
    lines = axis.contour(s, s, there, levels=LEVELS, colors="0.35", linewidths=0.7, linestyles="solid")
    axis.clabel(lines, inline_spacing=1, fmt=lambda level: f"{level:g}".replace("-", "−"), fontsize=7)
    axis.plot((0, 0.5), (0.5, 0.5), color="0.35", linewidth=1.2)  # zero: on the axis s_j = 0 it is everywhere
    axis.fill((0, 1, 1), (1, 1, 0), color="0.88", zorder=2)
    axis.text(0.68, 0.68, "sⱼ + sₖ > 1", ha="center", va="center", size=9, color="0.3")
    axis.set(xlabel="sⱼ, another class", ylabel="sₖ, the label's class", xlim=(0, 1), ylim=(0, 1))
    axis.set_title("of the covariance Σⱼₖ: −sⱼ (1 − 2sₖ)", size=10)
    axis.figure.colorbar(image, ax=axis, label="coefficient in the log-likelihood (nats)", shrink=0.8)


def _probabilities(run: FinishedRun) -> tuple[Array, Array]:
    """p of the true class and of the likeliest other one, for every test image, float64 [n] each."""
    if run.data.multilabel:
        raise UserError(f"{run.config['dataset']}: one class must be the true one, and an image has several")
    next(run.covariances(torch.tensor([0])))  # refuses a method without one
    p, truth = run.predict().double().cpu(), run.test_labels[:, None]
    true = p.gather(1, truth).flatten()
    other = p.scatter(1, truth, -1.0).amax(1)
    return true.numpy().clip(0, 1), other.numpy().clip(0, 1)
