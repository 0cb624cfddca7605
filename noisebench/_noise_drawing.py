"""Pictures of T: as asked beside as realised."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    from matplotlib import rc_context

    aside = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(6)}")
    try:
        with rc_context({"text.parse_math": False}):  # a name may have a dollar sign in it
            figure = transition_figure({"T asked": asked, "T realised": realised}, class_names)
            figure.savefig(aside, dpi=150, format="png")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def transition_figure(
    matrices: Mapping[str, ArrayLike], class_names: Sequence[str] | None = None, most_numbers: int = 20
) -> Figure:
    """Several T side by side as heat maps of one colour scale.

    Args:
        matrices: by title, each [K, K]; a row of NaN (a class without samples) is drawn grey.
        class_names: K names for the axes; numbers by default. Axes are labelled up to 20 classes.
        most_numbers: up to so many classes, at most 20, cells hold their number.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = [np.asarray(matrix, dtype=np.float64) for matrix in matrices.values()]
    classes = len(panels[0])
    if any(panel.shape != (classes, classes) for panel in panels):
        told = " and ".join(str(panel.shape) for panel in panels)
        raise UserError(f"{', '.join(matrices)}: shapes {told} must all be [K, K]")
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"class_names: {len(class_names)} names do not fit {classes} classes")
    names = [str(i) for i in range(classes)] if class_names is None else list(class_names)
    few = classes <= 20
    side = max(3.2, 0.42 * classes) if few else 5.0
    figure = Figure(figsize=(len(panels) * side + 2.2, side + 1.4), layout="constrained")
    colours = colormaps["cividis"].with_extremes(bad="0.85")  # even in lightness, and safe for the colour-blind
    top = float(max(np.nanmax(panel) for panel in panels))
    axes = figure.subplots(1, len(panels))
    for axis, panel, title in zip(axes, panels, matrices, strict=True):
        image = axis.imshow(panel, cmap=colours, vmin=0.0, vmax=top, interpolation="nearest")
        axis.set(title=title, xlabel="noisy label", ylabel="true label")
        if not few:
            continue
        turn = 45 if max(map(len, names)) > 2 else 0
        axis.set_xticks(range(classes), names, rotation=turn, ha="right" if turn else "center", rotation_mode="anchor")
        axis.set_yticks(range(classes), names)
        for (i, j), value in np.ndenumerate(panel):
            if np.isfinite(value) and classes <= most_numbers:
                text = f"{value:.2f}".replace("0.", ".", 1) if 0 < value < 0.995 else f"{value:.0f}"
                colour = "white" if value < top / 2 else "black"
                number = axis.text(j, i, text, ha="center", va="center", size=7, color=colour)
                number.set_in_layout(False)  # it is within the axis: to measure hundreds takes half of the time
    figure.colorbar(image, ax=axes, label="P(noisy | true)", shrink=0.8)
    return figure
