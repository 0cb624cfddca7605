"""Cells on a real Slurm: the same bits as here through preemption and kills of daemons and drivers; what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import SCRIPT, SlurmCluster, alive, said, slurm, slurm_to_ask, until
from filelock import FileLock

from noisebench import _slurm_asking as asking
from noisebench import _slurm_job as slurm_job
from noisebench import slurm_executor
from noisebench.cell import run_cell
from noisebench.config import Cell, build
from noisebench.errors import UserError
from noisebench.execution import Execution
from noisebench.executors import Place, run_cells
from noisebench.files import read_json

__all__ = ["slurm", "slurm_to_ask"]  # the fixtures

pytestmark = pytest.mark.usefixtures("one_picture")


def cell_of(method: str = "ce", **recipe: Any) -> Cell:
    short = {"epochs": 60, "batch_size": 64, "lr": 0.05, "train_size": 200, "checkpoint_seconds": 0}
    noise = {"kind": "symmetric", "rate": 0.4}
    made: Cell = build(
        Cell, {"method": method, "dataset": "shapes", "noise": noise, "seed": 0, "recipe": short | recipe}, "test"
    )
    return made


CELLS = [cell_of("ce"), cell_of("elr")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder where `CELLS` ran in this process."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'noisebench[slurm]'")
    out = tmp_path_factory.mktemp("undisturbed")
    for cell in CELLS:
        assert run_cell(cell, out, accelerator="cpu")["status"] == "finished"
    return out


@pytest.fixture
def out(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with the noise drawn, for a driver that is quick to look."""
    monkeypatch.setattr(slurm_executor, "POLL", 0.3)
    monkeypatch.setattr(slurm_executor, "GRACE", 2.0)
    shutil.copytree(undisturbed / "noise", tmp_path / "out" / "noise")
    return tmp_path / "out"


def place_of(out: Path, gpus: float | None = None, **slurm: Any) -> Place:
    return Place(out, execution=Execution(executor="slurm", gpus=gpus, slurm={"minutes": 30} | slurm))


def run(place: Place, cells: list[Cell] = CELLS, idle: Callable[[], None] = lambda: None) -> dict[str, dict[str, Any]]:
    """Method -> result."""
    with closing(run_cells(cells, place, idle=idle)) as results:
        return {cell.method.name: result for cell, result in results}


def record(cell: Cell, out: Path) -> tuple[str, list[Any]]:
    """What a cell learned, and its metrics without what a clock gives."""
    lines = (out / cell.folder() / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line)["metrics"].items() if k != "seconds"} for line in lines]
    return json.loads((out / cell.folder() / "result.json").read_text())["weights_sha256"], metrics


def log_of(cell: Cell, out: Path) -> str:
    file = out / cell.folder() / "log.txt"
    return file.read_text() if file.exists() else ""


def epochs(cell: Cell, out: Path) -> int:
    file = out / cell.folder() / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def job_of(cell: Cell, out: Path) -> str:
    return str((read_json(out / cell.folder() / "slurm.json") or {}).get("job"))


def jobs(*which: str) -> int:
    """How many there have been."""
    return len(said("squeue", "--noheader", "--array", "--states=all", "-o", "%i", *which).split())


def left_over(out: Path) -> list[str]:
    """What the executor left beside the token."""
    return sorted(path.name for path in (out / "slurm").iterdir() if not path.name.startswith("token"))


class AtEpoch:
    """Does something once, when a cell has recorded its third epoch."""

    def __init__(self, cell: Cell, out: Path, act: Callable[[], object]) -> None:
        self.cell, self.out, self.act, self.done = cell, out, act, False

    def __call__(self) -> None:
        if not self.done and epochs(self.cell, self.out) >= 3:
            self.done = True
            self.act()


# --------------------------------------------------------------------------------------------- to the same end


