"""The picture of a board with several sizes of a dataset: noise level by training size, a panel a method."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from noisebench import dataset_names
from noisebench.errors import UserError
from noisebench.metrics import METRICS, RULES
from noisebench.table import Table
from noisebench.table_cells import Column, one_line

if TYPE_CHECKING:
    from noisebench.finding import Finding

PER_ROW = 6
"""So many methods side by side."""


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
    """Write `grid` into a board's folder: grid.png, .pdf, .csv and .json.

    Returns:
        grid.png; None, and nothing is written, where the board has one size of each dataset or no result.
    """
    try:
        return grid(table).write(folder / "grid")[0]
    except UserError:
        return None


def grid(table: Table) -> Finding:
    """The error of every method as heat maps (Sukhbaatar et al. 2014, Fig. 3): brighter is better.

    Noise downwards, training images to the right; the mean over the seeds at the epoch that ranks. A cell without a
    finished run is grey.

    Args:
        table: of a board with several sizes of a dataset (``name@n``).

    Returns:
        A row a cell: method, dataset, noise, error in per cent, finished seeds, of how many.

    Raises:
        UserError: each dataset has one size, no cell is finished, or the board is not ranked by a share.
    """
    from noisebench.finding import drawn

    return drawn(_grid)(table)


def _grid(table: Table) -> Finding:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from noisebench.finding import Finding, wrapped

    several, noises = sizes_of(table), list(dict.fromkeys(column.noise for column in table.columns))
    if not several:
        raise UserError(f"{table.title}: each dataset has one size; grid needs several, as name@n")
    if not METRICS[table.ranking.metric].percent:
        raise UserError(f"{table.title}: it is ranked by {table.ranking.metric}; grid needs accuracy or gAP")
    rows = []

    def error(method: str, dataset: str, noise: str) -> float:
        column = Column(dataset, noise)
        cell = table.cells.get((method, column, table.ranking_of(column))) if column in table.columns else None
        value = np.nan if cell is None or cell.mean is None else 100 * (1 - cell.mean)
        if cell is not None:
            rows.append((method, dataset, noise, value, len(cell.numbers), cell.expected))
        return value

    panels = {
        (plain, method): np.array([[error(method, size, noise) for size in sizes] for noise in noises])
        for plain, sizes in several.items()
        for method in table.methods
    }
    known = [panel for panel in panels.values() if np.isfinite(panel).any()]
    if not known:
        raise UserError(f"{table.title}: no cell of this figure is finished")
    low, high = min(map(np.nanmin, known)), max(map(np.nanmax, known))
    colours = colormaps["cividis_r"].with_extremes(bad="0.85")  # even in lightness, and safe for the colour-blind
    most = max(map(len, several.values()))
    wide, across = max(2.2, 0.75 * most), min(PER_ROW, len(table.methods))
    titles = {method: textwrap.fill(one_line(method), int(9.5 * wide)) for method in table.methods}
    tall = 1.1 + 0.45 * max(3, len(noises)) + 0.2 * max(title.count("\n") + 1 for title in titles.values())
    down = -(-len(table.methods) // across)  # rows of each dataset
    figure = Figure(figsize=(2.2 + across * wide, len(several) * down * tall + 0.6), layout="constrained")
    axes = figure.subplots(len(several) * down, across, squeeze=False, sharey=True)
    places = [axis for i in range(len(several)) for axis in axes[i * down : (i + 1) * down].flat[: len(table.methods)]]
    for axis in {*axes.flat} - {*places}:
        axis.set_axis_off()
    for (plain, method), axis in zip(panels, places, strict=True):
        panel = panels[plain, method]
        image = axis.imshow(panel, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
        counts = [dataset_names.sized(name)[1] for name in several[plain]]
        axis.set_xticks(range(len(counts)), ["all" if count is None else f"{count:,}" for count in counts])
        axis.set_yticks(range(len(noises)), map(one_line, noises))
        axis.set(xlabel=f"training images of {one_line(plain)}")
        axis.set_title(titles[method], size=10)
        for (i, j), value in np.ndenumerate(panel):
            if np.isfinite(value):
                dark = value > (low + high) / 2
                axis.text(j, i, f"{value:.1f}", ha="center", va="center", size=8, color="white" if dark else "black")
    title = METRICS[table.ranking.metric].title
    figure.colorbar(image, ax=axes, label="test error (%)" if title == "accuracy" else f"100 - {title} (%)")
    unfinished = sum(not np.isfinite(row[3]) for row in rows)
    told = f"{one_line(table.title)}; at {RULES[table.ranking.rule]}"
    notes = f"{unfinished} of {len(rows)} cells have no finished run" if unfinished else ""
    figure.suptitle("\n".join(wrapped(line, figure) for line in filter(None, (told, notes))), size=10)
    facts = {"epoch": RULES[table.ranking.rule], **({"summary": notes} if notes else {})}
    columns = ("method", "dataset", "noise", "error_percent", "seeds_finished", "seeds")
    return Finding(columns, rows, facts, figure)
