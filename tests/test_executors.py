"""What says where cells run, the GPUs that local workers get, and how a board stands while somebody drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import noisebench
from filelock import FileLock

from noisebench import executors, local_executor
from noisebench.config import Benchmark, Cell, build, load_benchmark
from noisebench.errors import UserError
from noisebench.execution import EXECUTORS, Execution, Slurm
from noisebench.executors import Place, run_cells
from noisebench.files import write_json, write_text
from noisebench.standing import drivers, driving, standing

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.4}],
    "seeds": [0, 1],
    "methods": ["ce", "elr"],
    "recipe": {"epochs": 3},
}


def small(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, SMALL | changes, "small.yaml")
    return made


# ------------------------------------------------------------------------------------------------ what a benchmark says


def test_where_a_board_runs_changes_neither_its_cells_nor_its_title() -> None:
    plain = load_benchmark("digits")
    placed = load_benchmark("digits", ["execution.executor=slurm", "execution.slurm.partition=gpu", "execution.gpus=1"])
    assert placed.execution == Execution(executor="slurm", gpus=1, slurm=Slurm(partition="gpu"))
    assert placed.title == plain.title
    assert [c.fingerprint() for c in placed.cells()] == [c.fingerprint() for c in plain.cells()]
    both = load_benchmark("digits", ["execution.gpus=1", "recipe.epochs=2"])
    assert both.title == f"{plain.title} (changed: recipe.epochs=2)"


@pytest.mark.parametrize(
    ("execution", "says"),
    [
        ({"executor": "slrum"}, "executor 'slrum' is unknown; did you mean slurm?"),
        ({"gpus": 1.5}, "execution.gpus: 1.5; give a whole number, or a share of one GPU below 1"),
        ({"slurm": {"nodes": 0}}, "execution.slurm.nodes"),
        ({"ray": {"adress": "auto"}}, "'execution.ray.adress' is unknown; did you mean execution.ray.address"),
    ],
)
def test_a_mistake_in_it_is_one_line(execution: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        small(execution=execution)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_is_one(name: str) -> None:
    found = executors.executor(name)
    assert callable(found)
    assert callable(found.check)


# ------------------------------------------------------------------------------------------------ GPUs of local workers


def slots(monkeypatch: pytest.MonkeyPatch, here: str, jobs: int | None = None, **given: Any) -> list[str | None]:
    monkeypatch.setattr(local_executor, "visible_gpus", lambda: here.split(",") if here else [])
    monkeypatch.setattr(local_executor, "cores", lambda: 16)
    ranks, accelerator = given.pop("ranks", 1), given.pop("accelerator", "auto")
    cells = small(recipe={"ranks": ranks, "threads": 2}).cells()
    place = Place(Path(), accelerator=accelerator, execution=Execution(**given))
    return local_executor._slots(place, cells, jobs)


@pytest.mark.parametrize(
    ("here", "jobs", "given", "expected"),
    [
        ("", None, {}, [None] * 8),  # two threads each on 16 cores
        ("", 3, {}, [None] * 3),
        ("", None, {"cpus": 4}, [None] * 4),
        ("", None, {"ranks": 4}, [None] * 2),
        ("0,1,2", None, {}, ["0", "1", "2"]),
        ("0,1", 4, {}, ["0", "1", "0", "1"]),  # two slots a GPU
        ("0,1", None, {"gpus": 0.5}, ["0", "1", "0", "1"]),
        ("4,5,6,7", None, {"ranks": 2}, ["4,5", "6,7"]),
        ("4,5,6,7", None, {"gpus": 2}, ["4,5", "6,7"]),
        ("0,1", 3, {"gpus": 0}, ["", "", ""]),  # cells that do not see them
        ("0,1", 2, {"accelerator": "cpu"}, [None] * 2),
    ],
)
def test_gpus_are_dealt_out_to_workers(
    monkeypatch: pytest.MonkeyPatch, here: str, jobs: int | None, given: dict[str, Any], expected: list[str | None]
) -> None:
    assert slots(monkeypatch, here, jobs, **given) == expected


@pytest.mark.parametrize(
    ("jobs", "given", "says"),
    [
        (None, {"gpus": 4}, "execution.gpus: 4: this machine has 2; give less, or 0 for none"),
        (None, {"gpus": 1, "ranks": 4}, "execution.gpus: 1 for each of 4 ranks: this machine has 2"),
        (None, {"gpus": 0.5, "ranks": 2}, "execution.gpus: 0.5: the 2 ranks of a cell need a GPU each; give 1"),
        (3, {"gpus": 1}, "--jobs 3: execution.gpus: 1 leaves room for 2 on 2 GPUs"),
    ],
)
def test_more_gpus_than_there_are_are_refused(
    monkeypatch: pytest.MonkeyPatch, jobs: int | None, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        slots(monkeypatch, "0,1", jobs, **given)


def what_it_sees(cell: Cell, place: Place) -> dict[str, Any]:
    time.sleep(0.5)  # so that the other worker gets its cells too
    return {"status": "finished", "sees": os.environ.get("CUDA_VISIBLE_DEVICES")}


def test_a_worker_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_executor, "visible_gpus", lambda: ["6", "7"])
    monkeypatch.setattr(local_executor, "_work", what_it_sees)
    found = {result["sees"] for _, result in run_cells(small().cells(), Place(tmp_path))}
    assert found == {"6", "7"}


# ------------------------------------------------------------------------------------------------ how a board stands


def test_how_a_board_stands_is_told_from_its_folders_alone(tmp_path: Path) -> None:
    benchmark = small()
    finished, failed, running, left = benchmark.cells()
    write_json(tmp_path / finished.folder() / "result.json", {"status": "finished"})
    write_json(tmp_path / failed.folder() / "failure.json", {"status": "failed", "reason": "no luck"})
    write_text(tmp_path / running.folder() / "metrics.jsonl", "{}\n{}\n")
    with driving(tmp_path / "boards/small", Place(tmp_path)), FileLock(tmp_path / running.folder() / "lock"):
        found = standing(benchmark, tmp_path)
        shown = noisebench("leaderboard", _file(tmp_path), "--status", "--out", tmp_path)
    assert {state: found[state] for state in ("cells", "finished", "running", "failed", "left")} == {
        "cells": 4,
        "finished": 1,
        "running": 1,
        "failed": 1,
        "left": 1,
    }
    assert found["rows"][left.method.label]["left"] == 1
    assert [(cell["epochs"], cell["of"]) for cell in found["running_cells"]] == [(2, 3)]
    assert [cell["reason"] for cell in found["failed_cells"]] == ["no luck"]
    assert [(one["process"], one["executor"]) for one in found["drivers"]] == [(os.getpid(), "local")]
    assert "small: 4 cells: 1 finished, 1 running, 1 failed, 1 left" in shown.out
    assert "seed 1: 2/3 epochs" in shown.out
    assert "no luck" in shown.out
    assert not drivers(tmp_path / "boards/small")
    assert "Nobody drives it now" in noisebench("leaderboard", _file(tmp_path), "--status", "--out", tmp_path).out


def _file(folder: Path) -> Path:
    file = folder / "small.yaml"
    file.write_text(json.dumps(SMALL))
    return file


def test_a_driver_that_was_killed_drives_nothing(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from noisebench.executors import Place
from noisebench.standing import driving
with driving(Path({str(tmp_path)!r}), Place(Path())):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.glob("drivers/*/driver.json"))) == 1
    assert not drivers(tmp_path)


def test_a_detached_board_runs_on_by_itself(tmp_path: Path) -> None:
    file = _file(tmp_path)
    command = ["leaderboard", file, "--out", tmp_path / "out", "--set", "recipe.epochs=1", "--jobs", "1"]
    started = noisebench(*command, "--detach", "--json")
    process = json.loads(started.out)["process"]
    assert started.code == 0
    assert process != os.getpid()
    again = noisebench(*command, "--detach")
    assert again.code == 2
    assert f"--detach: small is driven by process {process} on " in again.err
    for _ in range(3000):
        stands = json.loads(noisebench(*command, "--status", "--json").out)
        if not stands["drivers"]:
            break
        time.sleep(0.2)
    assert stands["finished"] == stands["cells"] == 4
    done = noisebench(*command, "--detach")
    assert done.code == 0
    assert "small" in done.out + done.err


def test_a_detached_board_that_cannot_start_says_why(tmp_path: Path) -> None:
    ended = noisebench("leaderboard", _file(tmp_path), "--out", tmp_path, "--set", "execution.gpus=99", "--detach")
    assert ended.code == 2
    assert "execution.gpus: 99: this machine has " in ended.err


def test_one_thing_at_a_time(tmp_path: Path) -> None:
    ended = noisebench("leaderboard", _file(tmp_path), "--status", "--detach")
    assert ended.code == 2
    assert "--detach, --status and --rebuild: give one of them" in ended.err
