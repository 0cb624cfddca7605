"""What a notebook shows: runs, tables and noise as HTML, frames and figures, bars; and the tutorial, which is run."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from written_boards import Board

import noisebench
from noisebench import notebook
from noisebench.checks import sample_data
from noisebench.config import Benchmark, build
from noisebench.drawing import detail_grids, failures, main_grid, notes
from noisebench.fitting import Result
from noisebench.method import Classifier
from noisebench.noise import inject
from noisebench.progress import EpochProgress, Stopped, board_progress, console_for
from noisebench.table import Table

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = '<img src=x onerror="alert(1)"> & $x_1$'


class Page(HTMLParser):
    """HTML read back: its tags, its text, and each table as rows of cells; it must be well nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.bold = "", list[str]()
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert all(name in ("style", "class", "scope", "value", "max") for name, _ in attrs)
        if tag == "br":
            self._add(" ")
            return
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] = " ".join(self.tables[-1][-1][-1].split())
        self.text += " "

    def handle_data(self, data: str) -> None:
        self._add(data)
        if "td" in self._open and "b" in self._open:
            self.bold.append(" ".join(data.split()))

    def _add(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data


def png_of(figure: Any) -> bytes:
    """What Jupyter shows of a figure."""
    png, size = figure._repr_png_()
    assert png.startswith(PNG)
    assert 200 < size["width"] < 1500
    return bytes(png)


# --------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def result() -> Result:
    return noisebench.fit("transition_true", sample_data(), "symmetric", 0.4, recipe={"epochs": 2, "batch_size": 32})


def test_a_run_shows_its_three_numbers_and_the_noise(result: Result) -> None:
    page = Page(result._repr_html_())
    (table,) = page.tables
    assert table[0][:4] == ["epoch", "accuracy %", "NLL", "ECE"]
    assert [row[0].partition(":")[0] for row in table[1:]] == ["selected", "last", "best (oracle)"]
    last = result.metrics["last"]
    assert table[2][:2] == ["last: 2", f"{100 * last['accuracy']:.2f}"]
    assert f"40.00% asked, {result.noise.realised_rate:.2%} wrong" in page.text
    assert "‡: given more than noisy labels (transition)" in page.text
    assert "One seed: no sd." in page.text


def test_a_run_s_text_is_one_short_line(result: Result) -> None:
    text = repr(result)
    assert "transition_true · the dataset · symmetric 40% (excl. true) · seed 0" in text
    assert f"last {result.metrics['last']['accuracy']:.2%}" in text
    assert len(text) < 200
    assert "\n" not in text


def test_a_run_as_a_frame_has_a_row_an_epoch(result: Result) -> None:
    frame = result.to_pandas()
    assert frame["epoch"].tolist() == [1, 2]
    assert frame["test.accuracy"].tolist() == [line["metrics"]["test.accuracy"] for line in result.history]


def test_a_run_s_plot_has_its_curves_in_percent(result: Result) -> None:
    figure: Any = result.plot()
    (axes,) = figure.axes
    curves = {line.get_label(): line for line in axes.lines}
    assert set(curves) == {
        "test accuracy",
        "accuracy on held-out noisy labels",
        "wrong labels memorised",
        "selected epoch",
    }
    shares = [line["metrics"]["train.memorised"] for line in result.history]
    assert list(curves["wrong labels memorised"].get_ydata()) == pytest.approx([100 * share for share in shares])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "share of images (%)")
    png_of(figure)


def test_a_run_with_odd_numbers_and_names_shows_all_the_same(result: Result) -> None:
    """One epoch, clean labels (nothing to memorise), a metric that is not finite, HTML in the name."""
    metrics = {"test.accuracy": math.nan, "test.nll": math.inf}
    at = {"epoch": 1, "accuracy": math.nan, "nll": math.inf}
    odd = replace(result, metrics={"last": at, "best": at}, history=[{"epoch": 1, "metrics": metrics}], title=HOSTILE)
    page = Page(odd._repr_html_())
    assert page.tables[0][1] == ["last: 1", "not finite", "not finite"]
    assert HOSTILE in page.text
    assert "img" not in page.tags
    assert "nan" in repr(odd)
    png_of(odd.plot())
    assert len(odd.to_pandas()) == 1


