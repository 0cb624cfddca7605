"""Data: batches are what a slow, plain loop over single images would give, however they are fetched."""

from __future__ import annotations

import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebench import data as data_module
from noisebench.augment import Augmentation, Augmenter
from noisebench.data import ImageData, Loader, make_loader
from noisebench.errors import UserError
from noisebench.method import Batch

N, B = 70, 16
SHAPES = {"1x28x28": (28, 28, 1), "3x32x32": (32, 32, 3)}
SEEDS: dict[str, int] = {"order_seed": 11, "augment_seed": 12}


def images_of(shape: tuple[int, int, int], count: int = N) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def augmentation_for(channels: int, padding: int = 4, flip: bool = True) -> Augmentation:
    return Augmentation(mean=(0.5, 0.4, 0.3)[:channels], std=(0.2, 0.3, 0.25)[:channels], padding=padding, flip=flip)


def loader_of(shape: tuple[int, int, int] = (32, 32, 3), **options: Any) -> Loader:
    images = options.pop("images", images_of(shape))
    options = {"device": "cpu", "augmentation": augmentation_for(shape[-1]), "mode": "resident"} | options
    return make_loader(images, torch.arange(N) % 10, **options)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return SHAPES[request.param]


# --------------------------------------------------------------------------------------------------- augmentation


def plainly(image: np.ndarray, top: int, left: int, flip: bool, a: Augmentation) -> np.ndarray:
    """One image [H, W, C] -> [C, H, W]: torchvision's RandomCrop, RandomHorizontalFlip, ToTensor, Normalize by hand."""
    height, width, channels = image.shape
    frame = np.zeros((height + 2 * a.padding, width + 2 * a.padding, channels))
    frame[a.padding : a.padding + height, a.padding : a.padding + width] = image
    crop = frame[top : top + height, left : left + width]
    if flip:
        crop = crop[:, ::-1]
    return ((crop / 255 - np.array(a.mean)) / np.array(a.std)).transpose(2, 0, 1)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    padding=st.integers(0, 12),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_augments_as_a_loop_over_images_would(
    height: int, width: int, channels: int, padding: int, flip: bool, seed: int
) -> None:
    a = augmentation_for(channels, padding, flip)
    images = images_of((height, width, channels), 5)
    draws = a.draw(5, torch.Generator().manual_seed(seed))
    got = Augmenter(a, torch.device("cpu"))(torch.from_numpy(images).permute(0, 3, 1, 2), draws)
    tops, lefts, flips = (part.tolist() for part in a.unpack(draws))
    want = [plainly(image, *how, a) for image, *how in zip(images, tops, lefts, flips, strict=True)]
    np.testing.assert_allclose(got.numpy(), np.stack(want), rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32


def test_crops_and_flips_are_uniform_and_independent() -> None:
    a = augmentation_for(3, padding=2)
    count = 200_000
    top, left, flip = a.unpack(a.draw(count, torch.Generator().manual_seed(0)))
    cells = torch.bincount((top * 5 + left) * 2 + flip, minlength=50)
    assert len(cells) == 50
    assert float((cells / count - 1 / 50).abs().max()) < 5 * (0.02 * 0.98 / count) ** 0.5


def test_draws_only_what_is_asked() -> None:
    flips_only, crops_only = augmentation_for(3, padding=0), augmentation_for(3, padding=1, flip=False)
    top, left, flip = flips_only.unpack(flips_only.draw(100, torch.Generator().manual_seed(0)))
    assert not top.any()
    assert not left.any()
    assert 0 < int(flip.sum()) < 100
    top, left, flip = crops_only.unpack(crops_only.draw(100, torch.Generator().manual_seed(0)))
    assert top.unique().tolist() == left.unique().tolist() == [0, 1, 2]
    assert not flip.any()
    assert not augmentation_for(3, padding=0, flip=False).random


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding": -1}, "padding -1"),
        ({"std": (0.2, 0.0)}, "std"),
        ({"std": (0.2,)}, "one per channel"),
        ({"mean": (0.1, float("nan"))}, "mean"),
    ],
)
def test_refuses_an_augmentation_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**({"mean": (0.1, 0.2), "std": (0.2, 0.2)} | change))


