"""Settings found on the noisy validation split: a study a row, the same number of trials for every one.

A trial is a setting of a row, run as ordinary cells (run folder, fingerprint, checkpoint) on a seed that is not the
board's; its score is the mean over the board's columns of the validation score at the selected epoch. No number of the
test set is read. Trial 0 is the row as it stands: on that split tuning never ends below it.

The studies stand in ``boards/<board>/tuning.db``. What a row tries follows from its own earlier trials and from the
tuning seed alone, and so neither the number of jobs nor a kill at any moment changes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from noisebench.board import board_folder, check_settings
from noisebench.config import Benchmark, Cell, MethodSpec, Tuned, TunedRow
from noisebench.errors import UserError
from noisebench.executors import Place, run_cells
from noisebench.files import write_text
from noisebench.metrics import score_of
from noisebench.reading import build, parse_yaml, to_yaml
from noisebench.seats import make_fabric
from noisebench.standing import result_of
from noisebench.streams import stream
from noisebench.studies import Study, Trial, open_store
from noisebench.tuning_plan import OBJECTIVE, SEED, Row, plan, study_name, trial_cells, with_settings


@dataclass(frozen=True)
class TunedTo:
    """What tuning found for a row.

    Attributes:
        row: the row as it was.
        best: the best trial, the earliest of equals; None where every one failed.
        trials: all that count.
    """

    row: Row
    best: Trial | None
    trials: tuple[Trial, ...]

    @property
    def spec(self) -> MethodSpec:
        """The row of the tuned board."""
        return self.row.under(self.best.settings if self.best else {})

    @property
    def settings(self) -> dict[str, Any]:
        """The searched settings as they were chosen."""
        return {**self.row.own, **(self.best.settings if self.best else {})}

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.score is None]

    def facts(self) -> TunedRow:
        """For the tuned board's file."""
        return TunedRow(
            trials=len(self.trials),
            failed=len(self.failed),
            before=self.trials[0].score,
            after=self.best.score if self.best else None,
            search={key: str(values) for key, values in self.row.space.items()},
            method=self.spec.name,
            hparams=self.spec.hparams,
        )


@dataclass(frozen=True)
class Tuning:
    """A tuned board and what was found for each row.

    Attributes:
        file: the board's; nothing is written where every trial of every row failed.
        benchmark: the board.
        rows: what was found.
        aside: where the file of another search, which stood in its place, was moved.
    """

    file: Path
    benchmark: Benchmark
    rows: tuple[TunedTo, ...]
    aside: Path | None = None

    @property
    def empty(self) -> bool:
        """Whether every trial of every row failed."""
        return all(row.best is None for row in self.rows)

    def to_json(self) -> str:
        """Everything, for programs."""
        tuned = self.benchmark.tuned
        assert tuned is not None
        rows = [
            {
                "label": found.spec.label,
                "method": found.spec.name,
                "settings": found.settings,
                "own": dict(found.row.own),
            }
            | found.facts().model_dump()
            | {"reasons": sorted({trial.reason for trial in found.failed})}
            for found in self.rows
        ]
        head = {
            "file": None if self.empty else str(self.file),
            "board": self.benchmark.name,
            "title": self.benchmark.title,
        }
        return json.dumps(head | tuned.model_dump(exclude={"rows"}) | {"rows": rows}, indent=1, default=str)


class Progress(Protocol):
    """Told what happens while a board is tuned."""

    def start(self, rows: list[Row], finished: int, out: Path) -> None:
        """Before the first cell: the rows, and how many of their trials had ended before."""

    def opened(self, label: str, trial: Trial, cells: list[Cell]) -> None:
        """A trial begins; `cells` are what it still has to run."""

    def tick(self) -> None:
        """Several times a second."""

    def done(self, label: str, trial: Trial, best: float | None) -> None:
        """A trial ended; `best` is its row's best score so far."""


class Silent:
    """Progress that shows nothing."""

    def start(self, rows: list[Row], finished: int, out: Path) -> None:
        """Nothing."""

    def opened(self, label: str, trial: Trial, cells: list[Cell]) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def done(self, label: str, trial: Trial, best: float | None) -> None:
        """Nothing."""


