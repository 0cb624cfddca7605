"""Any images that a CSV or Parquet file lists: path, label or several, split, and noisy labels where there are some."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from noisebench.data import ImageData
from noisebench.errors import UserError, unknown
from noisebench.image_index import CHUNK, Built, FileImages, ListedFiles, Names, Packing, cannot_read, seen, stored
from noisebench.label_rows import SEPARATOR, LabelCells, dense_or_sets, is_number

TAKES_PATH = True
NOISE = "taken to be clean, so that noise can be injected; a column 'noisy' gives real noise"
LICENCE = "your own data's"
SOURCE = "your own list"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, for lack of the data's own."""
SPLITS = ("train", "test")
MOST_CLASSES = 2**24
FORM = "1"
"""Of the index; another reading of lists needs another number."""


class Row(NamedTuple):
    """A row of the list; `where` is what a message calls it, `noisy` None without that column."""

    where: str
    path: str
    labels: Sequence[str]
    split: str
    noisy: str | None


def load(root: Path | None, download: bool = False, *, path: Path) -> ImageData:
    """Encoded images in the order of the list `path`, a ``.csv`` with a header, or a ``.parquet``.

    Columns, others being ignored:

    - ``path``: of the image file, relative to the list's folder.
    - ``label``: its true class, by name or by number. Where any cell holds several, joined by ``;``, all images may
      have several. Or ``labels``: several in any case, as lists (Parquet) or joined by ``;``.
    - ``split``: ``train``, or ``test`` or ``val`` for the test set.
    - ``noisy`` (optional): the class that people gave the image; these become the labels "noisy" of real noise.

    Where all labels are numbers, classes are called by those, else they are the sorted names. Several classes an image
    are multi-hot labels, or where that would take more than 2 GiB, label sets.

    Raises:
        UserError: the list is missing or no such file, lacks a column, or names an image that is missing, outside its
            folder or there twice; a row has no label or another split; a split is empty. The message has file and line.
    """
    folder = path.parent
    arrays, facts = stored(folder, ["image list", path.name], [FORM], lambda: _read(path))
    images = FileImages(folder, Names(arrays["text"], arrays["offsets"]))
    train, test = (np.flatnonzero(arrays["split"] == number).astype(np.int64) for number in range(2))
    labels, classes = arrays["labels"].astype(np.int64), tuple(facts["classes"])
    sets = (arrays["set_starts"], arrays["set_classes"]) if facts["several"] else None
    if sets is None:
        labels = arrays["set_classes"][arrays["set_starts"][labels]].astype(np.int64)
    train_labels, test_labels, label_sets = dense_or_sets((labels[train], sets), (labels[test], sets), len(classes))
    return ImageData(
        train_images=images.take(train),
        train_labels=train_labels,
        test_images=images.take(test),
        test_labels=test_labels,
        num_classes=len(classes),
        classes=classes,
        mean=MEAN,
        std=STD,
        given_labels={"noisy": arrays["noisy"][train].astype(np.int64)} if facts["noisy"] else {},
        label_sets=label_sets,
    )


def _read(path: Path) -> Built:
    """The index of the list: a single label is the set of it alone."""
    watched = [seen(path.parent, path.name)]
    classes, several, noisy = _survey(path)
    check, cells, packing = ListedFiles(path.parent, str(path)), LabelCells(classes), Packing()
    labels, given, splits = [], [], []
    rows = _rows(path)
    while chunk := list(islice(rows, CHUNK)):
        packing.add([check.path(row.path, row.where) for row in chunk])
        labels.append(np.array([cells.set_of(row.labels, row.where) for row in chunk], np.int32))
        splits.append(np.array([_split(row) for row in chunk], np.uint8))
        given.append(np.array([_given(cells, row) for row in chunk], np.int32))
    check.finish()
    split = np.concatenate(splits)
    for number, name in enumerate(SPLITS):
        if not (split == number).any():
            raise UserError(f"{path}: no row has the split '{name}'; give images of both, {' and '.join(SPLITS)}")
    names, (starts, members) = packing.names(), cells.sets()
    arrays: dict[str, npt.NDArray[Any]] = {
        "text": names.text,
        "offsets": names.offsets,
        "labels": np.concatenate(labels),
        "noisy": np.concatenate(given),
        "split": split,
        "set_starts": starts,
        "set_classes": members,
    }
    return Built(arrays, {"classes": classes, "several": several, "noisy": noisy}, watched + check.watched)


