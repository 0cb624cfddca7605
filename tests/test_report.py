"""The report of a board: what it says, that it stands alone, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from browser import Page, chromium
from commands import noisebench
from report_boards import benchmark, failed, write_board

from noisebench import _report_figures, _report_sections, _report_tracking, _store
from noisebench._report_ranks import Separation, separation
from noisebench._report_runs import read_runs
from noisebench._report_svg import inline
from noisebench.board import table_of
from noisebench.config import Benchmark, Cell, load_benchmark
from noisebench.errors import UserError
from noisebench.report import report, write_report

EVIL = "<script>alert(1)</script>"
BOLD = "<b>gce</b> & $co_1$ \\LaTeX"


def written(out: Path, change: Any = None, score: str = "accuracy", **changes: Any) -> str:
    """The report of a board that is written in `out`."""
    board = benchmark(**changes)
    write_board(board, out, change, score)
    return report(board, out).read_text(encoding="utf-8")


def rich(cell: Cell, result: dict[str, Any]) -> dict[str, Any] | None:
    """A failed cell, one that has not run, one without a finite number, a privileged row."""
    place = (cell.method.label, cell.noise.rate, cell.seed)
    if place == (EVIL, 0.2, 1):
        return failed(cell, "the loss is <nan> in epoch 3")
    if place == (EVIL, 0.4, 0):
        return None
    if place == (BOLD, 0.4, 0):
        for numbers in result["metrics"].values():
            numbers["accuracy"] = float("nan")
        result["lines"][-1]["test.accuracy"] = float("nan")
    if cell.method.name == "elr":
        result["privileged"] = ["transition"]
    return result


ROWS: list[Any] = [
    "ce",
    {"name": "gce", "label": EVIL, "hparams": {"q": 0.3}},
    {"name": "gce", "label": BOLD},
    "elr",
    "mixup",
]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their figures, which take most of the time."""
    for name in ("epochs", "calibration", "against_rate", "critical_difference"):
        monkeypatch.setattr(_report_figures, name, lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr(_report_sections, "swatch", lambda _: "")


@pytest.fixture(scope="module")
def rich_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a board with all that can be in one."""
    out = tmp_path_factory.mktemp("rich")
    board = benchmark(methods=ROWS, name="rich", title=f"Rich {EVIL}", description=f"About {EVIL}")
    write_board(board, out, rich)
    return report(board, out)


@pytest.fixture(scope="module")
def page(rich_board: Path) -> str:
    return rich_board.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


# ------------------------------------------------------------------------------------------------- what stands in it


class Outline(HTMLParser):
    """Headings, ids, addresses and elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.links += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href", "action")]


def test_it_stands_alone_and_is_well_made(page: str) -> None:
    seen = Outline(page)
    assert all(link.startswith(("#", "../../", "data:")) for link in seen.links)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", page)
    assert seen.levels[0] == 1
    assert seen.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(seen.levels, seen.levels[1:], strict=False))
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link[1:] in seen.ids for link in seen.links if link.startswith("#"))
    assert {"main", "header", "nav", "caption"} <= set(seen.tags)
    assert 'lang="en"' in page
    assert seen.tags.count("svg") == page.count('role="img"') + page.count('aria-hidden="true"')


def test_names_are_shown_literally(page: str) -> None:
    assert page.count("<script") == 1
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;gce&lt;/b&gt; &amp; $co_1$ \\LaTeX" in page


def test_every_cell_says_how_it_is(page: str) -> None:
    assert "the loss is &lt;nan&gt; in epoch 3" in page
    assert "38 of 40 finished, 1 failed, 1 not run" in page
    assert ">seed 0</a> not finite" in page
    assert "seed 0 not run" in page
    assert "elr ‡" in page
    assert "for reference, not ranked or tested" in page
    assert "a machine of tests" in page
    assert "peak memory" in page


def test_links_lead_to_the_folders(rich_board: Path, page: str) -> None:
    links = [link for link in Outline(page).links if link.startswith("../../")]
    assert len(links) > 30
    assert all((rich_board.parent / link).is_dir() for link in links)