def test_labels_show_the_rates_asked_expected_and_realised() -> None:
    noisy = inject([0, 1, 2, 3] * 100, "symmetric", 0.4, num_classes=4, seed=3, include_true=True)
    page = Page(noisy._repr_html_())
    heads, row = page.tables[0]
    shown = dict(zip(heads, row, strict=True))
    assert shown["noise"] == "symmetric 40% (incl. true)"
    assert (shown["asked %"], shown["expected %"]) == ("40.00", "30.00")
    assert shown["realised %"] == f"{100 * (noisy.realised_rate or 0):.2f}"
    assert (shown["labels"], shown["classes"], shown["seed"]) == ("400", "4", "3")
    unknown = replace(noisy, rate=None, expected_rate=None, realised_rate=None, description=HOSTILE)
    page = Page(unknown._repr_html_())
    assert page.tables[0][1][:4] == [HOSTILE, "–", "–", "–"]
    assert "Nobody knows the true labels" in page.text


# ------------------------------------------------------------------------------------------------- a table


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A board's results: two fair rows, one reference row, one that failed on a seed, and one with an evil name."""
    board = Board(tmp_path_factory.mktemp("board"))
    found = []
    for seed in range(3):
        for method, accuracy in {"elr": 0.9, "ce": 0.5, "forward_true": 0.95, "evil": 0.88, "mixup": 0.7}.items():
            cell = board.cell(seed, method)
            if (method, seed) == ("mixup", 2):
                found.append(cell.fail("the loss became nan"))
                continue
            label = {"label": HOSTILE} if method == "evil" else {}
            found.append(cell.finish(privileged=["transition"] if method == "forward_true" else [], **label))
            found[-1]["metrics"]["selected"]["accuracy"] = accuracy + seed / 100
    return found


def test_a_table_shows_what_the_terminal_shows(results: list[dict[str, Any]]) -> None:
    table = Table.from_results(results, title=f"Board {HOSTILE}")
    page = Page(table._repr_html_())
    grids = [main_grid(table), *detail_grids(table, "short")]
    assert len(page.tables) == len(grids)
    for shown, grid in zip(page.tables, grids, strict=True):
        assert shown[0] == ["method", *(" ".join(head) for head in grid.heads)]
        assert shown[1:] == [[name, *map(str, row)] for name, row in grid.rows]
    for line in [*notes(table, "short"), *failures(table), table.title]:
        assert line in page.text
    assert "img" not in page.tags
    assert "91.00 ± 1.00" in page.bold
    rows = {row[0]: row for row in page.tables[0]}
    assert rows["ce (q = 0.7)"][2].endswith("†")
    assert "forward_true (q = 0.7) ‡" in rows
    assert rows["mixup (q = 0.7)"][2].endswith("(2/3)")


def test_a_table_s_text_is_one_short_line(results: list[dict[str, Any]]) -> None:
    assert repr(Table.from_results(results, title="x")) == "<Table 'x': 5 methods, 1 columns, 1 failed cells>"


def test_a_plot_has_a_dot_with_its_sd_for_each_method(results: list[dict[str, Any]]) -> None:
    table = Table.from_results(results, title=HOSTILE)
    figure: Any = table.plot()
    (axes,) = figure.axes
    dots = {(round(c[0].get_xdata()[0], 6), c[0].get_ydata()[0]) for c in axes.containers}
    kind, (column,) = table.ranking, table.columns
    means = [table.cells[method, column, kind].mean or 0 for method in table.methods]
    places = [0, 1, 2, 3, 5]  # the reference row stands below a line
    assert dots == {(round(100 * mean, 6), place) for mean, place in zip(means, places, strict=True)}
    assert axes.get_xlabel() == "test accuracy (%)"
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "forward_true (q = 0.7) ‡"
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"best", "†: differs from the best", "‡: given more than noisy labels"} <= legend
    png_of(figure)


