"""Any images in class folders, as torchvision's ImageFolder has them: PATH/train/CLASS/..., PATH/val/CLASS/..."""

from __future__ import annotations

from pathlib import Path

from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_index import list_folders

TAKES_PATH = True
NOISE = "taken to be clean, so that noise can be injected"
LICENCE = "your own data's"
SOURCE = "your own folder"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, for lack of the data's own."""


def load(root: Path | None, download: bool = False, *, path: Path) -> ImageData:
    """Encoded images of the folder `path`, one label each; the classes are its sorted class folders.

    The test set is in ``path/val`` or else ``path/test``, with the same class folders as ``path/train``.

    Raises:
        UserError: a folder is missing or cannot be read, has no image, or is no class of the training set.
    """
    tests = [path / name for name in ("val", "test") if (path / name).is_dir()]
    if not (path / "train").is_dir() or not tests:
        raise UserError(f"{path} must hold train/CLASS/ and val/CLASS/ or test/CLASS/ folders of images")
    train = list_folders(path / "train")
    test = list_folders(tests[0], train.classes)
    return ImageData(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        num_classes=len(train.classes),
        classes=train.classes,
        mean=MEAN,
        std=STD,
    )