def test_the_same_board_gives_the_same_bytes(rich_board: Path, page: str) -> None:
    board = benchmark(methods=ROWS, name="rich", title=f"Rich {EVIL}", description=f"About {EVIL}")
    again = report(board, rich_board.parents[2])
    assert again == rich_board
    assert again.read_text(encoding="utf-8") == page


def test_the_board_in_it_is_the_board(page: str, tmp_path: Path) -> None:
    text = re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)[1]
    file = tmp_path / "rich.yaml"
    file.write_text(html.unescape(text), encoding="utf-8")
    board = benchmark(methods=ROWS, name="rich", title=f"Rich {EVIL}", description=f"About {EVIL}")
    assert [c.fingerprint() for c in load_benchmark(str(file)).cells()] == [c.fingerprint() for c in board.cells()]


def test_the_noise_is_told_exactly(page: str) -> None:
    assert "wrong realised %" in page
    assert "T asked, seed 0" in page
    assert len(re.findall(r"SHA-256 of the labels [0-9a-f]{64}", page)) == 8


@pytest.mark.usefixtures("undrawn")
def test_t_realised_stands_beside_t_asked_where_it_is_known(tmp_path: Path) -> None:
    board = benchmark(methods=["ce"], seeds=[0])
    write_board(board, tmp_path)
    for folder in (tmp_path / "noise").iterdir():
        (folder / "transition.json").write_text(json.dumps({"asked": [[1, 0]], "realised": [[0.875, None]]}))
    text = report(board, tmp_path).read_text(encoding="utf-8")
    assert text.count("T realised, seed 0") == 4
    assert ">.875<" in text
    assert ">–<" in text


# ------------------------------------------------------------------------------------------------------- statistics


def test_ranks_are_told_apart_over_enough_columns(tmp_path: Path) -> None:
    board = benchmark(noise=[{"kind": "symmetric", "rate": rate / 20} for rate in range(1, 13)], seeds=[0])
    write_board(board, tmp_path)
    table = table_of(board, [json.loads(f.read_text()) for f in (tmp_path / "runs").glob("*/result.json")])
    found = separation(table)
    assert isinstance(found, Separation)
    # q of 3 groups is 2.343 (Demšar 2006, Table 5a).
    assert found.critical == pytest.approx(2.343 * (3 * 4 / (6 * 12)) ** 0.5, abs=1e-3)
    assert found.friedman_p < 0.05
    assert 1 <= found.pairs <= 3
    assert "Friedman" in found.notes[0]
    assert "Nemenyi" in found.notes[0]


