"""What the noise kinds are given, checked: rates, labels, matrices, files. Every mistake is a UserError of one line."""

from __future__ import annotations

import math
import numbers
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

IntArray = NDArray[np.int64]
LabelArray = NDArray[np.integer[Any]]  # int64 [N], or uint8 [N, K] where a sample has several labels
FloatArray = NDArray[np.float64]

UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)  # what a damaged array file raises
ROW_SUM_TOLERANCE = 1e-6  # wide enough for a matrix stored as float32


def check_rate(rate: object, kind: str) -> float:
    """`rate` as a float in [0, 1]."""
    if rate is None:
        raise UserError(f"rate: missing; noise '{kind}' needs a rate in [0, 1]")
    if isinstance(rate, (bool, np.bool_)) or not isinstance(rate, numbers.Real):
        raise UserError(f"rate: {rate!r} is not a number; it must be in [0, 1], e.g. 0.4")
    value = float(rate)
    if not 0.0 <= value <= 1.0:
        hint = f" (did you mean {value / 100:g}?)" if 1.0 < value <= 100.0 else ""
        raise UserError(f"rate: {value:g} is out of range; it must be in [0, 1]{hint}")
    return value


def check_integer(value: object, name: str, least: int | None = None) -> int:
    """`value` as an int, at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name}: {value!r} is not an integer")
    if least is not None and value < least:
        raise UserError(f"{name}: {value} is too small; it must be at least {least}")
    return int(value)


def check_labels(labels: object, num_classes: int | None, name: str = "labels") -> NDArray[Any]:
    """`labels` as an integer array [N] with values in [0, num_classes); its dtype is kept, so nothing is copied.

    Args:
        labels: anything NumPy reads as an array.
        num_classes: K; None where it is not known yet (then no upper bound).
        name: what an error calls them.
    """
    array = _as_array(labels, name)
    if array.ndim != 1:
        raise UserError(f"{name}: shape {array.shape} is not [N]; one integer for each sample is needed")
    if array.size == 0:
        raise UserError(f"{name}: empty; at least one label is needed")
    if array.dtype.kind not in "iu":
        raise UserError(f"{name}: dtype {array.dtype} is not an integer type; class numbers from 0 are needed")
    top = math.inf if num_classes is None else num_classes
    if int(array.min()) < 0 or int(array.max()) >= top:
        first = int(np.argmax((array < 0) | (array >= top)))
        allowed = "0 or more" if num_classes is None else f"in 0..{num_classes - 1} for {num_classes} classes"
        raise UserError(f"{name}: index {first} has class {array[first]}; it must be {allowed}")
    return array.astype(np.int64) if array.dtype == np.uint64 else array  # uint64 and int64 would mix to float64


def check_any_labels(labels: object, num_classes: int, name: str = "labels") -> NDArray[Any]:
    """`labels` as `check_labels` or, where they are [N, K], as `check_multihot` gives them."""
    array = _as_array(labels, name)
    return check_multihot(array, num_classes, name) if array.ndim == 2 else check_labels(array, num_classes, name)


def _as_array(labels: object, name: str) -> NDArray[Any]:
    try:
        return np.asarray(labels)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as an array of integers ({error})") from None


def check_multihot(labels: NDArray[Any], num_classes: int | None, name: str = "labels") -> NDArray[np.uint8]:
    """`labels` [N, K] of 0 and 1, an integer type or bool, as uint8; where `num_classes` is given, K must be it."""
    if labels.ndim != 2 or num_classes not in (None, labels.shape[1]):
        raise UserError(
            f"{name}: shape {labels.shape} is not [N], one integer for each sample, nor [N, "
            f"{'K' if num_classes is None else num_classes}], a 0 or 1 for each of its classes"
        )
    if labels.size == 0:
        raise UserError(f"{name}: empty; at least one label is needed")
    if labels.dtype.kind not in "iub":
        raise UserError(f"{name}: dtype {labels.dtype} is not an integer type; 0 and 1 are needed")
    bad = (labels != 0) & (labels != 1)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(f"{name}: entry [{row}, {column}] is {labels[row, column]}; multi-hot labels are 0 or 1")
    return labels.astype(np.uint8, copy=False)


def check_matrix(matrix: object, num_classes: int | None, name: str = "T") -> FloatArray:
    """`matrix` as float64 [K, K]: square, finite, not negative, rows that sum to one (then made to, exactly)."""
    try:
        array = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as a matrix of numbers ({error})") from None
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise UserError(f"{name}: shape {array.shape} is not square; it must be [K, K]")
    if num_classes is not None and array.shape[0] != num_classes:
        size = array.shape[0]
        raise UserError(f"{name}: {size} x {size} does not fit {num_classes} classes; it must be [K, K]")
    if len(array) < 2:
        raise UserError(f"{name}: shape {array.shape} has fewer than 2 classes")
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(f"{name}: entry [{row}, {column}] is {array[row, column]:g}; probabilities are 0 or more")
    sums = array.sum(axis=1)
    off = np.abs(sums - 1.0) > ROW_SUM_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise UserError(
            f"{name}: row {row} sums to {sums[row]:.8g}; every row must sum to 1 (T[i, j] = P(noisy j | true i))"
        )
    return np.asarray(array / sums[:, None])


def check_path(path: object, name: str, suffixes: tuple[str, ...]) -> Path:
    """`path` as an existing file with one of `suffixes`."""
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"{name}: {path!r} is not a path")
    found = Path(path)
    if found.suffix.lower() not in suffixes:
        raise UserError(f"{name}: '{found}' must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if not found.is_file():
        raise UserError(f"{name}: no such file '{found}'")
    return found


def read_matrix(path: Path) -> NDArray[Any]:
    """The matrix in a .npy, .csv (commas) or .txt (blanks) file, not checked yet."""
    if path.suffix.lower() == ".npy":
        return _load(path)
    return _read_text(path)


def read_labels(path: Path) -> NDArray[Any]:
    """The labels [N], or [N, K], in a .npy file or as `labels` in a .npz; [N] as one a line in a .txt or .csv."""
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _load(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        header = suffix == ".csv" and not _is_number(file.readline())
    table = _read_text(path, skip=int(header))
    if table.shape[1] != 1:
        raise UserError(
            f"path: '{path}' has {table.shape[1]} columns; one label a line is needed (multi-hot: .npy or .npz)"
        )
    values = table[:, 0]
    # Through float64, because NumPy would cut 3.5 down to 3; a class number is exact in it.
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        first = int(np.argmin(whole))
        raise UserError(f"path: '{path}' has {values[first]:g} at index {first}; class numbers are integers")
    return values.astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _load(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:  # opened here, because NumPy leaves a damaged one open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if "labels" not in loaded:
                raise UserError(f"path: '{path}' has no array 'labels'; it has {', '.join(loaded.files) or 'none'}")
            return np.asarray(loaded["labels"])
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"'{path}' is not a readable {path.suffix} file of plain numbers ({error})") from None


def _read_text(path: Path, skip: int = 0) -> FloatArray:
    if not path.read_bytes().strip():
        raise UserError(f"'{path}' is empty")
    delimiter = "," if path.suffix.lower() == ".csv" else None
    try:
        return np.loadtxt(path, delimiter=delimiter, skiprows=skip, ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise UserError(f"'{path}' is not a table of numbers ({error})") from None
