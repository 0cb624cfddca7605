"""`Finding`: what a figure function returns: the numbers, facts about them and the picture; and how it is written."""

from __future__ import annotations

import csv
import functools
import io
import math
import secrets
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from matplotlib import rc_context
from matplotlib.figure import Figure

from noisebench.files import write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
T = TypeVar("T")

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by the colour-blind
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d1f")
"""Of lines: Okabe and Ito's, but for yellow, which is hard to see on white."""
MARKERS = "osD^vPX*"
CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Of up to ten classes: Petroff 2021, "Accessible color sequences for data visualization"."""

DPI = 150
"""Dots an inch of a PNG."""

STYLE: Any = {
    "text.parse_math": False,  # a $ in a title or a label is a $
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}


def drawn(make: Callable[P, T]) -> Callable[P, T]:
    """A function that draws, within the style of all figures."""

    @functools.wraps(make)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with rc_context(STYLE):
            return make(*args, **kwargs)

    return inside


@dataclass
class Finding:
    """The numbers of a figure as a table, facts about them, and the picture.

    Attributes:
        columns: names of the table's columns, with units where they are not shares or counts.
        rows: a tuple of values a row; a number that is not there is None, or NaN.
        facts: what the numbers are of, e.g. a p-value; plain data.
        figure: matplotlib's, to be changed or shown.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    facts: dict[str, Any]
    figure: Figure

    def as_json(self) -> dict[str, Any]:
        """What its JSON file holds: the facts, and ``rows`` as dicts; null where a number is not finite."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        found: dict[str, Any] = _finite({**self.facts, "rows": rows})
        return found

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame."""
        import pandas as pd

        return pd.DataFrame.from_records(self.rows, columns=list(self.columns))

    def write(self, stem: Path) -> list[Path]:
        """Write PNG, PDF, CSV and JSON of this stem, each as a whole; their paths.

        The same numbers give the same bytes: the PDF has no date. Its text is text, in embedded TrueType fonts.
        """
        png, pdf, table, facts = (stem.with_name(f"{stem.name}.{end}") for end in ("png", "pdf", "csv", "json"))
        text = io.StringIO()
        rows = [[None if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in self.rows]
        csv.writer(text, lineterminator="\n").writerows([self.columns, *rows])
        write_text(table, text.getvalue())
        write_json(facts, self.as_json())
        with self._laid_out():
            self._save(png, dpi=DPI)
            self._save(pdf, metadata={"CreationDate": None})
        return [png, pdf, table, facts]

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        with self._laid_out():
            self._draw(file, "png", dpi=110)
        return file.getvalue()

    @contextmanager
    def _laid_out(self) -> Iterator[None]:
        """The layout is found once: every drawing would do so again, twice, which takes most of its time."""
        engine = self.figure.get_layout_engine()
        with rc_context(STYLE):
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        try:
            yield
        finally:
            self.figure.set_layout_engine(engine)

    def _save(self, path: Path, **options: Any) -> None:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            self._draw(aside, path.suffix[1:], **options)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @drawn
    def _draw(self, file: Any, form: str, **options: Any) -> None:
        self.figure.savefig(file, format=form, bbox_inches="tight", pad_inches=0.12, **options)


def _finite(value: Any) -> Any:
    """Plain data with None where a number is not finite, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def cut(name: str, limit: int = 30) -> str:
    """A name of at most so many characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def wrapped(title: str, figure: Figure) -> str:
    """In lines that fit the figure at size 11."""
    return textwrap.fill(title, int(11.5 * figure.get_figwidth()))


def plain(axis: Any) -> None:
    """No frame where nothing is read."""
    axis.spines[["top", "right"]].set_visible(False)