# --------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_its_images_augmented(shape: tuple[int, int, int]) -> None:
    images, a = images_of(shape), augmentation_for(shape[-1])
    generator = torch.Generator().manual_seed(SEEDS["augment_seed"])
    for x, y, index in loader_of(shape).batches(batch_size=B, **SEEDS):
        draws = zip(*(part.tolist() for part in a.unpack(a.draw(B, generator))), strict=True)
        want = [plainly(images[i], *how, a) for i, how in zip(index.tolist(), draws, strict=True)]
        np.testing.assert_allclose(x.numpy(), np.stack(want), rtol=1e-5, atol=1e-5)
        assert torch.equal(y, index % 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_resident(shape: tuple[int, int, int], workers: int) -> None:
    resident, streaming = loader_of(shape), loader_of(shape, mode="streaming", workers=workers)
    assert resident.resident
    assert not streaming.resident
    for options in ({}, {"augment": False}, {"views": 2, "shuffle": False}, {"views": 2, "augment": False}):
        for part in (None, torch.tensor([5, 3, 60])):
            passes = [list(loader.batches(part, batch_size=B, **options, **SEEDS)) for loader in (resident, streaming)]
            assert_equal(*passes)


def test_streams_from_memmaps_and_from_objects(tmp_path: Path) -> None:
    images = images_of((32, 32, 3))
    on_disk = np.memmap(tmp_path / "images", np.uint8, "w+", shape=images.shape)
    on_disk[:] = images
    want = list(loader_of().batches(batch_size=B, **SEEDS))
    for source in (on_disk, list(images)):
        assert_equal(list(loader_of(images=source, mode="streaming").batches(batch_size=B, **SEEDS)), want)
    assert not loader_of(images=list(images), mode="auto").resident


def test_auto_is_resident_where_the_images_take_less_than_half_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = N * 32 * 32 * 3
    for free, resident in ((2 * size + 1, True), (2 * size, False)):
        monkeypatch.setattr(data_module, "_free_bytes", lambda device, free=free: free)
        assert loader_of(mode="auto").resident is resident


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_part_of_the_images_is_a_set_of_its_own(mode: str) -> None:
    images, part = images_of((32, 32, 3)), torch.tensor([9, 4, 33])
    options: dict[str, Any] = {"device": "cpu", "augmentation": augmentation_for(3), "mode": mode, "workers": 0}
    whole = make_loader(images[part.numpy()], torch.tensor([0, 1, 2]), **options)
    loader = make_loader(images, torch.tensor([0, 1, 2]), positions=part, **options)
    assert len(loader) == 3
    assert_equal(list(loader.batches(batch_size=2, **SEEDS)), list(whole.batches(batch_size=2, **SEEDS)))


def test_a_shuffled_pass_has_every_index_once_without_the_ragged_tail() -> None:
    batches = list(loader_of().batches(batch_size=B, **SEEDS))
    index = torch.cat([batch.index for batch in batches])
    assert [len(batch.y) for batch in batches] == [B] * (N // B)
    assert len(index.unique()) == len(index)
    assert not torch.equal(index, index.sort().values)


def test_fewer_samples_than_a_batch_are_one_batch_and_none_are_none() -> None:
    for mode in ("resident", "streaming"):
        loader = loader_of(mode=mode, workers=0)
        (batch,) = loader.batches(torch.tensor([8, 2, 5]), batch_size=B, **SEEDS)
        assert sorted(batch.index.tolist()) == [2, 5, 8]
        assert list(loader.batches(torch.tensor([], dtype=torch.int64), batch_size=B, **SEEDS)) == []


def test_without_shuffling_the_order_and_the_tail_stay() -> None:
    part = torch.tensor([7, 3, 69, 0, 12])
    batches = list(loader_of().batches(part, shuffle=False, batch_size=2, **SEEDS))
    assert [batch.index.tolist() for batch in batches] == [[7, 3], [69, 0], [12]]


def test_order_and_augmentation_each_follow_their_own_seed() -> None:
    loader = loader_of()
    first, again = (list(loader.batches(batch_size=B, **SEEDS)) for _ in range(2))
    assert_equal(first, again)
    other_crops = list(loader.batches(batch_size=B, **SEEDS | {"augment_seed": 0}))
    other_order = list(loader.batches(batch_size=B, **SEEDS | {"order_seed": 0}))
    assert torch.equal(first[0].index, other_crops[0].index)
    assert not torch.equal(first[0].x, other_crops[0].x)
    assert not torch.equal(first[0].index, other_order[0].index)


def test_views_are_independent_and_equal_only_without_augmentation() -> None:
    loader = loader_of()
    (batch,) = loader.batches(views=3, batch_size=N, **SEEDS)
    assert batch.x.shape == (3, N, 3, 32, 32)
    for one, two in pairwise(batch.x):
        same = (one == two).flatten(1).all(1).float().mean()
        assert same < 0.1  # one of 162 draws coincides by chance
    (plain,) = loader.batches(views=2, augment=False, batch_size=N, **SEEDS)
    assert torch.equal(plain.x[0], plain.x[1])
    assert torch.equal(plain.x[0], loader.normalised(images_of((32, 32, 3))[plain.index.numpy()]))


def test_the_float_copy_changes_no_bit(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with_copy = list(loader_of(shape).batches(augment=False, batch_size=B, **SEEDS))
    monkeypatch.setattr(data_module, "_FLOAT_COPY_LIMIT", 0)
    assert_equal(with_copy, list(loader_of(shape).batches(augment=False, batch_size=B, **SEEDS)))


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("augment", [True, False])
def test_channels_last_is_a_matter_of_layout_alone(mode: str, augment: bool) -> None:
    loader = loader_of(channels_last=True, mode=mode, workers=0)
    batches = list(loader.batches(augment=augment, batch_size=B, **SEEDS))
    assert all(batch.x.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert_equal(batches, list(loader_of().batches(augment=augment, batch_size=B, **SEEDS)))
    two_views = next(iter(loader.batches(views=2, augment=augment, batch_size=B, **SEEDS))).x
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in two_views)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_touches_no_global_random_state(mode: str) -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    loader = loader_of(mode=mode)
    for _ in range(2):
        list(loader.batches(views=2, batch_size=B, **SEEDS))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_passes_may_be_open_together_and_may_be_left_early(mode: str) -> None:
    loader = loader_of(mode=mode, workers=1)
    want = list(loader.batches(batch_size=B, **SEEDS))
    next(iter(loader.batches(batch_size=B, **SEEDS)))
    pairs = list(zip(loader.batches(batch_size=B, **SEEDS), loader.batches(batch_size=B, **SEEDS), strict=True))
    for passed in zip(*pairs, strict=True):
        assert_equal(list(passed), want)


def test_workers_are_kept_from_pass_to_pass() -> None:
    before = set(multiprocessing.active_children())
    loader = loader_of(mode="streaming", workers=2)
    seen = set()
    for _ in range(3):
        list(loader.batches(batch_size=B, **SEEDS))
        seen |= set(multiprocessing.active_children()) - before
    assert len(seen) == 2


@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_copies_and_so_is_the_resident_set(augment: bool) -> None:
    images = images_of((32, 32, 3))
    loader = loader_of(images=images)
    images[:] = 0
    for batch in loader.batches(augment=augment, batch_size=B, **SEEDS):
        batch.x.zero_()
        batch.y.zero_()
    again = loader.batches(augment=augment, batch_size=B, **SEEDS)
    assert_equal(list(again), list(loader_of().batches(augment=augment, batch_size=B, **SEEDS)))


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "residnt"}, "did you mean resident"),
        ({"mode": "resident", "images": list(images_of((32, 32, 3)))}, "use 'streaming'"),
        ({"workers": -1}, "workers is -1"),
        ({"images": images_of((32, 32, 3), 3)}, r"labels .* give int64 \[3\]"),
        ({"images": images_of((32, 32, 1))}, "augmentation has mean and std of 3 channels; images have 1"),
        ({"images": images_of((32, 32, 3)) / 255}, "give uint8"),
    ],
)
def test_make_loader_names_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loader_of(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"views": 0}, "views is 0"),
        ({"indices": torch.tensor([0, N])}, f"indices range over 0..{N}"),
        ({"indices": torch.tensor([-1])}, "indices range"),
        ({"indices": torch.tensor([True])}, "indices is torch.bool"),
    ],
)
def test_batches_refuses_at_the_call(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loader_of().batches(**({"batch_size": B} | options), **SEEDS)


def test_an_object_that_changes_its_shape_or_dtype_is_named() -> None:
    images: list[np.ndarray] = list(images_of((32, 32, 3)))
    images[50:] = [image / 255 for image in images[50:]]
    with pytest.raises(UserError, match="give uint8"):
        list(loader_of(images=images, mode="streaming", workers=0).batches(shuffle=False, batch_size=B, **SEEDS))


def image_data(**change: Any) -> ImageData:
    fine: dict[str, Any] = {
        "train_images": images_of((8, 8, 3), 6),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": images_of((8, 8, 3), 2),
        "test_labels": np.array([2, 0]),
        "num_classes": 3,
        "classes": ("cat", "dog", "emu"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "class_map": {0: 1},
    }
    return ImageData(**fine | change)


def test_image_data_takes_arrays_and_objects() -> None:
    assert image_data().image_shape == (3, 8, 8)
    assert image_data(train_images=list(images_of((8, 8, 3), 6))).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": images_of((8, 8, 3), 6)[..., 0]}, "train_images holds uint8 images of shape"),
        ({"test_images": np.zeros((2, 8, 8, 3))}, "test_images holds float64"),
        ({"test_images": images_of((9, 8, 3), 2)}, r"test_images are \(3, 9, 8\)"),
        ({"train_images": images_of((8, 8, 3), 0)}, "train_images is empty"),
        ({"train_labels": np.array([0, 1])}, r"train_labels .* give an int64 array \[6\]"),
        ({"test_labels": np.array([0, 1], np.int32)}, "test_labels is int32"),
        ({"test_labels": [0, 1]}, "test_labels is list"),
        ({"test_labels": np.array([0, 3])}, r"test_labels holds class 3; give classes in 0\.\.2"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -2])}, "train_labels holds class -2"),
        ({"classes": ("cat", "dog")}, "classes has 2 names"),
        ({"mean": (0.5,)}, "mean has 1 values"),
        ({"std": (0.2, 0.2, 0.0)}, "std"),
        ({"class_map": {0: 3}}, "class_map names class 3"),
    ],
)
def test_image_data_names_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_data(**change)


