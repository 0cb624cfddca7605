"""CIFAR-10: 50,000 training and 10,000 test images, 32x32 colour; animals and vehicles."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from noisebench.data import ImageData
from noisebench.label_files import LabelFile, corrected_test, people_test
from noisebench.torchvision_data import data_root, load_cifar

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
SIZE = {"train": 50_000, "test": 10_000}
NOISE = "none known in training labels; 54 of 275 doubted test labels wrong or unclear (label-errors/)"
FILES = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
PEOPLE = "cifar-10h/cifar10h-probs.npy"
CORRECTED = "label-errors/cleanlab_cifar10_mturk.json"
EXTRA_FILES = {
    "cifar-10h/cifar10h-probs.npy": "7b41f73eee90fdefc73bfc820ab29ba8",
    "label-errors/cleanlab_cifar10_mturk.json": "d3f2217f2bb7fe18eca521458e936602",
}
"""What the further tests need, and nothing else: MD5 of data/cifar10h-probs.npy and mturk/cifar10_mturk.json, computed
from the files in their authors' repositories, since they publish none."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 32, 32, 3], from torchvision's ``root/cifar-10-batches-py``.

    Further tests, read when they are asked for:

    - ``people``: the shares of about 50 people who chose each class, for every test image, from ``root/cifar-10h``;
      Peterson et al., "Human uncertainty makes classification more robust" (ICCV 2019), CC BY-NC-SA 4.0. The likeliest
      class is the test label of 9,921 images.
    - ``corrected``: checked test labels, from ``root/label-errors`` (`noisebench.label_files.corrected_test`),
      Apache 2.0. Of 275 doubted labels 221 stay, 18 are corrected, and 36 images are left out.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_cifar("CIFAR10", root, download)
    folder = data_root("CIFAR10", root)
    people = LabelFile(folder / PEOPLE, EXTRA_FILES[PEOPLE], "https://github.com/jcpeterson/cifar-10h")
    corrected = LabelFile(folder / CORRECTED, EXTRA_FILES[CORRECTED], "https://github.com/cleanlab/label-errors")
    return ImageData(
        **splits._asdict(),
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        class_map=CLASS_MAP,
        extra_tests={
            "people": partial(people_test, people, splits.test_labels, NUM_CLASSES),
            "corrected": partial(corrected_test, corrected, splits.test_labels, NUM_CLASSES),
        },
    )
