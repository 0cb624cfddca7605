"""Which images a folder holds: listed once into an index beside them, then memory-mapped.

Opening costs one look at the folders (not at the files), so 1.3 million files open in well under two seconds. Names
stay in the mapped file; a process holds its labels, and where it uses a part of the images, 8 bytes for each of them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from noisebench._index_images import CHUNK, FileImages, Ints, Names, Packing, TarImages
from noisebench._index_store import Built, Seen, cannot_read, seen, stored
from noisebench.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, in either case; those of torchvision's `ImageFolder`."""

__all__ = [
    "CHUNK",
    "IMAGE_SUFFIXES",
    "Built",
    "FileImages",
    "Listed",
    "ListedFiles",
    "Names",
    "Packing",
    "TarImages",
    "cannot_read",
    "list_folders",
    "list_lines",
    "seen",
    "stored",
]


class Listed(NamedTuple):
    """Images with their labels.

    Attributes:
        images: N of them.
        labels: int64 [N], a class for each; or where `label_sets` is given, the id of a set of classes.
        classes: names of the K classes.
        label_sets: where an image may have several classes: `starts` int64 [S + 1] and `classes` int32, the arguments
            of `LabelSets`.
    """

    images: FileImages | TarImages
    labels: Ints
    classes: tuple[str, ...]
    label_sets: tuple[Ints, npt.NDArray[np.int32]] | None = None


def list_folders(
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    inner: str = "",
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Listed:
    """The images of ``folder/CLASS[/inner]/``, by class and then by name; hidden files and folders are left out.

    Args:
        folder: holds a folder for each class.
        classes: names of the classes' folders, in the order of their labels; the sorted names of all folders where they
            are not given.
        inner: where a class's images are in its folder.
        suffixes: endings of the files that count, in lower case; others are left out.

    Raises:
        UserError: a folder is missing, cannot be read, is no class's, holds no image, or holds a folder beside them.
    """
    found = sorted(entry.name for entry in _entries(folder) if not entry.name.startswith(".") and entry.is_dir())
    classes = tuple(found if classes is None else classes)
    if not classes:
        raise UserError(f"{folder} has no folder; give each class's images a folder of its own there")
    if len(set(classes)) != len(classes):
        raise UserError(f"{folder}: class '{next(c for c in classes if classes.count(c) > 1)}' is given twice")
    strange, missing = sorted(set(found) - set(classes)), sorted(set(classes) - set(found))
    if strange:
        raise UserError(f"{folder} has {_many(strange, 'folder')} of no class; move what is no class elsewhere")
    if missing:
        raise UserError(f"{folder} lacks {_many(missing, 'folder')} of its {len(classes)} classes; unpack it anew")

    def build() -> Built:
        packing, counts, watched = Packing(), [], []
        for name in classes:
            path = f"{name}/{inner}".rstrip("/")
            watched.append(seen(folder, path))
            files = _image_files(folder / path, tuple(suffixes))
            packing.add(f"{path}/{file}" for file in files)
            counts.append(len(files))
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        return Built(_arrays(packing.names(), labels), {}, watched)

    index = stored(folder, ["folders", inner, *suffixes], classes, build)
    return _listed(folder, index.arrays, classes)


def _image_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names of a class's images."""
    files = []
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.name.lower().endswith(suffixes):
            files.append(entry.name)
        elif entry.is_dir():
            raise UserError(f"{entry.path} is a folder among a class's images; move its images one up, or it elsewhere")
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(suffixes)}); put a class's images there, or remove it")
    return sorted(files)


