"""Tuning: equal budgets, nothing but noisy validation scores, and the same trials through any interruption."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from noisebench import local_executor, registry
from noisebench.config import Benchmark, Cell, build, load_benchmark
from noisebench.errors import UserError
from noisebench.executors import Place, run_cells
from noisebench.files import write_json
from noisebench.search import Choice, Range, assign, parse_search

# No import of torch or Optuna up here: the workers of the test with made-up work import this file.

pytestmark = pytest.mark.usefixtures("one_picture")

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.2}, {"kind": "symmetric", "rate": 0.4}],
    "seeds": [0],
    "methods": ["ce", "gce", {"name": "elr", "hparams": {"weight": 2.0}}],
    "recipe": {"epochs": 2, "batch_size": 32, "train_size": 120, "validation": 0.3},
}
SEARCH = ["gce.q=0.1:1.0", "weight=0.5:8:log", "momentum=[0.5, 0.7, 0.9]"]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Fewer random trials before those that follow from others, and no waiting for disks."""
    from noisebench import studies

    class Connection(sqlite3.Connection):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.execute("PRAGMA synchronous = OFF")

    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(sqlite3, "connect", lambda *given, **options: real(*given, factory=Connection, **options))
        patch.setattr(studies, "STARTUP", 4)
        yield


def small(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, SMALL | changes, "small.yaml")
    return made


def tune(benchmark: Benchmark, out: Path, run: Callable[..., Any], trials: int = 7, **given: Any) -> Any:
    from noisebench import tuning

    search = given.pop("search", SEARCH)
    return tuning.tune(benchmark, Place(out, accelerator="cpu"), trials, search=search, jobs=1, run=run, **given)


class MadeUp:
    """Runs no cell: writes what a run would have, with scores that its settings decide; counts, and may be stopped.

    Args:
        last_first: results come in the opposite order, as with many jobs.
        stop_after: as a kill does, after so many cells.
        fails: which cells fail.
    """

    def __init__(
        self, last_first: bool = False, stop_after: int = -1, fails: Callable[[Cell], bool] = lambda cell: False
    ) -> None:
        self.last_first, self.left, self.fails = last_first, stop_after, fails
        self.ran: list[Cell] = []

    def __call__(
        self, cells: list[Cell], place: Place, jobs: int, idle: Callable[[], None], more: Callable[[], list[Cell]]
    ) -> Iterator[tuple[Cell, dict[str, Any]]]:
        queue = list(cells)
        while queue:
            if self.left == len(self.ran):
                raise KeyboardInterrupt
            cell = queue.pop(-1 if self.last_first else 0)
            self.ran.append(cell)
            yield cell, self.result(cell, place.out / cell.folder())
            queue += more()

    def result(self, cell: Cell, folder: Path) -> dict[str, Any]:
        if self.fails(cell):
            return cell.identity() | {"status": "failed", "reason": "the loss became nan"}
        folder.mkdir(parents=True)
        settings = cell.method.resolved
        score = 0.5 - (settings.get("q", 0.3) - 0.4) ** 2 - 0.01 * abs(settings.get("weight", 3.0) - 3)
        score -= 0.1 * abs(settings.get("momentum", 0.5) - 0.5) + (cell.noise.rate or 0) / 10
        lines = [{"val.accuracy": score - 0.01}, {"val.accuracy": score}, {"val.accuracy": score - 0.02}]
        text = [json.dumps({"epoch": i, "metrics": line | {"test.accuracy": 1.0}}) for i, line in enumerate(lines, 1)]
        (folder / "metrics.jsonl").write_text("\n".join(text) + "\n")
        result = cell.identity() | {"status": "finished", "privileged": [], "metrics": {}, "seconds": 1.0}
        write_json(folder / "result.json", result)
        return result


def trials_of(found: Any) -> dict[str, list[tuple[Any, ...]]]:
    return {
        row.row.spec.label: [(t.number, dict(t.settings), t.score, t.reason) for t in row.trials] for row in found.rows
    }


def names(found: Any) -> dict[str, Any]:
    return {row.row.spec.label: row for row in found.rows}


