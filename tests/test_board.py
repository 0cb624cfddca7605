"""Boards through kills, dying workers and broken plug-ins; and their tables from run folders or from MLflow alone."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from filelock import FileLock

from noisebench import board, cli, files, local_executor, registry, tracking
from noisebench.config import Benchmark, Cell, build, load_benchmark
from noisebench.drawing import notes
from noisebench.errors import UserError
from noisebench.executors import MAX_DEATHS, Place, run_cells

# No import of torch up here: the workers of the tests with made-up work import this file.

pytestmark = pytest.mark.usefixtures("one_picture")

SMALL: dict[str, Any] = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.4}],
    "seeds": [0],
    "methods": ["ce", "elr"],
    "recipe": {"epochs": 3, "batch_size": 64, "train_size": 240, "checkpoint_seconds": 0},
}


LABEL = "symmetric 40% (excl. true)"
NUMBERS = {which: {"epoch": 3, "accuracy": 0.5, "nll": 1.5, "ece": 0.1} for which in ("last", "selected", "best")}


def small(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, SMALL | changes, "small.yaml")
    return made


def here(cells: list[Cell], place: Place, jobs: int, idle: Callable[[], None]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells in this process, one after the other: for what does not depend on workers."""
    from noisebench.cell import run_cell

    for cell in cells:
        yield cell, run_cell(cell, place.out, place.data_root, place.download, place.accelerator)


def run(benchmark: Benchmark, out: Path, how: Callable[..., Any] = here, jobs: int = 1) -> board.Outcome:
    return board.run_board(benchmark, Place(out, accelerator="cpu"), jobs, run=how)


def tables_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("leaderboard.*")}


def without_seconds(table: str) -> Any:
    found = json.loads(table)
    return found | {"cells": [row for row in found["cells"] if row["metric"] != "seconds"]}


class NoSender:
    """In place of MLflow's."""

    def finish(self) -> None:
        return None


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start", lambda *_: NoSender())


@pytest.mark.usefixtures("no_mlflow")
def test_sizes_of_a_dataset_share_their_noise_and_make_a_grid(tmp_path: Path) -> None:
    recipe = {"epochs": 1, "batch_size": 32, "validation": 0.1}
    benchmark = small(datasets=["digits@60", "digits@120"], methods=["ce"], recipe=recipe)
    outcome = run(benchmark, tmp_path)
    assert outcome.failed == 0
    assert len([folder for folder in (tmp_path / "noise").iterdir() if folder.is_dir()]) == 1
    assert {result["dataset"] for result in outcome.results} == set(benchmark.datasets)
    assert (tmp_path / "boards" / "small" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert board.rebuild(benchmark, tmp_path, "runs").to_json() == outcome.table.to_json()
    # The same run under another name is not run again.
    alone = run(small(name="alone", recipe=recipe | {"train_size": 60}, methods=["ce"]), tmp_path)
    assert alone.results[0]["dataset"] == "digits"
    assert alone.results[0]["seconds"] == outcome.results[0]["seconds"]
    assert not (tmp_path / "boards" / "alone" / "grid.png").exists()


@pytest.mark.usefixtures("no_mlflow")
def test_columns_whose_data_is_not_there_are_shown_as_not_run(tmp_path: Path) -> None:
    recipe = {"epochs": 1, "train_size": 240}
    figures = {"source": "A, 2020", "tables": [{"dataset": "svhn", "noise": [LABEL], "figures": {"ce": {"last": [9]}}}]}
    benchmark = small(datasets=["digits", "svhn"], methods=["ce"], recipe=recipe)
    outcome = run(benchmark, tmp_path)
    assert (outcome.failed, [result["status"] for result in outcome.results]) == (0, ["finished", "missing"])
    ((column, reason),) = outcome.table.unavailable.items()
    assert column.dataset == "svhn"
    assert "data-root" in reason
    assert "not run" in outcome.table.to_markdown()
    assert f"Not run, svhn: {reason}" in "".join(notes(outcome.table))
    with pytest.raises(UserError, match="SVHN needs a data folder"):
        run(small(name="none", datasets=["svhn"], methods=["ce"], recipe=recipe), tmp_path)
    # Beside a paper's figures even a table without any data is worth seeing.
    beside = run(small(name="beside", datasets=["svhn"], methods=["ce"], recipe=recipe, published=figures), tmp_path)
    assert [result["status"] for result in beside.results] == ["missing"]


@pytest.mark.usefixtures("no_mlflow")
def test_a_grid_takes_any_title_and_label(tmp_path: Path) -> None:
    rows = [{"name": "ce", "label": r"a $\bad{$"}]
    benchmark = small(title="of $x_{$\n" * 9, datasets=["digits@60", "digits@120"], methods=rows, recipe={"epochs": 1})
    run(benchmark, tmp_path)
    assert (tmp_path / "boards" / "small" / "grid.png").exists()


@pytest.mark.usefixtures("no_mlflow")
def test_a_part_larger_than_the_dataset_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"small: datasets: 'digits@1201': there are 1200 training images"):
        run(small(datasets=["digits@1201", "digits"], recipe={"epochs": 1}), tmp_path)
    assert not (tmp_path / "runs").exists()


