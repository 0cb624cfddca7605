"""A paper's figures on a board: the shipped ones are the paper's, and they stand beside ours without judging them."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import t

from noisebench import beside_paper, board, standing
from noisebench.config import Benchmark, build, load_benchmark, parse_yaml
from noisebench.errors import UserError
from noisebench.reading import to_yaml
from noisebench.table import Table

NOISE20, NOISE80 = "symmetric 20% (incl. true)", "symmetric 80% (incl. true)"
BOARD: dict[str, Any] = {
    "name": "paper",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": rate, "include_true": True} for rate in (0.2, 0.8)],
    "methods": ["ce", "mixup", "gce"],
    "recipe": {"validation": 0},
    "published": {
        "source": "Somebody et al., Table 1",
        "note": "Best is the best test epoch.",
        "tables": [
            {
                "dataset": "digits",
                "noise": [NOISE20, NOISE80],
                "figures": {
                    "ce": {"best": [86.8, 63.3], "last": [82.9, 26.3]},
                    "mixup": {"best": [95.6, None], "last": [92.3, None]},
                },
            }
        ],
    },
}


def changed(**keys: Any) -> dict[str, Any]:
    """BOARD with keys of its published table replaced."""
    data = copy.deepcopy(BOARD)
    data["published"]["tables"][0] |= keys
    return data


def results(benchmark: Benchmark, last: tuple[float, ...] = (0.80, 0.81, 0.85)) -> list[dict[str, Any]]:
    """Finished cells of ce and gce; mixup has not run."""
    found = []
    for cell in benchmark.cells():
        result = standing.missing(cell)
        if cell.method.name != "mixup":
            numbers = {"epoch": 3, "accuracy": last[cell.seed], "nll": 0.5, "ece": 0.1}
            at = {"last": numbers, "best": numbers | {"accuracy": 0.9}}
            result |= {"status": "finished", "metrics": at, "seconds": 1.0}
        found.append(result)
    return found


def table(**keys: Any) -> Table:
    benchmark = build(Benchmark, changed(**keys), "paper.yaml")
    return board.table_of(benchmark, results(benchmark))


def plain() -> Table:
    """The same board without a paper's figures."""
    benchmark = build(Benchmark, {key: value for key, value in BOARD.items() if key != "published"}, "paper.yaml")
    return board.table_of(benchmark, results(benchmark))


def drawn(shown: Table, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown.to_rich())
    return console.export_text()


# The shipped figures, typed once more from the paper's tables


