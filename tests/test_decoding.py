"""Decoding and cropping: what Pillow and torchvision give for the same file and the same box."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from noisebench import decoding
from noisebench.augment import Augmentation, flipped
from noisebench.decoding import CROP_DRAWS, TRIES, Box, batched_crop, central_box, crop_box, decode, is_plain, resized
from noisebench.errors import UserError
from noisebench.image_files import images_of

AREA = (0.08, 1.0)


def picture(height: int = 60, width: int = 80, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth, as photographs are: JPEG decoders may differ by rounding, which noise would amplify."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def stored(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def pixels(seed: int, height: int, width: int) -> torch.Tensor:
    """As a decoder gives them: uint8 [3, H, W], channels last in memory."""
    raw = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(raw).permute(2, 0, 1)


def uniform(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, CROP_DRAWS))


# -------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 90}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
    ],
)
def test_every_kind_of_image_becomes_the_rgb_that_pillow_gives(mode: str, kind: str, options: dict[str, Any]) -> None:
    content = stored(picture(mode=mode), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        want = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    got = decode(content, "a file whose ending says nothing.JPEG")
    assert got.dtype == torch.uint8
    assert got.shape == (3, 60, 80)
    # ImageFolder's pixels, but for the rounding of another build of libjpeg.
    assert int(np.abs(got.numpy().astype(int) - want).max()) <= 2


def test_orientation_in_exif_is_not_applied() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(stored(picture(), exif=turned), "x").shape == (3, 60, 80)


@pytest.mark.parametrize("decoders", [True, False], ids=["torchvision", "Pillow alone"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "UnidentifiedImageError"),
        (stored(picture())[:600], "(?i:truncated)"),
        (stored(picture())[:3], "Error"),
        (stored(picture(), "PNG")[:200], "Error"),
    ],
)
def test_what_is_no_whole_image_is_named_in_one_line(
    content: bytes, reason: str, decoders: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not decoders:
        monkeypatch.setattr(decoding, "decode_jpeg", _without_decoders)
    with pytest.raises(UserError, match=rf"folder/cat\.jpg is no whole image: .*{reason}") as caught:
        decode(content, "folder/cat.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.float32), ("TIFF", np.int32)])
def test_more_than_8_bits_are_refused_wherever_images_are_decoded(kind: str, dtype: Any, tmp_path: Path) -> None:
    file = tmp_path / "cat.img"
    file.write_bytes(stored(Image.fromarray(np.full((8, 8), 300, dtype)), kind))
    for read in (
        lambda: decode(file.read_bytes(), str(file)),
        lambda: images_of([file], (8, 8), tmp_path / "cache.npy"),
    ):
        with pytest.raises(
            UserError, match=r"cat\.img is no whole image: .*pixels of mode [IF].*; convert them to 8 bits"
        ):
            read()


def _without_decoders(contents: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    raise ImportError("torchvision without torchvision.io")


def test_a_torchvision_without_decoders_leaves_all_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = stored(picture())
    want = decode(content, "x")
    monkeypatch.setattr(decoding, "decode_jpeg", _without_decoders)
    assert int((decode(content, "x").int() - want.int()).abs().max()) <= 2


def test_only_whole_grey_and_ycbcr_jpegs_are_plain() -> None:
    for mode in ("RGB", "L"):
        for progressive in (False, True):
            assert is_plain(stored(picture(mode=mode), progressive=progressive))
    content = stored(picture())
    for other in (content[:-2], content[:20], b"", stored(picture(), "PNG"), stored(picture(mode="CMYK"))):
        assert not is_plain(other)


# ----------------------------------------------------------------------------------------------------------- boxes


def torchvisions_box(height: int, width: int, draws: Iterator[float], place: tuple[float, float]) -> Box:
    """`RandomResizedCrop.get_params`, its text, with draws given."""
    scale, ratio = AREA, (3.0 / 4.0, 4.0 / 3.0)
    log_ratio = [math.log(bound) for bound in ratio]
    for _ in range(10):
        target_area = height * width * (scale[0] + next(draws) * (scale[1] - scale[0]))
        aspect_ratio = math.exp(log_ratio[0] + next(draws) * (log_ratio[1] - log_ratio[0]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(math.floor(place[0] * (height - h + 1)), math.floor(place[1] * (width - w + 1)), h, w)
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


@settings(deadline=None, max_examples=300)
@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 10**6))
def test_boxes_are_those_of_random_resized_crop(height: int, width: int, seed: int) -> None:
    draws = uniform(seed)[0].tolist()
    box = crop_box((height, width), draws, AREA)
    assert box == torchvisions_box(height, width, iter(draws[: 2 * TRIES]), (draws[-2], draws[-1]))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert min(box.height, box.width) > 0


@pytest.mark.parametrize(("size", "want"), [((10, 400), Box(0, 193, 10, 13)), ((400, 9), Box(194, 0, 12, 9))])
def test_long_images_take_the_central_box_when_every_try_fails(size: tuple[int, int], want: Box) -> None:
    assert crop_box(size, [0.999] * CROP_DRAWS, AREA) == want


def test_boxes_are_distributed_as_torchvisions() -> None:
    count, size = 4000, (375, 500)
    ours = torch.tensor([crop_box(size, row, AREA) for row in uniform(0, count).tolist()]).double()
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get = transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([get(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]).double()
    error = (ours.var(0) / count + theirs.var(0) / count).sqrt()
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all())
    assert bool(((ours.std(0) / theirs.std(0) - 1).abs() < 0.1).all())


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (90, 301), (1, 1), (1, 9)])
def test_the_central_box_is_resize_and_centre_crop(size: tuple[int, int]) -> None:
    box = central_box(size)
    assert box.height == box.width == max(1, round(0.875 * min(size)))
    if min(size) < 200:
        return
    image = decode(stored(picture(*size), quality=95), "x")
    want = tv.center_crop(tv.resize(image, [256], antialias=True), [224])
    got = resized(image, box, 224)
    # One box instead of two steps: at most half a pixel off.
    assert float((got.double() - want.double()).abs().mean()) < 1.5


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 10**6), size=st.integers(1, 40))
def test_crops_are_torchvisions_resized_crop_one_by_one_and_batched(
    height: int, width: int, seed: int, size: int
) -> None:
    images = [pixels(seed, height, width), pixels(seed + 1, width, height), pixels(seed + 2, 17, 33)]
    shapes = [(image.shape[1], image.shape[2]) for image in images]
    boxes = [crop_box(shape, row, AREA) for shape, row in zip(shapes, uniform(seed, 3).tolist(), strict=True)]
    one_by_one = torch.stack([resized(image, box, size) for image, box in zip(images, boxes, strict=True)])
    want = torch.stack(
        [tv.resized_crop(image, *box, [size, size], antialias=True) for image, box in zip(images, boxes, strict=True)]
    )
    assert int((one_by_one.int() - want.int()).abs().max()) <= 1
    flips = torch.tensor([True, False, True])
    batched = batched_crop(images, boxes, flips, size)
    assert batched.dtype == torch.uint8
    assert int((batched.int() - flipped(one_by_one, flips).int()).abs().max()) <= 1


def test_batched_crops_do_not_depend_on_who_else_is_in_the_batch() -> None:
    images = [pixels(i, 20 + 3 * i, 60 - 2 * i) for i in range(20)]
    boxes = [central_box((image.shape[1], image.shape[2])) for image in images]
    flips = torch.arange(20) % 3 == 0
    together = batched_crop(images, boxes, flips, 16)
    for i in (0, 7, 19):
        alone = batched_crop(images[i : i + 1], boxes[i : i + 1], flips[i : i + 1], 16)[0]
        assert int((together[i].int() - alone.int()).abs().max()) <= 1


# ----------------------------------------------------------------------------------------------------------- draws


def test_flips_are_fair_and_only_where_asked() -> None:
    a = Augmentation(mean=(0.5,), std=(0.5,), flip=True)
    draws = a.draw_crops(10_000, torch.Generator().manual_seed(0))
    assert draws.shape == (10_000, CROP_DRAWS + 1)
    assert abs(float(a.flips(draws).double().mean()) - 0.5) < 0.025
    assert not Augmentation(mean=(0.5,), std=(0.5,)).flips(draws).any()


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.5, 0.2), (0.1, 1.5), (0.1,), (float("nan"), 1.0)])
def test_a_crop_area_that_cannot_be_is_refused(area: Any) -> None:
    with pytest.raises(UserError, match="crop_area"):
        Augmentation(mean=(0.5,), std=(0.5,), crop_area=area)
