"""How long a report takes to make and to open: a board of 2,000 cells that is written here, and boards that you name.

python scripts/bench_report.py                     # 20 methods x 20 columns x 5 seeds, 60 epochs
python scripts/bench_report.py --out noisebench-runs --board digits

Prints a line of JSON each: seconds of the whole command, and of the processor in it (what it takes on a machine that
does nothing else), megabytes, milliseconds of Chromium from the navigation to the load event, to the first frame after
it, and of a click that sorts. It needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from report_boards import benchmark, write_board

FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
SORT = """async () => {
  const start = performance.now();
  document.querySelectorAll('table.sort thead button')[2].click();
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


def large(out: Path, methods: int, columns: int, seeds: int, epochs: int) -> Path:
    """Write a board with its runs; its YAML file."""
    rates = [round(0.9 * i / columns, 3) for i in range(1, columns + 1)]
    board = benchmark(
        name="large",
        title=f"{methods} methods, {columns} columns, {seeds} seeds",
        noise=[{"kind": "symmetric", "rate": rate, "include_true": False} for rate in rates],
        seeds=list(range(seeds)),
        methods=[
            {"name": "gce", "label": f"gce {i}", "hparams": {"q": 0.1 + 0.8 * i / methods}} for i in range(methods)
        ],
        recipe={"backbone": "small_cnn", "epochs": epochs, "validation": 0.1},
    )
    write_board(board, out)
    file = out / "large.yaml"
    file.write_text(yaml.safe_dump(board.model_dump(mode="json", exclude_defaults=True)))
    return file


def measure(board: str, out: Path) -> dict[str, Any]:
    """Make the report of a board and open it."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "noisebench", "report", board, "--out", str(out), "--json"]
    done = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"board": done["board"], "cells": done["cells"], "seconds": round(time.perf_counter() - began, 2)}
    found |= {"processor_seconds": round(processor, 2)}
    return found | {"megabytes": round(done["bytes"] / 1e6, 2), "mlflow": done["mlflow"], **opened(Path(done["path"]))}


def opened(file: Path) -> dict[str, Any]:
    """Milliseconds of a browser; the best of three, each in a fresh one."""
    from playwright.sync_api import sync_playwright

    tries = []
    with sync_playwright() as engine:
        for _ in range(3):
            browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(file.as_uri())
            load = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            tries.append({"load_ms": round(load), "frame_ms": round(page.evaluate(FRAME))})
            tries[-1] |= {"sort_ms": round(page.evaluate(SORT))}
            tries[-1] |= {"elements": page.evaluate("document.querySelectorAll('*').length")}
            browser.close()
    return min(tries, key=lambda one: one["frame_ms"])


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", help="a board that was run; none: one is written")
    parser.add_argument("--out", type=Path, default=Path("noisebench-runs"), help="where it wrote to")
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    given = parser.parse_args()
    if given.board:
        print(json.dumps(measure(given.board, given.out)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = large(Path(folder), given.methods, given.columns, given.seeds, given.epochs)
        print(json.dumps(measure(str(file), Path(folder))))


if __name__ == "__main__":
    main()
