"""Two rows of a finished board against each other: accuracy at each of the three epochs, with Welch's t-test.

    noisebench leaderboard digits --methods ce,het_full --seeds 0,1,2,3,4,5,6,7,8,9
    python scripts/compare_rows.py digits het_full ce

The board's own † compares with the best row, at the epoch that ranks the board; this shows a pair, at every epoch.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import ttest_ind

from noisebench.files import read_json


def main() -> None:
    """Print one line a column and epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board")
    parser.add_argument("rows", nargs=2, metavar="ROW", help="labels of two rows")
    parser.add_argument("--out", type=Path, default=Path("noisebench-runs"))
    chosen = parser.parse_args()
    board = read_json(chosen.out / "boards" / chosen.board / "board.json")
    if board is None:
        parser.error(f"{chosen.out}/boards/{chosen.board}: no such board; run noisebench leaderboard first")
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in board["cells"]:
        result = read_json(chosen.out / cell["folder"] / "result.json")
        if result is not None and cell["label"] in chosen.rows:
            for epoch, metrics in result["metrics"].items():
                score = metrics.get("accuracy", metrics.get("gap"))
                found[cell["dataset"], cell["noise"], epoch][cell["label"]].append(100 * score)
    for (dataset, noise, epoch), scores in found.items():
        first, second = (scores[row] for row in chosen.rows)
        if min(len(first), len(second)) < 2:
            continue
        told = " against ".join(
            f"{row} {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} seeds)"
            for row, values in zip(chosen.rows, (first, second), strict=True)
        )
        p = ttest_ind(first, second, equal_var=False).pvalue
        print(f"{dataset}, {noise}, {epoch}: {told}, p = {p:.2g}")


if __name__ == "__main__":
    main()
