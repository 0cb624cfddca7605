"""How long a person waits before anything happens: --help, list, and placing a board whose cells are all finished.

Run it as ``python scripts/bench_start.py``; it exits with 1 where a bar is missed. Medians of `RUNS` new processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from noisebench.config import Benchmark, load_benchmark

RUNS = 5
CELLS = 10_000

PLACE = """
import sys
from pathlib import Path
from noisebench.config import load_benchmark
from noisebench.standing import result_of
cells = load_benchmark(sys.argv[1]).cells()
assert all(result_of(cell, Path(sys.argv[2]))["status"] == "finished" for cell in cells)
assert len(cells) == int(sys.argv[3]) and not {"torch", "mlflow"} & set(sys.modules)
"""


def finish(config: Benchmark, out: Path) -> None:
    """A result.json for every cell, as a board would have left it."""
    for cell in config.cells():
        folder = out / cell.folder()
        folder.mkdir(parents=True)
        numbers = {"epoch": 60, "accuracy": 0.5, "top5": 0.9, "nll": 1.5, "ece": 0.1, "memorised": 0.2}
        facts = {
            "fingerprint": cell.fingerprint(),
            "status": "finished",
            "metrics": {which: numbers for which in ("last", "selected", "best")},
        }
        (folder / "result.json").write_text(json.dumps(facts, indent=1))


def seconds(command: list[str]) -> float:
    """Median wall time of the command in new processes, after one that warms the disk's cache."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    """Print the table."""
    late = False
    with tempfile.TemporaryDirectory() as folder:
        board, out = Path(folder, "board.yaml"), Path(folder, "out")
        board.write_text(
            "datasets: [digits]\nnoise: [{kind: symmetric, rate: 0.2}, {kind: symmetric, rate: 0.4}]\n"
            f"methods: [ce, gce, elr, mixup]\nseeds: {list(range(CELLS // 8))}\n"
        )
        finish(load_benchmark(str(board)), out)
        print(f"{'case':<36}{'seconds':>9}{'bar':>7}")
        for name, command, bar in (
            ("noisebench --help", ["-m", "noisebench.cli", "--help"], 0.5),
            ("noisebench list", ["-m", "noisebench.cli", "list"], 1.0),
            (f"placing {CELLS:,} finished cells", ["-c", PLACE, str(board), str(out), str(CELLS)], 5.0),
        ):
            taken = seconds(command)
            late |= taken > bar
            print(f"{name:<36}{taken:>9.2f}{bar:>7.1f}")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
