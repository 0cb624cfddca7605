"""CIFAR-100N, its 20 superclasses: CIFAR-100 with the coarse training labels that people gave: 26% are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noisebench.data import ImageData
from noisebench.datasets.cifar100 import SUPERCLASSES
from noisebench.datasets.cifar100 import load as load_clean
from noisebench.datasets.cifar100n import SUPERCLASS, human_labels

NUM_CLASSES = 20
LICENCE = "CC BY-NC 4.0 (labels); images as of CIFAR-100"
SOURCE = "https://github.com/UCSC-REAL/cifar-10-100n (Wei et al., 2022)"
SIZE = {"train": 50_000, "test": 10_000}
NOISE = "people's labels, 26.40% wrong; clean ones known"
FILES = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-n/CIFAR-100_human.pt": "a67b45c1d7992051865b5c755bd68bb1",
}
"""As in cifar100n."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """CIFAR-100 with superclasses as labels, and `given_labels` {"coarse"} as in cifar100n.

    A clean label is the superclass of the fine one, for training and test images.

    Raises:
        UserError: no root, a file is missing, damaged or in another order, or the download failed.
    """
    data = load_clean(root, download)
    return replace(
        data,
        train_labels=SUPERCLASS[data.train_labels],
        test_labels=SUPERCLASS[data.test_labels],
        num_classes=NUM_CLASSES,
        classes=tuple(SUPERCLASSES),
        class_map={},
        given_labels={"coarse": human_labels(root, data.train_labels).coarse},
    )
