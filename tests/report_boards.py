"""Boards as their cells write them, without any training, for reports: every file that a report reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from noisebench import noise
from noisebench.config import Benchmark, Cell, build

Change = Callable[[Cell, dict[str, Any]], dict[str, Any] | None]
"""What becomes of a cell's result: another one, or None for a cell that has not run."""
CLASSES = 10


def benchmark(**changes: Any) -> Benchmark:
    """A small board of three methods, with what is to be otherwise."""
    data: dict[str, Any] = {
        "name": "small",
        "title": "A small board",
        "description": "Written, not trained.",
        "datasets": ["digits"],
        "noise": [
            {"kind": "none"},
            {"kind": "symmetric", "rate": 0.2, "include_true": False},
            {"kind": "symmetric", "rate": 0.4, "include_true": False},
            {"kind": "pairflip", "rate": 0.3},
        ],
        "seeds": [0, 1],
        "methods": ["ce", "gce", "elr"],
        "recipe": {"backbone": "small_cnn", "epochs": 4, "validation": 0.1},
    }
    made: Benchmark = build(Benchmark, data | changes, "small.yaml")
    return made


def write_board(board: Benchmark, out: Path, change: Change | None = None, score: str = "accuracy") -> None:
    """The run folders of a board and its noise; `change` sees each result before it is written."""
    artefacts: dict[str, tuple[str, str]] = {}
    for cell in board.cells():
        result: dict[str, Any] | None = finished(cell, score)
        if change is not None and result is not None:
            result = change(cell, result)
        if result is None:
            continue
        folder = out / cell.folder()
        folder.mkdir(parents=True)
        if cell.noise_key() not in artefacts:
            artefacts[cell.noise_key()] = _write_noise(cell, out)
        place, digest = artefacts[cell.noise_key()]
        config = cell.identity() | {"noise_folder": place, "noise_sha256": digest, "hparams": {}}
        (folder / "config.json").write_text(json.dumps(config))
        if result["status"] == "failed":
            (folder / "failure.json").write_text(json.dumps(result))
            continue
        lines = [{"epoch": i, "time": i, "metrics": m} for i, m in enumerate(result.pop("lines"), 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "result.json").write_text(json.dumps(result))


def failed(cell: Cell, reason: str) -> dict[str, Any]:
    """The failure of a cell."""
    return cell.identity() | {"status": "failed", "privileged": [], "reason": reason}


def finished(cell: Cell, score: str = "accuracy") -> dict[str, Any]:
    """A finished cell's result, and under "lines" the metrics of its epochs."""
    draw = random.Random(cell.fingerprint())
    level = 0.9 - 0.3 * (cell.noise.rate or 0.0) - 0.02 * len(cell.method.label)
    lines = []
    for epoch in range(1, cell.recipe.epochs + 1):
        reached = level * (1 - 0.6**epoch) + 0.01 * draw.random()
        lines.append(
            {
                f"test.{score}": reached,
                "test.nll": 2 - reached,
                "test.ece": 0.1 * draw.random(),
                f"val.{score}": reached,
                "train.memorised": 0.5 * epoch / cell.recipe.epochs * draw.random(),
                "seconds": 0.5,
            }
        )
    names = {f"test.{score}": score, "test.nll": "nll", "test.ece": "ece", "train.memorised": "memorised"}
    last = {short: lines[-1][name] for name, short in names.items()} | {"epoch": cell.recipe.epochs}
    shares = [(i + 0.5) / 15 for i in range(15)]
    return cell.identity() | {
        "status": "finished",
        "privileged": [],
        "noise_sha256": "ab" * 32,
        "weights_sha256": "cd" * 32,
        "device": "cpu",
        "seconds": 10 + draw.random(),
        "epochs": cell.recipe.epochs,
        "metrics": {"last": last, "selected": last, "best": last},
        "calibration": {
            "count": [0, *(10 * i for i in range(1, 15))],
            "confidence": [None, *shares[1:]],
            "accuracy": [None, *(0.9 * share for share in shares[1:])],
        },
        "peak_memory_mb": 100 + draw.random(),
        "hardware": "a machine of tests",
        "versions": {"noisebench": "0.1.0", "torch": "2.11"},
        "lines": lines,
    }


def _write_noise(cell: Cell, out: Path) -> tuple[str, str]:
    """The noise artefact of a cell: its folder and the SHA-256 of its labels."""
    place = f"noise/{cell.noise_key()[:12]}"
    labels = np.arange(200) % CLASSES
    if cell.noise.kind == "real":  # nobody knows the clean labels
        facts = {"kind": "real", "rate": None, "expected_rate": None, "realised_rate": None, "options": {}}
        facts |= {"seed": cell.seed, "num_samples": len(labels), "sha256": "ef" * 32}
        (out / place).mkdir(parents=True)
        (out / place / "noise.json").write_text(json.dumps(facts))
        return place, "ef" * 32
    made = noise.inject(labels, cell.noise.kind, cell.noise.rate, num_classes=10, seed=cell.seed, **cell.noise.options)
    noise.save(made, out / place)
    return place, made.sha256
