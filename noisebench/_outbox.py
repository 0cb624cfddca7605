"""The run folders as an outbox: what a board has written, what of it is acknowledged, and the sending of the rest.

MLflow itself stands behind `noisebench._store.Store`; nothing here imports it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from noisebench._reaching import Silent, shown
from noisebench._sending import Pending
from noisebench.files import is_held, read_json, write_json

if TYPE_CHECKING:
    from noisebench._store import Store, StoredRun

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 8000, 250
"""What MLflow takes at most, in characters: a parameter's value, a tag's value, a name."""
TEXT_TAGS = {"fingerprint", "status", "reason", "method", "label", "dataset", "noise", "noise_sha256", "weights_sha256"}
"""What stands in a tag as it is; everything else as JSON."""
TABLES = (
    *("leaderboard.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"),
    *("leaderboard-published.csv", "grid.png"),  # of boards that have them
)
STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED"}
"""A cell's status as MLflow shows it; every other is FAILED. Stopped: neither finished nor does anybody run it."""
NOISE_FILES = {"noise.json": math.inf, "transition.png": math.inf, "noise.npz": 5e6}
"""What is logged of a noise artefact, and up to how many bytes."""


def load(file: Path) -> dict[str, Any]:
    """A file's JSON object; {} where there is none."""
    return read_json(file) or {}


def stat(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, by which a change is noticed; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def sha(content: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


class RunFolder:
    """What a run folder holds at this moment."""

    def __init__(self, path: Path) -> None:
        self.final: dict[str, Any] = {}
        self.final_sha, self.ended = "", 0
        for name in ("result.json", "failure.json"):  # before the metrics: a result stands behind its last line
            with suppress(FileNotFoundError):
                content, ended = (path / name).read_bytes(), int((path / name).stat().st_mtime * 1000)
                self.final, self.final_sha, self.ended = json.loads(content), sha(content), ended
                break
        content = b""
        with suppress(FileNotFoundError):
            content = (path / "metrics.jsonl").read_bytes()
        self.bytes = content.rfind(b"\n") + 1  # a torn last line waits for its end
        self._text = content[: self.bytes]
        self.began = next((int(line["time"]) for line in self.lines()), 0)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The whole lines of metrics.jsonl."""
        for line in self._text.splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)

    def points(self) -> Iterator[tuple[str, float, int, int]]:
        """Every point of every epoch, then the final numbers, as (key, value, time in ms, step)."""
        for line in self.lines():
            for key, value in line["metrics"].items():
                if _number(value):
                    yield key_name(key), value, int(line["time"]), int(line["epoch"])
        if _number(self.final.get("seconds")):  # "seconds" alone is an epoch's
            yield "run.seconds", self.final["seconds"], self.ended, int(self.final.get("epochs", 0))
        for which, numbers in self.final.get("metrics", {}).items():
            for key, value in numbers.items():
                if _number(value):
                    yield key_name(f"{which}.{key}"), value, self.ended, int(numbers.get("epoch", 0))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def key_name(name: str) -> str:
    """A name with the characters that MLflow takes on every system."""
    return re.sub(r"[^\w. /-]", "_", name)[:NAME_LIMIT]


def cut(text: str, limit: int) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects as MLflow parameters: dotted names, lists as JSON."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield key_name(prefix), cut(value if isinstance(value, str) else json.dumps(value), PARAM_LIMIT)


def tags_of(facts: dict[str, Any]) -> dict[str, str]:
    """Facts of a cell as MLflow tags ``noisebench.<key>``; what does not fit is left out, a text is cut."""
    tags = {}
    for key, value in facts.items():
        text = cut(str(value), TAG_LIMIT) if key in TEXT_TAGS else json.dumps(value)
        if len(text) <= TAG_LIMIT:
            tags[key_name(f"noisebench.{key}")] = text
    return tags


def one_line(error: BaseException) -> str:
    """One line, without the password that an address may hold."""
    return cut(shown(" ".join(str(error).split()) or type(error).__name__), 200)


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
        self._final: set[str] = set()
        self._failures: dict[str, int] = {}
        self._noise: set[str] = set()  # folders of the artefacts that the board's run has
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
        if not work and not self._board_changes(board):
            return Pending()
        self._lock.acquire()
        if self._store is None:
            self._store = self._connect(board)
            self._identity = self._identify()
            known = {"", *self._store.runs}  # what was acknowledged and is gone is sent again
            work = [c for c in board["cells"] if self._unsent(c) or self._ack(c).get("run_id", "") not in known]
        parent = self._store.parent(board)
        self._claim(self._store, board, parent)
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
        if reason:
            self._store = None  # it may have changed under us: look again next time
        return Pending(unsent, reason)

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
        state = [stat(path / name) for name in ("result.json", "failure.json", "metrics.jsonl")]
        if not any(state):
            self._final.discard(fingerprint)
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
            self._final.add(fingerprint)
        else:
            self._final.discard(fingerprint)
            if not seen.bytes:
                return False
        same = ack.get("began") == seen.began and ack.get("label") == cell["label"]
        if same and ack["bytes"] >= seen.bytes and seen.final_sha in ("", ack["final"]):
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
            params = {key: value for key, value in flat(config) if key and value}
            store.log(run, list(seen.points()), params, tags | {"noisebench.status": status})
            if status != "failed" and "noisebench.reason" in run.tags:
                store.client.delete_tag(run.id, "noisebench.reason")
                del run.tags["noisebench.reason"]
            store.set_status(run, STATUS.get(status, "FAILED"), seen.ended or None)
            if self._log_noise(store, config.get("noise_folder", ""), parent):
                file = self.folder / "sent.json"
                write_json(file, load(file) | {"noise": sorted(self._noise)})
        ack = {"store": self._identity, "run_id": run.id, "began": seen.began, "label": cell["label"]}
        ack |= {"bytes": seen.bytes, "final": seen.final_sha} | ({"stopped": True} if stopped else {})
        write_json(self._ack_file(cell), ack)
        self._failures.pop(cell["fingerprint"], None)
        self.sent_cells.add(cell["fingerprint"])

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
        for name in ("board.json", *TABLES):
            with suppress(FileNotFoundError):
                now[name] = sha((self.folder / name).read_bytes())
        return {name: value for name, value in now.items() if sent.get(name) != value}

    def _send_board(self, store: Store, board: dict[str, Any], run: StoredRun) -> None:
        changes = self._board_changes(board)
        for name in changes.keys() - {"status"}:
            store.client.log_artifact(run.id, str(self.folder / name))
        if "board.json" in changes and board.get("description"):
            store.client.set_experiment_tag(store.experiment, "mlflow.note.content", cut(board["description"], 5000))
        if "leaderboard.md" in changes:
            table = (self.folder / "leaderboard.md").read_text(encoding="utf-8")
            if len(table) > TAG_LIMIT:  # a table cut within a row would not show as one
                table = table[: TAG_LIMIT - 100].rpartition("\n")[0] + "\n\n(cut; whole in the artefact leaderboard.md)"
            store.log(run, [], {}, {"mlflow.note.content": table})
        if "status" in changes:
            store.set_status(run, changes["status"])
        if changes:
            ack = load(self.folder / "sent.json")
            write_json(self.folder / "sent.json", ack | {"sent": ack["sent"] | changes})