# ------------------------------------------------------------------------------------------------- what is tried


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("0.1:1.0", Range(0.1, 1.0)),
        ("1:8", Range(1, 8)),
        ("1e-3:1:log", Range(1e-3, 1, log=True)),
        (" [a, 2, null, true] ", Choice("a", 2, None, True)),
    ],
)
def test_what_may_be_tried_is_a_range_or_a_choice(text: str, means: Range | Choice) -> None:
    assert parse_search(text, "x") == means
    assert parse_search(str(means), "x") == means


def test_whole_bounds_mean_whole_numbers() -> None:
    assert (Range(1, 8).whole, Range(1, 8.0).whole) == (True, False)
    assert 3 in Range(1, 8)
    assert 3.5 not in Range(1, 8)
    assert 3 in Range(1, 8.0)
    assert True not in Range(0, 8)
    assert 1.0 not in Choice(1, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5", "expected KEY=LOW:HIGH"),
        ("1:2:lin", "expected KEY=LOW:HIGH"),
        ("1:2:log:3", "expected KEY=LOW:HIGH"),
        ("2:1", "the low end must be below the high end"),
        ("1:1", "the low end must be below the high end"),
        ("0:1:log", "must begin above 0"),
        ("a:b", "'a' is no finite number"),
        ("0:.inf", "inf is no finite number"),
        ("false:true", "False is no finite number"),
        ("[]", "at least one value"),
        ("[1, 1]", "1 is listed twice"),
        ("[1, [2]]", "[2] cannot be chosen"),
        ("[1, 2", "not valid YAML"),
    ],
)
def test_anything_else_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        parse_search(text, "--search q")
    assert str(caught.value).startswith("--search q")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=20))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        assign([text, f"gce.q={text}"], {"gce": "gce"}, {"gce": ["q"]})
    except UserError as error:
        assert "expected" in str(error) or "q" in str(error)


def test_a_setting_is_meant_for_all_methods_that_have_it_or_for_one() -> None:
    rows = {"gce": "gce", "gce (q=0.5).x": "gce", "elr": "elr"}
    known = {"gce": ["q"], "gce (q=0.5).x": ["q"], "elr": ["weight"]}
    assert assign(["q=0:1"], rows, known) == {"gce": {"q": Range(0, 1)}, "gce (q=0.5).x": {"q": Range(0, 1)}, "elr": {}}
    assert assign(["gce (q=0.5).x.q=0:1"], rows, known)["gce"] == {}
    assert assign(["elr.weight=0:1", "elr.weight=0:2"], rows, known)["elr"] == {"weight": Range(0, 2)}
    specific = assign(["gce (q=0.5).x.q=0:3", "q=0:1"], rows, known)
    assert (specific["gce (q=0.5).x"], specific["gce"]) == ({"q": Range(0, 3)}, {"q": Range(0, 1)})
    for setting, says in [("qq=0:1", "did you mean q"), ("elr.q=0:1", "setting 'q' is unknown"), ("=0:1", "expected")]:
        with pytest.raises(UserError, match=says):
            assign([setting], rows, known)
    with pytest.raises(UserError, match="ce has no settings"):
        assign(["ce.q=0:1"], {"ce": "ce"}, {"ce": []})


def test_every_method_s_own_search_space_fits_it() -> None:
    from noisebench.tuning_plan import plan

    rows = plan(small(methods=sorted(registry.methods().entries)), search=["gce.q=0.1:1.0"])
    assert len(rows) == len(registry.methods().entries)
    assert all(row.budget == (20 if row.space else 1) for row in rows)


PLUGIN = '''
from dataclasses import dataclass

from noisebench.method import Choice, Classifier, Range


class Tempered(Classifier):
    """Cross-entropy at a temperature."""

    name = "tempered"
    search = {"temperature": Range(0.5, 5.0, log=True), "rank": Choice(1, 2)}

    @dataclass(frozen=True)
    class Hparams:
        temperature: float = 1.0
        rank: int = 1
'''


