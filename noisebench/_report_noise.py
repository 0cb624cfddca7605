"""The exact noise of a board's columns for its report: the artefacts' facts, and T asked beside T realised."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noisebench._report_runs import Run
from noisebench.errors import UserError
from noisebench.files import read_json
from noisebench.table_cells import Column

MOST_STATES = 20
"""A T of up to so many classes is shown as numbers."""
MOST_PICTURES = 24
"""So many columns have the picture of their T in the page; those of all are in the noise folders."""


@dataclass(frozen=True)
class Noise:
    """The noise of a column.

    Attributes:
        facts: seed of the cell -> what its noise.json holds.
        folders: seed -> the artefact's folder, below the output folder.
        asked, realised: T of the first seed as numbers; None where there are too many classes, or nobody knows it.
        picture: both as a picture (a data URI), of the first seed; "" where there is none.
        seed: the first seed.
    """

    facts: dict[int, dict[str, Any]]
    folders: dict[int, str]
    asked: list[list[float]] | None
    realised: list[list[float]] | None
    picture: str
    seed: int

    def rate(self, key: str) -> str:
        """A rate in %: its mean over the seeds, with the range where they differ."""
        told = [facts[key] for facts in self.facts.values() if isinstance(facts.get(key), (int, float))]
        if not told:
            return "unknown"
        low, high, mean = min(told), max(told), math.fsum(told) / len(told)
        spread = "" if high - low < 5e-5 else f" ({100 * low:.2f}–{100 * high:.2f})"
        return f"{100 * mean:.2f}{spread}"


def noise_of(runs: Sequence[Run], out: Path, picture: bool) -> Noise | None:
    """The noise of the runs of one column; None where none of them has begun.

    Args:
        picture: whether to take the picture of T into the page.
    """
    folders: dict[int, str] = {}
    for run in runs:
        if run.config.get("noise_folder"):
            folders.setdefault(run.seed, str(run.config["noise_folder"]))
    facts = {seed: read_json(out / folder / "noise.json") or {} for seed, folder in sorted(folders.items())}
    facts = {seed: found for seed, found in facts.items() if found}
    if not facts:
        return None
    seed = next(iter(facts))
    folder = out / folders[seed]
    told = read_json(folder / "transition.json") or {}
    asked = _matrix(told.get("asked")) or _stored(folder)
    realised = _matrix(told.get("realised"))
    shown = "" if not picture or (asked and realised) else _picture(folder / "transition.png")
    return Noise(facts, folders, asked, realised, shown, seed)


def by_column(runs: Sequence[Run], out: Path, columns: Sequence[Column]) -> dict[Column, Noise]:
    """The noise of each column of which a cell has begun."""
    found: dict[Column, Noise] = {}
    for column in columns:
        noise = noise_of([run for run in runs if run.column == column], out, len(found) < MOST_PICTURES)
        if noise is not None:
            found[column] = noise
    return found


def _matrix(given: Any) -> list[list[float]] | None:
    """T as it was written, null where a class has no samples."""
    with suppress(TypeError, ValueError):
        matrix = np.array(given, dtype=np.float64)
        if matrix.ndim == 2 and len(matrix) <= MOST_STATES:
            rows: list[list[float]] = matrix.tolist()
            return rows
    return None


def _stored(folder: Path) -> list[list[float]] | None:
    from noisebench import noise

    with suppress(UserError):
        noisy = noise.load(folder)
        return _matrix(noisy.transition) if noisy.known and noisy.states <= MOST_STATES else None
    return None


def _picture(file: Path) -> str:
    """A picture as a data URI, in few colours and at the size that a page shows."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.thumbnail((1100, 1100))
            few = picture.convert("RGB").quantize(96, dither=Image.Dither.NONE)
    except (OSError, SyntaxError, ValueError):
        return ""
    out = io.BytesIO()
    few.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
