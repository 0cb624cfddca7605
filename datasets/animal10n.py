"""ANIMAL-10N: 50,000 training and 5,000 test images, 64x64; five pairs of animals that people take for each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_files import images_of
from noisebench.torchvision_data import data_root

NUM_CLASSES = 10
CLASSES = (
    "cat", "lynx", "wolf", "coyote", "cheetah",
    "jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig",
)  # fmt: skip
SIZE = {"train": 50_000, "test": 5_000}
NOISE = "people's mistakes (Song et al. 2019); clean training labels unknown"
PIXELS = 64
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""Pixels in [-1, 1]: the authors publish no statistics."""
LICENCE = "research; on request from the authors"
SOURCE = "https://dm.kaist.ac.kr/datasets/animal-10n (Song et al., SELFIE, ICML 2019)"
FOLDER = "animal10n"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 64, 64, 3], from the raw release in ``root/animal10n/{training,testing}/LABEL_*.jpg``.

    An image's label is the digit that its name begins with. Images are in the order of their names. The files are
    decoded once, into a file beside them (0.7 GB).

    Raises:
        UserError: no root, it is to be downloaded, another number of images, a name without a label, or a file that is
            no image of that size.
    """
    folder = data_root("ANIMAL-10N", root) / FOLDER
    train, train_labels = _files(folder / "training", SIZE["train"])
    test, test_labels = _files(folder / "testing", SIZE["test"])
    return ImageData(
        train_images=images_of(train, (PIXELS, PIXELS), folder / "noisebench-train.npy"),
        train_labels=train_labels,
        test_images=images_of(test, (PIXELS, PIXELS), folder / "noisebench-test.npy"),
        test_labels=test_labels,
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        clean_known=False,
    )


def _files(folder: Path, count: int) -> tuple[list[Path], npt.NDArray[np.int64]]:
    if not folder.is_dir():
        raise UserError(
            f"ANIMAL-10N: {folder} is missing; ask for the raw images ({SOURCE}) and unpack them into {folder.parent} "
            f"(--download cannot)"
        )
    files = sorted(folder.glob("*.jpg"))
    if len(files) != count:
        raise UserError(f"ANIMAL-10N is incomplete: {folder} has {len(files)} images (*.jpg), not {count}")
    for file in files:
        if not ("0" <= file.name[0] <= "9"):
            raise UserError(f"ANIMAL-10N: {file}: the name begins with no label; it must be LABEL_NUMBER.jpg")
    return files, np.array([int(file.name[0]) for file in files], dtype=np.int64)
