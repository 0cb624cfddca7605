"""What `noisebench data` does: a dataset's files against their checksums, and unpacking or converting them once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from noisebench import dataset_names
from noisebench.archives import SUFFIXES, content_of, progress_to, published, report
from noisebench.errors import UserError

if TYPE_CHECKING:
    from noisebench.data import ImageData

T = TypeVar("T")


@dataclass(frozen=True)
class FileCheck:
    """What was found of one file.

    Attributes:
        file: its path below the data root.
        status: "ok"; "missing"; "changed", where its MD5 is not the published one; "unknown", where none is published;
            "unreadable"; or "not needed": an archive that is not there, of a dataset that loads, or a file of further
            tests that is not there.
        published: its MD5, or "" where none is published.
        found: its MD5; the SHA-256 where none is published, so that two places can compare; "" if it was not read.
        size: in bytes.
        reason: why it is unreadable.
    """

    file: str
    status: str
    published: str = ""
    found: str = ""
    size: int | None = None
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the dataset is not whole, by this file."""
        return self.status in ("missing", "changed", "unreadable")


@dataclass(frozen=True)
class Verified:
    """All that `verify` found.

    Attributes:
        dataset: as it was named.
        root: the data folder.
        source: where the dataset is to be had.
        files: each file.
        holds: what the dataset holds, in words; "" if it did not load.
        reason: why it did not load, or was not tried.
        further: the further tests that it offers, each with why it cannot be read, or "".
        ok: whether all of it is right; a further test whose files are not there does not count.
    """

    dataset: str
    root: str | None
    source: str
    files: tuple[FileCheck, ...]
    holds: str = ""
    reason: str = ""
    further: dict[str, str] = field(default_factory=dict)
    ok: bool = False


def verify(name: str, root: Path | None) -> Verified:
    """Compare a dataset's files with their published checksums, then load it, and its further tests.

    Files are those of its constants ``FILES`` and ``EXTRA_FILES``, {path below the root: MD5, or "" for none}; the
    latter, of further tests, may be missing. The dataset is not loaded where a file that this needs is not right.
    Archives are not needed any more where it loads without them.

    Args:
        name: as on a board, e.g. ``digits``, ``digits@300`` (the whole of it is verified) or ``image_folder:PATH``.
        root: the data folder.

    Raises:
        UserError: an unknown name, a path that is missing or one too many, a dataset whose plug-in is broken, or no
            root where there are files.
    """
    module = dataset_names.dataset_module(name, root)
    needed, optional = _files_of(module, "FILES"), _files_of(module, "EXTRA_FILES")
    files: list[FileCheck] = []
    if needed or (optional and root is not None):
        folder = _folder(name, root)
        files = [_check(folder, file, md5) for file, md5 in needed.items()]
        files += [_excused(_check(folder, file, md5)) for file, md5 in optional.items()]
    about = Verified(name, None if root is None else str(root), _source(module), tuple(files))
    for file in files:
        if file.failed and not (file.status == "missing" and _packed(file.file)):
            return replace(about, reason=f"not tried: {file.file} is {file.status}")
    data = _attempt(partial(_loaded, name, root))
    if isinstance(data, str):
        return replace(about, reason=data)
    tests = {test: _attempt(partial(data.extra_test, test)) for test in data.extra_tests}
    further = {test: found if isinstance(found, str) else "" for test, found in tests.items()}
    whole = bool(optional) and not any(file.status == "not needed" for file in files)
    excused = tuple(map(_excused, files))
    ok = not any(file.failed for file in excused) and not (whole and any(further.values()))
    return replace(about, files=excused, holds=_described(data), further=further, ok=ok)


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        dataset: as it was named.
        done: what was done, in words; empty if nothing was to be done.
        missing: files that are not there.
        source: where they are to be had.
    """

    dataset: str
    done: tuple[str, ...]
    missing: tuple[str, ...]
    source: str


def prepare(name: str, root: Path | None) -> Prepared:
    """Let a dataset unpack or convert what its publisher ships; once, so that a second call finds nothing to do.

    An archive whose MD5 is published in ``FILES`` is compared with it before it is unpacked.

    Raises:
        UserError: an unknown name, a path that is missing or one too many, no root where one is needed, an archive that
            is not the published one, or what the dataset's own `prepare` refuses.
    """
    module = dataset_names.dataset_module(name, root)
    own, files = getattr(module, "prepare", None), _files_of(module, "FILES")
    if own is not None or files:
        root = _folder(name, root)
    done: dict[str, None] = {}
    if own is not None and root is not None:
        with (
            progress_to(lambda what, *_: done.setdefault(what)),
            published({root / f: md5 for f, md5 in files.items()}),
        ):
            try:
                own(root)
            except UserError as error:
                if str(error).endswith("is missing"):
                    raise UserError(f"{error}; get it from {_source(module)}") from None
                raise
    missing = [f for f in files if root is not None and not (root / f).exists() and not (own and _packed(f))]
    return Prepared(name, tuple(done), tuple(missing), _source(module))


def _folder(name: str, root: Path | None) -> Path:
    from noisebench.torchvision_data import data_root

    return data_root(name, root)


def _files_of(module: Any, constant: str) -> Mapping[str, str]:
    files: Mapping[str, str] = getattr(module, constant, {})
    return files


def _source(module: Any) -> str:
    return str(getattr(module, "SOURCE", ""))


def _packed(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _excused(file: FileCheck) -> FileCheck:
    return replace(file, status="not needed") if file.status == "missing" else file


def _check(root: Path, file: str, md5: str) -> FileCheck:
    path = root / file
    try:
        if path.is_dir():
            return FileCheck(file, "unknown", md5)
        size = path.stat().st_size
        digest = hashlib.md5(usedforsecurity=False) if md5 else hashlib.sha256()
        for chunk in content_of(path):
            digest.update(chunk)
    except (FileNotFoundError, NotADirectoryError):
        return FileCheck(file, "missing", md5)
    except OSError as error:
        return FileCheck(file, "unreadable", md5, reason=error.strerror or str(error))
    found = digest.hexdigest()
    status = "unknown" if not md5 else "ok" if found == md5 else "changed"
    return FileCheck(file, status, md5, found, size)


def _loaded(name: str, root: Path | None) -> ImageData:
    from noisebench.loading import load_dataset

    report(f"loading {name}")
    return load_dataset(name, root)


def _described(data: ImageData) -> str:
    train, test = len(data.train_labels), len(data.test_labels)
    text = f"{train:,} training and {test:,} test images, {data.num_classes:,} classes"
    return text + (f"; labels that people gave: {', '.join(data.given_labels)}" if data.given_labels else "")


def _attempt(load: Callable[[], T]) -> T | str:
    """What it gives, or in one line why it cannot."""
    try:
        return load()
    except UserError as error:
        return str(error)
    except Exception as error:  # a plug-in's
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
