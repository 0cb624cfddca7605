"""What stands in a report, as plain data, and the page made of it (templates/report.html.j2)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from noisebench import _report_sections as sections
from noisebench import drawing
from noisebench._report_noise import by_column
from noisebench._report_runs import Run, distinct, grouped
from noisebench._report_tracking import BoardRun
from noisebench.board_files import with_changes
from noisebench.config import Benchmark
from noisebench.metrics import METRICS
from noisebench.table import Table
from noisebench.table_cells import Cell, Column, Kind, one_line

UNFOLDED = 4
"""Up to so many columns their figures and details are open from the start."""
LOW_FIRST = {"rank", "seconds", *(metric.title for metric in METRICS.values() if not metric.higher_is_better)}


def page(benchmark: Benchmark, table: Table, runs: Sequence[Run], out: Path, command: str, board_run: BoardRun) -> str:
    """The HTML of a board's report.

    Args:
        benchmark: the board.
        table: of the results of `runs`.
        runs: all cells.
        out: the folder that the board wrote to; the page stands in ``boards/NAME/`` of it, which its links start from.
        command: makes the board again.
        board_run: of MLflow.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("noisebench", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(len=len)
    noise = by_column(runs, out, table.columns)
    places = grouped(runs)
    legend = sections.legend(table)
    context: dict[str, Any] = {
        "title": table.title,
        "name": benchmark.name,
        "about": one_line(benchmark.description),
        "facts": facts(benchmark, table, runs),
        "main": main_table(table, places, board_run),
        "lines": drawing.notes(table),
        "failures": drawing.failures(table),
        "unfolded": len(table.columns) <= UNFOLDED,
        "legend": legend,
        "ranks": sections.ranks(table),
        "rates": sections.rates(benchmark, table),
        "numbers": [grid_of(grid) for grid in drawing.detail_grids(table)],
        "curves": sections.curves(table, places),
        "calibration": sections.reliability(table, places),
        "cost": sections.cost(table, runs),
        "noise": sections.noise(table, noise),
        "paper": [{**grid_of(grid), "notes": lines} for grid, lines in drawing.beside_the_paper(table)],
        "setup": sections.setup(benchmark, runs),
        "command": command,
        "mlflow": board_run.page,
    }
    text = environment.get_template("report.html.j2").render(context)
    return re.sub(r"\n\s*\n+", "\n", text) + "\n"


def facts(benchmark: Benchmark, table: Table, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The board in a few words: what a reader looks for first."""
    states = [str(run.result["status"]) for run in runs]
    told = [f"{states.count('finished')} of {len(states)} finished"]
    told += [f"{states.count('failed')} failed"] if "failed" in states else []
    told += [f"{states.count('missing')} not run"] if "missing" in states else []
    metric = " / ".join(dict.fromkeys(METRICS[table.ranking_of(c).metric].title for c in table.columns))
    rule = {"selected": "epoch selected on noisy labels", "last": "last epoch", "best": "best test epoch (oracle)"}
    recipes = [with_changes(benchmark.recipe, row.recipe) for row in benchmark.methods]  # a row may have its own
    seeds = f"{len(benchmark.seeds)} ({', '.join(map(str, benchmark.seeds[:10]))}{'…' * (len(benchmark.seeds) > 10)})"
    return [
        ("Methods", str(len(table.methods))),
        ("Columns", str(len(table.columns))),
        ("Seeds", seeds + (": no sd, no test" if len(benchmark.seeds) == 1 else "")),
        ("Cells", ", ".join(told)),
        ("Ranked by", f"{metric}, {rule[table.ranking.rule]}"),
        ("Epochs", ", ".join(distinct(recipe.epochs for recipe in recipes))),
        ("Network", ", ".join(distinct(recipe.backbone for recipe in recipes))),
        ("Rules", ", ".join(map(str, table.rules)) or "unknown"),
    ]


def head_of(lines: Sequence[str]) -> dict[str, Any]:
    """A head of a column: its lines, and which way it is sorted first."""
    words = {line.removesuffix(" (last)") for line in lines}
    return {"lines": list(lines), "first": "ascending" if words & LOW_FIRST else "descending"}


def part_of(parts: drawing.Parts) -> dict[str, Any]:
    """The text of a cell and how it is shown."""
    wrong = "failed" in parts.mean or parts.mean == "not finite"
    absent = parts.mean in ("not run", "–")
    style = "best" if parts.bold else "wrong" if wrong else "absent" if absent else ""
    return {"mean": parts.mean, "sd": parts.sd, "marks": parts.marks, "style": style}


def grid_of(grid: drawing.Grid) -> dict[str, Any]:
    """A `Grid` as the template draws it: fair rows, then the privileged ones."""
    rows = [{"name": name, "cells": [part_of(parts) for parts in row]} for name, row in grid.rows]
    fair = len(rows) - grid.references
    heads = [head_of(head) for head in grid.heads]
    return {"title": grid.title, "heads": heads, "bodies": [rows[:fair], *([rows[fair:]] if grid.references else [])]}


def main_table(table: Table, places: dict[tuple[str, Column], list[Run]], board_run: BoardRun) -> dict[str, Any]:
    """The ranking: every cell with the seeds behind it."""
    found = grid_of(drawing.main_grid(table))
    for i, method in enumerate(table.methods):
        fair = len(found["bodies"][0])
        row = found["bodies"][0][i] if i < fair else found["bodies"][1][i - fair]
        for cell, column in zip(row["cells"][1:], table.columns, strict=True):
            kind = table.ranking_of(column)
            numbers = table.cells[method, column, kind]
            cell["seeds"] = [_seed(run, kind, dict(numbers.values), board_run) for run in places[method, column]]
            cell["p"] = _p_value(numbers)
    return found


def _seed(run: Run, kind: Kind, values: dict[int, float | None], board_run: BoardRun) -> dict[str, Any]:
    """A seed of a cell: its number, or why it has none, and where its run is."""
    value, why, status = values.get(run.seed), "", run.result["status"]
    if value is not None:
        text = drawing.Parts.of(Cell(((run.seed, value),), 1, 0, 0, mean=value), kind.metric).mean
    elif status == "finished":
        text = "not finite" if run.seed in values else "–"
    else:
        text = "failed" if status == "failed" else "not run"
        why = one_line(str(run.result.get("reason", "")))
    # Of such boards every report stands two folders below the runs.
    href = f"../../{quote(run.folder)}/" if run.folder else ""
    return {"seed": run.seed, "text": text, "why": why, "href": href, "mlflow": board_run.page_of(run.folder)}


def _p_value(cell: Cell) -> str:
    if cell.p_holm is None or math.isnan(cell.p_holm):
        return ""
    return f"p = {cell.p_holm:.2g}" if cell.p_holm >= 1e-4 else "p < 0.0001"
