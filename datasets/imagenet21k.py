"""ImageNet-21k (fall 2011): 14,197,122 images of any size in 21,841 synsets; an image has all synsets above its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from noisebench.class_tars import list_tars
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_index import list_folders
from noisebench.streams import stream
from noisebench.torchvision_data import data_root
from noisebench.wordnet import names_of, with_ancestors, words_of

NUM_CLASSES = 21_841
MULTILABEL = True
SIZE = {"train": 13_628_665, "test": 568_457}
"""Of the 14,197,122 images that the publisher names; not checked, since copies of the release differ by a few."""
TEST = 0.04
NOISE = "unknown; taken as clean, in the literature too"
FILES = {"imagenet21k/wordnet.is_a.txt": ""}
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ILSVRC12's, as usual."""
LICENCE = "ImageNet's terms: non-commercial research and education"
SOURCE = "https://image-net.org (Deng et al., 2009), after registration: fall11_whole.tar; and archive/wordnet.is_a.txt"
FOLDER = "imagenet21k"


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from ``root/imagenet21k``: the release's WNID.tar, one a synset, or folders WNID of images.

    As Collier et al. (CVPR 2021, section 4) have it, the task is multilabel, with a class for each synset, and 4% of
    the images are the test set: theirs is not published, so it is a fixed draw of ours here. Their 4% for validation
    are a recipe's ``validation: 0.041667``. They count 21,843 classes. The hierarchy is wordnet.is_a.txt there; names
    come from words.txt where that is there. Images stay in the tars. Labels are the sets of `ImageData.label_sets`:
    a synset and all of its ancestors that are classes.

    Raises:
        UserError: no root, it is to be downloaded, another number of synsets, a damaged tar, or a hierarchy that does
            not fit.
    """
    folder = data_root("ImageNet-21k", root) / FOLDER
    hierarchy = folder / "wordnet.is_a.txt"
    if not hierarchy.is_file():
        raise UserError(
            f"ImageNet-21k: {hierarchy} is missing; put it and the WNID.tar of fall11_whole.tar into {folder} "
            f"({SOURCE}) (--download cannot)"
        )
    packed = next(folder.glob("n*.tar"), None) is not None
    found = list_tars(folder) if packed else list_folders(folder)
    if len(found.classes) != NUM_CLASSES:
        what = "tars (WNID.tar)" if packed else "class folders"
        raise UserError(f"ImageNet-21k: {folder} has {len(found.classes)} {what}, not the {NUM_CLASSES} of fall 2011")
    drawn = np.random.Generator(np.random.PCG64(stream(0, FOLDER, "split"))).random(len(found.labels)) < TEST
    train, test = np.flatnonzero(~drawn), np.flatnonzero(drawn)
    words = words_of(folder / "words.txt") if (folder / "words.txt").is_file() else {}
    return ImageData(
        train_images=found.images.take(train),
        train_labels=found.labels[train],
        test_images=found.images.take(test),
        test_labels=found.labels[test],
        num_classes=NUM_CLASSES,
        classes=names_of(found.classes, words),
        mean=MEAN,
        std=STD,
        label_sets=with_ancestors(found.classes, hierarchy),
    )
