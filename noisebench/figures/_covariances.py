"""What the covariance of the noise says: Collier et al., CVPR 2021, Table 4, Fig. 2 and Table 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from noisebench import _analysis_figures, analysis
from noisebench.errors import UserError
from noisebench.figures._shared import number
from noisebench.finding import Finding, cut, drawn, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from noisebench.finished import FinishedRun

PER_ROW = 4
MOST = 100
"""So many pairs or images at most: a picture of more is larger than matplotlib draws."""


@drawn
def top_covariances(run: FinishedRun, *, count: int = 10) -> Finding:
    """The pairs of classes whose noise goes together, with a test image of each class (Collier et al., Table 4).

    The image of a class is the one of it that the run is surest of.

    Args:
        run: of a method that offers a covariance.
        count: so many pairs, 1 to 100.

    Returns:
        A row a pair: a, b, covariance (its mean over the test set), and where their images are, None where a class has
        none: positions among the test images that the run was evaluated on, as `FinishedRun.images` takes them.

    Raises:
        UserError: as `analysis.mean_covariance`.
    """
    mean, count = analysis.mean_covariance(run), number("count", count, 1, MOST)
    where = analysis.pairs_at(mean, count)
    surest = _surest(run, sorted({c for pair in where for c in pair}))
    at = torch.tensor(sorted(i for i in surest.values() if i is not None), dtype=torch.int64)
    images = dict(zip(at.tolist(), run.images("test", at) if len(at) else (), strict=True))
    pictures = [tuple(images.get(surest[c]) for c in pair) for pair in where]
    made = _analysis_figures.covariances(run, mean, analysis.pairs_of(mean, run.data.classes, count), pictures)
    made.columns = (*made.columns, "image_a", "image_b")
    made.rows = [(*row, surest[a], surest[b]) for row, (a, b) in zip(made.rows, where, strict=True)]
    return made


def _surest(run: FinishedRun, classes: list[int]) -> dict[int, int | None]:
    """For each class the position of the test image of it with the largest probability of that class, if any."""
    p, labels = run.predict().cpu(), run.test_labels
    found: dict[int, int | None] = {}
    for c in classes:
        mine = ((labels[:, c] > 0) if labels.ndim == 2 else (labels == c)).nonzero().flatten()
        found[c] = int(mine[p[mine, c].argmax()]) if len(mine) else None
    return found


@drawn
def covariance_ranks(run: FinishedRun, reference: FinishedRun) -> Finding:
    """Where mistakes that `run` does not make stand among its covariances (Collier et al., Fig. 2).

    See `analysis.covariance_ranks`; the facts have every rank, their mean and how likely so small a one is by chance.
    """
    found = analysis.covariance_ranks(run, reference)
    return _analysis_figures.ranks(run, reference, found, analysis.rank_p_value(found, run.data.num_classes))


@drawn
def examples(run: FinishedRun, reference: FinishedRun, *, count: int = 8) -> Finding:
    """Test images that only `reference` gets wrong, as the largest covariance has it (Collier et al., Table 5).

    Of all images that `run` gets right and `reference` wrong, those where abs(Sigma[true, reference's prediction]) is
    the largest of all classes; of these the `count` with the largest covariance.

    Args:
        run: of a method that offers a covariance.
        reference: of any method, on the same data, noise and seed.
        count: so many images at most, 1 to 100.

    Returns:
        A row an image: its position (as those of `top_covariances`), true class, prediction of each run, covariance.

    Raises:
        UserError: as `analysis.covariance_ranks`, or no such image.
    """
    count, found = number("count", count, 1, MOST), analysis.confusions(run, reference)
    first = (found.rank == 1).nonzero().flatten()
    mine, theirs = run.config["label"], reference.config["label"]
    about = f"of {len(found.at):,} test images that {mine} gets right and {theirs} wrong"
    if not len(first):
        raise UserError(f"{about}, none has its largest covariance with the class that {theirs} takes it for")
    best = first[found.covariance[first].abs().argsort(descending=True, stable=True)[:count]]
    index, names = found.at[best], run.data.classes
    rows: list[tuple[Any, ...]] = [
        (i, names[true], names[true], names[other], float(covariance))
        for i, true, other, covariance in zip(
            index.tolist(), found.truth[best].tolist(), found.theirs[best].tolist(), found.covariance[best], strict=True
        )
    ]
    across = min(PER_ROW, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(max(5.0, 0.4 + 2.1 * across), 0.9 + 2.9 * down))
    figure.set_layout_engine("constrained", h_pad=0.16)  # or a row's text would touch the next one's images
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, (_, true, own, other, covariance) in zip(axes.flat, run.images("test", index), rows, strict=False):
        show(axis, image)
        named = (("true", true), (mine, own), (theirs, other))
        lines = [f"{cut(who, 16)}: {cut(what, 16)}" for who, what in named]
        told = "\n".join([*lines, f"covariance: {_signed(covariance)} nats²"])
        axis.text(0.5, -0.04, told, transform=axis.transAxes, ha="center", va="top", size=9)
    told = f"{about}, {len(first):,} have their largest covariance with the class that {theirs} takes them for"
    more = f"; the {len(rows)} largest" if len(rows) < len(first) else ""
    figure.suptitle(f"{wrapped(run.title, figure)}\n{wrapped(told + more, figure)}", size=10)
    facts = {
        "of": "test images that the run gets right and the reference wrong, where the covariance of the true class and "
        "the reference's prediction is the largest of the true class",
        "reference": {key: reference.config[key] for key in ("fingerprint", "method", "label")},
        "confusions": len(found.at),
        "of_largest": len(first),
        "summary": told + more,
    }
    columns = ("index", "true_class", "prediction", "reference_prediction", "covariance")
    return Finding(columns, rows, facts, figure)


def show(axis: Axes, image: NDArray[np.uint8]) -> None:
    """An image [H, W, C] with its pixels; of another number of channels than one or three the first."""
    grey = image.shape[2] != 3
    axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, interpolation="nearest")


def _signed(value: float | Tensor) -> str:
    return f"{float(value):.3g}".replace("-", "−")
