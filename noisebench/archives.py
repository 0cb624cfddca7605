"""What a publisher ships packed, unpacked once: into a folder aside, then renamed, and nothing outside of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from lzma import LZMAError
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from filelock import FileLock

from noisebench.errors import UserError

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, e.g. "unpacking a.tar", and how much of it: done, of a total."""

_watchers: ContextVar[tuple[Progress, ...]] = ContextVar("_watchers", default=())
_published: ContextVar[Mapping[Path, str]] = ContextVar("_published", default=MappingProxyType({}))
_CHUNK = 1 << 22
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError)
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@contextmanager
def progress_to(watcher: Progress) -> Iterator[None]:
    """Within, `watcher` is told too of work that takes long, wherever that is done."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def report(what: str, done: int = 0, total: int = 0) -> None:
    """Tell who watches, if anybody does, that `done` of `total` is done of `what`; 0 of 0 where that is not known."""
    for watcher in _watchers.get():
        watcher(what, done, total)


@contextmanager
def published(md5: Mapping[Path, str]) -> Iterator[None]:
    """Within, an archive that `md5` gives the published MD5 of is compared with it before it is unpacked, wherever that
    is done; with "" it is not."""
    token = _published.set({archive.absolute(): digest for archive, digest in md5.items()})
    try:
        yield
    finally:
        _published.reset(token)


def content_of(file: Path) -> Iterator[bytes]:
    """A file's content, in parts; who watches is told how much of it is read."""
    with file.open("rb") as content:
        size, done = file.stat().st_size, 0
        while chunk := content.read(_CHUNK):
            done += len(chunk)
            report(f"reading {file.name}", done, size)
            yield chunk


def unpack(archive: Path, into: Path, *, inner: str = "") -> bool:
    """Unpack `archive` as the folder `into`, which is whole or absent afterwards; False where it is there already.

    Files and folders alone are made, with the rights that new ones have here; a link or a device is refused like a
    name that leads outside, before anything is written. One process at a time unpacks, others wait for it.

    Args:
        archive: .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip.
        into: the folder to make; its parents are made too.
        inner: the folder in the archive that becomes `into`, e.g. its one top folder; what lies beside it is dropped.

    Raises:
        UserError: the archive is missing, damaged, of another kind, not the `published` one, would write outside of its
            folder, or has two members of one name; it has no folder `inner`; or `into` cannot be written. Nothing is
            left then.
    """
    if not archive.name.lower().endswith(SUFFIXES):
        raise UserError(f"{archive} is no archive that can be unpacked; give one of {', '.join(SUFFIXES)}")
    return _unpack(archive, into, _zip if archive.name.lower().endswith(".zip") else _tar, inner)


def unpack_nested(archive: Path, into: Path) -> bool:
    """Unpack a tar of one tar per class, as ImageNet's are, as ``into/CLASS/...``; otherwise like `unpack`.

    The inner archives are read where they lie: no second copy is written.
    """
    return _unpack(archive, into, _tar_of_tars, "")


class _Member(NamedTuple):
    """A file, or a folder (`open` is None) of an archive: `parts` of its path, and how far the archive was read."""

    parts: tuple[str, ...]
    open: Callable[[], IO[bytes] | None] | None
    place: int


_Reader: TypeAlias = Callable[[Path], Iterator[_Member]]


def _unpack(archive: Path, into: Path, read: _Reader, inner: str) -> bool:
    if into.is_dir():
        return False
    if into.exists():
        raise UserError(f"{into} is there, and no folder; move it away")
    if not archive.is_file():
        raise UserError(f"{archive} is missing")
    aside = into.with_name(f".{into.name}.unpacking")
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(into.with_name(f".{into.name}.lock")):
            if into.is_dir():
                return False
            _compare(archive)
            shutil.rmtree(aside, ignore_errors=True)  # of a killed process
            try:
                _write(archive, aside, read)
                found = aside / inner
                if not found.is_dir():
                    raise UserError(f"{archive} has no folder {inner}; it is not the archive that is meant")
                found.rename(into)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except _DAMAGED as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own, of what they read
            raise _damaged(archive, error) from None
        where = error.filename or into
        raise UserError(
            f"{archive} cannot be unpacked into {into}: {where}: {error.strerror}; nothing of it is left there"
        ) from None
    return True


