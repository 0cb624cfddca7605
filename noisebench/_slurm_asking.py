"""What Slurm's own commands are asked, and how their answers are read."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from noisebench.errors import UserError, unknown

NOT_SHARED, NO_DATA = 97, 98
"""What a job ends with that does not find our folder, or the datasets, on its node."""

DEAD = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
DEAD |= {"REVOKED", "TIMEOUT"}
COLUMNS = {"JobArrayID": 32, "State": 24, "exit_code": 12, "NodeList": 200, "Reason": 64}


class State(NamedTuple):
    """What squeue knows of a job that waits, runs, or ended within the last minutes."""

    name: str
    code: int = 0
    nodes: str = ""
    why: str = ""

    @property
    def live(self) -> bool:
        """Whether it waits or runs; one that Slurm holds because its node could not start it never will."""
        return self.name not in DEAD and "launch failed" not in self.why.replace("_", " ")

    @property
    def not_shared(self) -> bool:
        """Whether it did not find our folder: it said so itself, or Slurm could not open its log (signal 53)."""
        return self.name == "FAILED" and (self.code >> 8 == NOT_SHARED or self.code & 0x7F == 53)

    @property
    def without_data(self) -> bool:
        """Whether it did not find the folder of datasets."""
        return self.name == "FAILED" and self.code >> 8 == NO_DATA


def squeue(name: str) -> list[str]:
    """The command that lists all jobs of a name, and what ended within the last minutes, as `read_states` reads it."""
    columns = ",".join(f"{column}:{width}" for column, width in COLUMNS.items())
    return ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--Format", columns]


def read_states(text: str) -> dict[str, State]:
    """Job ("12" or "12_3") -> its state, from what `squeue` answered."""
    found = {}
    for line in text.splitlines():
        values, start = [], 0
        for width in COLUMNS.values():
            values.append(line[start : start + width].strip())
            start += width
        job, name, code, nodes, why = values
        if job:
            found[job] = State(name, int(code) if code.isdigit() else 0, nodes, why)
    return found


class Partition(NamedTuple):
    """A partition's name, the longest time of a job in minutes, and one kind of its nodes."""

    name: str
    default: bool
    minutes: float
    cpus: str
    memory_mb: str
    gres: str

    @property
    def nodes(self) -> str:
        """What a node of it has, in words."""
        gpus = "no GPU" if "gpu:" not in self.gres else self.gres.split("(")[0]
        return f"{self.cpus} CPUs, {self.memory_mb} MB, {gpus}"


def partitions() -> list[Partition]:
    """The partitions, once for each kind of node.

    Raises:
        UserError: the controller does not answer.
    """
    with outside_of_jobs():
        answer = subprocess.run(["sinfo", "--noheader", "-o", "%P|%l|%c|%m|%G"], capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"executor slurm: the controller (slurmctld) does not answer: {one_line(answer.stderr)}")
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 4]
    return [Partition(name.rstrip("*"), name.endswith("*"), minutes(limit), *rest) for name, limit, *rest in rows]


def named(asked: str | None, known: list[Partition]) -> list[Partition]:
    """Those of the partitions that are asked for (several with commas between them), or the default.

    Raises:
        UserError: there is no such partition.
    """
    names = asked.split(",") if asked else [one.name for one in known if one.default]
    for name in names:
        if name not in {one.name for one in known}:
            raise unknown("execution.slurm.partition", name, {one.name for one in known})
    return [one for one in known if one.name in names]


def minutes(limit: str) -> float:
    """Minutes of a time limit as sinfo writes it: d-hh:mm:ss, hh:mm:ss, mm:ss, or "infinite"."""
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"\d+(:\d+){1,2}", clock):
        return float("inf")
    parts = [int(part) for part in clock.split(":")]
    hours, mins, seconds = parts if len(parts) == 3 else [0, *parts]
    return (int(days or 0) * 24 + hours) * 60 + mins + seconds / 60


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that we may be in, which sbatch would take for wishes, and without MLflow's.

    A job's environment is kept by Slurm, and nothing in a job sends to MLflow: no password belongs there.
    """
    ranks = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "MLFLOW_")
    hidden = {k: v for k, v in os.environ.items() if k in ranks or (k.startswith(prefixes) and k != "SLURM_CONF")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def one_line(text: str) -> str:
    """What a command said, in one line without the command's name before each."""
    lines = [re.sub(r"^(sbatch|sinfo|squeue|slurm_\w+): (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(line for line in lines if line)[:500]
