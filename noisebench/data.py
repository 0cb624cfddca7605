"""Data: the loader that turns what a dataset file returns (`ImageData`) into batches on the device.

A set that fits lives on the device as uint8 and a batch is one `index_select` (resident); a larger one is read by
DataLoader workers and moved as uint8 (streaming). Everything after that is the same code with the same draws, so both
give equal batches.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisebench._streaming import Crops, Positions, Request, Workers
from noisebench.augment import Augmentation, Augmenter
from noisebench.errors import UserError, unknown
from noisebench.image_data import (
    ImageData,
    Images,
    ImageSource,
    Labels,
    LabelSets,
    image_shape,
    is_encoded,
    kind_of,
)
from noisebench.method import Batch

__all__ = [
    "Augmentation",
    "ImageData",
    "ImageSource",
    "Images",
    "Labels",
    "Loader",
    "Mode",
    "image_shape",
    "make_loader",
]

Mode = Literal["auto", "resident", "streaming"]

_FLOAT_COPY_LIMIT = 256 * 2**20
"""Bytes up to which a resident set is also kept normalised, for batches without augmentation."""


class _Resident:
    """Images kept on the device."""

    def __init__(self, images: npt.NDArray[np.uint8], device: torch.device) -> None:
        # np.array copies: torch must neither alias the caller's array nor read a memmap anew for every batch.
        self.images = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)

    def fetch(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] for each of `chunks`, int64 [B], all on the device."""
        return (self.images.index_select(0, chunk) for chunk in chunks)


class _Reader:
    """Reads a batch of images of one size at once; runs in the workers."""

    def __init__(self, images: npt.NDArray[np.uint8] | ImageSource, positions: Positions | None) -> None:
        self.images, self.positions = images, positions

    def __call__(self, index: Positions) -> Tensor:
        if self.positions is not None:
            index = self.positions[index]
        if isinstance(self.images, np.ndarray):
            batch = self.images[index]
        else:
            batch = np.stack([self.images[int(i)] for i in index])
            if batch.dtype != np.uint8 or batch.ndim != 4:
                raise UserError(
                    f"images[i] gave {batch.dtype} {list(batch.shape[1:])} among {index[:3]}...; give uint8 [H, W, C]"
                )
        return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


