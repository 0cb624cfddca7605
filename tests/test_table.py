"""The table of a leaderboard: what it says, and that it says the same in every form, width and order."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from noisebench.drawing import Details, detail_grids, failures, main_grid, notes
from noisebench.errors import UserError
from noisebench.statistics import mean_sd
from noisebench.table import Column, Kind, Table

COLUMN = ("digits", "symmetric 40% (excl. true)")
HARD = ("digits", "pairflip 40%")
SELECTED = Kind("selected", "accuracy")


def cell(
    label: str, seed: int, accuracy: float | None, column: tuple[str, str] = COLUMN, **more: Any
) -> dict[str, Any]:
    """A finished result, as a run writes it; keywords replace or add keys, `metrics` all its metrics."""
    at = {"epoch": 60, "accuracy": accuracy, "top5": 0.99, "nll": 0.3 + seed / 100, "ece": 0.05, "memorised": 0.25}
    metrics = {"selected": at, "last": {**at, "accuracy": 0.5}, "best": {**at, "accuracy": 0.95}}
    base = {"label": label, "method": label, "dataset": column[0], "noise": column[1], "seed": seed, "rules": 1}
    return {**base, "status": "finished", "privileged": [], "seconds": 12.0 + seed, "metrics": metrics, **more}


def failed(label: str, seed: int, column: tuple[str, str] = COLUMN, reason: str = "loss is NaN") -> dict[str, Any]:
    names = {"label": label, "method": label, "dataset": column[0], "noise": column[1], "seed": seed}
    return {**names, "status": "failed", "reason": reason, "rules": 1}


def missing(label: str, seed: int, column: tuple[str, str] = COLUMN) -> dict[str, Any]:
    return {"label": label, "dataset": column[0], "noise": column[1], "seed": seed, "status": "missing"}


def small_board() -> list[dict[str, Any]]:
    """Two columns: a clear best, a significant and an insignificant other, a failure, a reference row."""
    results = []
    for column, shift in ((COLUMN, 0.0), (HARD, -0.1)):
        for seed in range(3):
            step = seed / 100
            results += [cell("elr", seed, 0.90 + step + shift, column), cell("ce", seed, 0.70 + step + shift, column)]
            results += [cell("gce", seed, 0.89 + step + shift, column)]
            results += [cell("forward-true", seed, 0.95 + step + shift, column, privileged=["transition"])]
    results += [cell("mixup", 0, 0.91), cell("mixup", 1, 0.99), failed("mixup", 2)]
    return results + [failed("mixup", seed, HARD, reason=f"out\nof memory {seed}") for seed in range(3)]


def drawn(table: Table, width: int = 100, details: Details = "full") -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.to_rich(details=details))
    return console.export_text()


GOLDEN = """\
digits · pairflip 40%
method          selected %    last %        best (oracle) %  memorised (last) %
───────────────────────────────────────────────────────────────────────────────
elr             81.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
gce             80.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
ce              61.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
mixup           failed        failed        failed           failed

forward-true ‡  86.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00

digits · symmetric 40% (excl. true)
method          selected %    last %        best (oracle) %  memorised (last) %
───────────────────────────────────────────────────────────────────────────────
elr             91.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
gce             90.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
ce              71.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
mixup           95.00 (2/3)   50.00 (2/3)   95.00 (2/3)      25.00 (2/3)

forward-true ‡  96.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00

board
                mean  digits          digits
method          rank  pairflip 40%    symmetric 40% (excl. true)
────────────────────────────────────────────────────────────────
elr             1.00  81.00 ± 1.00    91.00 ± 1.00
gce             2.00  80.00 ± 1.00    90.00 ± 1.00
ce              3.00  61.00 ± 1.00 †  71.00 ± 1.00 †
mixup           –     failed          95.00 ± 5.66 (2/3)

forward-true ‡  –     86.00 ± 1.00    96.00 ± 1.00

