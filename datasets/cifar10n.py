"""CIFAR-10N: CIFAR-10 with training labels that people gave, five sets of them: 9% to 40% are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noisebench.data import ImageData
from noisebench.datasets.cifar10 import load as load_clean
from noisebench.label_files import LabelFile, check_same, pickled_columns
from noisebench.torchvision_data import data_root

NUM_CLASSES = 10
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LICENCE = "CC BY-NC 4.0 (labels); images as of CIFAR-10"
SOURCE = "https://github.com/UCSC-REAL/cifar-10-100n (Wei et al., 2022)"
SIZE = {"train": 50_000, "test": 10_000}
NOISE = "people's labels, 9.01% (aggre) to 40.21% (worse) wrong; clean ones known"
FILES = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-n/CIFAR-10_human.pt": "96644db5574813cae939af5f7f2a0aec",
}
"""The last, of data/CIFAR-10_human.pt, was computed from the file in its authors' repository: they publish none."""
EXTRA_FILES = {
    "cifar-10h/cifar10h-probs.npy": "7b41f73eee90fdefc73bfc820ab29ba8",
    "label-errors/cleanlab_cifar10_mturk.json": "d3f2217f2bb7fe18eca521458e936602",
}
"""As in cifar10."""
HUMAN = "cifar-n/CIFAR-10_human.pt"
GIVEN = {
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worse": "worse_label",
}
"""Our names of the sets, and the file's. Three people labelled every image: `random1` to `random3` are their labels,
`aggre` what most of them said, `worse` a wrong one where there is one."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """CIFAR-10, its further tests included, with `given_labels` from ``root/cifar-n/CIFAR-10_human.pt``.

    Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations" (ICLR 2022). The
    file's own clean labels are those of the images, one by one, or it is refused. The download is of CIFAR-10 alone.

    Raises:
        UserError: no root, a file is missing, damaged or in another order, or the download failed.
    """
    data = load_clean(root, download)
    file = LabelFile(data_root("CIFAR-10N", root) / HUMAN, FILES[HUMAN], SOURCE.split()[0])
    columns = dict.fromkeys(("clean_label", *GIVEN.values()), NUM_CLASSES)
    found = pickled_columns(file, columns, len(data.train_labels))
    check_same(file, found["clean_label"], data.train_labels, "its clean_label")
    return replace(data, given_labels={name: found[column] for name, column in GIVEN.items()})