def finished(label: str, seed: int, accuracy: float | None) -> dict[str, Any]:
    at = {"epoch": 1, "accuracy": accuracy}
    return {"status": "finished", "metrics": {"last": at, "best": at}, "seconds": 1.0, "rules": 1} | named(label, seed)


def named(label: str, seed: int) -> dict[str, Any]:
    return {"label": label, "dataset": "digits", "noise": "none", "seed": seed}


ODD: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "one seed": [finished("a", 0, 0.5), finished("b", 0, 0.6)],
    "one method": [finished("a", seed, 0.5) for seed in range(2)],
    "not finite": [finished("a", 0, math.nan), finished("b", 0, 0.5)],
    "all failed": [named("a", 0) | {"status": "failed", "reason": HOSTILE}],
    "not run": [named("a", 0) | {"status": "missing"}],
    "only reference rows": [finished("a", 0, 0.5) | {"privileged": ["transition"]}],
    "no data": [named("a", 0) | {"status": "missing", "reason": HOSTILE}],
}


@pytest.mark.parametrize("name", ODD)
def test_every_table_shows_without_an_error(name: str) -> None:
    table = Table.from_results(ODD[name], title=name)
    page = Page(table._repr_html_())
    assert name in page.text
    assert "img" not in page.tags
    figure: Any = table.plot()
    figure.draw_without_rendering()
    assert list(table.to_pandas().columns) == list(Table.from_results(ODD["one seed"]).records()[0])
    if name == "one seed":
        assert "no sd from one seed" in page.text
        assert "one seed, so no sd" in figure.legends[0].get_title().get_text()
    if name == "nothing":
        assert table.to_pandas().empty


# ---------------------------------------------------------------------------------------------------- bars

SMALL: Benchmark = build(
    Benchmark,
    {
        "name": "small",
        "datasets": ["digits"],
        "noise": [{"kind": "none"}],
        "methods": [{"name": "ce", "label": "ce <b>"}],
        "seeds": [0],
        "recipe": {"epochs": 10},
    },
    "small.yaml",
)
METRICS = {"test.accuracy": 0.5, "train.memorised": 0.25}


@pytest.fixture
def in_jupyter(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """As in a notebook's kernel; what is displayed, each time, and how."""
    display = pytest.importorskip("IPython.display")
    shown: list[tuple[dict[str, str], dict[str, Any]]] = []
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda content, **how: shown.append((content, how)))
    return shown


def test_a_bar_in_a_notebook_is_drawn_in_its_place(in_jupyter: list[tuple[dict[str, str], dict[str, Any]]]) -> None:
    with EpochProgress(console_for(None), "ce · [odd] <b>", 3) as watcher:
        for epoch in (1, 2, 3):
            watcher.epoch(epoch, METRICS)
    (first, how), (last, how_last) = in_jupyter[0], in_jupyter[-1]
    assert (how["update"], how_last["update"]) == (False, True)
    assert how["display_id"] == how_last["display_id"]
    assert "test accuracy 50.00%, memorised 25.00%" in Page(first["text/html"]).text
    page = Page(last["text/html"])
    assert "ce · [odd] <b>" in page.text
    assert "3/3 epochs" in page.text
    assert "to go" not in page.text
    assert re.fullmatch(r"ce · \[odd\] <b>: 3/3 epochs · \d+:\d\d", last["text/plain"])