# ----------------------------------------------------------------------------------------- several labels an image


@pytest.mark.parametrize("workers", [0, 2])
def test_multihot_labels_come_as_float_rows_the_same_however_images_are_fetched(workers: int) -> None:
    images = images_of((8, 8, 3))
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (N, 5), dtype=np.uint8))
    options: dict[str, Any] = {"device": "cpu", "augmentation": augmentation_for(3)}
    resident = make_loader(images, labels, mode="resident", **options)
    streaming = make_loader(images, labels, mode="streaming", workers=workers, **options)
    assert resident.labels.dtype == torch.uint8, "a quarter of float32's memory"
    for choice in ({}, {"augment": False}, {"views": 2}):
        passes = [list(loader.batches(batch_size=B, **choice, **SEEDS)) for loader in (resident, streaming)]
        assert_equal(*passes)
        for batch in passes[0]:
            assert batch.y.dtype == torch.float32
            assert torch.equal(batch.y, labels[batch.index].float())


@pytest.mark.parametrize("shape", [(N, 1, 5), (N - 1, 5), (N,), ()])
def test_labels_that_are_neither_classes_nor_multihot_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"labels is torch.uint8 .* int64 \[70\], .* or uint8 \[70, K\], multi-hot"):
        make_loader(
            images_of((8, 8, 3)), torch.zeros(shape, dtype=torch.uint8), device="cpu", augmentation=augmentation_for(3)
        )


