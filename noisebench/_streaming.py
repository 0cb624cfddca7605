"""Images that stream: worker processes read ahead, and images of any size are decoded and cropped on the way.

`Workers` reads anything; `Crops` are square crops of `EncodedImages`, decoded by the workers, or on the device where
torchvision's nvJPEG is there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from noisebench.augment import Augmentation, flipped
from noisebench.decoding import (
    CROP_DRAWS,
    GREY,
    Box,
    batched_crop,
    central_box,
    crop_box,
    decode,
    decode_jpeg,
    is_plain,
    resized,
)
from noisebench.errors import UserError
from noisebench.image_data import EncodedImages

Positions: TypeAlias = npt.NDArray[np.int64]
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class _Answers(Dataset[Any]):
    """Answers requests, in the workers. A user's mistake is an answer: raised there, it would arrive as a traceback."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.read(request)
        except UserError as error:
            return error


class _Requests(Sampler[Any]):
    """The requests of the coming pass; replaced between passes, because persistent workers keep their sampler."""

    def __init__(self) -> None:
        self.coming: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.coming)


class Workers(Generic[Asked, Answer]):
    """Processes that run `read` on requests ahead of their use, one DataLoader for each pass open at the same time.

    Args:
        read: called in the workers; a `UserError` that it raises is raised here.
        device: where answers go afterwards; for CUDA their tensors come pinned.
        workers: how many; 0 reads in this process.
    """

    def __init__(self, read: Callable[[Asked], Answer], device: torch.device, workers: int) -> None:
        self._read, self._device, self._workers = _Answers(read), device, workers
        self._idle: list[tuple[DataLoader[Any], _Requests]] = []

    def _new(self) -> tuple[DataLoader[Any], _Requests]:
        requests = _Requests()
        # fork shares the images with the workers; any other start method would pickle them.
        fork = self._workers > 0 and "fork" in multiprocessing.get_all_start_methods()
        loader: DataLoader[Any] = DataLoader(
            self._read,
            batch_size=None,
            sampler=requests,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            persistent_workers=self._workers > 0,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # or every epoch would draw from torch's global one
            multiprocessing_context="fork" if fork else None,
        )
        return loader, requests

    def answers(self, requests: Iterable[Asked]) -> Iterator[Answer]:
        """The answers to `requests`, in their order; these are taken a few ahead, in this process.

        Raises:
            UserError: what `read` raised, or a worker was killed.
        """
        loader, sampler = self._idle.pop() if self._idle else self._new()
        sampler.coming = requests
        failure = None
        answers = iter(loader)
        while True:
            try:
                answer = next(answers)
            except StopIteration:
                break
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                failure = "a process that reads images was killed, often for want of memory; lower recipe.workers"
                break
            if isinstance(answer, UserError):
                failure = str(answer)
                break
            yield answer
        if failure is not None:
            del answers, loader, sampler  # ends the workers: the exception's traceback would keep them
            raise UserError(failure)
        self._idle.append((loader, sampler))  # not after a break: what was prefetched goes with its workers


def _as_it_is(answer: Any) -> Any:
    return answer


class Request(NamedTuple):
    """A batch to be cropped.

    Attributes:
        at: positions in the set, int64 [B].
        draws: of `Augmentation.draw_crops`, float64 [views, B, D]; None for the central crop.
    """

    at: Positions
    draws: npt.NDArray[np.float64] | None


class _Batch(NamedTuple):
    """What a worker made of a request.

    Attributes:
        pixels: the crops, uint8 [views * B, 3, S, S]; where the device decodes, all images one after the other, uint8.
        shapes: there, of each image: (bytes) of a JPEG, or (3, H, W) of one that was decoded.
        damaged: {name: reason} of images that do not decode.
    """

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    damaged: dict[str, str]


class _Reader:
    """Reads, decodes and crops; runs in the workers. Arguments as in `Crops`."""

    def __init__(
        self,
        images: EncodedImages,
        positions: Positions | None,
        size: int,
        area: tuple[float, float],
        skip_damaged: bool,
    ) -> None:
        self.images, self.positions, self.size, self.area = images, positions, size, area
        self.skip_damaged = skip_damaged

    def cropped(self, request: Request) -> _Batch:
        """Decoded and cropped, not yet flipped."""
        damaged: dict[str, str] = {}
        views = 1 if request.draws is None else len(request.draws)
        crops = torch.empty(views, len(request.at), 3, self.size, self.size, dtype=torch.uint8)
        for place, i in enumerate(self.numbers(request.at)):
            content = self._content(i, damaged)
            image = GREY if content is None else self.image(content, i, damaged)
            for view in range(views):
                draws = None if request.draws is None else request.draws[view, place]
                crops[view, place] = resized(image, self.box(image, draws), self.size)
        return _Batch(crops.flatten(0, 1), [], damaged)

    def packed(self, request: Request) -> _Batch:
        """JPEGs as they are, anything else decoded: in one tensor, since each one that is sent takes a file handle."""
        damaged: dict[str, str] = {}
        parts = []
        for i in self.numbers(request.at):
            content = self._content(i, damaged)
            if content is None:
                parts.append(GREY)
            elif is_plain(content):
                parts.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            else:
                parts.append(self.image(content, i, damaged))
        return _Batch(torch.cat([part.flatten() for part in parts]), [tuple(part.shape) for part in parts], damaged)

    def numbers(self, at: Positions) -> list[int]:
        """Positions in the set -> positions in the images."""
        found: list[int] = (at if self.positions is None else self.positions[at]).tolist()
        return found

    def box(self, image: Tensor, draws: npt.NDArray[np.float64] | None) -> Box:
        """What to cut out of an image [3, H, W]."""
        size = (image.shape[1], image.shape[2])
        return central_box(size) if draws is None else crop_box(size, draws[:CROP_DRAWS].tolist(), self.area)

    def image(self, content: bytes, i: int, damaged: dict[str, str]) -> Tensor:
        """An image uint8 [3, H, W], or the grey one, its reason then in `damaged`."""
        name = self.images.name(i)
        try:
            return decode(content, name)
        except UserError as error:
            self._skip(name, str(error), damaged)
            return GREY

    def _content(self, i: int, damaged: dict[str, str]) -> bytes | None:
        try:
            return self.images.encoded(i)
        except (OSError, UserError) as error:
            name = self.images.name(i)
            reason = f"{name} cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            self._skip(name, reason, damaged)
            return None

    def _skip(self, name: str, reason: str, damaged: dict[str, str]) -> None:
        if not self.skip_damaged:
            raise UserError(f"{reason}; pass recipe.skip_damaged=true to go on with a grey image in its place")
        damaged[name] = reason


