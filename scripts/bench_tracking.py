"""What an MLflow server that dies, freezes or is not there costs a board, and whether every point arrives once.

    python scripts/bench_tracking.py [--down 60] [--epochs 150] [--rounds 3] [--only outage|absent|slowdown]

outage: the server is killed for a minute in mid-board and comes back. absent: it is not there from start to end, then
comes `noisebench sync`. slowdown: the same board again and again, in turn without any sender, with a live server, with
a frozen one and with none at its address: the seconds that its cells count themselves (`seconds` of result.json), over
those without a sender; the median of the rounds. Local workers fill every core, so that a sender competes with them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tracking_servers import Server, free_port

NAME, BAR = "outage", 2.0
WITHOUT = "import noisebench.tracking as t, types; t.start = lambda *a: types.SimpleNamespace(finish=lambda *a: None); "
RUN = "from noisebench.cli import main; main()"


def write_benchmark(folder: Path, epochs: int) -> Path:
    """Six cells of the digits, so many epochs each."""
    board = {
        "name": NAME,
        "title": "Outage",
        "datasets": ["digits"],
        "noise": [{"kind": "symmetric", "rate": 0.4}],
        "seeds": [0, 1, 2],
        "methods": ["ce", "gce"],
        "recipe": {"epochs": epochs},
    }
    file = folder / "board.yaml"
    file.write_text(json.dumps(board))
    return file


def start(file: Path, out: Path, uri: str, code: str = RUN) -> subprocess.Popen[str]:
    """The leaderboard as a process."""
    command = [sys.executable, "-W", "ignore", "-c", code, "leaderboard", str(file), "--out", str(out)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """Its output; an exit code other than 0 is an error."""
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(said)
    return said


def epochs_done(out: Path) -> int:
    """How many epochs of all cells are recorded."""
    return sum(file.read_bytes().count(b"\n") for file in out.glob("runs/*/metrics.jsonl"))


def faults(out: Path, uri: str) -> tuple[int, list[str]]:
    """How many points the run folders hold, and whatever the store does not hold exactly once."""
    from mlflow import MlflowClient

    client, found, points = MlflowClient(uri), [], 0
    experiment = client.get_experiment_by_name(f"noisebench/{NAME}")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    if Counter(run.data.tags.get("noisebench.kind") for run in runs)["board"] != 1:
        found.append("not one run of the board")
    for folder in out.glob("runs/*"):
        mine = [r for r in runs if r.data.tags.get("noisebench.fingerprint", "-")[:12] == folder.name[-12:]]
        if [run.info.status for run in mine] != ["FINISHED"]:
            found.append(f"{folder.name}: runs {[run.info.status for run in mine]}")
            continue
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for key in lines[0]["metrics"]:
            there = sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(mine[0].info.run_id, key))
            points += len(lines)
            if there != [(line["epoch"], line["time"], line["metrics"][key]) for line in lines]:
                found.append(f"{folder.name}: {key}: {len(there)} points of {len(lines)}")
    return points, found


def told(out: Path, uri: str, seconds: float) -> str:
    """A measurement in words."""
    points, wrong = faults(out, uri)
    return f"{'; '.join(wrong) if wrong else f'all {points} points there once'}; board {seconds:.0f} s"


def outage(folder: Path, file: Path, down: float) -> str:
    """Kill the server for a while in mid-board."""
    server, out = Server(make(folder / "server")).start(), folder / "outage"
    try:
        began = time.monotonic()
        board = start(file, out, server.uri)
        while epochs_done(out) < 20:
            time.sleep(0.2)
        server.kill()
        before = epochs_done(out)
        time.sleep(down)
        during = epochs_done(out) - before
        server.start()
        said, seconds = ended(board), time.monotonic() - began
        left = "" if "Curves:" in said else " (after sync)"
        sync(out, server.uri)
        return f"{told(out, server.uri, seconds)}; {during} epochs while it was down{left}"
    finally:
        server.stop()


def absent(folder: Path, file: Path) -> str:
    """No server from start to end; then sync."""
    server, out = Server(make(folder / "late")), folder / "absent"
    began = time.monotonic()
    said, seconds = ended(start(file, out, server.uri)), time.monotonic() - began
    assert "not sent yet" in said, said
    server.start()
    try:
        began = time.monotonic()
        sync(out, server.uri)
        return f"{told(out, server.uri, seconds)}; sync {time.monotonic() - began:.0f} s"
    finally:
        server.stop()


def sync(out: Path, uri: str) -> None:
    """``noisebench sync``."""
    code = "from noisebench.cli_sync import sync; from pathlib import Path; import sys; sync([], Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(out)],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        check=True,
    )


def slowdown(folder: Path, file: Path, rounds: int) -> dict[str, str]:
    """Training seconds of the same board under each kind of server, over those without any sender."""
    live, frozen = Server(make(folder / "live")).start(), Server(make(folder / "frozen")).start()
    frozen.signal(signal.SIGSTOP)
    kinds = {
        "no sender": (live.uri, WITHOUT + RUN),
        "live server": (live.uri, RUN),
        "frozen server": (frozen.uri, RUN),
        "no server there": (f"http://127.0.0.1:{free_port()}", RUN),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for turn in range(rounds):
            for kind, (uri, code) in kinds.items():
                out = folder / f"{turn}-{kind.replace(' ', '-')}"
                ended(start(file, out, uri, code))
                results: list[dict[str, Any]] = [json.loads(f.read_text()) for f in out.glob("runs/*/result.json")]
                found[kind].append(sum(result["seconds"] for result in results))
    finally:
        frozen.signal(signal.SIGCONT)
        live.stop()
        frozen.stop()
    base = found.pop("no sender")
    row = {}
    for kind, seconds in found.items():
        ratios = [100 * (s / b - 1) for s, b in zip(seconds, base, strict=True)]
        each = ", ".join(f"{ratio:+.1f}" for ratio in ratios)
        row[kind] = f"{statistics.median(ratios):+.1f}% of {statistics.median(base):.0f} s of training ({each})"
    return row


def make(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down", type=float, default=60, help="seconds (default: 60)")
    parser.add_argument("--epochs", type=int, default=150, help="of a cell (default: 150)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["outage", "absent", "slowdown"])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-tracking-"))
    file = write_benchmark(folder, options.epochs)
    print("| what | bar | measured |\n| --- | --- | --- |")
    try:
        if options.only in (None, "outage"):
            row = outage(folder, file, options.down)
            print(f"| server killed for {options.down:g} s in mid-board | every point once | {row} |", flush=True)
        if options.only in (None, "absent"):
            print(f"| server absent, then sync | every point once | {absent(folder, file)} |", flush=True)
        if options.only in (None, "slowdown"):
            for kind, row in slowdown(folder, file, options.rounds).items():
                print(f"| training beside a sender, {kind} | slower by under {BAR:g}% | {row} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
