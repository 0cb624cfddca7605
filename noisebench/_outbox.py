"""The run folders as an outbox: what a board has written, what of it is acknowledged, and the sending of the rest.

MLflow itself stands behind `noisebench._store.Store`; nothing here imports it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from noisebench import rerun
from noisebench._describing import EXPERIMENT_LIMIT, board_note, cell_note, plain_tags
from noisebench._model_outbox import ModelOutbox
from noisebench._reaching import Silent
from noisebench._run_folder import RunFolder, cut, flat, load, one_line, sha, stat, tags_of
from noisebench._sending import Pending
from noisebench.files import is_held, write_json
from noisebench.system_metrics import FILE as SYSTEM

if TYPE_CHECKING:
    from noisebench._store import Store, StoredRun

TABLES = (
    *("leaderboard.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"),
    *("leaderboard-published.csv", "grid.png", rerun.FILE),  # of boards that have them
)
STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED"}
"""A cell's status as MLflow shows it; every other is FAILED. Stopped: neither finished nor does anybody run it."""
NOISE_FILES = {"noise.json": math.inf, "transition.json": math.inf, "transition.png": math.inf, "noise.npz": 5e6}
"""What is logged of a noise artefact, and up to how many bytes."""


class Outbox:
    """What of a board is not acknowledged by a store yet, and the sending of it; one process at a time (by a lock).

    Args:
        out: the folder that holds ``runs/``, ``noise/`` and ``boards/``.
        board: the board's name.
        connect: opens the store, given board.json; called only when there is something to send.
        identity: names the store in the acknowledgements; another name, and everything is sent again.
    """

    def __init__(
        self, out: Path, board: str, connect: Callable[[dict[str, Any]], Store], identity: Callable[[], str]
    ) -> None:
        self.out, self.board = out, board
        self._connect, self._identify = connect, identity
        self.folder = out / "boards" / board
        self.deadline = math.inf
        """The moment (time.monotonic()) after which no further cell is begun; may be set from another thread."""
        self._lock = FileLock(self.folder / "tracking.lock", timeout=0)
        self._store: Store | None = None
        self._identity = ""
        self._clean: dict[str, object] = {}  # fingerprint -> the files' state when all of it was acknowledged
        self._final: dict[str, str] = {}  # fingerprint -> hash of what the cell ended with
        self._failures: dict[str, int] = {}
        self._noise: set[str] = set()  # folders of the artefacts that the board's run has
        self._models = ModelOutbox(out, self.folder)
        self._command = ("", "")  # hash of the board's settings, and the command that makes it again
        self.sent_cells: set[str] = set()
        """Fingerprints of the cells of which anything was sent."""
        self._ending = False  # a cell that nobody runs is stopped then; before, its next epoch may come at any moment

    def close(self) -> None:
        """Let another sender have the board."""
        self._lock.release(force=True)  # every sync that had work took it once more
        self._store = None

    def sync(self) -> Pending:
        """Send what is not acknowledged. Never raises: what went wrong is in the answer, and the next call tries again.

        MLflow is imported only if there is something to send.
        """
        try:
            for _ in range(3):
                pending = self._sync()
                if pending is not None:
                    return pending
            return Pending(self._count(), "other processes send this board, too")
        except Timeout:
            return Pending(self._count(), "another process is sending this board", worth_trying=False)
        except Silent as silent:
            self._store = None
            return Pending(self._count(), cut(str(silent), 200), worth_trying=False)
        except Exception as error:
            self._store = None
            return Pending(self._count(), one_line(error))

    def sync_to_the_end(self) -> Pending:
        """The last sync of a process: a cell that nobody runs now is shown as killed, and what fails is tried again."""
        self._ending = True
        for pause in (0, 0.5, 1):  # another sender may have just removed the double that this one wrote to
            time.sleep(pause)
            pending = self.sync()
            if not (pending and pending.worth_trying):
                break
        return pending

    def _count(self) -> int:
        with suppress(Exception):
            return sum(self._unsent(cell) for cell in load(self.folder / "board.json")["cells"])
        return 0

    def _sync(self) -> Pending | None:
        """None: another process made the same runs at the same time; what was sent to those that went is sent again."""
        board = load(self.folder / "board.json")
        if not board:
            return Pending(0, f"there is no board.json in {self.folder}")
        # Two labels with the same settings are one run.
        board["cells"] = list({cell["fingerprint"]: cell for cell in reversed(board["cells"])}.values())[::-1]
        if (identity := self._identify()) != self._identity:
            self._identity, self._store = identity, None
            self._clean.clear()
        work = [cell for cell in board["cells"] if self._unsent(cell)]
        if not work and not self._board_changes(board) and not self._models.work(board, self._final, self._identity):
            return Pending()
        self._lock.acquire()
        if self._store is None:
            self._store = self._connect(board)
            self._identity = self._identify()
            known = {"", *self._store.runs}  # what was acknowledged and is gone is sent again
            work = [c for c in board["cells"] if self._unsent(c) or self._ack(c).get("run_id", "") not in known]
        parent = self._store.parent(board)
        self._claim(self._store, board, parent)
        self._command = self._command_of(board)
        # Cells that failed to go before come last, lest three bad ones keep the others waiting for ever.
        work.sort(key=lambda cell: self._failures.get(cell["fingerprint"], 0))
        unsent, in_a_row, reason = 0, 0, ""
        for cell in work:
            if in_a_row == 3 or time.monotonic() > self.deadline:
                unsent, reason = unsent + 1, reason or "the deadline passed"
                continue
            try:
                self._send(self._store, cell, parent)
                in_a_row = 0
            except Exception as error:
                unsent, in_a_row, reason = unsent + 1, in_a_row + 1, one_line(error)
                self._failures[cell["fingerprint"]] = self._failures.get(cell["fingerprint"], 0) + 1
        if in_a_row < 3 and self._store.settle():
            self._store = None
            return None
        if in_a_row < 3 and time.monotonic() <= self.deadline:
            self._send_board(self._store, board, parent)
            unlogged = self._send_models(self._store, board, parent)
            reason = "; ".join(filter(None, (reason, unlogged)))
            self._send_board(self._store, board, parent)  # which lists its models
        if reason:
            self._store = None  # it may have changed under us: look again next time
        return Pending(unsent, reason)

    def _command_of(self, board: dict[str, Any]) -> tuple[str, str]:
        config = board.get("config") or {}
        state = sha(json.dumps(config, sort_keys=True).encode())
        if self._command[0] == state:
            return self._command
        known = bool(config.get("name"))
        return state, rerun.board_command(config, self.folder) if known else f"noisebench leaderboard {board['name']}"

    # -- cells

    def _ack_file(self, cell: dict[str, Any]) -> Path:
        folder: str = cell["folder"]
        return self.out / folder / f"sent-{self.board}.json"

    def _ack(self, cell: dict[str, Any]) -> dict[str, Any]:
        ack = load(self._ack_file(cell))
        return ack if ack.get("store") == self._identity else {}

    def _unsent(self, cell: dict[str, Any]) -> bool:
        """Whether a cell's folder holds anything that is not acknowledged."""
        path, fingerprint = self.out / cell["folder"], cell["fingerprint"]
        state = [stat(path / name) for name in ("result.json", "failure.json", "metrics.jsonl", SYSTEM)]
        if not any(state[:3]):
            self._final.pop(fingerprint, None)
            return False
        ended = not self._ending or fingerprint in self._final
        if ended and self._clean.get(fingerprint) == (state, cell["label"]):
            return False
        try:
            seen = RunFolder(path)
        except (OSError, ValueError, KeyError, TypeError):
            return True  # sending it will tell
        ack = self._ack(cell)
        if seen.final_sha:
            self._final[fingerprint] = seen.final_sha
        else:
            self._final.pop(fingerprint, None)
            if not seen.bytes:
                return False
        same = ack.get("began") == seen.began and ack.get("label") == cell["label"]
        same = same and ack["bytes"] >= seen.bytes and ack.get("system", 0) >= seen.system_bytes
        if same and seen.final_sha in ("", ack["final"]):
            if self._ending and not seen.final_sha and not ack.get("stopped") and not is_held(path):
                return True
            self._clean[fingerprint] = (state, cell["label"])
            return False
        return True

    def _send(self, store: Store, cell: dict[str, Any], parent: StoredRun) -> None:
        path = self.out / cell["folder"]
        seen, config = RunFolder(path), load(path / "config.json")
        if not (seen.bytes or seen.final):
            return
        facts: dict[str, Any] = {key: config[key] for key in ("rules", "privileged", "noise_sha256") if key in config}
        facts |= {key: value for key, value in seen.final.items() if key not in ("metrics", "seconds", "status")}
        # One run may stand on several boards under several labels: the board has the last word.
        facts |= {
            key: cell[key] for key in ("fingerprint", "method", "label", "dataset", "noise", "seed") if key in cell
        }
        stopped = self._ending and not seen.final and not is_held(path)
        status = seen.final.get("status", "failed") if seen.final else "stopped" if stopped else "running"
        tags = tags_of(facts) | {
            "noisebench.kind": "cell",
            "noisebench.board": self.board,
            "noisebench.began": str(seen.began),
            "mlflow.parentRunId": parent.id,
            "mlflow.source.name": "noisebench",
        }
        run = store.runs.get(self._ack(cell).get("run_id", ""))
        if run is None or run.tags.get("noisebench.began") not in (str(seen.began), "0"):
            name = f"{facts['label']} · {facts['noise']} · seed {facts['seed']}"
            run = store.attempt(name, tags, seen.began or seen.ended)
        if run.alive:  # a run that somebody deleted in MLflow stays deleted
            settings = {
                key: value for key, value in config.items() if key != "inputs"
            }  # of the dataset, a name a class
            params = {key: value for key, value in flat(settings) if key and value}
            tags |= plain_tags(config, facts | seen.final, self.board, status)
            tags["mlflow.note.content"] = self._note(cell, config, facts, seen.final, status)
            points = [*seen.points(), *seen.system_points()]
            store.log(run, points, params, tags | {"noisebench.status": status})
            if status != "failed" and "noisebench.reason" in run.tags:
                store.client.delete_tag(run.id, "noisebench.reason")
                del run.tags["noisebench.reason"]
            store.set_status(run, STATUS.get(status, "FAILED"), seen.ended or None)
            if self._log_noise(store, config.get("noise_folder", ""), parent):
                file = self.folder / "sent.json"
                write_json(file, load(file) | {"noise": sorted(self._noise)})
        ack = {"store": self._identity, "run_id": run.id, "began": seen.began, "label": cell["label"]}
        ack |= {"bytes": seen.bytes, "final": seen.final_sha, "system": seen.system_bytes}
        ack |= {"stopped": True} if stopped else {}
        write_json(self._ack_file(cell), ack)
        self._failures.pop(cell["fingerprint"], None)
        self.sent_cells.add(cell["fingerprint"])

    def _note(
        self, cell: dict[str, Any], config: dict[str, Any], facts: dict[str, Any], final: dict[str, Any], status: str
    ) -> str:
        noise = load(self.out / config["noise_folder"] / "noise.json") if config.get("noise_folder") else {}
        command = rerun.cell_command(self._command[1], facts["label"], facts["method"], facts["seed"])
        model = self._models.models(self._identity).get(cell["fingerprint"])
        folder = self.out / cell["folder"]
        return cell_note(config, facts, final, status, noise=noise, folder=folder, command=command, model=model)

    # -- models

    def _send_models(self, store: Store, board: dict[str, Any], parent: StoredRun) -> str:
        """Log what is lacking of the models; why not all of them, "" where they are."""
        unlogged, in_a_row, reason = 0, 0, ""
        for group in self._models.work(board, self._final, self._identity, store.runs):
            if in_a_row == 3 or time.monotonic() > self.deadline:
                unlogged, reason = unlogged + 1, reason or "the deadline passed"
                continue
            try:
                cell = self._models.send(group, store, self._identity, board, self._run_of(store))
                if cell is not None:
                    self._send(store, cell, parent)  # its description names the model
                in_a_row = 0
            except Exception as error:
                unlogged, in_a_row, reason = unlogged + 1, in_a_row + 1, one_line(error)
        if not unlogged:
            self._models.set_aliases(store, self._identity, board)
            return ""
        return f"{unlogged} model{'s' * (unlogged > 1)} not logged yet: {reason}"

    def _run_of(self, store: Store) -> Callable[[dict[str, Any]], StoredRun | None]:
        """The run of a cell that is sent to its end."""

        def find(cell: dict[str, Any]) -> StoredRun | None:
            ack = self._ack(cell)
            return store.runs.get(ack["run_id"]) if ack.get("final") == self._final[cell["fingerprint"]] else None

        return find

    # -- the board's own run

    def _claim(self, store: Store, board: dict[str, Any], run: StoredRun) -> None:
        """Begin the acknowledgement of the board's run anew where it is of another run."""
        ack = load(self.folder / "sent.json")
        self._noise = set(ack.get("noise", ()))
        if ack.get("store") == self._identity and ack.get("run_id") == run.id:
            return
        (self.folder / "sent.json").unlink(missing_ok=True)
        self._noise.clear()
        for cell in board["cells"]:
            if self._ack(cell):
                self._log_noise(store, load(self.out / cell["folder"] / "config.json").get("noise_folder", ""), run)
        ack = {"store": self._identity, "run_id": run.id, "sent": {}, "noise": sorted(self._noise)}
        write_json(self.folder / "sent.json", ack)

    def _log_noise(self, store: Store, folder: str, run: StoredRun) -> bool:
        """Log a noise artefact under the board's run, once for all cells that share it."""
        if not folder or folder in self._noise:
            return False
        for name, limit in NOISE_FILES.items():
            file = self.out / folder / name
            if file.exists() and file.stat().st_size < limit:
                store.client.log_artifact(run.id, str(file), folder)
        self._noise.add(folder)
        return True

    def _board_changes(self, board: dict[str, Any]) -> dict[str, str]:
        """What of the board is not acknowledged: file (or "status") -> its hash."""
        ack = load(self.folder / "sent.json")
        sent = ack.get("sent", {}) if ack.get("store") == self._identity else {}
        now = {"status": "FINISHED" if all(c["fingerprint"] in self._final for c in board["cells"]) else "RUNNING"}
        for name in ("board.json", *TABLES, self._models.file.name):
            with suppress(FileNotFoundError):
                now[name] = sha((self.folder / name).read_bytes())
        return {name: value for name, value in now.items() if sent.get(name) != value}

    def _send_board(self, store: Store, board: dict[str, Any], run: StoredRun) -> None:
        changes = self._board_changes(board)
        for name in changes.keys() - {"status", self._models.file.name}:
            store.client.log_artifact(run.id, str(self.folder / name))
        if changes.keys() & {"board.json", "leaderboard.md", self._models.file.name}:
            file = self.folder / "leaderboard.md"
            table = file.read_text(encoding="utf-8") if file.exists() else ""
            models = self._models.models(self._identity).values()
            about = board, table, self._command[1], self.folder
            store.log(run, [], {}, {"board": self.board, "mlflow.note.content": board_note(*about, models)})
            note = board_note(*about, limit=EXPERIMENT_LIMIT)
            store.client.set_experiment_tag(store.experiment, "mlflow.note.content", note)
        if "status" in changes:
            store.set_status(run, changes["status"])
        if changes:
            ack = load(self.folder / "sent.json")
            write_json(self.folder / "sent.json", ack | {"sent": ack["sent"] | changes})
