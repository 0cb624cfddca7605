"""What a dataset file returns: `ImageData`, its images and labels checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from noisebench.augment import Augmentation
from noisebench.errors import UserError

Labels: TypeAlias = npt.NDArray[np.integer[Any]]
"""int64 [N], a class for each image; or uint8 [N, K] of 0 and 1 where an image may have several classes, or none."""


class ImageSource(Protocol):
    """Images that do not fit into memory: any map-style object."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Image `index`: uint8 [H, W, C], the same shape for all."""


Images: TypeAlias = npt.NDArray[np.uint8] | ImageSource
"""uint8 [N, H, W, C], `np.memmap` included, or an `ImageSource`."""


def image_shape(images: Images, name: str = "images") -> tuple[int, int, int]:
    """(C, H, W) of `images`.

    Raises:
        UserError: no images, not uint8, or not [N, H, W, C]; `name` is what the message calls them.
    """
    if len(images) == 0:
        raise UserError(f"{name} is empty")
    first = np.asarray(images[0])
    if first.dtype != np.uint8 or first.ndim != 3:
        raise UserError(f"{name} holds {first.dtype} images of shape {list(first.shape)}; give uint8 [H, W, C]")
    height, width, channels = first.shape
    return channels, height, width


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A dataset, as a dataset file's ``load(root, download=False)`` returns it.

    Attributes:
        train_images: uint8 [N, H, W, C] (`np.memmap` included), or an `ImageSource` where that does not fit.
        train_labels: int64 [N], in 0..num_classes-1; or uint8 [N, num_classes], multi-hot, 1 for present.
        test_images: as `train_images`, of the same H, W and C.
        test_labels: int64 [M], or uint8 [M, num_classes]; of the same kind.
        num_classes: K.
        classes: their K names.
        mean: per channel, for pixels in [0, 1].
        std: per channel, above 0.
        class_map: the usual asymmetric noise, {true class: class it is taken for}; empty if there is none, and where an
            image has several labels.

    Raises:
        UserError: a shape, a dtype or a class does not fit; the message names the attribute.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_map: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = image_shape(self.train_images, "train_images")
        test_shape = image_shape(self.test_images, "test_images")
        if shape != test_shape:
            raise UserError(f"test_images are {test_shape} (C, H, W), but train_images are {shape}; give equal shapes")
        if len(self.classes) != self.num_classes:
            raise UserError(f"classes has {len(self.classes)} names; give num_classes = {self.num_classes}")
        self._check_labels("train_labels", self.train_labels, len(self.train_images))
        self._check_labels("test_labels", self.test_labels, len(self.test_images))
        if self.train_labels.ndim != self.test_labels.ndim:
            one, several = ("test", "train") if self.multilabel else ("train", "test")
            raise UserError(f"{several}_labels are multi-hot, but {one}_labels are not; give both alike")
        if self.multilabel and self.class_map:
            raise UserError("class_map is for one label an image, and the labels are multi-hot; leave it out")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != shape[0]:
                raise UserError(f"{name} has {len(values)} values; give one for each of the {shape[0]} channels")
        Augmentation(mean=self.mean, std=self.std)  # checks the values
        strangers = {c for pair in self.class_map.items() for c in pair if not 0 <= c < self.num_classes}
        if strangers:
            raise UserError(f"class_map names class {min(strangers)}; give classes in 0..{self.num_classes - 1}")

    def _check_labels(self, name: str, labels: Labels, count: int) -> None:
        if not isinstance(labels, np.ndarray) or kind_of(labels) not in (
            ("int64", count),
            ("uint8", count, self.num_classes),
        ):
            found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise UserError(
                f"{name} is {found}; give an int64 array [{count}], a label for each image, or a multi-hot uint8 array "
                f"[{count}, {self.num_classes}]"
            )
        low, high = int(labels.min()), int(labels.max())
        if labels.ndim == 2:
            if high > 1:
                raise UserError(f"{name} holds {high}; multi-hot labels are 0 or 1")
            return
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise UserError(f"{name} holds class {wrong}; give classes in 0..{self.num_classes - 1}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return image_shape(self.train_images)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels: they are multi-hot."""
        return self.train_labels.ndim == 2


def kind_of(labels: npt.NDArray[Any] | Tensor) -> tuple[str | int, ...]:
    """Type and shape, e.g. ("int64", 100)."""
    return str(labels.dtype).removeprefix("torch."), *labels.shape