def test_a_preempted_job_of_several_cells_gives_the_same_bits_and_leaves_no_files(
    slurm: SlurmCluster, out: Path, undisturbed: Path
) -> None:
    """Slurm itself stops it, in its second cell, for a job of partition high that needs both CPUs."""
    subprocess.run(["scontrol", "update", "partition=low", "GraceTime=0"], check=True)
    high = ["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap", "sleep 1"]
    preempted = AtEpoch(CELLS[1], out, lambda: said(*high))
    assert {r["status"] for r in run(place_of(out, cells_per_job=2), idle=preempted).values()} == {"finished"}
    assert [record(cell, out) for cell in CELLS] == [record(cell, undisturbed) for cell in CELLS]
    assert jobs("--partition=low") == 1  # requeued, not placed again
    assert [log_of(cell, out).count("resumed after epoch") for cell in CELLS] == [0, 1]
    assert left_over(out) == []


DRIVER = """
import pickle, sys
from noisebench.executors import run_cells
for cell, result in run_cells(*pickle.loads(sys.stdin.buffer.read())): pass
"""


def test_another_driver_takes_over_after_a_requeue_and_kills_of_driver_and_daemons(
    slurm: SlurmCluster, out: Path, undisturbed: Path
) -> None:
    """By the signal that comes before the time limit, on which submitit requeues the job."""
    cell, place = CELLS[0], place_of(out)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE)
    assert driver.stdin is not None
    with driver.stdin as stdin:
        stdin.write(pickle.dumps(([cell], place)))
    until(lambda: epochs(cell, out) >= 3)
    said("scancel", "--signal=USR2", job_of(cell, out))
    until(lambda: "resumed after epoch" in log_of(cell, out))
    driver.kill()
    driver.wait()
    slurm.kill("slurmd")
    slurm.kill("slurmctld")
    looks: list[bool] = []

    def idle() -> None:
        looks.append(True)
        if len(looks) == 5:  # it waits for a controller that does not answer
            slurm.start("slurmctld")
            slurm.start("slurmd")

    with closing(slurm_executor.SlurmExecutor()([cell], place, None, idle)) as results:
        assert [result["status"] for _, result in results] == ["finished"]
    assert record(cell, out) == record(cell, undisturbed)
    assert jobs() == 1
    assert log_of(cell, out).count("started (") == 1
    assert log_of(cell, out).count("resumed after epoch") == 1
    assert left_over(out) == []


# --------------------------------------------------------------------------------------------- not to an end


class Enough(Exception):
    """Of a user."""


def test_a_held_cell_is_said_to_be_held_and_closing_cancels_what_waits_and_what_runs(
    slurm: SlurmCluster, out: Path
) -> None:
    def stop() -> None:
        raise Enough

    conf = slurm.folder / "slurm.conf"
    conf.write_text(conf.read_text().replace("KillWait=5\n", "KillWait=600\n"))
    said("scontrol", "reconfigure")
    held, running, *waiting = [*reversed(CELLS), cell_of("ce", epochs=61), cell_of("ce", epochs=62)]
    (out / held.folder()).mkdir(parents=True)
    place, idle = place_of(out, parallel=1, cells_per_job=2), AtEpoch(running, out, stop)
    found = []
    with (
        FileLock(out / held.folder() / "lock"),
        closing(run_cells([held, running, *waiting], place, idle=idle)) as results,
        pytest.raises(Enough),
    ):
        found.extend((cell, result["status"]) for cell, result in results)
    until(lambda: slurm.queue() == [])  # they end by themselves: Slurm would kill after ten minutes
    assert said("squeue", "--noheader", "--states=all", "--array", "-o", "%T").split() == ["CANCELLED"] * 2
    assert found == [(held, "held")]
    assert (out / running.folder() / "checkpoint.pt").exists()
    assert not (out / running.folder() / "result.json").exists()
    assert left_over(out) == []


def test_a_job_that_vanishes_is_placed_again_and_then_given_up(slurm: SlurmCluster, out: Path) -> None:
    place = place_of(out, setup=("echo the disk is gone", "exit 3"))
    result = run(place, CELLS[:1])["ce"]
    assert result["status"] == "failed"
    assert result["reason"] == ("its Slurm job ended 3 times without a result: FAILED, last words: the disk is gone")
    assert said("squeue", "--noheader", "--states=all", "-o", "%T").split() == ["FAILED"] * 3
    assert left_over(out) == []