@pytest.mark.usefixtures("undrawn")
def test_a_test_that_can_tell_nothing_apart_says_so(tmp_path: Path) -> None:
    noise = [{"kind": "symmetric", "rate": 0.2}, {"kind": "pairflip", "rate": 0.3}]
    text = written(tmp_path, noise=noise, methods=["ce", "gce", "elr", "mixup", "forward"])
    assert "this test cannot tell any two of 5 methods apart" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["ce"]}, "here is 1."),
        ({"methods": ["ce", "gce"]}, "here are 2."),
        ({"noise": [{"kind": "symmetric", "rate": 0.2}]}, "there is one column"),
    ],
)
def test_without_enough_to_compare_it_says_why_there_is_no_diagram(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    text = written(tmp_path, **changes)
    assert "No critical-difference diagram" in text
    assert said in text


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("undrawn")
def test_of_one_seed_there_is_no_sd(tmp_path: Path) -> None:
    text = written(tmp_path, seeds=[0], noise=[{"kind": "symmetric", "rate": 0.2}])
    assert "1 (0): no sd, no test" in text
    assert "no sd from one seed" in text
    assert "±" not in _cells(text)


def _cells(text: str) -> str:
    return " ".join(re.findall(r"<td.*?</td>", text, re.DOTALL))


@pytest.mark.usefixtures("undrawn")
def test_older_runs_lack_calibration_and_memory(tmp_path: Path) -> None:
    def older(cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in result.items() if k not in ("calibration", "peak_memory_mb", "hardware", "versions")}

    text = written(tmp_path, older)
    assert "No run of this board has written its calibration" in text
    assert "None was recorded" in text
    assert "not recorded" in text


def test_a_board_that_has_not_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cell of this board has run in .*run it first: noisebench\.leaderboard"):
        report(benchmark(), tmp_path)
    ran = noisebench("report", "digits", "--out", tmp_path)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("error: digits: no cell")
    assert "noisebench leaderboard digits --out" in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_a_board_of_failures_is_reported(tmp_path: Path) -> None:
    text = written(tmp_path, lambda cell, result: failed(cell, "no memory"))
    assert "0 of 24 finished, 24 failed" in text
    assert "no memory" in text


@pytest.mark.usefixtures("undrawn")
def test_files_that_are_torn_cost_their_numbers_only(tmp_path: Path) -> None:
    board = benchmark()
    write_board(board, tmp_path)
    for i, folder in enumerate(sorted((tmp_path / "runs").iterdir())):
        if i % 3 == 0:
            (folder / "config.json").write_text("{")
        (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:-20] + b"\xff")
    for folder in (tmp_path / "noise").iterdir():
        (folder / "noise.npz").write_bytes(b"PK")
        (folder / "transition.png").write_bytes(b"no picture")
    assert "24 of 24 finished" in report(board, tmp_path).read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_an_epoch_that_is_lost_moves_no_other(tmp_path: Path) -> None:
    board = benchmark(methods=["ce"], seeds=[0], noise=[{"kind": "none"}])
    write_board(board, tmp_path)
    (file,) = (tmp_path / "runs").glob("*/metrics.jsonl")
    first, second, *others = file.read_text().splitlines(keepends=True)
    file.write_text(f"{first}{second[:20]}\n{''.join(others)}")
    (run,) = read_runs(board, tmp_path)
    assert run.epochs == [json.loads(first)["metrics"], {}, *(json.loads(line)["metrics"] for line in others)]
    text = report(board, tmp_path).read_text(encoding="utf-8")
    shown = re.search(r"test accuracy \(%\), by epoch.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert shown
    assert [cell == "–" for cell in re.findall(r"<td>(.*?)</td>", shown[1])] == [False, True, False, False]


@pytest.mark.usefixtures("undrawn")
def test_the_recipe_of_a_row_is_told_and_a_board_from_python_can_be_made_again(tmp_path: Path) -> None:
    methods = [{"name": "ce"}, {"name": "gce", "recipe": {"epochs": 9}}]
    text = written(tmp_path, methods=methods, seeds=[0])
    assert "<dt>Epochs</dt><dd>4, 9</dd>" in text
    made_again = re.search(r"noisebench leaderboard (\S+) --out \S+</code>", text)
    assert made_again
    board = benchmark(methods=methods, seeds=[0])
    assert load_benchmark(made_again[1]).cells() == board.cells()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///broken.db"])
def test_a_store_that_is_away_costs_no_report(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.db").write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    board = benchmark()
    write_board(board, tmp_path)
    done = write_report(board, tmp_path)
    assert done.path.is_file()
    assert not done.logged
    assert "MLflow" in done.tracked
    assert "\n" not in done.tracked


@pytest.mark.usefixtures("undrawn")
def test_real_noise_has_neither_rate_nor_t(tmp_path: Path) -> None:
    text = written(tmp_path, noise=[{"kind": "real"}], datasets=["clothing1m"])
    assert "Nobody knows the clean labels here" in text
    assert "No noise of this board has a rate." in text


@pytest.mark.usefixtures("undrawn")
def test_several_labels_an_image_are_judged_by_gap(tmp_path: Path) -> None:
    noise = [{"kind": "symmetric", "rate": 0.05, "include_true": False}]
    text = written(tmp_path, score="gap", noise=noise, datasets=["multi_digits"])
    assert "test gAP (%)" in text
    assert "gAP, epoch selected on noisy labels" in text


@pytest.mark.usefixtures("undrawn")
def test_figures_of_a_paper_stand_beside_ours(tmp_path: Path) -> None:
    table = {"dataset": "digits", "noise": ["pairflip 30%"], "figures": {"ce": {"best": [81.5]}}}
    published = {"source": "A. Author, A paper, 2020, Table 1", "tables": [table]}
    text = written(tmp_path, published=published)
    assert "Beside the paper: digits · pairflip 30%" in text
    assert ">81.5<" in text
    assert "A. Author" in text


@pytest.mark.usefixtures("undrawn")
def test_of_a_paper_nothing_need_have_run(tmp_path: Path) -> None:
    table = {"dataset": "digits", "noise": ["pairflip 30%"], "figures": {"ce": {"best": [81.5]}}}
    board = benchmark(published={"source": "A paper", "tables": [table]})
    folder = tmp_path / "boards" / "small"
    folder.mkdir(parents=True)
    why = [{"dataset": "digits", "noise": "pairflip 30%", "reason": "no data in DIR"}]
    (folder / "leaderboard.json").write_text(json.dumps({"unavailable": why}))
    text = report(board, tmp_path).read_text(encoding="utf-8")
    assert "0 of 24 finished, 24 not run" in text
    assert "not run: no data in DIR" in text
    assert ">81.5<" in text


@pytest.mark.usefixtures("undrawn")
def test_one_rate_makes_no_curve(tmp_path: Path) -> None:
    text = written(tmp_path, noise=[{"kind": "symmetric", "rate": 0.4}, {"kind": "pairflip", "rate": 0.3}])
    assert "A curve takes two rates" in text
    assert "digits, pairflip: 30% alone" in text


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_it_and_says_where(tmp_path: Path) -> None:
    board: Benchmark = benchmark(methods=["ce", "gce"], seeds=[0, 1])
    file = tmp_path / "a board.yaml"
    file.write_text(yaml.safe_dump(board.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    write_board(board, tmp_path)
    ran = noisebench("report", file, "--seeds", "1", "--methods", "ce", "--out", tmp_path, "--json")
    told = json.loads(ran.out)
    assert ran.code == 0
    assert told["cells"] == told["finished"] == 4
    assert not told["logged"]
    text = Path(told["path"]).read_text(encoding="utf-8")
    assert f"noisebench leaderboard &#39;{file}&#39; --methods ce --seeds 1 --out {tmp_path}" in text
    assert noisebench("report", file, "--out", tmp_path).out.splitlines()[0] == told["path"]
    assert noisebench("report", file, "--methods", "cee", "--out", tmp_path).err.startswith("error: --methods")


class Store:
    """As much of an MLflow client as a report asks for."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name == "noisebench/small" else None

    def search_runs(self, experiments: list[str], where: str, max_results: int) -> list[Any]:
        assert experiments == ["7"]
        assert where == "tags.`noisebench.kind` = 'board'"
        return [SimpleNamespace(info=SimpleNamespace(run_id="parent", experiment_id="7"))]

    def log_artifact(self, run: str, file: str) -> None:
        self.logged.append((run, Path(file).name))


@pytest.mark.usefixtures("undrawn")
def test_mlflow_has_a_copy_and_lends_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, board = Store(), benchmark(methods=["ce"], seeds=[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    monkeypatch.setattr(_report_tracking, "rules_of", lambda *_: 0)
    monkeypatch.setattr(_store, "open_client", lambda *_, **__: store)
    write_board(board, tmp_path)
    folder = tmp_path / board.cells()[0].folder()
    (folder / "sent-small.json").write_text(json.dumps({"run_id": "abc"}))
    done = write_report(board, tmp_path)
    text = done.path.read_text(encoding="utf-8")
    assert done.logged
    assert store.logged == [("parent", "report.html")]
    assert text.count('href="http://127.0.0.1:5000/#/experiments/7/runs/abc"') == 1
    assert "/runs/parent" in text
    assert "secret" not in text


# ------------------------------------------------------------------------------------------------------ in a browser


def test_a_browser_opens_it_alone_and_in_peace(rich_board: Path, browser: Any, tmp_path: Path) -> None:
    alone = tmp_path / "report.html"
    shutil.copy(rich_board, alone)
    with Page(browser, alone) as opened:
        assert opened.said == []
        assert opened.asked == [alone.as_uri()]
        assert opened.page.title() == f"Rich {EVIL}"
        opened.page.screenshot(path=tmp_path / "report.png", full_page=True)
        assert (tmp_path / "report.png").stat().st_size > 50_000
        assert opened.page.pdf(path=tmp_path / "report.pdf").startswith(b"%PDF")


def test_columns_sort_by_mouse_and_by_keyboard(rich_board: Path, browser: Any) -> None:
    with Page(browser, rich_board) as opened:
        heads = opened.page.locator("table.sort").first.locator("thead th")
        heads.nth(2).locator("button").click()
        assert heads.nth(2).get_attribute("aria-sort") == "descending"
        shown = opened.column(0, 2)
        fair = [float(text.split()[0]) for text in shown[:-1]]
        assert fair == sorted(fair, reverse=True)
        assert len(fair) == 4
        opened.page.keyboard.press("Enter")
        assert heads.nth(2).get_attribute("aria-sort") == "ascending"
        assert [float(text.split()[0]) for text in opened.column(0, 2)[:-1]] == fair[::-1]
        assert "Sorted by digits clean, ascending" in opened.page.locator("#said").text_content().replace(
            "no noise", "clean"
        )
        heads.nth(0).locator("button").click()
        assert opened.column(0, 0)[:-1] == sorted(opened.column(0, 0)[:-1], key=str.lower)
        heads.nth(4).locator("button").click()
        numbers = [float(text.split()[0]) for text in opened.column(0, 4)[:-1]]
        assert numbers == sorted(numbers, reverse=True)


def test_cells_open_to_their_seeds_and_legends_pick(rich_board: Path, browser: Any) -> None:
    with Page(browser, rich_board) as opened:
        cell = opened.page.locator("details.cell").first
        assert not cell.locator("a").first.is_visible()
        cell.locator("summary").click()
        assert cell.locator("a").first.is_visible()
        key = opened.page.locator("#curves .legend button").first
        key.click()
        assert key.get_attribute("aria-pressed") == "true"
        assert opened.page.locator("#curves .s1").first.evaluate("one => getComputedStyle(one).opacity") != "1"


def test_on_a_phone_nothing_scrolls_sideways(rich_board: Path, browser: Any) -> None:
    with Page(browser, rich_board, width=375) as opened:
        wide = "document.documentElement.scrollWidth"
        opened.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert opened.page.evaluate(wide) <= 375


def test_dark_mode_is_dark(rich_board: Path, browser: Any) -> None:
    colours = []
    for dark in (False, True):
        with Page(browser, rich_board, dark=dark) as opened:
            told = opened.page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, "
                "getComputedStyle(document.querySelector('#curves .fig text')).fill]"
            )
            colours.append([sum(map(int, re.findall(r"\d+", text)[:3])) for text in told])
    (paper, ink), (night, chalk) = colours
    assert paper > 700 > 200 > ink
    assert night < 100 < 600 < chalk


def test_on_paper_everything_is_open(rich_board: Path, browser: Any) -> None:
    with Page(browser, rich_board) as opened:
        closed = "document.querySelectorAll('details:not([open]):not(.cell)').length"
        assert opened.page.evaluate(closed) > 0
        opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert opened.page.evaluate(closed) == 0
        opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert opened.page.evaluate(closed) > 0


def test_a_name_in_a_figure_is_no_markup() -> None:
    from matplotlib.figure import Figure

    name = 'ce: id="s0" x="1.234567" #010203; <b> & -->'
    figure = Figure(figsize=(4, 1))
    figure.text(0, 0, name)
    assert f">{html.escape(name, quote=False)}</text>" in inline(figure, "a", "t", "about")


def test_ids_of_figures_are_their_own() -> None:
    from matplotlib.figure import Figure

    drawn = []
    for name in ("a", "b"):
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().plot([0, 1], [0, 1], gid="s0")
        drawn.append(inline(figure, name, "<t>", "about", ["<m>"]))
    first, second = ({*re.findall(r" id=\"([^\"]+)\"", text)} for text in drawn)
    assert first
    assert second
    assert not first & second
    assert "<title>&lt;m&gt;</title>" in drawn[0]
    assert "<t>" not in drawn[0]
