"""CIFAR-100: 50,000 training and 10,000 test images, 32x32 colour; 100 classes in 20 superclasses."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.torchvision_data import load_cifar

NUM_CLASSES = 100
# fmt: off
CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""As published on the authors' page (SOURCE); equal to `clean_coarse_label` of CIFAR-100N for all 50,000 samples."""
CLASS_MAP = {
    0: 51, 1: 32, 2: 11, 3: 42, 4: 30, 5: 20, 6: 7, 7: 14, 8: 13, 9: 10, 10: 16, 11: 35, 12: 17, 13: 48, 14: 18,
    15: 19, 16: 28, 17: 37, 18: 24, 19: 21, 20: 25, 21: 31, 22: 39, 23: 33, 24: 6, 25: 84, 26: 45, 27: 29, 28: 61,
    29: 44, 30: 55, 31: 38, 32: 67, 33: 49, 34: 63, 35: 46, 36: 50, 37: 68, 38: 15, 39: 40, 40: 86, 41: 69, 42: 43,
    43: 88, 44: 78, 45: 77, 46: 98, 47: 52, 48: 58, 49: 60, 50: 65, 51: 53, 52: 56, 53: 57, 54: 62, 55: 72, 56: 59,
    57: 83, 58: 90, 59: 96, 60: 71, 61: 9, 62: 70, 63: 64, 64: 66, 65: 74, 66: 75, 67: 73, 68: 76, 69: 81, 70: 82,
    71: 23, 72: 95, 73: 91, 74: 80, 75: 34, 76: 12, 77: 79, 78: 93, 79: 99, 80: 36, 81: 85, 82: 92, 83: 0, 84: 94,
    85: 89, 86: 87, 87: 22, 88: 97, 89: 41, 90: 8, 91: 1, 92: 54, 93: 27, 94: 5, 95: 4, 96: 47, 97: 3, 98: 2,
    99: 26,
}
"""Each class to the next one of its superclass, cyclic in label order: Patrini et al., "Making Deep Neural Networks
Robust to Label Noise" (CVPR 2017). Blocks of five consecutive labels, as in some code (ELR's, for one), are
not superclasses: they keep 6 of the 100 flips inside one."""
# fmt: on
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
"""CIFAR-10's, as in Arazo et al. (ICML 2019) and most code."""
LICENCE = "none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)"
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009)"
SIZE = {"train": 50_000, "test": 10_000}
NOISE = "none known"
FILES = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}
"""As torchvision publishes them, and checks them."""


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 32, 32, 3] with fine labels, from torchvision's ``root/cifar-100-python``.

    Raises:
        UserError: no root, a file is missing or damaged, or the download failed.
    """
    splits = load_cifar("CIFAR100", root, download)
    return ImageData(
        **splits._asdict(), num_classes=NUM_CLASSES, classes=CLASSES, mean=MEAN, std=STD, class_map=CLASS_MAP
    )
