"""Which of the processes of a run this one is, and Fabric for it: one alone, started here, by torchrun or by srun."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Literal

import lightning_fabric
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from noisebench.config import Recipe
from noisebench.errors import UserError

PATIENCE = timedelta(hours=24)
"""How long a rank waits for another that lives: the first may be downloading. One that dies is noticed at once."""


@dataclass(frozen=True)
class Seat:
    """Which of the processes of a run this one is.

    Attributes:
        rank: 0 .. ranks - 1; the first writes.
        local_rank: among the `local_ranks` on this machine, which is the `node`-th.
        by: who started the processes: "noisebench", "torchrun" or "srun".
        address, port: where they meet; or, on one machine, the path `meeting`, so that nothing listens for others.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    node: int = 0
    by: str = ""
    address: str = "127.0.0.1"
    port: int = 0
    meeting: str = ""


_taken: list[Seat] = []


def take(seat: Seat) -> None:
    """Let this process, which `launching` started, be one of several."""
    _taken[:] = [seat]


def seat_for(ranks: int) -> Seat | None:
    """The seat of this process in a run of so many; None where nobody started the others yet.

    Raises:
        UserError: torchrun or srun started another number of processes.
    """
    found = _seat()
    if found is None:
        return Seat() if ranks == 1 else None
    if found.ranks != ranks:
        raise UserError(
            f"recipe.ranks: {ranks}, and {found.by} started {found.ranks} processes; set recipe.ranks={found.ranks}, "
            f"or start {ranks}"
        )
    return found


def is_first() -> bool:
    """Whether this process speaks for all: it is the first of several, or the only one."""
    found = _seat()
    return found is None or found.rank == 0


def is_restarted() -> bool:
    """Whether the process that started the ranks starts them again when one is lost: `launching` does."""
    return bool(_taken)


def _seat() -> Seat | None:
    return _taken[0] if _taken else seat_in(os.environ)


def seat_in(environment: Mapping[str, str]) -> Seat | None:
    """The seat that torchrun or srun gave; None where there is one process alone."""
    env = environment
    if "TORCHELASTIC_RUN_ID" in env and int(env.get("WORLD_SIZE", "1")) > 1:
        rank, ranks, local, here, node = (
            int(env[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        )
        return Seat(rank, ranks, local, here, node, "torchrun", env["MASTER_ADDR"], int(env["MASTER_PORT"]))
    # Not SLURM_NTASKS: a batch script has it too, and is one process.
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        node = int(env["SLURM_NODEID"])
        nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "127.0.0.1"))
        address = env.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
        port = 15000 + (7 * int(env["SLURM_JOB_ID"]) + int(env.get("SLURM_STEP_ID", "0"))) % 15000
        ranks, here = int(env["SLURM_STEP_NUM_TASKS"]), _tasks(env["SLURM_STEP_TASKS_PER_NODE"])[node]
        local, port = int(env["SLURM_LOCALID"]), int(env.get("MASTER_PORT", port))
        return Seat(int(env["SLURM_PROCID"]), ranks, local, here, node, "srun", address, port)
    return None


def _tasks(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


class _Environment(ClusterEnvironment):
    """A seat as Fabric wants it; without one Fabric guesses, by SLURM_NTASKS among other things."""

    def __init__(self, seat: Seat, device: int) -> None:
        super().__init__()
        self._seat, self._device = seat, device

    @property
    def creates_processes_externally(self) -> bool:
        """They are all there."""
        return True

    @property
    def main_address(self) -> str:
        """Where they meet."""
        return self._seat.address

    @property
    def main_port(self) -> int:
        """Where they meet."""
        return self._seat.port

    @staticmethod
    def detect() -> bool:
        """Never found, always given."""
        return False

    def world_size(self) -> int:
        """All processes."""
        return self._seat.ranks

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """Among all."""
        return self._seat.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """Which of the devices that this process sees is its own."""
        return self._device

    def node_rank(self) -> int:
        """Of this machine."""
        return self._seat.node


def make_fabric(recipe: Recipe, accelerator: str = "auto", seat: Seat | None = None) -> lightning_fabric.Fabric:
    """Fabric for one process: device and precision; threads pinned, since bits depend on their number.

    Raises:
        UserError: no such device, or less GPUs on this machine than ranks.
    """
    seat = seat or Seat()
    torch.set_num_threads(recipe.threads)
    if torch.cuda.is_available():  # the same seed gives the same weights there too, and 32-true is not TF32
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
    own = seat.by == "srun" and torch.cuda.device_count() == 1  # Slurm shows each task its own GPU alone
    devices = 1 if own else seat.local_ranks
    if not own:
        check_devices(seat.local_ranks, accelerator)
    if seat.ranks > 1 and accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if seat.ranks == 1:
            return _alone(accelerator, recipe.precision)
        return lightning_fabric.Fabric(
            accelerator=accelerator,
            strategy=DDPStrategy(timeout=PATIENCE),
            devices=devices,
            num_nodes=max(1, seat.ranks // seat.local_ranks),
            precision=recipe.precision,
            plugins=[_Environment(seat, 0 if own else seat.local_rank)],
        )
    except Exception as error:
        raise UserError(f"device '{accelerator}' cannot be used: {error}".splitlines()[0]) from error


@cache
def _alone(accelerator: str, precision: Literal["32-true", "bf16-mixed"]) -> lightning_fabric.Fabric:
    """For a process of its own. Kept, since each looks through all that is installed for callbacks: 26 ms a cell."""
    return lightning_fabric.Fabric(
        accelerator=accelerator, devices=1, precision=precision, plugins=[_Environment(Seat(), 0)]
    )


def check_devices(ranks: int, accelerator: str) -> None:
    """Refuse more ranks on this machine than it has GPUs for them, where they run on GPUs.

    Raises:
        UserError: with both numbers.
    """
    gpus = torch.cuda.device_count() if accelerator in ("auto", "cuda", "gpu") else 0
    if ranks > 1 and gpus and ranks > gpus:
        raise UserError(f"recipe.ranks: {ranks} on this machine need a GPU each, and {gpus} can be seen; give {gpus}")
