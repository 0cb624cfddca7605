"""Clothing1M: 1,000,000 clothes of web shops in 14 classes, labelled from the text around them; clean test labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from noisebench.archives import unpack
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_data import ExtraTest
from noisebench.image_files import lines_of
from noisebench.image_index import Listed, list_lines
from noisebench.torchvision_data import data_root

NUM_CLASSES = 14
CLASSES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker",
    "Jacket", "Down Coat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
SIZE = {"train": 1_000_000, "test": 10_526}
VALIDATION = 14_313
NOISE = "from the text around web images (Xiao et al. 2015); clean training labels unknown"
FILES = {
    "clothing1m/images/0.tar": "",
    "clothing1m/images/1.tar": "",
    "clothing1m/images/2.tar": "",
    "clothing1m/images/3.tar": "",
    "clothing1m/images/4.tar": "",
    "clothing1m/images/5.tar": "",
    "clothing1m/images/6.tar": "",
    "clothing1m/images/7.tar": "",
    "clothing1m/images/8.tar": "",
    "clothing1m/images/9.tar": "",
}
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, as usual."""
LICENCE = "academic research; on request from the authors"
SOURCE = "https://github.com/Cysu/noisy_label (Xiao et al., CVPR 2015)"
FOLDER = "clothing1m"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from the authors' layout in ``root/clothing1m``: images/0..9, and the lists in annotations.

    Training labels are the noisy ones of noisy_train_key_list.txt; the test set is the clean one, and the further test
    "validation" the clean validation set. The 47,570 training images with clean labels are not used: no method sees a
    clean label. The lists may lie in the folder itself too.

    Raises:
        UserError: no root, it is to be downloaded, a list is missing or of another length, a key has no label, or an
            image is missing.
    """
    folder = data_root("Clothing1M", root) / FOLDER
    if not (folder / "images").is_dir():
        raise UserError(
            f"Clothing1M: {folder / 'images'} is missing; ask for the archives ({SOURCE}), put 0.tar to 9.tar there "
            f"and the lists into {folder / 'annotations'}, and run 'noisebench data prepare clothing1m' (--download "
            f"cannot)"
        )
    train = _listed(folder, "noisy_train", "noisy", SIZE["train"])
    test = _listed(folder, "clean_test", "clean", SIZE["test"])

    def validation() -> ExtraTest:
        found = _listed(folder, "clean_val", "clean", VALIDATION)
        return ExtraTest(labels=found.labels, images=found.images)

    return ImageData(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        clean_known=False,
        extra_tests={"validation": validation},
    )


def prepare(root: Path) -> None:
    """Unpack images/0.tar to 9.tar into folders beside them; what is there stays.

    Raises:
        UserError: an archive is missing or damaged.
    """
    images = data_root("Clothing1M", root) / FOLDER / "images"
    for part in range(10):
        unpack(images / f"{part}.tar", images / str(part), inner=str(part))


def _listed(folder: Path, part: str, labels: str, count: int) -> Listed:
    """The images of ``<part>_key_list.txt``, in its order, with the labels of ``<labels>_label_kv.txt``."""
    lists = folder / "annotations" if (folder / "annotations").is_dir() else folder
    keys, values = lists / f"{part}_key_list.txt", lists / f"{labels}_label_kv.txt"

    def pairs() -> Iterator[tuple[str, int]]:
        known = dict(_labels_of(values))
        for number, line in enumerate(lines_of(keys), 1):
            key = line.strip()
            if key not in known:
                raise UserError(f"Clothing1M: {keys}, line {number}: '{key[:80]}' has no label in {values}")
            yield key, known[key]

    found = list_lines(folder, [keys, values], pairs, CLASSES)
    if len(found.labels) != count:
        raise UserError(f"Clothing1M: {keys} lists {len(found.labels)} images, not {count}; copy it anew")
    return found


def _labels_of(values: Path) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(lines_of(values), 1):
        key, _, label = line.strip().rpartition(" ")
        if not key or not label.isdecimal() or int(label) >= NUM_CLASSES:
            raise UserError(f"Clothing1M: {values}, line {number}: no image and class in 0..{NUM_CLASSES - 1}")
        yield key, int(label)
