"""Where cells run: long-lived local worker processes. Imports neither torch nor MLflow itself."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from noisebench.config import Cell

MAX_DEATHS = 3
"""A cell whose worker died so often (out of memory, say) is given up."""


@dataclass(frozen=True)
class Place:
    """What a worker must know beside the cell: where to write, where data lies, on what to compute."""

    out: Path
    data_root: Path | None = None
    download: bool = False
    accelerator: str = "auto"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    parent = multiprocessing.parent_process()

    def follow() -> None:
        # A killed driver must not leave workers behind that hold its run folders.
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


def _work(cell: Cell, place: Place) -> dict[str, Any]:
    from noisebench.cell import run_cell

    return run_cell(cell, place.out, place.data_root, place.download, place.accelerator)


def run_local(
    cells: list[Cell],
    place: Place,
    jobs: int,
    idle: Callable[[], None] = lambda: None,
    more: Callable[[], list[Cell]] = list,
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run cells in `jobs` worker processes; yields each with its result as it ends.

    A worker that dies is replaced and its cell taken up again from its checkpoint, up to `MAX_DEATHS` times.

    Args:
        cells: what to run, in this order.
        place: where.
        jobs: how many at once.
        idle: called several times a second while waiting (progress display).
        more: asked after every result for cells that follow from it.
    """
    left = list(cells)
    deaths: dict[str, int] = {}
    while left:
        # A pool that breaks takes the healthy cells beside the dying one with it: those suspects go on one by one.
        suspects = [cell for cell in left if cell.fingerprint() in deaths]
        batch = deque(suspects[:1] or left)
        running: dict[concurrent.futures.Future[dict[str, Any]], Cell] = {}
        try:
            for cell, result in _run_pool(batch, place, 1 if suspects else jobs, running, idle):
                left.remove(cell)
                deaths.pop(cell.fingerprint(), None)
                yield cell, result
                fresh = more()
                left += fresh
                batch.extend(() if suspects else fresh)
        except BrokenProcessPool:
            for cell in list(running.values()) or suspects[:1] or left[:1]:
                key = cell.fingerprint()
                deaths[key] = deaths.get(key, 0) + (1 if suspects or len(running) < 2 else 0)
                if deaths[key] >= MAX_DEATHS:
                    left.remove(cell)
                    reason = f"its worker process died {MAX_DEATHS} times (out of memory? see dmesg); try --jobs 1"
                    yield cell, {"status": "failed", "reason": reason}
                    left += more()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Start workers without the caller's script: they do not need it, and one without a main guard would run again."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _run_pool(
    queue: deque[Cell],
    place: Place,
    workers: int,
    running: dict[concurrent.futures.Future[dict[str, Any]], Cell],
    idle: Callable[[], None],
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run the cells of a queue, which may grow, in one pool; `running` tells the caller what ran when it broke.

    Raises:
        BrokenProcessPool: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)

    def fill() -> None:
        with _hidden_main():
            while queue and len(running) < workers:  # one cell a worker, so that few run when a pool breaks
                running[pool.submit(_work, queue[0], place)] = queue[0]
                queue.popleft()

    try:
        fill()
        while running:
            done, _ = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
            idle()
            for future in done:
                result = future.result()
                yield running.pop(future), result
                fill()
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
