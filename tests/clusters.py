"""A Slurm cluster of its own for a test, on loopback: as fixtures in test files that import them from here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm_single_node.sh"
T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


@dataclass
class SlurmCluster:
    """A cluster of one node with two CPUs, in a folder, and SLURM_CONF set to it."""

    folder: Path

    def pid(self, daemon: str) -> int:
        """The process of munged, slurmctld or slurmd."""
        return int((self.folder / f"{daemon}.pid").read_text())

    def kill(self, daemon: str) -> None:
        """SIGKILL."""
        pid = self.pid(daemon)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))

    def start(self, daemon: str, before: str = "") -> None:
        """Start a daemon that was killed, after some shell in a namespace of mounts of its own."""
        command = [daemon, "-N", "localhost"] if daemon == "slurmd" else [daemon]
        if before:
            command = ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "_", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ready = {"idle", "mixed", "allocated"} if daemon == "slurmd" else None
        until(lambda: (state := self.node()) and (not ready or state in ready))

    def node(self) -> str:
        """The node's state, or "" where no controller answers."""
        return said("sinfo", "--noheader", "--partition=low", "--Format=StateLong")

    def queue(self, what: str = "%i") -> list[str]:
        """A line for each job that waits or runs."""
        return said("squeue", "--noheader", "--array", "-o", what).split()


def said(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def alive(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(true: Callable[[], T], seconds: float = 300) -> T:
    """Wait for something that must come, and what it was."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def free_ports() -> int:
    """A port that is free, and so is the one above."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster for one test; skips with the reason where Slurm cannot run."""
    with running_slurm(monkeypatch) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slurm_to_ask() -> Iterator[SlurmCluster]:
    """A cluster for tests that leave it as it is; skips with the reason where Slurm cannot run."""
    with pytest.MonkeyPatch.context() as patch, running_slurm(patch) as cluster:
        yield cluster


@contextmanager
def running_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster that runs meanwhile."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge): no Slurm here")
    if os.geteuid() != 0:
        pytest.skip("not root: slurmd cannot start jobs")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets in it: pytest's own folders have too long a path
    started = subprocess.run(
        [SCRIPT, "start", folder, str(free_ports()), "2"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if started.returncode in (2, 3):
        shutil.rmtree(folder)
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        yield SlurmCluster(folder)
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)
