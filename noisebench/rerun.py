"""The commands that make a board and its cells again. Imports no torch and no MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from noisebench.errors import UserError
from noisebench.files import write_text

FILE = "benchmark.yaml"
"""In the folder of a board that is not, or no longer, a shipped one: the board as it was run."""

_NO_RESULT = ("execution", "tracking")


def is_shipped(config: Mapping[str, Any]) -> bool:
    """Whether the benchmark that board.json holds is the shipped one of its name, unchanged."""
    from noisebench import registry
    from noisebench.config import load_benchmark

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in _NO_RESULT}

    name = config.get("name")
    with suppress(UserError):
        if name in registry.benchmarks():
            return plain(load_benchmark(str(name)).model_dump(mode="json")) == plain(config)
    return False


def board_command(config: Mapping[str, Any], folder: Path) -> str:
    """The command that makes a board again.

    Args:
        config: the benchmark, as board.json holds it.
        folder: of the board; `FILE` is written there where the command names it.
    """
    if is_shipped(config):
        return f"noisebench leaderboard {config['name']}"
    from noisebench.reading import to_yaml

    file, text = folder / FILE, to_yaml(_readable(config))
    if not (file.exists() and file.read_text(encoding="utf-8") == text):
        write_text(file, text)
    return f"noisebench leaderboard {shlex.quote(str(file))}"


def _readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without a paper's figures where it lacks some of their rows or columns: a file may not."""
    from noisebench.config import Benchmark

    found = dict(config)
    try:
        Benchmark.model_validate(found)
    except ValueError:  # pydantic's is one
        found.pop("published", None)
    return found


def cell_command(command: str, label: str, method: str, seed: int) -> str:
    """The command that makes one row of a board again with one seed, given the board's own."""
    row = method if "," in label else label  # --methods takes rows by commas
    return f"{command} --methods {shlex.quote(row)} --seeds {seed}"
