"""What a person sees while a board runs: what runs, how many are left, how long it will take."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from noisebench import progress
from noisebench.config import Benchmark, build
from noisebench.progress import BoardProgress, TrialProgress, clock
from noisebench.search import Range
from noisebench.studies import Trial
from noisebench.tuning_plan import Row

BOARD: Benchmark = build(
    Benchmark,
    {
        "name": "small",
        "datasets": ["digits"],
        "noise": [{"kind": "symmetric", "rate": 0.4}],
        "methods": ["ce", {"name": "gce", "label": "gce [odd]"}],
        "seeds": [0, 1],
        "recipe": {"epochs": 10},
    },
    "small.yaml",
)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_the_bar_tells_what_runs_how_many_are_left_and_the_time_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown, cells = console(terminal=True), BOARD.cells()
    with BoardProgress(shown, BOARD) as bar:
        bar.start(cells[1:], 1, tmp_path)
        folder = tmp_path / cells[1].folder()
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("{}\n" * 5)
        now[0] += 10  # 5 epochs in 10 s: 25 more take 50 s
        bar.tick()
        task = bar._bar.tasks[0]
        assert task.fields["count"] == "1/4 cells"
        assert task.fields["to_go"] == "0:50 to go"
        assert task.fields["running"] == r"gce \[odd] s0 5/10"
        assert (task.completed, task.total) == (15, 40)
        bar.done(cells[1], {"status": "finished", "metrics": {"last": {"accuracy": 0.5}}, "seconds": 1.0})
        bar.done(cells[2], {"status": "failed", "reason": "the loss became nan [/b]"})
        assert bar.summary() == "3/4 cells, 1 failed"
    assert "failed ce · digits · symmetric 40% (excl. true) · seed 1: the loss became nan [/b]" in text_of(shown)


def test_where_nobody_watches_every_cell_is_a_line(tmp_path: Path) -> None:
    shown, cells = console(terminal=False), BOARD.cells()
    with BoardProgress(shown, BOARD) as bar:
        bar.start(cells, 0, tmp_path)
        bar.done(cells[1], {"status": "finished", "metrics": {"last": {"accuracy": 0.9312}}, "seconds": 2.04})
    first, second = text_of(shown).splitlines()
    assert first == f"small: 4 cells; {tmp_path}"
    assert second.startswith("[1/4 cells] gce [odd] · digits · ")
    assert second.endswith("symmetric 40% (excl. true) · seed 0: last 93.12%, 2.0 s")


def test_the_line_of_a_cell_with_several_labels_an_image_is_of_gap(tmp_path: Path) -> None:
    shown, cells = console(terminal=False), BOARD.cells()
    with BoardProgress(shown, BOARD) as bar:
        bar.start(cells, 0, tmp_path)
        bar.done(cells[0], {"status": "finished", "metrics": {"last": {"epoch": 9, "gap": 0.875}}, "seconds": 2.04})
    assert text_of(shown).splitlines()[1].endswith("seed 0: last gAP 87.50%, 2.0 s")


def test_a_finished_board_says_nothing(tmp_path: Path) -> None:
    shown = console(terminal=False)
    with BoardProgress(shown, BOARD) as bar:
        bar.start([], 4, tmp_path)
    assert text_of(shown) == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_tuned_board_shows_its_trials(tmp_path: Path, terminal: bool) -> None:
    shown, cells = console(terminal), BOARD.cells()[1::2]
    ce, gce = BOARD.methods
    rows = [Row(ce, {}, {}, 1, ce.label), Row(gce, {"q": Range(0.1, 1.0)}, {}, 3, gce.label)]
    with TrialProgress(shown, BOARD) as bar:
        bar.start(rows, 1, tmp_path)
        bar.opened("gce [odd]", Trial(1, {"q": 0.123456}), cells)
        folder = tmp_path / cells[1].folder()
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("{}\n" * 5)
        bar.tick()
        if terminal:
            task = bar._bar.tasks[0]
            assert (task.fields["running"], task.fields["count"]) == (r"gce \[odd] 5/10", "1/4 trials")
            assert (task.completed, task.total) == (1, 4)
        bar.done("gce [odd]", Trial(1, {"q": 0.123456}, 0.5), 0.75)
        bar.done("gce [odd]", Trial(2, {"q": 1}, reason="the loss became nan [/b]"), 0.75)
        assert bar.summary() == "3/4 trials, 1 failed"
    text = text_of(shown)
    assert f"small: 4 trials of 2 methods, 1 finished before; {tmp_path}\n" in text
    assert "  ce: nothing to search; run once\n" in text
    assert "  gce [odd]: q in 0.1:1.0\n" in text
    assert "failed gce [odd] #2 (q=1): the loss became nan [/b]\n" in text
    assert ("[2/4 trials] gce [odd] #1 (q=0.1235): 50.00%, best 75.00%\n" in text) is not terminal


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
