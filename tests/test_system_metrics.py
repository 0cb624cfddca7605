"""Samples of the machine beside a run's metrics: taken, appended, and never in the way."""

from __future__ import annotations

import json
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from noisebench.system_metrics import FILE, Sampler, sampling

ALWAYS = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_cpu_utilization_percentage",
    "system/process_memory_usage_megabytes",
}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_a_run_shorter_than_the_interval_has_one_sample_at_its_end(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    with sampling(tmp_path):
        assert not (tmp_path / FILE).exists()
    (line,) = lines_of(tmp_path)
    assert line["metrics"].keys() >= ALWAYS
    assert line["metrics"]["system/process_memory_usage_megabytes"] > 1


def test_samples_are_taken_meanwhile_and_end_with_the_run_even_by_an_error(tmp_path: Path) -> None:
    pytest.importorskip("psutil")

    def run() -> None:
        with sampling(tmp_path, seconds=0.01):
            while not (tmp_path / FILE).exists() or (tmp_path / FILE).read_bytes().count(b"\n") < 3:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    times = [line["time"] for line in lines_of(tmp_path)]
    assert times == sorted(times)
    assert "system metrics" not in [thread.name for thread in threading.enumerate()]


def test_a_line_that_a_kill_tore_is_ended_before_the_next(tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    (tmp_path / FILE).write_text('{"time": 1, "metr')
    with sampling(tmp_path):
        pass
    torn, whole = (tmp_path / FILE).read_text().splitlines()
    assert torn == '{"time": 1, "metr'
    assert json.loads(whole)["metrics"].keys() >= ALWAYS


def test_a_folder_that_is_gone_and_a_machine_that_tells_nothing_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sampling(tmp_path / "gone", seconds=0.01):
        pass
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with sampling(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_hangs_and_a_system_without_threads_keep_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, begun = threading.Event(), threading.Event()

    def sample(self: Sampler) -> dict[str, float]:
        begun.set()
        hangs.wait()
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", sample)
        patch.setattr("noisebench.system_metrics.PATIENCE", 0.01)
        with sampling(tmp_path, seconds=0.01):
            begun.wait()
    hangs.set()

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with sampling(tmp_path):
        pass


class Nvml(types.ModuleType):
    """Four GPUs as nvidia-ml-py tells of them; the third tells no power."""

    NVMLError = RuntimeError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: 4
        self.nvmlDeviceGetHandleByIndex = lambda at: at
        self.nvmlDeviceGetHandleByUUID = lambda name: {"GPU-b": 1}[name]
        self.nvmlDeviceGetMemoryInfo = lambda at: types.SimpleNamespace(used=1e9 * (at + 1), total=8e9)
        self.nvmlDeviceGetUtilizationRates = lambda at: types.SimpleNamespace(gpu=10 * at)
        self.nvmlDeviceGetEnforcedPowerLimit = lambda at: 400_000

    def nvmlDeviceGetPowerUsage(self, at: int) -> int:
        if at == 2:
            raise self.NVMLError("not supported")
        return 100_000


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, [0, 1, 2, 3]), ("2", [2]), ("3,0", [3, 0]), ("GPU-b", [1]), ("", []), ("1,-1,2", [1])],
)
def test_gpus_are_those_that_the_process_may_use(
    visible: str | None, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sample = {k: v for k, v in Sampler().sample().items() if k.startswith("system/gpu_")}
    expected: dict[str, float] = {}
    for place, gpu in enumerate(gpus):
        of = f"system/gpu_{place}"
        expected |= {f"{of}_utilization_percentage": 10 * gpu, f"{of}_memory_usage_megabytes": 1000 * (gpu + 1)}
        expected |= {f"{of}_memory_usage_percentage": 12.5 * (gpu + 1)}
        if gpu != 2:
            expected |= {f"{of}_power_usage_watts": 100, f"{of}_power_usage_percentage": 25}
    assert sample == expected
