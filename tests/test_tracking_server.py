"""MLflow as a server and with PostgreSQL: real ones, killed, frozen, absent, behind a proxy that loses answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from tracking_servers import Gate, Postgres, Server, free_port
from written_boards import Board

from noisebench import cli_sync, tracking
from noisebench.config import RULES
from noisebench.errors import UserError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with SQLite for the module; every board in it has a name of its own."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()


@pytest.fixture
def board(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Board:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of the user's
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return Board(tmp_path / "out", name=request.node.name.split("[")[0])


def finished(board: Board, cells: int = 2) -> list[dict[str, Any]]:
    results = [board.cell(seed).train().finish() for seed in range(cells)]
    return sorted(results, key=lambda result: result["fingerprint"])


def sync(board: Board, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """``noisebench sync BOARD --out OUT --json``: its exit code, and what it says of the board."""
    code = 0
    try:
        cli_sync.sync([board.name], board.out, as_json=True)
    except typer.Exit as end:
        code = end.exit_code
    (said,) = json.loads(capsys.readouterr().out)
    return code, said


def senders(*boards: Board) -> list[tracking.SenderProcess]:
    return [tracking.start(board.out, board.name) for board in boards]


# ------------------------------------------------------------------------------------------------ nothing lost


def test_a_server_that_is_killed_and_frozen_in_mid_board_has_every_point_once(server: Server, board: Board) -> None:
    cells = [board.cell(seed) for seed in range(3)]
    (sender,) = senders(board)
    for epoch in range(1, 9):
        for cell in cells:
            cell.train(epoch, epoch)
        if epoch == 2:
            while not board.runs():
                time.sleep(0.1)
            server.kill()
        if epoch == 4:
            server.start()
        if epoch == 6:
            server.signal(signal.SIGSTOP)
        time.sleep(1)
    server.signal(signal.SIGCONT)
    expected = [cell.finish() for cell in cells]
    assert sender.finish() is None
    assert board.faults() == []
    assert tracking.read_results(board.uri, board.name) == sorted(expected, key=lambda r: r["fingerprint"])


def test_a_server_that_is_absent_from_start_to_end_gets_everything_by_sync(
    server: Server, board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        warning = tracking.check_store(board.out, board.name)
        assert warning is not None
        assert "does not answer (Connection refused): training goes on" in warning
        (sender,) = senders(board)
        expected = finished(board)
        assert str(sender.finish()).startswith("2 cells not sent yet: MLflow at http://127.0.0.1:")
        code, said = sync(board, capsys)
        assert (code, said["complete"], said["unsent_cells"]) == (1, False, 2)
    code, said = sync(board, capsys)
    assert (code, said["complete"], said["sent_cells"], said["unsent_cells"]) == (0, True, 2, 0)
    assert board.faults() == []
    assert tracking.read_results(board.uri, board.name) == expected
    assert sync(board, capsys)[1]["said"] == "everything was sent before"


@pytest.mark.parametrize(
    ("lost", "times"), [("runs/create", 3), ("runs/log-batch", 2), ("experiments/create", 1), ("runs/update", 2)]
)
def test_a_lost_answer_doubles_nothing(
    lost: str, times: int, server: Server, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.name += lost.replace("/", "-")
    board.folder = board.out / "boards" / board.name
    expected = finished(board)
    with closing(Gate(server)) as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{gate.address}")
        gate.lose = [lost] * times
        for _ in range(5):
            pending = board.sync()
        assert not pending
        assert gate.lose == []
        assert board.faults() == []
        assert tracking.read_results(board.uri, board.name) == expected


def with_models(board: Board, register_as: str) -> None:
    """Give its finished cells what a model is made of, and ask for its registration."""
    inputs = {"image_shape": [1, 8, 8], "mean": [0.5], "std": [0.5], "num_classes": 10, "num_train": 90}
    for cell in board.cells:
        folder = board.out / cell["folder"]
        config = json.loads((folder / "config.json").read_text())
        config |= {"recipe": {}, "inputs": inputs | {"multilabel": False, "classes": None}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.pt").write_bytes(b"weights")
    described = json.loads((board.folder / "board.json").read_text())
    described["config"] = {"tracking": {"register_as": register_as}}
    (board.folder / "board.json").write_text(json.dumps(described))


def models(board: Board) -> tuple[list[tuple[str, str]], list[str]]:
    """Source and state of each model of the board, and the files of the first; the versions of the registered one."""
    experiment = board.client().get_experiment_by_name(f"noisebench/{board.name}").experiment_id
    found = board.client().search_logged_models([experiment])
    names = {file.path for model in found for file in board.client().list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "requirements.txt", "data"} <= names
    versions = board.client().search_model_versions(f"name = 'registered-{board.name}'")
    return [(model.source_run_id, str(model.status)) for model in found], [str(one.version) for one in versions]


@pytest.mark.parametrize("lost", ["mlflow/logged-models", "log-batch", "model-versions/create"])
def test_a_lost_answer_makes_no_second_model_and_no_second_version(
    lost: str, server: Server, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.name += lost.replace("/", "-")
    board.folder = board.out / "boards" / board.name
    expected = finished(board, 2)
    assert not board.sync()
    board.client()  # the model is all that is lacking now
    with_models(board, f"registered-{board.name}")
    with closing(Gate(server)) as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{gate.address}")
        gate.lose = [lost]
        for _ in range(3):
            pending = board.sync()
        assert not pending
        assert gate.lose == []
        found, versions = models(board)
    assert found == [(found[0][0], "READY")], "one of two seeds"
    assert versions == ["1"]
    assert board.faults() == []
    assert tracking.read_results(board.uri, board.name) == expected


def test_what_a_dead_node_left_is_shown_as_killed_until_it_goes_on(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    left, running = board.cell(0).train(last=3), board.cell(1).train(last=3)
    with FileLock(running.path / "lock"):
        assert sync(board, capsys)[0] == 0
    statuses = [board.run_of(cell).info.status for cell in (left, running)]
    assert statuses == ["KILLED", "RUNNING"]
    assert tracking.read_results(board.uri, board.name) == []
    left.train(first=4)
    assert not board.sync()
    assert board.run_of(left).info.status == "RUNNING"
    expected = left.finish()
    assert sync(board, capsys)[0] == 0
    assert tracking.read_results(board.uri, board.name) == [expected]
    assert [board.run_of(cell).info.status for cell in (left, running)] == ["FINISHED", "KILLED"]
    assert board.faults() == []


def test_sync_leaves_a_board_alone_that_another_process_sends(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    finished(board)
    with FileLock(board.folder / "tracking.lock"):
        code, said = sync(board, capsys)
    assert (code, said["said"]) == (1, "2 cells not sent yet: another process is sending this board")


def test_sync_names_a_board_that_is_not_there(board: Board, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is unknown; did you mean"):
        cli_sync.sync([board.name + "s"], board.out)
    with pytest.raises(UserError, match="there is no board"):
        cli_sync.sync([], tmp_path / "nowhere")


# --------------------------------------------------------------------------------------------- nothing doubled


def test_two_machines_with_copies_of_a_board_make_every_run_once(board: Board, tmp_path: Path) -> None:
    expected = finished(board, 6)
    twin = Board(tmp_path / "twin", board.name)
    shutil.copytree(board.out, twin.out, dirs_exist_ok=True)
    unsent = [sender.finish() for sender in senders(board, twin)]
    assert unsent == [None, None]
    assert board.faults() == []
    assert tracking.read_results(board.uri, board.name) == expected


def test_two_machines_share_a_board_between_them(board: Board, tmp_path: Path) -> None:
    other = Board(tmp_path / "other", board.name)
    mine, theirs = [board.cell(seed).train().finish() for seed in (0, 1)], other.cell(2).train().finish()
    assert [sender.finish() for sender in senders(board, other)] == [None, None]
    assert tracking.read_results(board.uri, board.name) == sorted((*mine, theirs), key=lambda r: r["fingerprint"])
    assert board.faults() == other.faults() == []


def test_a_double_that_another_process_made_goes_and_what_it_held_is_sent_again(board: Board) -> None:
    expected = finished(board, 1)
    assert not board.sync()
    (cell,) = [run for run in board.runs() if run.data.tags["noisebench.kind"] == "cell"]
    while True:  # one whose id comes first, so that ours is the one that goes
        twin = board.client().create_run(cell.info.experiment_id, cell.info.start_time, dict(cell.data.tags))
        if twin.info.run_id < cell.info.run_id:
            break
        board.client().delete_run(twin.info.run_id)
    board.cell(1).train()  # something to send
    assert not board.sync()
    assert board.run_of_seed(0).info.run_id == twin.info.run_id
    assert board.faults() == []
    assert tracking.read_results(board.uri, board.name) == expected


def test_artefacts_go_through_the_server(server: Server, board: Board) -> None:
    noise = board.out / "noise" / "symmetric-abc"
    noise.mkdir(parents=True)
    (noise / "noise.json").write_text("{}")
    cell = board.cell().train()
    cell.put("config.json", cell.base | {"noise_folder": "noise/symmetric-abc"})
    cell.finish()
    (board.folder / "leaderboard.md").write_text("| table |")
    assert not board.sync()
    names = {file.name for file in (server.folder / "artifacts").rglob("*") if file.is_file()}
    assert {"noise.json", "leaderboard.md", "board.json"} <= names
    assert not list(board.out.glob("*mlflow*"))


# ------------------------------------------------------------------------------------------- before the first cell


@pytest.mark.parametrize("how", ["token", "password"])
def test_a_token_or_a_password_from_the_environment(
    how: str, server: Server, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finished(board, 1)
    with closing(Gate(server, token="t0ken", user="ada", password="s3cret")) as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{gate.address}")
        with pytest.raises(UserError, match=r"asks who we are \(401\); set MLFLOW_TRACKING_USERNAME"):
            tracking.check_store(board.out, board.name)
        names = (
            ["MLFLOW_TRACKING_TOKEN"] if how == "token" else ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
        )
        for name in names:
            monkeypatch.setenv(name, "wrong")
        with pytest.raises(UserError, match=rf"refuses .*{names[-1]} \(401\)") as wrong:
            tracking.check_store(board.out, board.name)
        for name, value in zip(names, ["t0ken"] if how == "token" else ["ada", "s3cret"], strict=True):
            monkeypatch.setenv(name, value)
        assert tracking.check_store(board.out, board.name) is None
        assert not board.sync()
        assert board.faults() == []
        assert tracking.read_results(board.uri, board.name) == expected
        assert "wrong'" not in str(wrong.value) or how == "password", "a token is never shown"


def test_a_password_in_the_address_is_never_shown(
    server: Server, board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board.cell().train().finish()
    with closing(Gate(server, user="ada", password="s3c@ret")) as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:s3c%40ret@{gate.address}")
        assert tracking.check_store(board.out, board.name) is None
        code, said = sync(board, capsys)
        assert (code, said["said"]) == (0, f"sent 1 cell to http://{gate.address}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:other@{gate.address}")
        with pytest.raises(UserError) as wrong:
            tracking.check_store(board.out, board.name)
        assert "other" not in str(wrong.value)
        assert "the user 'ada' and the password in MLFLOW_TRACKING_URI" in str(wrong.value)


def test_an_address_that_is_no_mlflow_server(server: Server, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, told in ((f"{server.uri}/elsewhere", "is no MLflow server"), ("http://127.0.0.1:x", "port")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=told):
            tracking.check_store(board.out, board.name)


def test_the_question_before_the_first_cell_imports_no_mlflow(board: Board) -> None:
    code = (
        "import sys; from pathlib import Path; from noisebench import tracking\n"
        f"assert tracking.check_store(Path({str(board.out)!r}), {board.name!r}) is None\n"
        "print(sorted({'mlflow', 'torch', 'requests', 'sqlalchemy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("where", ["server", "file"])
def test_a_board_that_a_newer_version_wrote(where: str, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "file":
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    board.name += where
    board.folder = board.out / "boards" / board.name
    board.cell().train().finish()
    assert not board.sync()
    assert tracking.check_store(board.out, board.name) is None
    board.cells[0]["rules"] = RULES + 1
    board.write()
    with pytest.raises(UserError, match=f"board.json was written under rules {RULES + 1}, and this noisebench has"):
        tracking.check_store(board.out, board.name)
    board.cell(1).train()
    assert not board.sync()
    board.cells = []
    board.write()
    for read in (
        lambda: tracking.check_store(board.out, board.name),
        lambda: tracking.read_results(board.uri, board.name),
    ):
        with pytest.raises(UserError, match=f"under rules {RULES + 1}, and this noisebench has {RULES}: update"):
            read()


# ------------------------------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed (noisebench[postgres])")
    if reason := Postgres.missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="noisebench-postgres-"))
    folder.chmod(0o755)  # for the cluster's own user
    postgres = Postgres(folder / "cluster").start()
    yield postgres
    postgres.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_two_senders_set_up_an_empty_postgresql_and_make_every_run_once(
    postgres: Postgres, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.create("direct"))
    assert tracking.check_store(board.out, board.name) is None
    expected = finished(board)
    with_models(board, f"registered-{board.name}")
    twin = Board(tmp_path / "twin", board.name)
    shutil.copytree(board.out, twin.out, dirs_exist_ok=True)
    assert [sender.finish() for sender in senders(board, twin)] == [None, None]
    assert board.faults() == []
    found, versions = models(board)
    assert (len(found), len(versions)) == (1, 1)
    assert tracking.read_results(board.uri, board.name) == expected
    for cell in board.cells:  # every point once more, as after a lost acknowledgement
        next((board.out / cell["folder"]).glob("sent-*.json")).unlink()
    monkeypatch.setattr(tracking.StoredRun, "of", classmethod(_forgetful(tracking.StoredRun.of)))
    assert not board.sync()
    assert board.faults() == [], "the same stamp twice is one point"


def _forgetful(of: Any) -> Any:
    def known(cls: type, run: Any) -> tracking.StoredRun:
        stored: tracking.StoredRun = of(run)
        stored.steps.clear()
        return stored

    return known


def test_a_server_before_postgresql(
    postgres: Postgres, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tracking.with_driver(postgres.create("behind"))
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, store)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.start().uri)
        expected = finished(board)
        assert not board.sync()
        assert board.faults() == []
        assert tracking.read_results(board.uri, board.name) == expected
    finally:
        server.stop()


def test_what_is_wrong_with_a_database_is_said_before_the_first_cell(
    postgres: Postgres, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(uri: str) -> str | None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return tracking.check_store(board.out, board.name)

    with pytest.raises(UserError, match="password authentication failed") as wrong:
        check(postgres.uri("postgres", "wr0ng"))
    assert "wr0ng" not in str(wrong.value)
    with pytest.raises(UserError, match='database "nowhere" does not exist'):
        check(postgres.uri("nowhere"))
    assert "does not answer" in str(check(f"postgresql://mlflow:right@127.0.0.1:{free_port()}/x"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'noisebench\[postgres\]'"):
        check(postgres.uri("postgres"))
