"""WebVision 1.0: 2,439,574 web images from Google and Flickr, in ILSVRC12's 1,000 classes; labels are the queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from noisebench.archives import unpack
from noisebench.data import ImageData
from noisebench.datasets.imagenet import validation
from noisebench.errors import UserError
from noisebench.image_data import ExtraTest
from noisebench.image_files import lines_of
from noisebench.image_index import Listed, list_lines
from noisebench.torchvision_data import data_root
from noisebench.wordnet import names_of, words_of

NUM_CLASSES = 1000
SIZE = {"train": 2_439_574, "test": 50_000}
GOOGLE = 980_449
"""Training images of train_filelist_google.txt; the others are Flickr's."""
NOISE = "labels are the classes of the web queries, checked by nobody; clean training labels unknown"
FILES = {
    "webvision/google_resized_256.tar": "",
    "webvision/flickr_resized_256.tar": "",
    "webvision/val_images_256.tar": "",
    "webvision/info.tar": "",
}
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, as usual."""
LICENCE = "non-commercial research and education; the images belong to their owners"
SOURCE = "https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html (Li et al., arXiv:1708.02862, 2017)"
FOLDER = "webvision"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from ``root/webvision/{info,google,flickr,val_images_256}`` as the publisher's archives unpack.

    The test set is WebVision's validation set, labelled by people. The further test "ilsvrc12" is the validation set of
    ILSVRC12 in the layout of dataset imagenet, in WebVision's classes by WordNet id.

    Raises:
        UserError: no root, it is to be downloaded, a list is wrong or of another length, or an image is missing.
    """
    return read(root, NUM_CLASSES, {"train_filelist_google.txt": "google", "train_filelist_flickr.txt": "flickr"}, SIZE)


def read(root: Path | None, num_classes: int, lists: dict[str, str], size: dict[str, int]) -> ImageData:
    """The first `num_classes` classes of some of the training lists.

    Args:
        root: the data folder.
        num_classes: classes from this on are left out, in training and test alike.
        lists: name of a list in info -> the folder that its images are in.
        size: {"train": images that these must be, "test": ...}.

    Raises:
        UserError: as `load`.
    """
    folder = data_root("WebVision", root) / FOLDER
    for part in ("info", *lists.values(), "val_images_256"):
        if not (folder / part).is_dir():
            archives = ", ".join(Path(file).name for file in FILES)
            raise UserError(
                f"WebVision: {folder / part} is missing; put {archives} into {folder} ({SOURCE}) and run "
                f"'noisebench data prepare webvision' (--download cannot)"
            )
    synsets = folder / "info" / "synsets.txt"
    words = words_of(synsets)
    wnids = tuple(words)[:num_classes]
    if len(words) != NUM_CLASSES:
        raise UserError(f"WebVision: {synsets} lists {len(words)} synsets, not {NUM_CLASSES}")
    train = _listed(folder, [folder / "info" / name for name in lists], wnids, size["train"])
    test = _listed(folder / "val_images_256", [folder / "info" / "val_filelist.txt"], wnids, size["test"])
    return ImageData(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        num_classes=num_classes,
        classes=names_of(wnids, words),
        mean=MEAN,
        std=STD,
        clean_known=False,
        extra_tests={"ilsvrc12": lambda: _ilsvrc12(root, wnids)},
    )


def prepare(root: Path) -> None:
    """Unpack the publisher's archives (images of 256 pixels) that lie in ``root/webvision``; what is there stays.

    Raises:
        UserError: an archive is missing or damaged; google is enough for webvision_mini, and flickr may be missing.
    """
    folder = data_root("WebVision", root) / FOLDER
    parts = {"info": "info", "val_images_256": "val_images_256", "google": "google_resized_256"}
    for part, archive in (parts | {"flickr": "flickr_resized_256"}).items():
        packed = folder / f"{archive}.tar"
        if part in parts or packed.is_file():
            unpack(packed, folder / part, inner=part)


def _listed(folder: Path, listings: Sequence[Path], wnids: tuple[str, ...], count: int) -> Listed:
    def pairs() -> Iterator[tuple[str, int]]:
        for listing in listings:
            for number, line in enumerate(lines_of(listing), 1):
                path, _, label = line.strip().rpartition(" ")
                if not path or not label.isdecimal() or int(label) >= NUM_CLASSES:
                    raise UserError(f"WebVision: {listing}, line {number}: no image and class in 0..{NUM_CLASSES - 1}")
                if int(label) < len(wnids):
                    yield path, int(label)

    found = list_lines(folder, listings, pairs, wnids, part=f"{len(wnids)} classes")
    if len(found.labels) != count:
        names = ", ".join(str(listing) for listing in listings)
        raise UserError(f"WebVision: {names}: {len(found.labels)} images of {len(wnids)} classes, not {count}")
    return found


def _ilsvrc12(root: Path | None, wnids: tuple[str, ...]) -> ExtraTest:
    found = validation(root)
    place = {wnid: label for label, wnid in enumerate(wnids)}
    missing = sorted(place.keys() - set(found.classes))
    if missing:
        raise UserError(
            f"WebVision: ILSVRC12's validation images have no class {missing[0]}, which is one of WebVision's"
        )
    ours = np.array([place.get(wnid, -1) for wnid in found.classes], dtype=np.int64)[found.labels]
    kept = np.flatnonzero(ours >= 0)
    return ExtraTest(labels=ours[kept], images=found.images.take(kept))