def _survey(path: Path) -> tuple[list[str], bool, bool]:
    """The names of the classes, whether an image may have several, and whether there are noisy labels."""
    found, several, noisy = set[str](), False, False
    for row in _rows(path):
        found.update(row.labels)
        found.add(row.noisy if row.noisy and _split(row) == 0 else "")  # of test images it names no class
        several, noisy = several or len(row.labels) != 1, noisy or row.noisy is not None
    found = {label.strip() for label in found} - {""}
    several = several or "labels" in _columns(path)
    if several and noisy:
        raise UserError(f"{path}: column 'noisy' is for images of one label each, and here they have several")
    if not all(map(is_number, found)):
        return sorted(found), several, noisy
    highest = max(map(int, found), default=0)
    if highest >= MOST_CLASSES:
        raise UserError(f"{path}: class number {highest} is no label; number classes from 0, or name them")
    return list(map(str, range(highest + 1))), several, noisy


def _split(row: Row) -> int:
    split = "test" if row.split == "val" else row.split
    if split not in SPLITS:
        raise unknown(f"{row.where}: split", row.split, (*SPLITS, "val"))
    return SPLITS.index(split)


def _given(cells: LabelCells, row: Row) -> int:
    """The class that people gave a training image; for a test image it does not matter, and may be missing."""
    return -1 if row.noisy is None or _split(row) else cells.number(row.noisy, f"{row.where}: noisy")


def _rows(path: Path) -> Iterator[Row]:
    label = "labels" if "labels" in _columns(path) else "label"
    for where, cells in _of_csv(path) if path.suffix == ".csv" else _of_parquet(path):
        labels = cells[label]
        yield Row(
            where,
            _text(cells["path"]),
            [_text(one) for one in labels] if isinstance(labels, list) else _text(labels).split(SEPARATOR),
            _text(cells["split"]),
            _text(cells["noisy"]) if "noisy" in cells else None,
        )


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)


def _columns(path: Path) -> list[str]:
    """The list's columns.

    Raises:
        UserError: one is missing, or the file is of another kind or cannot be read.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: the list must be a .csv or .parquet file")
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as handle:
                columns = next(csv.reader(handle), [])
        else:
            with _parquet(path) as table:
                columns = table.schema_arrow.names
    except OSError as error:
        raise cannot_read(path, error) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from None
    missing = [name for name in ("path", "split") if name not in columns]
    missing += [] if ("label" in columns) != ("labels" in columns) else ["label (or labels, one of the two)"]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; it has {', '.join(columns) or 'none'}")
    return columns


def _of_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            for cells in reader:
                if None in cells or None in cells.values():
                    width = len(reader.fieldnames or ())
                    raise UserError(f"{path}, line {reader.line_num}: not the {width} cells of the header")
                yield f"{path}, line {reader.line_num}", cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise cannot_read(path, error) from None


def _of_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    wanted, number = [name for name in _columns(path) if name in ("path", "label", "labels", "split", "noisy")], 0
    with _parquet(path) as table:
        for batch in table.iter_batches(CHUNK, columns=wanted):
            columns = [batch.column(name).to_pylist() for name in wanted]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"{path}, row {number}", dict(zip(wanted, values, strict=True))


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or give a .csv") from None
    try:
        return parquet.ParquetFile(path)
    except ArrowException as error:
        raise UserError(f"{path} is no Parquet file: {' '.join(str(error).split())[:200]}") from None