@pytest.mark.parametrize(
    ("name", "method", "dataset", "epoch", "figures"),
    [
        ("cifar10", "ce", "cifar10", "best", {0: 94.7, 20: 86.8, 50: 79.8, 80: 63.3}),
        ("cifar10", "ce", "cifar10", "last", {0: 94.6, 20: 82.9, 50: 58.4, 80: 26.3}),
        ("cifar10", "mixup", "cifar10", "best", {0: 95.3, 20: 95.6, 50: 87.1, 80: 71.6, 90: 52.2}),
        ("cifar10", "mixup", "cifar10", "last", {0: 95.2, 20: 92.3, 50: 77.6, 80: 46.7, 90: 43.9}),
        ("cifar10", "m_dyr_s", "cifar10", "last", {0: 93.0, 20: 93.1, 50: 89.3, 80: 74.1}),
        ("cifar10", "m_dyr_h", "cifar10", "best", {0: 93.6, 20: 94.0, 50: 92.0, 80: 86.8, 90: 40.8}),
        ("cifar10", "m_dyr_h", "cifar10", "last", {0: 93.4, 20: 93.8, 50: 91.9, 80: 86.6, 90: 9.9}),
        ("cifar10", "md_dyr_h", "cifar10", "last", {80: 80.5, 90: 50.0}),
        ("cifar10", "md_dyr_sh", "cifar10", "last", {0: 92.7, 20: 93.6, 50: 90.3, 80: 77.8, 90: 68.7}),
        ("cifar10", "bootstrap_static", "cifar10", "last", {0: 94.6, 20: 82.9, 50: 58.4, 80: 26.8, 90: 17.0}),
        ("cifar10", "forward", "cifar10", "last", {0: 94.6, 20: 83.1, 50: 59.4, 80: 26.2, 90: 18.8}),
        ("cifar100", "ce", "cifar100", "last", {0: 75.9, 20: 62.0, 50: 37.7, 80: 8.9}),
        ("cifar100", "m_dyr_h", "cifar100", "last", {0: 66.2, 20: 68.5, 50: 58.8, 80: 47.6, 90: 8.6}),
        ("cifar100", "md_dyr_sh", "cifar100", "best", {0: 73.3, 20: 73.9, 50: 66.1, 80: 41.6, 90: 24.3}),
        ("cifar100", "forward", "cifar100", "best", {0: 75.4, 20: 61.5, 50: 46.6, 80: 19.9, 90: 10.2}),
        ("cifar100", "bootstrap_static", "cifar100", "best", {0: 76.1, 20: 62.1, 50: 46.6, 80: 19.9, 90: 10.2}),
        ("extreme", "md_dyr_h", "cifar10", "last", {70: 85.2, 80: 80.5, 85: 77.3, 90: 50.0}),
        ("extreme", "md_dyr_sh", "cifar100", "best", {70: 53.1, 80: 41.6, 85: 28.8, 90: 24.3}),
        ("table1", "st_h", "cifar10", "last", {0: 93.8, 20: 81.4, 50: 56.4, 80: 25.7}),
        ("table1", "dy_h", "cifar10", "last", {0: 92.9, 20: 83.4, 50: 65.0, 80: 64.2}),
        ("tinyimagenet", "md_dyr_sh", "tinyimagenet", "last", {20: 59.8, 50: 50.0, 80: 19.6}),
        ("tinyimagenet", "mixup", "tinyimagenet", "best", {20: 53.2, 50: 41.7, 80: 18.9}),
    ],
)
def test_the_shipped_figures_are_the_papers(
    name: str, method: str, dataset: str, epoch: str, figures: dict[int, float]
) -> None:
    published = load_benchmark(f"arazo2019-{name}").published
    assert published is not None
    noise = {rate: f"symmetric {rate}% (incl. true)" if rate else "clean" for rate in figures}
    found = {
        place[2]: figure
        for place, figure in published.figures().items()
        if (place[0], place[1], place[3]) == (method, dataset, epoch)
    }
    assert found == {noise[rate]: figure for rate, figure in figures.items()}


def test_table_5_is_of_noise_that_excludes_the_true_label() -> None:
    published = load_benchmark("arazo2019-excluding").published
    assert published is not None
    found = published.figures()
    assert found["md_dyr_sh", "cifar10", "symmetric 80% (excl. true)", "best", ""] == 74.1
    assert found["m_dyr_h", "cifar100", "symmetric 60% (excl. true)", "best", ""] == 58.1
    assert len(found) == 16


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "extreme", "excluding", "tinyimagenet"])
def test_the_recipe_is_that_of_the_authors(name: str) -> None:
    recipe = load_benchmark(f"arazo2019-{name}").recipe
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == ("preact_resnet18", 300, 128)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.nesterov) == (0.1, 0.9, 1e-4, False)
    assert (recipe.padding, recipe.flip, recipe.validation) == (4, True, 0)
    assert (recipe.schedule.milestones, recipe.schedule.gamma) == ((100, 250), 0.1)
    assert recipe.backbone_options == {"stem_bn": True, "final_bn": False, "he_init": False}