def list_lines(
    folder: Path,
    listings: Sequence[Path],
    read: Callable[[], Iterable[tuple[str, int]]],
    classes: tuple[str, ...],
    *,
    part: str = "",
) -> Listed:
    """The images that list files name, in their order.

    Args:
        folder: what the listed paths are relative to.
        listings: the list files, at least one; when their size or time changes, they are read again.
        read: reads them into (path below `folder`, label in 0..K-1) pairs; called only where the index is not there.
        classes: names of the K classes.
        part: which part of the listings `read` gives, where several calls have the same listings; also what else
            decides about its result.

    Raises:
        UserError: a path leads outside `folder`, is there twice, or names no file; a label is no class; no image is
            listed; a list or folder cannot be read. The message names the lists.
    """
    where = ", ".join(map(str, listings))

    def build() -> Built:
        watched = [seen(folder, os.path.relpath(listing, folder)) for listing in listings]
        check, packing, labels = ListedFiles(folder, where), Packing(), []
        pairs = iter(read())
        while chunk := list(islice(pairs, CHUNK)):
            packing.add([check.path(path, f"image {check.count + 1}") for path, _ in chunk])
            labels.append(np.array([label for _, label in chunk], np.int64))
            wrong = np.flatnonzero((labels[-1] < 0) | (labels[-1] >= len(classes)))
            if wrong.size:
                path, label = chunk[int(wrong[0])]
                raise UserError(f"{where}: '{path}' has class {label}; labels are in 0..{len(classes) - 1}")
        check.finish()
        arrays = _arrays(packing.names(), np.concatenate(labels).astype(np.int32))
        return Built(arrays, {}, watched + check.watched)

    relative = [os.path.relpath(listing, folder) for listing in listings]
    index = stored(folder, ["lines", part, *relative], classes, build)
    return _listed(folder, index.arrays, classes)


class ListedFiles:
    """Checks that what a list names is there, once, and below `folder`; looks at folders, not at each file.

    `watched` is the state of every folder that was looked into, `count` how many paths were seen.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self.folder, self.where = folder, where
        self.watched: list[Seen] = []
        self.count = 0
        self._left: dict[str, set[str]] = {}
        self._missing: list[str] = []

    def path(self, path: str, place: str) -> str:
        """`path` without ``.`` and ``..``; `place` is where in the list it is.

        Raises:
            UserError: it leads outside the folder, or was listed before.
        """
        self.count += 1
        tidy = posixpath.normpath(path) if path else "."
        if tidy in (".", "..") or tidy.startswith(("/", "../")) or "\0" in path:
            raise UserError(f"{self.where}: {place}: '{path}' is no path below {self.folder}; give relative paths")
        parent, _, name = tidy.rpartition("/")
        if parent not in self._left:
            self._left[parent] = self._files(parent)
        left = self._left[parent]
        if name in left:
            left.remove(name)
        elif (self.folder / tidy).is_file():
            raise UserError(f"{self.where}: {place}: '{path}' is there twice; list each image once")
        else:
            self._missing.append(tidy)
        return tidy

    def _files(self, parent: str) -> set[str]:
        if not (self.folder / parent).is_dir():
            return set()
        self.watched.append(seen(self.folder, parent or "."))
        return {entry.name for entry in _entries(self.folder / parent) if not entry.is_dir()}

    def finish(self) -> None:
        """After the last path.

        Raises:
            UserError: some were missing, or there was none.
        """
        if self._missing:
            raise UserError(
                f"{self.where}: {len(self._missing)} of {self.count} images are missing, the first is "
                f"{self.folder / self._missing[0]}; unpack them there, or take them from the list"
            )
        if not self.count:
            raise UserError(f"{self.where} names no image")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What `folder` holds, in no order."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except NotADirectoryError:
        raise UserError(f"{folder} is no folder") from None
    except OSError as error:
        raise cannot_read(folder, error) from None


def _many(names: Sequence[str], what: str) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown}{', ...' if len(names) > 3 else ''})"


def _arrays(names: Names, labels: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    return {"text": names.text, "offsets": names.offsets, "labels": labels}


def _listed(folder: Path, arrays: dict[str, npt.NDArray[Any]], classes: tuple[str, ...]) -> Listed:
    images = FileImages(folder, Names(arrays["text"], arrays["offsets"]))
    return Listed(images, arrays["labels"].astype(np.int64), classes)
