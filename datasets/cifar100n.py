"""CIFAR-100N: CIFAR-100 with the training labels that people gave: 40% are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from noisebench.data import ImageData
from noisebench.datasets.cifar100 import CLASSES as FINE
from noisebench.datasets.cifar100 import SUPERCLASSES
from noisebench.datasets.cifar100 import load as load_clean
from noisebench.image_data import Labels
from noisebench.label_files import LabelFile, check_same, pickled_columns
from noisebench.torchvision_data import data_root

NUM_CLASSES = 100
LICENCE = "CC BY-NC 4.0 (labels); images as of CIFAR-100"
SOURCE = "https://github.com/UCSC-REAL/cifar-10-100n (Wei et al., 2022)"
SIZE = {"train": 50_000, "test": 10_000}
NOISE = "people's labels, 40.20% wrong; clean ones known"
FILES = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-n/CIFAR-100_human.pt": "a67b45c1d7992051865b5c755bd68bb1",
}
"""The last, of data/CIFAR-100_human.pt, was computed from the file in its authors' repository: they publish none."""
HUMAN = "cifar-n/CIFAR-100_human.pt"
SUPERCLASS = np.array([next(i for i, fine in enumerate(SUPERCLASSES.values()) if name in fine) for name in FINE])
"""int64 [100]: the superclass of each class, in the order of `SUPERCLASSES`."""


class Human(NamedTuple):
    """People's training labels, int64 [N]: of 100 classes, and of 20 superclasses."""

    fine: npt.NDArray[np.int64]
    coarse: npt.NDArray[np.int64]


def human_labels(root: Path | None, labels: Labels) -> Human:
    """What ``root/cifar-n/CIFAR-100_human.pt`` holds for the images with these clean labels, int64 [N].

    Raises:
        UserError: no root, or the file is missing, damaged, or its own clean labels, fine or coarse, are not these.
    """
    file = LabelFile(data_root("CIFAR-100N", root) / HUMAN, FILES[HUMAN], SOURCE.split()[0])
    fine, coarse = NUM_CLASSES, len(SUPERCLASSES)
    columns = {"clean_label": fine, "noisy_label": fine, "clean_coarse_label": coarse, "noisy_coarse_label": coarse}
    found = pickled_columns(file, columns, len(labels))
    check_same(file, found["clean_label"], labels, "its clean_label")
    check_same(file, found["clean_coarse_label"], SUPERCLASS[labels], "its clean_coarse_label")
    return Human(found["noisy_label"], found["noisy_coarse_label"])


def load(root: Path | None, download: bool = False) -> ImageData:
    """CIFAR-100 with `given_labels` {"fine"} from ``root/cifar-n/CIFAR-100_human.pt``.

    The labels of the 20 superclasses make a task of their own, the dataset cifar100n_coarse.

    Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations" (ICLR 2022). The
    file's own clean labels are those of the images, one by one, or it is refused. The download is of CIFAR-100 alone.

    Raises:
        UserError: no root, a file is missing, damaged or in another order, or the download failed.
    """
    data = load_clean(root, download)
    return replace(data, given_labels={"fine": human_labels(root, data.train_labels).fine})