# ------------------------------------------------------------------------------------------------------ trying it


@dataclass
class _Job:
    """A trial that runs: its cells, and the results of those that ended."""

    row: Row
    study: Study
    trial: Trial
    cells: list[Cell]
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Trials:
    """Trials to cells and results back to trials; a cell that several trials share runs once."""

    def __init__(
        self, benchmark: Benchmark, studies: list[tuple[Row, Study]], out: Path, seed: int, progress: Progress
    ) -> None:
        self._benchmark, self._studies, self._out, self._seed = benchmark, studies, out, seed
        self._progress = progress
        self._waiting: dict[str, list[_Job]] = {}

    def more(self) -> list[Cell]:
        """Cells of the trials that may begin now."""
        fresh: list[Cell] = []
        while due := [(trial, row, study) for row, study in self._studies for trial in study.due()]:
            for trial, row, study in sorted(due, key=lambda item: item[0].number):  # so that all rows come forward
                spec = MethodSpec(
                    name=row.spec.name,
                    label=f"{row.spec.label} #{trial.number}",
                    hparams=with_settings(row.spec.hparams, trial.settings),
                    recipe=row.spec.recipe,
                )
                job = _Job(row, study, trial, trial_cells(self._benchmark, spec, self._seed))
                left = []
                for cell in job.cells:
                    key, found = cell.fingerprint(), result_of(cell, self._out)
                    if found["status"] == "finished":
                        job.ended[key] = found
                        continue
                    if key not in self._waiting:
                        fresh.append(cell)
                    self._waiting.setdefault(key, []).append(job)
                    left.append(cell)
                self._progress.opened(row.spec.label, trial, left)
                self._end_if_done(job)
        return fresh

    def settle(self, cell: Cell, result: dict[str, Any]) -> None:
        """Note a cell's result.

        Raises:
            UserError: another process holds it.
        """
        if result["status"] == "held":
            raise UserError(str(result["reason"]))
        for job in self._waiting.pop(cell.fingerprint()):
            job.ended[cell.fingerprint()] = result
            self._end_if_done(job)

    def _end_if_done(self, job: _Job) -> None:
        if len(job.ended) < len(job.cells):
            return
        results = [(cell, job.ended[cell.fingerprint()]) for cell in job.cells]
        failures = [f"{' / '.join(c.column)}: {r['reason']}" for c, r in results if r["status"] == "failed"]
        score = None
        if not failures:
            score = math.fsum(validation_score(self._out / cell.folder()) for cell, _ in results) / len(results)
        reason = failures[0] if failures else ""
        runs = [cell.folder() for cell in job.cells]
        trial = job.study.end(job.trial.number, score, reason, runs=runs)
        best = best_of(job.study.ended)
        self._progress.done(job.row.spec.label, trial, best.score if best else None)


