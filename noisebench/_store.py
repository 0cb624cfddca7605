"""An MLflow store: set up, asked for its runs, written to. What is sent, and when, `noisebench._outbox` knows."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebench._reaching import RULES_TAG, rules_of, sqlite_file, with_driver
from noisebench._run_folder import NAME_LIMIT
from noisebench.errors import UserError
from noisebench.files import make_once

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

DOUBLE = "noisebench.double_of"
"""The tag of a run that another one stands for: it names that one, and the run is deleted."""
PAGE = 500  # runs a query: a page must arrive within the time limit of one request


def _artifact_root(uri: str, out: Path) -> str | None:
    """Where artefacts go when MLflow talks to a database itself; its own default is the current directory."""
    return (
        (out.resolve() / "mlflow-artifacts").as_uri() if re.match(r"(sqlite|mysql|postgresql|mssql)\b", uri) else None
    )


def prepare_store(uri: str, out: Path) -> None:
    """Create the SQLite file of `uri` if it is missing, or the tables of an empty PostgreSQL; else nothing to do.

    MLflow's own set-up is neither kill- nor race-safe, so it runs on a file aside. Its header carries a random
    number (SQLite's ``user_version``), by which the acknowledgements tell this store from one that was deleted and
    made anew. In PostgreSQL one process at a time may do it.
    """

    def make(aside: Path) -> None:
        _prepare_environment(f"sqlite:///{aside}")
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{aside}", _artifact_root(uri, out))  # type: ignore[no-untyped-call]
        store.engine.dispose()
        with closing(sqlite3.connect(aside)) as database:
            database.execute(f"PRAGMA user_version = {int.from_bytes(os.urandom(4), 'big') >> 1 | 1}")
            database.commit()

    file = sqlite_file(uri)
    if file is not None:
        make_once(file, make)
    elif uri.startswith("postgresql"):
        _prepare_postgres(uri)


def _prepare_postgres(uri: str) -> None:
    _prepare_environment(uri)
    from mlflow.store.db.utils import _all_tables_exist, _initialize_tables
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(with_driver(uri), poolclass=NullPool)
    if not _all_tables_exist(engine):  # type: ignore[no-untyped-call]
        with engine.connect() as held:
            held.execute(text("SELECT pg_advisory_lock(7239461)"))
            if not _all_tables_exist(engine):  # type: ignore[no-untyped-call]
                _initialize_tables(engine)  # type: ignore[no-untyped-call]


def identity_of(uri: str) -> str:
    """A hash that names the store in acknowledgements (an address may hold a password); "" where it is gone."""
    name, file = uri.encode(), sqlite_file(uri)
    if file is not None:
        try:
            with file.open("rb") as handle:
                number = handle.read(64)[60:]
        except OSError:
            return ""
        name = number if any(number) else name
    return hashlib.sha256(name).hexdigest()[:16]


def _prepare_environment(uri: str, timeout: int = 5) -> None:
    """MLflow's settings, where the user made none: a dead server blocks for seconds and not minutes; no chatter."""
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PGCONNECT_TIMEOUT": str(timeout),
    }
    if sqlite_file(uri) is not None:  # a pooled connection would go on writing to a deleted file
        settings["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    for key, value in settings.items():
        os.environ.setdefault(key, value)


def open_client(uri: str, timeout: int = 5) -> MlflowClient:
    _prepare_environment(uri, timeout)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=with_driver(uri))


def runs_of(client: MlflowClient, experiment: str, where: str = "") -> Iterator[Run]:
    """Every run of an experiment, deleted ones too, page by page: one query for hundreds instead of one for each."""
    from mlflow.entities import ViewType

    token = None
    while True:
        collecting = gc.isenabled()
        gc.disable()  # MLflow makes 80 objects a run, and looking for garbage among them takes longer than the reading
        try:
            page = client.search_runs([experiment], where, ViewType.ALL, max_results=PAGE, page_token=token)
        finally:
            if collecting:
                gc.enable()
        yield from page
        token = page.token
        if not token:
            return


@dataclass
class StoredRun:
    """What the store knows of a run."""

    id: str
    tags: dict[str, str]
    status: str = "RUNNING"
    alive: bool = True
    params: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)  # metric -> its last step

    @classmethod
    def of(cls, run: Run) -> StoredRun:
        """As MLflow gives it."""
        steps = {point.key: point.step for point in getattr(run.data, "_metric_objs", [])}
        alive = run.info.lifecycle_stage == "active"
        return cls(run.info.run_id, dict(run.data.tags), run.info.status, alive, set(run.data.params), steps)

    @property
    def key(self) -> tuple[str, str] | None:
        """What makes it the only one of its kind: an attempt's fingerprint and beginning, or that it is the board's."""
        if self.tags.get("noisebench.kind") == "board":
            return "board", ""
        fingerprint = self.tags.get("noisebench.fingerprint")
        return (fingerprint, self.tags.get("noisebench.began", "0")) if fingerprint else None


