"""The papers' tables as boards: their figures are those of the papers' text, none is left out, and each runs small."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import noisebench
from rich.console import Console
from scipy.stats import ttest_ind_from_stats

from noisebench import beside_paper, board, listing, tracking
from noisebench.config import Benchmark, load_benchmark
from noisebench.errors import UserError
from noisebench.executors import Place
from noisebench.published import Entry
from noisebench.published import Place as FigurePlace
from noisebench.reading import to_yaml

pytestmark = pytest.mark.usefixtures("one_picture")

TABLES = [
    *(f"arazo2019-table{i}" for i in range(1, 7)),
    *(f"collier2021-table{i}" for i in (1, 2, 3, 6, 7, 8, 9, 10, 11)),
    *(f"sukhbaatar2014-table{i}" for i in (1, 2)),
]
PAPERS = Path(__file__).resolve().parents[2] / "shared" / "papers"
SYMMETRIC = "symmetric {}% ({}. true)"


def entries(name: str) -> dict[FigurePlace, Entry]:
    published = load_benchmark(name).published
    assert published is not None
    return published.entries()


# The figures, against the text of the papers


def text_of(paper: str) -> list[str]:
    file = PAPERS / f"{paper}.txt"
    if not file.is_file():
        pytest.skip("the papers' text is not at hand")
    return file.read_text(encoding="utf-8").splitlines()


def numbers(cells: Iterable[str]) -> list[float | None]:
    """Those of cells in their order; None for a dash."""
    found = [re.findall(r"\d+\.\d+", cell) or ["-"] * (cell.strip() == "-") for cell in cells]
    return [None if one == "-" else float(one) for cell in found for one in cell]


def arazo(table: int) -> list[list[Any]]:
    """The lines of a table below its caption: [method, "Best" or "Last", figures...]."""
    lines = text_of("arazo2019")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {table}. "))
    found: list[list[Any]] = []
    for line in lines[start + 1 :]:
        cells = line.split("\t")
        if len(cells) > 3 and numbers(cells[2:]):
            found.append([cells[0] or found[-1][0], cells[1], *numbers(cells[2:])])
        elif found and line.strip() and len(cells) == 1:
            break
    return found


ROWS = {
    "CE": "ce",
    "ST-S": "st_s",
    "ST-H": "st_h",
    "DY-S": "dy_s",
    "DY-H": "dy_h",
    "M (Zhang et al., 2018)": "mixup",
    "(Zhang et al., 2018)*": "mixup",
    "(Reed et al., 2015)*": "bootstrap_static",
    "(Patrini et al., 2017)*": "forward",
    "M-DYR-S": "m_dyr_s",
    "M-DYR-H": "m_dyr_h",
    "MD-DYR-H": "md_dyr_h",
    "MD-DYR-SH": "md_dyr_sh",
    "(Jiang et al., 2018b)": "Jiang 2018b (WRN-101)",
    "(Ma et al., 2018)": "Ma 2018 (GCNN-12)",
    "(Ren et al., 2018)": "Ren 2018 (WRN-28)",
    "(Wang et al., 2018b)": "Wang 2018b (GCNN-7)",
}


@pytest.mark.parametrize(
    ("table", "datasets", "rates"),
    [
        (1, ["cifar10"], [0, 20, 50, 80]),
        (2, ["cifar10", "cifar100"], [0, 20, 50, 80]),
        (3, ["cifar10", "cifar100"], [70, 80, 85, 90]),
        (4, ["cifar10", "cifar100"], [0, 20, 50, 80, 90]),
        (5, ["cifar10", "cifar100"], [20, 40, 60, 80]),
        (6, ["tinyimagenet"], [20, 50, 80]),
    ],
)
def test_arazo_2019_is_as_its_text_has_it(table: int, datasets: list[str], rates: list[int]) -> None:
    lines, expected, dataset, seen = arazo(table), {}, -1, set[tuple[str, str]]()
    for method, epoch, *figures in lines:
        if not seen or (method, epoch) in seen or (table == 5 and method == "(Jiang et al., 2018b)"):
            dataset, seen = dataset + 1, set()
        seen.add((method, epoch))
        row = "Ma 2018 (RN-44)" if epoch == "RN-44" else ROWS[method]
        for rate, figure in zip(rates, figures, strict=True):
            noise = SYMMETRIC.format(rate, "excl" if table == 5 else "incl") if rate else "clean"
            if figure is not None:
                place = FigurePlace(row, datasets[dataset], noise, "last" if epoch == "Last" else "best", "")
                expected[place] = Entry(figure)
    assert dataset == len(datasets) - 1
    assert entries(f"arazo2019-table{table}") == expected


def collier(table: int) -> list[list[float | None]]:
    """The lines of numbers above a table's caption."""
    lines = text_of("collier2021")
    end = next(i for i, line in enumerate(lines) if line.startswith(f"Table {table}: "))
    found: list[list[float | None]] = []
    for line in reversed(lines[:end]):
        cells = line.split("\t")
        if len(cells) > 1 and any(one is not None for one in numbers(cells[1:])):
            found.insert(0, numbers(cells[1:]))
        elif found and not line.strip():
            break
    return found


