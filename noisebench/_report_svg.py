"""matplotlib figures as inline SVG: text as text, colours of the page, ids that are the figure's own, few bytes."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
"""What is drawn in this colour has that of the page's text, light or dark."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#f0e442")
"""Okabe and Ito 2008, blind-safe; black is the page's ink. The page may lighten or darken one: see report.css."""
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vPX*<>hp"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


def look(series: int) -> dict[str, Any]:
    """How the lines of a method are drawn in every figure: the colour first, then the dashes tell them apart."""
    place = series % len(PALETTE)
    return {
        "color": PALETTE[place],
        "linestyle": DASHES[series // len(PALETTE) % len(DASHES)],
        "marker": MARKERS[(series + series // len(MARKERS)) % len(MARKERS)],
    }


def inline(
    figure: Figure, name: str, title: str, about: str, names: list[str] | None = None, tight: bool = False
) -> str:
    """A figure as an ``<svg>`` element.

    Args:
        name: of its own in the page; begins every id in it.
        title: shown as a tooltip, and read out.
        about: read out after it.
        names: what is drawn with the gid ``s<i>`` is of the i-th of them: it gets the class, and the name as title.
        tight: cut to what is drawn.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        box = "tight" if tight else None
        figure.savefig(out, format="svg", transparent=True, bbox_inches=box, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    labels = iter(re.findall(r">([^<]*)</text>", text))  # a name may look like what is shortened
    text = re.sub(r">[^<]*</text>", "></text>", text)
    text = re.sub(r"\bid=\"([sb])(\d+)\"", r'class="\1 \1\2"', text)
    text = _own_ids(text, name)
    text = re.sub("></text>", lambda _: f">{next(labels)}</text>", _short(text))
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", lambda m: _head(m[1], title, about), text, count=1)
    for i, method in enumerate(names or ()):
        text = text.replace(f'<g class="s s{i}">', f'<g class="s s{i}"><title>{escape(method)}</title>')
    return text.strip()


def _head(box: str, title: str, about: str) -> str:
    told = f'role="img" aria-label="{escape(title)}"'
    return f'<svg class="fig" {box} {told}><title>{escape(title)}</title><desc>{escape(about)}</desc>'


def _own_ids(text: str, name: str) -> str:
    """Only ids that something points to, each the figure's own."""
    used = dict.fromkeys(re.findall(r"(?:xlink:href=\"#|url\(#)([^\")]+)", text))
    new = {old: f"{name}-{i}" for i, old in enumerate(used)}
    text = re.sub(r" id=\"([^\"]+)\"", lambda m: f' id="{new[m[1]]}"' if m[1] in new else "", text)
    return re.sub(r"(xlink:href=\"#|url\(#)([^\")]+)", lambda m: m[1].removeprefix("xlink:") + new[m[2]], text)


def _short(text: str) -> str:
    """The page's colours and fonts, a decimal where matplotlib writes six, no blanks that draw nothing."""
    for i, colour in enumerate(PALETTE):
        text = text.replace(colour, "currentColor" if colour == INK else f"var(--c{i})")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size:\1", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r" (?:d|x|y|transform|width|height)=\"[^\"]*\"", _rounded, text)
    text = re.sub(r"> <", "><", text)
    text = re.sub(r"(?<=[a-z]): ", ":", text)
    text = re.sub(r"; (?=[a-z])", ";", text)
    return re.sub(r"<defs></defs>|<defs/>| ?(?:stroke-linejoin|stroke-linecap):\w+;?|<g></g>", "", text)


def _rounded(attribute: re.Match[str]) -> str:
    found = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), attribute[0])
    return re.sub(r" (?=[MLQCz\"])|(?<=[MLQC]) ", "", found) if found.startswith(" d=") else found


def swatch(series: int) -> str:
    """A piece of a method's line for the legend, marker and all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(0.5, 0.18))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.plot([0, 1, 2], [0, 0, 0], markevery=[1], **look(series))
        axis.set(xlim=(0, 2), ylim=(-1, 1))
        found = inline(figure, f"key{series}", "", "")
    head = '<svg class="fig key" viewBox="0 0 36 12.96" aria-hidden="true">'
    return head + found[found.index("</desc>") + len("</desc>") :]
