"""MLflow as the record for people: a process beside the training sends what the run folders hold.

Training never waits for MLflow. A cell writes its folder (config.json, metrics.jsonl, then result.json or failure.json)
and this module reads it from another process, sends what is not yet acknowledged, and notes what was in
``sent-<board>.json`` beside it. A kill at any moment loses nothing and doubles nothing: a run is looked up by its
fingerprint before it is created, a point is sent with the time stamp of its line (the same stamp twice is one point in
MLflow), and points up to the last step that the store knows are not sent at all.

One experiment per benchmark (``noisebench/<board>``), one parent run for the board, one run per attempt at a cell: a
folder that was deleted and trained anew is a new run; the newest finished one counts.

``python -m noisebench.tracking OUT BOARD < /dev/null`` sends what is left of a board by hand.

The only module that imports MLflow, and only when there is something to send: importing this one costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisebench._outbox import NAME_LIMIT, TEXT_TAGS, Outbox, one_line
from noisebench._sending import Pending, SenderProcess, serve, start
from noisebench.errors import UserError
from noisebench.files import make_once

__all__ = ["Pending", "Sender", "SenderProcess", "prepare_store", "read_results", "start", "store_uri"]

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_OURS = {"kind", "board", "began"}  # tags for the sender's own use, no part of a result
_PAGE = 500  # runs a query: a page must arrive within the time limit of one request
_HUGE = sys.float_info.max  # SQL holds no infinity; MLflow stores this instead


# ------------------------------------------------------------------------------------------------------ the store


def store_uri(out: Path) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else an SQLite file in `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"


def _sqlite_file(uri: str) -> Path | None:
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return None if match is None or match[1] == ":memory:" else Path(match[1])


def _artifact_root(uri: str, out: Path) -> str | None:
    """Where artefacts go when MLflow talks to a database itself; its own default is the current directory."""
    return (
        (out.resolve() / "mlflow-artifacts").as_uri() if re.match(r"(sqlite|mysql|postgresql|mssql)\b", uri) else None
    )


def prepare_store(uri: str, out: Path) -> None:
    """Create the SQLite file of `uri` if it is missing; nothing to do for any other store.

    MLflow's own set-up is neither kill- nor race-safe, so it runs on a file aside. Its header carries a random
    number (SQLite's ``user_version``), by which the acknowledgements tell this store from one that was deleted and
    made anew.
    """

    def make(aside: Path) -> None:
        _prepare_environment(f"sqlite:///{aside}")
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{aside}", _artifact_root(uri, out))  # type: ignore[no-untyped-call]
        store.engine.dispose()
        with closing(sqlite3.connect(aside)) as database:
            database.execute(f"PRAGMA user_version = {int.from_bytes(os.urandom(4), 'big') >> 1 | 1}")
            database.commit()

    file = _sqlite_file(uri)
    if file is not None:
        make_once(file, make)


def _identity(uri: str) -> str:
    """A hash that names the store in acknowledgements (an address may hold a password); "" where it is gone."""
    name, file = uri.encode(), _sqlite_file(uri)
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
    }
    if _sqlite_file(uri) is not None:  # a pooled connection would go on writing to a deleted file
        settings["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"
    for key, value in settings.items():
        os.environ.setdefault(key, value)


def _client(uri: str, timeout: int = 5) -> MlflowClient:
    _prepare_environment(uri, timeout)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Every run of an experiment, deleted ones too, page by page: one query for hundreds instead of one for each."""
    from mlflow.entities import ViewType

    token = None
    while True:
        page = client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token)
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


class Store:
    """An experiment of an MLflow store, with all of its runs in memory. Whatever MLflow raises comes through."""

    def __init__(self, uri: str, out: Path, board: dict[str, Any]) -> None:
        prepare_store(uri, out)
        self.client = _client(uri)
        name = f"noisebench/{board['name']}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs, not on chat traces
            self.experiment: str = self.client.create_experiment(name, _artifact_root(uri, out), kind)
        elif found.lifecycle_stage != "active":
            raise UserError(f"the MLflow experiment '{name}' is deleted; restore it, or remove it with 'mlflow gc'")
        else:
            self.experiment = found.experiment_id
        self.runs: dict[str, StoredRun] = {}
        self._attempts: dict[tuple[str, str], StoredRun] = {}
        self._parent: StoredRun | None = None
        for run in _runs(self.client, self.experiment):  # newest first, so that the oldest of doubles wins
            steps = {point.key: point.step for point in getattr(run.data, "_metric_objs", [])}
            alive = run.info.lifecycle_stage == "active"
            self._add(
                StoredRun(run.info.run_id, dict(run.data.tags), run.info.status, alive, set(run.data.params), steps)
            )

    def _add(self, run: StoredRun) -> StoredRun:
        self.runs[run.id] = run
        if run.alive and run.tags.get("noisebench.kind") == "board":
            self._parent = run
        elif run.alive and "noisebench.fingerprint" in run.tags:
            self._attempts[run.tags["noisebench.fingerprint"], run.tags.get("noisebench.began", "0")] = run
        return run

    def _create(self, name: str, tags: dict[str, str], start: int) -> StoredRun:
        made = self.client.create_run(self.experiment, start_time=start or None, tags=tags, run_name=name[:NAME_LIMIT])
        return self._add(StoredRun(made.info.run_id, tags))

    def parent(self, board: dict[str, Any]) -> StoredRun:
        """The board's run."""
        if self._parent is None:
            tags = {"noisebench.kind": "board", "noisebench.board": board["name"], "mlflow.source.name": "noisebench"}
            self._parent = self._create(board.get("title") or board["name"], tags, 0)
        return self._parent

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
        """RUNNING, FINISHED or FAILED, where it is not so already."""
        if run.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status=status, end_time=end)
        run.status = status


