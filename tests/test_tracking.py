from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from filelock import FileLock
from written_boards import EPOCHS, Board

from noisebench import tracking
from noisebench._run_folder import flat
from noisebench.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty store for the module: MLflow takes seconds to make one."""
    out = tmp_path_factory.mktemp("prepared")
    tracking.prepare_store(f"sqlite:///{out / 'mlflow.db'}", out)
    return out / "mlflow.db"


@pytest.fixture(autouse=True)
def _no_address_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def board(tmp_path: Path, prepared: Path) -> Board:
    out = tmp_path / "out with a space"
    out.mkdir()
    shutil.copy(prepared, out / "mlflow.db")
    return Board(out)


# ------------------------------------------------------------------------------------------------- what is sent


def test_results_come_back_from_mlflow_alone_number_for_number(board: Board) -> None:
    expected = [board.cell(seed).train().finish() for seed in range(3)]
    expected[2]["metrics"]["last"] |= {"nll": math.inf, "ece": 0.1 + 0.2, "memorised": 5e-324}
    (board.out / board.cells[2]["folder"] / "result.json").write_text(json.dumps(expected[2]))
    assert not board.sync()
    for cell in board.cells:
        shutil.rmtree(board.out / cell["folder"])
    found = tracking.read_results(board.uri, board.name)
    assert found == sorted(expected, key=lambda result: result["fingerprint"])
    assert isinstance(found[0]["metrics"]["last"]["epoch"], int)


def test_a_nan_comes_back_as_nan(board: Board) -> None:
    board.cell().train().finish(metrics={"last": {"epoch": 5, "nll": math.nan}})
    board.sync()
    (found,) = tracking.read_results(board.uri, board.name)
    assert math.isnan(found["metrics"]["last"]["nll"])


def test_every_epoch_is_a_point_with_its_own_time(board: Board) -> None:
    cell = board.cell().train()
    result = cell.finish()
    assert not board.sync()
    run = board.run_of(cell)
    history = board.client().get_metric_history(run.info.run_id, "test.accuracy")
    assert [(p.step, p.timestamp) for p in history] == [(e, cell.clock + 1000 * e) for e in range(1, EPOCHS + 1)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "gce (q = 0.7) · symmetric 40% (excl. true) · seed 0"
    assert run.data.params["hparams.q"] == "0.7"
    assert run.data.tags["noisebench.noise_sha256"] == "ab" * 32
    assert run.data.metrics["selected.nll"] == result["metrics"]["selected"]["nll"]
    assert run.data.metrics["run.seconds"] == result["seconds"]
    assert run.data.metrics["seconds"] == 0.25, "the epoch's seconds are not the run's"


def test_more_points_than_one_call_takes(board: Board) -> None:
    cell = board.cell().train(last=700)
    cell.put("config.json", cell.base | {"hparams": {f"h{i}": i for i in range(150)} | {"long": "x" * 9000}})
    cell.finish()
    assert not board.sync()
    assert [step for step, _ in board.points(cell, "train.loss")] == list(range(1, 701))
    params = board.run_of(cell).data.params
    assert params["hparams.h149"] == "149"
    assert len(params["hparams.long"]) == 6000


def test_the_table_and_the_noise_are_artefacts(board: Board) -> None:
    noise = board.out / "noise" / "symmetric-abc"
    noise.mkdir(parents=True)
    for name in ("noise.json", "transition.png", "noise.npz"):
        (noise / name).write_bytes(b"{}")
    cell = board.cell().train()
    cell.put("config.json", cell.base | {"noise_folder": "noise/symmetric-abc"})
    cell.finish()
    (board.folder / "leaderboard.md").write_text("| first |")
    assert not board.sync()
    (parent,) = [run for run in board.runs() if run.data.tags["noisebench.kind"] == "board"]
    folder = board.run_of(cell).data.params["noise_folder"]
    assert {Path(f.path).name for f in board.client().list_artifacts(parent.info.run_id, folder)} == {
        "noise.json",
        "noise.npz",
        "transition.png",
    }
    assert list((board.out / "mlflow-artifacts").rglob("leaderboard.md"))

    (board.folder / "leaderboard.md").write_text("| second |")
    assert not board.sync()
    (parent,) = [run for run in board.runs() if run.data.tags["noisebench.kind"] == "board"]
    assert "| second |" in parent.data.tags["mlflow.note.content"]
    assert parent.info.status == "FINISHED"
    assert board.run_of(cell).data.tags["mlflow.parentRunId"] == parent.info.run_id
    (table,) = (board.out / "mlflow-artifacts").rglob("leaderboard.md")
    assert table.read_text() == "| second |"


NASTY = "<img src=x onerror=alert(1)> | **bold** [link](javascript:alert(1)) `code`\n# head"


def test_descriptions_say_what_it_is_and_how_to_make_it_again(board: Board) -> None:
    cell = board.cell().train()
    (board.out / "noise/one").mkdir(parents=True)
    (board.out / "noise/one/noise.json").write_text(json.dumps({"rate": 0.4, "realised_rate": 0.3917}))
    facts = {"noise_folder": "noise/one", "paper": "Zhang and Sabuncu, 2018", "noise": {"kind": "symmetric"}}
    cell.put("config.json", cell.base | facts | {"hparams": {}, "privileged": ["transition"]})
    result = cell.finish(hardware="a CPU, 2 cores", peak_memory_mb=12.5, versions={"torch": "2.15.0"})
    (board.folder / "leaderboard.md").write_text("# Digits\n\n| method |\n|---|\n| gce |\n\n## details\n\nmore\n")
    assert not board.sync()
    note = board.run_of(cell).data.tags["mlflow.note.content"]
    assert "**gce (q = 0.7)** on digits under symmetric 40% (excl. true), seed 0: finished." in note
    assert "wrong labels: asked 40.00%, realised 39.17%" in note
    assert f"| selected: 3 | {100 * result['metrics']['selected']['accuracy']:.2f}% |" in note
    assert [line.split(":")[0] for line in note.splitlines() if line.startswith("| ")] == [
        "| epoch | accuracy | NLL | ECE | memorised |",
        "| selected",
        "| last",
        "| best (oracle)",
    ]
    assert "Run again: `noisebench leaderboard digits --methods 'gce (q = 0.7)' --seeds 0`" in note
    for told in ("Zhang and Sabuncu, 2018", str(cell.path), "a CPU, 2 cores, at most 12.5 MB, torch 2.15.0"):
        assert told in note
    assert "No model was logged: model.pt is not in its run folder" in note.replace("\\", "")
    (parent,) = [run for run in board.runs() if run.data.tags["noisebench.kind"] == "board"]
    experiment = board.client().get_experiment(parent.info.experiment_id)
    for note in (parent.data.tags["mlflow.note.content"], experiment.tags["mlflow.note.content"]):
        at = [note.index(part) for part in ("# Digits", "about", "| gce |", "`noisebench leaderboard digits`", "more")]
        assert at == sorted(at)


def test_names_of_users_stand_literally_in_a_description(board: Board) -> None:
    cell = board.cell().train()
    board.cells[0] |= {"label": NASTY, "dataset": NASTY}
    board.write()
    cell.fail(NASTY)
    assert not board.sync()
    note = board.run_of(cell).data.tags["mlflow.note.content"]
    shown = note.partition("- Run again")[0]  # there it is a span of code
    assert "<" not in shown
    assert "\n#" not in shown
    for sign in ("[link]", "**bold**", "`code`"):
        assert sign not in shown
    (line,) = [line for line in note.splitlines() if line.startswith("- Run again: ")]
    assert line.startswith("- Run again: ``noisebench")
    assert line.endswith("--seeds 0``")


def test_runs_can_be_filtered_by_plain_tags(board: Board) -> None:
    cell, failed = board.cell().train(), board.cell(1, "elr")
    cell.finish(hardware="a CPU, 2 cores")
    failed.fail("no luck")
    assert not board.sync()

    def found(where: str) -> list[str]:
        experiment = board.client().get_experiment_by_name("noisebench/digits").experiment_id
        return [run.info.run_id for run in board.client().search_runs([experiment], where)]

    ours, theirs = board.run_of(cell).info.run_id, board.run_of(failed).info.run_id
    for key, value in {
        "method": "gce",
        "label": "gce (q = 0.7)",
        "seed": "0",
        "status": "finished",
        "privileged": "transition",
        "hardware": "a CPU, 2 cores",
    }.items():
        assert found(f"tags.{key} = '{value}'") == [ours]
    assert found("tags.method = 'elr' and tags.status = 'failed'") == [theirs]
    both = "tags.noise_kind = 'symmetric' and tags.noise_rate = '0.4' and tags.dataset = 'digits'"
    assert set(found(f"{both} and tags.board = 'digits' and tags.noise = 'symmetric 40% (excl. true)'")) == {
        ours,
        theirs,
    }


def test_system_metrics_are_sent_once_each_and_torn_lines_left_out(board: Board) -> None:
    cell = board.cell().train()
    file, name = cell.path / "system.jsonl", "system/cpu_utilization_percentage"
    lines = [json.dumps({"time": cell.clock + at, "metrics": {name: 10.0 * at}}) for at in range(4)]
    file.write_text(f"{lines[0]}\n{lines[1][:20]}\n{lines[2]}\n{lines[3][:9]}")
    assert not board.sync()
    assert board.points(cell, name) == [(0, 0.0), (2, 20.0)]
    cell.finish()
    file.write_text(f"{lines[0]}\n{lines[1][:20]}\n{lines[2]}\n{lines[3]}\n")
    assert not board.sync()
    cell.forget()
    assert not board.sync()
    assert board.points(cell, name) == [(0, 0.0), (2, 20.0), (3, 30.0)]
    assert board.faults() == []


def test_nested_settings_become_flat_parameters() -> None:
    assert dict(flat({"a": {"b": 1, "c (d)": None}, "e": [1, 2], "f": {}})) == {
        "a.b": "1",
        "a.c _d_": "null",
        "e": "[1, 2]",
        "f": "{}",
    }


# ----------------------------------------------------------------------------------------- nothing lost or doubled


@pytest.mark.parametrize("lost", [False, True], ids=["again", "after the acknowledgement is lost"])
def test_sending_twice_doubles_nothing(board: Board, lost: bool) -> None:
    cell = board.cell().train()
    expected = cell.finish()
    assert not board.sync()
    first, runs = board.points(cell, "test.accuracy"), len(board.runs())
    if lost:
        cell.forget()
        (board.folder / "sent.json").unlink()
    assert not board.sync()
    assert board.points(cell, "test.accuracy") == first
    assert len(board.points(cell, "last.accuracy")) == 1
    assert len(board.runs()) == runs
    assert tracking.read_results(board.uri, board.name) == [expected]


def test_a_kill_in_the_middle_of_sending(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [board.cell(seed).train() for seed in range(3)]
    expected = [cell.finish() for cell in cells]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Store, "set_status", killed)  # the points are in the store, and nothing says so
        with pytest.raises(KeyboardInterrupt):
            board.sync()
    assert not board.sync()
    assert tracking.read_results(board.uri, board.name) == sorted(expected, key=lambda r: r["fingerprint"])
    for cell in cells:
        assert [step for step, _ in board.points(cell, "test.accuracy")] == [1, 2, 3, 4, 5]


def test_a_torn_last_line_waits_for_its_end(board: Board) -> None:
    cell = board.cell().train(last=2)
    line = cell.line(3)
    with (cell.path / "metrics.jsonl").open("a") as file:
        file.write(line[:30])
        file.flush()
        assert not board.sync()
        assert [step for step, _ in board.points(cell, "test.accuracy")] == [1, 2]
        file.write(line[30:])
    assert not board.sync()
    assert board.points(cell, "test.accuracy")[2] == (3, json.loads(line)["metrics"]["test.accuracy"])
    assert board.run_of(cell).info.status == "RUNNING"
    assert tracking.read_results(board.uri, board.name) == []


def test_a_resumed_run_goes_on_in_its_mlflow_run(board: Board) -> None:
    cell = board.cell().train(last=3)
    board.sync()
    cell.put("config.json", cell.base | {"hparams": {"q": 0.7}, "noise": {}, "device": "another machine"})
    cell.train(first=4)
    cell.finish()
    assert not board.sync()
    assert [step for step, _ in board.points(cell, "test.accuracy")] == [1, 2, 3, 4, 5]


def test_a_cell_that_failed_before_it_had_a_configuration_is_sent_too(board: Board) -> None:
    cell = board.cell()
    (cell.path / "config.json").unlink()
    failure = cell.fail("a data folder is missing")
    assert not board.sync()
    (found,) = tracking.read_results(board.uri, board.name)
    assert found["reason"] == failure["reason"]


def test_a_failed_cell_and_its_second_attempt(board: Board) -> None:
    cell = board.cell()
    failure = cell.fail("loss is NaN in epoch 1")
    assert not board.sync()
    assert board.run_of(cell).info.status == "FAILED"
    assert tracking.read_results(board.uri, board.name) == [failure]

    (cell.path / "failure.json").unlink()
    cell.train(last=2)
    assert not board.sync()
    assert board.run_of(cell).info.status == "RUNNING"
    assert tracking.read_results(board.uri, board.name) == []

    cell.train(first=3)
    expected = cell.finish()
    assert not board.sync()
    run = board.run_of(cell)
    assert run.info.status == "FINISHED"
    assert "noisebench.reason" not in run.data.tags
    assert tracking.read_results(board.uri, board.name) == [expected]


def test_a_folder_trained_anew_is_a_new_run_and_the_newest_counts(board: Board) -> None:
    cell = board.cell().train()
    cell.finish()
    board.sync()
    shutil.rmtree(cell.path)
    expected = cell.start(clock=1_800_000_000_000).train().finish()
    assert not board.sync()
    assert len(board.runs()) == 3
    assert tracking.read_results(board.uri, board.name) == [expected]


def test_two_boards_share_a_run_folder(board: Board) -> None:
    cell = board.cell().train()
    expected = cell.finish()
    other = Board(board.out, "other")
    other.cells = [board.cells[0] | {"label": "another label"}]
    other.write()
    assert not board.sync()
    assert not other.sync()
    assert tracking.read_results(board.uri, "digits") == [expected]
    assert tracking.read_results(board.uri, "other") == [expected | {"label": "another label"}]


def test_a_deleted_store_gets_everything_again(board: Board, prepared: Path) -> None:
    expected = board.cell().train().finish()
    board.sync()
    (board.out / "mlflow.db").unlink()
    assert tracking.read_results(board.uri, board.name) == []
    shutil.copy(prepared, board.out / "mlflow.db")  # even when the file carries the same number
    board.cell(seed=1).train()
    assert not board.sync()
    assert tracking.read_results(board.uri, board.name) == [expected]


def test_another_address_gets_everything(
    board: Board, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = board.cell().train().finish()
    board.sync()
    elsewhere = tmp_path / "elsewhere.db"
    sqlite3.connect(shutil.copy(prepared, elsewhere)).execute("PRAGMA user_version = 0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    assert not board.sync()
    assert tracking.read_results(board.uri, board.name) == [expected]


# ------------------------------------------------------------------------------------------------------ failures


def test_a_dead_server_costs_seconds_and_nothing_is_lost(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [board.cell(seed).train().finish() for seed in range(2)]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
        pending = board.sync()
        assert pending.cells == 2
        assert "127.0.0.1" in pending.reason
        assert "secret" not in pending.reason
        with pytest.raises(UserError, match="could not be read"):
            tracking.read_results(board.uri, board.name)
    assert not board.sync()
    assert len(tracking.read_results(board.uri, board.name)) == len(expected)


def test_one_bad_cell_does_not_keep_the_others(board: Board) -> None:
    board.cell(0).train().put("result.json", {"metrics": "nonsense"})
    expected = board.cell(1).train().finish()
    pending = board.sync()
    assert pending.cells == 1
    assert pending.reason
    assert tracking.read_results(board.uri, board.name) == [expected]


def test_after_the_deadline_no_cell_is_begun(board: Board) -> None:
    for seed in range(3):
        board.cell(seed).train().finish()
    board.cell(3)  # not started: nothing to send
    sender = tracking.Sender(board.uri, board.out, board.name)
    sender.deadline = time.monotonic() - 1
    assert sender.sync() == tracking.Pending(3, "the deadline passed")
    sender.deadline = math.inf
    assert not sender.sync()
    sender.close()


def test_a_cell_that_was_left_is_shown_as_killed_also_by_the_sender_that_sent_its_epochs(board: Board) -> None:
    cell = board.cell()
    sender = tracking.Sender(board.uri, board.out, board.name)
    for epoch in (1, 2):
        cell.train(epoch, epoch)
        assert not sender.sync()
    assert not sender.sync()  # finds nothing to send
    assert board.run_of(cell).info.status == "RUNNING"
    assert not sender.sync_to_the_end()
    assert board.run_of(cell).info.status == "KILLED"
    sender.close()
    with FileLock(board.folder / "tracking.lock", timeout=0):
        pass  # another sender may have the board


def test_two_senders_of_a_board_do_not_mix(board: Board) -> None:
    board.cell().train()
    with FileLock(board.folder / "tracking.lock"):
        assert board.sync() == tracking.Pending(1, "another process is sending this board")
    assert not board.sync()


# --------------------------------------------------------------------------------------------- the store's set-up


def prepare(out: Path) -> BaseProcess:
    """A process that makes the store, from one that has imported MLflow already: that takes longer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "noisebench.tracking"])
    process = context.Process(target=tracking.prepare_store, args=(tracking.store_uri(out), out))
    process.start()
    return process