HOMOSCEDASTIC = ["ce", "het_diag", "het_full"]
FURTHER = ["accuracy", "top5", "nll", "ilsvrc12.accuracy", "ilsvrc12.top5", "ilsvrc12.nll"]
LITERATURE = ["Lee et al. [29]", "Jiang et al. [23]", "Guo et al. [16]"]
LITERATURE += ["Saxena et al. [37]", "Jiang et al. [24]", "Cao et al. [6]"]
OF_JFT = ["ce", "het_diag (tau 1)", "het_diag (tau 0.15)", "het_pe (tau 0.15)"]
SAMPLES = ["1 sample", "10 samples", "100 samples", "1000 samples", "10000 samples"]


@pytest.mark.parametrize(
    ("table", "rows", "columns"),
    [
        (2, [*LITERATURE, *HOMOSCEDASTIC], [("webvision", "real", metric) for metric in FURTHER]),
        (3, OF_JFT, [(*at, m) for at in (("imagenet21k", "clean"), ("JFT-300M", "real")) for m in ("gap", "nll")]),
        (
            7,
            ["ce", "ensemble of 4 ce", "het_full", "ensemble of 4 het_full"],
            [("imagenet", "clean", metric) for metric in ("accuracy", "nll", "ece")],
        ),
        (8, ["ce", "het_diag", "Het. Diag Taylor series approx"], [("imagenet", "clean", "accuracy")]),
        (10, ["ce", "ce_equal_params", "het_full"], [("imagenet", "clean", "accuracy")]),
        (
            11,
            ["ce (softmax)", "ce (sigmoid)", "het_full (softmax)", "het_full (sigmoid)"],
            [("imagenet", "clean", "accuracy")],
        ),
    ],
)
def test_collier_2021_is_as_its_text_has_it(table: int, rows: list[str], columns: list[tuple[str, str, str]]) -> None:
    ours = entries(f"collier2021-table{table}")
    shown = [
        [
            one
            for dataset, noise, metric in columns
            for entry in [ours.get(FigurePlace(row, dataset, noise, "last", metric))]
            for one in ([None] if entry is None else [entry.value] if entry.sd is None else [entry.value, entry.sd])
        ]
        for row in rows
    ]
    assert shown == collier(table)
    assert sum(one is not None for row in shown for one in row) == sum(1 + (e.sd is not None) for e in ours.values())


