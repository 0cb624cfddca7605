"""Open-set noise in a run: the dataset that outliers come from, checked, and the images that a method sees.

`noisebench.noise` draws which image stands in for which sample, from numbers alone; here names become datasets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from noisebench import dataset_names, registry
from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from noisebench.image_data import ImageData, Images


def check_source(source: object, dataset: str | None = None) -> None:
    """Refuse a source of outliers as far as that can be told without importing or loading it.

    Args:
        source: what the noise gives as its source.
        dataset: the dataset that the noise is for, where that is known.

    Raises:
        UserError: no registered dataset, the dataset itself, a multilabel one, or one that shares classes with it.
    """
    known = registry.datasets().entries
    if not isinstance(source, str):
        raise UserError(f"source: {source!r} is no dataset's name")
    plain = dataset_names.with_path(source)[0]
    if plain not in known:
        raise unknown("source: dataset", source, known)
    if known[plain].constants.get("MULTILABEL") is True:
        raise _several(source)
    if dataset is None:
        return
    dataset = dataset_names.sized(dataset)[0]
    if source == dataset:
        raise UserError(f"source: '{source}' is the dataset itself; outliers come from another one")
    if dataset_names.with_path(dataset)[0] in known:
        first, second = (dataset_names.dataset_of(name).constants.get("CLASSES", ()) for name in (dataset, source))
        _check_classes(first, second, dataset, source)


def check_loaded(data: ImageData, outliers: ImageData, dataset: str, source: str) -> None:
    """Refuse a source that does not fit the dataset, both loaded.

    Args:
        data: the dataset; outliers: the source; dataset, source: what a message calls them.

    Raises:
        UserError: a multilabel source, one that shares classes with the dataset, or one of another image shape.
    """
    if outliers.multilabel:
        raise _several(source)
    _check_classes(data.classes, outliers.classes, dataset, source)
    from noisebench.image_data import is_encoded

    if is_encoded(data.train_images) != is_encoded(outliers.train_images):
        raise UserError(f"source: images of '{source}' and of '{dataset}' must both be of any size, or neither")
    if data.image_shape != outliers.image_shape:
        found, wanted = (f"{h} x {w} x {c}" for c, h, w in (outliers.image_shape, data.image_shape))
        raise UserError(f"source: images of '{source}' are {found} (H, W, C), those of '{dataset}' {wanted}")


def _several(source: str) -> UserError:
    return UserError(f"source: images of '{source}' have several labels; give a dataset with one label an image")


def _check_classes(first: Iterable[str], second: Iterable[str], dataset: str, source: str) -> None:
    known = {name.casefold() for name in first}
    shared = [name for name in second if name.casefold() in known]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        names = ", ".join(shared[:5]) + more
        raise UserError(f"source: '{source}' shares classes with '{dataset}' ({names}): their images are no outliers")


class _Places:
    """Where each of the mixed images is; nothing is copied."""

    def __init__(self, images: Any, source: Any, outliers: npt.NDArray[np.int64]) -> None:
        """`outliers` as `mix` takes them."""
        self._images, self._source, self._outliers = images, source, outliers

    def __len__(self) -> int:
        return len(self._outliers)

    def _at(self, index: int) -> tuple[Any, int]:
        at = int(self._outliers[index])
        return (self._images, index) if at < 0 else (self._source, at)


class Mixed(_Places):
    """An `ImageSource`: images of which some are another set's."""

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Image `index`: uint8 [H, W, C]."""
        images, at = self._at(index)
        return np.asarray(images[at])


class MixedFiles(_Places):
    """`EncodedImages` of which some are another set's."""

    def encoded(self, index: int, /) -> bytes:
        """The content of image file `index`."""
        images, at = self._at(index)
        return bytes(images.encoded(at))

    def name(self, index: int, /) -> str:
        """What a message calls image `index`."""
        images, at = self._at(index)
        return str(images.name(at))


def mix(images: Images, source: Images, outliers: npt.NDArray[np.int64]) -> Images:
    """The images of open-set noise, as many as `images`: a copy of an array in memory, else they are read when asked.

    Args:
        images: uint8 [N, H, W, C], or an `ImageSource` or `EncodedImages`.
        source: as `images`, of the same shape.
        outliers: int64 [N], the position in `source` of what stands in for each image, -1 where it stays.
    """
    from noisebench.image_data import is_encoded

    if is_encoded(images):  # and the source too, which check_loaded saw to
        return MixedFiles(images, source, outliers)
    if isinstance(images, np.memmap) or not isinstance(images, np.ndarray):
        return Mixed(images, source, outliers)
    at = np.flatnonzero(outliers >= 0)
    mixed: npt.NDArray[Any] = images.copy()
    if isinstance(source, np.ndarray):
        mixed[at] = source[outliers[at]]
    else:
        for i in at:
            mixed[i] = source[int(outliers[i])]  # type: ignore[index]  # not encoded, since the images are not
    return mixed
