"""Cells on a real Ray cluster of this machine, started by scripts/ray_local.sh."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from clusters import alive, until

from noisebench import ray_executor
from noisebench.cell import run_cell
from noisebench.config import Cell, load_benchmark
from noisebench.errors import UserError
from noisebench.execution import Execution, Ray
from noisebench.executors import Place
from noisebench.files import read_json

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: noisebench[ray]")

SCRIPT = Path(__file__).parents[1] / "scripts" / "ray_local.sh"
CELLS = [
    "datasets=[shapes]",
    "recipe.epochs=2",
    "methods=[ce, gce]",
    "seeds=[0, 1]",
    "noise=[{kind: symmetric, rate: 0.4}]",
]
LONG = [
    "datasets=[shapes]",
    "recipe.epochs=30",
    "recipe.checkpoint_seconds=0.01",
    "methods=[ce]",
    "seeds=[0]",
    CELLS[-1],
]
DRIVER = """
import json, sys
from pathlib import Path
from noisebench.config import load_benchmark
from noisebench.errors import UserError
from noisebench.execution import Execution, Ray
from noisebench.executors import Place, run_cells

out, address, settings = sys.argv[1:]
execution = Execution(executor="ray", ray=Ray(address=address))
try:
    list(run_cells(load_benchmark("digits", json.loads(settings)).cells(), Place(Path(out), execution=execution)))
except UserError as error:
    sys.exit(str(error))
"""


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def place(out: Path, address: str | None, **settings: Any) -> Place:
    retries = settings.pop("retries", 3)
    execution = Execution(executor="ray", ray=Ray(address=address, retries=retries), **settings)
    return Place(out, accelerator="auto" if settings.get("gpus") else "cpu", execution=execution)


def cells_of(settings: list[str]) -> list[Cell]:
    return load_benchmark("digits", settings).cells()


def worker_of(folder: Path) -> int:
    """The process that last began or took up the run in this folder, once it has written a checkpoint."""
    with suppress(OSError):
        begun = [
            line for line in (folder / "log.txt").read_text().splitlines() if line.endswith(")") and "process" in line
        ]
        pid = int(begun[-1].rpartition(" ")[2].rstrip(")"))
        return pid if alive(pid) and (folder / "checkpoint.pt").exists() else 0
    return 0


def listeners(session: int) -> list[str]:
    """Local addresses, in hexadecimal, at which processes of a session take connections."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for file in (process / "fd").iterdir() if os.getsid(int(process.name)) == session else ():
                with suppress(OSError):  # closed since it was listed: the others count all the same
                    sockets.add(str(file.readlink()))
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Of the cluster: short, since there are sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="nbr-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """The address of a cluster with four CPUs and a GPU, as it is told; its token is the test's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
        patch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
        started = script("start", "--cpus", "4", "--gpus", "1", "--port", str(port), "--folder", str(folder))
        assert started.returncode == 0, started.stderr
        assert f"--set execution.ray.address=127.0.0.1:{port}" in started.stdout
        yield f"127.0.0.1:{port}"
        assert script("stop", "--folder", str(folder)).returncode == 0


@pytest.fixture(scope="class")
def connected(cluster: str) -> Iterator[str]:
    """The address of the cluster, and a connection that executors use: a new one means new processes there."""
    executor = ray_executor.RayExecutor()
    with tempfile.TemporaryDirectory() as out:
        executor.check(place(Path(out), cluster), cells_of(CELLS))
    yield cluster
    executor._disconnect()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, one_picture: None) -> Path:
    """The folder of the same cells where nothing was in their way."""
    out = tmp_path_factory.mktemp("undisturbed")
    for cell in [*cells_of(CELLS), *cells_of(LONG)]:
        assert run_cell(cell, out, accelerator="cpu")["status"] == "finished"
    return out


@pytest.fixture
def out(done: Path, tmp_path: Path) -> Path:
    """A folder for runs that has their noise: workers take long to draw it."""
    shutil.copytree(done / "noise", tmp_path / "noise")
    return tmp_path


def learned(cell: Cell, out: Path) -> str:
    """The checksum of a finished cell's weights."""
    found = read_json(out / cell.folder() / "result.json")
    assert found is not None
    return str(found["weights_sha256"])


