"""Any images in WebDataset shards, one label an image or several: PATH/train-*.tar, PATH/val-*.tar or test-*.tar."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_files import lines_of
from noisebench.image_shards import list_shards
from noisebench.label_rows import dense_or_sets

TAKES_PATH = True
NOISE = "taken to be clean, so that noise can be injected"
LICENCE = "your own data's"
SOURCE = "your own shards"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, for lack of the data's own."""


def load(root: Path | None, download: bool = False, *, path: Path) -> ImageData:
    """Encoded images of the uncompressed tar files in the folder `path`, in their order.

    A sample's label is in its ``.cls``, or in its ``.json`` as "label": a class's number, or its name where
    ``path/classes.txt`` has the names, one a line. Where any label is written as a list (joined by ``;`` in ``.cls``),
    all images may have several: labels are then multi-hot, or where that would take more than 2 GiB name label sets.

    Raises:
        UserError: there is no shard; one is missing, compressed or damaged, or a sample of it has no image or label.
    """
    train_shards, test_shards = (sorted(path.glob(f"{part}-*.tar")) for part in ("train", "val"))
    test_shards = test_shards or sorted(path.glob("test-*.tar"))
    if not train_shards or not test_shards:
        raise UserError(f"{path} must hold shards train-*.tar, and val-*.tar or test-*.tar, not compressed")
    listing = path / "classes.txt"
    classes = [line.strip() for line in lines_of(listing)] if listing.exists() else None
    if classes and len(set(classes)) != len(classes):
        raise UserError(f"{listing}: class '{next(c for c in classes if classes.count(c) > 1)}' is there twice")
    train, test = list_shards(train_shards, classes), list_shards(test_shards, classes)
    if (train.label_sets is None) != (test.label_sets is None):
        train, test = (list_shards(shards, classes, several=True) for shards in (train_shards, test_shards))
    names = max(train.classes, test.classes, key=len)
    train_labels, test_labels, sets = dense_or_sets(
        (train.labels, train.label_sets), (test.labels, test.label_sets), len(names)
    )
    return ImageData(
        train_images=train.images,
        train_labels=train_labels,
        test_images=test.images,
        test_labels=test_labels,
        num_classes=len(names),
        classes=names,
        mean=MEAN,
        std=STD,
        label_sets=sets,
    )
