"""A leaderboard's table for people: Markdown and LaTeX for files, with the full details, and HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from noisebench import _html
from noisebench.drawing import Grid, beside_the_paper, detail_grids, even, failures, main_grid, notes
from noisebench.table import Table


def sections(table: Table) -> list[tuple[Grid, list[str]]]:
    """The ranking, the details, what a paper published; each with the lines below it."""
    details = [(grid, list[str]()) for grid in detail_grids(table)]
    return [(main_grid(table), [*notes(table), *failures(table)]), *details, *beside_the_paper(table)]


def markdown(table: Table) -> str:
    """See `Table.to_markdown`."""

    def draw(grid: Grid) -> Iterator[str]:
        lines = [["method", *(" ".join(head) for head in grid.heads)]]
        lines = [[_markdown(text) for text in line] for line in lines] + [["---"] * (len(grid.heads) + 1)]
        for name, row in grid.rows:
            texts = [f"**{_markdown(str(parts))}**" if parts.bold else _markdown(str(parts)) for parts in row]
            lines.append([_markdown(name), *texts])
        return (f"| {' | '.join(line)} |" for line in lines)

    lines: list[str] = []
    for grid, below in sections(table):
        lines += ["", f"## {_markdown(grid.title)}"] if lines else [f"# {_markdown(grid.title)}"]
        lines += ["", *draw(grid)]
        lines += ["", *(f"- {_markdown(line)}" for line in below)] if below else []
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """See `Table.to_latex`."""

    def draw(grid: Grid) -> Iterator[str]:
        for piece in grid.pieces(even(len(grid.heads), -(-len(grid.heads) // 5))):
            heads = [r" \\ ".join(map(_latex, head)) for head in piece.heads]
            yield rf"\begin{{tabular}}{{l{'r' * len(heads)}}}"
            yield r"\toprule"
            yield " & ".join(["method", *(rf"\shortstack[r]{{{head}}}" for head in heads)]) + r" \\"
            yield r"\midrule"
            for i, (name, row) in enumerate(piece.rows):
                texts = [rf"\textbf{{{_latex(str(parts))}}}" if parts.bold else _latex(str(parts)) for parts in row]
                yield " & ".join([_latex(name), *texts]) + r" \\"
                if i == piece.last_fair:
                    yield r"\midrule"
            yield r"\bottomrule"
            yield r"\end{tabular}\par\medskip"

    lines = [r"% needs \usepackage{booktabs}"]
    for grid, below in sections(table):
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}", *draw(grid)]
        if below:
            lines += [r"\begin{minipage}{\linewidth}\footnotesize"]
            lines += [*(_latex(line) + r"\par" for line in below), r"\end{minipage}"]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def html(table: Table) -> str:
    """See `Table._repr_html_`: what the terminal shows, but with the ranking first and the details folded below it."""
    pieces = [_html.table(main_grid(table)), _html.lines(notes(table, "short"))]
    pieces.append(_html.lines(failures(table), failed=True))
    for grid, below in beside_the_paper(table):
        pieces += [_html.table(grid), _html.lines(below)]
    pieces += [_html.folded(grid.title, _html.table(grid, titled=False)) for grid in detail_grids(table, "short")]
    return _html.block(*pieces)


def _markdown(text: str) -> str:
    """`text` such that Markdown shows it literally, inside a table too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


LATEX = {char: "\\" + char for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # \\ at the end of the row before would take [ or * for its own argument
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "·": r"$\cdot$",
    "–": r"\textendash{}",
}


def _latex(text: str) -> str:
    """`text` such that LaTeX shows it literally."""
    return "".join(LATEX.get(char, char) for char in text).replace("--", "-{}-")  # no dash for two hyphens
