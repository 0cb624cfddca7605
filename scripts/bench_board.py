"""How long the default leaderboard takes after install, and whether one job and two give the same numbers.

    python scripts/bench_board.py [--compare-jobs]

Runs `noisebench leaderboard` in a fresh folder, MLflow store and all. With --compare-jobs a smaller board (3 methods,
1 noise, 2 seeds) runs with one job and with two, and tables and weights are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BAR = 180.0
SMALL = ["--methods", "ce,elr,co_teaching", "--seeds", "0,1", "--epochs", "8"]


def leaderboard(out: Path, *options: str) -> float:
    """Run the default board into `out`; its seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "noisebench.cli", "leaderboard", "--out", str(out), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def results(out: Path) -> dict[str, Any]:
    """What every cell of `out` ended in, without times."""
    found = [json.loads(file.read_text()) for file in out.glob("runs/*/result.json")]
    return {r["fingerprint"]: (r["metrics"], r["weights_sha256"]) for r in found}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare-jobs", action="store_true")
    options = parser.parse_args()
    print("| what | bar | measured |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.compare_jobs:
            for jobs in (1, 2):
                leaderboard(folder / str(jobs), *SMALL, "--jobs", str(jobs))
            one, two = results(folder / "1"), results(folder / "2")
            print(
                f"| --jobs 2 against --jobs 1, {len(one)} cells | the same | {'the same' if one == two else 'OTHER'} |"
            )
            return
        seconds = leaderboard(folder / "board")
        cells = len(results(folder / "board"))
        print(f"| default leaderboard, {cells} cells, {os.cpu_count()} cores | under {BAR:.0f} s | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
