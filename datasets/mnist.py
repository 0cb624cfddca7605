"""MNIST: 60,000 training and 10,000 test images, 28x28 grey; handwritten digits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from noisebench.data import ImageData
from noisebench.label_files import LabelFile, corrected_test
from noisebench.torchvision_data import data_root, load_idx

NUM_CLASSES = 10
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
CLASS_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
"""Patrini et al., "Making Deep Neural Networks Robust to Label Noise" (CVPR 2017): confusable digits."""
MEAN = (0.1307,)
STD = (0.3081,)
LICENCE = "CC BY-SA 3.0"
SOURCE = "https://yann.lecun.com/exdb/mnist (LeCun, Cortes and Burges, 1998)"
SIZE = {"train": 60_000, "test": 10_000}
NOISE = "none known in training labels; 15 of 100 doubted test labels wrong or unclear (label-errors/)"
FILES = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Of the raw files, after decompression."""
CORRECTED = "label-errors/cleanlab_mnist_mturk.json"
EXTRA_FILES = {"label-errors/cleanlab_mnist_mturk.json": "ebd50ddf96c29b4efe04bd15c8b0bd41"}
"""What the further test needs, and nothing else: MD5 of mturk/mnist_mturk.json, computed from the file in its authors'
repository, since they publish none."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 28, 28, 1], from torchvision's ``root/MNIST/raw``.

    A further test, read when it is asked for: ``corrected``, checked test labels from ``root/label-errors``
    (`noisebench.label_files.corrected_test`), Apache 2.0. Of 100 doubted labels 85 stay, 10 are corrected, and 5 images
    are left out.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_idx("MNIST", root, download, {Path(file).name: md5 for file, md5 in FILES.items()})
    folder = data_root("MNIST", root)
    corrected = LabelFile(folder / CORRECTED, EXTRA_FILES[CORRECTED], "https://github.com/cleanlab/label-errors")
    return ImageData(
        **splits._asdict(),
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        class_map=CLASS_MAP,
        extra_tests={"corrected": partial(corrected_test, corrected, splits.test_labels, NUM_CLASSES)},
    )
