"""Shared by all tests: the same random examples, one thread (its number decides bits), no colours, no MLflow URI."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.pop("MLFLOW_TRACKING_URI", None)

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("same", derandomize=True, database=None)  # the same examples in every run
hypothesis.settings.load_profile("same")
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look for garbage among it takes a second, and libraries ask for that often."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """What is frozen, C++ bindings would call leaked at the end."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def one_picture() -> Iterator[None]:
    """Every drawing of a T is a copy of the module's first: one takes several times as long as a small cell's training.

    Workers, which are processes of their own, draw each.
    """
    from noisebench import noise

    real, first = noise.draw_transition, b""

    def draw(asked: Any, realised: Any, path: Path, *names: Any) -> None:
        nonlocal first
        if first:
            path.write_bytes(first)
        else:
            real(asked, realised, path, *names)
            first = path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "draw_transition", draw)
        yield


@pytest.fixture(scope="session")  # read before a test of the command line unsets it
def data_root() -> str:
    """The folder of real datasets; skips with the reason where there is none."""
    root = os.environ.get("NOISEBENCH_DATA")
    if not root:
        pytest.skip("NOISEBENCH_DATA is not set: no real datasets here")
    return root
