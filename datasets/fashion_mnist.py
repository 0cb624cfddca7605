"""Fashion-MNIST: 60,000 training and 10,000 test images, 28x28 grey; articles of clothing."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.torchvision_data import load_idx

NUM_CLASSES = 10
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CLASS_MAP = {9: 7, 7: 5, 2: 6, 4: 3, 3: 4}
"""Zhang and Sabuncu, "Generalized Cross Entropy Loss" (NeurIPS 2018), class-dependent noise: boot -> sneaker,
sneaker -> sandal, pullover -> shirt, coat <-> dress. Other code uses other maps: compare only like
with like."""
MEAN = (0.2860,)
STD = (0.3530,)
LICENCE = "MIT"
SOURCE = "https://github.com/zalandoresearch/fashion-mnist (Xiao, Rasul and Vollgraf, 2017)"
SIZE = {"train": 60_000, "test": 10_000}
NOISE = "none known"
FILES = {
    "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""Of the raw files, after decompression."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 28, 28, 1], from torchvision's ``root/FashionMNIST/raw``.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_idx("FashionMNIST", root, download, {Path(file).name: md5 for file, md5 in FILES.items()})
    return ImageData(
        **splits._asdict(), num_classes=NUM_CLASSES, classes=CLASSES, mean=MEAN, std=STD, class_map=CLASS_MAP
    )