# ----------------------------------------------------------------------------------------- scripts/ray_local.sh


def test_the_cluster_listens_on_loopback_alone(cluster: str, folder: Path) -> None:
    found = listeners(int((folder / "session").read_text()))
    port = f"{int(cluster.rpartition(':')[2]):04X}"
    assert any(address.endswith(f":{port}") for address in found)
    assert all(address.startswith(("0100007F:", "0000000000000000FFFF00000100007F:")) for address in found)


def test_the_script_knows_its_own_cluster_alone(cluster: str, folder: Path) -> None:
    assert script("status", "--folder", str(folder)).stdout.startswith(f"runs on {cluster}")
    again = script("start", "--folder", str(folder))
    assert (again.returncode, "runs already" in again.stderr) == (1, True)
    assert script("stop", "--folder", f"{folder}-other").stdout == f"no cluster of {folder}-other runs\n"
    assert script("status", "--folder", f"{folder}-other").returncode == 1
    assert script("begin").returncode == 2
    assert script("status", "--folder", str(folder)).returncode == 0


# ------------------------------------------------------------------------------------------------------- cells


class TestCells:
    """Over one connection, but for the driver that is killed."""

    def test_a_board_is_that_of_the_local_executor(self, connected: str, done: Path, out: Path) -> None:
        cells, ended, ticks = cells_of(CELLS), [], []
        further = [[cells[0]], []]  # asked after every result, as tuning is; a finished cell is only read
        executor = ray_executor.RayExecutor()
        executor.check(place(out, connected), cells)
        results = executor(
            cells, place(out, connected), 2, lambda: ticks.append(1), lambda: further.pop() if further else []
        )
        for cell, result in results:
            assert result["weights_sha256"] == learned(cell, done)
            ended.append(cell)
        assert sorted(map(repr, ended)) == sorted(map(repr, [*cells, cells[0]]))
        assert ticks
        assert not list(out.glob(".shared-*"))

    def test_a_cell_whose_worker_is_killed_goes_on(self, connected: str, done: Path, out: Path) -> None:
        (cell,) = cells_of(LONG)
        killed: list[int] = []

        def kill() -> None:
            pid = worker_of(out / cell.folder())
            if pid and not killed:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        ((_, result),) = list(ray_executor.RayExecutor()([cell], place(out, connected), None, kill, list))
        assert killed
        assert "resumed after epoch" in (out / cell.folder() / "log.txt").read_text()
        assert result["weights_sha256"] == learned(cell, done)

    def test_a_driver_that_is_stopped_or_killed_leaves_nothing_running(
        self, connected: str, done: Path, out: Path
    ) -> None:
        (cell,) = cells_of(LONG)
        run = out / cell.folder()
        workers: list[int] = []

        def interrupt() -> None:
            if pid := worker_of(run):
                workers.append(pid)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(ray_executor.RayExecutor()([cell], place(out, connected), None, interrupt, list))
        until(lambda: not alive(workers[0]))

        driver = subprocess.Popen([sys.executable, "-c", DRIVER, out, connected, json.dumps(LONG)])
        workers.append(until(lambda: worker_of(run)))
        driver.kill()
        driver.wait()
        until(lambda: not alive(workers[1]))

        ((_, result),) = list(ray_executor.RayExecutor()([cell], place(out, connected), None, lambda: None, list))
        assert (run / "log.txt").read_text().count("resumed after epoch") == 2
        assert result["weights_sha256"] == learned(cell, done)

    def test_cells_share_a_gpu(self, connected: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def work(cell: Cell, place: Place) -> dict[str, Any]:
            import os
            import time

            import ray

            began = time.time()
            time.sleep(0.3)
            assigned = ray.get_runtime_context().get_assigned_resources()
            return {"at": (began, time.time()), "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "assigned": assigned}

        monkeypatch.setattr(ray_executor, "_work", work)
        cells = cells_of([*CELLS, "seeds=[0, 1, 2]"])
        executor, half = ray_executor.RayExecutor(), place(out, connected, gpus=0.5)
        executor.check(half, cells)
        results = [result for _, result in executor(cells, half, None, lambda: None, list)]
        assert len(results) == 6
        for result in results:
            assert (result["gpu"], result["assigned"]) == ("0", {"CPU": 1, "GPU": 0.5})
            assert sum(other["at"][0] <= result["at"][0] < other["at"][1] for other in results) <= 2

    def test_a_cell_that_keeps_dying_fails_with_the_reason(
        self, connected: str, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def work(cell: Cell, place: Place) -> dict[str, Any]:
            import os

            if cell.seed == 0:
                os.kill(os.getpid(), 9)
            return {"status": "finished"}

        monkeypatch.setattr(ray_executor, "_work", work)
        once = place(out, connected, retries=1)
        cells = cells_of([*CELLS, "methods=[ce]"])
        results = {c.seed: result for c, result in ray_executor.RayExecutor()(cells, once, None, lambda: None, list)}
        assert results[1] == {"status": "finished"}
        assert results[0]["status"] == "failed"
        assert results[0]["reason"] == "its worker process died 2 times (out of memory? see dmesg of the node)"
        assert capfd.readouterr() == ("", "")


def test_a_cluster_of_its_own_ends_with_the_board(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(ray_executor, "_work", lambda cell, place: {"cluster": cell.seed})
    cells, before = cells_of([*CELLS, "methods=[ce]"]), listeners(os.getsid(0))
    executor = ray_executor.RayExecutor()
    executor.check(place(tmp_path, None), cells)
    with closing(executor(cells, place(tmp_path, None), 2, lambda: None, list)) as results:
        assert next(results)[1] == {"cluster": next(results)[1]["cluster"] ^ 1}
        opened = set(listeners(os.getsid(0))) - set(before)
        logs = Path(executor._folder.name)  # type: ignore[union-attr]
        assert logs.exists()
        assert opened
        assert all(address.startswith(("0100007F:", "0000000000000000FFFF00000100007F:")) for address in opened)
    assert not logs.exists()
    until(lambda: set(listeners(os.getsid(0))) <= set(before))


# --------------------------------------------------------------------------------------------------- bad input


def refusal(where: Place, settings: list[str] = CELLS) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        ray_executor.RayExecutor().check(where, cells_of(settings))
    assert time.monotonic() - began < 30, "Ray itself would try for two minutes"
    assert not list(where.out.iterdir())
    return str(error.value)


def test_an_address_where_no_ray_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(10)

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        found = refusal(place(tmp_path, f"127.0.0.1:{port}"))
        thread.join()
    assert found == f"execution.ray.address: '127.0.0.1:{port}': what answers there is not Ray"
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        found = refusal(place(tmp_path, address))
        assert found == f"execution.ray.address: '{address}': nothing answers there (Connection refused)"
    for address in ("127.0.0.1", "http://127.0.0.1:6379", "host:port"):
        found = refusal(place(tmp_path, address))
        assert found == f"execution.ray.address: '{address}': give host:port, ray://host:port or auto"


def test_more_than_any_node_has(cluster: str, tmp_path: Path) -> None:
    found = refusal(place(tmp_path, cluster, gpus=2))
    assert found == "execution.gpus: 2: no node of the Ray cluster has more than 1 GPUs"
    found = refusal(place(tmp_path, cluster, cpus=3), [*CELLS, "recipe.ranks=2"])
    assert found == "execution.cpus: 3 for each of 2 ranks: no node of the Ray cluster has more than 4 CPUs"


def test_another_ray_on_the_cluster(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "1.2.3")
    found = refusal(place(tmp_path, cluster))
    assert "the cluster has another Ray or Python than Ray 1.2.3 and Python 3." in found
    assert "\n" not in found


def test_a_token_that_is_missing(cluster: str, tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", DRIVER, tmp_path, cluster, json.dumps(CELLS)]
    done = subprocess.run(command, env=without | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
    assert "the cluster wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_a_node_does_not_see(cluster: str, tmp_path: Path) -> None:
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    mounted = [*alone, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("mounts of its own are not allowed: every folder is shared here")
    command = [*mounted, sys.executable, "-c", DRIVER, str(tmp_path), cluster, json.dumps(CELLS)]
    done = subprocess.run(command, capture_output=True, text=True)
    node = f"node {socket.gethostname()} (127.0.0.1) of Ray"
    assert f"{node}: it does not see {tmp_path}, or another one: give an --out that all nodes share" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ray_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(place(tmp_path, None)) == "executor ray needs Ray; pip install 'noisebench[ray]'"
