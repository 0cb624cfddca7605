"""Digits: 1,200 training and 597 test images, 8x8 grey; real handwritten digits inside scikit-learn, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from noisebench.data import ImageData
from noisebench.streams import stream

NUM_CLASSES = 10
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CLASS_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
"""MNIST's: Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (CVPR 2017)."""
MEAN = (0.2859,)
STD = (0.3528,)
"""Of the training split's pixels, as uint8 / 255."""
LICENCE = "CC BY 4.0"
SOURCE = "sklearn.datasets.load_digits: the test part of UCI's optical digits (Alpaydin and Kaynak, 1998)"
SIZE = {"train": 1200, "test": 597}
NOISE = "none known"
TRAIN = 1200
SPLIT_SEED = 0


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 8, 8, 1]; scikit-learn's 0..16 times 15, so 0..240. `root` and `download` are not used.

    The split is the same for every seed of a run: samples in order of (class, a hash of SPLIT_SEED and the position),
    of which 1,200 evenly spaced ones are for training. So it is stratified, each class within one sample of its
    share, and depends on no library's generator.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int64)
    order = sorted(range(len(labels)), key=lambda i: (labels[i], stream(SPLIT_SEED, "digits", i)))
    rank = np.arange(len(labels))
    in_train = np.zeros(len(labels), dtype=bool)
    in_train[order] = (rank + 1) * TRAIN // len(labels) > rank * TRAIN // len(labels)
    return ImageData(
        train_images=images[in_train],
        train_labels=labels[in_train],
        test_images=images[~in_train],
        test_labels=labels[~in_train],
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        class_map=CLASS_MAP,
    )
