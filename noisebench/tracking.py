"""MLflow as the record for people: a process beside the training sends what the run folders hold.

Training never waits for MLflow, a file or a server. A cell writes its folder (config.json, metrics.jsonl, then
result.json or failure.json) and this module reads it from another process, sends what is not yet acknowledged, and
notes what was in ``sent-<board>.json`` beside it. A kill at any moment loses nothing and doubles nothing: a run is
looked up by its fingerprint before it is created, a point is sent with the time stamp of its line (the same stamp twice
is one point in MLflow), and points up to the last step that the store knows are not sent at all.

One experiment per benchmark (``noisebench/<board>``), one parent run for the board, one run per attempt at a cell: a
folder that was deleted and trained anew is a new run; the newest finished one counts. MLflow itself makes any number of
runs alike: where two senders made the same one at once, or an answer was lost on the way, one of them stays and the
other is deleted (`Store.settle`). The board's run holds the noise artefacts, each once; a cell's parameter
``noise_folder`` and its tag ``noisebench.noise_sha256`` name its own.

``noisebench sync`` sends what a driver or a node that died has left.

This module and `noisebench._store` alone import MLflow, and only when there is something to send: importing
them costs nothing.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from noisebench._outbox import Outbox
from noisebench._reaching import Silent, check_rules, check_store, sqlite_file, store_uri, with_driver
from noisebench._run_folder import TEXT_TAGS, one_line
from noisebench._sending import Pending, SenderProcess, serve, start
from noisebench._store import DOUBLE, PAGE, Store, StoredRun, identity_of, open_client, prepare_store, runs_of
from noisebench.errors import UserError

__all__ = [
    "Pending",
    "Sender",
    "SenderProcess",
    "Store",
    "StoredRun",
    "check_store",
    "prepare_store",
    "read_results",
    "start",
    "store_uri",
    "with_driver",
]

_OURS = {"kind", "board", "began", "double_of"}  # tags for the sender's own use, no part of a result
_HUGE = sys.float_info.max  # SQL holds no infinity; MLflow stores this instead


class Sender(Outbox):
    """Sends a board to MLflow as far as it is not acknowledged yet; `sync` never raises.

    Args:
        uri: a tracking address, see `store_uri`.
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``.
        board: the board's name.
    """

    def __init__(self, uri: str, out: Path, board: str) -> None:
        super().__init__(out, board, lambda description: Store(uri, out, description), lambda: identity_of(uri))


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
    file = sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would create it
        return 0
    try:
        client = open_client(uri, timeout=30)
        boards = [found.experiment_id for found in client.search_experiments(filter_string="name LIKE 'noisebench/%'")]
        where = " and ".join(f"tags.`noisebench.{key}` = '{value}'" for key, value in {**tags, "kind": "cell"}.items())
        runs = client.search_runs(boards, where, max_results=PAGE) if boards else []
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
    file = sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would create it
        return []
    with suppress(Silent):
        check_rules(uri, board_name)
    found: dict[str, tuple[tuple[bool, int], dict[str, Any]]] = {}
    for tags, metrics, started in _stored_cells(uri, f"noisebench/{board_name}"):
        if tags.get("noisebench.status") in ("finished", "failed") and DOUBLE not in tags:
            result = _result(tags, metrics)
            rank = (result["status"] == "finished", started)
            known = found.get(result["fingerprint"])
            if known is None or rank > known[0]:
                found[result["fingerprint"]] = rank, result
    return [found[fingerprint][1] for fingerprint in sorted(found)]


def _stored_cells(uri: str, experiment: str) -> Iterator[tuple[dict[str, str], dict[str, float], int]]:
    """Tags, last metrics and start of every run of a cell that nobody deleted."""
    file = sqlite_file(uri)
    if file is not None:
        try:
            yield from list(_cells_in_file(file, experiment))
            return
        except sqlite3.Error:  # locked, or tables of another version of MLflow, which knows them
            pass
    try:
        client = open_client(uri, timeout=30)
        named = client.get_experiment_by_name(experiment)
        for run in runs_of(client, named.experiment_id) if named else ():
            if run.data.tags.get("noisebench.kind") == "cell" and run.info.lifecycle_stage == "active":
                yield run.data.tags, run.data.metrics, run.info.start_time
    except Exception as error:
        raise UserError(f"MLflow could not be read: {one_line(error)}") from error


def _cells_in_file(file: Path, experiment: str) -> Iterator[tuple[dict[str, str], dict[str, float], int]]:
    """The same from the tables themselves, in a tenth of the time: MLflow makes an object of every parameter, too."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.execute("BEGIN")  # one state of the store for all three queries
        runs = {
            run: ({}, {}, started)
            for run, started in database.execute(
                "SELECT run_uuid, start_time FROM runs JOIN experiments USING (experiment_id)"
                " WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'",
                (experiment,),
            )
        }  # type: dict[str, tuple[dict[str, str], dict[str, float], int]]
        for run, (tags, metrics, _) in runs.items():
            tags.update(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)))
            query = "SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?"
            metrics.update({k: math.nan if is_nan else value for k, value, is_nan in database.execute(query, (run,))})
    yield from (cell for cell in runs.values() if cell[0].get("noisebench.kind") == "cell")


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
