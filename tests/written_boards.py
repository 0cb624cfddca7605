"""Run folders as cells write them, without any training."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from noisebench import tracking

EPOCHS = 5


class Board:
    """Run folders as cells write them, without any training."""

    def __init__(self, out: Path, name: str = "digits") -> None:
        self.out, self.name = out, name
        self.folder = out / "boards" / name
        self.cells: list[dict[str, Any]] = []
        self.write()

    @property
    def uri(self) -> str:
        return tracking.store_uri(self.out)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        board = {"name": self.name, "title": "Digits", "description": "about", "config": {}, "cells": self.cells}
        (self.folder / "board.json").write_text(json.dumps(board))

    def cell(self, seed: int = 0, method: str = "gce") -> Cell:
        cell = Cell(self, method, seed)
        self.cells.append(cell.base | {"folder": str(cell.path.relative_to(self.out))})
        self.write()
        return cell

    def sync(self) -> tracking.Pending:
        """A sync as a newly started process would make it."""
        sender = tracking.Sender(self.uri, self.out, self.name)
        try:
            return sender.sync()
        finally:
            sender.close()

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=tracking.with_driver(self.uri))

    def runs(self) -> list[Any]:
        experiment = self.client().get_experiment_by_name(f"noisebench/{self.name}")
        return list(self.client().search_runs([experiment.experiment_id])) if experiment else []

    def run_of(self, cell: Cell) -> Any:
        return self.run_of_seed(cell.base["seed"])

    def run_of_seed(self, seed: int) -> Any:
        (known,) = [cell["fingerprint"] for cell in self.cells if cell["seed"] == seed]
        (run,) = [r for r in self.runs() if r.data.tags.get("noisebench.fingerprint") == known]
        return run

    def faults(self) -> list[str]:
        """Whatever is not in the store exactly once: runs of an attempt, the board's own, points of a metric."""
        found, runs = [], self.runs()
        if Counter(run.data.tags["noisebench.kind"] for run in runs)["board"] != 1:
            found.append("not one run of the board")
        for one in self.cells:
            mine = [run for run in runs if run.data.tags.get("noisebench.fingerprint") == one["fingerprint"]]
            if len(mine) != 1:
                found.append(f"seed {one['seed']}: {len(mine)} runs")
                continue
            lines = [json.loads(x) for x in (self.out / one["folder"] / "metrics.jsonl").read_text().splitlines()]
            for key in lines[0]["metrics"]:
                history = self.client().get_metric_history(mine[0].info.run_id, key)
                there = sorted((point.step, point.timestamp, point.value) for point in history)
                if there != [(line["epoch"], line["time"], line["metrics"][key]) for line in lines]:
                    found.append(f"seed {one['seed']}: {key}: {len(there)} points of {len(lines)} lines")
        return found

    def points(self, cell: Cell, key: str) -> list[tuple[int, float]]:
        history = self.client().get_metric_history(self.run_of(cell).info.run_id, key)
        return sorted((point.step, point.value) for point in history)


class Cell:
    def __init__(self, board: Board, method: str, seed: int) -> None:
        fingerprint = hashlib.sha256(f"{method} {seed}".encode()).hexdigest()
        self.base = {
            "fingerprint": fingerprint,
            "method": method,
            "label": f"{method} (q = 0.7)",
            "dataset": "digits",
            "noise": "symmetric 40% (excl. true)",
            "seed": seed,
            "rules": 1,
        }
        self.path = board.out / "runs" / f"{method}-digits-s{seed}-{fingerprint[:12]}"
        self.random = random.Random(fingerprint)
        self.start()

    def start(self, clock: int = 1_700_000_000_000) -> Cell:
        self.clock = clock
        self.path.mkdir(parents=True, exist_ok=True)
        self.put("config.json", self.base | {"hparams": {"q": 0.7}, "noise": {"kind": "symmetric", "rate": 0.4}})
        return self

    def put(self, name: str, value: dict[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(value))

    def line(self, epoch: int) -> str:
        metrics = {"test.accuracy": self.random.random(), "train.loss": self.random.random(), "seconds": 0.25}
        return json.dumps({"epoch": epoch, "time": self.clock + 1000 * epoch, "metrics": metrics}) + "\n"

    def train(self, first: int = 1, last: int = EPOCHS) -> Cell:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.writelines(self.line(epoch) for epoch in range(first, last + 1))
        return self

    def finish(self, **changes: Any) -> dict[str, Any]:
        def numbers(epoch: int) -> dict[str, float]:
            return {"epoch": epoch} | {k: self.random.random() * 3 for k in ("accuracy", "nll", "ece", "memorised")}

        result = self.base | {
            "status": "finished",
            "privileged": ["transition"],
            "noise_sha256": "ab" * 32,
            "weights_sha256": "cd" * 32,
            "exact": True,
            "seconds": self.random.random() * 100,
            "epochs": EPOCHS,
            "metrics": {"last": numbers(EPOCHS), "selected": numbers(3), "best": numbers(2)},
        }
        result |= changes
        self.put("result.json", result)
        return result

    def fail(self, reason: str) -> dict[str, Any]:
        failure = self.base | {"status": "failed", "privileged": [], "reason": reason}
        self.put("failure.json", failure)
        return failure

    def forget(self) -> None:
        """Lose the acknowledgement, as a kill between sending and acknowledging does."""
        for file in self.path.glob("sent-*.json"):
            file.unlink()