def test_a_store_killed_while_it_is_made_opens_afterwards(tmp_path: Path) -> None:
    def being_made(since: int) -> bool:
        found = []
        for file in tmp_path.glob("*mlflow.db*"):
            with suppress(FileNotFoundError):  # it may be removed or renamed at any moment
                found.append(file.stat())
        return any(file.st_size and file.st_mtime_ns > since for file in found)

    for moment in (0.0, 0.1, 0.3):  # the tables take longer, and the test holds whenever the kill comes
        began = time.time_ns()
        process = prepare(tmp_path)
        while process.is_alive() and not being_made(began):
            time.sleep(0.005)
        time.sleep(moment)
        process.kill()
        process.join()
        made = tmp_path / "mlflow.db"
        assert not made.exists() or any(made.read_bytes()[60:64]), "half-made under the final name"
    twins = [prepare(tmp_path), prepare(tmp_path)]  # and two at once
    for process in twins:
        process.join()
    assert [process.exitcode for process in twins] == [0, 0]
    board = Board(tmp_path)
    board.cell().train()
    assert not board.sync()
    assert not list(tmp_path.glob(".mlflow.db.new*"))


def test_a_user_s_own_store_and_a_server_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking.store_uri(tmp_path) == "http://somewhere:5000"
    tracking.prepare_store(tracking.store_uri(tmp_path), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- the process


def test_the_process_sends_what_is_written_while_it_runs(board: Board) -> None:
    first = board.cell(0).train().finish()
    process = tracking.start(board.out, board.name)
    second = board.cell(1).train().finish()
    assert process.finish() is None
    assert tracking.read_results(board.uri, board.name) == sorted((first, second), key=lambda r: r["fingerprint"])
    assert "everything is sent" in (board.folder / "tracking.log").read_text()

    sent = (board.out / "mlflow.db").stat().st_mtime_ns
    command = [sys.executable, "-X", "importtime", "-m", "noisebench.tracking", str(board.out), board.name]
    again = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == {"unsent_cells": 0, "reason": ""}
    assert (board.out / "mlflow.db").stat().st_mtime_ns == sent
    log = again.stderr + (board.folder / "tracking.log").read_text()
    assert "noisebench._outbox" in log
    assert "mlflow" not in "".join(line for line in log.splitlines() if "import time" in line)


def test_the_process_says_what_it_could_not_send(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.cell().train().finish()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    unsent = tracking.start(board.out, board.name).finish()
    assert unsent is not None
    assert unsent.startswith("1 cell not sent yet: ")


def test_a_process_that_crashes_or_hangs_is_told_and_never_raises(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.cell().train()
    hanging = tracking.start(board.out, board.name)
    assert "within 0 seconds" in str(hanging.finish(timeout=0))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert "exit status 1" in str(tracking.start(board.out, board.name).finish())


def test_importing_the_module_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, noisebench.tracking; print(sorted({'mlflow', 'torch', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
