"""The sections of a report below its ranking, each as the template takes it: figures, their numbers, their captions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from markupsafe import Markup

from noisebench import _report_figures as figures
from noisebench._report_noise import Noise
from noisebench._report_ranks import Separation, separation
from noisebench._report_runs import Run, distinct, line_of, reliability_of, thinned
from noisebench._report_svg import swatch
from noisebench.config import Benchmark
from noisebench.drawing import Parts, name_of
from noisebench.metrics import METRICS
from noisebench.reading import to_yaml
from noisebench.table import Table
from noisebench.table_cells import Column, one_line

MOST_COLUMNS = 40
"""So many columns have figures: the page must open at once."""
TABLED_EPOCHS = 10
MOST_POINTS, ALL_POINTS = 120, 16_000
"""Points of a line of epochs, and about those of all lines of a panel: a page of 20 x 20 lines must stay small."""

Places = Mapping[tuple[str, Column], Sequence[Run]]


def title_of(column: Column) -> str:
    """``digits · symmetric 40%``."""
    return one_line(" · ".join(column))


FIGURED = ("rates", "curves", "calibration")
"""The sections that have a legend."""


def legend(table: Table) -> list[dict[str, Any]]:
    """A row a method: its name and its line, which is the same in all figures; one for each section, for their ids."""
    rows = []
    for i, method in enumerate(table.methods):
        drawn = swatch(i)
        lines = {section: Markup(drawn.replace(f"key{i}-", f"{section}{i}-")) for section in FIGURED}
        rows.append({"place": i, "name": name_of(table, method), "lines": lines})
    return rows


def _figure(svg: str) -> dict[str, Any]:
    return {"svg": Markup(svg)}  # `inline` escapes every name in it


def ranks(table: Table) -> dict[str, Any]:
    """The critical-difference diagram, or why there is none."""
    found = separation(table)
    if not isinstance(found, Separation):
        return {"figure": None, "notes": [found]}
    svg = figures.critical_difference("cd", "Critical-difference diagram of the mean ranks", found)
    return {"figure": _figure(svg), "notes": found.notes}


def rates(benchmark: Benchmark, table: Table) -> dict[str, Any]:
    """The ranking number against the noise rate, a figure a dataset and kind of noise."""
    several, single = figures.families(benchmark)
    drawn = []
    for i, one in enumerate(several[:MOST_COLUMNS]):
        title = f"{one_line(one.dataset)} · {one.kind}"
        cells = [
            {
                "name": name_of(table, m),
                "cells": [str(Parts.of(table.cells[m, c, k], k.metric)) for c, k in _ranked(table, one)],
            }
            for m in table.methods
        ]
        if any(table.cells[m, c, k].mean is not None for m in table.methods for c, k in _ranked(table, one)):
            svg = figures.against_rate(f"rate{i}", title, table, one, table.methods)
            heads = [f"{100 * rate:g}%" for rate, _ in one.columns]
            drawn.append({**_figure(svg), "title": title, "heads": heads, "rows": cells})
    told = "; ".join(f"{one_line(one.dataset)}, {one.kind}: {100 * one.columns[0][0]:g}% alone" for one in single)
    notes = [f"A curve takes two rates of a kind of noise, clean labels (0%) among them. {told}."] if single else []
    if not single and not several:
        notes = ["No noise of this board has a rate."]
    if len(several) > MOST_COLUMNS:
        notes.append(f"{len(several) - MOST_COLUMNS} more are left out here; the table has their numbers.")
    return {"figures": drawn, "notes": notes}


def _ranked(table: Table, one: figures.Rates) -> list[tuple[Column, Any]]:
    return [(column, table.ranking_of(column)) for _, column in one.columns]


# -------------------------------------------------------------------------------------------- figures by the column


def curves(table: Table, places: Places) -> dict[str, Any]:
    """Learning curves: the test score, and the memorised share of the wrong labels, by epoch."""
    drawn: list[dict[str, Any]] = []
    most = min(MOST_POINTS, max(20, ALL_POINTS // max(1, len(table.methods) * len(table.columns[:MOST_COLUMNS]))))
    longest = max((len(run.epochs) for runs in places.values() for run in runs), default=0)
    for i, column in enumerate(table.columns[:MOST_COLUMNS]):
        score = METRICS[table.scores[column]].title
        panels = []
        for key, label in ((f"test.{table.scores[column]}", f"test {score}"), ("train.memorised", "memorised")):
            lines = {j: line_of(places.get((m, column), ()), key, most) for j, m in enumerate(table.methods)}
            known = {j: line for j, line in lines.items() if line is not None}
            if not known:
                continue
            what = f"{label} (%)" if label != "memorised" else "wrong labels memorised (%)"
            svg = figures.epochs(f"curve{i}{label[0]}", f"{title_of(column)}: {what}", what, known, table.methods)
            shown = thinned(max((line.epochs for line in known.values()), key=len), TABLED_EPOCHS)
            rows = [
                {
                    "name": name_of(table, table.methods[j]),
                    "cells": [_percent(dict(zip(line.epochs, line.mean, strict=True)).get(epoch)) for epoch in shown],
                }
                for j, line in known.items()
            ]
            panels.append({**_figure(svg), "title": what, "heads": [str(epoch) for epoch in shown], "rows": rows})
        drawn.append({"title": title_of(column), "panels": panels, "note": _curve_note(panels)})
    many = len(table.methods) > figures.FEW_BANDS
    thin = f"{most} of the {longest} epochs are drawn." if longest > most else ""
    return {"columns": drawn, "left": len(table.columns) - len(drawn), "many": many, "thin": thin}


def _curve_note(panels: Sequence[dict[str, Any]]) -> str:
    if not panels:
        return "No run of this column has finished, so there are no curves."
    if len(panels) == 1:
        return "No memorised share: no clean training labels are known here, none is wrong, or no run reports it."
    return ""


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def reliability(table: Table, places: Places) -> dict[str, Any]:
    """Reliability diagrams of the last epoch."""
    drawn, without = [], []
    for i, column in enumerate(table.columns[:MOST_COLUMNS]):
        lines = {j: reliability_of(places.get((m, column), ())) for j, m in enumerate(table.methods)}
        known = {j: line for j, line in lines.items() if line is not None}
        title = title_of(column)
        if not known:
            without.append(title)
            continue
        bins = sorted({b for line in known.values() for b in line.bins})
        of = max(line.of for line in known.values())
        rows = []
        for j, line in known.items():
            at = {b: f"{a:.2f} ({n:,})" for b, a, n in zip(line.bins, line.accuracy, line.count, strict=True)}
            rows.append({"name": name_of(table, table.methods[j]), "cells": [at.get(b, "–") for b in bins]})
        svg = figures.calibration(f"cal{i}", f"Calibration on {title}", known, table.methods)
        heads = [f"{b / of:.2f}–{(b + 1) / of:.2f}" for b in bins]
        drawn.append({**_figure(svg), "title": title, "heads": heads, "rows": rows})
    notes = []
    if without:
        lacking = "; ".join(without) if drawn else "this board"
        notes.append(f"No run of {lacking} has written its calibration: none has finished, or an older version ran it.")
    return {"figures": drawn, "notes": notes, "least": figures.LEAST}


# ------------------------------------------------------------------------------------------------ time and memory


def cost(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """Seconds and memory of the finished runs of a method on a dataset."""
    several = len({column.dataset for column in table.columns}) > 1
    rows: list[dict[str, Any]] = []
    for method in table.methods:
        for dataset in dict.fromkeys(column.dataset for column in table.columns):
            mine = [run for run in runs if run.method == method and run.column.dataset == dataset and run.finished]
            seconds = [float(s) for run in mine if isinstance(s := run.result.get("seconds"), (int, float))]
            memory = [float(m) for run in mine if isinstance(m := run.result.get("peak_memory_mb"), (int, float))]
            row: dict[str, Any] = {"name": name_of(table, method), "dataset": one_line(dataset), "runs": len(mine)}
            row |= {"seconds": median(seconds) if seconds else None, "memory": max(memory) if memory else None}
            row |= {"range": f"{min(seconds):.1f}–{max(seconds):.1f}" if len(seconds) > 1 else ""}
            rows.append(row | {"hours": sum(seconds) / 3600})
    for key in ("seconds", "memory"):
        top = max((row[key] for row in rows if row[key] is not None), default=0) or 1
        for row in rows:
            row[f"{key}_bar"] = 0 if row[key] is None else round(100 * row[key] / top, 1)
    devices = distinct(run.result.get("device") for run in runs)
    where = "of the process" if devices == ["cpu"] else "of the GPU (on the CPU: of the process)"
    return {"rows": rows, "several": several, "where": where, "any_memory": any(row["memory"] for row in rows)}


# ------------------------------------------------------------------------------------------------------ the noise


def noise(table: Table, found: Mapping[Column, Noise]) -> list[dict[str, Any]]:
    """What noise each column has, exactly."""
    shown = []
    for i, column in enumerate(table.columns):
        one = found.get(column)
        entry: dict[str, Any] = {"title": title_of(column), "id": f"noise{i}", "known": one is not None}
        if one is None:
            why = table.unavailable.get(column)
            entry["why"] = f"not run: {why}" if why else "no cell of this column has begun"
            shown.append(entry)
            continue
        first = one.facts[one.seed]
        options = {k: v for k, v in {**first.get("options", {}), "include_true": first.get("include_true")}.items()}
        told = {k: v for k, v in options.items() if v not in (None, {}, "")}
        entry |= {
            "kind": first.get("kind", ""),
            "options": ", ".join(f"{k} = {v}" for k, v in told.items()),
            "asked": "–" if first.get("rate") is None else f"{100 * first['rate']:g}",
            "expected": one.rate("expected_rate"),
            "realised": one.rate("realised_rate"),
            "labels": f"{first.get('num_samples', 0):,}",
            "hashes": [(seed, facts.get("seed"), facts.get("sha256", "")) for seed, facts in one.facts.items()],
            "matrices": [
                {"title": f"T {name}", "rows": _shades(matrix)}
                for name, matrix in (("asked", one.asked), ("realised", one.realised))
                if matrix is not None
            ],
            "picture": one.picture,
            "seed": one.seed,
            "folder": one.folders[one.seed],
            "unknown": first.get("realised_rate") is None,
        }
        shown.append(entry)
    return shown


def _shades(matrix: Sequence[Sequence[float]]) -> list[list[dict[str, Any]]]:
    """Numbers of T and how strongly each is shaded, in %."""
    return [
        [{"text": _short(value), "shade": round(100 * value) if math.isfinite(value) else 0} for value in row]
        for row in matrix
    ]


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith("0.") else text


# ----------------------------------------------------------------------------------------------- to make it again


def setup(benchmark: Benchmark, runs: Sequence[Run]) -> dict[str, Any]:
    """Versions, machines, and the board as YAML."""
    results = [run.result for run in runs if run.finished]
    versions: dict[str, list[str]] = {}
    for result in results:
        for name, version in (result.get("versions") or {"torch": result.get("torch")}).items():
            versions.setdefault(str(name), []).append(str(version) if version else "")
    rows = [(name, ", ".join(distinct(found)) or "unknown") for name, found in sorted(versions.items())]
    rows += [("device", ", ".join(distinct(result.get("device") for result in results)) or "unknown")]
    rows += [("hardware", "; ".join(distinct(result.get("hardware") for result in results)) or "not recorded")]
    rules = distinct(result.get("rules") for result in results)
    rows += [("leaderboard rules", ", ".join(f"version {one}" for one in rules) or "unknown")]
    plain = benchmark.model_dump(mode="json", exclude_defaults=True)
    for key in ("execution", "tracking", *(("published",) if benchmark.datasets else ())):  # no board has none of both
        plain.pop(key, None)
    return {"rows": rows, "yaml": to_yaml(plain)}