@pytest.fixture
def tempered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A method that says itself what to search."""
    file = tmp_path / "tempered_method.py"
    file.write_text(PLUGIN)
    spec = importlib.util.spec_from_file_location("tempered_method", file)
    assert spec is not None
    monkeypatch.syspath_prepend(tmp_path)
    known = registry.methods()
    entry = next(registry._methods_of(file, "tempered_method"))
    monkeypatch.setattr(
        registry, "methods", lambda: registry.Registry("method", known.entries | {"tempered": entry}, known.problems)
    )
    yield file
    registry._code_of.cache_clear()


def test_a_method_s_own_space_is_searched_and_given_ones_replace_its_parts(tempered: Path) -> None:
    from noisebench.tuning_plan import plan

    own, ensemble = plan(
        small(methods=["tempered", {"name": "ensemble", "hparams": {"member": "tempered"}}]),
        search=["rank=[1, 2, 4]", "ensemble.settings.rank=[2]"],
    )
    assert own.space == {"temperature": Range(0.5, 5.0, log=True), "rank": Choice(1, 2, 4)}
    assert own.own == {"temperature": 1.0, "rank": 1}
    assert ensemble.space == {"settings.temperature": Range(0.5, 5.0, log=True), "settings.rank": Choice(2)}
    assert ensemble.under({"settings.temperature": 2.0}).hparams == {
        "member": "tempered",
        "settings": {"temperature": 2.0},
    }


def test_whole_bounds_for_a_setting_that_is_no_whole_number_mean_any_number() -> None:
    from noisebench.tuning_plan import plan

    elr, ensemble = plan(small(methods=["elr", "ensemble"]), search=["weight=1:8", "size=2:4", "elr.momentum=[0.5]"])
    assert elr.space["weight"] == Range(1.0, 8.0)
    assert not elr.space["weight"].whole
    assert ensemble.space["size"].whole


def test_a_short_label_that_another_row_has_is_not_taken() -> None:
    from noisebench.tuning_plan import plan

    rows = [{"name": "ce", "label": "elr"}, {"name": "elr", "hparams": {"weight": 2.0}}]
    assert plan(small(methods=rows), search=["weight=1:8"])[1].under({"weight": 4.0}).label == "elr (weight=2.0)"
    alone = plan(small(methods=rows[1:]), search=["weight=1:8"])[0]
    assert alone.under({"weight": 4.0}).label == "elr"


def test_nested_settings_are_compared_without_what_is_searched_of_them() -> None:
    from noisebench.tuning_plan import _without

    assert _without({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b", "d", "e.f"]) == {"a": {"c": 2}}


def test_multi_digits_names_the_rows_to_tune_and_these_can_be_tuned() -> None:
    from noisebench._cli import rows_named
    from noisebench.tuning_plan import plan

    board = load_benchmark("multi-digits")
    with pytest.raises(UserError, match=r"leave one of them out, e\.g\. with --methods '") as caught:
        plan(board)
    chosen = rows_named(board, str(caught.value).split("--methods '")[1].rstrip("'"))
    assert len(chosen) == len(board.methods) - 1
    assert len(plan(board.model_copy(update={"methods": chosen}))) == len(chosen)


def test_changed_code_of_a_member_that_may_be_chosen_begins_another_study(tempered: Path) -> None:
    from noisebench.tuning_plan import plan, study_name

    board = small(methods=["ensemble"])
    (row,) = plan(board, search=["member=[ce, tempered]"])
    before = study_name(board, row, 1000)
    tempered.write_text(PLUGIN.replace("rank: int = 1", "rank: int = 7"))
    registry._code_of.cache_clear()
    assert study_name(small(methods=["ensemble"]), row, 1000) != before


def test_what_a_method_would_search_is_no_part_of_its_fingerprint(tempered: Path) -> None:
    before = small(methods=["tempered"]).cells()[0].fingerprint()
    for change, same in (("5.0, log=True", True), ("rank: int = 1", False)):
        tempered.write_text(PLUGIN.replace(change, "9.0" if same else "rank: int = 7"))
        registry._code_of.cache_clear()
        assert (small(methods=["tempered"]).cells()[0].fingerprint() == before) is same


@pytest.mark.parametrize(
    ("board", "given", "says"),
    [
        ({"methods": ["ce", "forward"]}, {"search": []}, "nothing to tune: ce, forward search nothing by themselves"),
        ({}, {"seed": 2**31}, "--seed 2147483648: should be from 0 to 2147483647"),
        ({}, {"seed": 0}, "--seed 0 is one of the board's seeds"),
        ({"recipe": {"validation": 0}}, {}, "recipe.validation is 0: tuning needs a noisy validation split"),
        (
            {},
            {"search": ["gce.q=0.5:3"]},
            "search of 'gce', q in 0.5:3.0: hparams.q: 3.0: should be less than or equal to",
        ),
        ({}, {"search": ["gce.q=[much]"]}, "search of 'gce', q in [\"much\"]: hparams.q"),
        ({}, {"search": ["gce.q.x=0:1"]}, "search of 'gce', q.x in 0:1: hparams.q"),
        ({"methods": ["gce", {"name": "gce", "hparams": {"q": 0.5}}]}, {"search": ["q=0.1:1"]}, "with --methods gce"),
        ({"methods": ["ensemble"]}, {"search": ["member=[ce, cee]"]}, "did you mean ce"),
    ],
)
def test_what_cannot_be_tuned_is_one_line_and_nothing_is_written(
    board: dict[str, Any], given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        tune(small(**board), tmp_path, MadeUp(), **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- budgets and scores


def test_every_method_gets_the_same_budget_and_begins_with_its_own_settings(tmp_path: Path) -> None:
    run = MadeUp()
    found = tune(small(), tmp_path, run)
    rows = names(found)
    assert {label: len(row.trials) for label, row in rows.items()} == {"ce": 1, "gce": 7, "elr (weight=2.0)": 7}
    own = small().model_copy(update={"seeds": (1000,)}).cells()
    assert {cell.fingerprint() for cell in own} <= {cell.fingerprint() for cell in run.ran}
    assert {cell.seed for cell in run.ran} == {1000}
    assert all(dict(row.trials[0].settings) == {} for row in rows.values())
    assert all(0.1 <= t.settings["q"] <= 1.0 for t in rows["gce"].trials[1:])
    assert all(0.5 <= t.settings["weight"] <= 8 for t in rows["elr (weight=2.0)"].trials[1:])
    assert {t.settings["momentum"] for t in rows["elr (weight=2.0)"].trials[1:]} <= {0.5, 0.7, 0.9}
    for row in rows.values():
        assert row.best.score >= row.trials[0].score
    best = min(rows["gce"].trials[1:], key=lambda t: abs(t.settings["q"] - 0.4))  # as `MadeUp` has it
    assert rows["gce"].best == best


def test_the_score_is_the_mean_over_columns_of_the_best_noisy_validation_epoch(tmp_path: Path) -> None:
    """By real training; every number of the test set is then taken away, and the same comes out."""
    from noisebench.cell import run_cell

    def here(cells: list[Cell], place: Place, jobs: int, idle: Any, more: Callable[[], list[Cell]]) -> Any:
        queue = list(cells)
        while queue:
            cell = queue.pop(0)
            yield cell, run_cell(cell, place.out, place.data_root, place.download, place.accelerator)
            queue += more()

    board = small(methods=["gce"])
    first = tune(board, tmp_path, here, trials=2, search=["q=0.1:1.0"])
    for trial in first.rows[0].trials:
        spec = first.rows[0].row.under(trial.settings)
        cells = board.model_copy(update={"methods": (spec,), "seeds": (1000,)}).cells()
        best = []
        for cell in cells:
            lines = (tmp_path / cell.folder() / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == 2
            best.append(max(json.loads(line)["metrics"]["val.accuracy"] for line in lines))
        assert trial.score == pytest.approx(sum(best) / 2, abs=1e-15)
    for name in ("metrics.jsonl", "result.json"):
        for file in (tmp_path / "runs").glob(f"*/{name}"):
            file.write_text(re.sub(r'"(test\.)?(accuracy|top5|nll|ece)": [\d.e+-]+', r'"\1\2": 7', file.read_text()))
    (tmp_path / "boards/small/tuning.db").unlink()
    again = tune(board, tmp_path, MadeUp(stop_after=0), trials=2, search=["q=0.1:1.0"])
    assert trials_of(again) == trials_of(first)


def test_of_equals_the_first_is_taken(tmp_path: Path) -> None:
    class Flat(MadeUp):
        def result(self, cell: Cell, folder: Path) -> dict[str, Any]:
            result = super().result(cell, folder)
            (folder / "metrics.jsonl").write_text('{"epoch": 1, "metrics": {"val.accuracy": 0.5}}\n')
            return result

    found = tune(small(), tmp_path, Flat())
    assert [row.best.number for row in found.rows] == [0, 0, 0]
    assert found.benchmark.methods == small().methods


def test_a_trial_that_fails_counts_and_says_why_and_is_not_chosen(tmp_path: Path) -> None:
    def diverges(cell: Cell) -> bool:
        q = cell.method.resolved.get("q", 0)
        return bool(q == 0.7 or (0.2 < q < 0.5 and cell.noise.rate == 0.4))

    run = MadeUp(fails=diverges)
    found = tune(small(), tmp_path, run)
    row = names(found)["gce"]
    assert len(row.trials) == 7
    assert {t.reason for t in row.failed} == {
        "digits / symmetric 20% (excl. true): the loss became nan",
        "digits / symmetric 40% (excl. true): the loss became nan",
    }
    assert row.trials[0].score is None
    assert not 0.2 < row.best.settings["q"] < 0.5
    assert found.benchmark.tuned.rows["gce"].model_dump(include={"before", "trials", "failed"}) == {
        "before": None,
        "trials": 7,
        "failed": len(row.failed),
    }
    again = MadeUp(fails=diverges)  # it is tried again, and nothing else is
    assert trials_of(tune(small(), tmp_path, again)) == trials_of(found)
    assert {cell.fingerprint() for cell in again.ran} <= {cell.fingerprint() for cell in run.ran if diverges(cell)}
    assert again.ran


def test_what_failed_for_a_passing_reason_is_tried_again_with_its_own_settings(tmp_path: Path) -> None:
    before = tune(small(), tmp_path, MadeUp(fails=lambda cell: cell.method.name == "gce"))
    settings = [trial.settings for trial in names(before)["gce"].trials]
    run = MadeUp()
    after = tune(small(), tmp_path, run)
    assert {cell.method.name for cell in run.ran} == {"gce"}
    assert [trial.settings for trial in names(after)["gce"].trials] == settings
    assert not any(trial.reason for trial in names(after)["gce"].trials)
    assert not names(after)["gce"].failed
    assert trials_of(tune(small(), tmp_path, MadeUp(stop_after=0))) == trials_of(after)


def test_a_device_that_is_not_there_is_one_line_before_anything_is_written(tmp_path: Path) -> None:
    from noisebench import tuning

    with pytest.raises(UserError, match="device 'quantum' cannot be used"):
        tuning.tune(small(), Place(tmp_path, accelerator="quantum"), 2, search=SEARCH, run=MadeUp())
    assert not list(tmp_path.iterdir())


def test_where_every_trial_failed_no_board_is_written(tmp_path: Path) -> None:
    found = tune(small(), tmp_path, MadeUp(fails=lambda cell: True))
    assert found.empty
    assert not found.file.exists()
    assert json.loads(found.to_json())["file"] is None


def test_a_board_of_another_search_is_moved_aside_and_one_with_more_trials_is_not(tmp_path: Path) -> None:
    first = tune(small(), tmp_path, MadeUp(), trials=2)
    more = tune(small(), tmp_path, MadeUp(), trials=3)
    assert (first.aside, more.aside) == (None, None)
    text = more.file.read_text()
    other = tune(small(methods=["gce"]), tmp_path, MadeUp(), trials=2, search=["q=0.1:1"])
    assert other.aside == more.file.with_name("tuned.1.yaml")
    assert other.aside.read_text() == text
    assert load_benchmark(str(other.file)) == other.benchmark


def test_a_method_whose_every_trial_fails_keeps_its_settings(tmp_path: Path) -> None:
    found = tune(small(), tmp_path, MadeUp(fails=lambda cell: cell.method.name == "gce"))
    assert names(found)["gce"].best is None
    assert next(m for m in found.benchmark.methods if m.name == "gce").hparams == {}
    assert found.benchmark.tuned.rows["gce"].after is None
    assert json.loads(found.to_json())["rows"][1]["reasons"]


# ------------------------------------------------------------------------------------ interruptions, and going on


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    return trials_of(tune(small(), tmp_path_factory.mktemp("undisturbed"), MadeUp()))


@pytest.mark.parametrize("stops", [(0, 1, 5), (3, 16, 1), (18, 2, 3)])
def test_stopped_and_taken_up_again_it_tries_the_same(stops: tuple[int, ...], undisturbed: Any, tmp_path: Path) -> None:
    ran: list[str] = []
    for stop in stops:
        run = MadeUp(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            tune(small(), tmp_path, run)
        ran += [cell.fingerprint() for cell in run.ran]
        assert not (tmp_path / "boards/small/tuned.yaml").exists()
    run = MadeUp()
    found = tune(small(), tmp_path, run)
    ran += [cell.fingerprint() for cell in run.ran]
    assert trials_of(found) == undisturbed
    assert len(ran) == len(set(ran))  # no finished cell ran again


def test_the_order_in_which_cells_end_changes_nothing(undisturbed: Any, tmp_path: Path) -> None:
    assert trials_of(tune(small(), tmp_path, MadeUp(last_first=True))) == undisturbed


@pytest.mark.parametrize("drawn", [0, 2, 4, 9, 11])
def test_a_trial_that_a_kill_left_open_is_taken_up_with_its_own_settings(
    drawn: int, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before a setting was drawn, in the middle of a trial with two, in random trials and in later ones."""
    from noisebench import studies

    real, left = studies._suggest, [drawn]

    def killed(*given: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(studies, "_suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(small(), tmp_path, MadeUp())
    with sqlite3.connect(tmp_path / "boards/small/tuning.db") as store:
        assert store.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone()[0] >= 1
    assert trials_of(tune(small(), tmp_path, MadeUp())) == undisturbed


def test_more_trials_go_on_and_fewer_look_at_the_first(undisturbed: Any, tmp_path: Path) -> None:
    few, run = tune(small(), tmp_path, MadeUp(), trials=4), MadeUp()
    assert trials_of(few) == {label: trials[:4] for label, trials in undisturbed.items()}
    more = tune(small(), tmp_path, run)
    assert trials_of(more) == undisturbed
    assert len(run.ran) == 2 * 2 * 3
    fewer = tune(small(), tmp_path, MadeUp(stop_after=0), trials=4)
    assert fewer.file.read_text() == more.file.read_text()
    assert trials_of(fewer) == trials_of(few)
    assert "seed 1000: 4 trials each for gce, elr (weight=2.0); nothing to tune in ce)" in fewer.benchmark.title


def studies_in(out: Path) -> list[str]:
    with sqlite3.connect(out / "boards/small/tuning.db") as store:
        return [name for (name,) in store.execute("SELECT study_name FROM studies")]


@pytest.mark.parametrize(
    ("board", "given"),
    [
        ({}, {"search": ["gce.q=0.1:0.9"]}),
        ({}, {"seed": 1001}),
        ({"recipe": SMALL["recipe"] | {"lr": 0.05}}, {}),
        ({"noise": SMALL["noise"][:1]}, {}),
        ({"methods": [{"name": "gce", "hparams": {"q": 0.6}, "label": "gce"}, *SMALL["methods"][::2]]}, {}),
    ],
)
def test_another_space_seed_or_board_begins_another_study(
    board: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    before = trials_of(tune(small(), tmp_path, MadeUp(), trials=3))
    assert len(studies_in(tmp_path)) == 3
    tune(small(**board), tmp_path, MadeUp(), trials=3, **given)
    names = studies_in(tmp_path)
    assert sum(name.startswith("gce ") for name in names) == 2, names
    assert trials_of(tune(small(), tmp_path, MadeUp(stop_after=0), trials=3)) == before  # and the old one is there


def test_a_board_is_tuned_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "boards/small"
    folder.mkdir(parents=True)
    with FileLock(folder / "tuning.lock"), pytest.raises(UserError, match="another noisebench tune works in"):
        tune(small(), tmp_path, MadeUp())


def test_a_cell_that_another_process_holds_stops_it_and_it_goes_on_later(undisturbed: Any, tmp_path: Path) -> None:
    class Held(MadeUp):
        def result(self, cell: Cell, folder: Path) -> dict[str, Any]:
            return cell.identity() | {"status": "held", "reason": f"{folder} is held by another process"}

    with pytest.raises(UserError, match="is held by another process"):
        tune(small(), tmp_path, Held())
    assert trials_of(tune(small(), tmp_path, MadeUp())) == undisturbed


def test_a_store_that_was_half_made_is_made_anew_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "a?b={c} [d]%41"  # and its path may hold anything
    folder = out / "boards/small"
    folder.mkdir(parents=True)
    (folder / ".tuning.db.new").write_bytes(b"SQLite form")
    (folder / ".tuning.db.new-journal").write_bytes(b"x")
    tune(small(), out, MadeUp(), trials=1)
    assert not list(folder.glob(".tuning.db.new*"))
    (folder / "tuning.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"tuning.db cannot be used .* remove it to begin its studies anew") as caught:
        tune(small(), out, MadeUp())
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ the tuned board


def test_the_tuned_board_is_a_benchmark_that_says_that_it_is_tuned(tmp_path: Path) -> None:
    found = tune(small(title="A [small] board: 1e-3"), tmp_path, MadeUp())
    board = load_benchmark(str(found.file))
    assert board == found.benchmark
    assert board.name == "small-tuned"
    note = "(tuned on the noisy validation split, seed 1000: 7 trials each for gce, elr; nothing to tune in ce)"
    assert board.title == f"A [small] board: 1e-3 {note}"
    plain = small()
    assert (board.datasets, board.noise, board.seeds, board.recipe) == (
        plain.datasets,
        plain.noise,
        plain.seeds,
        plain.recipe,
    )
    assert [row.label for row in board.methods] == ["ce", "gce", "elr"]  # no longer elr (weight=2.0)
    assert board.methods[1].hparams == dict(names(found)["gce"].best.settings)
    assert board.tuned is not None
    assert {label: (row.trials, row.search) for label, row in board.tuned.rows.items()} == {
        "ce": (1, {}),
        "gce": (7, {"q": "0.1:1.0"}),
        "elr": (7, {"weight": "0.5:8.0:log", "momentum": "[0.5, 0.7, 0.9]"}),
    }
    with pytest.raises(UserError, match="small-tuned is a tuned board already"):
        tune(board, tmp_path, MadeUp())


def test_settings_of_any_plain_kind_survive_the_file(tmp_path: Path) -> None:
    noise = [{"kind": "asymmetric", "rate": 0.4, "mapping": {0: 1, 3: 2}}, {"kind": "none"}]
    methods = [{"name": "gce", "label": "1e-3"}, {"name": "ensemble", "hparams": {"settings": {}, "member": "ce"}}]
    recipe = {"schedule": {"kind": "multistep", "milestones": [0.5, 1], "warmup": 1.0}, "lr": 1e-5}
    board = small(noise=noise, methods=methods, recipe=recipe)
    found = tune(board, tmp_path, MadeUp(), trials=2, search=["size=2:9", "gce.q=[0.1, 1]"])
    loaded = load_benchmark(str(found.file))
    for one, two in zip(board.noise, loaded.noise, strict=True):
        assert (one.label, one.resolved()) == (two.label, two.resolved())
    as_before = loaded.model_copy(update={"methods": board.methods})
    assert [c.fingerprint() for c in as_before.cells()] == [c.fingerprint() for c in board.cells()]
    assert [row.label for row in loaded.methods] == ["1e-3", "ensemble (settings={}, member=ce)"]


# -------------------------------------------------------------------------------------------- cells that follow on


def made_up_work(cell: Cell, place: Place) -> dict[str, Any]:
    return {"status": "finished", "seed": cell.seed}


def test_cells_that_follow_from_results_run_in_the_same_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executor, "_work", made_up_work)
    cells = small(methods=["ce"], noise=[{"kind": "none"}], seeds=[0, 1, 2, 3, 4]).cells()
    ended: list[int] = []
    later = {0: cells[1:3], 2: cells[3:4], 3: cells[4:]}

    def more() -> list[Cell]:
        return later.pop(ended[-1], [])

    for _, result in run_cells(cells[:1], Place(tmp_path), 2, more=more):
        ended.append(result["seed"])
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert ended[0] == 0