accuracy in % at the epoch selected on held-out noisy labels; mean ± sd over 3 seeds; bold: best.
†: differs from the best (two-tailed Welch t-test, Holm-corrected over the column, p < 0.05).
Rank: mean over 2 columns (1 is best, ties shared) of the 3 methods complete in all of them.
(k/n): only k of the n seeds gave a number; such a mean is not tested, ranked or best.
‡: given more than noisy labels (forward-true: transition); for reference, not ranked or tested.
NLL, ECE and the rest: in the written files (or with --details). Leaderboard rules: version 1.
mixup: 3 cells failed, e.g.: out of memory 0
mixup on digits / symmetric 40% (excl. true), seed 2 failed: loss is NaN
"""


def test_a_small_board_in_the_terminal() -> None:
    text = drawn(Table.from_results(small_board(), title="board"), details="short")
    assert "\n".join(line.rstrip() for line in text.splitlines()) + "\n" == GOLDEN


def eight_methods(columns: tuple[tuple[str, str], ...] = (COLUMN, HARD)) -> list[dict[str, Any]]:
    """A board without failures, with names of the usual length and a reference row."""
    names = ["ce", "elr", "gce", "mixup", "co-teaching", "dividemix", "bootstrap-hard", "forward-true"]
    results = []
    for m, name in enumerate(names):
        given = ["transition"] if name == "forward-true" else []
        for column in columns:
            results += [cell(name, s, 0.6 + m / 30 + s / 20, column, privileged=given) for s in range(3)]
    return results


def test_short_details_fit_80_columns_in_one_table_each_and_the_ranking_comes_last() -> None:
    results = [result for result in eight_methods() if (result["label"], result["seed"]) != ("gce", 2)]
    for result in results:
        result["metrics"]["best"]["accuracy"] = 1.0 - result["seed"] / 5
        result["metrics"]["last"]["memorised"] = 1.0 - result["seed"] / 5
    table = Table.from_results([*results, failed("gce", 2), failed("gce", 2, HARD)], title="ranking")
    text = drawn(table, 80, "short")
    assert text.count("method ") == 3
    heads = [" ".join(line.split()) for line in text.splitlines() if line.startswith("method ")]
    assert heads[:2] == ["method selected % last % best (oracle) % memorised (last) %"] * 2
    assert text.index("digits · pairflip") < text.index("digits · symmetric") < text.index("ranking")
    assert text.index("ranking") < text.index("accuracy in %") < text.index("gce: 2 cells failed")
    assert "top-5" not in text
    assert "top-5" in drawn(table, 80, "full")
    assert "top-5" in table.to_markdown()
    assert "·" not in drawn(table, 80, "none")


def test_without_a_validation_split_short_details_have_no_selected_column() -> None:
    results = small_board()
    for result in results:
        result.get("metrics", {}).pop("selected", None)
    heads = detail_grids(Table.from_results(results), "short")[0].heads
    assert heads == [("last %",), ("best (oracle) %",), ("memorised (last) %",)]


@pytest.mark.parametrize("which", ["selected", "last", "best"])
@pytest.mark.parametrize("details", ["short", "full", "none"])
def test_the_footer_of_a_board_without_failures_is_six_lines_at_most(details: Details, which: str) -> None:
    table = Table.from_results(eight_methods(), title="ranking", which=which)
    text = drawn(table, 100, details)
    assert len(text[text.index("accuracy in %") :].splitlines()) <= 6
    with pytest.raises(UserError, match="details 'ful' is unknown; did you mean full"):
        table.to_rich(details="ful")  # type: ignore[arg-type]


def test_the_details_keep_three_accuracies_apart() -> None:
    grid = detail_grids(Table.from_results(small_board()))[1]
    assert grid.title == "digits · symmetric 40% (excl. true)"
    assert [head[0] for head in grid.heads][:3] == ["selected", "last", "best (oracle)"]
    assert [str(parts) for parts in dict(grid.rows)["elr"]] == [
        *("91.00 ± 1.00", "50.00 ± 0.00", "95.00 ± 0.00", "99.00 ± 0.00"),
        *("0.310 ± 0.010", "0.0500 ± 0.0000", "25.00 ± 0.00", "13.00 ± 1.00"),
    ]
    assert [head[0] for head in grid.heads][3:] == ["top-5", "NLL", "ECE", "memorised (last)", "seconds"]


def test_a_method_without_a_metric_shows_a_dash_and_no_failure() -> None:
    results = [cell("ce", seed, 0.9) for seed in range(3)] + [cell("elr", seed, 0.8) for seed in range(2)]
    for result in results:
        if result["label"] == "elr":
            result["metrics"]["last"]["noise_auc"] = 0.97
    grid = detail_grids(Table.from_results([*results, failed("elr", 2)]))[0]
    place = [head[0] for head in grid.heads].index("noise AUC (last)")
    assert str(dict(grid.rows)["ce"][place]) == "–"
    assert str(dict(grid.rows)["elr"][place]) == "97.00 ± 0.00 (2/3)"


def test_the_order_of_the_results_changes_no_byte(tmp_path: Path) -> None:
    results = small_board()
    first = {path.name: path.read_bytes() for path in Table.from_results(results).write(tmp_path)}
    assert sorted(first) == [f"leaderboard.{suffix}" for suffix in ("csv", "json", "md", "tex")]
    for seed in range(5):
        random.Random(seed).shuffle(results)
        table = Table.from_results(results)
        assert {path.name: path.read_bytes() for path in table.write(tmp_path)} == first
        assert drawn(table) == drawn(Table.from_results(small_board()))
    assert {path.name for path in tmp_path.iterdir()} == set(first), "a file written aside was left behind"


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Table.from_results(small_board()).write(tmp_path)
    old = (tmp_path / "leaderboard.json").read_bytes()

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        Table.from_results(small_board()[:-1]).write(tmp_path)
    assert (tmp_path / "leaderboard.json").read_bytes() == old


def test_a_failed_or_missing_cell_is_never_a_number() -> None:
    results = [cell("ce", seed, 0.7 + seed / 100) for seed in range(3)]
    results += [cell("better", 0, 0.9), cell("better", 1, 0.92), missing("better", 2)]
    results += [failed("dead", seed) for seed in range(3)]
    results += [failed("dying", 0), failed("dying", 1), missing("dying", 2)]
    results += [missing("later", seed) for seed in range(3)] + [cell("absent", 0, 0.95)]
    table = Table.from_results(results, methods_order=["ce", "never"])
    shown = {name: str(row[1]) for name, row in main_grid(table).rows}
    assert shown == {
        "ce": "71.00 ± 1.00",
        "better": "91.00 ± 1.41 (2/3)",
        "absent": "95.00 (1/3)",
        "dead": "failed",
        "dying": "2/3 failed",
        "later": "not run",
        "never": "not run",
    }
    assert table.ranks == {"ce": 1.0} | dict.fromkeys(list(shown)[1:])
    cells = {method: table.cells[method, Column(*COLUMN), SELECTED] for method in shown}
    assert [method for method in shown if cells[method].best] == ["ce"]
    assert all(c.p is None for c in cells.values())
    assert any("No significance test" in line for line in notes(table))


def test_a_reason_takes_one_line_and_the_sixth_is_counted() -> None:
    same = [failed("gce", seed, column) for seed in range(3) for column in (COLUMN, HARD)]
    assert failures(Table.from_results(same)) == ["gce: 6 cells failed: loss is NaN"]
    epochs = [failed("gce", seed, reason=f"the loss became nan in epoch {seed}") for seed in range(3)]
    assert failures(Table.from_results(epochs)) == ["gce: 3 cells failed, e.g.: the loss became nan in epoch 0"]
    one = failures(Table.from_results([failed("ce", 7), missing("gce", 7)]))
    assert one == ["ce on digits / symmetric 40% (excl. true), seed 7 failed: loss is NaN"]
    lines = failures(Table.from_results([failed("ce", seed, reason=f"reason {'abcdefgh'[seed]}") for seed in range(8)]))
    assert [line[-1] for line in lines[:-1]] == list("abcde")
    assert lines[-1] == "... and 3 more failed"
    assert "no reason recorded" in failures(Table.from_results([{**failed("ce", 0), "reason": None}]))[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_number_that_is_not_finite_is_not_averaged_away(bad: float | None) -> None:
    results = [cell("ce", seed, 0.7 + seed / 100) for seed in range(2)]
    results += [cell("nan", 0, 0.9), cell("nan", 1, bad), cell("all", 0, bad), cell("all", 1, bad)]
    table = Table.from_results(results)
    shown = {name: str(row[1]) for name, row in main_grid(table).rows}
    assert shown == {"ce": "70.50 ± 0.71", "nan": "90.00 (1/2)", "all": "not finite"}
    assert table.ranks == {"ce": 1.0, "nan": None, "all": None}
    document = json.loads(table.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    values = {c["method"]: c["values"] for c in document["cells"] if c["ranking"]}
    assert values["nan"] == {"0": 0.9, "1": None}
    assert "0=0.9 1=nan" in table.to_csv()


def test_one_seed_and_one_method() -> None:
    table = Table.from_results([cell("ce", 0, 0.7), cell("elr", 0, 0.8)])
    assert [(name, str(row[0]), str(row[1])) for name, row in main_grid(table).rows] == [
        ("elr", "1", "80.00"),
        ("ce", "2", "70.00"),
    ]
    assert "no sd from one seed" in notes(table)[0]
    alone = Table.from_results([cell("ce", seed, 0.7 + seed / 10) for seed in range(2)])
    assert alone.ranks == {"ce": 1.0}
    assert alone.cells["ce", Column(*COLUMN), SELECTED].best
    for empty in (Table.from_results([]), Table.from_results([], methods_order=["ce"], columns_order=[COLUMN])):
        assert drawn(empty)
        assert all((empty.to_csv(), empty.to_json(), empty.to_markdown(), empty.to_latex()))


def test_a_privileged_row_is_a_reference_and_never_the_best() -> None:
    table = Table.from_results(small_board())
    column = Column(*COLUMN)
    for kind in table.kinds:
        assert not table.cells["forward-true", column, kind].best
    assert table.methods[-1] == "forward-true"
    assert table.cells["elr", column, SELECTED].best
    without = Table.from_results([r for r in small_board() if r["label"] != "forward-true"])
    for method in ("gce", "ce"):
        assert table.cells[method, column, SELECTED] == without.cells[method, column, SELECTED]
    assert table.ranks["forward-true"] is None
    assert {m: r for m, r in table.ranks.items() if m != "forward-true"} == dict(without.ranks)


def test_the_default_ranking_is_selected_where_there_is_a_split_else_last() -> None:
    results = small_board()
    assert Table.from_results(results).ranking == SELECTED
    for result in results:
        result.get("metrics", {}).pop("selected", None)
    table = Table.from_results(results)
    assert table.ranking == Kind("last", "accuracy")
    assert "last epoch" in notes(table)[0]
    assert "selected" not in {kind.rule for kind in table.kinds}
    with pytest.raises(UserError, match=r"which 'selected'.*accuracy at last"):
        Table.from_results(results, which="selected")


def test_nll_ranks_the_lowest_first() -> None:
    results = [cell("ce", seed, 0.9) for seed in range(3)] + [cell("elr", seed, 0.9) for seed in range(3)]
    for result in results[3:]:
        result["metrics"]["selected"]["nll"] = 0.0123 + result["seed"] / 1000
    table = Table.from_results(results, metric="nll")
    rows = [(name, str(row[1]), row[1].bold) for name, row in main_grid(table).rows]
    assert rows == [("elr", "0.0133 ± 0.0010", True), ("ce", "0.310 ± 0.010 †", False)]
    assert notes(table)[0].startswith("NLL (lower is better)")


def test_rows_and_columns_follow_the_board_then_their_names() -> None:
    columns = [("digits", f"symmetric {rate}%") for rate in (100, 20, 3)]
    results = [cell(label, 0, 0.5, column) for label in ("b", "a", "m10", "m9") for column in columns]
    table = Table.from_results(results, methods_order=["m10"], columns_order=[columns[1]])
    assert [column.noise for column in table.columns] == ["symmetric 20%", "symmetric 3%", "symmetric 100%"]
    assert table.methods == ("m10", "a", "b", "m9"), "all tied: the board's order, then by name"


def test_csv_json_and_pandas_hold_the_same_unrounded_numbers() -> None:
    results = small_board()
    table = Table.from_results(results)
    document = json.loads(table.to_json())
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    frame = table.to_pandas()
    assert len(lines) == len(document["cells"]) == len(frame) == 5 * 2 * len(table.kinds)
    for line, record in zip(lines, document["cells"], strict=True):
        for key in ("mean", "sd", "p", "p_holm", "mean_rank"):
            assert (float(line[key]) if line[key] else None) == record[key]
        for key in ("significant", "best", "privileged", "ranking"):
            assert json.loads(line[key]) == record[key]
        assert {k: float(v) for k, v in (pair.split("=") for pair in line["values"].split())} == record["values"]
        given = [
            r["seconds"] if record["metric"] == "seconds" else r["metrics"][record["epoch"]][record["metric"]]
            for r in sorted(results, key=lambda r: r["seed"])
            if (r["label"], r["dataset"], r["noise"]) == (record["method"], record["dataset"], record["noise"])
            and r["status"] == "finished"
        ]
        assert list(record["values"].values()) == given
        assert (record["mean"], record["sd"]) == (mean_sd(given) if given else (None, None))
    assert frame["mean"].dropna().tolist() == [c["mean"] for c in document["cells"] if c["mean"] is not None]
    assert [failure["seed"] for failure in document["failures"]] == [0, 1, 2, 2]


def wide_board() -> list[dict[str, Any]]:
    noises = [
        f"{kind} {rate}%" for kind in ("symmetric", "pairflip", "class_dependent", "instance") for rate in (20, 40)
    ]
    noises += ["symmetric 40% (excl. true)", "averyveryverylongnoisenamewithoutanyblank"]
    names = ["ce", "elr", "a method whose name is much longer than anyone should choose for a table", "[bold]x"]
    results = []
    for c, noise in enumerate(noises):
        for m, name in enumerate(names):
            results += [cell(name, s, 0.9 - m / 10 + s / 100 - c / 1000, ("cifar10", noise)) for s in range(3)]
        results += [cell("混同行列", 0, 0.5, ("cifar10", noise)), failed("混同行列", 1, ("cifar10", noise))]
    return results


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_cut(width: int) -> None:
    table = Table.from_results(wide_board(), title="wide")
    text = drawn(table, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    for grid in [main_grid(table), *detail_grids(table)]:
        for _, entries in grid.rows:
            for parts in entries:
                assert parts.mean in text
                assert not parts.sd or f"{parts.mean} ± {parts.sd}" in text or f"{parts.mean} ±  {parts.sd}" in text
                assert "†" not in parts.marks or f"{parts.sd} †" in text
    stacked = text.count("method ")
    assert stacked > 11 if width < 200 else stacked >= 11, "one main table and ten of details, more where stacked"


@pytest.mark.parametrize(
    "name",
    ["[bold]gce[/bold]", "<b>gce</b>", "a_b & 50% #1 $x$ {y}", "a|b", "*a* `c` ~~d~~", r"a\b", "x--y", "\x1b[31mred"],
)
def test_names_are_shown_literally(name: str) -> None:
    results = [cell(name, seed, 0.9, (name, name), privileged=[name]) for seed in range(2)]
    table = Table.from_results([*results, failed(name, 2, (name, name), reason=name)], title=name)
    visible = name.replace("\x1b", "").strip()
    assert visible in drawn(table, 200)
    assert "\x1b" not in drawn(table) + table.to_markdown() + table.to_latex()
    assert json.loads(table.to_json())["methods"][0]["label"] == name
    assert next(csv.DictReader(io.StringIO(table.to_csv())))["method"] == name


def test_markdown_and_latex_escape_what_they_would_read_as_markup() -> None:
    name = r"[b]_<i>&|50%*\#"
    table = Table.from_results([cell(name, seed, 0.9) for seed in range(2)], title="t")
    (row,) = [line for line in table.to_markdown().splitlines() if "gce" not in line and line.startswith(r"| \[b")][:1]
    assert row.startswith(r"| \[b\]\_&lt;i&gt;&amp;\|50%\*\\\# |")
    assert row.replace(r"\|", "").count("|") == 4
    latex = table.to_latex()
    assert (
        r"{[}b{]}\_\textless{}i\textgreater{}\&\textbar{}50\%{*}\textbackslash{}\# & 1 & \textbf{90.00 $\pm$ 0.00}"
        in latex
    )
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3, "the board, and seven details in two"
    assert latex.isascii()


def test_mixed_rules_are_called_out() -> None:
    assert "mixed" in notes(Table.from_results([cell("a", 0, 0.5), cell("b", 0, 0.5, rules=2)]))[-1]


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([], {"metric": "acuracy"}, "metric 'acuracy' is unknown; did you mean accuracy"),
        ([], {"which": "final"}, "which 'final' is unknown"),
        ([{"label": "ce"}], {}, "without 'dataset'"),
        ([{**missing("ce", 0), "status": "done"}], {}, "status 'done' is unknown"),
        ([missing("ce", 0), cell("ce", 0, 0.9)], {}, "two cells for ce on digits / symmetric"),
    ],
)
def test_mistakes_are_one_clear_line(results: list[dict[str, Any]], options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Table.from_results(results, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'mlflow', 'scipy', 'statsmodels', 'pandas', 'numpy', 'rich'}"
    code = f"import sys, noisebench.drawing; sys.exit(str({heavy} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


# ----------------------------------------------------------------------------------------- several labels an image

MULTI = ("multi_digits", "asymmetric 30%")
GAP = Kind("selected", "gap")


def multi(label: str, seed: int, gap: float, **more: Any) -> dict[str, Any]:
    at = {"epoch": 60, "gap": gap, "nll": 1.5, "ece": 0.05, "memorised": 0.25}
    metrics = {"selected": at, "last": {**at, "gap": 0.5}, "best": {**at, "gap": 0.95}}
    return cell(label, seed, None, MULTI, metrics=metrics, **more)


MIXED = """\
digits · symmetric 40% (excl. true)
method  selected %    last %        best (oracle) %  memorised (last) %
───────────────────────────────────────────────────────────────────────
het     61.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
ce      71.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00

