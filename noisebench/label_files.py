"""Labels that people gave, as publishers ship them beside a dataset's images: every file is checked before it is read,
nothing in it is run, and its order is proven against the labels of the images."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from noisebench.errors import UserError
from noisebench.image_data import ExtraTest, Labels

AGREED = 3
"""So many of five workers are a verdict (Northcutt et al., 2021)."""
SAME = 0.9
"""The share of images of which people's likeliest class must be the label; in another order about one in K is."""


class LabelFile(NamedTuple):
    """A publisher's file.

    Attributes:
        path: where it lies.
        md5: of its content, which is what makes it the publisher's.
        source: where to get it.
    """

    path: Path
    md5: str
    source: str

    def content(self) -> bytes:
        """Its bytes; those that were checked are those that are used.

        Raises:
            UserError: it is missing, cannot be read, or its content is not the publisher's.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{self.path} is missing; get it from {self.source} (--download does not)") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != self.md5:
            raise self.refused(f"has {len(content)} bytes and MD5 {found}, not the published {self.md5}")
        return content

    def refused(self, reason: str) -> UserError:
        """The error for a file that is not what it should be: ``<path> <reason>; copy it anew from <source>``."""
        return UserError(f"{self.path} {reason}; copy it anew from {self.source}")


def pickled_columns(file: LabelFile, classes: Mapping[str, int], count: int) -> dict[str, npt.NDArray[np.int64]]:
    """Columns of labels from a file that `torch.save` made of a dict of NumPy arrays or lists.

    It is a pickle, so it is opened with ``weights_only=True``, NumPy's arrays being all that it may ask for besides.

    Args:
        file: the file.
        classes: {column: number of its classes}, the columns to read.
        count: the number of images N.

    Returns:
        {column: int64 [N]}.

    Raises:
        UserError: the file is missing, truncated or forged, or a column is missing, of another length, holds no whole
            numbers, or one that is no class.
    """
    content = file.content()
    try:
        with torch.serialization.safe_globals(_array_parts()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a damaged file before it fails
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is none of its own, torch raises many kinds
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"asks for {asked[1]}, and may ask for arrays alone" if asked else "is no whole file of label arrays"
        raise file.refused(why) from None
    if not isinstance(found, dict):
        raise file.refused(f"holds {type(found).__name__}, not a dict of labels")
    return {name: _column(file, found, name, most, count) for name, most in classes.items()}


def _array_parts() -> list[Any]:
    """What a pickled int64 array asks for beyond what torch allows; NumPy 2 renamed the module of its function."""
    rebuild = np.empty(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, type(np.dtype(np.int64))]


def _column(file: LabelFile, columns: dict[Any, Any], name: str, classes: int, count: int) -> npt.NDArray[np.int64]:
    if name not in columns:
        raise file.refused(f"has no '{name}', but {', '.join(sorted(map(str, columns))) or 'nothing'}")
    try:
        values = np.asarray(columns[name])
    except (ValueError, OverflowError):  # lists in lists, or a number that fits no type
        raise file.refused(f"holds no plain list as '{name}'") from None
    if values.dtype.kind not in "iu" or values.shape != (count,):
        found = f"{values.dtype} {list(values.shape)}"
        raise file.refused(f"holds {found} as '{name}', not a whole number for each of {count} images")
    wrong = values[(values < 0) | (values >= classes)]
    if len(wrong):
        raise file.refused(f"holds class {wrong[0]} in '{name}', which has classes 0..{classes - 1}")
    return values.astype(np.int64)


def check_same(file: LabelFile, found: npt.NDArray[np.int64], labels: Labels, what: str) -> None:
    """Refuse a file whose own copy of the true labels is not that of the images: its rows belong to others.

    Args:
        file: the file.
        found: int64 [N], the true labels as the file has them.
        labels: int64 [N], those of the images.
        what: what a message calls `found`, e.g. ``"its clean_label"``.

    Raises:
        UserError: saying for how many images they differ.
    """
    differ = int((found != labels).sum())
    if differ:
        raise UserError(
            f"{file.path}: {what} differs from the labels of the images for {differ} of {len(labels)}: it is "
            f"re-ordered or of another set; get the one in the images' order from {file.source}"
        )


def people_test(file: LabelFile, labels: Labels, num_classes: int) -> ExtraTest:
    """What share of people chose each class for each test image, from a .npy file.

    Args:
        file: float [M, K], rows that sum to one, in the order of the images.
        labels: int64 [M], the test labels.
        num_classes: K.

    Returns:
        `soft`, float64 [M, K]; the labels stay those of the test set.

    Raises:
        UserError: the file is missing, damaged or no such array, or people's likeliest class is the label of fewer than
            nine in ten images: it is of another set or in another order.
    """
    content = file.content()
    try:
        shares = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise file.refused("is no whole .npy file of plain numbers") from None
    if not isinstance(shares, np.ndarray) or shares.dtype.kind != "f" or shares.shape != (len(labels), num_classes):
        found = f"{shares.dtype} {list(shares.shape)}" if isinstance(shares, np.ndarray) else "an archive"
        raise file.refused(f"holds {found}, not float [{len(labels)}, {num_classes}]")
    soft = shares.astype(np.float64)
    bad = np.flatnonzero(~((soft >= 0).all(1) & (abs(soft.sum(1) - 1) <= 1e-6)))
    if len(bad):
        raise file.refused(f"holds in row {bad[0]} no shares that sum to one")
    agree = int((soft.argmax(1) == labels).sum())
    if agree < SAME * len(labels):
        raise UserError(
            f"{file.path}: people's likeliest class is the test label of {agree} of {len(labels)} images only: it is "
            f"re-ordered or of another set; get the one in the images' order from {file.source}"
        )
    return ExtraTest(soft=soft)


def corrected_test(file: LabelFile, labels: Labels, num_classes: int) -> ExtraTest:
    """Test labels that five people checked, from a JSON file of Northcutt, Athalye and Mueller, "Pervasive Label Errors
    in Test Sets Destabilize Machine Learning Benchmarks" (NeurIPS Datasets and Benchmarks 2021).

    An entry is a test image whose label confident learning doubted, with the votes of five workers for the given label,
    the guessed one, both or neither. Three votes decide, the consensus of the authors' corrected sets: for the given
    label, it stays; for the guessed one, that takes its place. Without such a verdict, and where three say both or
    neither, the image has no one right label and is left out. All other labels stay.

    Args:
        file: a list of {"id", "given_original_label", "our_guessed_label", "mturk": {"given", "guessed", ...}}.
        labels: int64 [M], the test labels.
        num_classes: K.

    Returns:
        `labels` int64 [M] and `keep` bool [M].

    Raises:
        UserError: the file is missing, damaged or no such list, an entry names no image or class, or one given label is
            not that of the image.
    """
    entries = _entries(file, len(labels), num_classes)
    ids = [entry.id for entry in entries]
    given = np.array([entry.given for entry in entries], dtype=np.int64)
    check_same(file, given, labels[ids], "its given_original_label")
    corrected, keep = labels.astype(np.int64), np.ones(len(labels), dtype=np.bool_)
    for entry in entries:
        if entry.votes["given"] >= AGREED:
            continue
        if entry.votes["guessed"] >= AGREED:
            corrected[entry.id] = entry.guessed
        else:
            keep[entry.id] = False
    return ExtraTest(labels=corrected, keep=keep)


class _Entry(NamedTuple):
    id: int
    given: int
    guessed: int
    votes: dict[str, int]


def _entries(file: LabelFile, count: int, num_classes: int) -> list[_Entry]:
    """The entries of a file of votes, each about another one of `count` images."""
    content = file.content()
    try:
        found = json.loads(content)
        entries = [
            _Entry(e["id"], e["given_original_label"], e["our_guessed_label"], {"given": 0, "guessed": 0} | e["mturk"])
            for e in found
        ]
    except (ValueError, TypeError, KeyError, RecursionError):  # no JSON, no list of objects, or one without a key
        raise file.refused("is no whole list of checked labels in JSON") from None
    seen = set()
    for number, entry in enumerate(entries):
        numbers, limits = [*entry[:3], *entry.votes.values()], (count, num_classes, num_classes)
        whole = all(type(n) is int and n >= 0 for n in numbers)
        if not whole or any(n >= limit for n, limit in zip(numbers, limits, strict=False)):
            raise file.refused(f"holds in entry {number} what is no image, class or number of votes: {numbers}")
        if entry.id in seen:
            raise file.refused(f"holds image {entry.id} twice")
        seen.add(entry.id)
    return entries
