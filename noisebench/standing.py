"""How a board stands: what is finished, running, failed and left, whoever runs it; from the run folders alone."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from noisebench.config import Benchmark, Cell
from noisebench.executors import Place
from noisebench.files import epochs_of, is_held, read_json, write_json

STATES = ("finished", "running", "failed", "left")


def result_of(cell: Cell, out: Path) -> dict[str, Any]:
    """What stands in the cell's folder, or a "missing" result."""
    folder = out / cell.folder()
    found = read_json(folder / "result.json") or read_json(folder / "failure.json") or {}
    return missing(cell) | found | named(cell)


def named(cell: Cell) -> dict[str, str]:
    """What a board calls a cell: another board may have the same run under another label, or as another size."""
    return {"label": cell.method.label, "dataset": cell.dataset}


def missing(cell: Cell) -> dict[str, Any]:
    """The result of a cell that has none yet."""
    return cell.identity() | {"status": "missing", "privileged": []}


@contextmanager
def driving(folder: Path, place: Place) -> Iterator[None]:
    """Say in a board's folder that this process drives it, for as long as it does."""
    host = socket.gethostname()
    for one in folder.glob("drivers/*/driver.json"):  # of killed ones
        if not is_held(one.parent):
            shutil.rmtree(one.parent, ignore_errors=True)
    ours = folder / "drivers" / f"{host}-{os.getpid()}"
    ours.mkdir(parents=True, exist_ok=True)
    with FileLock(ours / "lock"):
        facts = {"host": host, "process": os.getpid(), "executor": place.execution.executor, "since": int(time.time())}
        write_json(ours / "driver.json", facts)
        try:
            yield
        finally:
            shutil.rmtree(ours, ignore_errors=True)


def drivers(folder: Path) -> list[dict[str, Any]]:
    """The processes that drive a board now, on any machine that shares its folder."""
    alive = [one for one in sorted(folder.glob("drivers/*")) if is_held(one)]
    return [found for one in alive if (found := read_json(one / "driver.json"))]


def others_drive(out: Path) -> bool:
    """Whether another process drives a board of this output folder."""
    own = f"{socket.gethostname()}-{os.getpid()}"
    return any(one.name != own and is_held(one) for one in out.glob("boards/*/drivers/*"))


def standing(benchmark: Benchmark, out: Path) -> dict[str, Any]:
    """How a board stands, as plain data.

    Returns:
        {"board", "cells": how many; each of `STATES`: how many; "rows": {label: {state: how many}}; "running_cells" and
        "failed_cells": a dict each, with epochs and reason; "drivers": see `drivers`}.
    """
    rows: dict[str, Counter[str]] = {}
    running, failed = [], []
    for cell in benchmark.cells():
        folder, found = out / cell.folder(), result_of(cell, out)
        state = found["status"]
        about = {key: found[key] for key in ("label", "dataset", "noise", "seed")} | {"folder": str(folder)}
        if state != "finished" and is_held(folder):
            state = "running"
            running.append(about | {"epochs": epochs_of(folder), "of": cell.recipe.epochs})
        elif state == "failed":
            failed.append(about | {"reason": found["reason"]})
        rows.setdefault(cell.method.label, Counter())["left" if state == "missing" else state] += 1
    total = sum(rows.values(), Counter())
    return {
        "board": benchmark.name,
        "cells": total.total(),
        **{state: total[state] for state in STATES},
        "rows": {label: {state: counts[state] for state in STATES} for label, counts in rows.items()},
        "running_cells": running,
        "failed_cells": failed,
        "drivers": drivers(out / "boards" / benchmark.name),
    }
