"""An index kept in a file: arrays built once, checked against what they were built from, and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from noisebench.errors import UserError

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

_MAGIC = b"noisebench index 1\n"
_HEAD = struct.Struct("<QI")
"""Bytes of the JSON header, and its CRC-32."""
_ALIGNED = 64
_SETTLED = 2_000_000_000
"""Nanoseconds. Time stamps are as coarse as 2 s on some file systems: what changed less than that before it was
listed may have changed again with the same stamp."""


class Seen(NamedTuple):
    """State of a folder or file that an index depends on; a folder's size is 0 here, and its time that of its list."""

    path: str
    mtime_ns: int
    size: int


class Built(NamedTuple):
    """What a build hands over: arrays, JSON-able facts, and the state of what it read, taken before it was read."""

    arrays: Arrays
    facts: dict[str, Any]
    watched: Sequence[Seen]


class Index(NamedTuple):
    """Read-only arrays, mapped from the file, and the facts."""

    arrays: Arrays
    facts: dict[str, Any]


def seen(folder: Path | str, path: str) -> Seen:
    """The state of ``folder/path`` now.

    Raises:
        UserError: there is no such thing, or it cannot be read.
    """
    place = os.path.join(folder, path)  # noqa: PTH118 (thousands of them, and Path costs ten times as much)
    try:
        found = os.stat(place)  # noqa: PTH116
    except OSError as error:
        raise cannot_read(place, error) from None
    return Seen(path, found.st_mtime_ns, 0 if stat.S_ISDIR(found.st_mode) else found.st_size)


def cannot_read(path: Path | str, error: OSError) -> UserError:
    """The error for a file or folder that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing")
    return UserError(f"{path} cannot be read: {error.strerror or error}")


def stored(folder: Path, name: Sequence[str], key: Iterable[str], build: Callable[[], Built]) -> Index:
    """The index `name` of `folder`: as stored where that is whole and nothing changed since, else built and stored.

    It is in ``folder/.noisebench``, or where that cannot be written below ``$XDG_CACHE_HOME/noisebench``. It is written
    aside and then renamed, under a lock: a kill leaves the old one or none, and of several processes one builds.

    Args:
        folder: what is indexed; the paths of `Built.watched` are relative to it.
        name: what tells this index from others of the same folder; an index of the same name is replaced.
        key: what it was built for; one that was built for something else is rebuilt.
        build: makes it; its errors pass through.

    Raises:
        UserError: it can be written nowhere.
    """
    from filelock import FileLock  # 0.1 s

    file_name, digest = f"{name[0]}-{_digest(name)[:12]}.index", _digest(key)
    homes = _homes(folder)
    for home in homes:
        found = _opened(home / file_name, folder, digest)
        if found:
            return found
    built: Built | None = None
    reasons = []
    for home in homes:
        try:
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / f"{file_name}.lock"):
                found = None if built else _opened(home / file_name, folder, digest)
                if found:
                    return found
                built = built or build()
                _write(home / file_name, built, digest)
                return _opened(home / file_name, folder, digest, fresh=True) or Index(built.arrays, built.facts)
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            reasons.append(f"{home} ({getattr(error, 'strerror', None) or error})")
    raise UserError(
        f"the index of {folder} cannot be written: {'; '.join(reasons)}; make one of them writable, or set "
        f"XDG_CACHE_HOME to a folder that is"
    )


def _homes(folder: Path) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noisebench"
    return folder / ".noisebench", cache / _digest([str(folder.absolute())])[:16]


def _digest(parts: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


def _write(file: Path, built: Built, key: str) -> None:
    """The index as one file: magic, header, arrays, each at a multiple of 64 bytes. Called under its lock."""
    arrays = {name: np.ascontiguousarray(array) for name, array in built.arrays.items()}
    places, offset, crc = {}, 0, 0
    for name, array in arrays.items():
        places[name] = (array.dtype.str, array.shape, offset)
        offset += _padded(array.nbytes)
        crc = zlib.crc32(bytes(_padded(array.nbytes) - array.nbytes), zlib.crc32(_bytes_of(array), crc))
    now = time.time_ns()
    header = json.dumps(
        {
            "key": key,
            "facts": built.facts,
            "watched": built.watched,
            "settled": all(abs(now - one.mtime_ns) > _SETTLED for one in built.watched),
            "arrays": places,
            "bytes": offset,
            "crc": crc,
        }
    ).encode()
    for leftover in file.parent.glob(f".{file.name}.*"):
        leftover.unlink(missing_ok=True)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    try:
        with aside.open("wb") as out:
            out.write(_MAGIC + _HEAD.pack(len(header), zlib.crc32(header)) + header)
            out.write(bytes(_padded(out.tell()) - out.tell()))
            for array in arrays.values():
                out.write(_bytes_of(array))
                out.write(bytes(_padded(array.nbytes) - array.nbytes))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _padded(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


def _opened(file: Path, folder: Path, key: str, *, fresh: bool = False) -> Index | None:
    """The index in `file`, or None: there is none, it is damaged, for another key, or what it was built from changed.

    `fresh`: it was written this moment, under the lock that is still held, and is as good as what was built.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(len(_MAGIC) + _HEAD.size)
            if not start.startswith(_MAGIC):
                return None
            length, crc = _HEAD.unpack(start[len(_MAGIC) :])
            if length > os.fstat(handle.fileno()).st_size:
                return None
            content = handle.read(length)
            if zlib.crc32(content) != crc:
                return None
            header = json.loads(content)
            if not fresh and not (header["settled"] and header["key"] == key and _unchanged(header["watched"], folder)):
                return None
            body = _padded(handle.tell())
            handle.seek(body)
            if not fresh and _crc_of_rest(handle) != (header["bytes"], header["crc"]):
                return None
            whole = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    arrays = {
        name: np.frombuffer(whole, np.dtype(kind), count=int(np.prod(shape)), offset=body + offset).reshape(shape)
        for name, (kind, shape, offset) in header["arrays"].items()
    }
    return Index(arrays, header["facts"])


def _unchanged(watched: Sequence[tuple[str, int, int]], folder: Path) -> bool:
    try:
        return all(seen(folder, path) == (path, mtime, size) for path, mtime, size in watched)
    except UserError:
        return False


def _crc_of_rest(handle: Any) -> tuple[int, int]:
    """Bytes and CRC-32 of what follows; read, not mapped, so that it does not count as the process's memory."""
    count = crc = 0
    while chunk := handle.read(1 << 20):
        count, crc = count + len(chunk), zlib.crc32(chunk, crc)
    return count, crc
