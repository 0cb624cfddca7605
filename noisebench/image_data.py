"""What a dataset file returns: `ImageData`, its images and labels checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import TypeIs

from noisebench.augment import Augmentation
from noisebench.errors import UserError, unknown

OWN_TESTS = ("test", "val", "train")
"""Prefixes of a run's own metrics: a further test of such a name would take their place, and choose the epoch."""

Labels: TypeAlias = npt.NDArray[np.integer[Any]]
"""int64 [N], a class for each image; or uint8 [N, K] of 0 and 1 where an image may have several classes, or none."""


class ImageSource(Protocol):
    """Images that do not fit into memory: any map-style object."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Image `index`: uint8 [H, W, C], the same shape for all."""


class EncodedImages(Protocol):
    """Colour images of any size, as they are stored (JPEG, PNG): decoded and cropped to a square when they are read."""

    def __len__(self) -> int: ...
    def encoded(self, index: int, /) -> bytes:
        """The content of image file `index`."""

    def name(self, index: int, /) -> str:
        """What a message calls image `index`: its path."""


Images: TypeAlias = npt.NDArray[np.uint8] | ImageSource | EncodedImages
"""uint8 [N, H, W, C], `np.memmap` included; or an `ImageSource` or `EncodedImages`."""


def is_encoded(images: Images) -> TypeIs[EncodedImages]:
    """Whether they are `EncodedImages`."""
    return hasattr(images, "encoded")


def image_shape(images: Images, name: str = "images", size: int = 0) -> tuple[int, int, int]:
    """(C, H, W) of `images`; of `EncodedImages` (3, size, size), `size` being the side of their crops.

    Raises:
        UserError: no images, not uint8, or not [N, H, W, C]; `name` is what the message calls them.
    """
    if len(images) == 0:
        raise UserError(f"{name} is empty")
    if is_encoded(images):
        return 3, size, size
    first = np.asarray(images[0])
    if first.dtype != np.uint8 or first.ndim != 3:
        raise UserError(f"{name} holds {first.dtype} images of shape {list(first.shape)}; give uint8 [H, W, C]")
    height, width, channels = first.shape
    return channels, height, width


