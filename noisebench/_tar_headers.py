"""Where the files of an uncompressed tar lie: its headers alone, at a tenth of tarfile's time; nothing is unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from noisebench.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_BLOCK = 512
_LONGEST_NAME = 1 << 20
_PLAIN = b"0", b"\0", b"7"
_WITHOUT_CONTENT = b"1", b"2", b"3", b"4", b"5", b"6"
"""Links, devices, folders and pipes: whatever their size says, no content follows."""


class Member(NamedTuple):
    """A plain file in a tar: its name there, and where its content begins and how long it is, in bytes."""

    name: str
    start: int
    size: int


def members(shard: Path, handle: int) -> Iterator[Member]:
    """The plain files of the tar that is open as the descriptor `handle`: ustar, GNU and pax names and sizes.

    Raises:
        UserError: it is compressed, truncated, damaged, no tar, or has a sparse file; `shard` is what it is called.
        OSError: it cannot be read.
    """
    total, at = os.fstat(handle).st_size, 0
    said: dict[str, str] = {}
    while True:
        header = os.pread(handle, _BLOCK, at)
        if not at:
            packer = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), None)
            if packer:
                raise UserError(f"{shard} is compressed ({packer}); unpack it to a plain .tar, to read images singly")
        if len(header) < _BLOCK:
            raise UserError(f"{shard} is truncated: it ends at byte {total} without the mark of its end; copy it anew")
        if not header.strip(b"\0"):
            return
        kind, start = header[156:157], at + _BLOCK
        try:
            if sum(header) - sum(header[148:156]) + 256 != _number(header[148:156]):
                raise ValueError
            size = int(said.pop("size", _number(header[124:136])))
            if size < 0:
                raise ValueError
        except ValueError:
            raise UserError(f"{shard} is damaged at byte {at}, or no tar file; copy it anew") from None
        if kind in _WITHOUT_CONTENT:
            size = 0
        at = start + -(-size // _BLOCK) * _BLOCK
        if start + size > total:
            raise UserError(
                f"{shard} is truncated: it has {total} bytes, and a file in it ends at {start + size}; copy it anew"
            )
        if kind in (b"x", b"L"):
            if size > _LONGEST_NAME:
                raise UserError(f"{shard} is damaged at byte {start}: a name of {size} bytes; copy it anew")
            content = os.pread(handle, size, start)
            said |= _pax(content, shard, start) if kind == b"x" else {"path": _text(content)}
        elif kind not in (b"g", b"K"):
            name = said.get("path") or _name(header)
            if kind == b"S" or any(key.startswith("GNU.sparse") for key in said):
                raise UserError(f"{shard}: {name} is a sparse file; make the shard without --sparse")
            said = {}
            if kind in _PLAIN and not name.endswith("/"):
                yield Member(name, start, size)


def _name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Octal digits, or as GNU has large ones, 256-based."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _pax(content: bytes, shard: Path, at: int) -> dict[str, str]:
    """Records ``LENGTH key=value\\n``."""
    found = {}
    while content:
        length, space, _ = content.partition(b" ")
        end = int(length) if length.isdigit() else 0
        key, equals, value = content[len(length) + 1 : end - 1].partition(b"=")
        if not (space and equals and len(length) < end <= len(content)):
            raise UserError(f"{shard} is damaged at byte {at}: its pax header is no list of records; copy it anew")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[end:]
    return found
