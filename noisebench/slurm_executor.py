"""Cells as Slurm jobs, through submitit: it writes the batch files, requeues and resumes; Slurm places and restarts.

A cell's end is what stands in its run folder, whatever became of its job. Which jobs there are says ``squeue``, asked
for all of them at once: ``sacct`` needs a database that not every cluster has.
"""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from noisebench import _slurm_asking as asking
from noisebench import _slurm_job as job
from noisebench.config import Cell
from noisebench.errors import UserError
from noisebench.executors import MAX_DEATHS, Deaths, Place, Results
from noisebench.files import make_once, read_json, write_json
from noisebench.standing import others_drive

POLL, GRACE = 2.0, 10.0
"""Seconds between two looks at the queue; how long after a job's end its result may take to be seen here."""

MAX_ARRAY = 1000
"""Tasks of one array; clusters take 1,001 by default."""

NOT_NOW = ("unable to contact", "timed out", "temporar", "try again", "connection", "submit limit", "maximum number")
"""What sbatch says where it may take the same jobs later."""


@dataclass
class Task:
    """A job that we placed, or found, and the cells that are left to it."""

    job: str
    folder: Path
    cells: list[Cell]
    placed: bool
    gone: float | None = None


class SlurmExecutor:
    """Cells as array tasks of Slurm jobs, see `executors.Executor`."""

    def check(self, place: Place, cells: Sequence[Cell]) -> None:
        """Have Slurm judge a job of each size without placing it.

        Raises:
            UserError: submitit or Slurm is missing or silent; a partition, account or size that there is not.
        """
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("executor slurm needs submitit; pip install 'noisebench[slurm]'") from None
        missing = [tool for tool in ("sbatch", "srun", "squeue", "sinfo", "scancel") if shutil.which(tool) is None]
        if missing:
            where = "run on a machine of a Slurm cluster, or start one here: scripts/slurm_single_node.sh start"
            raise UserError(f"executor slurm: no command {missing[0]}; {where}")
        slurm = place.execution.slurm
        known = asking.named(slurm.partition, asking.partitions())
        longest = max((one.minutes for one in known), default=slurm.minutes)
        if slurm.minutes > longest:
            raise UserError(f"execution.slurm.minutes: {slurm.minutes}; this partition allows at most {longest:g}")
        for size in sorted({job.size_of(cell, place) for cell in cells}):
            job.check_size(place, size)
            script = job.batch(place, place.out, size, 1, "token")._make_submission_file_text("true", "")
            with asking.outside_of_jobs():
                said = subprocess.run(["sbatch", "--test-only"], input=script, text=True, capture_output=True)
            if said.returncode:
                cpus, gpus = size.threads * size.ranks // slurm.nodes, job.gpus_of_node(place, size)
                asked = f"asked were {cpus} CPUs, {gpus} GPUs, {slurm.memory_gb or 'any'} GB on {slurm.nodes} node(s)"
                there = " or ".join(dict.fromkeys(f"{one.nodes} ({one.name})" for one in known))
                reason = asking.one_line(said.stderr)
                raise UserError(f"execution.slurm: sbatch refuses it: {reason}; {asked}; a node has {there}")

    def __call__(
        self,
        cells: Sequence[Cell],
        place: Place,
        jobs: int | None,
        idle: Callable[[], None] = lambda: None,
        more: Callable[[], list[Cell]] = list,
    ) -> Results:
        """Run cells; at most `jobs` tasks of an array at once, by default execution.slurm.parallel.

        What is placed later (again, or because it follows from a result) has arrays of its own. Jobs of the same output
        folder that still wait or run are taken over, whichever driver placed them. A cell whose
        job vanished without a result is placed again, up to `MAX_DEATHS` times.

        Raises:
            UserError: a node does not see the output folder; sbatch refuses a job for good.
        """
        queue = _Queue(place, min(jobs or sys.maxsize, place.execution.slurm.parallel), idle)
        left = list(cells)
        try:
            queue.look()
            queue.sweep()
            while True:
                left = queue.place_all(left)
                for cell, result in [*queue.ended(), *queue.lost(left)]:
                    yield cell, result
                    left += more()
                if not left and not any(task.cells for task in queue.tasks):
                    break
                queue.wait(POLL)
                queue.look()
            queue.finish()
        finally:
            queue.cancel()


