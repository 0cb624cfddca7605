"""Images in files and in tar files, with their names in two arrays: what an index of millions is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from noisebench._index_store import cannot_read
from noisebench.errors import UserError

Ints: TypeAlias = npt.NDArray[np.int64]
CHUNK = 65_536
"""How many names are Python objects at a time."""
_OPEN_SHARDS = 64


class Names:
    """A read-only sequence of strings in two arrays, which may be mapped from a file; 8 bytes more than their UTF-8.

    Args:
        text: uint8, their UTF-8, one after the other (lone surrogates, as in names of files that are no UTF-8,
            included).
        offsets: int64 [N + 1], where each begins, and the end of the last.
    """

    def __init__(self, text: npt.NDArray[np.uint8], offsets: Ints) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The strings of `names`, in their order."""
        packing, rest = Packing(), iter(names)
        while chunk := list(islice(rest, CHUNK)):
            packing.add(chunk)
        return packing.names()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        i = _place(i, len(self))
        return self.text[self.offsets[i] : self.offsets[i + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def take(self, positions: Ints) -> Names:
        """Those at `positions` (int64, each in 0..N-1), in that order, copied.

        Raises:
            IndexError: a position is not in 0..N-1.
        """
        _in_range(positions, len(self))
        sizes = np.diff(self.offsets)[positions]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        text = np.empty(int(offsets[-1]), np.uint8)
        for i, start in enumerate(self.offsets[positions].tolist()):
            text[offsets[i] : offsets[i + 1]] = self.text[start : start + sizes[i]]
        return Names(text, offsets)


class Packing:
    """Collects strings into the arrays of `Names`, without keeping a Python object for each."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._sizes: list[npt.NDArray[np.int32]] = []

    def add(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._text.append(b"".join(encoded))
        self._sizes.append(np.fromiter(map(len, encoded), np.int32, count=len(encoded)))

    def names(self) -> Names:
        offsets = np.zeros(1 + sum(map(len, self._sizes)), np.int64)
        np.cumsum(np.concatenate([np.zeros(0, np.int32), *self._sizes]), out=offsets[1:])
        text = b"".join(self._text)
        return Names(np.frombuffer(text, np.uint8) if text else np.zeros(0, np.uint8), offsets)


def _place(i: int, count: int) -> int:
    if not -count <= i < count:
        raise IndexError(f"{i} is not among {count}")
    return i % count


def _in_range(positions: Ints, count: int) -> None:
    if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < count:
        raise IndexError(f"positions are {positions.min()}..{positions.max()}, not in 0..{count - 1}")


def _taken(before: Ints | None, positions: Ints, count: int) -> Ints:
    positions = np.asarray(positions, np.int64)
    _in_range(positions, count)
    return positions if before is None else before[positions]


class FileImages:
    """Images in files of their own, as `EncodedImages`.

    Args:
        folder: what the names are relative to.
        names: paths of all files, with ``/``.
        positions: int64 [N], which of them these images are; all, in their order, where it is not given.
    """

    def __init__(self, folder: Path, names: Names, positions: Ints | None = None) -> None:
        self.folder, self.names, self.positions = folder, names, positions

    def __len__(self) -> int:
        return len(self.names) if self.positions is None else len(self.positions)

    def name(self, i: int, /) -> str:
        """Image `i`'s file."""
        i = _place(i, len(self))
        return f"{self.folder}/{self.names[i if self.positions is None else int(self.positions[i])]}"

    def encoded(self, i: int, /) -> bytes:
        """The content of image `i`'s file.

        Raises:
            UserError: it is missing or cannot be read.
        """
        file = self.name(i)
        try:
            with open(file, "rb", buffering=0) as handle:  # noqa: PTH123 (a Path for every image is slow)
                return handle.read()
        except OSError as error:
            raise cannot_read(file, error) from None

    def take(self, positions: Ints) -> FileImages:
        """The images at `positions` (int64), in that order; the names are shared, not copied.

        Raises:
            IndexError: a position is not in 0..N-1.
        """
        return FileImages(self.folder, self.names, _taken(self.positions, positions, len(self)))


class TarImages:
    """Images inside uncompressed tar files ("shards"), as `EncodedImages`: 16 bytes and a name for each.

    Reading uses no file position, so that forked processes and threads may share an object; at most 64 shards are kept
    open.

    Args:
        shards: the tar files.
        shard: int32 [N], which of them an image is in.
        start: int64 [N], where its content begins, in bytes.
        size: int64 or int32 [N], how long it is, in bytes.
        names: its name in the shard.
        positions: int64 [M], which of the N these images are; all, in their order, where it is not given.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        shard: npt.NDArray[np.int32],
        start: Ints,
        size: npt.NDArray[np.integer[Any]],
        names: Names,
        positions: Ints | None = None,
    ) -> None:
        self.shards, self.shard, self.start, self.size, self.names = tuple(shards), shard, start, size, names
        self.positions = positions
        self._open = _OpenFiles()

    def __len__(self) -> int:
        return len(self.names) if self.positions is None else len(self.positions)

    def _row(self, i: int) -> int:
        i = _place(i, len(self))
        return i if self.positions is None else int(self.positions[i])

    def name(self, i: int, /) -> str:
        """Image `i`'s shard, and its name there."""
        row = self._row(i)
        return f"{self.shards[self.shard[row]]}: {self.names[row]}"

    def encoded(self, i: int, /) -> bytes:
        """The content of image `i`.

        Raises:
            UserError: the shard is missing, cannot be read, or is shorter than it was when it was listed.
        """
        row = self._row(i)
        shard, size = self.shards[self.shard[row]], int(self.size[row])
        try:
            content = self._open.read(shard, size, int(self.start[row]))
        except OSError as error:
            raise cannot_read(shard, error) from None
        if len(content) != size:
            raise UserError(f"{shard} is shorter than it was when this run began; copy it anew and start again")
        return content

    def take(self, positions: Ints) -> TarImages:
        """The images at `positions` (int64), in that order; the arrays are shared, not copied.

        Raises:
            IndexError: a position is not in 0..N-1.
        """
        rows = _taken(self.positions, positions, len(self))
        return TarImages(self.shards, self.shard, self.start, self.size, self.names, rows)


class _OpenFiles:
    """A bounded store of open files. A reader takes one out, so that no thread closes what another is reading from."""

    def __init__(self) -> None:
        self._idle: dict[Path, int] = {}

    def read(self, file: Path, size: int, start: int) -> bytes:
        handle = self._idle.pop(file, None)
        if handle is None:
            handle = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            return os.pread(handle, size, start)
        finally:
            if self._idle.setdefault(file, handle) != handle:
                os.close(handle)
            while len(self._idle) > _OPEN_SHARDS:
                with suppress(StopIteration, KeyError, RuntimeError):  # another thread was quicker
                    os.close(self._idle.pop(next(iter(self._idle))))

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()  # an open file means nothing in another process

    def __del__(self) -> None:
        for handle in self._idle.values():
            with suppress(OSError):
                os.close(handle)