class Crops:
    """Square crops of `EncodedImages`, on the device.

    Args:
        images: what to crop; positions: int64 [N], the part of them that is the set, None for all.
        size: side S of the crops, in pixels.
        augmentation: the crop's area, and whether to flip.
        device: where crops go; workers: processes that read, and decode where the device does not.
        skip_damaged: whether a grey image stands in for one that does not decode.

    Attributes:
        damaged: {name: reason} of the images that did not decode, in the order in which they were met.
        on_damaged: called with name and reason when one is met for the first time.
    """

    def __init__(
        self,
        images: EncodedImages,
        positions: Positions | None,
        size: int,
        augmentation: Augmentation,
        device: torch.device,
        workers: int,
        skip_damaged: bool,
    ) -> None:
        self.damaged: dict[str, str] = {}
        self.on_damaged: Callable[[str, str], None] | None = None
        self._augmentation, self._device = augmentation, device
        self._on_device = device_decodes(device)
        self._reader = _Reader(images, positions, size, augmentation.crop_area, skip_damaged)
        with contextlib.suppress(ImportError):
            import torchvision.io  # noqa: F401  # once here, not in every worker
        self._workers: Workers[Request, _Batch] = Workers(
            self._reader.packed if self._on_device else self._reader.cropped, device, workers
        )

    def fetch(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """uint8 [views * B, 3, S, S] on the device for each request, cropped and flipped.

        Raises:
            UserError: an image does not decode, and `skip_damaged` is not set.
        """
        mine, theirs = itertools.tee(requests)
        for request, batch in zip(mine, self._workers.answers(theirs), strict=True):
            self._note(batch.damaged)
            flips = torch.zeros(len(request.at), dtype=torch.bool)
            if request.draws is not None:
                flips = self._augmentation.flips(torch.from_numpy(request.draws)).flatten()
            if self._on_device:
                yield self._cropped_on_device(batch, request, flips)
            else:
                yield flipped(batch.pixels.to(self._device, non_blocking=True), flips)

    def _note(self, damaged: dict[str, str]) -> None:
        for name, reason in damaged.items():
            if name not in self.damaged:
                self.damaged[name] = reason
                if self.on_damaged is not None:
                    self.on_damaged(name, reason)

    def _cropped_on_device(self, batch: _Batch, request: Request, flips: Tensor) -> Tensor:
        images = self._decoded(batch, request)
        views: Iterable[Any] = [[None] * len(images)] if request.draws is None else request.draws
        boxes = [self._reader.box(*pair) for view in views for pair in zip(images, view, strict=True)]
        return batched_crop(images * (len(boxes) // len(images)), boxes, flips, self._reader.size)

    def _decoded(self, batch: _Batch, request: Request) -> list[Tensor]:
        """The images of a batch that `packed` made, on the device."""
        counts = [math.prod(shape) for shape in batch.shapes]
        parts = [part.view(shape) for part, shape in zip(torch.split(batch.pixels, counts), batch.shapes, strict=True)]
        jpegs = [part for part in parts if part.ndim == 1]
        try:
            decoded = iter(decode_jpeg(jpegs, self._device) if jpegs else [])
        except RuntimeError:  # it does not say which
            damaged: dict[str, str] = {}
            numbers = [i for i, part in zip(self._reader.numbers(request.at), parts, strict=True) if part.ndim == 1]
            pairs = zip(jpegs, numbers, strict=True)
            decoded = iter([self._reader.image(jpeg.numpy().tobytes(), i, damaged) for jpeg, i in pairs])
            self._note(damaged)
        return [(next(decoded) if part.ndim == 1 else part).to(self._device, non_blocking=True) for part in parts]


@functools.cache
def device_decodes(device: torch.device) -> bool:
    """Whether torchvision decodes JPEGs on `device`: tried once."""
    if device.type != "cuda":
        return False
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    try:
        (image,) = decode_jpeg([torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)], device)
    except (RuntimeError, ImportError):
        return False
    return image.shape == (3, 16, 16)
