"""What a network makes of images: Arazo et al., ICML 2019, Fig. 3."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from noisebench.errors import UserError
from noisebench.figures._shared import number, titles, told_apart
from noisebench.finding import CLASSES, MARKERS, Finding, cut, drawn, wrapped
from noisebench.streams import stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from noisebench.finished import FinishedRun

PARTS: dict[Literal["train", "test"], str] = {"train": "training images", "test": "test images"}
MOST_NAMED = 20
"""Up to so many classes have a colour and a name of their own."""
INSTALL = "pip install 'noisebench[umap]'"


@drawn
def features(
    *runs: FinishedRun, most: int = 2000, neighbours: int = 15, epochs: int | None = None, seed: int = 0
) -> Finding:
    """UMAP of the features before the head, coloured by true class (Arazo et al., Fig. 3).

    A column a run; above the training split, below the test set, each with an embedding of its own. The choice of
    images follows from `seed` and is the same for runs of one size of data. Under open-set noise outliers are grey.

    Args:
        runs: with one label an image.
        most: at most so many images of each part, 10 or more.
        neighbours: UMAP's n_neighbors; epochs: its n_epochs, by default its own.
        seed: of the choice of images and of UMAP.

    Returns:
        A row a point: run, part, index (in the part), true class, whether its label is wrong, x, y. The facts have
        for each panel the share of images whose nearest other image, by the features themselves, is of their class.

    Raises:
        UserError: umap-learn is not installed, no run, or several labels an image.
    """
    most, neighbours, seed = number("most", most, 10), number("neighbours", neighbours, 2), number("seed", seed, 0)
    options = {} if epochs is None else {"n_epochs": number("epochs", epochs, 1)}
    names, shared = titles(runs, 36)
    for run in runs:
        if run.data.multilabel:
            raise UserError(f"{run.config['dataset']}: colours need one label an image, and it has several")
    umap = _umap()
    figure = Figure(figsize=(max(4.6, 0.6 + 3.5 * len(runs)), 7.6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False)
    rows: list[tuple[Any, ...]] = []
    shares = []
    for column, (run, label, name) in enumerate(zip(runs, told_apart(runs), names, strict=True)):
        for axis, part in zip(axes[:, column], PARTS, strict=True):
            index, classes, wrong = _chosen(run, part, most, seed)
            found = run.features(part, index).numpy()
            if not np.isfinite(found).all():
                raise UserError(f"{run.config['label']}: features of {PARTS[part]} are NaN or infinite")
            near = min(neighbours, len(index) - 1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few images it warns that it changes its settings
                made = umap.UMAP(n_neighbors=near, random_state=seed % 2**32, n_jobs=1, **options)
                at = np.asarray(made.fit_transform(found), dtype=np.float64)
            share = _same_class(found, classes)
            shares.append({"run": label, "part": part, "images": len(index), "same_class": share})
            _scatter(axis, at, classes, run.data.classes)
            axis.set_xlabel(f"nearest image of the same class: {share:.1%}", size=9)
            if not column:
                axis.set_ylabel(f"{PARTS[part]} ({len(index):,})")
            named = [run.data.classes[c] if c >= 0 else "outlier" for c in classes.tolist()]
            points = zip(index.tolist(), named, wrong, *at.T.tolist(), strict=True)
            rows += [(label, part, *point) for point in points]
        axes[0, column].set_title(name, size=10)
    _legend(figure, runs)
    told = "UMAP of the features before the head, coloured by true class"
    figure.suptitle("\n".join(filter(None, (wrapped(shared, figure), wrapped(told, figure)))), size=10.5)
    of = "same_class: share of images whose nearest other image, by the features themselves, is of their true class"
    facts = {"of": of, "panels": shares, "umap": getattr(umap, "__version__", None), "seed": seed}
    return Finding(("run", "part", "index", "true_class", "wrong_label", "x", "y"), rows, facts, figure)


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise UserError(f"features needs umap-learn, which is not installed: {INSTALL}") from None
    return umap


def _chosen(
    run: FinishedRun, part: Literal["train", "test"], most: int, seed: int
) -> tuple[Tensor, NDArray[np.int64], list[bool | None]]:
    """Positions [n], sorted, true classes [n] (-1: an outlier), and whether the labels are wrong (None: not known)."""
    classes = np.array(run.true_labels if part == "train" else run.test_labels.numpy(), dtype=np.int64)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(stream(seed, "figures", part)))
    index = order[:most].sort().values
    wrong: list[bool | None] = [None if part == "train" else False] * len(index)
    if part == "train" and run.noisy.known:
        wrong = run.wrong()[index].tolist()
        if run.noisy.outliers is not None:
            classes[run.noisy.outliers >= 0] = -1
    return index, classes[index.numpy()], wrong


def _same_class(found: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """The share of rows whose nearest other row is of the same class; outliers are left out."""
    from sklearn.neighbors import NearestNeighbors

    inside = classes >= 0
    points, mine = found[inside], classes[inside]
    if len(points) < 2:
        return float("nan")
    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float((mine[nearest] == mine).mean())


def _legend(figure: Figure, runs: Sequence[FinishedRun]) -> None:
    """The colour of each class, where all runs have the same and few: names within a panel may lie on each other."""
    names = runs[0].data.classes
    if len(names) > MOST_NAMED or any(run.data.classes != names for run in runs):
        return
    looks = [(CLASSES[c % len(CLASSES)], MARKERS[c // len(CLASSES)]) for c in range(len(names))]
    told = [cut(name, 16) for name in names]
    if any(run.noisy.outliers is not None for run in runs):
        looks, told = [*looks, ("0.8", "o")], [*told, "outlier"]
    handles = [Line2D([], [], linestyle="none", marker=marker, color=colour) for colour, marker in looks]
    most = max(map(len, told))
    across = max(2, min(len(told), int(9 * figure.get_figwidth() / (most + 5))))
    legend = figure.legend(handles, list(map(str, range(len(told)))), loc="outside lower center", ncols=across,
                           frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    for text, name in zip(legend.get_texts(), told, strict=True):
        text.set_text(name)  # as a label one that begins with _ would be left out


def _scatter(axis: Axes, at: NDArray[np.float64], classes: NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Points by class; up to `MOST_NAMED` classes, a name at the middle of each: colours alone tell few apart."""
    few, size = len(names) <= MOST_NAMED, 4 + 3000 / (50 + len(at))
    outside = classes < 0
    axis.scatter(at[outside, 0], at[outside, 1], s=size, color="0.8", linewidths=0, rasterized=True)
    if few:
        for c in np.unique(classes[~outside]).tolist():
            mine = at[classes == c]
            colour, marker = CLASSES[c % len(CLASSES)], MARKERS[c // len(CLASSES)]
            axis.scatter(
                mine[:, 0], mine[:, 1], s=size, color=colour, marker=marker, linewidths=0, alpha=0.8, rasterized=True
            )
        for c in np.unique(classes[~outside]).tolist():
            x, y = np.median(at[classes == c], axis=0).tolist()
            text = axis.text(x, y, cut(names[c], 16), size=9, weight="bold", ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            text.set_in_layout(False)
    else:
        colours = colormaps["cividis"](classes[~outside] / (len(names) - 1))
        axis.scatter(at[~outside, 0], at[~outside, 1], s=size, color=colours, linewidths=0, rasterized=True)
    axis.set(xticks=[], yticks=[])
    axis.set_box_aspect(1)