@pytest.mark.parametrize(
    ("board", "metric", "noise", "figures"),
    [
        ("imagenet", "", "clean", {"ce": 76.5, "het_diag": 78.3, "het_full": 78.5}),
        ("imagenet", "top5", "clean", {"ce": 93.0, "het_diag": 94.0, "het_full": 94.3}),
        ("webvision", "", "real", {"ce": 76.1, "het_diag": 76.2, "het_full": 76.6}),
        ("webvision", "top5", "real", {"ce": 91.2, "het_diag": 91.4, "het_full": 92.1}),
        ("webvision", "ilsvrc12.accuracy", "real", {"ce": 67.0, "het_diag": 67.3, "het_full": 68.6}),
        ("webvision", "ilsvrc12.top5", "real", {"ce": 86.0, "het_diag": 86.1, "het_full": 87.1}),
        (
            "imagenet21k",
            "gap",
            "clean",
            {"ce": 45.9, "het_diag (tau 1)": 45.9, "het_diag (tau 0.15)": 46.8, "het_pe (tau 0.15)": 47.0},
        ),
    ],
)
def test_the_figures_at_scale_are_the_papers(board: str, metric: str, noise: str, figures: dict[str, float]) -> None:
    published = load_benchmark(board).published
    assert published is not None
    found = {place: figure for place, figure in published.figures().items() if place[-1] == metric}
    assert found == {(row, board, noise, "last", metric): figure for row, figure in figures.items()}


def test_figures_of_a_further_test_stand_beside_ours() -> None:
    keys = {"noise": [NOISE20], "metric": "ilsvrc12.accuracy", "figures": {"ce": {"last": [67.0]}}}
    benchmark = build(Benchmark, changed(**keys), "paper.yaml")
    ran = results(benchmark)
    for result in ran:
        for metrics in result.get("metrics", {}).values():
            metrics["ilsvrc12.accuracy"] = 0.68
    (found,) = beside_paper.comparisons(board.table_of(benchmark, ran))
    assert (found.kind.metric, found.published) == ("ilsvrc12.accuracy", 67.0)
    assert found.difference == pytest.approx(1.0)
    text = " ".join(drawn(board.table_of(benchmark, ran)).split())
    assert "· last epoch" in text
    assert "accuracy (ilsvrc12) accuracy (ilsvrc12)" in text


def test_nll_is_compared_in_its_own_unit() -> None:
    shown = table(noise=[NOISE20], metric="nll", figures={"ce": {"last": [0.9812]}})
    (found,) = beside_paper.comparisons(shown)
    assert (found.ours, found.difference) == (0.5, pytest.approx(-0.4812))
    assert found.record()["unit"] == ""
    assert re.search(r"ce +0.500 ± 0.000 +0.9812 +-0.4812 ± 0.0000 \* +–", drawn(shown))


def test_the_tinyimagenet_boards_have_the_same_figures() -> None:
    published, other = (load_benchmark(name).published for name in ("tinyimagenet", "arazo2019-tinyimagenet"))
    assert published is not None
    assert other is not None
    assert published.figures() == other.figures()


@pytest.mark.parametrize(
    ("board", "backbone", "epochs", "batch", "decay", "milestones", "warmup"),
    [
        ("imagenet", "timm:resnetv2_152", 90, 1024, 1e-3, (30, 60, 80), 5),
        ("imagenet21k", "timm:resnetv2_152", 90, 1024, 3e-3, (30, 60, 80), 1),
        ("webvision", "timm:inception_resnet_v2", 95, 2048, 4e-5, (40, 80), 2),
    ],
)
def test_the_recipe_at_scale_is_that_of_appendix_b(
    board: str, backbone: str, epochs: int, batch: int, decay: float, milestones: tuple[int, ...], warmup: int
) -> None:
    recipe = load_benchmark(board).recipe
    assert (recipe.backbone, recipe.epochs, recipe.batch_size) == (backbone, epochs, batch)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.1, 0.9, decay)
    schedule = recipe.schedule
    assert (schedule.milestones, schedule.gamma, schedule.warmup) == (milestones, 0.1, warmup)
    assert recipe.clip_norm == (1.0 if board == "imagenet21k" else None)


