"""The picture of a board with several sizes of a dataset: noise level by training size, a panel a method."""

from __future__ import annotations

import secrets
import textwrap
from pathlib import Path

from noisebench import dataset_names
from noisebench.metrics import METRICS, RULES
from noisebench.table import Table
from noisebench.table_cells import Column, one_line


def sizes_of(table: Table) -> dict[str, list[str]]:
    """The datasets of which the board has more than one size, and these as columns name them, the smallest first."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(column.dataset for column in table.columns):
        found.setdefault(dataset_names.sized(name)[0], []).append(name)
    # Without a size it is the whole set.
    return {
        plain: sorted(names, key=lambda name: dataset_names.sized(name)[1] or float("inf"))
        for plain, names in found.items()
        if len(names) > 1
    }


def draw_grid(table: Table, folder: Path) -> Path | None:
    """Draw the error of every method as heat maps like Fig. 3 of Sukhbaatar et al. 2014: brighter is better.

    Noise downwards, training images to the right; the mean over the seeds at the epoch that ranks. A cell without a
    finished run is grey.

    Returns:
        grid.png in `folder`; None, and nothing is written, where the board has one size of each dataset or no result.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a $ in a title or a label is a $
        return _draw(table, folder)


def _draw(table: Table, folder: Path) -> Path | None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    several, noises = sizes_of(table), list(dict.fromkeys(column.noise for column in table.columns))

    def error(method: str, dataset: str, noise: str) -> float:
        column = Column(dataset, noise)
        cell = table.cells.get((method, column, table.ranking_of(column))) if column in table.columns else None
        return np.nan if cell is None or cell.mean is None else 100 * (1 - cell.mean)

    panels = {
        (plain, method): np.array([[error(method, size, noise) for size in sizes] for noise in noises])
        for plain, sizes in several.items()
        for method in table.methods
    }
    known = [panel for panel in panels.values() if np.isfinite(panel).any()]
    if not known or not METRICS[table.ranking.metric].percent:
        return None
    low, high = min(map(np.nanmin, known)), max(map(np.nanmax, known))
    colours = colormaps["cividis_r"].with_extremes(bad="0.85")  # even in lightness, and safe for the colour-blind
    most = max(map(len, several.values()))
    size = (2.2 + len(table.methods) * max(2.2, 0.75 * most), len(several) * (1.3 + 0.45 * max(3, len(noises))) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(several), len(table.methods), squeeze=False, sharey=True)
    for (plain, method), axis in zip(panels, axes.flat, strict=True):
        panel = panels[plain, method]
        image = axis.imshow(panel, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        counts = [dataset_names.sized(name)[1] for name in several[plain]]
        axis.set_xticks(range(len(counts)), ["all" if count is None else f"{count:,}" for count in counts])
        axis.set_yticks(range(len(noises)), map(one_line, noises))
        axis.set(title=one_line(method), xlabel=f"training images of {one_line(plain)}")
        for (i, j), value in np.ndenumerate(panel):
            if np.isfinite(value):
                dark = value > (low + high) / 2
                axis.text(j, i, f"{value:.1f}", ha="center", va="center", size=8, color="white" if dark else "black")
    title = METRICS[table.ranking.metric].title
    figure.colorbar(image, ax=axes, label="test error (%)" if title == "accuracy" else f"100 - {title} (%)")
    told = f"{one_line(table.title)}; at {RULES[table.ranking.rule]}"
    figure.suptitle(textwrap.fill(told, int(12 * figure.get_figwidth())), size=10)
    path = folder / "grid.png"
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        figure.savefig(aside, dpi=150, format="png")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path
