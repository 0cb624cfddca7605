"""The machine that a run was made on: for its record, no part of its result."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RECORDED = ("noisebench", "torch", "torchvision", "numpy")
"""The packages whose versions a run names."""


def hardware(device: torch.device) -> str:
    """What computes: the name of the GPU, or of the CPU with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = os.cpu_count() or 1
    return f"{name}, {cores} core{'s' * (cores > 1)}"


def versions() -> dict[str, str]:
    """Python's version and those of `RECORDED`."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def forget_peak(device: torch.device) -> None:
    """Count `peak_memory_mb` from now on, where the system lets us (on a GPU, and under Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory at once in 10^6 bytes: of torch on a GPU, else of this process; None where nobody tells."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return round(int(kib) * 1024 / 1e6, 1)
    return None
