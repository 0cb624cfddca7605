"""MNIST: 60,000 training and 10,000 test images, 28x28 grey; handwritten digits."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.torchvision_data import load_idx

NUM_CLASSES = 10
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CLASS_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
"""Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (CVPR 2017): confusable digits."""
MEAN = (0.1307,)
STD = (0.3081,)
LICENCE = "CC BY-SA 3.0"
SOURCE = "https://yann.lecun.com/exdb/mnist (LeCun, Cortes and Burges, 1998)"
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Of the raw files, after decompression."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 28, 28, 1], from torchvision's ``root/MNIST/raw``.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_idx("MNIST", root, download, MD5)
    return ImageData(
        **splits._asdict(), num_classes=NUM_CLASSES, classes=CLASSES, mean=MEAN, std=STD, class_map=CLASS_MAP
    )
