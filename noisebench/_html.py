"""Tables and lines as HTML for notebooks: inline styles alone, in the page's own colours, so that any theme fits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisebench.drawing import Grid, Parts

RED = "#d55e00"  # readable on white and on black, and told from both by the colour-blind
_LOOKS = {"red": f"color: {RED}", "dim": "opacity: 0.7"}
_CELL = "padding: 0.15em 0.9em 0.15em 0; text-align: left; white-space: nowrap; vertical-align: top"
_TABLE = "border-collapse: collapse; margin: 0 0 0.6em 0; table-layout: auto; font-variant-numeric: tabular-nums"


def block(*pieces: str) -> str:
    """The pieces as one output."""
    return f'<div class="noisebench">{"".join(pieces)}</div>'


def table(grid: Grid, corner: str = "method", titled: bool = True) -> str:
    """A grid as a table that scrolls sideways where it is too wide; `corner` stands above the rows' names."""
    from noisebench.drawing import _aligned

    columns = [_aligned([row[i] for _, row in grid.rows]) for i in range(len(grid.heads))]
    caption = f'<caption style="caption-side: top; {_CELL}"><b>{escape(grid.title)}</b></caption>' if titled else ""
    heads = "".join(_head("<br>".join(map(escape, lines))) for lines in [(corner,), *grid.heads])
    rows = []
    for i, (name, row) in enumerate(grid.rows):
        line = "; border-bottom: 1px solid currentColor" if i == grid.last_fair else ""
        cells = [_cell(column[i], parts, line) for column, parts in zip(columns, row, strict=True)]
        rows.append(
            f'<tr><th scope="row" style="{_CELL}; font-weight: normal{line}">{escape(name)}</th>{"".join(cells)}'
        )
    body = "</tr>".join([*rows, ""])
    drawn = f'<table style="{_TABLE}">{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="overflow-x: auto">{drawn}</div>'


def lines(texts: Iterable[str], failed: bool = False) -> str:
    """Lines below a table."""
    look = _LOOKS["red"] if failed else "opacity: 0.8"
    return "".join(f'<p style="margin: 0; font-size: 90%; {look}">{escape(text)}</p>' for text in texts)


def folded(title: str, content: str) -> str:
    """What a click on the title shows."""
    return f'<details style="margin: 0.4em 0 0 0"><summary>{escape(title)}</summary>{content}</details>'


def _head(content: str) -> str:
    return f'<th scope="col" style="{_CELL}; border-bottom: 1px solid currentColor">{content}</th>'


def _cell(text: str, parts: Parts, line: str) -> str:
    # Figure spaces, as wide as a digit, where the terminal's columns have blanks to keep numbers under each other.
    text = escape(re.sub("^ +|(?<= ) +", lambda blanks: "\u2007" * len(blanks[0]), text))
    content = f"<b>{text}</b>" if parts.bold else text
    if parts.style in _LOOKS:  # of the text alone: a line below the cell keeps its own colour
        content = f'<span style="{_LOOKS[parts.style]}">{content}</span>'
    return f'<td style="{_CELL}{line}">{content}</td>'
