"""Files that are never half written (made aside, then renamed), and where datasets lie."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Replace `file` as a whole; on an error the old one stays and nothing else is left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(file)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def write_json(file: Path, value: Any) -> None:
    """`value` as JSON, as a whole."""
    write_text(file, json.dumps(value, indent=1, default=str) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file or no whole one."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no JSON, or no UTF-8
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else None
    return None


def make_once(file: Path, make: Callable[[Path], None]) -> None:
    """Create `file` where it is missing, by `make` on a path aside, under a lock; what `make` finished is renamed.

    For a set-up of many steps that neither a kill nor a second process may disturb.
    """
    from filelock import FileLock  # 0.1 s, and every command imports this module

    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists():
            return
        aside = file.with_name(f".{file.name}.new")
        for leftover in file.parent.glob(f"{glob.escape(aside.name)}*"):  # of a killed process, and its journal
            leftover.unlink()
        make(aside)
        aside.replace(file)


def is_held(folder: Path) -> bool:
    """Whether a process holds the file ``lock`` of a folder. Looking needs no right to write, and several may look."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        return _is_held_by_taking(folder)
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_held_by_taking(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            return False
    except Timeout:
        return True


def epochs_of(folder: Path) -> int:
    """How many epochs a run folder has recorded."""
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def data_root_from(given: str | Path | None) -> Path | None:
    """The dataset root: as given, or NOISEBENCH_DATA, or none."""
    root = given or os.environ.get("NOISEBENCH_DATA")
    return Path(root).expanduser().absolute() if root else None
