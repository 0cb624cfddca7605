"""Shapes: 1,200 training and 597 test images, 8x8 grey; drawn squares, crosses, stripes and the like, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisebench.data import ImageData
from noisebench.streams import stream

NUM_CLASSES = 6
CLASSES = ("square", "cross", "stripes", "checkerboard", "diagonal", "corner")
MEAN = (0.2264,)
STD = (0.3277,)
"""Of the training split's pixels, as uint8 / 255."""
LICENCE = "the same as noisebench's: the images are drawn by this file"
SOURCE = "drawn by this file; outliers for the dataset digits, of the same size and range of values"
SIZE = {"train": 1200, "test": 597}
NOISE = "none: what is drawn is known"
TRAIN = 1200
TEST = 597
SIDE = 8


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 8, 8, 1] in steps of 15, 0..240, as those of digits; `root` and `download` are not used.

    The images are the same for every seed of a run. The classes take turns.
    """
    train_images, train_labels = _drawn("train", TRAIN)
    test_images, test_labels = _drawn("test", TEST)
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


def _drawn(split: str, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`count` images [count, 8, 8, 1] and their classes [count]."""
    # Uniform doubles alone, which are the same bits under every version of NumPy.
    draw = np.random.Generator(np.random.PCG64(stream(0, "shapes", split)))
    labels = np.arange(count, dtype=np.int64) % NUM_CLASSES
    masks = np.stack([_mask(CLASSES[label], draw) for label in labels])
    brightness = 0.6 + 0.4 * draw.random((count, 1, 1))
    values = masks * brightness + 0.3 * (draw.random(masks.shape) - 0.5)
    images = (np.clip(values, 0, 1) * 16).astype(np.uint8) * 15
    return images[..., None], labels


def _mask(name: str, draw: np.random.Generator) -> Any:
    """One shape, bool [8, 8], at a place and of a size of its own."""

    def pick(low: int, high: int) -> int:
        return low + int(draw.random() * (high - low + 1))

    row, column = np.indices((SIDE, SIDE))
    if draw.random() < 0.5:
        row, column = column, row
    size = pick(4, 6)
    top, left = pick(0, SIDE - size), pick(0, SIDE - size)
    y, x = row - top, column - left
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    if name == "square":
        return inside & ((y == 0) | (y == size - 1) | (x == 0) | (x == size - 1))
    if name == "cross":
        return inside & ((y == size // 2) | (x == size // 2))
    if name == "corner":
        return inside & ((y == 0) | (x == 0))
    period, phase, other = pick(1, 2), pick(0, 3), pick(0, 3)
    if name == "stripes":
        return (row + phase) // period % 2 == 0
    if name == "checkerboard":
        return ((row + phase) // period + (column + other) // period) % 2 == 0
    mirrored = SIDE - 1 - column if draw.random() < 0.5 else column
    return np.abs(row - mirrored + pick(-2, 2)) < period
