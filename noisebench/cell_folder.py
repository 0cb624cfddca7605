"""The run folder as the journal of a run: the truth for resuming.

Every file in it is either appended to line by line (metrics.jsonl, log.txt) or written aside and renamed, so that
whatever moment a kill picks, the next start finds something whole.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from noisebench.errors import TrainingFailed
from noisebench.metrics import SCORES
from noisebench.shared_folder import Differs
from noisebench.system_metrics import FILE as SYSTEM_FILE

BEGUN, DAMAGED = "started", "damaged: "
"""What lines of log.txt begin with: of a run that begins, and of an image that does not decode."""


class Folder:
    """A run folder as the journal of its run. Hold its lock while using it."""

    def __init__(self, path: Path, checkpoint_seconds: float = 0) -> None:
        self.path = path
        self._every, self._took = checkpoint_seconds, 0.0
        self.begin()
        path.mkdir(parents=True, exist_ok=True)
        for torn in path.glob("*.tmp"):
            if not torn.name.startswith(".sent-"):  # those are the sender's, which may be writing
                torn.unlink(missing_ok=True)
        self.history = self._read_history()

    def begin(self, spent: float = 0) -> None:
        """Start the clocks of epochs and checkpoints; so many seconds were `spent` in the epoch already."""
        self._damaged = self._read_damaged()
        self._saved = time.monotonic()
        self._epoch_began = self._saved - spent

    def _read_history(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; what a kill or a loss of power left behind them is cut off."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        content, whole = file.read_bytes(), 0
        history: list[dict[str, Any]] = []
        for line in content.splitlines(keepends=True):
            try:
                found = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                found = None
            if not isinstance(found, dict) or found.get("epoch") != len(history) + 1:
                break
            history.append(found)
            whole += len(line)
        if whole < len(content):
            os.truncate(file, whole)
        return history

    def _read_damaged(self) -> set[str]:
        """The images that the log of this run names: a resumed one may not meet all of them again."""
        found: set[str] = set()
        with suppress(FileNotFoundError), (self.path / "log.txt").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                text = line[len(_stamp()) + 1 :].rstrip("\n")
                if text.startswith(f"{BEGUN} ("):
                    found.clear()
                elif text.startswith(DAMAGED):
                    found.add(text)
        return found

    def clear(self) -> None:
        """Forget the run, to start it anew."""
        for name in ("metrics.jsonl", "checkpoint.pt", "selected.pt", SYSTEM_FILE):
            (self.path / name).unlink(missing_ok=True)
        self.history = []

    @property
    def num_damaged(self) -> int:
        """How many images of the run do not decode."""
        return len(self._damaged)

    def damaged(self, name: str, reason: str) -> None:
        """Name an image that does not decode in the log, once in a run."""
        text = one_line(DAMAGED + (reason if name in reason else f"{name}: {reason}"))
        if text not in self._damaged:
            self._damaged.add(text)
            self.log(text)

    def log(self, text: str) -> None:
        """One more line in log.txt."""
        log(self.path, text)

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Append an epoch's line. An epoch run again after a kill must repeat its line, and is not written twice.

        Raises:
            Differs: it does not repeat it (another library, say): two runs must not end up in one record.
        """
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        if epoch <= len(self.history):
            before = {k: v for k, v in self.history[epoch - 1]["metrics"].items() if k != "seconds"}
            if json.dumps(metrics, sort_keys=True) != json.dumps(before, sort_keys=True):  # NaN equals NaN here
                raise Differs(f"epoch {epoch} came out otherwise than before the interruption")
            return
        line = {"epoch": epoch, "time": int(time.time() * 1000), "metrics": metrics | {"seconds": round(seconds, 4)}}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.history.append(line)

    def due(self) -> bool:
        """Whether a checkpoint within the epoch is due; with 0 for `checkpoint_seconds`, only those after it are.

        Writing takes at most a twentieth of the time: a state per sample can be gigabytes.
        """
        return self._every > 0 and time.monotonic() - self._saved >= max(self._every, 20 * self._took)

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        """Store the state if it is time: written aside, then renamed, so that the last good one stays."""
        if "batch" not in state and not last and selected_epoch(self.history[: state["epoch"]]) == state["epoch"]:
            save_tensors(state["method"], self.path / "selected.pt")
        now = time.monotonic()
        if last or now - self._saved >= self._every:
            if "batch" in state:
                state = state | {"seconds": now - self._epoch_began}
            with suppress(FileNotFoundError), (self.path / "metrics.jsonl").open("rb") as lines:
                os.fsync(lines.fileno())  # a checkpoint must not survive a loss of power that its lines do not
            save_tensors(state, self.path / "checkpoint.pt")
            self._saved = time.monotonic()
            self._took = self._saved - now

    def stored_state(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one that can be used; the run starts anew otherwise, and the log says why."""
        file = self.path / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            epoch, _, _ = state["epoch"], state["method"], state["run"]
        except Exception as error:  # torch raises many kinds for a damaged file
            self.log(f"checkpoint.pt is damaged ({type(error).__name__}): started anew")
            return None
        if epoch > len(self.history):  # the machine lost power, and lines that were not yet on the disk
            self.log(f"metrics.jsonl ends at epoch {len(self.history)}, checkpoint.pt at {epoch}: started anew")
            return None
        return state


def log(folder: Path, text: str) -> None:
    """One more line in a run folder's log.txt."""
    with (folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{_stamp()} {text}\n")


def _stamp() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def damage(count: int) -> str:
    """What to say of so many images that do not decode."""
    several = f"{count} images do not decode; grey in their place"
    return several if count > 1 else "1 image does not decode; grey in its place"


def one_line(text: str) -> str:
    """In one line, and writable: a file's name may be no UTF-8."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def save_tensors(state: Mapping[str, Any], file: Path) -> None:
    """torch.save, written aside and renamed; on a full disk nothing half-written stays and the old file does."""
    aside = file.with_suffix(".tmp")
    try:
        with aside.open("wb") as handle:
            torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(file)
    except Exception as error:
        with suppress(OSError):
            aside.unlink()
        cause = error if isinstance(error, OSError) else (error.__cause__ or error.__context__ or error)
        kept = "the last good one stays" if file.exists() else "there was none before"
        raise TrainingFailed(f"{file.name} could not be written ({cause}); {kept}") from error


def selected_epoch(history: list[dict[str, Any]]) -> int | None:
    """The first epoch with the best score on the noisy validation split, 1-based; None without such a split."""
    score = next((f"val.{name}" for name in SCORES if history and f"val.{name}" in history[-1]["metrics"]), None)
    if score is None:
        return None
    best: int = max(history, key=lambda line: line["metrics"][score])["epoch"]
    return best
