"""CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour; animals and vehicles."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.torchvision_data import load_cifar

NUM_CLASSES = 10
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASS_MAP = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (CVPR 2017): truck -> automobile,
bird -> airplane, cat <-> dog, deer -> horse."""
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
"""The values of Arazo et al. (ICML 2019) and most code: the mean over images of the sd within one.
The sd over all pixels is .247, .243, .262."""
LICENCE = "none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)"
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009)"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 32, 32, 3], from torchvision's ``root/cifar-10-batches-py``.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_cifar("CIFAR10", root, download)
    return ImageData(
        **splits._asdict(), num_classes=NUM_CLASSES, classes=CLASSES, mean=MEAN, std=STD, class_map=CLASS_MAP
    )