# What is refused


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"dataset": "digit"}, "published.tables[0].dataset: the board's 'digit' is unknown; did you mean digits?"),
        ({"noise": [NOISE20, "symmetric 81% (incl. true)"]}, f"did you mean {NOISE80}"),
        ({"noise": [NOISE20, NOISE20]}, "two figures for ce / digits / symmetric 20%"),
        ({"figures": {"mixupp": {"last": [1, 2]}}}, "figures: the board's 'mixupp' is unknown; did you mean mixup?"),
        ({"figures": {"ce": {"last": [1]}}}, "figures.ce.last: 1 for 2 columns of noise"),
        ({"figures": {"ce": {"lst": [1, 2]}}}, "should be 'selected', 'last' or 'best'"),
        ({"figures": {"ce": {"last": [1, 100.1]}}}, "figures.ce.last.1: 100.1: should be less than or equal to 100"),
        ({"figures": {"ce": {"last": [-0.1, 1]}}}, "figures.ce.last.0: -0.1: should be greater than or equal to 0"),
        ({"figures": {"ce": {"last": ["94.7", 1]}}}, "figures.ce.last.0: '94.7': should be a valid number"),
        ({"figures": {}}, "figures"),
        ({"figurs": {}}, "did you mean"),
    ],
)
def test_a_mistake_in_the_figures_is_one_line_that_says_where(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Benchmark, changed(**keys), "paper.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("paper.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_changed_board_keeps_the_figures_that_still_have_a_place(tmp_path: Path) -> None:
    file = tmp_path / "paper.yaml"
    file.write_text(to_yaml(BOARD))
    benchmark = load_benchmark(str(file), ["methods=[gce, mixup]", "seeds=[0]"])
    assert "changed" in benchmark.title
    shown = {(one.method, one.kind.rule) for one in beside_paper.comparisons(board.table_of(benchmark, []))}
    assert shown == {("mixup", "last"), ("mixup", "best")}
    assert load_benchmark(str(file), ["methods=[ce, mixup, gce]"]).title == ""
    with pytest.raises(UserError, match="--set published: these are a paper's figures"):
        load_benchmark(str(file), ["published.note=x"])


# Beside ours


def test_ours_the_papers_and_the_difference_cell_by_cell() -> None:
    found = {(one.method, one.column.noise, one.kind.rule): one for one in beside_paper.comparisons(table())}
    assert len(found) == 6
    ours = found["ce", NOISE80, "last"]
    assert (ours.ours, ours.published) == (pytest.approx(82.0), 26.3)
    assert ours.difference == pytest.approx(55.7)
    not_run = found["mixup", NOISE20, "best"]
    assert (not_run.ours, not_run.difference, not_run.outside) == (None, None, None)


@pytest.mark.parametrize("published", [70.1, 70.6, 93.4, 93.9])
def test_outside_is_outside_the_interval_of_one_more_run(published: float) -> None:
    found = next(
        one
        for one in beside_paper.comparisons(table(figures={"ce": {"last": [published, None]}}))
        if one.kind.rule == "last"
    )
    low, high = t.interval(0.95, df=2, loc=82, scale=7**0.5 * (1 + 1 / 3) ** 0.5)  # 80, 81, 85: variance 7
    assert low == pytest.approx(68.855, abs=0.01)
    assert found.outside == (not low <= published <= high)
    far = beside_paper.comparisons(table(figures={"ce": {"last": [60.0, 99.0]}}))
    assert [one.outside for one in far] == [True, True]


@pytest.mark.parametrize(("runs", "variance"), [(5, 7 / 3 + 0.25 / 5), (None, 7 / 3 + 0.25)])
def test_the_sd_of_a_difference_takes_in_the_papers(runs: int | None, variance: float) -> None:
    shown = table(figures={"ce": {"last": [79.0, None]}}, sd={"ce": {"last": [0.5, None]}}, runs=runs)
    (found,) = beside_paper.comparisons(shown)  # ours: 80, 81, 85: mean 82, variance 7
    assert (found.difference, found.difference_sd) == (pytest.approx(3), pytest.approx(variance**0.5))
    assert found.in_sd == pytest.approx(3 / variance**0.5)
    assert found.outside is False
    assert (found.record()["published_sd"], found.record()["published_n"]) == (0.5, runs)
    text = drawn(shown)
    assert "79.0 ± 0.5" in text
    assert ("sqrt(sd²/n + paper's sd²/paper's n)" in text) == (runs == 5)
    assert ("does not say over how many runs" in text) == (runs is None)


def test_it_changes_nothing_else_of_the_table() -> None:
    with_paper, without = table(), plain()
    assert with_paper.records() == without.records()
    assert with_paper.to_csv() == without.to_csv()
    document = json.loads(with_paper.to_json())
    assert document.pop("published")["source"] == "Somebody et al., Table 1"
    assert document == json.loads(without.to_json())
    assert with_paper.to_markdown().startswith(without.to_markdown())
    assert drawn(with_paper).startswith(drawn(without).rstrip("\n"))


GOLDEN = """\
Beside the paper: digits · symmetric 20% (incl. true)
                                                    best          best                      best
        last          last     last          last   (oracle)      (oracle)  best (oracle)   (oracle)
method  ours %        paper %  difference    in sd  ours %        paper %   difference      in sd
────────────────────────────────────────────────────────────────────────────────────────────────────
ce      82.00 ± 2.65  82.9     -0.90 ± 3.06  -0.3   90.00 ± 0.00  86.8      +3.20 ± 0.00 *  –
mixup   not run       92.3     –             –      not run       95.6      –               –

Beside the paper: digits · symmetric 80% (incl. true)
        last          last     last             last
method  ours %        paper %  difference       in sd
─────────────────────────────────────────────────────
ce      82.00 ± 2.65  26.3     +55.70 ± 3.06 *  +18.2

        best (oracle)  best (oracle)  best (oracle)    best (oracle)
method  ours %         paper %        difference       in sd
────────────────────────────────────────────────────────────────────
ce      90.00 ± 0.00   63.3           +26.70 ± 0.00 *  –
Paper: Somebody et al., Table 1.
Best is the best test epoch.
difference: ours - paper (of %: percentage points) ± its sd; in sd: divided by it. It ranks and
tests nothing.
Its sd where the paper gives none, as if of one run with an sd like ours: sd sqrt(1/n + 1).
*: the paper's figure is outside the 95% t-interval in which one more run would fall.
"""


def test_in_the_terminal_it_stands_under_the_ranking() -> None:
    text = "\n".join(line.rstrip() for line in drawn(table()).splitlines()) + "\n"
    assert text[text.index("Beside the paper") :] == GOLDEN


def test_it_fits_80_columns() -> None:
    text = drawn(table(), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("+55.70 ± 3.06 *") == 1


def test_in_files(tmp_path: Path) -> None:
    shown = table()
    paths = shown.write(tmp_path)
    assert [path.name for path in paths if "published" in path.name] == ["leaderboard-published.csv"]
    rows = list(csv.DictReader((tmp_path / "leaderboard-published.csv").open()))
    assert [row["method"] for row in rows] == ["ce", "ce", "mixup", "mixup", "ce", "ce"]
    first = rows[0]
    assert (first["noise"], first["epoch"], first["published"], first["outside"]) == (NOISE20, "last", "82.9", "false")
    assert float(first["difference"]) == pytest.approx(-0.9)
    cells = json.loads((tmp_path / "leaderboard.json").read_text())["published"]["cells"]
    assert [cell["published"] for cell in cells] == [float(row["published"]) for row in rows]
    assert r"| ce | 82.00 ± 2.65 | 82.9 | -0.90 ± 3.06 | -0.3 |" in (tmp_path / "leaderboard.md").read_text()
    assert "Beside the paper" in (tmp_path / "leaderboard.tex").read_text()
    plain().write(tmp_path)
    assert not (tmp_path / "leaderboard-published.csv").exists()


def test_no_figure_with_a_place_is_no_section() -> None:
    benchmark = build(Benchmark, changed(), "paper.yaml").model_copy(update={"methods": ()})
    assert "Beside" not in drawn(board.table_of(benchmark, []))


def test_the_figures_survive_a_round_trip_and_a_board_without_them_has_no_such_key() -> None:
    made: Benchmark = build(Benchmark, BOARD, "paper.yaml")
    again = build(
        Benchmark,
        parse_yaml(to_yaml(made.model_dump(mode="json", exclude={"noise"})), "x") | {"noise": BOARD["noise"]},
        "x",
    )
    assert again == made
    assert "published" not in made.model_copy(update={"published": None}).model_dump()