def rows(*values: int) -> np.ndarray:
    return np.array([[value >> bit & 1 for bit in range(3)] for value in values], np.uint8)


MULTIHOT: dict[str, Any] = {"train_labels": rows(1, 2, 4, 7, 0, 3), "test_labels": rows(5, 0), "class_map": {}}


def test_image_data_takes_multihot_labels_images_without_any_too() -> None:
    assert image_data(**MULTIHOT).multilabel
    assert not image_data().multilabel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": rows(1, 2)}, r"train_labels is uint8 \[2, 3\]; .* multi-hot uint8 array \[6, 3\]"),
        ({"test_labels": rows(1, 2)[:, :2]}, r"test_labels is uint8 \[2, 2\]"),
        ({"test_labels": rows(1, 2).astype(np.int64)}, r"test_labels is int64 \[2, 3\]"),
        ({"test_labels": rows(1, 2) * 2}, "test_labels holds 2; multi-hot labels are 0 or 1"),
        ({"test_labels": np.array([0, 1])}, "train_labels are multi-hot, but test_labels are not"),
        ({"train_labels": np.zeros(6, np.int64)}, "test_labels are multi-hot, but train_labels are not"),
        ({"class_map": {0: 1}}, "class_map is for one label an image"),
    ],
)
def test_image_data_names_what_does_not_fit_of_multihot_labels(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_data(**MULTIHOT | change)
