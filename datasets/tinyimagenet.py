"""TinyImageNet: 100,000 training and 10,000 test images, 64x64 colour; 200 classes of ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from noisebench.archives import report, unpack
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_files import images_of, lines_of
from noisebench.torchvision_data import data_root
from noisebench.wordnet import names_of

NUM_CLASSES = 200
PER_CLASS = 500
TEST = 10_000
PIXELS = 64
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2770, 0.2691, 0.2821)
"""The usual values, of the training images."""
LICENCE = "ImageNet's terms: non-commercial research and education"
SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip (Stanford CS231n; Deng et al., 2009)"
SIZE = {"train": 100_000, "test": 10_000}
NOISE = "none known"
FILES = {
    "tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de",
    "tiny-imagenet-200/wnids.txt": "",
    "tiny-imagenet-200/words.txt": "",
    "tiny-imagenet-200/val/val_annotations.txt": "",
}
"""The publisher gives no checksum; the archive's is the one that most code compares it with."""
FOLDER = "tiny-imagenet-200"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 64, 64, 3], from ``root/tiny-imagenet-200`` as the publisher's archive unpacks.

    Classes are in the order of their WordNet ids, as torchvision's `ImageFolder` has them. The test set is the
    publisher's validation set: the labels of its own test set are not public. The files are decoded once, into a file
    beside them (1.2 GB).

    Raises:
        UserError: no root, it is to be downloaded, a file is missing or no image of that size, or a list is wrong.
    """
    folder = data_root("TinyImageNet", root) / FOLDER
    if not folder.is_dir():
        raise UserError(
            f"TinyImageNet: {folder} is missing; unpack {SOURCE.split()[0]} there, or put it beside and run "
            f"'noisebench data prepare tinyimagenet' (--download cannot)"
        )
    wnids = sorted(lines_of(folder / "wnids.txt"))
    if len(wnids) != NUM_CLASSES or len(set(wnids)) != NUM_CLASSES:
        raise UserError(f"TinyImageNet: {folder / 'wnids.txt'} lists {len(set(wnids))} ids, not {NUM_CLASSES}")
    train, train_labels = [], []
    for label, wnid in enumerate(wnids):
        files = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        if len(files) != PER_CLASS:
            where = folder / "train" / wnid / "images"
            raise UserError(f"TinyImageNet is incomplete: {where} has {len(files)} images (*.JPEG), not {PER_CLASS}")
        train += files
        train_labels += [label] * PER_CLASS
    test, test_labels = _annotated(folder / "val", wnids)
    words = dict(line.partition("\t")[::2] for line in lines_of(folder / "words.txt"))
    return ImageData(
        train_images=images_of(train, (PIXELS, PIXELS), folder / "noisebench-train.npy"),
        train_labels=np.array(train_labels, dtype=np.int64),
        test_images=images_of(test, (PIXELS, PIXELS), folder / "noisebench-test.npy"),
        test_labels=np.array(test_labels, dtype=np.int64),
        num_classes=NUM_CLASSES,
        classes=names_of(wnids, words),
        mean=MEAN,
        std=STD,
    )


def prepare(root: Path) -> None:
    """Unpack the publisher's archive, which lies in `root`, and decode its images; what is there already stays.

    Raises:
        UserError: the archive is missing or damaged, or what it holds is not the dataset (see `load`).
    """
    folder = data_root("TinyImageNet", root) / FOLDER
    if not folder.is_dir():
        unpack(folder.with_suffix(".zip"), folder, inner=FOLDER)
    if not (any(folder.glob("noisebench-train-*.npy")) and any(folder.glob("noisebench-test-*.npy"))):
        report(f"decoding {sum(SIZE.values()):,} images")
        load(root)


def _annotated(folder: Path, wnids: list[str]) -> tuple[list[Path], list[int]]:
    """The files and labels that val_annotations.txt lists: image, WordNet id, box, separated by tabs."""
    listing, files, labels = folder / "val_annotations.txt", [], []
    place = {wnid: label for label, wnid in enumerate(wnids)}
    for number, line in enumerate(lines_of(listing), 1):
        name, _, rest = line.partition("\t")
        wnid, file = rest.partition("\t")[0], folder / "images" / name
        if wnid not in place or Path(name).name != name:
            raise UserError(f"TinyImageNet: {listing}, line {number}: no image and WordNet id of wnids.txt")
        if not file.is_file():
            raise UserError(f"TinyImageNet is incomplete: {file} is missing; {listing.name}, line {number} names it")
        files.append(file)
        labels.append(place[wnid])
    if len(set(files)) != len(files) or len(files) != TEST:
        raise UserError(f"TinyImageNet: {listing} lists {len(set(files))} images in {len(files)} lines, not {TEST}")
    return files, labels
