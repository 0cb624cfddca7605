"""Multi digits: 16x16 images of 2x2 tiles, each empty or a real digit of scikit-learn; several labels an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from noisebench.data import ImageData
from noisebench.datasets.digits import load as load_digits
from noisebench.streams import stream

NUM_CLASSES = 10
MULTILABEL = True
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
MEAN = (0.1439,)
STD = (0.288,)
"""Of the training split's pixels, as uint8 / 255."""
LICENCE = "CC BY 4.0"
SOURCE = "sklearn.datasets.load_digits: the test part of UCI's optical digits (Alpaydin and Kaynak, 1998)"
SIZE = {"train": 2000, "test": 1000}
NOISE = "none known"
TRAIN = 2000
TEST = 1000
FILLED = 0.5
"""The probability that a tile holds a digit: two tiles an image on average, and an image in sixteen is empty."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """2,000 training and 1,000 test images, uint8 [N, 16, 16, 1]; `root` and `download` are not used.

    The digits of the training images are those of the dataset digits' training split, and so for the test images: no
    digit is in both. The draws are the same for every seed of a run.
    """
    digits = load_digits(root)
    train_images, train_labels = _tiled(digits.train_images, digits.train_labels, "train", TRAIN)
    test_images, test_labels = _tiled(digits.test_images, digits.test_labels, "test", TEST)
    return ImageData(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
    )


def _tiled(digits: Any, classes: Any, split: str, count: int) -> tuple[Any, Any]:
    """`count` images of tiles drawn from `digits` [N, 8, 8, 1], and the classes in each, multi-hot [count, K]."""
    # Uniform doubles alone, which are the same bits under every version of NumPy.
    draw = np.random.Generator(np.random.PCG64(stream(0, "multi_digits", split)))
    filled = draw.random((count, 2, 2)) < FILLED
    chosen = (draw.random((count, 2, 2)) * len(digits)).astype(np.int64)
    tiles = digits[chosen, :, :, 0] * filled[..., None, None]
    images = tiles.transpose(0, 1, 3, 2, 4).reshape(count, 16, 16, 1).astype(np.uint8)
    labels = np.zeros((count, NUM_CLASSES), dtype=np.uint8)
    image, row, column = np.nonzero(filled)
    labels[image, classes[chosen[image, row, column]]] = 1
    return images, labels
