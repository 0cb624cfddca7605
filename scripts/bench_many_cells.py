"""What a board of thousands of tiny cells costs beyond its training, and its table from a store with many more runs.

    python scripts/bench_many_cells.py [--cells 2000] [--runs 50000] [--jobs 2] [--only cells|table]

cells: a board of one-epoch cells on the digits (10 rows, 2 kinds of noise), local workers, SQLite store, through the
command line, MLflow's last answer included. Beyond training: wall time of all slots, less the seconds that the cells
themselves count (an epoch with its evaluation), a cell. It wants a machine that does nothing else.
table: `noisebench leaderboard --rebuild mlflow` of a board of that many cells, in a store of so many runs, most of them
of other boards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noisebench import tracking
from noisebench.config import Benchmark, load_benchmark

BEYOND, TABLE = 0.3, 10.0
ROWS, NOISES = 10, 2
METRICS = [f"{which}.{key}" for which in ("last", "selected", "best") for key in ("epoch", "accuracy", "nll", "ece")]
METRICS += ["run.seconds", "test.accuracy", "test.nll", "test.ece", "train.loss", "val.accuracy", "seconds"]


def write_benchmark(folder: Path, cells: int) -> Path:
    """A YAML file of so many cells: rows of one method, so that all of them train alike."""
    rows = [{"name": "gce", "label": f"gce {i}", "hparams": {"q": round(0.1 + 0.05 * i, 2)}} for i in range(ROWS)]
    board = {
        "name": "tiny",
        "title": "Tiny cells",
        "datasets": ["digits"],
        "noise": [{"kind": "symmetric", "rate": 0.4}, {"kind": "asymmetric", "rate": 0.4}],
        "seeds": list(range(cells // (ROWS * NOISES))),
        "methods": rows,
        "recipe": {"epochs": 1},
    }
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(board))
    return file


def leaderboard(file: Path, out: Path, *options: str) -> tuple[float, float, str]:
    """Run the command; its wall seconds, its CPU seconds with all of its processes, its output."""
    command = [sys.executable, "-W", "ignore", "-m", "noisebench.cli", "leaderboard", str(file), "--out", str(out)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, cpu, done.stdout


def bench_cells(folder: Path, cells: int, jobs: int) -> None:
    """Print what a cell costs beyond its training."""
    seconds, cpu, said = leaderboard(write_benchmark(folder, cells), folder / "runs", "--jobs", str(jobs))
    if "not sent yet" in said:
        print(said)
    results = [json.loads(file.read_text()) for file in (folder / "runs" / "runs").glob("*/result.json")]
    training = sum(result["seconds"] for result in results)
    slots, processor = (seconds * jobs - training) / len(results), cpu / len(results)
    row = (
        f"{slots:.3f} s ({jobs} jobs, {seconds:.0f} s; CPU of a cell, training and sender included: {processor:.3f} s)"
    )
    print(f"| {len(results)} cells of {training / len(results):.3f} s | under {BEYOND} s beyond training | {row} |")


def runs_of(board: str, cells: list[dict[str, Any]], config: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Runs with the tags that the sender gives to finished cells: (id, tags)."""
    for cell in cells:
        facts = cell | {"privileged": [], "exact": True, "epochs": 1, "device": "cpu", "torch": "2"}
        text = {"fingerprint", "method", "label", "dataset", "noise"}
        tags = {f"noisebench.{k}": str(v) if k in text else json.dumps(v) for k, v in facts.items()}
        tags |= {"noisebench.kind": "cell", "noisebench.status": "finished", "noisebench.board": board}
        tags |= {"noisebench.began": "1700000000000", "mlflow.runName": "a cell"}
        yield uuid.uuid4().hex, tags | {"noisebench.noise_sha256": "ab" * 32, "noisebench.weights_sha256": "cd" * 32}


def fill(database: sqlite3.Connection, board: str, cells: list[dict[str, Any]], params: dict[str, str]) -> None:
    """Insert an experiment with a finished run for each cell, as MLflow's tables hold them."""
    database.execute(
        "INSERT INTO experiments (name, lifecycle_stage, artifact_location, creation_time, last_update_time)"
        " VALUES (?, 'active', 'file:///nowhere', 1, 1)",
        (f"noisebench/{board}",),
    )
    experiment = database.execute("SELECT max(experiment_id) FROM experiments").fetchone()[0]
    for run, tags in runs_of(board, cells, params):
        database.execute(
            "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage,"
            " artifact_uri, experiment_id)"
            " VALUES (?, 'a cell', 'UNKNOWN', 'me', 'FINISHED', 1700000000000, 1700000001000, 'active', '', ?)",
            (run, experiment),
        )
        database.executemany("INSERT INTO tags VALUES (?, ?, ?)", [(k, v, run) for k, v in tags.items()])
        database.executemany(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", [(k, v, run) for k, v in params.items()]
        )
        for table in ("metrics", "latest_metrics"):
            rows = [(key, 0.5, 1700000000000, run, 1, 0) for key in METRICS]
            database.executemany(
                f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)", rows
            )


def bench_table(folder: Path, cells: int, runs: int) -> None:
    """Print how long the table takes from a store of so many runs, and the sender's first look at it."""
    from noisebench._run_folder import flat

    file = write_benchmark(folder, cells)
    board: Benchmark = load_benchmark(str(file))
    out = folder / "table"
    out.mkdir()
    uri = tracking.store_uri(out)
    tracking.prepare_store(uri, out)
    ours = [cell.identity() | {"folder": cell.folder()} for cell in board.cells()]
    first = board.cells()[0]
    params = dict(
        flat(first.identity() | {"recipe": first.recipe.model_dump(mode="json"), "hparams": first.method.hparams})
    )
    params = {key: value for key, value in params.items() if key and value}
    database = sqlite3.connect(out / "mlflow.db")
    for i in range((runs - cells) // cells):
        others = [cell | {"fingerprint": f"{i}-{cell['fingerprint']}"} for cell in ours]
        fill(database, f"other-{i}", others, params)
    fill(database, board.name, ours, params)
    database.commit()
    (there,) = database.execute("SELECT count(*) FROM runs").fetchone()
    database.close()
    seconds, cpu, said = leaderboard(file, out, "--rebuild", "mlflow")
    assert "50.0" in said, said
    megabytes = (out / "mlflow.db").stat().st_size / 1e6
    row = f"{seconds:.1f} s, {cpu:.1f} s of CPU ({megabytes:.0f} MB)"
    print(f"| table of {len(ours)} cells from a store of {there} runs | under {TABLE:.0f} s | {row} |")
    (out / "boards" / board.name).mkdir(parents=True)
    (out / "boards" / board.name / "board.json").write_text(json.dumps({"name": board.name, "cells": ours}))
    began, used = time.perf_counter(), time.process_time()
    tracking.Store(uri, out, {"name": board.name, "cells": ours})
    took = f"{time.perf_counter() - began:.1f} s, {time.process_time() - used:.1f} s of CPU"
    print(f"| the sender's first look at that store, with MLflow's import | beside the training | {took} |")


def main() -> None:
    """Print the tables' rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=["cells", "table"])
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    folder = Path(tempfile.mkdtemp(prefix="bench-many-cells-"))
    print("| what | bar | measured |\n| --- | --- | --- |")
    try:
        if options.only != "table":
            bench_cells(folder, options.cells, options.jobs)
        if options.only != "cells":
            bench_table(folder, options.cells, options.runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