@dataclass(frozen=True, eq=False)
class LabelSets:
    """Sets of classes, as many as one likes, for labels that name a set: an image has every class of its set.

    A hierarchy is one: the set of a class holds it and all classes above it. What images have is then int64 [N], where
    multi-hot rows of thousands of classes would not fit into memory.

    Attributes:
        starts: int64 [S + 1]; set s is ``classes[starts[s]:starts[s + 1]]``.
        classes: int32 [starts[S]], in 0..num_classes-1.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """The number of sets S."""
        return len(self.starts) - 1

    def multihot(self, ids: Tensor, num_classes: int) -> Tensor:
        """Sets int64 [B] -> uint8 [B, num_classes] of 0 and 1, on the device of `ids`."""
        at = ids.cpu().numpy()
        counts = self.starts[at + 1] - self.starts[at]
        rows = np.repeat(np.arange(len(at)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.classes[self.starts[at][rows] + within]
        made = torch.zeros(len(at), num_classes, dtype=torch.uint8, device=ids.device)
        made[torch.from_numpy(rows).to(ids.device), torch.from_numpy(columns.astype(np.int64)).to(ids.device)] = 1
        return made

    def check(self, num_classes: int) -> None:
        """Refuse sets that are no such arrays.

        Raises:
            UserError: naming what does not fit.
        """
        starts, classes = self.starts, self.classes
        if starts.dtype != np.int64 or starts.ndim != 1 or len(starts) < 2 or classes.dtype != np.int32:
            raise UserError(
                f"label_sets: starts is {starts.dtype} {list(starts.shape)}; give int64 [S + 1], and int32 classes"
            )
        if starts[0] != 0 or starts[-1] != len(classes) or bool((np.diff(starts) < 1).any()):
            raise UserError("label_sets: starts must rise from 0 to len(classes), each set with a class at least")
        if int(classes.min()) < 0 or int(classes.max()) >= num_classes:
            raise UserError(
                f"label_sets: classes range over {classes.min()}..{classes.max()}; give 0..{num_classes - 1}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class ExtraTest:
    """A further look at a finished epoch, beside the test set's own: other labels, other images, or people's opinions.

    Attributes:
        labels: int64 [M], in 0..num_classes-1; None for `soft` alone.
        images: as `ImageData.test_images`; None for those themselves.
        keep: bool [M], the images that count; None for all.
        soft: float64 [M, K], the share of people that said so, rows sum to one; NLL and ECE are then taken against it.
    """

    labels: npt.NDArray[np.int64] | None = None
    images: Images | None = None
    keep: npt.NDArray[np.bool_] | None = None
    soft: npt.NDArray[np.float64] | None = None

    def check(self, name: str, images: Images, num_classes: int) -> None:
        """Refuse what does not fit the dataset; `images` are its test images.

        Raises:
            UserError: naming the attribute.
        """
        if self.images is not None:
            if is_encoded(self.images) != is_encoded(images) or image_shape(self.images, name) != image_shape(images):
                raise UserError(
                    f"{name}: its images are of another kind or shape than the test images; give equal ones"
                )
            images = self.images
        count = len(images)
        if self.labels is None and self.soft is None:
            raise UserError(f"{name}: give labels or soft")
        if self.labels is not None:
            if kind_of(self.labels) != ("int64", count):
                raise UserError(
                    f"{name}: labels are {self.labels.dtype} {list(self.labels.shape)}; give int64 [{count}]"
                )
            if int(self.labels.min()) < 0 or int(self.labels.max()) >= num_classes:
                raise UserError(
                    f"{name}: labels range over {self.labels.min()}..{self.labels.max()}; give 0..{num_classes - 1}"
                )
        if self.keep is not None and (kind_of(self.keep) != ("bool", count) or not self.keep.any()):
            raise UserError(
                f"{name}: keep is {self.keep.dtype} {list(self.keep.shape)}; give bool [{count}], some of them true"
            )
        if self.soft is not None:
            if kind_of(self.soft) != ("float64", count, num_classes):
                raise UserError(
                    f"{name}: soft is {self.soft.dtype} {list(self.soft.shape)}; give float64 [{count}, {num_classes}]"
                )
            if not bool((self.soft >= 0).all()) or not np.allclose(self.soft.sum(1), 1, atol=1e-6):
                raise UserError(f"{name}: rows of soft must be 0 or more and sum to one")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A dataset, as a dataset file's ``load(root, download=False)`` returns it.

    Attributes:
        train_images: uint8 [N, H, W, C] (`np.memmap` included), or an `ImageSource` where that does not fit, or
            `EncodedImages` where sizes differ.
        train_labels: int64 [N], in 0..num_classes-1; or uint8 [N, num_classes], multi-hot, 1 for present.
        test_images: as `train_images`, of the same H, W and C.
        test_labels: int64 [M], or uint8 [M, num_classes]; of the same kind.
        num_classes: K.
        classes: their K names.
        mean: per channel, for pixels in [0, 1].
        std: per channel, above 0.
        class_map: the usual asymmetric noise, {true class: class it is taken for}; empty if there is none, and where an
            image has several labels.
        given_labels: training labels that people or the web gave, by name, int64 [N]: noise `real` takes one of them.
        clean_known: False where `train_labels` are such labels themselves, and nobody knows the true ones.
        label_sets: where given, labels are int64 and name one of these sets, and an image has all of its classes.
        extra_tests: further looks at test data by name, loaded when a recipe's `evaluate` asks for them.

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
    given_labels: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    clean_known: bool = True
    label_sets: LabelSets | None = None
    extra_tests: Mapping[str, Callable[[], ExtraTest]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = image_shape(self.train_images, "train_images")
        test_shape = image_shape(self.test_images, "test_images")
        if is_encoded(self.train_images) != is_encoded(self.test_images):
            raise UserError("test_images and train_images must both be EncodedImages, or neither")
        if shape != test_shape:
            raise UserError(f"test_images are {test_shape} (C, H, W), but train_images are {shape}; give equal shapes")
        if len(self.classes) != self.num_classes:
            raise UserError(f"classes has {len(self.classes)} names; give num_classes = {self.num_classes}")
        if self.label_sets is not None:
            self.label_sets.check(self.num_classes)
        self._check_labels("train_labels", self.train_labels, len(self.train_images))
        self._check_labels("test_labels", self.test_labels, len(self.test_images))
        if self.label_sets is not None and self.train_labels.ndim == 2:
            raise UserError("train_labels are multi-hot; with label_sets give int64, the set of each image")
        if self.given_labels and (self.multilabel or not self.clean_known):
            raise UserError("given_labels go with one clean label an image, which are not known here; leave them out")
        for name, labels in self.given_labels.items():
            self._check_labels(f"given_labels['{name}']", labels, len(self.train_images))
            if labels.ndim == 2:
                raise UserError(f"given_labels['{name}'] are multi-hot; give int64, one label an image")
        taken = [name for name in self.extra_tests if name in OWN_TESTS or not re.fullmatch(r"\w[\w-]*", name)]
        if taken:
            raise UserError(
                f"extra_tests: '{taken[0]}' cannot name a further test, whose metrics are <name>.accuracy and so on; "
                f"give letters, digits, _ and -, and none of {', '.join(OWN_TESTS)}"
            )
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
        what, most = ("class", self.num_classes) if self.label_sets is None else ("set", len(self.label_sets))
        if low < 0 or high >= most:
            wrong = low if low < 0 else high
            plural = "classes" if what == "class" else "sets"
            raise UserError(f"{name} holds {what} {wrong}; give {plural} in 0..{most - 1}")

    def image_shape_at(self, size: int) -> tuple[int, int, int]:
        """(C, H, W); of `EncodedImages` that of their crops, `size` on a side."""
        return image_shape(self.train_images, size=size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), with zeros where images are of any size."""
        return image_shape(self.train_images)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels: they are multi-hot, or name sets."""
        return self.train_labels.ndim == 2 or self.label_sets is not None

    def extra_test(self, name: str) -> ExtraTest:
        """The further test of that name, loaded and checked.

        Raises:
            UserError: there is none, a file of it is missing or damaged, or it does not fit.
        """
        if name not in self.extra_tests:
            if not self.extra_tests:
                raise UserError(f"recipe.evaluate: '{name}': this dataset offers no further tests; leave it out")
            raise unknown("recipe.evaluate: further test", name, self.extra_tests)
        found = self.extra_tests[name]()
        found.check(f"extra_tests['{name}']", self.test_images, self.num_classes)
        return found


def kind_of(labels: npt.NDArray[Any] | Tensor) -> tuple[str | int, ...]:
    """Type and shape, e.g. ("int64", 100)."""
    return str(labels.dtype).removeprefix("torch."), *labels.shape
