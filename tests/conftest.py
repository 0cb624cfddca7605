"""Shared by all tests: the same random examples, one thread (its number decides bits), no colours, no MLflow URI."""

from __future__ import annotations

import os

os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.pop("MLFLOW_TRACKING_URI", None)

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("same", derandomize=True, database=None)  # the same examples in every run
hypothesis.settings.load_profile("same")
torch.set_num_threads(1)


@pytest.fixture
def data_root() -> str:
    """The folder of real datasets; skips with the reason where there is none."""
    root = os.environ.get("NOISEBENCH_DATA")
    if not root:
        pytest.skip("NOISEBENCH_DATA is not set: no real datasets here")
    return root
