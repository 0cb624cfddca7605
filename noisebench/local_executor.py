"""Cells on this machine: long-lived worker processes, each with its share of the GPUs where there are any."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from noisebench.config import Cell
from noisebench.errors import UserError
from noisebench.executors import MAX_DEATHS, Deaths, Place, Results, cores

Futures = dict["concurrent.futures.Future[dict[str, Any]]", Cell]


class LocalExecutor:
    """Cells in worker processes of this machine, see `executors.Executor`."""

    def check(self, place: Place, cells: Sequence[Cell]) -> None:
        """Refuse GPUs that are not there."""
        _slots(place, cells, None)

    def __call__(
        self,
        cells: Sequence[Cell],
        place: Place,
        jobs: int | None,
        idle: Callable[[], None] = lambda: None,
        more: Callable[[], list[Cell]] = list,
    ) -> Results:
        """Run cells in `jobs` worker processes.

        A worker that dies is replaced and its cell taken up again from its checkpoint, up to `MAX_DEATHS` times.
        """
        left = list(cells)
        slots = _slots(place, left, jobs)
        deaths = Deaths(place.out)
        while left:
            # A pool that breaks takes the healthy cells beside the dying one with it: those suspects go on one by one.
            suspects = [cell for cell in left if cell in deaths]
            batch = deque(suspects[:1] or left)
            running: Futures = {}
            try:
                for cell, result in _run_pool(batch, place, slots[:1] if suspects else slots, running, idle):
                    left.remove(cell)
                    deaths.forget(cell)
                    yield cell, result
                    fresh = more()
                    left += fresh
                    batch.extend(() if suspects else fresh)
            except BrokenProcessPool:
                for cell in list(running.values()) or suspects[:1] or left[:1]:
                    if deaths.count(cell, 1 if suspects or len(running) < 2 else 0) >= MAX_DEATHS:
                        left.remove(cell)
                        reason = f"its worker process died {MAX_DEATHS} times (out of memory? see dmesg); try --jobs 1"
                        yield cell, {"status": "failed", "reason": reason}
                        left += more()


def _slots(place: Place, cells: Sequence[Cell], jobs: int | None) -> list[str | None]:
    """For each of the cells that run at once the GPUs that it sees, as CUDA_VISIBLE_DEVICES; None: as they are.

    Raises:
        UserError: more GPUs are asked for than there are.
    """
    recipe, asked = cells[0].recipe, place.execution.gpus
    gpus = [] if place.accelerator == "cpu" or asked == 0 else visible_gpus()
    if asked and place.accelerator != "cpu":
        need = asked * recipe.ranks
        if recipe.ranks > 1 and asked < 1:
            raise UserError(f"execution.gpus: {asked:g}: the {recipe.ranks} ranks of a cell need a GPU each; give 1")
        if need > len(gpus):
            ranks = f" for each of {recipe.ranks} ranks" if recipe.ranks > 1 else ""
            raise UserError(f"execution.gpus: {asked:g}{ranks}: this machine has {len(gpus)}; give less, or 0 for none")
    cpus = (place.execution.cpus or recipe.threads) * recipe.ranks
    if not gpus:  # more threads than cores make each other crawl
        return ["" if asked == 0 else None] * (jobs or max(1, cores() // cpus))
    each = int(asked or 1) * recipe.ranks if asked is None or asked >= 1 else 1
    if each > len(gpus):  # nobody asked: the cell says what it misses
        return [None] * (jobs or 1)
    sets = [gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each)]
    room = len(sets) * (int(1 / asked) if asked and asked < 1 else 1)
    if jobs is not None and asked and jobs > room:
        raise UserError(f"--jobs {jobs}: execution.gpus: {asked:g} leaves room for {room} on {len(gpus)} GPUs")
    return [",".join(sets[i % len(sets)]) for i in range(jobs or room)]


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def follow_parent() -> None:
    """End this process when the one that started it does, however that ends: it holds a run folder."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


def _start_worker(slots: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    follow_parent()
    gpus = slots.get()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before torch is imported


def _work(cell: Cell, place: Place) -> dict[str, Any]:
    from noisebench.cell import run_cell

    return run_cell(cell, place.out, place.data_root, place.download, place.accelerator)


@contextmanager
def hidden_main() -> Iterator[None]:
    """Start workers without the caller's script: they do not need it, and one without a main guard would run again."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _run_pool(
    queue: deque[Cell], place: Place, slots: Sequence[str | None], running: Futures, idle: Callable[[], None]
) -> Results:
    """Run the cells of a queue, which may grow, in one pool; `running` tells the caller what ran when it broke.

    Raises:
        BrokenProcessPool: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for slot in slots:
        free.put(slot)
    pool = concurrent.futures.ProcessPoolExecutor(len(slots), context, _start_worker, (free,))

    def fill() -> None:
        with hidden_main():
            while queue and len(running) < len(slots):  # one cell a worker, so that few run when a pool breaks
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
