"""The sender as a process: how the driver starts and ends it, and what it does between. Imports no MLflow."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_log = logging.getLogger("noisebench.tracking")


@dataclass(frozen=True)
class Pending:
    """What a sync could not send: false where everything is acknowledged."""

    cells: int = 0
    reason: str = ""
    worth_trying: bool = field(default=True, compare=False)  # at once, that is: the store answers

    def __bool__(self) -> bool:
        return bool(self.cells or self.reason)

    def __str__(self) -> str:
        cells = f"{self.cells} cell{'s' * (self.cells > 1)} not sent yet" if self.cells else ""
        return ": ".join(filter(None, (cells, self.reason)))


class Syncs(Protocol):
    """A sender, as far as the process needs it."""

    deadline: float

    def sync(self) -> Pending:
        """Send what is not acknowledged; never raises."""

    def sync_to_the_end(self) -> Pending:
        """The last time: try again what fails while the store answers; never raises."""


class SenderProcess:
    """A running sender, as the driver holds it. It ends by itself when the driver does, however that ends."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def finish(self, timeout: float = 60) -> str | None:
        """Let it send what is left, and wait: None where all is acknowledged, else what is not, and why; never raises.

        What is left is sent at the next start of the board.
        """
        try:
            output, _ = self._process.communicate(timeout=timeout)
            answer = json.loads(output)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"the rest could not be sent within {timeout:g} seconds (see {self._log})"
        except (OSError, ValueError):
            return f"the sender stopped with exit status {self._process.returncode} (see {self._log})"
        return str(Pending(answer["unsent_cells"], answer["reason"])) or None


def start(out: Path, board: str, deadline: float = 30) -> SenderProcess:
    """Start the sender of a board beside the training, silent and at low priority; end it with its `finish`.

    Args:
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``.
        board: the board's name; its ``board.json`` is written already.
        deadline: how many seconds the sending may go on after `finish` is called.
    """
    log = out / "boards" / board / "tracking.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "noisebench.tracking", str(out), board, "--deadline", str(deadline)]
    with log.open("ab") as errors:
        # Its own session: Ctrl-C in the terminal stops the training, and the sender still sends what there is.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    return SenderProcess(process, log)


def serve(sender_of: Callable[[Path, str], Syncs]) -> int:
    """Sync every second until standard input ends, then once more; 0 where all is acknowledged, else 3."""
    parser = argparse.ArgumentParser("python -m noisebench.tracking", description=serve.__doc__)
    parser.add_argument("out", type=Path, help="the folder that holds runs/, noise/ and boards/")
    parser.add_argument("board", help="the board's name")
    parser.add_argument("--deadline", type=float, default=30, help="seconds for the last sync")
    parser.add_argument("--interval", type=float, default=1, help="seconds between two syncs")
    options = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(5)  # training goes first
    log = options.out / "boards" / options.board / "tracking.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    answer = os.dup(1)
    with log.open("ab") as file:  # what libraries print goes to the log, and the answer alone to the driver
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    _log.setLevel(logging.INFO)
    pending = _sync_until_the_end(sender_of(options.out, options.board), options.interval, options.deadline)
    line = json.dumps({"unsent_cells": pending.cells, "reason": pending.reason})
    os.write(answer, f"{line}\n".encode())
    return 3 if pending else 0


def _sync_until_the_end(sender: Syncs, interval: float, deadline: float) -> Pending:
    ended = threading.Event()

    def wait_for_the_end() -> None:
        while os.read(0, 4096):
            pass
        sender.deadline = time.monotonic() + deadline  # for the sync that is under way, too
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    delay, told = interval, ""
    while not ended.is_set():
        pending = sender.sync()
        if pending.reason != told:
            told = pending.reason
            _log.info("%s", pending or "sending again")
        delay = min(2 * delay, 30) if pending else interval
        ended.wait(delay)
    pending = sender.sync_to_the_end()
    _log.info("end: %s", pending or "everything is sent")
    return pending
