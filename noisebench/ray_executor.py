"""Cells on a Ray cluster: each is a task with its CPUs and GPUs, which Ray places, starts again and cancels.

Ray keeps its worker processes, so that torch is imported once in each; a task with a GPU has one of its own.
"""

from __future__ import annotations

import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from noisebench._ray_reach import connect, line, load
from noisebench.config import Cell
from noisebench.errors import UserError
from noisebench.executors import Place, Results, cores

NODE_SECONDS = 120
"""How long a node may take to look at its folders: it may start a process for it first."""


class RayExecutor:
    """Cells as Ray tasks, see `executors.Executor`. A process that is connected already keeps its connection."""

    def __init__(self) -> None:
        """Connects to nothing yet."""
        self._connected = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # of a cluster of its own: sockets and logs

    def check(self, place: Place, cells: Sequence[Cell]) -> None:
        """Connect, and refuse what cannot work: address, versions, more CPUs or GPUs than a node has, folders.

        Raises:
            UserError: the key, its value, what would be right.
        """
        ray = self._connect(place, cells)
        try:
            _check_room(ray, place, cells[0])
            if self._folder is None:  # this machine sees its own files
                _check_nodes(ray, place, _needs(place, cells[0]))
        except BaseException:
            self._disconnect()
            raise

    def __call__(
        self,
        cells: Sequence[Cell],
        place: Place,
        jobs: int | None,
        idle: Callable[[], None] = lambda: None,
        more: Callable[[], list[Cell]] = list,
    ) -> Results:
        """Run cells as tasks; one whose worker or node is lost is started again, `execution.ray.retries` times."""
        ray = self._connect(place, cells)
        from ray.exceptions import RayError

        retries = place.execution.ray.retries
        # Ray may give a process that is used again another GPU, which CUDA would not notice.
        work, alone = ray.remote(_work), ray.remote(max_calls=1)(_work)
        left, running = deque(cells), dict[Any, Cell]()

        def fill() -> None:
            slots = sum(_slots(node["Resources"], _needs(place, cells[0])) for node in _nodes(ray))
            while left and len(running) < (jobs or max(16, 2 * slots)):  # some in Ray's queue, never all of thousands
                cell = left.popleft()
                needs = _needs(place, cell)
                there = place if needs["num_gpus"] or place.accelerator != "auto" else replace(place, accelerator="cpu")
                if jobs and self._folder:  # the user says how many fit on this machine
                    needs["num_cpus"] = 0
                name = f"{cell.method.label}, {cell.dataset}, seed {cell.seed}"
                task = alone if needs["num_gpus"] else work
                running[task.options(name=name, max_retries=retries, **needs).remote(cell, there)] = cell

        try:
            fill()
            while running:
                done, _ = ray.wait(list(running), num_returns=1, timeout=0.2)
                idle()
                for task in done:
                    cell = running.pop(task)
                    try:
                        result = ray.get(task)
                    except RayError as error:
                        result = {"status": "failed", "reason": _reason(error, retries)}
                    yield cell, result
                    left += more()
                    fill()
        except ConnectionError as error:  # at ray://, after half a minute of trying to connect again
            address = place.execution.ray.address
            raise UserError(f"the Ray cluster at '{address}' is lost; the same command goes on from there") from error
        finally:
            for task in running:
                with suppress(Exception):
                    ray.cancel(task, force=True)
            self._disconnect()

    def _connect(self, place: Place, cells: Sequence[Cell]) -> ModuleType:
        """Ray, connected.

        Raises:
            UserError: it is not installed, or cannot be reached.
        """
        settings = place.execution.ray
        ray = load(settings)
        if ray.is_initialized():
            return ray
        if settings.address is None:
            self._folder = tempfile.TemporaryDirectory(prefix="noisebench-ray-", ignore_cleanup_errors=True)
        cpus = max(cores(), _needs(place, cells[0])["num_cpus"])
        try:
            connect(ray, settings.address, cpus, self._folder.name if self._folder else "")
        except UserError:
            self._disconnect()
            raise
        self._connected = True
        return ray

    def _disconnect(self) -> None:
        """End the connection that this made, and the cluster if it is of its own."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False
        if self._folder:
            self._folder.cleanup()
            self._folder = None


def _work(cell: Cell, place: Place) -> dict[str, Any]:
    from noisebench.cell import run_cell

    return run_cell(cell, place.out, place.data_root, place.download, place.accelerator)


def _needs(place: Place, cell: Cell) -> dict[str, Any]:
    """CPUs and GPUs of a cell, all of its ranks together."""
    ranks = cell.recipe.ranks
    gpus = 0 if place.accelerator == "cpu" else (place.execution.gpus or 0) * ranks
    return {"num_cpus": (place.execution.cpus or cell.recipe.threads) * ranks, "num_gpus": gpus}


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _slots(resources: dict[str, float], needs: dict[str, Any]) -> int:
    """How many such cells a node holds."""
    asked = (("CPU", needs["num_cpus"]), ("GPU", needs["num_gpus"]))
    return min(int(resources.get(name, 0) / need + 1e-6) for name, need in asked if need)


def _check_room(ray: Any, place: Place, cell: Cell) -> None:
    needs, nodes, ranks = _needs(place, cell), _nodes(ray), cell.recipe.ranks
    each = f" for each of {ranks} ranks" if ranks > 1 else ""
    if place.accelerator not in ("auto", "cpu") and not needs["num_gpus"]:
        raise UserError(f"--device {place.accelerator}: execution.gpus: none; give 1, or a share such as 0.25")
    if ranks > 1 and 0 < needs["num_gpus"] < ranks:
        raise UserError(
            f"execution.gpus: {place.execution.gpus:g}: the {ranks} ranks of a cell need a GPU each; give 1"
        )
    for name, key in (("GPU", "gpus"), ("CPU", "cpus")):
        most = max((node["Resources"].get(name, 0) for node in nodes), default=0)
        if needs[f"num_{key}"] > most:
            asked = getattr(place.execution, key) or cell.recipe.threads
            raise UserError(
                f"execution.{key}: {asked:g}{each}: no node of the Ray cluster has more than {most:g} {name}s"
            )
    if not any(_slots(node["Resources"], needs) for node in nodes):
        raise UserError(
            f"execution: no node of the Ray cluster has the {needs['num_cpus']} CPUs and the GPUs of a cell"
        )


def _check_nodes(ray: Any, place: Place, needs: dict[str, Any]) -> None:
    """Have every node that cells may run on look at the folders and at its noisebench."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look(out: Path, token: Path, data_root: Path | None) -> tuple[str, str]:
        """Defined here, so that it is sent by value: noisebench may be missing there."""
        import hashlib
        import importlib.util
        import os
        from pathlib import Path

        found = importlib.util.find_spec("noisebench")
        if found is None or not found.origin:
            return "it has no noisebench: install the same there", ""
        package = Path(found.origin).parent
        code = hashlib.sha256()
        for file in sorted([*package.glob("*.py"), *package.glob("*/*.py")]):
            code.update(file.read_bytes())
        if not token.exists():
            return f"it does not see {out}, or another one: give an --out that all nodes share", ""
        if not os.access(out, os.W_OK):
            return f"it may not write in {out}", ""
        if data_root is not None and not data_root.exists():
            return f"it does not see the datasets in {data_root}: give a --data-root that all nodes share", ""
        return "", code.hexdigest()

    made = not place.out.exists()
    place.out.mkdir(parents=True, exist_ok=True)
    token = place.out / f".shared-{secrets.token_hex(8)}"
    token.touch()
    try:
        asked = {}
        for node in _nodes(ray):
            if _slots(node["Resources"], needs):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ray.remote(look).options(num_cpus=0, max_retries=1, scheduling_strategy=there)
                asked[task.remote(place.out, token, place.data_root)] = node
        ours = look(place.out, token, None)[1]
        ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
        for task, node in asked.items():
            try:
                problem, code = ray.get(task, timeout=0)
            except Exception as error:  # lost meanwhile, or too slow
                problem, code = f"it did not answer: {line(error)}", ""
            if not problem and code != ours:
                problem = "its noisebench is not the one here: install the same there"
            if problem:
                raise UserError(f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) of Ray: {problem}")
    finally:
        token.unlink()
        if made:
            with suppress(OSError):
                place.out.rmdir()


def _reason(error: Exception, retries: int) -> str:
    """One line on why Ray gave a cell up."""
    from ray import exceptions

    times = f"{retries + 1} times" if retries else "once, and execution.ray.retries is 0"
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"out of memory: Ray ended its worker process {times}; give a cell more of a node by execution.cpus"
    if isinstance(error, (exceptions.NodeDiedError, exceptions.LocalRayletDiedError)):
        return f"its node died, {times}"
    if isinstance(error, exceptions.WorkerCrashedError):
        return f"its worker process died {times} (out of memory? see dmesg of the node)"
    cause = getattr(error, "cause", None) or error  # of what was raised there
    return f"{type(cause).__name__}: {line(cause)}"
