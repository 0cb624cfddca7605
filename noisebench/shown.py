"""How a notebook shows a run of `noisebench.fit` and the labels of `noisebench.noise.inject`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from noisebench import _html
from noisebench.drawing import Grid, Parts
from noisebench.metrics import RULES, Metric, about
from noisebench.table_cells import Cell, one_line

if TYPE_CHECKING:
    from noisebench._noise_labels import NoisyLabels
    from noisebench.fitting import Result


def result_html(result: Result) -> str:
    """See `Result._repr_html_`."""
    rules = [rule for rule in RULES if rule in result.metrics]
    names = [name for name in result.metrics[rules[-1]] if name != "epoch"]
    known = [about(name) or Metric(name, False, False) for name in names]
    heads: list[tuple[str, ...]] = [(f"{metric.title} %" if metric.percent else metric.title,) for metric in known]
    rows = []
    for rule in rules:
        at = result.metrics[rule]
        name = f"{'best (oracle)' if rule == 'best' else rule}: {at['epoch']:g}"
        rows.append((name, [_number(at[metric], metric) if metric in at else Parts("–") for metric in names]))
    lines = ["; ".join(f"{rule}: {RULES[rule]}" for rule in rules) + ". One seed: no sd.", _about(result.noise)]
    needs = result.method.needs_with(result.method.hparams)
    if needs:
        lines.append(f"‡: given more than noisy labels ({one_line(', '.join(needs))}); a leaderboard does not rank it.")
    if result.damaged:
        lines.append(f"Images that do not decode: {len(result.damaged)}; grey in their place, `damaged` names them.")
    title = one_line(result.title) + (" ‡" if needs else "")
    return _html.block(_html.table(Grid(title, heads, rows, 0), "epoch"), _html.lines(lines))


def noise_html(noise: NoisyLabels) -> str:
    """See `NoisyLabels._repr_html_`."""
    shares = {"asked": noise.rate, "expected": noise.expected_rate, "realised": noise.realised_rate}
    parts = [Parts("–") if share is None else _number(share, "accuracy") for share in shares.values()]
    counts = {"labels": len(noise.labels), "classes": noise.num_classes}
    heads: list[tuple[str, ...]] = [*((f"{name} %",) for name in shares), *((name,) for name in (*counts, "seed"))]
    parts += [*(Parts(f"{count:,}") for count in counts.values()), Parts(str(noise.seed))]
    grid = Grid("Noisy labels", heads, [(one_line(noise.description), parts)], 0)
    many = " (of entries)" if noise.labels.ndim == 2 else ""
    line = f"expected: the share of wrong labels{many} that T implies for these; realised: the share as drawn."
    return _html.block(_html.table(grid, "noise"), _html.lines([line if noise.known else UNKNOWN]))


UNKNOWN = "Nobody knows the true labels, and so no rate."


def _about(noise: NoisyLabels) -> str:
    """The noise of a run in a line."""
    if noise.realised_rate is None:
        return f"Training labels: {one_line(noise.description)}. {UNKNOWN}"
    asked = "" if noise.rate is None else f"{noise.rate:.2%} asked, "
    return f"Training labels: {one_line(noise.description)}; {asked}{noise.realised_rate:.2%} wrong."


def _number(value: float, metric: str) -> Parts:
    number = float(value) if math.isfinite(value) else None
    return Parts.of(Cell(((0, number),), 1, 0, 0, number), metric)