multi_digits · asymmetric 30% · gAP
method  selected %    last %        best (oracle) %  memorised (last) %
───────────────────────────────────────────────────────────────────────
het     81.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00
ce      41.00 ± 1.00  50.00 ± 0.00  95.00 ± 0.00     25.00 ± 0.00

mixed
              digits                      multi_digits
        mean  symmetric 40% (excl. true)  asymmetric 30%
method  rank  accuracy                    gAP
────────────────────────────────────────────────────────
het     1.50  61.00 ± 1.00 †              81.00 ± 1.00
ce      1.50  71.00 ± 1.00                41.00 ± 1.00 †

accuracy / gAP in % at the epoch selected on held-out noisy labels; mean ± sd over 3 seeds; bold:
best.
†: differs from the best (two-tailed Welch t-test, Holm-corrected over the column, p < 0.05).
Rank: mean over 2 columns (1 is best, ties shared) of the 2 methods complete in all of them.
NLL, ECE and the rest: in the written files (or with --details). Leaderboard rules: version 1.
"""


def mixed_board() -> list[dict[str, Any]]:
    ce = [r for s in range(3) for r in (cell("ce", s, 0.70 + s / 100), multi("ce", s, 0.40 + s / 100))]
    return ce + [r for s in range(3) for r in (cell("het", s, 0.60 + s / 100), multi("het", s, 0.80 + s / 100))]


def test_a_board_may_mix_accuracy_and_gap() -> None:
    table = Table.from_results(mixed_board(), title="mixed", columns_order=[COLUMN, MULTI])
    text = drawn(table, details="short")
    assert "\n".join(line.rstrip() for line in text.splitlines()) + "\n" == MIXED
    for metric in ("accuracy", "gap"):
        again = Table.from_results(mixed_board(), metric=metric, columns_order=[COLUMN, MULTI])
        assert (again.ranks, again.ranking_of(Column(*MULTI))) == (table.ranks, GAP)
        assert again.ranking_of(Column(*COLUMN)) == SELECTED
    ranking = {(r["method"], r["dataset"]): (r["metric"], r["mean"]) for r in table.records() if r["ranking"]}
    assert ranking == {
        ("ce", "digits"): ("accuracy", pytest.approx(0.71)),
        ("ce", "multi_digits"): ("gap", pytest.approx(0.41)),
        ("het", "digits"): ("accuracy", pytest.approx(0.61)),
        ("het", "multi_digits"): ("gap", pytest.approx(0.81)),
    }
    assert "Details: metrics but accuracy and gAP are at the epoch of the ranking." in table.to_markdown()
    assert "asymmetric 30% gAP" in table.to_markdown()


def test_a_board_of_gap_alone_says_so_once() -> None:
    results = [
        multi(name, seed, 0.4 + seed / 100 + m / 10) for m, name in enumerate(["ce", "het"]) for seed in range(3)
    ]
    table = Table.from_results(results)
    assert table.ranking == GAP
    assert json.loads(table.to_json())["ranking"] == {"metric": "gap", "epoch": "selected"}
    assert notes(table)[0].startswith("gAP in % at the epoch selected")
    assert main_grid(table).heads == [("rank",), MULTI]
    assert [head[0] for head in detail_grids(table)[0].heads][:4] == ["selected", "last", "best (oracle)", "NLL"]
    assert table.ranks == {"het": 1.0, "ce": 2.0}
    assert "accuracy" not in table.to_markdown() + table.to_csv()


def test_any_other_metric_ranks_both_kinds_of_column_alike() -> None:
    table = Table.from_results(mixed_board(), metric="nll")
    assert {table.ranking_of(column).metric for column in table.columns} == {"nll"}
    assert main_grid(table).heads[1:] == [COLUMN, MULTI]
    assert notes(table)[0].startswith("NLL (lower is better)")


def test_a_column_of_which_nothing_is_finished_yet_is_not_run() -> None:
    results = [r for r in mixed_board() if r["dataset"] == "digits"] + [missing("ce", 0, MULTI)]
    table = Table.from_results(results)
    assert {str(row[2]) for _, row in main_grid(table).rows} == {"not run"}
    assert table.ranking == SELECTED