def validation_score(folder: Path) -> float:
    """The validation score of a finished run at its selected epoch, which is the best one: from metrics.jsonl alone.

    Raises:
        UserError: the file is not there or not whole.
    """
    try:
        lines = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        score = score_of(name.removeprefix("val.") for name in lines[0])
        return max(float(line[f"val.{score}"]) for line in lines)
    except (OSError, ValueError, LookupError):
        raise UserError(f"{folder}: metrics.jsonl is missing or damaged; remove the folder and start again") from None


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the highest score, the earliest of equals."""
    scored = [(trial.score, -trial.number, trial) for trial in trials if trial.score is not None]
    return max(scored, key=lambda item: item[:2])[2] if scored else None


def tune(
    benchmark: Benchmark,
    place: Place,
    trials: int = 20,
    seed: int = SEED,
    search: Iterable[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
    run: Callable[..., Any] = run_cells,
) -> Tuning:
    """Try settings for every row of a board and write the tuned board beside its tables.

    Stopped or killed, the same call goes on from there; with more `trials` it goes on too. Trials that failed are run
    again, with their own settings.

    Args:
        benchmark: the board.
        place: where cells run and write.
        trials: of every row that has something to search, its own settings included.
        seed: what the trials run on, none of the board's.
        search: see `plan`.
        jobs: cells at once; the cores by default.
        progress: told what happens.
        run: runs cells, see `executors.run_cells`.

    Raises:
        UserError: a mistake in the board or a space, missing data, or another process in the way.
        KeyboardInterrupt: stopped.
    """
    rows = plan(benchmark, trials, seed, search)
    for dataset in benchmark.datasets:  # one that is missing, or no such device, would fail every trial
        check_settings(benchmark.model_copy(update={"datasets": (dataset,), "published": None}), place)
    make_fabric(benchmark.recipe, place.accelerator)
    folder = board_folder(benchmark, place.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "tuning.lock", timeout=0):
            found = _tune(benchmark, rows, place, seed, jobs, progress or Silent(), run)
    except Timeout:
        raise UserError(f"another noisebench tune works in {folder}; let it finish, or stop it") from None
    except (OptunaError, SQLAlchemyError) as error:  # a full disk, say
        reason = " ".join(f"{error} ({error.__cause__})".split())[:300]
        raise UserError(f"{folder / 'tuning.db'}: {reason}; the trials before this one are kept") from error
    return write_board(benchmark, found, trials, seed, folder / "tuned.yaml")


def _tune(
    benchmark: Benchmark,
    rows: list[Row],
    place: Place,
    seed: int,
    jobs: int | None,
    progress: Progress,
    run: Callable[..., Any],
) -> list[TunedTo]:
    store = open_store(board_folder(benchmark, place.out) / "tuning.db")
    try:
        studies = []
        for row in rows:

            def draw(*key: int | str, label: str = row.spec.label) -> int:
                return stream(seed, "tune", label, *key)

            name = study_name(benchmark, row, seed)
            studies.append((row, Study(store, name, row.space, row.own, row.budget, draw)))
        progress.start(rows, sum(len(study.ended) for _, study in studies), place.out)
        running = _Trials(benchmark, studies, place.out, seed, progress)
        if first := running.more():
            with closing(run(first, place, jobs, progress.tick, running.more)) as ended:
                for cell, result in ended:
                    running.settle(cell, result)
        return [TunedTo(row, best_of(study.ended), tuple(study.ended)) for row, study in studies]
    finally:
        store.engine.dispose()


def write_board(benchmark: Benchmark, rows: list[TunedTo], trials: int, seed: int, file: Path) -> Tuning:
    """Write the tuned board: an ordinary benchmark file, which says that it is tuned and how."""
    tuned = Tuned(
        trials=trials, seed=seed, objective=OBJECTIVE, rows={found.spec.label: found.facts() for found in rows}
    )
    plain = benchmark.model_dump(exclude={"noise", "methods", "tuned", "published"}) | {
        "name": f"{benchmark.name[:58]}-tuned",
        "title": f"{benchmark.title or benchmark.name} {tuned.note}",
        "noise": [kind.model_dump(exclude_defaults=True) for kind in benchmark.noise],
        "methods": [found.spec.model_dump() for found in rows],
        "tuned": tuned.model_dump(),
    }
    text = "# Written by noisebench tune.\n" + to_yaml(plain)
    board = build(Benchmark, parse_yaml(text, file.name), file.name)
    found, aside = Tuning(file, board, tuple(rows)), None
    if not found.empty:
        if file.exists() and _searched_in(file.read_text("utf-8")) != _searched_in(text):
            aside = next(p for i in count(1) if not (p := file.with_stem(f"{file.stem}.{i}")).exists())
            file.replace(aside)
        write_text(file, text)
    return replace(found, aside=aside)


def _searched_in(text: str) -> object:
    """All of a tuned board's file that more trials cannot change: a file that differs in it is another search's."""
    try:
        board = parse_yaml(text, "")
        rows = [(row["method"], row["search"]) for row in board["tuned"]["rows"].values()]
        kept = {key: value for key, value in board.items() if key not in ("title", "methods", "tuned")}
        return kept, rows, board["tuned"]["seed"]
    except (UserError, LookupError, TypeError, AttributeError):
        return text
