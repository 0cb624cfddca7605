"""The picture of a noise's T: as asked beside as realised."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError


def draw_transition(
    asked: ArrayLike,
    realised: ArrayLike,
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw T as asked beside T as realised, as heat maps in a PNG.

    Args:
        asked: T [K, K].
        realised: counted T [K, K]; a row of NaN (a class without samples) is drawn grey.
        path: the file to write.
        class_names: K names for the axes; numbers by default. Axes and cells are labelled up to 20 classes.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = [np.asarray(matrix, dtype=np.float64) for matrix in (asked, realised)]
    classes = len(panels[0])
    if any(panel.shape != (classes, classes) for panel in panels):
        raise UserError(f"asked and realised: shapes {panels[0].shape} and {panels[1].shape} must both be [K, K]")
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"class_names: {len(class_names)} names do not fit {classes} classes")
    names = [str(i) for i in range(classes)] if class_names is None else list(class_names)
    few = classes <= 20
    side = max(3.2, 0.42 * classes) if few else 5.0
    figure = Figure(figsize=(2 * side + 2.2, side + 1.4), layout="constrained")
    colours = colormaps["cividis"].with_extremes(bad="0.85")  # even in lightness, and safe for the colour-blind
    top = float(max(np.nanmax(panel) for panel in panels))
    axes = figure.subplots(1, 2)
    for axis, panel, title in zip(axes, panels, ("T asked", "T realised"), strict=True):
        image = axis.imshow(panel, cmap=colours, vmin=0.0, vmax=top, interpolation="nearest")
        axis.set(title=title, xlabel="noisy label", ylabel="true label")
        if not few:
            continue
        turn = 45 if max(map(len, names)) > 2 else 0
        axis.set_xticks(range(classes), names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor")
        axis.set_yticks(range(classes), names)
        for (i, j), value in np.ndenumerate(panel):
            if np.isfinite(value):
                text = f"{value:.2f}".replace("0.", ".", 1) if 0 < value < 0.995 else f"{value:.0f}"
                axis.text(j, i, text, ha="center", va="center", size=7, color="white" if value < top / 2 else "black")
    figure.colorbar(image, ax=axes, label="P(noisy | true)", shrink=0.8)
    aside = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(6)}")
    try:
        figure.savefig(aside, dpi=150, format="png")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