class Sender(Outbox):
    """Sends a board to MLflow as far as it is not acknowledged yet; `sync` never raises.

    Args:
        uri: a tracking address, see `store_uri`.
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``.
        board: the board's name.
    """

    def __init__(self, uri: str, out: Path, board: str) -> None:
        super().__init__(out, board, lambda description: Store(uri, out, description), lambda: _identity(uri))


# ------------------------------------------------------------------------------------------- what is found out later


def log_files(uri: str, files: Sequence[Path], folder: str, tags: dict[str, str]) -> int:
    """Log files as artefacts of every run of a cell that bears these tags; how many such runs there are.

    Several boards may have the same cell, each as a run of its own.

    Args:
        folder: within the run's artefacts.
        tags: without their ``noisebench.``, e.g. {"fingerprint": ..., "began": ...}.

    Raises:
        UserError: the store does not answer.
    """
    file = _sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would create it
        return 0
    try:
        client = _client(uri, timeout=30)
        boards = [found.experiment_id for found in client.search_experiments(filter_string="name LIKE 'noisebench/%'")]
        where = " and ".join(f"tags.`noisebench.{key}` = '{value}'" for key, value in {**tags, "kind": "cell"}.items())
        runs = client.search_runs(boards, where, max_results=_PAGE) if boards else []
        for run in runs:
            for file in files:
                client.log_artifact(run.info.run_id, str(file), folder)
    except Exception as error:
        raise UserError(f"MLflow could not be written: {one_line(error)}") from error
    return len(runs)


# --------------------------------------------------------------------------------------------------- reading back


def read_results(uri: str, board_name: str) -> list[dict[str, Any]]:
    """The finished and failed cells of a board from MLflow alone: what their result.json holds, number for number.

    Sorted by fingerprint. Of several attempts at a cell a finished one counts before a failed one, then the newest.

    Raises:
        UserError: the store does not answer.
    """
    file = _sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would create it
        return []
    found: dict[str, tuple[tuple[bool, int], dict[str, Any]]] = {}
    try:
        client = _client(uri, timeout=30)
        experiment = client.get_experiment_by_name(f"noisebench/{board_name}")
        for run in _runs(client, experiment.experiment_id) if experiment else ():
            tags = run.data.tags
            ended = tags.get("noisebench.kind") == "cell" and tags.get("noisebench.status") in ("finished", "failed")
            if ended and run.info.lifecycle_stage == "active":
                result = _result(tags, run.data.metrics)
                rank = (result["status"] == "finished", run.info.start_time)
                known = found.get(result["fingerprint"])
                if known is None or rank > known[0]:
                    found[result["fingerprint"]] = rank, result
    except Exception as error:
        raise UserError(f"MLflow could not be read: {one_line(error)}") from error
    return [found[fingerprint][1] for fingerprint in sorted(found)]


def _result(tags: dict[str, str], metrics: dict[str, float]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for tag, text in tags.items():
        house, _, key = tag.partition(".")
        if house == "noisebench" and key not in _OURS:
            result[key] = text if key in TEXT_TAGS else json.loads(text)
    if result["status"] == "failed":
        return result
    result["metrics"] = {}
    for name, value in metrics.items():
        which, _, key = name.partition(".")
        if name == "run.seconds":
            result["seconds"] = value
        elif which in ("last", "selected", "best"):
            value = math.copysign(math.inf, value) if abs(value) == _HUGE else value
            result["metrics"].setdefault(which, {})[key] = int(value) if key == "epoch" else value
    return result


if __name__ == "__main__":
    sys.exit(serve(lambda out, board: Sender(store_uri(out), out, board)))
