"""SVHN: 73,257 training and 26,032 test images, 32x32 colour; house numbers, cropped to one digit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from noisebench.data import ImageData
from noisebench.torchvision_data import Splits, checked, data_root, download_files

NUM_CLASSES = 10
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)
"""The usual values, of the training images."""
LICENCE = "none stated; for non-commercial use only"
SOURCE = "http://ufldl.stanford.edu/housenumbers (Netzer et al., 2011)"
SIZE = {"train": 73_257, "test": 26_032}
NOISE = "none known"
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
"""As torchvision publishes them."""
FILES = MD5


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 32, 32, 3], from torchvision's ``root/train_32x32.mat`` and ``test_32x32.mat``.

    The publisher's label 10 is the digit 0, class 0 here. The 531,131 extra images are not used.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    from scipy.io import loadmat  # opens no pickle

    root = data_root("SVHN", root, download)
    parts = []
    for part in ("train", "test"):
        if download:
            download_files("SVHN", root, split=part)
        content: Any = io.BytesIO(checked("SVHN", root / f"{part}_32x32.mat", MD5[f"{part}_32x32.mat"]))
        found = loadmat(content)
        labels = found["y"].astype(np.int64).ravel()
        parts += [np.ascontiguousarray(found["X"].transpose(3, 0, 1, 2)), np.where(labels == 10, 0, labels)]
    splits = Splits(*parts)
    return ImageData(**splits._asdict(), num_classes=NUM_CLASSES, classes=CLASSES, mean=MEAN, std=STD)