def test_a_board_has_a_bar_in_a_notebook(
    in_jupyter: list[tuple[dict[str, str], dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = SMALL.cells()
    with board_progress(None, SMALL) as bar:
        assert bar is not None
        bar.start([cell], 0, tmp_path)
        bar.done(cell, {"status": "failed", "reason": "[/b] no"})
    assert "1/1 cells, 1 failed" in Page(in_jupyter[-1][0]["text/html"]).text
    assert capsys.readouterr().out.splitlines() == [
        f"small: 1 cells; {tmp_path}",
        "failed ce <b> · digits · clean · seed 0: [/b] no",
    ]


def test_a_terminal_has_a_bar_and_a_pipe_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    for stream, asked, shown in [
        (terminal, None, True),
        (terminal, False, False),
        (io.StringIO(), None, False),
        (io.StringIO(), True, True),
    ]:
        monkeypatch.setattr("sys.stderr", stream)
        assert (console_for(asked) is not None) is shown


def test_a_bar_in_a_terminal_has_the_latest_numbers() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with EpochProgress(console, "ce", 2) as watcher:
        watcher.epoch(1, METRICS)
        watcher._bar.refresh()  # type: ignore[union-attr]
    assert "1/2 epochs" in screen.getvalue()
    assert "test accuracy 50.00%, memorised 25.00%" in screen.getvalue()


class Interrupted(Classifier):
    """Somebody presses Ctrl-C in its second epoch."""

    name = "interrupted"

    def loss(self, batch: Any, run: Any) -> Any:
        if run.epoch == 1:
            raise KeyboardInterrupt
        return self(batch.x).square().mean()


def test_a_line_an_epoch_in_a_pipe_and_ctrl_c_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    quick = {"epochs": 3, "batch_size": 32}
    with pytest.raises(Stopped, match=r"^Stopped after 1 of 3 epochs\. .*leaderboard goes on") as caught:
        noisebench.fit(Interrupted, sample_data(), recipe=quick, progress=True)
    assert caught.value._render_traceback_() == [str(caught.value)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[1/3 epochs] interrupted · the dataset · ")
    with pytest.raises(Stopped):
        noisebench.fit(Interrupted, sample_data(), recipe=quick)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("progress", "says"), [(True, "Stopped with 0/1 cells. "), (False, "Stopped. ")])
def test_a_stopped_board_says_how_to_go_on(tmp_path: Path, progress: bool, says: str) -> None:
    def drive() -> None:
        with board_progress(progress, SMALL) as bar:
            if bar is not None:
                bar.start(SMALL.cells(), 0, tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(Stopped) as caught:
        drive()
    assert str(caught.value) == f"{says}The same call goes on from there."
    assert isinstance(caught.value, KeyboardInterrupt)


# -------------------------------------------------------------------------------------------- the tutorial

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


def outputs(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The outputs of each cell of code."""
    return [cell["outputs"] for cell in document["cells"] if cell["cell_type"] == "code"]


def kinds(given: list[dict[str, Any]]) -> set[str]:
    """What kinds of output a cell has."""
    return {kind for output in given for kind in output.get("data", [output["output_type"]])}


def test_the_tutorial_has_its_outputs_and_nothing_of_the_machine_that_ran_it() -> None:
    text = TUTORIAL.read_text("utf-8")
    assert not re.search(
        r"/(home|root|Users|work|usr)/|/tmp/tmp|site-packages|\d+:\d\d\b(?!\w)|\d s\b", _without_pictures(text)
    )
    document = json.loads(text)
    assert all(outputs(document))
    assert not any(output["output_type"] == "error" for given in outputs(document) for output in given)
    for output in (output for given in outputs(document) for output in given):
        html = output.get("data", {}).get("text/html", "")
        if 'class="noisebench"' in "".join(html):
            Page("".join(html))
    assert len(text) < 600_000


def _without_pictures(text: str) -> str:
    return re.sub(r'"image/png": "[^"]*"', "", text)


@pytest.fixture(scope="module")
def run_tutorial() -> Callable[[Path], Any]:
    """`executed` of scripts/run_tutorial.py."""
    for engine in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(engine)
    spec = importlib.util.spec_from_file_location("run_tutorial", ROOT / "scripts" / "run_tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    run: Callable[[Path], Any] = script.executed
    return run


def test_the_tutorial_runs_as_it_stands(run_tutorial: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.delenv("NOISEBENCH_DATA", raising=False)
    now, then = outputs(run_tutorial(TUTORIAL)), outputs(json.loads(TUTORIAL.read_text("utf-8")))
    assert [kinds(given) for given in now] == [kinds(given) for given in then]
    for fresh, stored in zip(now[:2], then[:2], strict=True):  # the noise, which is the same on every machine
        for one, other in zip(fresh, stored, strict=True):
            held = [one.get("text", one.get("data", {}).get("text/html")), "".join(_text_of(other))]
            assert held[0] == held[1]


def _text_of(output: dict[str, Any]) -> Any:
    return output.get("text") or output["data"]["text/html"]
