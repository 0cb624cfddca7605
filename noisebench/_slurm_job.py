"""What a Slurm job of ours asks for and what it does."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from noisebench._slurm_asking import NO_DATA, NOT_SHARED
from noisebench.config import Cell
from noisebench.errors import UserError
from noisebench.executors import Place
from noisebench.files import read_json, write_json

if TYPE_CHECKING:
    import submitit

OURS = {"array", "chdir", "error", "job_name", "open_mode", "output", "parsable", "requeue", "signal", "test_only"}
"""Options of sbatch that we set, or that would break what we read."""

SHARES = ("shard", "mps")
"""Parts of a GPU, as Slurm's `gres` names them."""


class Size(NamedTuple):
    """What decides the resources of a cell's job."""

    ranks: int
    threads: int


class SlurmJob:
    """Cells, one after the other, in each process of a job. Pickled into the output folder, and read there by the job.

    submitit calls `checkpoint` before the time limit, and on preemption where the cluster sends a signal, and requeues
    the job; one that Slurm itself requeues begins with the same pickle. Either way `run_cell` resumes.
    """

    def __init__(self, cells: tuple[Cell, ...], place: Place) -> None:
        self.cells, self.place = cells, place

    def checkpoint(self) -> Any:
        """The same again: the run folders know how far each cell got."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        """Run the cells; what became of each stands in its run folder."""
        from submitit import JobEnvironment

        from noisebench.cell import run_cell

        job = JobEnvironment()
        signal.signal(signal.SIGTERM, _leave)
        if job.global_rank == 0:  # of a kill while submitit wrote it: submitit would stumble over it
            Path(f"{job.paths.submitted_pickle}.save_tmp").unlink(missing_ok=True)
        slurm, place = self.place.execution.slurm, self.place
        for cell in self.cells:
            folder = place.out / cell.folder()
            if job.num_tasks == 1 and (folder / "failure.json").exists():
                continue  # it failed in this job, before it was requeued
            result = run_cell(cell, place.out, place.data_root, place.download, accelerator(place))
            if job.global_rank == 0 and result["status"] == "held":
                record = read_json(folder / "slurm.json") or {}  # it may be the record of the job that is at it
                write_json(folder / "slurm.json", record | {"held": result["reason"], "by": job.job_id})
            elif job.global_rank == 0 and "timed-out too many times" in result.get("reason", ""):
                times = f"ran out of its {slurm.minutes} minutes {slurm.requeues + 1} times"
                reason = f"{times}; raise execution.slurm.minutes or .requeues, and it goes on from there"
                write_json(folder / "failure.json", result | {"reason": reason})


def _leave(*_: Any) -> None:
    """On SIGTERM end at once if the job is cancelled or requeued already, not only when Slurm kills it.

    Within the grace of a preemption the job still counts as running, and would count as completed if it ended.
    """
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    try:
        state = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return
    if state not in ("", "RUNNING"):
        os._exit(128 + signal.SIGTERM)


def accelerator(place: Place) -> str:
    """On what a cell computes: a job that asked for no GPU leaves alone those that it may see."""
    asked = place.execution.gpus or any(word in str(place.execution.slurm.options) for word in ("gpu", *SHARES))
    return "cpu" if place.accelerator == "auto" and not asked else place.accelerator


def size_of(cell: Cell, place: Place) -> Size:
    """What the cell needs."""
    return Size(cell.recipe.ranks, place.execution.cpus or cell.recipe.threads)


def check_size(place: Place, size: Size) -> None:
    """Refuse what no cluster can give.

    Raises:
        UserError: the key, its value, what would be right.
    """
    slurm, gpus = place.execution.slurm, place.execution.gpus
    if size.ranks % slurm.nodes:
        raise UserError(
            f"execution.slurm.nodes: {size.ranks} processes (recipe.ranks) on {slurm.nodes} nodes; give a divisor"
        )
    shares = any(word in str(slurm.options) for word in SHARES)
    if gpus and gpus < 1 and not shares:
        raise UserError(
            f"execution.gpus: {gpus:g}: Slurm gives whole GPUs; give 1, or a share as the cluster names it, such as "
            "execution.slurm.options={gres: shard:1}"
        )
    ours = sorted(OURS & {name.replace("-", "_") for name in slurm.options})
    if ours:
        raise UserError(f"execution.slurm.options: '{ours[0]}' is set by noisebench; leave it out")


def gpus_of_node(place: Place, size: Size) -> int:
    """GPUs on each node of a cell's job: its processes see all of them and take one or more each."""
    return int(place.execution.gpus or 0) * size.ranks // place.execution.slurm.nodes


def job_name(token: str) -> str:
    """The name of every job of an output folder."""
    return f"noisebench-{token[:12]}"


def batch(place: Place, folder: Path, size: Size, parallel: int, token: str) -> submitit.SlurmExecutor:
    """The executor of submitit that places jobs of this size, which write their logs into `folder`."""
    import submitit

    slurm, cpus = place.execution.slurm, size.threads
    executor = submitit.SlurmExecutor(folder, max_num_timeout=slurm.requeues)
    options = {name.replace("-", "_"): value for name, value in slurm.options.items()}
    executor.update_parameters(
        job_name=job_name(token),
        partition=slurm.partition,
        account=slurm.account,
        qos=slurm.qos,
        constraint=slurm.constraint,
        time=slurm.minutes,
        nodes=slurm.nodes,
        ntasks_per_node=size.ranks // slurm.nodes,
        cpus_per_task=cpus,
        gpus_per_node=gpus_of_node(place, size) or None,
        mem=f"{math.ceil(slurm.memory_gb * 1024 / slurm.nodes)}M" if slurm.memory_gb else None,
        signal_delay_s=min(90, slurm.minutes * 15),
        array_parallelism=parallel,
        stderr_to_stdout=True,
        setup=[*slurm.setup, *_before_python(place, token)],
        srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],  # srun does not take the CPUs over from sbatch
        additional_parameters={"requeue": True} | {k: v for k, v in options.items() if v not in (None, False)},
    )
    return executor


def _before_python(place: Place, token: str) -> list[str]:
    """Shell: end where our folder is not the driver's, and find this noisebench, which may not be installed."""
    same = f'[ "$(cat {shlex.quote(str(place.out / "slurm" / "token"))})" = {token} ]'
    if place.execution.slurm.nodes > 1:
        same = f"srun --ntasks-per-node=1 --ntasks=$SLURM_JOB_NUM_NODES sh -c {shlex.quote(same)}"
    lines = [f"{same} || exit {NOT_SHARED}"]
    if place.data_root is not None and place.data_root.is_dir():
        lines.append(f"[ -d {shlex.quote(str(place.data_root))} ] || exit {NO_DATA}")
    source = Path(__file__).parents[1]
    if str(source) in [str(Path(entry).absolute()) for entry in sys.path] and "-packages" not in source.name:
        lines.append(f'export PYTHONPATH={shlex.quote(str(source))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return lines