class _Queue:
    """The jobs of one output folder; its folder ``slurm`` holds a token, and for each array its pickles and logs."""

    def __init__(self, place: Place, parallel: int, idle: Callable[[], None]) -> None:
        self.place, self.parallel, self.idle = place, parallel, idle
        self.folder = place.out / "slurm"
        make_once(self.folder / "token", _make_token)
        self.token = (self.folder / "token").read_text(encoding="utf-8")
        self.tasks: list[Task] = []
        self.states: dict[str, asking.State] = {}
        self.deaths = Deaths(place.out)
        self.most = MAX_ARRAY  # tasks of the next array: a user's limit on jobs may leave room for some only
        # Listed before squeue is asked: what another driver places between the two must not look dead.
        self._before = [path for path in self.folder.iterdir() if path.is_dir()]
        self._before = [path for path in self._before if list(path.glob("*_submission.sh")) or _old(path)]

    def wait(self, seconds: float) -> None:
        """Be idle."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.idle()
            time.sleep(0.1)

    def look(self) -> None:
        """Ask squeue until it answers: a controller that restarts is no death of a job."""
        while True:
            with tempfile.TemporaryFile("w+", encoding="utf-8") as answer:  # a pipe would fill up while we are idle
                with subprocess.Popen(
                    asking.squeue(job.job_name(self.token)), stdout=answer, stderr=subprocess.DEVNULL
                ) as asked:
                    while asked.poll() is None:
                        self.idle()
                        time.sleep(0.05)
                if asked.returncode == 0:
                    answer.seek(0)
                    self.states = asking.read_states(answer.read())
                    return
            self.wait(POLL)

    def live(self, name: str) -> bool:
        """Whether a job waits or runs."""
        return name in self.states and self.states[name].live

    def sweep(self) -> None:
        """Remove what arrays left whose driver did not see their end."""
        arrays = {name.partition("_")[0] for name in self.states if self.live(name)}
        for folder in self._before:
            if not arrays & {file.name.partition("_")[0] for file in folder.glob("*_submission.sh")}:
                shutil.rmtree(folder, ignore_errors=True)

    def place_all(self, cells: list[Cell]) -> list[Cell]:
        """Take jobs over where there are any, and submit others; returns the cells that Slurm does not take now."""
        found: dict[str, Task] = {}
        fresh: list[Cell] = []
        for cell in cells:
            record = read_json(self._cell(cell) / "slurm.json") or {}
            name = str(record.get("job"))
            if self.live(name) and not self._held(cell, name):
                found.setdefault(name, Task(name, self.folder / str(record.get("folder")), [], False)).cells.append(
                    cell
                )
            else:
                fresh.append(cell)
        self.tasks += found.values()
        later: list[Cell] = []
        fresh.sort(key=lambda cell: job.size_of(cell, self.place))  # stable: the board's order within a size
        for size, group in groupby(fresh, key=lambda cell: job.size_of(cell, self.place)):
            chunks = _chunks(list(group), self.place.execution.slurm.cells_per_job if size.ranks == 1 else 1)
            arrays = _chunks(chunks, self.most)
            for array in arrays:
                self.idle()
                if later or not self._submit(array, size, max(1, self.parallel // len(arrays))):
                    later += [cell for chunk in array for cell in chunk]
        return later

    def _submit(self, chunks: list[list[Cell]], size: job.Size, parallel: int) -> bool:
        folder = self.folder / secrets.token_hex(4)
        folder.mkdir()
        for cell in (cell for chunk in chunks for cell in chunk):
            (self._cell(cell) / "failure.json").unlink(missing_ok=True)  # what stands there later is the job's word
        executor = job.batch(self.place, folder, size, parallel, self.token)
        try:
            with _uninterrupted():  # between the jobs and the record of them
                with asking.outside_of_jobs(), redirect_stderr(StringIO()):
                    placed = executor.submit_array([job.SlurmJob(tuple(chunk), self.place) for chunk in chunks])
                for one, chunk in zip(placed, chunks, strict=True):
                    self.tasks.append(Task(one.job_id, folder, chunk, True))
                    self.states[one.job_id] = asking.State("PENDING")
                    record = {"job": one.job_id, "folder": folder.name, "submitted": int(time.time())}
                    for cell in chunk:
                        write_json(self._cell(cell) / "slurm.json", record)
        except RuntimeError as error:  # submitit's, of what sbatch said
            shutil.rmtree(folder, ignore_errors=True)
            said = asking.one_line(str(error))
            if any(text in said.lower() for text in NOT_NOW) or (len(chunks) > 1 and "job array" in said.lower()):
                self.most = max(1, len(chunks) // 2)
                return False
            raise UserError(f"execution.slurm: sbatch refuses a job: {said}") from None
        self.most = min(MAX_ARRAY, 2 * self.most)
        return True

    def ended(self) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Cells with a result, each taken off its task."""
        for task in self.tasks:
            if self.live(task.job) and self.states[task.job].name == "PENDING":
                continue
            for cell in list(task.cells):
                folder = self._cell(cell)
                found = read_json(folder / "result.json") or read_json(folder / "failure.json")
                if found is None and (held := self._held(cell, task.job)):
                    found = cell.identity() | {"status": "held", "reason": held}
                if found is not None:
                    task.cells.remove(cell)
                    yield cell, found | {"label": cell.method.label}
        for task in [task for task in self.tasks if not task.cells and not self.live(task.job)]:
            self._forget(task)

    def lost(self, again: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Cells that are given up, since their jobs vanished too often; those to be placed again go to `again`.

        Raises:
            UserError: a job did not find our folder on its node.
        """
        for task in [task for task in self.tasks if task.cells]:
            state = self.states.get(task.job)
            if state is not None and state.not_shared:
                where = f"{self.folder} on node {state.nodes} is not the folder of that name here"
                raise UserError(f"executor slurm: {where}; give an --out that all nodes share")
            if state is not None and state.without_data:
                where = f"there is no {self.place.data_root} on node {state.nodes}"
                raise UserError(f"executor slurm: {where}; give a --data-root that all nodes share")
            if self.live(task.job):
                task.gone = None
                continue
            task.gone = task.gone or time.monotonic()
            if time.monotonic() - task.gone < GRACE:
                continue
            first, *others = task.cells  # the others had not begun
            again += others
            if self.deaths.count(first) < MAX_DEATHS:
                again.append(first)
            else:
                reason = f"its Slurm job ended {MAX_DEATHS} times without a result: {_last_words(task, state)}"
                yield first, {"status": "failed", "reason": reason}
            if state is not None and state.name not in asking.DEAD:  # Slurm holds it for ever
                subprocess.run(["scancel", "--quiet", task.job], capture_output=True)
            self._forget(task)

    def finish(self) -> None:
        """Wait a little for jobs that have done their cells."""
        end = time.monotonic() + GRACE
        while any(self.live(task.job) for task in self.tasks) and time.monotonic() < end:
            self.wait(0.5)
            self.look()

    def cancel(self) -> None:
        """Cancel what we placed and has not ended, with what we took over if nobody else drives a board here."""
        alone = not others_drive(self.place.out)
        mine = [task for task in self.tasks if (task.placed or alone) and self.live(task.job)]
        jobs = {task.job.partition("_")[0] if task.placed else task.job for task in mine}
        if jobs:
            subprocess.run(["scancel", "--quiet", *sorted(jobs)], capture_output=True)
        for task in [task for task in self.tasks if task in mine or not self.live(task.job)]:
            self._forget(task)

    def _held(self, cell: Cell, name: str) -> str:
        """Why a job left a cell alone, if it did: another process was at it."""
        record = read_json(self._cell(cell) / "slurm.json") or {}
        return str(record.get("held", "")) if record.get("by") == name else ""

    def _forget(self, task: Task) -> None:
        self.tasks.remove(task)
        ranks = max((cell.recipe.ranks for cell in task.cells), default=1)
        for name in ("submitted.pkl", *(f"{rank}_{end}" for rank in range(ranks) for end in ("result.pkl", "log.out"))):
            (task.folder / f"{task.job}_{name}").unlink(missing_ok=True)
        if not any(other.folder == task.folder for other in self.tasks) and not list(
            task.folder.glob("*_submitted.pkl")
        ):
            shutil.rmtree(task.folder, ignore_errors=True)

    def _cell(self, cell: Cell) -> Path:
        return self.place.out / cell.folder()


def _make_token(file: Path) -> None:
    file.write_text(secrets.token_hex(16), encoding="utf-8")


def _old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > 3600


def _chunks(items: list[Any], most: int) -> list[list[Any]]:
    return [items[i : i + most] for i in range(0, len(items), most)]


def _last_words(task: Task, state: asking.State | None) -> str:
    """Why a job ended: its state, the last line of its log, and what would help."""
    try:
        text = (task.folder / f"{task.job}_0_log.out").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = state.name if state else "no longer known to Slurm"
    said += f" ({state.why})" if state and state.name not in asking.DEAD else ""
    said += f", last words: {lines[-1][-200:]}" if lines else ""
    if "OUT_OF_MEMORY" in said or re.search(r"\boom\b|oom.kill|out of memory", text[-2000:], re.IGNORECASE):
        return f"{said}; out of memory: raise execution.slurm.memory_gb"
    return f"{said}; raise execution.slurm.minutes" if "TIME" in said else said


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off to the end, for the programs started within, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stops, came = (signal.SIGINT, signal.SIGTERM), list[int]()
    before = {stop: signal.signal(stop, lambda number, _: came.append(number)) for stop in stops}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for stop, handler in before.items():
            signal.signal(stop, handler)
        for number in came[:1]:  # here: an error of what was done within must not swallow it
            signal.raise_signal(number)
