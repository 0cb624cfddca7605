"""Augmentation of whole batches on the device: random crop, horizontal flip, normalisation.

Images of any size are cropped where they are decoded (`noisebench.decoding`), with draws that are made here.

A crop and a flip are one `gather` with an index that all channels of an image share. Of the forms tried on a CPU
(window views of padded images, row-wise copies, loops, `flip` with `where`) it was the fastest with one thread and with
two, and it needs neither a padded nor a flipped copy of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from noisebench.decoding import CROP_DRAWS
from noisebench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to training images: a random crop, a flip, then ``(pixel / 255 - mean) / std``.

    The crop is torchvision's ``RandomCrop(size, padding)``: the image is framed with `padding` black pixels (0 before
    normalisation) and a window of its own size is cut out at a uniform position; the flip has probability 1/2. Images
    of any size (`EncodedImages`) get torchvision's ``RandomResizedCrop(size, scale=crop_area)`` in place of it.

    Attributes:
        mean: per channel, for pixels in [0, 1].
        std: per channel, above 0.
        padding: of the crop; 0 for none.
        flip: whether images are flipped left to right at random.
        crop_area: the smallest and the largest share of the area of an image of any size that its crop takes.

    Raises:
        UserError: empty or unequal `mean` and `std`, a value that is not finite, a `std` not above 0, a negative
            `padding`, shares that are not 0 < smallest <= largest <= 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: bool = False
    crop_area: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values; give one per channel in both"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise UserError(f"mean {self.mean} must be finite")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise UserError(f"std {self.std} must be above 0 in every channel")
        if self.padding < 0:
            raise UserError(f"padding {self.padding} must be 0 or more")
        if len(self.crop_area) != 2 or not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise UserError(f"crop_area {self.crop_area} must be 0 < smallest <= largest <= 1")

    @property
    def random(self) -> bool:
        """Whether there is anything to draw for images of one size."""
        return self.padding > 0 or self.flip

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` independent draws, one number each: int64 [count], on the generator's device; see `unpack`."""
        variants = (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)
        return torch.randint(variants, (count,), generator=generator, device=generator.device)

    def unpack(self, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `draws` [B] mean: the crop's top and left in the padded image, int64 [B]; whether to flip, bool [B]."""
        span = 2 * self.padding + 1
        position = draws % (span * span)
        return position // span, position % span, draws >= span * span

    def draw_crops(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` independent draws for images of any size: float64 [count, CROP_DRAWS + 1], uniform in [0, 1).

        The first `CROP_DRAWS` numbers are for `decoding.crop_box`, the last one for `flips`.
        """
        return torch.rand(count, CROP_DRAWS + 1, dtype=torch.float64, generator=generator, device=generator.device)

    def flips(self, draws: Tensor) -> Tensor:
        """Whether to flip, bool [...], by `draws` [..., CROP_DRAWS + 1] of `draw_crops`."""
        return (draws[..., -1] < 0.5) & self.flip


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Images uint8 [B, C, H, W], those in `flips` (bool [B], on the CPU) flipped left to right in their place."""
    at = flips.nonzero().flatten()
    if images.device.type == "cpu":
        for i in at.tolist():  # a twentieth of the time: what is small stays in the cache
            images[i] = images[i].flip(-1)
        return images
    at = at.to(images.device, non_blocking=True)
    return images.index_copy_(0, at, images.index_select(0, at).flip(-1))


class Augmenter:
    """An `Augmentation` bound to a device, where it works on whole batches.

    Args:
        augmentation: what to do.
        device: where the batches are.
        channels_last: whether batches leave in ``torch.channels_last``.
    """

    def __init__(self, augmentation: Augmentation, device: torch.device, *, channels_last: bool = False) -> None:
        self.augmentation = augmentation
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        mean = torch.tensor(augmentation.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(augmentation.std, dtype=torch.float64).view(-1, 1, 1)
        self._shift = (255 * mean).float().to(device)
        self._scale = (1 / (255 * std)).float().to(device)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] of any strides -> float32 [B, C, H, W]."""
        x = images.to(torch.float32, memory_format=self._layout)
        # Two operations with one rounding each: a fused one may round differently in the last lanes of a vector, and
        # then a pixel would depend on its place in the batch.
        return x.sub_(self._shift).mul_(self._scale)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W] with their `draws` int64 [B] -> augmented, normalised float32 [B, C, H, W]."""
        batch, channels, height, width = images.shape
        padding = self.augmentation.padding
        top, left, flip = self.augmentation.unpack(draws)
        across = torch.arange(width, device=images.device)
        columns = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)
        rows = top[:, None] + torch.arange(height, device=images.device)
        source = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
        padded = torch.nn.functional.pad(images, (padding,) * 4) if padding else images
        shared = source.view(batch, 1, -1).expand(-1, channels, -1)
        return self.normalised(padded.flatten(2).gather(2, shared).view(images.shape))
