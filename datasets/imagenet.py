"""ImageNet ILSVRC12: 1,281,167 training and 50,000 validation images of any size; 1,000 synsets of WordNet."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from noisebench.archives import unpack, unpack_nested
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.files import write_text
from noisebench.image_index import Listed, list_folders
from noisebench.torchvision_data import checked, data_root
from noisebench.wordnet import names_of, words_of

NUM_CLASSES = 1000
SIZE = {"train": 1_281_167, "test": 50_000}
NOISE = "taken as clean; at least 6% of the test labels are wrong (Northcutt et al., NeurIPS 2021)"
FILES = {
    "imagenet/ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "imagenet/ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "imagenet/ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
"""The MD5 sums of torchvision's `ImageNet`; needed for `prepare` alone."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The usual values, of the training images."""
LICENCE = "ImageNet's terms: non-commercial research and education"
SOURCE = "https://image-net.org/challenges/LSVRC/2012 (Russakovsky et al., 2015), after registration"
FOLDER = "imagenet"
WORDS = "synset_words.txt"
"""WordNet id and words a line; optional, and written by `prepare`."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from torchvision's layout ``root/imagenet/{train,val}/WNID/*.JPEG``.

    Classes are in the order of their WordNet ids. Their names come from ``root/imagenet/synset_words.txt`` where that
    is there. The test set is the publisher's validation set: the labels of its own test set are not public.

    Raises:
        UserError: no root, it is to be downloaded, a class folder too many or missing, or another number of images.
    """
    folder = data_root("ImageNet", root) / FOLDER
    _there(folder / "train")
    train = list_folders(folder / "train")
    _complete(folder / "train", len(train.labels), SIZE["train"])
    test = validation(root)
    if test.classes != train.classes:
        stranger = sorted(set(test.classes) ^ set(train.classes))[0]
        raise UserError(f"ImageNet: {folder}: class folder {stranger} is in one of train and val only")
    words = words_of(folder / WORDS) if (folder / WORDS).is_file() else {}
    return ImageData(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        num_classes=NUM_CLASSES,
        classes=names_of(train.classes, words),
        mean=MEAN,
        std=STD,
    )


def validation(root: Path | None) -> Listed:
    """The validation images, labels and WordNet ids, for other datasets of these classes too.

    Raises:
        UserError: no root, the images are missing, or a class folder too many, missing or incomplete.
    """
    folder = data_root("ImageNet", root) / FOLDER / "val"
    _there(folder)
    found = list_folders(folder)
    if len(found.classes) != NUM_CLASSES:
        raise UserError(f"ImageNet: {folder} has {len(found.classes)} class folders, not {NUM_CLASSES}")
    counts = np.bincount(found.labels, minlength=NUM_CLASSES)
    for wnid, count in zip(found.classes, counts.tolist(), strict=True):
        _complete(folder / wnid, count, SIZE["test"] // NUM_CLASSES)
    return found


def prepare(root: Path) -> None:
    """Unpack the publisher's three archives, which lie in ``root/imagenet``; what is there already stays.

    Validation images go into a folder for each class, by the development kit's ground truth.

    Raises:
        UserError: an archive is missing or damaged, or holds something else.
    """
    folder = data_root("ImageNet", root) / FOLDER
    if not folder.is_dir():
        raise UserError(f"ImageNet: {folder} is missing; put {_archives()} there, from {SOURCE}")
    if not (folder / "train").is_dir():
        unpack_nested(folder / "ILSVRC2012_img_train.tar", folder / "train")
    with FileLock(folder / ".prepare.lock"):
        if (folder / "val").is_dir() and (folder / WORDS).is_file():
            return
        words, truth = _devkit(folder / "ILSVRC2012_devkit_t12.tar.gz")
        write_text(folder / WORDS, "".join(f"{wnid} {words[wnid]}\n" for wnid in sorted(words)))
        if not (folder / "val").is_dir():
            _sort_validation(folder, truth)


def _there(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"ImageNet: {folder} is missing; put {_archives()} into {folder.parent} ({SOURCE}) and run "
            f"'noisebench data prepare imagenet' (--download cannot)"
        )


def _archives() -> str:
    return ", ".join(Path(file).name for file in FILES)


def _complete(folder: Path, count: int, right: int) -> None:
    if count != right:
        raise UserError(f"ImageNet is incomplete: {folder} has {count} images, not {right}; unpack it anew")


def _sort_validation(folder: Path, truth: list[str]) -> None:
    """Links into class folders aside, then one renaming: a kill leaves nothing that passes for the whole."""
    flat, aside = folder / ".val-unsorted", folder / ".val.new"
    archive = folder / "ILSVRC2012_img_val.tar"
    unpack(archive, flat)
    files = sorted(flat.iterdir())
    if len(files) != len(truth):
        raise UserError(f"ImageNet: {archive} holds {len(files)} images, not {len(truth)}; copy it anew")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for wnid in set(truth):
            (aside / wnid).mkdir(parents=True)
        for file, wnid in zip(files, truth, strict=True):
            _link(file, aside / wnid / file.name)
        aside.rename(folder / "val")
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        where = error.filename or folder / "val"
        raise UserError(f"ImageNet: {where} cannot be written: {error.strerror or error}") from None
    shutil.rmtree(flat, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    """A second name, or on a file system without hard links, such as exFAT, a copy."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _devkit(archive: Path) -> tuple[dict[str, str], list[str]]:
    """WordNet id -> words of the 1,000 classes, and the id of each validation image in the order of their names.

    The archive is compared with its MD5 before it is opened.
    """
    from scipy.io import loadmat

    content = checked("ImageNet", archive, FILES[f"{FOLDER}/{archive.name}"])
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        data = "ILSVRC2012_devkit_t12/data/"
        meta = _member(tar, archive, f"{data}meta.mat")
        lines = _member(tar, archive, f"{data}ILSVRC2012_validation_ground_truth.txt").decode().split()
    read: Any = loadmat  # whose stubs know paths alone
    synsets = read(io.BytesIO(meta), squeeze_me=True)["synsets"]
    leaves = [row for row in synsets if int(row["num_children"]) == 0]  # the others stand above classes
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    words = {str(row["WNID"]): str(row["words"]) for row in leaves}
    return words, [wnids[int(line)] for line in lines]


def _member(tar: tarfile.TarFile, archive: Path, name: str) -> bytes:
    try:
        found = tar.extractfile(name)
    except KeyError:
        found = None
    if found is None:
        raise UserError(f"ImageNet: {archive} has no file {name}; copy it anew")
    return found.read()