def _compare(archive: Path) -> None:
    right, whole = _published.get().get(archive.absolute(), ""), hashlib.md5(usedforsecurity=False)
    if not right:
        return
    for chunk in content_of(archive):
        whole.update(chunk)
    if whole.hexdigest() != right:
        raise UserError(
            f"{archive} has {archive.stat().st_size:,} bytes and MD5 {whole.hexdigest()}, not the published {right}; "
            f"delete it and copy it anew"
        )


def _damaged(archive: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{archive} is damaged or no archive: {reason[:200]}; copy or download it anew")


def _write(archive: Path, aside: Path, read: _Reader) -> None:
    """All of the archive is read twice: its names and links are checked before the first file is written."""
    size = archive.stat().st_size
    for member in read(archive):
        report(f"checking {archive.name}", member.place, size)
    aside.mkdir()
    made = {aside}
    for member in read(archive):
        report(f"unpacking {archive.name}", member.place, size)
        target = aside.joinpath(*member.parts)
        folder = target if member.open is None else target.parent
        try:
            if folder not in made:
                folder.mkdir(parents=True, exist_ok=True)
                made.add(folder)
            source = member.open() if member.open else None
            if source is not None:
                with source, target.open("xb") as copy:  # found here, since a set of a million names takes memory
                    shutil.copyfileobj(source, copy, 1 << 20)
        except (FileExistsError, NotADirectoryError):
            name = "/".join(member.parts)
            why = "is there twice" if member.open and target.is_file() else "needs a folder and a file of one name"
            raise UserError(f"{archive} is refused: its member '{name}' {why}; nothing of it is left there") from None
    report(f"unpacking {archive.name}", size, size)


def _parts(archive: Path, name: str, kind: str) -> tuple[str, ...]:
    """The path's parts, none of which leads upwards.

    Raises:
        UserError: the name leads outside, or the member is neither a file nor a folder.
    """
    parts = tuple(part for part in re.split(r"[/\\]", name) if part not in ("", "."))
    if name[:1] in ("/", "\\") or ".." in parts or "\0" in name or re.match("[A-Za-z]:", name):
        kind = "a path that leads outside of its folder"
    if kind:
        raise UserError(f"{archive} is refused: its member '{name}' is {kind}; nothing was unpacked")
    return parts


class _Header(tarfile.TarInfo):
    """A tar's header, of which a damaged or missing one is an error; tarfile takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):  # the mark of the end
                raise
            early = len(buf) < tarfile.BLOCKSIZE
            raise tarfile.ReadError("it ends too early" if early else "a header is broken") from None


def _opened(file: IO[bytes], mode: Literal["r:*", "r:"]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header)
    except tarfile.TarError:  # its message names every compression that it is not
        raise tarfile.ReadError("it is no tar, or broken from its start") from None


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million of them would stay in memory
        yield member


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg() or member.isdir():
        return ""
    return "a link, and data are files" if member.issym() or member.islnk() else "a device or a pipe"


def _tar(archive: Path) -> Iterator[_Member]:
    with archive.open("rb") as raw, _opened(raw, "r:*") as tar:
        for member in _members(tar):
            parts = _parts(archive, member.name, _kind(member))
            yield _Member(parts, None if member.isdir() else partial(tar.extractfile, member), raw.tell())
        rest: Any = tar.fileobj
        while rest.read(1 << 20):  # to the end: a compressed file's checksum stands there
            pass


def _tar_of_tars(archive: Path) -> Iterator[_Member]:
    for outer in _tar(archive):
        if outer.open is None:
            continue
        name = "/".join(outer.parts)
        with outer.open() as packed:  # type: ignore[union-attr]
            try:
                with _opened(packed, "r:") as tar:
                    folder = tuple(name.removesuffix(".tar").split("/"))
                    yield _Member(folder, None, outer.place)
                    for member in _members(tar):
                        parts = folder + _parts(archive, member.name, _kind(member))
                        yield _Member(parts, None if member.isdir() else partial(tar.extractfile, member), outer.place)
            except tarfile.TarError as error:
                raise tarfile.ReadError(f"its member '{name}' is no whole tar ({error})") from None


def _zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        place = 0
        for member in packed.infolist():
            mode = member.external_attr >> 16
            kind = "a link, and data are files" if stat.S_ISLNK(mode) else "encrypted" if member.flag_bits & 1 else ""
            parts = _parts(archive, member.orig_filename, kind)
            yield _Member(parts, None if member.is_dir() else partial(packed.open, member), place)
            place += member.compress_size
