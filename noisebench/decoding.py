"""Images as they are stored -> square crops: decoding, the boxes that are cut out, and their resizing.

Crops are the ones of torchvision: `RandomResizedCrop` for training (Szegedy et al. 2015, "Inception crop"), and for
evaluation the central square that ``Resize(S / 0.875)`` and ``CenterCrop(S)`` leave. An image's EXIF orientation is not
applied, as torchvision's `ImageFolder` does not.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from noisebench.errors import UserError

TRIES = 10
CROP_DRAWS = 2 * TRIES + 2
RATIO = (3 / 4, 4 / 3)
CENTRE = 0.875

GREY = torch.full((3, 1, 1), 127, dtype=torch.uint8)
"""What stands in for an image that does not decode: any crop of it is grey."""

_GROUP = 16
"""Images that `batched_crop` takes at once, or the padding of a large one would be paid by the whole batch."""


class Box(NamedTuple):
    """The part of an image that is cut out, in pixels."""

    top: int
    left: int
    height: int
    width: int


def decode(content: bytes, name: str) -> Tensor:
    """An image file as RGB: uint8 [3, H, W].

    Args:
        content: of the file, in any format that Pillow reads. Grey images and palettes become RGB, transparency is
            dropped. The content decides, not the file's ending.
        name: what a message calls the image.

    Raises:
        UserError: it is no image, not a whole one, or one of more than 8 bits a channel that would lose them.
    """
    if content[:2] == b"\xff\xd8":  # JPEG
        try:
            return decode_jpeg([torch.frombuffer(bytearray(content), dtype=torch.uint8)], torch.device("cpu"))[0]
        except (RuntimeError, ImportError):
            pass  # a kind that only Pillow reads, or damaged, which Pillow says more clearly
    return torch.from_numpy(decode_with_pillow(content, name)).permute(2, 0, 1)


def is_plain(content: bytes) -> bool:
    """Whether a file is a whole JPEG of a kind that every decoder reads alike: grey or YCbCr, of 8 bits."""
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
        return False
    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: its bits, height, width, and number of components
            return content[at + 4] == 8 and content[at + 9] in (1, 3)
        if marker == 0xEE:  # Adobe's, whose colours may be RGB or CMYK
            return False
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False


def decode_jpeg(contents: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEGs uint8 [bytes], on the CPU -> uint8 [3, H, W] each, on `device`; all or nothing.

    Raises:
        RuntimeError: one is damaged or of a kind that torchvision does not read, or torchvision has no decoder.
        ImportError: torchvision is one without decoders.
    """
    from torchvision import io as decoders  # a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # without decoders, Pillow takes over
        if device.type == "cpu":
            return [decoders.decode_jpeg(content, mode="RGB") for content in contents]
        found: list[Tensor] = decoders.decode_jpeg(contents, mode="RGB", device=device)
        return found


def decode_with_pillow(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """`decode` by Pillow alone, whatever the format: uint8 [H, W, 3].

    Raises:
        UserError: as `decode`.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd palettes and EXIF, once for each image
            with Image.open(io.BytesIO(content)) as image:
                if image.mode[:1] in "IF":  # Pillow would cut its values off at 255: most of them are white then
                    raise ValueError(f"pixels of mode {image.mode}; convert them to 8 bits")
                return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split()) if content else "the file is empty"
        reason = re.sub(r" <_io\.BytesIO[^>]*>", "", reason)  # an address, other in every process
        raise UserError(f"{name} is no whole image: {reason[:200]}") from None


def crop_box(size: tuple[int, int], draws: Sequence[float], area: tuple[float, float]) -> Box:
    """The Inception crop of an image: torchvision's ``RandomResizedCrop(scale=area, ratio=(3/4, 4/3))``.

    Ten tries for a box of a random share of the image's area and of a random ratio of width to height that fits into
    it; where none does, the largest central box of an allowed ratio.

    Args:
        size: (H, W) of the image.
        draws: `CROP_DRAWS` uniform numbers in [0, 1): area and ratio of each try, then the box's top and left.
        area: the smallest and the largest share of the area.
    """
    height, width = size
    low, high = (math.log(ratio) for ratio in RATIO)
    for share, shape in zip(draws[: 2 * TRIES : 2], draws[1 : 2 * TRIES : 2], strict=True):
        target = height * width * (area[0] + (area[1] - area[0]) * share)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w)
    # An image of a single row or column still gives a box.
    h = max(1, min(height, round(width / RATIO[0])))
    w = max(1, min(width, round(height * RATIO[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def central_box(size: tuple[int, int]) -> Box:
    """The central square of 0.875 of an image's shorter side, (H, W) being its size."""
    side = max(1, round(CENTRE * min(size)))
    return Box((size[0] - side) // 2, (size[1] - side) // 2, side, side)


def resized(image: Tensor, box: Box, size: int) -> Tensor:
    """A part of an image uint8 [3, H, W], on the CPU -> uint8 [3, size, size]: bilinear and antialiased."""
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width]
    # interpolate is fastest by far on pixels whose channels stand together, as decoders give them.
    part = part.contiguous(memory_format=torch.channels_last)
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]


def batched_crop(images: Sequence[Tensor], boxes: Sequence[Box], flips: Tensor, size: int) -> Tensor:
    """Boxes of images of any size, resized and flipped together, on their device: `resized`, but for rounding.

    The triangle filter of antialiased bilinear resizing is separable: a crop is two matrix products, with a matrix for
    the rows and one for the columns of each image, the latter reversed for a flip.

    Args:
        images: uint8 [3, H, W] each.
        boxes: one for each.
        flips: whether to flip left to right, bool [B], on any device.
        size: side S of the crops.

    Returns:
        uint8 [B, 3, S, S].
    """
    done = []
    for start in range(0, len(images), _GROUP):
        some = slice(start, start + _GROUP)
        group, device = boxes[some], images[start].device
        heights, widths = (torch.tensor([box[side] for box in group]) for side in (2, 3))
        canvas = torch.zeros(len(group), 3, int(heights.max()), int(widths.max()), device=device)
        for place, image, (top, left, height, width) in zip(canvas, images[some], group, strict=True):
            place[:, :height, :width] = image[:, top : top + height, left : left + width]
        rows = _triangles(heights.to(device), canvas.shape[2], size)
        columns = _triangles(widths.to(device), canvas.shape[3], size)
        columns = torch.where(flips[some].to(device)[:, None, None], columns.flip(1), columns)
        crops = rows[:, None] @ (canvas @ columns.transpose(1, 2)[:, None])
        done.append(crops.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(done)


def _triangles(lengths: Tensor, longest: int, size: int) -> Tensor:
    """How much pixel j of a side of `lengths` int64 [B] weighs in pixel i of `size`: float32 [B, size, longest]."""
    scale = (lengths.float() / size)[:, None, None]
    centre = scale * (torch.arange(size, device=lengths.device)[:, None] + 0.5)
    pixel = torch.arange(longest, device=lengths.device)
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp_min(1)).clamp_min_(0)
    weights = weights.masked_fill_(pixel >= lengths[:, None, None], 0)
    return weights / weights.sum(2, keepdim=True)
