"""Kill a running board at random moments and show that nothing comes of it: same weights, same table, nothing twice.

Run it as ``python scripts/kill_board.py --kills 20``; it exits with 1 where anything differs from an undisturbed run.
A board that is finished before the last kill is checked and begun anew in another folder, until all kills were dealt.

With ``--executor slurm`` or ``ray`` it starts a cluster of one node for itself, and kills jobs and slurmd, or Ray's
workers; what it compares with is always the undisturbed board on local workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noisebench import tracking

HERE = Path(__file__).parent
METHODS = ("ce", "elr", "forward", "co_teaching")
WORKERS_KILLED = 2
"""At most so many workers of one driver: a cell whose worker died three times is rightly given up."""


class Local:
    """Workers of the driver's own."""

    words: tuple[str, ...] = ()
    """What the command is given to run there."""

    def workers(self, driver: int) -> list[int]:
        """The processes in which cells run."""
        return [pid for pid, parent, words in processes() if parent == driver and "spawn_main" in words]

    def daemon(self) -> int | None:
        """A process without which no new cell starts, and whose name; it may be killed too."""
        return None

    def mend(self) -> None:
        """Start a daemon that was killed."""

    def stop(self) -> None:
        """End the cluster."""


class Slurm(Local):
    """A cluster of one node on this machine."""

    words = ("--executor", "slurm")

    def __init__(self, folder: Path, port: int = 26817) -> None:
        self.folder, self.port = folder, port
        self.mend()
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")

    def _script(self, what: str) -> None:
        script = [HERE / "slurm_single_node.sh", what, self.folder, str(self.port)]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def workers(self, driver: int) -> list[int]:
        """The processes in which cells run."""
        return [pid for pid, _, words in processes() if "submitit.core._submit" in words and "srun" not in words]

    def daemon(self) -> int | None:
        """slurmd, which starts what the controller sends it."""
        return int((self.folder / "slurmd.pid").read_text())

    def mend(self) -> None:
        """Start what does not run of it."""
        self._script("start")

    def stop(self) -> None:
        """End the cluster."""
        self._script("stop")


class Ray(Local):
    """A cluster of one node on this machine."""

    def __init__(self, folder: Path, port: int = 36379) -> None:
        self.folder = folder
        self.words = ("--executor", "ray", "--set", f"execution.ray.address=127.0.0.1:{port}")
        self._script("start", "--port", str(port))

    def _script(self, what: str, *words: str) -> None:
        script = [HERE / "ray_local.sh", what, "--folder", self.folder, *words]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)

    def workers(self, driver: int) -> list[int]:
        """The processes in which cells run."""
        # By the name of a cell's task: without its agents, which have such names too, a node of Ray ends.
        return [pid for pid, _, words in processes() if words.startswith("ray::") and ", seed " in words]

    def stop(self) -> None:
        """End the cluster."""
        self._script("stop")