class _Streaming:
    """Images of one size, read by worker processes."""

    def __init__(self, reader: _Reader, device: torch.device, workers: int) -> None:
        self.device, self._workers = device, Workers(reader, device, workers)

    def fetch(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] for each of `chunks`, int64 [B], all on the device."""
        if self.device.type != "cpu":  # in one copy, for each makes the device wait
            chunks = torch.split(torch.cat(list(chunks)).cpu(), len(chunks[0]))
        for batch in self._workers.answers(chunk.numpy() for chunk in chunks):
            yield batch.to(self.device, non_blocking=True)


class Loader:
    """Batches of a training set with its noisy labels, on the device; see `make_loader`.

    Without shuffling and augmentation it serves a test set as well. `labels` are kept as they were given: multi-hot
    ones, and those that name sets, become float32 rows batch by batch.
    """

    def __init__(
        self,
        source: _Resident | _Streaming | Crops,
        labels: Tensor,
        augmentation: Augmentation,
        channels_last: bool,
        label_sets: LabelSets | None = None,
        num_classes: int = 0,
    ) -> None:
        self.labels = labels
        self.augmentation = augmentation
        self._source = source
        self._label_sets, self._num_classes = label_sets, num_classes
        self._augmenter = Augmenter(augmentation, labels.device, channels_last=channels_last)
        self._channels_last = channels_last
        self._floats: Tensor | None = None

    def __len__(self) -> int:
        """The number of samples N."""
        return len(self.labels)

    @property
    def resident(self) -> bool:
        """Whether the images live on the device."""
        return isinstance(self._source, _Resident)

    @property
    def damaged(self) -> Mapping[str, str]:
        """{name: reason} of images that did not decode so far and that a grey one stands in for."""
        return self._source.damaged if isinstance(self._source, Crops) else {}

    def on_damaged(self, report: Callable[[str, str], None]) -> None:
        """Call `report` with name and reason of each image that does not decode, when it is met for the first time."""
        if isinstance(self._source, Crops):
            self._source.on_damaged = report

    def normalised(self, images: Tensor | npt.NDArray[np.uint8]) -> Tensor:
        """Images uint8 [B, H, W, C], from anywhere -> normalised float32 [B, C, H, W] on the device."""
        batch = torch.as_tensor(images, device=self.labels.device)
        return self._augmenter.normalised(batch.permute(0, 3, 1, 2))

    def batches(
        self,
        indices: Tensor | None = None,
        *,
        views: int = 1,
        augment: bool = True,
        shuffle: bool = True,
        batch_size: int,
        order_seed: int,
        augment_seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the set or a part of it. Passes may be open at the same time.

        Args:
            indices: positions in the set, int64 [n]; None for all.
            views: independently augmented views of each image, stacked in front if more than one.
            augment: False only normalises.
            shuffle: True draws an order and drops a ragged tail (BatchNorm fails on one sample), unless it is all
                there is; False keeps the order and the tail.
            batch_size: B.
            order_seed: of the order, which is the same on every device.
            augment_seed: of the augmentation, whose draws are the same on every device of a kind.
            start: the batch to begin with; those before it are left out unread, and the others are as ever.
            rank: of `ranks`: gives every `ranks`-th sample of each batch, from the `rank`-th on, so that all ranks
                together have the batches of one. A tail that has nothing for a rank gives it no batch.
            ranks: how many share the batches.

        Yields:
            `Batch`: x float32 [B, C, H, W], or [views, B, C, H, W]; y int64 [B], or float32 [B, K] of multi-hot
            labels; index int64 [B].

        Raises:
            UserError: a size below 1, a rank that is none of `ranks`, batches (shuffled ones in their tail too) of less
                samples than there are ranks, or indices that are not int64 positions in the set. Raised by the call.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("views", views, 1), ("start", start, 0)):
            if value < least:
                raise UserError(f"{name} is {value}; give {least} or more")
        if not 0 <= rank < ranks:
            raise UserError(f"rank is {rank}; give one of the {ranks} ranks, 0..{ranks - 1}")
        order = self._positions(indices)
        if shuffle:
            drawn = torch.randperm(len(order), generator=torch.Generator().manual_seed(order_seed))
            order = drawn if indices is None else order[drawn]
            if len(order) > batch_size:
                order = order[: len(order) // batch_size * batch_size]
        least = min(batch_size, len(order) or batch_size) if shuffle else batch_size
        if least < ranks:
            raise UserError(f"a batch of {least} samples has none for some of {ranks} ranks")
        if len(order) % batch_size <= rank:
            order = order[: len(order) // batch_size * batch_size]
        if len(order) <= start * batch_size:
            return iter(())
        share = slice(rank, None, ranks)
        source = self._source
        if isinstance(source, Crops):
            return self._cropped(source, order, batch_size, views, augment_seed if augment else None, start, share)
        chunks = torch.split(order.to(self.labels.device), batch_size)
        if augment and self.augmentation.random:
            return self._augmented(source, chunks, views, augment_seed, start, share)
        return self._plain(source, _cut(chunks[start:], share), views)

    def _positions(self, indices: Tensor | None) -> Tensor:
        """`indices`, checked, on the CPU."""
        if indices is None:
            return torch.arange(len(self))
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise UserError(f"indices is {indices.dtype} {list(indices.shape)}; give int64 positions [n]")
        indices = indices.cpu()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise UserError(
                f"indices range over {int(indices.min())}..{int(indices.max())}; give positions in 0..{len(self) - 1}"
            )
        return indices

    def _augmented(
        self, source: _Resident | _Streaming, chunks: Sequence[Tensor], views: int, seed: int, start: int, share: slice
    ) -> Iterator[Batch]:
        generator = torch.Generator(self.labels.device).manual_seed(seed)
        for chunk in chunks[:start]:
            self.augmentation.draw(views * len(chunk), generator)  # so that the draws of the others are as ever
        whole, chunks = chunks[start:], _cut(chunks[start:], share)
        # strict: without it zip would never run the code behind the last yield of fetch.
        for size, chunk, images in zip(map(len, whole), chunks, source.fetch(chunks), strict=True):
            draws = self.augmentation.draw(views * size, generator).view(views, size)[:, share].flatten()
            x = self._augmenter(images.repeat(views, 1, 1, 1) if views > 1 else images, draws)
            yield Batch(x.view(views, -1, *x.shape[1:]) if views > 1 else x, self._labels_of(chunk), chunk)

    def _plain(self, source: _Resident | _Streaming, chunks: Sequence[Tensor], views: int) -> Iterator[Batch]:
        floats = self._normalised_set()
        if floats is None:
            batches: Iterator[Tensor] = map(self._augmenter.normalised, source.fetch(chunks))
        else:
            batches = (self._as_images(floats.index_select(0, chunk)) for chunk in chunks)
        for chunk, x in zip(chunks, batches, strict=True):
            stacked = x if views == 1 else torch.stack([x] * views)
            yield Batch(stacked, self._labels_of(chunk), chunk)

    def _cropped(
        self, source: Crops, order: Tensor, size: int, views: int, seed: int | None, start: int, share: slice
    ) -> Iterator[Batch]:
        """Batches of images of any size; central crops without a seed."""

        def requests() -> Iterator[Request]:
            # Drawn on the CPU, where workers crop: the same on every device.
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            for first in range(0, len(order), size):
                chunk = order[first : first + size]
                draws = None
                if generator is not None:
                    drawn = self.augmentation.draw_crops(views * len(chunk), generator)
                    draws = drawn.view(views, len(chunk), -1)[:, share].numpy()
                if first >= start * size:
                    yield Request(chunk[share].numpy(), draws)

        ours, theirs = itertools.tee(requests())
        for request, images in zip(ours, source.fetch(theirs), strict=True):
            chunk = torch.from_numpy(request.at).to(self.labels.device, non_blocking=True)
            x = self._augmenter.normalised(images)
            if views > 1:
                x = torch.stack([x] * views) if seed is None else x.view(views, -1, *x.shape[1:])
            yield Batch(x, self._labels_of(chunk), chunk)

    def _labels_of(self, chunk: Tensor) -> Tensor:
        labels = self.labels.index_select(0, chunk)
        if self._label_sets is not None:
            labels = self._label_sets.multihot(labels, self._num_classes)
        return labels.float() if labels.ndim == 2 else labels

    def _normalised_set(self) -> Tensor | None:
        """All images as they are without augmentation, if that is small: a batch is one operation.

        In the order of memory that batches have, since index_select gives contiguous rows: [N, C, H, W], or
        [N, H, W, C] with channels_last.
        """
        if not isinstance(self._source, _Resident):
            return None
        images = self._source.images
        if self._floats is None and 4 * images.numel() <= _FLOAT_COPY_LIMIT:
            normalised = self._augmenter.normalised(images)
            self._floats = normalised.permute(0, 2, 3, 1).contiguous() if self._channels_last else normalised
        return self._floats

    def _as_images(self, rows: Tensor) -> Tensor:
        return rows.permute(0, 3, 1, 2) if self._channels_last else rows


def _cut(chunks: Sequence[Tensor], share: slice) -> Sequence[Tensor]:
    # Not for one rank: the views of all batches of millions of images take as much memory as their order.
    return chunks if share.step == 1 else [chunk[share] for chunk in chunks]


def make_loader(
    images: Images,
    labels: Tensor,
    *,
    device: torch.device | str,
    augmentation: Augmentation,
    positions: Tensor | None = None,
    mode: Mode = "auto",
    workers: int = 2,
    channels_last: bool = False,
    size: int | None = None,
    skip_damaged: bool = False,
    label_sets: LabelSets | None = None,
    num_classes: int = 0,
) -> Loader:
    """A `Loader` of images with their noisy labels.

    Args:
        images: uint8 [N, H, W, C], an `ImageSource`, or `EncodedImages`, which stream as square crops: random ones
            for training batches, central ones without augmentation.
        labels: noisy labels, int64 [N] or multi-hot uint8 [N, K].
        device: where batches go.
        augmentation: of training batches; its mean and std are used for all.
        positions: int64 [N], the images to use, where the set is a part of `images`: `images[positions]` would read a
            memmap into memory.
        mode: "resident" keeps the images on the device, "streaming" reads them anew in every epoch, "auto" is resident
            for an array that takes less than half of the device's free memory. Batches are the same.
        workers: processes that read ahead when streaming; 0 reads in this one.
        channels_last: whether x is in ``torch.channels_last``.
        size: side of the crops of `EncodedImages`, in pixels.
        skip_damaged: whether a grey image stands in for one that does not decode (see `Loader.damaged`); otherwise
            the batch raises a `UserError` that names it.
        label_sets: where given, labels are int64 and name one of these sets of classes; batches have multi-hot rows.
        num_classes: K, of those rows.

    Raises:
        UserError: images, labels, mode, workers, size or the augmentation do not fit; the message names which.
    """
    if is_encoded(images):
        if size is None or size < 1:
            raise UserError(f"size is {size}; give the side of the crops of encoded images, 1 or more")
        if augmentation.padding:
            raise UserError(
                f"recipe.padding is {augmentation.padding}; give 0: images of any size are cropped by recipe.crop_area"
            )
    channels, height, width = image_shape(images, size=size or 0)
    device = torch.device(device)
    part = None if positions is None else positions.numpy()
    count = len(images) if part is None else len(part)
    multihot = labels.ndim == 2 and kind_of(labels)[:2] == ("uint8", count)
    if not multihot and kind_of(labels) != ("int64", count):
        raise UserError(
            f"labels is {labels.dtype} {list(labels.shape)}; give int64 [{count}], a label for each image, or uint8 "
            f"[{count}, K], multi-hot"
        )
    if len(augmentation.mean) != channels:
        raise UserError(f"augmentation has mean and std of {len(augmentation.mean)} channels; images have {channels}")
    if workers < 0:
        raise UserError(f"workers is {workers}; give 0 or more")
    if mode not in ("auto", "resident", "streaming"):
        raise unknown("mode", mode, ("auto", "resident", "streaming"))
    array = images if isinstance(images, np.ndarray) else None
    if mode == "resident" and array is None:
        raise UserError(f"mode 'resident' needs images as an array, not {type(images).__name__}; use 'streaming'")
    if label_sets is not None and (multihot or num_classes < 1):
        raise UserError(
            f"label_sets needs int64 labels and num_classes; labels are {labels.dtype}, classes {num_classes}"
        )
    fits = 2 * count * channels * height * width < _free_bytes(device)
    source: _Resident | _Streaming | Crops
    if is_encoded(images):
        source = Crops(images, part, size or 0, augmentation, device, workers, skip_damaged)
    elif array is not None and (mode == "resident" or (mode == "auto" and fits)):
        source = _Resident(array if part is None else array[part], device)
    else:
        source = _Streaming(_Reader(images, part), device, workers)
    return Loader(source, labels.to(device), augmentation, channels_last, label_sets, num_classes)


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device; of the host where the device has none of its own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts what the page cache would give back, which sysconf does not
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