PLUGIN = '''
    import os

    from noisebench.methods.cross_entropy import CrossEntropy


    class NanAt(CrossEntropy):
        """Its loss is NaN in the second epoch's third step."""

        name = "nan_at"

        def loss(self, batch, run):
            bad = run.epoch == 1 and run.step == 3 + 2
            return super().loss(batch, run) * (float("nan") if bad else 1.0)


    class Dies(CrossEntropy):
        """Takes its process with it."""

        name = "dies"

        def loss(self, batch, run):
            os._exit(9)
'''


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed distribution with three plug-ins, one of which cannot be imported."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "odd_methods.py").write_text(textwrap.dedent(PLUGIN))
    (folder / "odd_broken.py").write_text("import no_such_package\n\n\nclass Broken: ...\n")
    info = folder / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[noisebench.methods]\nnan_at = odd_methods:NanAt\ndies = odd_methods:Dies\nbroken = odd_broken:Broken\n"
    )
    return folder


@pytest.fixture
def plugins(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(plugin_folder)
    registry._registry.cache_clear()
    yield
    registry._registry.cache_clear()


# --------------------------------------------------------------------------------------------------- the same table


def test_a_second_call_runs_nothing_and_writes_the_same_bytes(tmp_path: Path, no_mlflow: None) -> None:
    first = run(small(), tmp_path)
    folder = board.board_folder(small(), tmp_path)
    before = tables_in(folder)
    assert before.keys() == {f"leaderboard.{suffix}" for suffix in ("csv", "json", "md", "tex")}

    def never(*_: Any) -> None:
        raise AssertionError("a finished cell ran again")

    second = run(small(), tmp_path, never)
    assert tables_in(folder) == before
    assert second.results == first.results
    # More methods leave the finished cells as they are.
    ran: list[str] = []

    def noted(cells: list[Cell], *rest: Any) -> Any:
        ran.extend(cell.method.label for cell in cells)
        return here(cells, *rest)

    third = run(small(methods=["ce", "gce", "elr"]), tmp_path, noted)
    assert ran == ["gce"]
    assert [r for r in third.results if r["label"] != "gce"] == first.results


def test_two_workers_give_the_same_weights_and_numbers_as_one_process(tmp_path: Path, no_mlflow: None) -> None:
    one, two = run(small(), tmp_path / "one"), run(small(), tmp_path / "two", run_cells, 2)
    assert [r["status"] for r in one.results] == ["finished"] * 2
    weights = [[r["weights_sha256"] for r in outcome.results] for outcome in (one, two)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 2
    assert without_seconds(one.table.to_json()) == without_seconds(two.table.to_json())


def test_the_table_is_rebuilt_from_run_folders_alone_and_from_mlflow_alone(tmp_path: Path, plugins: None) -> None:
    benchmark = small(methods=["ce", "nan_at"])
    outcome = run(benchmark, tmp_path)
    assert outcome.unsent is None
    assert outcome.failed == 1
    whole = outcome.table.to_json()
    store, aside = tmp_path / "mlflow.db", tmp_path / "aside.db"
    store.rename(aside)
    assert board.rebuild(benchmark, tmp_path, "runs").to_json() == whole
    aside.rename(store)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "boards")
    assert board.rebuild(benchmark, tmp_path, "mlflow").to_json() == whole
    assert not (tmp_path / "runs").exists()


def test_nothing_to_rebuild_from_is_a_table_of_missing_cells(tmp_path: Path) -> None:
    sources: tuple[Literal["runs"], Literal["mlflow"]] = ("runs", "mlflow")
    for source in sources:
        table = json.loads(board.rebuild(small(), tmp_path, source).to_json())
        ranking = [row for row in table["cells"] if row["ranking"]]
        assert [(row["missing"], row["n"], row["mean"]) for row in ranking] == [(1, 0, None)] * 2
    assert not list(tmp_path.iterdir())


def test_two_labels_of_one_method_under_the_same_settings_are_refused() -> None:
    with pytest.raises(UserError, match="'one' and 'two' are one method under the same settings"):
        small(methods=[{"name": "ce", "label": "one"}, {"name": "ce", "label": "two"}])


# ------------------------------------------------------------------------------------------------ cells that fail


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of a noisebench command in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["noisebench", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def test_cells_fail_with_their_reasons_and_the_others_finish(
    tmp_path: Path,
    plugins: None,
    no_mlflow: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A NaN, a plug-in that does not import, and one whose worker dies, all on one board."""
    deaths = 2  # a worker takes seconds to start
    monkeypatch.setattr(local_executor, "MAX_DEATHS", deaths)
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"name": "odd", "methods": ["nan_at", "broken", "dies", "ce"]}))
    out = tmp_path / "out"
    words = ["leaderboard", str(file), "--out", str(out), "--jobs", "1", "--device", "cpu"]
    assert command(monkeypatch, *words) == 1
    assert "error: 3 of 4 cells failed; the table's footer has the reasons\n" in capsys.readouterr().err
    table = json.loads((out / "boards/odd/leaderboard.json").read_text())
    assert {f["method"]: f["reason"] for f in table["failures"]} == {
        "nan_at": "the loss became nan in epoch 2, step 6",
        "broken": "'broken' (odd) cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        "dies": f"its worker process died {deaths} times (out of memory? see dmesg); try --jobs 1",
    }
    ranking = {row["method"]: row for row in table["cells"] if row["ranking"]}
    assert {m: (row["n"], row["failed"]) for m, row in ranking.items()} == {
        "nan_at": (0, 1),
        "broken": (0, 1),
        "dies": (0, 1),
        "ce": (1, 0),
    }
    assert all(row["mean"] is None for m, row in ranking.items() if m != "ce")
    benchmark = load_benchmark(str(file))
    logs = {c.method.label: out / c.folder() / "log.txt" for c in benchmark.cells()}
    assert logs["dies"].read_text().count("started") == deaths
    assert logs["ce"].read_text().count("started") == 1


def test_wrong_settings_of_a_method_stop_the_board_before_it_starts(tmp_path: Path, no_mlflow: None) -> None:
    with pytest.raises(UserError, match=r"small: methods\[1\] 'gce': hparams\.q"):
        run(small(methods=["ce", {"name": "gce", "hparams": {"q": "much"}}]), tmp_path)
    assert not (tmp_path / "runs").exists()


MISSING = {"kind": "asymmetric", "rate": 0.3, "mapping": {1: 0}}


def test_a_method_for_one_label_an_image_is_refused_before_a_board_of_several_starts(
    tmp_path: Path, no_mlflow: None
) -> None:
    says = r"^method '{}'{} is for one label an image, and dataset 'multi_digits' has several; .*: ce, .*ensemble"
    for row, name, so_set in (
        ("gce", "gce", ""),
        ({"name": "ensemble", "hparams": {"member": "gce"}}, "ensemble", " under these settings"),
    ):
        with pytest.raises(UserError, match=says.format(name, so_set)) as caught:
            run(small(datasets=["digits", "multi_digits"], noise=[MISSING], methods=["ce", row]), tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_board_of_one_label_and_of_several_has_a_column_of_each(tmp_path: Path, no_mlflow: None) -> None:
    benchmark = small(datasets=["digits", "multi_digits"], noise=[MISSING], methods=["ce"])
    outcome = run(benchmark, tmp_path)
    assert not outcome.failed
    ranking = [row for row in outcome.table.records() if row["ranking"]]
    assert [(row["dataset"], row["metric"]) for row in ranking] == [("digits", "accuracy"), ("multi_digits", "gap")]
    assert all(row["mean"] is not None for row in ranking)
    assert board.rebuild(benchmark, tmp_path, "runs").to_json() == outcome.table.to_json()


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ({"kind": "instance", "rate": 0.4}, "noise 'instance' is for one label a sample"),
        ({"kind": "symmetric", "rate": 0.6}, r"for 2 classes, \(K-1\)/K = 0.5"),
        ({"kind": "asymmetric", "rate": 0.3}, "mapping: missing"),
        ({"kind": "matrix", "T": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "3 x 3 does not fit 2 classes"),
    ],
)
def test_noise_that_entries_cannot_have_is_refused_as_the_board_is_read(
    tmp_path: Path, noise: dict[str, Any], says: str
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | {"datasets": ["multi_digits"], "methods": ["ce"], "noise": [noise]}))
    with pytest.raises(UserError, match=rf"noise\[0\] on multi_digits: .*{says}"):
        load_benchmark(str(file))


def test_noise_is_injected_into_multihot_labels_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "inject",
        "--dataset",
        "multi_digits",
        "--noise",
        "asymmetric",
        "--rate",
        "0.3",
        "--out",
        str(tmp_path / "n"),
    ]
    assert command(monkeypatch, *words) == 2
    assert "give mapping: {1: 0} for labels that go missing" in capsys.readouterr().err
    assert command(monkeypatch, *words, "--option", "mapping={1: 0}", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["labels"] == 2000
    assert facts["rate_realised"] == pytest.approx(facts["rate_expected"], abs=0.01)
    assert {file.name for file in (tmp_path / "n").iterdir()} == {
        "noise.npz",
        "noise.json",
        "transition.json",
        "transition.png",
    }


def test_a_cell_that_another_process_holds_is_waited_for(tmp_path: Path, no_mlflow: None) -> None:
    """Whether the other one finishes it, fails at it, or leaves it."""
    benchmark = small(methods=["ce", "elr", "gce"])
    finishes, fails, leaves = (tmp_path / cell.folder() for cell in benchmark.cells())
    locks = [FileLock(folder / "lock") for folder in (finishes, fails, leaves)]
    for folder, lock in zip((finishes, fails, leaves), locks, strict=True):
        folder.mkdir(parents=True)
        lock.acquire()

    class Others(board.Silent):
        """The other process: it comes to its end while this one waits."""

        def tick(self) -> None:
            if lock.is_locked:
                files.write_json(finishes / "result.json", {"status": "finished", "seconds": 1, "metrics": NUMBERS})
                files.write_json(fails / "failure.json", {"status": "failed", "reason": "of another process"})
                for one in locks:
                    one.release()

    outcome = board.run_board(benchmark, Place(tmp_path, accelerator="cpu"), 1, Others(), here)
    assert [r["status"] for r in outcome.results] == ["finished", "failed", "finished"]
    assert [r.get("reason") for r in outcome.results] == [None, "of another process", None]
    assert outcome.results[0]["seconds"] == 1
    assert "started" in (leaves / "log.txt").read_text()


WITHOUT_MLFLOW = """
from types import SimpleNamespace
from noisebench import cli, tracking

tracking.start = lambda *_: SimpleNamespace(finish=lambda: None)  # it takes longer than the cells
cli.main()
"""


def test_two_drivers_of_one_board_train_each_cell_once(tmp_path: Path) -> None:
    benchmark = tmp_path / "board.yaml"
    two = SMALL | {"name": "two", "datasets": ["shapes"], "methods": ["ce", "elr", "gce", "mixup"]}
    benchmark.write_text(yaml.safe_dump(two))
    command = [sys.executable, "-c", WITHOUT_MLFLOW, "leaderboard", benchmark, "--jobs", "1", "--json"]
    command += ["--out", tmp_path / "out"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        tables = [process.communicate(timeout=600)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert json.loads(tables[0]) == json.loads(tables[1])
    logs = [file.read_text() for file in (tmp_path / "out").glob("runs/*/log.txt")]
    assert [log.count("started") for log in logs] == [1] * 4, logs


# ---------------------------------------------------------------------------------- workers, with work made up for it


def made_up_work(cell: Cell, place: Place) -> dict[str, Any]:
    """What the row's label says, in place of training; every start is noted."""
    with (place.out / f"{cell.method.label}.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    starts = len((place.out / f"{cell.method.label}.txt").read_text().splitlines())
    if cell.method.label == "dies" or (cell.method.label == "dies once" and starts == 1):
        time.sleep(0.3)  # long enough for a neighbour to have begun
        os._exit(9)
    if cell.method.label == "slow":
        time.sleep(2)
    return {"status": "finished", "starts": starts}


def outcomes(labels: list[str], jobs: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(local_executor, "_work", made_up_work)
    methods = [{"name": "gce", "label": label, "hparams": {"q": 0.5 + 0.01 * i}} for i, label in enumerate(labels)]
    found = [(c.method.label, r) for c, r in run_cells(small(methods=methods).cells(), Place(out), jobs)]
    assert sorted(label for label, _ in found) == sorted(labels)  # each exactly once
    return dict(found)


def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(["a", "dies once", "b", "c"], 2, tmp_path, monkeypatch)
    assert {r["status"] for r in found.values()} == {"finished"}
    assert found["dies once"]["starts"] == 2
    pids = (tmp_path / "dies once.txt").read_text().split()
    assert pids[0] != pids[1]


def test_a_cell_whose_worker_died_three_times_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(["dies", "a", "b"], 1, tmp_path, monkeypatch)
    assert {label: r["status"] for label, r in found.items()} == {"dies": "failed", "a": "finished", "b": "finished"}
    assert len((tmp_path / "dies.txt").read_text().split()) == MAX_DEATHS


def test_a_cell_is_not_blamed_for_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(["dies", "slow"], 2, tmp_path, monkeypatch)
    assert {label: r["status"] for label, r in found.items()} == {"dies": "failed", "slow": "finished"}


class BreaksOnSecondSubmit:
    """A pool whose worker dies just after its first cell is done; its successors hold."""

    pools = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        type(self).pools += 1
        self._processes: dict[int, Any] = {}
        self._submitted = 0

    def submit(self, function: Callable[..., Any], *words: Any) -> concurrent.futures.Future[Any]:
        self._submitted += 1
        if self._submitted == 2 and self.pools == 1:
            raise BrokenProcessPool
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(function(*words))
        return future

    def shutdown(self, **_: Any) -> None:
        pass


def test_a_result_is_not_lost_if_the_pool_breaks_right_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BreaksOnSecondSubmit, "pools", 0)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", BreaksOnSecondSubmit)
    found = outcomes(["a", "b", "c"], 1, tmp_path, monkeypatch)
    assert {r["starts"] for r in found.values()} == {1}


def test_a_cell_that_was_given_up_is_failed_in_a_rebuilt_table_too(
    tmp_path: Path, no_mlflow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executor, "_work", made_up_work)
    benchmark = small(methods=[{"name": "ce", "label": "dies"}])
    outcome = run(benchmark, tmp_path, run_cells)
    assert outcome.failed == 1
    assert board.rebuild(benchmark, tmp_path, "runs").to_json() == outcome.table.to_json()


def test_a_cell_whose_worker_died_right_after_it_was_finished_is_finished(tmp_path: Path, no_mlflow: None) -> None:
    def dies_at_last(cells: list[Cell], place: Place, *_: Any) -> Iterator[tuple[Cell, dict[str, Any]]]:
        for cell in cells:
            files.write_json(tmp_path / cell.folder() / "result.json", {"status": "finished", "metrics": NUMBERS})
            yield cell, {"status": "failed", "reason": "its worker process died"}

    outcome = run(small(), tmp_path, dies_at_last)
    assert outcome.failed == 0
    assert board.rebuild(small(), tmp_path, "runs").to_json() == outcome.table.to_json()


# -------------------------------------------------------------------------------------------------------------- kills


def test_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver killed twice; scripts/kill_board.py deals more kills, to workers as well."""
    spec = importlib.util.spec_from_file_location("kill_board", Path(__file__).parents[1] / "scripts" / "kill_board.py")
    assert spec is not None
    assert spec.loader is not None
    kill_board = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_board", kill_board)
    spec.loader.exec_module(kill_board)
    tiny = {"methods": ("ce", "elr"), "seeds": (0,), "epochs": 6, "jobs": 1}
    undisturbed = kill_board.Board(tmp_path / "undisturbed", **tiny)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "start", lambda *_: NoSender())
        benchmark = load_benchmark(
            "digits",
            [
                "methods=[ce, elr]",
                "seeds=[0]",
                "recipe.epochs=6",
                "noise=[{kind: symmetric, rate: 0.4, include_true: false}]",
                "recipe.checkpoint_seconds=0",
            ],
        )
        run(benchmark, undisturbed.out)
    killing = kill_board.Killing(undisturbed, random.Random(1), longest=1.0, only_driver=True)
    disturbed = kill_board.Board(tmp_path / "disturbed", **tiny)
    killing.disturb(disturbed, 2)
    assert killing.faults == []
    assert killing.counts["drivers"] >= 1
    assert len(disturbed.results()) == 2