def processes() -> Iterator[tuple[int, int, str]]:
    """Every process: its number, its parent's, its words."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for pid, parent, words in (line.split(None, 2) for line in found.splitlines()):
        yield int(pid), int(parent), words


@dataclass
class Board:
    """A small board on digits in a folder, as its user runs it: by the command, again and again."""

    out: Path
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 12
    jobs: int = 2
    engine: Local = field(default_factory=Local)
    name = "digits"
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[bytes]:
        """The driver, in a process group of its own; what it prints goes to a file."""
        command = [sys.executable, "-m", "noisebench.cli", "leaderboard", self.name, "--out", str(self.out)]
        command += ["--methods", ",".join(self.methods), "--seeds", ",".join(map(str, self.seeds))]
        command += ["--epochs", str(self.epochs), "--jobs", str(self.jobs), "--device", "cpu"]
        command += ["--set", "noise=[{kind: symmetric, rate: 0.4, include_true: false}]"]
        command += ["--set", "recipe.checkpoint_seconds=0.01"]  # after every epoch, and often within one
        command += self.engine.words
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "driver.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    def finish(self) -> None:
        """Run it to its end."""
        code = self.start().wait()
        if code:
            raise SystemExit(f"the board ended with exit code {code}:\n{self.said()}")

    def said(self) -> str:
        """The end of what the command printed."""
        return (self.out / "driver.log").read_text(encoding="utf-8")[-3000:]

    def cells(self) -> list[Path]:
        """The run folders."""
        return sorted(path for path in (self.out / "runs").glob("*") if path.is_dir())

    def results(self) -> dict[str, dict[str, Any]]:
        """Folder's name -> result.json."""
        return {p.name: json.loads((p / "result.json").read_text()) for p in self.cells()}

    def history(self, cell: str) -> list[dict[str, Any]]:
        """The lines of a cell's metrics.jsonl without what a clock gives."""
        lines = (self.out / "runs" / cell / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [without_seconds(json.loads(line)["metrics"]) for line in lines]

    def tables(self) -> dict[str, str]:
        """The stored tables that a program reads, without the seconds and the title, which tells how it was called."""
        folder = self.out / "boards" / self.name
        table = json.loads((folder / "leaderboard.json").read_text(encoding="utf-8"))
        del table["title"]
        table["cells"] = [row for row in table["cells"] if row["metric"] != "seconds"]
        rows = (folder / "leaderboard.csv").read_text(encoding="utf-8").splitlines()
        return {"json": json.dumps(table), "csv": "\n".join(row for row in rows if ",seconds," not in row)}

    def noise(self) -> dict[str, str]:
        """Every file of the noise artefacts: its hash, and for a drawing only that it is there."""
        files = [f for f in sorted((self.out / "noise").glob("*/*")) if f.suffix in {".npz", ".json", ".png"}]
        names = {f: f"{f.parent.name}/{f.name}" for f in files}
        return {names[f]: "" if f.suffix == ".png" else hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def recorded(self) -> int:
        """How many epochs of all cells have been recorded."""
        return sum(file.read_bytes().count(b"\n") for file in (self.out / "runs").glob("*/metrics.jsonl"))

    def resumed(self) -> int:
        """How often a cell was taken up from a checkpoint."""
        return sum(file.read_bytes().count(b" resumed after ") for file in (self.out / "runs").glob("*/log.txt"))

    def rewritten(self) -> list[str]:
        """Cells whose result was written again since it was first seen here."""
        for path in self.cells():
            file = path / "result.json"
            if file.exists():
                now = file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()
                if self.seen.setdefault(path.name, now) != now:
                    return [path.name]
        return []


def without_seconds(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics that no clock decides."""
    return {k: v for k, v in metrics.items() if k != "seconds"}


def outlives(group: int, seconds: float = 10) -> bool:
    """Whether any process of a killed driver's group is still there after a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


@dataclass
class Killing:
    """Deals kills to boards, one board after the other, and gathers what went wrong.

    Args:
        undisturbed: the finished board to compare with.
        rng: chooses the moments and who is killed.
        longest: seconds from the start, or from the first new epoch, to a kill, at most.
        only_driver: never kill a worker.
    """

    undisturbed: Board
    rng: random.Random
    longest: float = 4
    only_driver: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def disturb(self, board: Board, kills: int) -> None:
        """Kill the board up to `kills` times, then let it finish, and compare."""
        dealt = 0
        while dealt < kills:
            ended, more = self._one_driver(board, kills - dealt)
            dealt += more
            if ended:
                break
        board.finish()
        self.counts["boards"] += 1
        self.counts["resumed"] += board.resumed()
        self.faults += [f"{board.out.name}: {fault}" for fault in differences(board, self.undisturbed)]

    def _one_driver(self, board: Board, kills: int) -> tuple[bool, int]:
        """Start the driver and kill now a worker, at last the driver: whether it ended first, and the kills dealt."""
        driver = board.start()
        for dealt in range(kills):
            if not self._wait(board, driver):
                if driver.returncode:
                    self.faults.append(f"{board.out.name}: exit code {driver.returncode}: {board.said()[-500:]}")
                return True, dealt
            workers, daemon = board.engine.workers(driver.pid), board.engine.daemon()
            which = 1.0 if self.only_driver else self.rng.random()
            if workers and dealt < WORKERS_KILLED and which < 0.35:
                with suppress(ProcessLookupError):  # it may just have done its work
                    os.kill(self.rng.choice(workers), signal.SIGKILL)
                    self.counts["workers"] += 1
            elif daemon and which < 0.6:
                os.kill(daemon, signal.SIGKILL)
                self.counts["daemons"] += 1
                time.sleep(self.rng.uniform(0, self.longest))
                board.engine.mend()
            else:
                self._kill_driver(board, driver)
                return False, dealt + 1
        self._kill_driver(board, driver, counted=False)
        return False, kills

    def _wait(self, board: Board, driver: subprocess.Popen[bytes]) -> bool:
        """Wait for a moment to kill at: any, or once epochs are recorded. False if the driver ended before."""
        before, training = board.recorded(), self.rng.random() < 0.6
        while training and board.recorded() == before and driver.poll() is None:
            time.sleep(0.02)
        try:
            driver.wait(self.rng.uniform(0, self.longest))
        except subprocess.TimeoutExpired:
            return True
        return False

    def _kill_driver(self, board: Board, driver: subprocess.Popen[bytes], counted: bool = True) -> None:
        driver.kill()
        driver.wait()
        self.counts["drivers"] += counted
        if outlives(driver.pid):
            self.faults.append(f"{board.out.name}: a worker outlived its driver")
            os.killpg(driver.pid, signal.SIGKILL)
        self.faults += [f"{board.out.name}: {name} was finished and ran again" for name in board.rewritten()]


def differences(board: Board, undisturbed: Board) -> Iterator[str]:
    """Everything in which a finished board is not as if nobody had disturbed it; a line each."""
    yield from (f"{name} was finished and ran again" for name in board.rewritten())
    before = {file: file.read_bytes() for file in (board.out / "boards" / board.name).glob("leaderboard.*")}
    logs = {path.name: (path / "log.txt").read_bytes() for path in board.cells()}
    board.finish()
    if any(file.read_bytes() != content for file, content in before.items()):
        yield "the same command once more changed the tables"
    if any((path / "log.txt").read_bytes() != logs.get(path.name) for path in board.cells()):
        yield "the same command once more ran a cell"
    if board.tables() != undisturbed.tables():
        yield "the tables differ"
    if board.noise() != undisturbed.noise():
        missing = sorted(undisturbed.noise().keys() - board.noise().keys())
        yield f"the noise artefacts differ (missing: {', '.join(missing) or 'nothing'})"
    expected = undisturbed.results()
    found = board.results()
    if found.keys() != expected.keys():
        yield f"other cells: {sorted(found.keys() ^ expected.keys())}"
    for name in found.keys() & expected.keys():
        if found[name]["weights_sha256"] != expected[name]["weights_sha256"]:
            yield f"{name}: other weights"
        if "came out otherwise" in (board.out / "runs" / name / "log.txt").read_text():
            yield f"{name}: an epoch came out otherwise after a kill"
        if board.history(name) != undisturbed.history(name):
            yield f"{name}: other metrics"
        # A kill between the result and the line leaves none.
        if logs[name].count(b" finished\n") > 1:
            yield f"{name}: finished {logs[name].count(b' finished')} times"
        if leftovers := list((board.out / "runs" / name).glob("*.tmp")):
            yield f"{name}: left behind: {', '.join(file.name for file in leftovers)}"
    yield from store_differences(board)


def store_differences(board: Board) -> Iterator[str]:
    """Everything in which the MLflow store does not say what the run folders say."""
    uri = f"sqlite:///{board.out.resolve() / 'mlflow.db'}"
    results = sorted(board.results().values(), key=lambda r: r["fingerprint"])
    stored = tracking.read_results(uri, board.name)
    if [(r["fingerprint"], r["metrics"], r["weights_sha256"]) for r in stored] != [
        (r["fingerprint"], r["metrics"], r["weights_sha256"]) for r in results
    ]:
        yield "the MLflow store holds other results"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"noisebench/{board.name}")
    if experiment is None:
        yield "the MLflow store has no such experiment"
        return
    runs = client.search_runs([experiment.experiment_id])
    for result in results:
        mine = [r for r in runs if r.data.tags.get("noisebench.fingerprint") == result["fingerprint"]]
        name = f"{result['label']}, seed {result['seed']}"
        if len(mine) != 1 or mine[0].info.status != "FINISHED":
            yield f"{name}: runs in MLflow: {[r.info.status for r in mine]}"
            continue
        (folder,) = [path for path in board.cells() if result["fingerprint"].startswith(path.name.rpartition("-")[2])]
        for key in board.history(folder.name)[0]:
            points = client.get_metric_history(mine[0].info.run_id, key)
            if Counter(p.step for p in points) != Counter(range(1, board.epochs + 1)):
                yield f"{name}: {key} has points at the epochs {sorted(p.step for p in points)}"


def main() -> int:
    """Deal the kills and print a row of numbers, then every difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once (default: 2)")
    parser.add_argument(
        "--longest", type=float, default=4, help="seconds of a start, or of training, at most (default: 4)"
    )
    parser.add_argument("--epochs", type=int, default=12, help="of every cell; more, and more are hit in mid-training")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--out", type=Path, help="where the boards go (default: a temporary folder, kept on a fault)")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="kill-board-"))
    began = time.monotonic()
    undisturbed = Board(out / "undisturbed", jobs=options.jobs, epochs=options.epochs)
    undisturbed.finish()
    print(f"undisturbed: {len(undisturbed.cells())} cells, {time.monotonic() - began:.0f} s; {out}", flush=True)
    cluster = out / "cluster"
    engine = {"local": Local, "slurm": lambda: Slurm(cluster), "ray": lambda: Ray(cluster)}[options.executor]()
    killing = Killing(undisturbed, random.Random(options.seed), options.longest)
    counts = killing.counts
    try:
        while (left := options.kills - counts["drivers"] - counts["workers"] - counts["daemons"]) > 0:
            board = Board(
                out / f"disturbed-{counts['boards'] + 1}", jobs=options.jobs, epochs=options.epochs, engine=engine
            )
            killing.disturb(board, left)
    finally:
        engine.stop()
    row = {
        "kills": counts["drivers"] + counts["workers"] + counts["daemons"],
        "of drivers": counts["drivers"],
        "of workers": counts["workers"],
        "of slurmd": counts["daemons"],
        "boards": counts["boards"],
        "cells": counts["boards"] * len(undisturbed.cells()),
        "resumed": counts["resumed"],
        "as undisturbed": "no" if killing.faults else "yes",
        "seconds": round(time.monotonic() - began),
    }
    print("  ".join(row))
    print("  ".join(f"{value:>{len(name)}}" for name, value in row.items()))
    for fault in killing.faults:
        print(f"  {fault}")
    return int(bool(killing.faults))


if __name__ == "__main__":
    sys.exit(main())