class Store:
    """An experiment of an MLflow store, with all of its runs in memory. Whatever MLflow raises comes through."""

    def __init__(self, uri: str, out: Path, board: dict[str, Any]) -> None:
        name, rules = f"noisebench/{board['name']}", max((cell.get("rules", 0) for cell in board["cells"]), default=0)
        before = rules_of(uri, name)  # seconds where nothing answers; MLflow itself would try for minutes
        prepare_store(uri, out)
        self.client = open_client(uri)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            found = self._create_experiment(name, _artifact_root(uri, out))
        if found.lifecycle_stage != "active":
            raise UserError(f"the MLflow experiment '{name}' is deleted; restore it, or remove it with 'mlflow gc'")
        self.experiment: str = found.experiment_id
        if before < rules:
            self.client.set_experiment_tag(self.experiment, RULES_TAG, str(rules))
        self.runs: dict[str, StoredRun] = {}
        self._attempts: dict[tuple[str, str], StoredRun] = {}
        self._made: list[tuple[StoredRun, int]] = []
        for run in runs_of(self.client, self.experiment):
            self._add(StoredRun.of(run))

    def _create_experiment(self, name: str, artifacts: str | None) -> Experiment:
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs, not on chat traces
        try:
            return self.client.get_experiment(self.client.create_experiment(name, artifacts, kind))
        except Exception:
            found = self.client.get_experiment_by_name(name)
            if found is None:  # else another sender was first
                raise
            return found

    def _add(self, run: StoredRun) -> StoredRun:
        """Know a run; of doubles the one that stays, whoever looks."""
        if DOUBLE in run.tags:
            if run.alive:  # a kill came before its end
                self.client.delete_run(run.id)
            return run
        self.runs[run.id] = run
        if run.alive and run.key:
            known = self._attempts.setdefault(run.key, run)
            if known is not run:
                stays, goes = sorted((known, run), key=lambda one: one.id)
                self._attempts[run.key] = stays
                del self.runs[goes.id]
                self._remove(goes, stays)
        return run

    def _remove(self, run: StoredRun, stays: StoredRun) -> None:
        self.client.set_tag(run.id, DOUBLE, stays.id)
        self.client.delete_run(run.id)

    def _create(self, name: str, tags: dict[str, str], start: int) -> StoredRun:
        made = self.client.create_run(self.experiment, start_time=start or None, tags=tags, run_name=name[:NAME_LIMIT])
        run = self._add(StoredRun(made.info.run_id, tags))
        self._made.append((run, made.info.start_time))
        return run

    def settle(self) -> bool:
        """Look whether another process made runs of the same attempts meanwhile, and let one of each stay.

        Every process that makes a run looks afterwards, so that one of them sees both; they agree on which one stays.

        Returns:
            Whether there were any: what was sent to one that is gone must be sent again.
        """
        made, self._made = self._made, []
        if not made:
            return False
        known = {run.id for run, _ in made}
        self._look(f"attributes.start_time >= {min(start for _, start in made)}")
        return not known <= self.runs.keys()

    def _look(self, where: str) -> None:
        for run in runs_of(self.client, self.experiment, where):
            if run.info.run_id not in self.runs:
                self._add(StoredRun.of(run))

    def parent(self, board: dict[str, Any]) -> StoredRun:
        """The board's run."""
        found = self._attempts.get(("board", ""))
        if found is None:
            tags = {"noisebench.kind": "board", "noisebench.board": board["name"], "mlflow.source.name": "noisebench"}
            self._create(board.get("title") or board["name"], tags, 0)
            self._made.clear()
            self._look("tags.`noisebench.kind` = 'board'")
            found = self._attempts["board", ""]
        return found

    def attempt(self, name: str, tags: dict[str, str], start: int) -> StoredRun:
        """The run of this attempt at a cell; one that ended before its first epoch is taken over by the next."""
        fingerprint, began = tags["noisebench.fingerprint"], tags["noisebench.began"]
        found = self._attempts.get((fingerprint, began)) or self._attempts.pop((fingerprint, "0"), None)
        found = found or self._create(name, tags | {"noisebench.status": "running"}, start)
        self._attempts[fingerprint, began] = found
        return found

    def log(
        self,
        run: StoredRun,
        points: Sequence[tuple[str, float, int, int]],
        params: dict[str, str],
        tags: dict[str, str],
    ) -> None:
        """Send what the store lacks of points (key, value, time in ms, step), parameters and tags; tags come last."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = []
        for key, value, stamp, step in points:
            if step > run.steps.get(key, -1):
                metrics.append(Metric(key, value, stamp, step))
                run.steps[key] = step
        # A resumed run may describe its machine otherwise; MLflow refuses to change a parameter.
        fresh = [Param(key, value) for key, value in params.items() if key not in run.params]
        changed = [RunTag(key, value) for key, value in tags.items() if run.tags.get(key) != value]
        while metrics or fresh or changed:
            last = len(metrics) <= 800 and len(fresh) <= 100
            self.client.log_batch(run.id, metrics[:800], fresh[:100], changed if last else [])
            metrics, fresh, changed = metrics[800:], fresh[100:], [] if last else changed
        run.params |= params.keys()
        run.tags |= tags

    def set_status(self, run: StoredRun, status: str, end: int | None = None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED, where it is not so already."""
        if run.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status=status, end_time=end)
        run.status = status