def test_collier_2021_tables_1_6_and_9_too() -> None:
    ours, shown = entries("collier2021-table1"), []
    for method in HOMOSCEDASTIC:
        places = [(f"{method} ({n} epochs)", m) for m in ("accuracy", "top5", "nll") for n in (90, 270)]
        found = [ours[FigurePlace(row, "imagenet", "clean", "last", metric)] for row, metric in places]
        shown.append([one for entry in found for one in (entry.value, entry.sd)])
    assert shown == collier(1)
    assert {entry.runs for entry in ours.values()} == {5}
    six = entries("collier2021-table6").values()
    text = re.findall(r"([\d.]+)(?:\^\{\\dagger\})? \\pm ([\d.]+)", "".join(text_of("collier2021")[325:332]))
    assert [(entry.value, entry.sd) for entry in six] == [(float(a), float(b)) for a, b in text]
    nine = entries("collier2021-table9")
    assert [place.method for place in nine] == SAMPLES
    assert [[entry.value for entry in nine.values()]] == collier(9)


def test_sukhbaatar_2014_is_as_its_text_has_it() -> None:
    text = "\n".join(text_of("sukhbaatar2014"))
    rows = {"None": "ce", "Learned Q": "transition", "True Q*": "transition_true"}
    expected = {}
    for model, size, rate, error in re.findall(r"(None|Learned Q|True Q\*)\t([\d.]+M)\t(\d+)\t([\d.]+)%", text):
        row = "ce (0.6M images)" if size == "0.6M" else rows[model]
        noise = SYMMETRIC.format(rate, "excl") if rate != "0" else "clean"
        expected[FigurePlace(row, "imagenet", noise, "last", "accuracy")] = pytest.approx(100 - float(error))
    assert {place: entry.value for place, entry in entries("sukhbaatar2014-table1").items()} == expected
    errors = re.findall(r"^(?:Normal Convnet|Label-flip model|Outlier model)\t([\d.]+)%", text, re.MULTILINE)
    two = [entry.value for entry in entries("sukhbaatar2014-table2").values()]
    assert two == pytest.approx([100 - float(error) for error in errors])


# The boards


@pytest.mark.parametrize("name", TABLES)
def test_every_figure_has_a_place_at_every_scale_and_the_title_tells_the_scale(name: str) -> None:
    for scale in (None, "cpu"):
        benchmark = load_benchmark(name, scale=scale)
        assert benchmark.published is not None
        benchmark.published.check(
            [m.label for m in benchmark.methods], benchmark.datasets, [n.label for n in benchmark.noise]
        )
        shown = beside_paper.comparisons(board.table_of(benchmark, []))
        assert len(shown) == len(benchmark.published.entries())
        assert ("--scale cpu" in benchmark.title) == (scale is not None)
    assert benchmark.name == f"{name}-cpu"
    assert "at cpu scale" in benchmark.published.note
    assert len(benchmark.seeds) == 2 or not benchmark.datasets


def test_every_table_is_listed_in_one_line() -> None:
    listed = {row["name"]: row["summary"] for row in listing.everything()["benchmarks"]}
    for name in TABLES:
        assert re.fullmatch(r"(Arazo|Sukhbaatar|Collier) et al\. 20\d\d, Table \d+: .{10,90}", listed[name])


@pytest.mark.parametrize(
    ("table", "other"),
    [
        ("arazo2019-table2", "arazo2019-cifar10"),
        ("arazo2019-table4", "arazo2019-cifar100"),
        ("collier2021-table1", "imagenet"),
        ("collier2021-table11", "collier2021-table1"),
    ],
)
def test_tables_share_their_cells_with_other_boards(table: str, other: str) -> None:
    ours, theirs = ({cell.fingerprint() for cell in load_benchmark(name).cells()} for name in (table, other))
    assert len(ours & theirs) >= 3


def test_rows_of_the_longer_schedule_differ_in_nothing_else() -> None:
    recipes = {cell.method.label: cell.recipe for cell in load_benchmark("collier2021-table1").cells()}
    short, long = recipes["het_full (90 epochs)"], recipes["het_full (270 epochs)"]
    assert (short.epochs, short.schedule.milestones) == (90, (30, 60, 80))
    assert (long.epochs, long.schedule.milestones) == (270, (90, 180, 240))
    assert long.model_copy(update={"epochs": 90, "schedule": short.schedule}) == short


# A whole table, small


class NoSender:
    """In place of MLflow's."""

    def finish(self) -> None:
        return None


