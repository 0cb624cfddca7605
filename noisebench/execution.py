"""How and where the cells of a board run: what a benchmark says under ``execution:``. None of it alters a result."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from noisebench._models import Model
from noisebench.errors import unknown

EXECUTORS = {
    "local": "noisebench.local_executor:LocalExecutor",
    "slurm": "noisebench.slurm_executor:SlurmExecutor",
    "ray": "noisebench.ray_executor:RayExecutor",
}
"""Names to classes; one is imported when it is used, since its engine may not be installed."""


class Slurm(Model):
    """What Slurm is asked for, beside the CPUs and GPUs of a cell.

    Attributes:
        minutes: of an array task; one that needs more is requeued and goes on.
        memory_gb: of a cell, over all of its processes; None for the partition's default.
        nodes: over which the processes of a cell are spread evenly.
        parallel: array tasks that may run at once.
        cells_per_job: that one array task runs, one after the other.
        requeues: after time-outs; preemption does not count.
        options: further options of sbatch, without their dashes, e.g. {"reservation": "mine"}.
        setup: lines of shell before Python starts, e.g. "module load cuda".
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = Field(default=240, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    nodes: int = Field(default=1, ge=1)
    parallel: int = Field(default=256, ge=1)
    cells_per_job: int = Field(default=1, ge=1)
    requeues: int = Field(default=10, ge=0)
    options: dict[str, Any] = Field(default={})
    setup: tuple[str, ...] = ()


class Ray(Model):
    """Which Ray cluster.

    Attributes:
        address: None starts one on this machine for the time of the board; "auto" takes the one that runs here;
            else host:port, or ray://host:port.
        retries: of a cell whose worker or node was lost.
    """

    address: str | None = None
    retries: int = Field(default=3, ge=0)


class Execution(Model):
    """How and where cells run.

    Attributes:
        executor: one of `EXECUTORS`.
        gpus: of each process of a cell; of a fraction several cells share a GPU: 0.25 is four. None: `local` takes one
            where the machine has any, the others none.
        cpus: of each process of a cell; recipe.threads by default.
    """

    executor: str = "local"
    gpus: float | None = Field(default=None, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    slurm: Slurm = Slurm()
    ray: Ray = Ray()

    @field_validator("executor")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in EXECUTORS:
            raise unknown("executor", name, EXECUTORS)
        return name

    @field_validator("gpus")
    @classmethod
    def _whole_or_share(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g}; give a whole number, or a share of one GPU below 1")
        return gpus
