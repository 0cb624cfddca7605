"""Food-101N: 310,009 web images of Food-101's 101 dishes, labelled by their queries; Food-101's test set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from noisebench.archives import unpack
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.image_files import lines_of
from noisebench.image_index import Listed, list_lines
from noisebench.torchvision_data import data_root

NUM_CLASSES = 101
SIZE = {"train": 310_009, "test": 25_250}
NOISE = "about 20%, from the web (Lee et al. 2018); clean training labels unknown"
FILES = {
    "food-101n/Food-101N_release.zip": "",
    "food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87",
}
"""The second sum is that of torchvision's `Food101`."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's, as usual."""
LICENCE = "research; the images belong to their owners"
SOURCE = "https://kuanghuei.github.io/Food-101N (Lee et al., CleanNet, CVPR 2018); test: Bossard et al., ECCV 2014"
RELEASE = Path("food-101n", "Food-101N_release")


def load(root: Path | None, download: bool = False) -> ImageData:
    """Encoded images, from ``root/food-101n/Food-101N_release/{meta,images}`` and torchvision's ``root/food-101``.

    Training images are those of meta/imagelist.tsv, whose class is their folder; classes are in the order of their
    names, as in torchvision. The verification labels are not used: no method sees a clean label.

    Raises:
        UserError: no root, it is to be downloaded, a list is missing, wrong or of another length, or an image is
            missing.
    """
    root = data_root("Food-101N", root)
    release, clean = root / RELEASE, root / "food-101"
    for folder in (release / "meta", clean / "meta"):
        if not folder.is_dir():
            raise UserError(
                f"Food-101N: {folder} is missing; put Food-101N_release.zip ({SOURCE}) into {release.parent} and "
                f"food-101.tar.gz into {root}, and run 'noisebench data prepare food101n' (--download cannot)"
            )
    classes = tuple(sorted(_rows(release / "meta" / "classes.txt")))
    if len(set(classes)) != NUM_CLASSES:
        listing = release / "meta" / "classes.txt"
        raise UserError(f"Food-101N: {listing} lists {len(set(classes))} classes, not {NUM_CLASSES}")
    images = release / "images" if (release / "images").is_dir() else release / "train"  # releases differ
    train = _listed(images, release / "meta" / "imagelist.tsv", "", classes, SIZE["train"])
    test = _listed(clean / "images", clean / "meta" / "test.txt", ".jpg", classes, SIZE["test"])
    return ImageData(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        num_classes=NUM_CLASSES,
        classes=classes,
        mean=MEAN,
        std=STD,
        clean_known=False,
    )


def prepare(root: Path) -> None:
    """Unpack Food-101N_release.zip and Food-101's food-101.tar.gz; what is there stays.

    Raises:
        UserError: an archive is missing or damaged.
    """
    root = data_root("Food-101N", root)
    unpack(root / RELEASE.parent / f"{RELEASE.name}.zip", root / RELEASE, inner=RELEASE.name)
    unpack(root / "food-101.tar.gz", root / "food-101", inner="food-101")


def _rows(listing: Path) -> list[str]:
    """The lines, without the heading that the release's tables have."""
    return [line.strip() for line in lines_of(listing) if not line.startswith("class_name")]


def _listed(folder: Path, listing: Path, suffix: str, classes: tuple[str, ...], count: int) -> Listed:
    def pairs() -> Iterator[tuple[str, int]]:
        place = {name: label for label, name in enumerate(classes)}
        for row in _rows(listing):
            name = row.partition("/")[0]
            if name not in place:
                raise UserError(f"Food-101N: {listing}: '{row[:80]}' is in none of the {len(classes)} classes")
            yield row + suffix, place[name]

    found = list_lines(folder, [listing], pairs, classes)
    if len(found.labels) != count:
        raise UserError(f"Food-101N: {listing} lists {len(found.labels)} images, not {count}; copy it anew")
    return found
