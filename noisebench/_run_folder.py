"""A run folder as the sender reads it, and its settings and facts in the forms that MLflow takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from noisebench._reaching import shown
from noisebench.files import read_json
from noisebench.system_metrics import FILE as SYSTEM

PARAM_LIMIT, TAG_LIMIT, NAME_LIMIT = 6000, 8000, 250
"""What MLflow takes at most, in characters: a parameter's value, a tag's value, a name."""
TEXT_TAGS = {"fingerprint", "status", "reason", "method", "label", "dataset", "noise", "noise_sha256", "weights_sha256"}
"""What stands in a tag as it is; everything else as JSON."""


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
        content = b""
        with suppress(OSError):
            content = (path / SYSTEM).read_bytes()
        self.system_bytes = content.rfind(b"\n") + 1
        self._system = content[: self.system_bytes]

    def lines(self) -> Iterator[dict[str, Any]]:
        """The whole lines of metrics.jsonl."""
        for line in self._text.splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)

    def system_points(self) -> Iterator[tuple[str, float, int, int]]:
        """The points of `noisebench.system_metrics`; the step is the line's place in its file."""
        for step, text in enumerate(self._system.splitlines()):
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that a kill tore is left out
                line = json.loads(text)
                stamp, metrics = int(line["time"]), line["metrics"].items()
                yield from ((key_name(key), value, stamp, step) for key, value in metrics if _number(value))

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
