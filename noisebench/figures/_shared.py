"""What figures of several runs share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from noisebench.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noisebench.finished import FinishedRun


def titles(runs: Sequence[FinishedRun], width: int) -> tuple[list[str], str]:
    """A title a run, in lines of at most `width` characters, and what all have in common ("" if that is nothing).

    Raises:
        UserError: no run.
    """
    if not runs:
        raise UserError("no run is given; give a finished one")
    columns = {run.title.removeprefix(run.config["label"]) for run in runs}
    names = [run.config["label"] for run in runs]
    if len(columns) == 1 and len(set(names)) == len(names):
        return [textwrap.fill(name, width) for name in names], columns.pop().removeprefix(" on ")
    return [textwrap.fill(run.title, width) for run in runs], ""


def told_apart(runs: Sequence[FinishedRun]) -> list[str]:
    """What a table calls each run: its label, or where several have one, the label with all that it is."""
    labels = [run.config["label"] for run in runs]
    return labels if len(set(labels)) == len(labels) else [run.title for run in runs]


def legend_of(axes: Iterable[Axes]) -> dict[str, Any]:
    """A handle a label, over all axes."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def number(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """An option that is a whole number.

    Raises:
        UserError: it is none, less than `least`, or more than `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        told = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise UserError(f"{name} is {value!r}; give a whole number, {told}")
    return value


def numbers(name: str, values: Any, kind: type[int] | type[float]) -> list[int] | list[float]:
    """An option that is a list of numbers above 0.

    Raises:
        UserError: it is none.
    """
    given = list(values) if isinstance(values, (list, tuple)) else []
    kinds = (int,) if kind is int else (int, float)
    good = [v for v in given if isinstance(v, kinds) and not isinstance(v, bool) and 0 < v < math.inf]
    if not good or len(good) < len(given):
        example = "[1, 10, 100]" if kind is int else "[0.3, 1, 3]"
        raise UserError(f"{name} is {values!r}; give numbers above 0, e.g. {example}")
    return good