def test_a_folder_that_the_node_does_not_share_ends_the_board(slurm: SlurmCluster, out: Path) -> None:
    """The node has an empty folder there, in which Slurm cannot even open the job's log."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces of mounts here")
    slurm.kill("slurmd")
    slurm.start("slurmd", before=f"mount -t tmpfs none {out}")
    with pytest.raises(
        UserError, match=r"out/slurm on node localhost is not the folder of that name here; give an --out"
    ):
        run(place_of(out))
    assert slurm.queue() == []


def test_a_folder_of_the_same_name_with_another_token_ends_the_board(slurm: SlurmCluster, out: Path) -> None:
    def idle() -> None:
        (out / "slurm" / "token").write_text("of another folder")

    with pytest.raises(UserError, match="is not the folder of that name here"):
        run(place_of(out), idle=idle)


# --------------------------------------------------------------------------------------------- refused at once


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"partition": "hihg"}, "execution.slurm.partition 'hihg' is unknown; did you mean high?"),
        (
            {"memory_gb": 1e6},
            "sbatch refuses it: .* is not available; asked were 1 CPUs, 0 GPUs, 1000000.0 GB on 1 node",
        ),
        ({"gpus": 8}, "asked were 1 CPUs, 8 GPUs, .* a node has 2 CPUs, .* MB, "),
        ({"gpus": 0.5}, "execution.gpus: 0.5: Slurm gives whole GPUs"),
        ({"nodes": 2}, r"execution.slurm.nodes: 1 processes \(recipe.ranks\) on 2 nodes"),
        ({"minutes": 61}, "execution.slurm.minutes: 61; this partition allows at most 60"),
        ({"options": {"reservatoin": "mine"}}, "sbatch refuses it: .*unrecognized option '--reservatoin=mine'"),
        ({"options": {"open-mode": "truncate"}}, "execution.slurm.options: 'open_mode' is set by noisebench"),
    ],
)
def test_what_slurm_cannot_give_is_refused(
    slurm_to_ask: SlurmCluster, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    pytest.importorskip("submitit")
    said("scontrol", "update", "partition=low", "MaxTime=60")
    with pytest.raises(UserError, match=message):
        run_cells(CELLS, place_of(tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()
    assert slurm_to_ask.queue() == []


def test_a_controller_that_does_not_answer_is_named(slurm: SlurmCluster, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm.kill("slurmctld")
    with pytest.raises(UserError, match=r"the controller .* does not answer: .*Unable to contact"):
        run_cells(CELLS, place_of(tmp_path / "out"))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"executor slurm needs submitit; pip install 'noisebench\[slurm\]'"):
        run_cells(CELLS, place_of(tmp_path))
    monkeypatch.setitem(sys.modules, "submitit", object())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor slurm: no command sbatch"):
        run_cells(CELLS, place_of(tmp_path))


# --------------------------------------------------------------------------------------------- the parts


def test_states_are_read_from_fixed_columns() -> None:
    row = ("12_3", "PENDING", "0", "", "Nodes required for job are DOWN")
    other = ("13", "FAILED", str(97 << 8), "node[1-2]", "NonZeroExitCode")
    text = "\n".join(
        "".join(value.ljust(width) for value, width in zip(values, asking.COLUMNS.values(), strict=True))
        for values in (row, other)
    )
    states = asking.read_states(text)
    assert states["12_3"] == asking.State("PENDING", 0, "", "Nodes required for job are DOWN")
    assert (states["12_3"].live, states["12_3"].not_shared) == (True, False)
    assert (states["13"].live, states["13"].not_shared) == (False, True)
    assert not asking.State("PENDING", why="launch failed requeued held").live


@pytest.mark.parametrize(
    ("limit", "minutes"), [("infinite", float("inf")), ("30:00", 30), ("1:30:00", 90), ("2-00:00:00", 2880)]
)
def test_time_limits_are_read(limit: str, minutes: float) -> None:
    assert asking.minutes(limit) == minutes


def test_a_job_inherits_neither_an_outer_job_nor_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "MLFLOW_TRACKING_PASSWORD", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    with asking.outside_of_jobs():
        assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= os.environ.keys()
        assert not {"SLURM_JOB_ID", "MLFLOW_TRACKING_PASSWORD", "WORLD_SIZE"} & os.environ.keys()
    assert os.environ["SLURM_JOB_ID"] == "1"


@pytest.mark.parametrize(
    "said", ["Job violates accounting/QOS policy (job submit limit, ...)", "Invalid job array specification"]
)
def test_an_array_that_slurm_does_not_take_whole_is_placed_in_parts(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Batch:
        def submit_array(self, tasks: list[Any]) -> list[SimpleNamespace]:
            sizes.append(len(tasks))
            if len(tasks) > 3:
                raise RuntimeError(f"sbatch: error: Batch job submission failed: {said}")
            return [SimpleNamespace(job_id=f"{len(sizes)}_{i}") for i in range(len(tasks))]

    monkeypatch.setattr(slurm_executor.job, "batch", lambda *_: Batch())
    queue = slurm_executor._Queue(place_of(tmp_path), 256, lambda: None)
    left = [cell_of("ce", epochs=epochs) for epochs in range(1, 9)]
    for _ in range(3):
        left = queue.place_all(left)
    assert left == []
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert len(queue.tasks) == 8


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_jobs_are_placed_comes_after_them_and_is_not_lost(
    stop: signal.Signals,
) -> None:
    placed: list[bool] = []

    def place() -> None:
        with slurm_executor._uninterrupted():
            signal.raise_signal(stop)
            placed.append(True)
            raise RuntimeError("sbatch refuses")

    # As the command has them: a shell may have started us in the background, where Ctrl-C is ignored.
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            place()
        assert placed
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize(
    ("gpus", "options", "found"),
    [(None, {}, "cpu"), (1, {}, "auto"), (None, {"gres": "shard:1"}, "auto"), (None, {"gpus-per-task": 1}, "auto")],
)
def test_a_job_computes_on_a_gpu_if_it_asked_for_one_or_a_share(
    gpus: float | None, options: dict[str, Any], found: str
) -> None:
    assert slurm_job.accelerator(place_of(Path(), gpus, options=options)) == found


# --------------------------------------------------------------------------------------------- the script


def listening(pids: list[int]) -> set[str]:
    """The addresses that processes listen on, as /proc/net has them."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                inodes.add(str(fd.readlink())[8:-1])
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_the_cluster_listens_on_loopback_only_and_ends_with_its_jobs(slurm: SlurmCluster) -> None:
    said("sbatch", "--output=/dev/null", "--wrap", "srun sleep 100")
    until(lambda: said("squeue", "--noheader", "--steps", "-o", "%i").count(".") >= 1)
    pids = [slurm.pid(daemon) for daemon in ("munged", "slurmctld", "slurmd")]
    steps = [int(pid) for pid in said("pgrep", "-f", "slurmstepd|srun").split() if ours(int(pid), slurm)]
    assert listening([*pids, *steps]) == {"0100007F"}
    assert said(str(SCRIPT), "start", str(slurm.folder)) == f"export SLURM_CONF='{slurm.folder}/slurm.conf'"
    assert [slurm.pid(daemon) for daemon in ("munged", "slurmctld", "slurmd")] == pids
    subprocess.run([SCRIPT, "stop", slurm.folder], check=True)
    assert not any(alive(pid) for pid in [*pids, *steps])


def ours(pid: int, slurm: SlurmCluster) -> bool:
    try:
        return str(slurm.folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def test_the_script_says_which_packages_it_needs(tmp_path: Path) -> None:
    bash = shutil.which("bash") or "bash"
    for tool in ("env", "nproc"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    environment = {"PATH": str(tmp_path), "HOME": "/"}
    found = subprocess.run([bash, SCRIPT, "start", tmp_path / "c"], env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    message = "not installed: munged slurmctld slurmd sbatch; install them with: apt-get install slurm-wlm munge"
    assert message in found.stderr