def here(cells: Any, place: Place, jobs: Any, idle: Any) -> Iterator[Any]:
    from noisebench.cell import run_cell

    return ((cell, run_cell(cell, place.out, place.data_root, False, "cpu")) for cell in cells)


def drawn(table: Any, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


FIGURES = {
    "source": "A et al., Table 7",
    "not_here": {"B et al.": "no method here", "secret": "never published"},
    "tables": [
        {
            "dataset": "digits",
            "noise": ["clean", "symmetric 40% (excl. true)"],
            "figures": {"ce": {"last": [90.0, 60.0]}, "B et al.": {"last": [95.0, None]}},
            "sd": {"ce": {"last": [0.5, None]}},
            "runs": 5,
        },
        {"dataset": "svhn", "noise": ["clean"], "figures": {"ce": {"last": [93.0]}}},
        {"dataset": "secret", "noise": ["any"], "metric": "nll", "figures": {"ce": {"last": [20.12]}}},
    ],
}
BASE = {
    "title": "A table",
    "datasets": ["digits", "svhn"],
    "noise": [{"kind": "none"}, {"kind": "symmetric", "rate": 0.4}],
    "methods": ["ce", "gce"],
    "recipe": {"epochs": 30, "validation": 0, "backbone": "preact_resnet18", "backbone_options": {"final_bn": False}},
    "published": FIGURES,
    "scale": {
        "cpu": {
            "size": 120,
            "seeds": [0, 1],
            "recipe": {"epochs": 1, "backbone": "small_cnn", "backbone_options": {}, "batch_size": 32},
        }
    },
}


def written(folder: Path, name: str = "table.yaml", **changes: Any) -> str:
    file = folder / name
    file.write_text(to_yaml({key: value for key, value in (BASE | changes).items() if value is not None}))
    return str(file)


def test_a_table_at_cpu_scale_shows_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start", lambda *_: NoSender())
    benchmark = load_benchmark(written(tmp_path), scale="cpu")
    assert benchmark.title == "A table (--scale cpu: digits@120, svhn@120; small_cnn, 1 epochs, 2 seeds)"
    table = board.run_board(benchmark, Place(tmp_path, accelerator="cpu"), 1, run=here).table
    found = {(one.method, one.column): one for one in beside_paper.comparisons(table)}
    assert len(found) == 5

    clean = found["ce", ("digits@120", "clean")]
    ours = [100 * number for number in clean.cell.numbers]
    mean, sd = sum(ours) / 2, abs(ours[0] - ours[1]) / 2**0.5
    assert clean.difference == pytest.approx(mean - 90)
    assert clean.difference_sd == pytest.approx((sd**2 / 2 + 0.5**2 / 5) ** 0.5)
    assert clean.in_sd == pytest.approx((mean - 90) / (sd**2 / 2 + 0.05) ** 0.5)
    assert clean.outside == (ttest_ind_from_stats(mean, sd, 2, 90, 0.5, 5, equal_var=False).pvalue < 0.05)
    noisy = found["ce", ("digits@120", "symmetric 40% (excl. true)")]
    assert noisy.difference_sd == pytest.approx(100 * noisy.cell.sd * 1.5**0.5)

    for place in (("B et al.", ("digits@120", "clean")), ("ce", ("svhn@120", "clean")), ("ce", ("secret", "any"))):
        assert found[place].ours is None
    text = drawn(table, 80)
    assert max(map(len, text.splitlines())) <= 80
    line = next(line for line in text.splitlines() if line.startswith("B et al."))
    assert line.split() == ["B", "et", "al.", "not", "run", "95.0", "–", "–"]
    whole = " ".join(text.split())
    assert "Not run, B et al.: no method here." in whole
    assert "Not run, secret: never published." in whole
    assert "Not run, svhn@120: SVHN needs a data folder" in whole
    assert "Ours is run at cpu scale" in whole
    assert "Beside the paper: secret · any · last epoch" in text
    assert "svhn@120 · clean\nmethod" not in text  # no details of a column without data


def test_real_images_at_cpu_scale(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start", lambda *_: NoSender())
    small = {"recipe": {"epochs": 3, "test_size": 50}, "size": 60, "seeds": [0]}
    file = tmp_path / "small.yaml"
    file.write_text(to_yaml({"extends": "arazo2019-table2", "title": "Small", "scale": {"cpu": small}}))
    benchmark = load_benchmark(str(file), scale="cpu")
    assert benchmark.recipe.backbone == "small_cnn"  # of the scale of the other board, whose keys are joined
    table = board.run_board(benchmark, Place(tmp_path, Path(data_root), accelerator="cpu"), 1, run=here).table
    found = beside_paper.comparisons(table)
    assert len(found) == 64
    here_too = {"cifar10@60"} if "cifar100@60" in {c.dataset for c in table.unavailable} else set(benchmark.datasets)
    assert {one.column.dataset for one in found if one.ours is not None} == here_too
    assert all(one.difference_sd is None for one in found)
    assert "No sd of the difference where ours is of one seed" in drawn(table, 120)


def test_a_table_whose_data_nobody_has_is_shown(tmp_path: Path) -> None:
    ran = noisebench("leaderboard", "sukhbaatar2014-table2", "--scale", "cpu", "--out", tmp_path, "--rebuild", "runs")
    assert ran.code == 0
    assert "(--scale cpu: nothing to run)" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if line.startswith("transition")]
    assert [row[:4] for row in rows] == [
        ["transition", "not", "run", "51.8"],
        ["transition_outlier", "not", "run", "51.5"],
    ]


# What is refused


def refusal(name: str, scale: str | None = None, settings: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_benchmark(name, settings, scale)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scales_that_are_wrong(tmp_path: Path) -> None:
    assert refusal("digits", "cpu").startswith("--scale cpu: digits has no scale")
    assert refusal(written(tmp_path), "cpy") == "--scale: table has others: scale 'cpy' is unknown; did you mean cpu?"
    bad = written(tmp_path, scale={"cpu": {"sise": 3}})
    assert refusal(bad, "cpu") == refusal(bad)
    assert refusal(bad).startswith("table.yaml: key 'scale.cpu.sise' is unknown")
    keys = written(tmp_path, scale={"cpu": {"recipe": {"epoch": 1}}})
    assert refusal(keys, "cpu").startswith("table.yaml at scale cpu: key 'recipe.epoch' is unknown; did you mean")
    few = written(tmp_path, scale={"cpu": {"datasets": ["digits"]}})
    assert refusal(few, "cpu") == "table.yaml: scale.cpu.datasets: 1 for 2 of the board; give one for each"
    ran = noisebench("leaderboard", "digits", "--scale", "cpu", "--out", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: --scale cpu: digits has no scale")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": 5}, "datasets: 5: should be a list"),
        ({"datasets": [3]}, "datasets.0: 3: should be a valid string"),
        ({"published": {"source": "A", "tables": 3}}, "published: tables: 3: should be a list"),
        ({"published": {"source": "A", "tables": [3]}}, "published: tables.0: 3: should be"),
        ({"scale": 3}, "scale: 3: should be"),
    ],
)
def test_a_wrong_board_is_told_at_a_scale_too(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert refusal(written(tmp_path, **changes), "cpu").startswith(f"table.yaml: {says}")


def test_what_is_set_of_the_recipe_holds_for_rows_with_one_of_their_own(tmp_path: Path) -> None:
    long = {"name": "gce", "label": "long", "recipe": {"epochs": 99, "schedule": {"warmup": 3}}}
    board = written(tmp_path, methods=["ce", long])
    made = load_benchmark(board, ["recipe.epochs=2", "recipe.schedule.warmup=1"], "cpu")
    assert {(cell.recipe.epochs, cell.recipe.schedule.warmup) for cell in made.cells()} == {(2, 1)}
    assert "changed: recipe.epochs=2" in made.title
    one = "methods: 'ce (90 epochs)' and 'ce (270 epochs)' are one method under the same settings"
    told = refusal("collier2021-table1", "cpu", ["recipe.epochs=2"])
    assert told.endswith(f"{one} (rows with a recipe of their own take recipe.epochs=2, too)")


def test_boards_that_extend_what_they_cannot(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for other, says in (
        ("arazo2019-cifar11", "mine.yaml: extends: benchmark 'arazo2019-cifar11' is unknown; did you mean arazo"),
        ("mine.yaml", "mine.yaml: extends: 'mine.yaml' leads back to itself"),
        ("none.yaml", "mine.yaml: extends: none.yaml: no such file"),
        ([1], "mine.yaml: extends: [1]: give one board"),
    ):
        file.write_text(to_yaml({"extends": other}))
        assert refusal(str(file)).startswith(says)
    (tmp_path / "other.yaml").write_text(to_yaml({"extends": "mine.yaml"}))
    file.write_text(to_yaml({"extends": "other.yaml"}))
    assert "leads back to itself" in refusal(str(file))


def test_a_board_that_extends_another_takes_all_but_what_it_says(tmp_path: Path) -> None:
    other = load_benchmark(written(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml({"extends": "table.yaml", "methods": ["gce", "mixup"], "recipe": {"epochs": 2}}))
    mine = load_benchmark(str(file))
    assert (mine.name, mine.title) == ("mine", "")
    assert (mine.datasets, mine.noise, mine.scale) == (other.datasets, other.noise, other.scale)
    assert mine.recipe == other.recipe.model_copy(update={"epochs": 2})
    assert mine.published == other.published  # figures of ce have no place here, and that is no mistake
    shown = beside_paper.comparisons(board.table_of(mine, []))
    assert {one.method for one in shown} == {"B et al."}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"validation": 0.1}, "methods: 'long': recipe.validation is the board's, for all rows alike"),
        ({"epoch": 3}, "methods: 'long': recipe: key 'epoch' is unknown; did you mean epochs"),
        ({"epochs": 0}, "methods: 'long': recipe: epochs: 0: should be greater than or equal to 1"),
        ({"epochs": 30}, "methods: 'ce' and 'long' are one method under the same settings"),
        ({"backbone": "small_cn"}, "methods[1].recipe.backbone 'small_cn' is unknown; did you mean small_cnn"),
    ],
)
def test_a_rows_own_recipe_is_checked(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    rows = ["ce", {"name": "ce", "label": "long", "recipe": row}]
    assert says in refusal(written(tmp_path, methods=rows, published=None))


def test_a_board_without_datasets_needs_figures(tmp_path: Path) -> None:
    assert "datasets: give one at least" in refusal(written(tmp_path, datasets=[], published=None))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"not_here": {"ce": "no"}}, "published.not_here: the board has 'ce'"),
        (
            {"not_here": {"B et al": "no"}},
            "not_here: no row or dataset of the tables: 'B et al' is unknown; did you mean",
        ),
        ({"sd": {"gce": {"last": [1.0, 1.0]}}}, "sd.gce.last.0: there is no such figure"),
        ({"sd": {"ce": {"last": [1.0]}}}, "sd.ce.last: 1 for 2 columns of noise"),
        ({"metric": "speed"}, "metric: 'speed' is no metric; give one of accuracy"),
    ],
)
def test_figures_that_cannot_be(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    first = FIGURES["tables"][0] | {key: value for key, value in changes.items() if key != "not_here"}
    names = FIGURES["not_here"] | changes.get("not_here", {})
    assert says in refusal(
        written(tmp_path, published=FIGURES | {"not_here": names, "tables": [first, *FIGURES["tables"][1:]]})
    )


def test_a_benchmark_dumps_without_the_keys_that_it_does_not_have() -> None:
    plain = load_benchmark("digits").model_dump()
    assert "scale" not in plain
    assert all("recipe" not in row for row in plain["methods"])
    made = load_benchmark("collier2021-table1")
    assert Benchmark.model_validate({**made.model_dump(mode="json"), "noise": [{"kind": "none"}]}) == made
