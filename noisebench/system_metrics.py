"""CPU, memory and GPUs while a run trains, as lines beside its metrics; the sender shows them in MLflow.

Nothing here imports torch or MLflow, and nothing of it can change a result or end a run: a sample that cannot be taken
or written is left out.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FILE = "system.jsonl"
"""One line a sample: {"time": ms, "metrics": {"system/cpu_utilization_percentage": ...}}."""

PATIENCE = 5
"""Seconds that a run waits at its end for a sample that is being taken."""


@contextmanager
def sampling(folder: Path, seconds: float = 10) -> Iterator[None]:
    """Append a sample to `FILE` in `folder` every so many seconds, and one at the end, from a thread of its own.

    The names are MLflow's own (``system/...``), which its page "System metrics" looks for: the CPUs and the memory of
    the machine, its GPUs where nvidia-ml-py is installed; and CPU and memory of this process.
    """
    ended, sampler = threading.Event(), Sampler()

    def sample_until_the_end() -> None:
        while not ended.wait(seconds):
            sampler.append_to(folder / FILE)

    thread = threading.Thread(target=sample_until_the_end, name="system metrics", daemon=True)
    with suppress(RuntimeError):  # no more threads for this user: the sample at the end is left
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join(timeout=PATIENCE)
        if not thread.is_alive():  # a driver that hangs must not keep the run
            sampler.append_to(folder / FILE)


class Sampler:
    """Takes samples; what the machine does not tell is left out of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._psutil: Any = None
        self._process: Any = None
        self._gpus: list[Callable[[], dict[str, float]]] = []
        with suppress(Exception):  # not installed, or no /proc
            import psutil

            self._psutil, self._process = psutil, psutil.Process()
            psutil.cpu_percent()  # shares are of the time since the call before
            self._process.cpu_percent()
        with suppress(Exception):  # not installed, no driver or no GPU
            self._gpus = _gpus()

    def sample(self) -> dict[str, float]:
        """What there is now, percent and megabytes (10^6 bytes); a process may use more than 100% of one CPU."""
        found: dict[str, float] = {}
        for read in (self._machine, *self._gpus):
            with suppress(Exception):
                found |= read()
        return {f"system/{name}": round(value, 1) for name, value in found.items()}

    def append_to(self, file: Path) -> None:
        """Append one line; a line that a kill tore is ended first, so that no two of them become one."""
        with self._lock, suppress(OSError):
            metrics = self.sample()
            if not metrics:
                return
            line = json.dumps({"time": int(time.time() * 1000), "metrics": metrics}).encode() + b"\n"
            with file.open("ab+") as handle:
                if handle.seek(0, os.SEEK_END):
                    handle.seek(-1, os.SEEK_END)
                    line = line if handle.read(1) == b"\n" else b"\n" + line
                handle.write(line)

    def _machine(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_utilization_percentage": self._process.cpu_percent(),
            "process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
        }


def _gpus() -> list[Callable[[], dict[str, float]]]:
    """A reader for each GPU that this process may use."""
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    return [_reader(nvml, at, handle) for at, handle in enumerate(_visible(nvml))]


def _visible(nvml: Any) -> list[Any]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order: a cell that has one of eight shows that one."""
    count, asked = nvml.nvmlDeviceGetCount(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(count)]
    found = []
    for name in filter(None, map(str.strip, asked.split(","))):
        by_index = name.isdecimal() and int(name) < count
        if not by_index and not name.startswith("GPU-"):  # as CUDA does: the first wrong one ends the list
            break
        found.append(nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name))
    return found


def _reader(nvml: Any, at: int, handle: Any) -> Callable[[], dict[str, float]]:
    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        with suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found["memory_usage_percentage"] = 100 * memory.used / memory.total
            found["memory_usage_megabytes"] = memory.used / 1e6
        with suppress(nvml.NVMLError):
            found["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        with suppress(nvml.NVMLError):
            watts, most = nvml.nvmlDeviceGetPowerUsage(handle), nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
            found["power_usage_watts"] = watts / 1000
            found["power_usage_percentage"] = 100 * watts / most
        return {f"gpu_{at}_{name}": value for name, value in found.items()}

    return read
