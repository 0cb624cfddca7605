"""Streaming images of any size: batches are what decoding, cropping and flipping one image at a time would give."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from noisebench import _streaming
from noisebench.augment import Augmentation
from noisebench.data import Loader, make_loader
from noisebench.decoding import CROP_DRAWS, central_box, crop_box, decode, resized
from noisebench.errors import UserError
from noisebench.image_data import LabelSets
from noisebench.method import Batch

N, B, S = 22, 6, 16
SEEDS: dict[str, int] = {"order_seed": 11, "augment_seed": 12}
AUGMENTATION = Augmentation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), flip=True)


class Stored:
    """`EncodedImages` in memory."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents = list(contents)

    def __len__(self) -> int:
        return len(self.contents)

    def encoded(self, i: int, /) -> bytes:
        if self.contents[i] == b"missing":
            raise FileNotFoundError(2, "No such file or directory")
        return self.contents[i]

    def name(self, i: int, /) -> str:
        return f"train/{i}.jpg"


def content_of(i: int) -> bytes:
    """Image i: smooth, of a size of its own, one in five a PNG."""
    rough = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((20 + 3 * i, 50 - 2 * i % 17), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "PNG" if i % 5 == 4 else "JPEG")
    return content.getvalue()


CONTENTS = [content_of(i) for i in range(N)]


def loader_of(contents: Sequence[bytes] = CONTENTS, **options: Any) -> Loader:
    labels = options.pop("labels", torch.arange(len(contents)) % 10)
    options = {"device": "cpu", "augmentation": AUGMENTATION, "workers": 0, "size": S} | options
    return make_loader(Stored(contents), labels, **options)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def plainly(i: int, draws: torch.Tensor | None) -> torch.Tensor:
    """Image i, its crop normalised: float32 [3, S, S]."""
    image = decode(CONTENTS[i], "")
    size = (image.shape[1], image.shape[2])
    box = central_box(size) if draws is None else crop_box(size, draws[:CROP_DRAWS].tolist(), AUGMENTATION.crop_area)
    crop = resized(image, box, S)
    if draws is not None and draws[-1] < 0.5:
        crop = crop.flip(-1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (AUGMENTATION.mean, AUGMENTATION.std))
    return (crop / 255 - mean) / std


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("views", [1, 3])
def test_a_batch_is_its_images_cropped_and_flipped_one_by_one(views: int) -> None:
    generator = torch.Generator().manual_seed(SEEDS["augment_seed"])
    batches = list(loader_of().batches(views=views, batch_size=B, **SEEDS))
    assert len(batches) == N // B
    for x, y, index in batches:
        draws = AUGMENTATION.draw_crops(views * B, generator)
        want = torch.stack([plainly(i, row) for i, row in zip(index.tolist() * views, draws, strict=True)])
        assert x.shape == ((B, 3, S, S) if views == 1 else (views, B, 3, S, S))
        torch.testing.assert_close(x.reshape(want.shape), want, rtol=1e-5, atol=1e-5)
        assert torch.equal(y, index % 10)


def test_without_augmentation_crops_are_central_and_the_order_and_the_tail_stay() -> None:
    batches = list(loader_of().batches(views=2, augment=False, shuffle=False, batch_size=B, **SEEDS))
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(N))
    for batch in batches:
        want = torch.stack([plainly(i, None) for i in batch.index.tolist()])
        for view in batch.x:
            torch.testing.assert_close(view, want, rtol=1e-5, atol=1e-5)


def test_batches_are_the_same_on_any_number_of_workers_and_layout_is_layout_alone() -> None:
    by_workers = [loader_of(workers=workers) for workers in (0, 1, 2)]
    last = loader_of(channels_last=True)
    for options in ({}, {"views": 2}, {"augment": False, "shuffle": False}, {"indices": torch.tensor([5, 3, 21])}):
        want, *others = (list(loader.batches(batch_size=B, **options, **SEEDS)) for loader in [*by_workers, last])
        for other in others:
            assert_equal(other, want)
        assert others[-1][0].x.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


def test_passes_follow_their_seeds_and_may_be_open_together_and_left_early() -> None:
    loader = loader_of(workers=1)
    before = set(multiprocessing.active_children())
    want = list(loader.batches(batch_size=B, **SEEDS))
    next(iter(loader.batches(batch_size=B, **SEEDS)))
    pairs = list(zip(loader.batches(batch_size=B, **SEEDS), loader.batches(batch_size=B, **SEEDS), strict=True))
    for passed in zip(*pairs, strict=True):
        assert_equal(list(passed), want)
    other = list(loader.batches(batch_size=B, **SEEDS | {"augment_seed": 0}))
    assert torch.equal(other[0].index, want[0].index)
    assert not torch.equal(other[0].x, want[0].x)
    assert len(set(multiprocessing.active_children()) - before) <= 2, "workers are kept from pass to pass"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_pass_begun_in_its_middle_goes_on_as_the_whole_one_does(start: int, workers: int) -> None:
    loader = loader_of(workers=workers)
    whole = list(loader.batches(views=2, batch_size=B, **SEEDS))
    assert_equal(list(loader.batches(views=2, batch_size=B, start=start, **SEEDS)), whole[start:])


def test_skipped_batches_are_not_read() -> None:
    damaged = loader_of([b"", *CONTENTS[1:]])
    kept = damaged.batches(shuffle=False, batch_size=B, start=1, **SEEDS)
    assert torch.cat([batch.index for batch in kept]).tolist() == list(range(B, N))


def test_a_part_of_the_images_is_a_set_of_its_own() -> None:
    part = torch.tensor([9, 4, 20, 0])
    alone = loader_of([CONTENTS[i] for i in part.tolist()])
    loader = make_loader(
        Stored(CONTENTS), torch.arange(4), device="cpu", augmentation=AUGMENTATION, size=S, workers=0, positions=part
    )
    assert_equal(list(loader.batches(batch_size=2, **SEEDS)), list(alone.batches(batch_size=2, **SEEDS)))


def test_touches_no_global_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(loader_of(workers=1).batches(views=2, batch_size=B, **SEEDS))
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------------------- ranks


def array_loader() -> Loader:
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    padded = Augmentation(mean=(0.5,) * 3, std=(0.2,) * 3, padding=2, flip=True)
    return make_loader(images, torch.arange(N) % 10, device="cpu", augmentation=padded, mode="resident")


@settings(deadline=None, max_examples=25)
@given(
    encoded=st.booleans(),
    ranks=st.integers(1, 5),
    start=st.integers(0, 3),
    options=st.sampled_from([{}, {"views": 2}, {"shuffle": False}, {"augment": False, "shuffle": False}]),
)
def test_the_ranks_together_have_the_batches_of_one(
    encoded: bool, ranks: int, start: int, options: dict[str, Any]
) -> None:
    loader = loader_of() if encoded else array_loader()
    given: dict[str, Any] = {"batch_size": B, "start": start, **options, **SEEDS}
    whole = list(loader.batches(**given))
    parts = [list(loader.batches(rank=rank, ranks=ranks, **given)) for rank in range(ranks)]
    across = options.get("views", 1) > 1
    for at, batch in enumerate(whole):
        shares = [part[at] if at < len(part) else None for part in parts]
        for rank, share in enumerate(shares):
            want = Batch(
                batch.x[:, rank::ranks] if across else batch.x[rank::ranks],
                batch.y[rank::ranks],
                batch.index[rank::ranks],
            )
            if share is None:
                assert len(want.y) == 0
            else:
                assert all(torch.equal(x, y) for x, y in zip(share, want, strict=True))
    assert max(map(len, parts)) == len(whole)


@pytest.mark.parametrize("encoded", [False, True])
def test_ranks_that_cannot_be_are_refused_at_the_call(encoded: bool) -> None:
    loader = loader_of() if encoded else array_loader()
    for rank, ranks in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match=f"rank is {rank}"):
            loader.batches(batch_size=B, rank=rank, ranks=ranks, **SEEDS)
    with pytest.raises(UserError, match="a batch of 2 samples has none for some of 3 ranks"):
        loader.batches(batch_size=2, shuffle=False, rank=0, ranks=3, **SEEDS)
    with pytest.raises(UserError, match="a batch of 2 samples has none for some of 3 ranks"):
        loader.batches(torch.tensor([4, 1]), batch_size=B, rank=0, ranks=3, **SEEDS)


# ---------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("encoded", [False, True])
def test_labels_that_name_sets_come_as_rows(encoded: bool) -> None:
    sets = LabelSets(np.array([0, 1, 3, 6]), np.array([4, 0, 2, 1, 2, 3], np.int32))
    ids = torch.arange(N) % 3
    rows = torch.tensor([[0, 0, 0, 0, 1], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0]]).float()
    if encoded:
        loader = loader_of(labels=ids, label_sets=sets, num_classes=5)
    else:
        images = np.zeros((N, 8, 8, 3), np.uint8)
        loader = make_loader(
            images, ids, device="cpu", augmentation=AUGMENTATION, label_sets=sets, num_classes=5, mode="resident"
        )
    for options in ({}, {"augment": False}):
        for batch in loader.batches(batch_size=B, **options, **SEEDS):
            assert batch.y.dtype == torch.float32
            assert torch.equal(batch.y, rows[batch.index % 3])


# --------------------------------------------------------------------------------------------------- damaged images

DAMAGED = [
    content[: len(content) // 2] if i == 3 else b"<html>" if i == 8 else b"missing" if i == 13 else content
    for i, content in enumerate(CONTENTS)
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("which", [3, 8, 13])
def test_a_damaged_image_stops_the_pass_with_one_line_that_names_it(which: int, workers: int) -> None:
    loader = loader_of(DAMAGED, workers=workers)
    with pytest.raises(UserError) as caught:
        list(loader.batches(torch.tensor([0, which, 1]), batch_size=B, **SEEDS))
    message = str(caught.value)
    assert message.startswith(f"train/{which}.jpg ")
    assert message.endswith("; pass recipe.skip_damaged=true to go on with a grey image in its place")
    assert "Traceback" not in message
    assert "\\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_grey_image_stands_in_for_a_damaged_one_which_is_named_once(workers: int) -> None:
    loader = loader_of(DAMAGED, workers=workers, skip_damaged=True)
    reported: list[tuple[str, str]] = []
    loader.on_damaged(lambda name, reason: reported.append((name, reason)))
    fine = list(loader_of().batches(views=2, batch_size=B, shuffle=False, **SEEDS))
    for _ in range(2):
        batches = list(loader.batches(views=2, batch_size=B, shuffle=False, **SEEDS))
        for batch, want in zip(batches, fine, strict=True):
            for place, i in enumerate(batch.index.tolist()):
                if i in (3, 8, 13):
                    grey = torch.full((1, S, S, 3), 127, dtype=torch.uint8)
                    assert torch.equal(batch.x[:, place], loader.normalised(grey).expand(2, -1, -1, -1))
                else:
                    assert torch.equal(batch.x[:, place], want.x[:, place])
    assert list(loader.damaged) == ["train/3.jpg", "train/8.jpg", "train/13.jpg"]
    assert list(loader.damaged.items()) == reported
    assert "no whole image" in loader.damaged["train/8.jpg"]
    assert loader.damaged["train/13.jpg"] == "train/13.jpg cannot be read: No such file or directory"
    assert loader_of().damaged == {}


def test_a_mistake_that_a_worker_finds_is_one_line_for_arrays_too() -> None:
    images: list[np.ndarray] = [np.zeros((8, 8, 3), np.uint8)] * 4 + [np.zeros((8, 8, 3))] * 4
    loader = make_loader(images, torch.arange(8), device="cpu", augmentation=AUGMENTATION, workers=1)
    with pytest.raises(UserError, match=r"^images\[i\] gave float64 .*; give uint8 \[H, W, C\]$"):
        list(loader.batches(shuffle=False, batch_size=4, **SEEDS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": None}, "size is None; give the side of the crops"),
        ({"size": 0}, "size is 0"),
        ({"mode": "resident"}, "use 'streaming'"),
        ({"augmentation": Augmentation(mean=(0.5,) * 3, std=(0.5,) * 3, padding=4)}, "recipe.padding is 4; give 0"),
        ({"augmentation": Augmentation(mean=(0.5,), std=(0.5,))}, "images have 3"),
        ({"labels": torch.zeros(N, 5, dtype=torch.uint8), "label_sets": 1, "num_classes": 5}, "label_sets needs int64"),
        ({"label_sets": 1}, "classes 0"),
    ],
)
def test_make_loader_names_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loader_of(**options)


# -------------------------------------------------------------------------------- decoding on the device (nvJPEG)


def as_a_device_would(contents: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """nvJPEG's contract without a GPU: JPEGs alone, all or nothing."""
    assert all(content.ndim == 1 for content in contents)
    try:
        return [decode(content.numpy().tobytes(), "") for content in contents]
    except UserError as error:
        raise RuntimeError("nvJPEG: 2") from error


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streaming, "device_decodes", lambda device: True)
    monkeypatch.setattr(_streaming, "decode_jpeg", as_a_device_would)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_on_the_device_gives_the_batches_of_the_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(workers=workers)
    with monkeypatch.context() as without:
        without.setattr(_streaming, "device_decodes", lambda device: False)
        by_workers = loader_of()
    level = 1 / 255 / min(AUGMENTATION.std)
    for options in ({}, {"views": 2}, {"augment": False, "shuffle": False}):
        for got, want in zip(
            loader.batches(batch_size=B, **options, **SEEDS),
            by_workers.batches(batch_size=B, **options, **SEEDS),
            strict=True,
        ):
            assert torch.equal(got.index, want.index)
            assert float((got.x - want.x).abs().max()) < 1.01 * level


@pytest.mark.usefixtures("on_device")
def test_a_damaged_image_on_the_device_is_named_and_replaced_alone() -> None:
    garbled = CONTENTS[1][:40] + b"\0" * 10 + CONTENTS[1][50:]  # a whole JPEG by its ends, none by its middle
    contents = [garbled if i == 1 else content for i, content in enumerate(DAMAGED)]
    options: dict[str, Any] = {"batch_size": N, "shuffle": False, "augment": False, **SEEDS}
    loader = loader_of(contents, skip_damaged=True)
    (batch,) = loader.batches(**options)
    (fine,) = loader_of().batches(**options)
    damaged = {int(name.split("/")[1].split(".")[0]) for name in loader.damaged}
    assert {3, 8, 13} <= damaged
    for i in range(N):
        if i not in damaged and i != 1:
            assert torch.equal(batch.x[i], fine.x[i])
    with pytest.raises(UserError, match=r"^train/8\.jpg .*recipe\.skip_damaged=true"):
        list(loader_of(contents).batches(torch.tensor([8, 0]), batch_size=2, **SEEDS))


def test_a_cpu_does_not_decode_as_a_device() -> None:
    assert not _streaming.device_decodes(torch.device("cpu"))


# ----------------------------------------------------------------------------------------------------------- files


def test_streams_from_files_and_names_the_damaged_one(tmp_path: Path) -> None:
    from noisebench.image_index import list_folders

    for i, content in enumerate(CONTENTS):
        path = tmp_path / f"class{i % 2}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    listed = list_folders(tmp_path)
    order = [*range(0, N, 2), *range(1, N, 2)]
    options: dict[str, Any] = {"device": "cpu", "augmentation": AUGMENTATION, "size": S}
    loader = make_loader(listed.images, torch.from_numpy(np.asarray(listed.labels)), workers=2, **options)
    want = loader_of([CONTENTS[i] for i in order], labels=torch.arange(N) // (N // 2))
    assert_equal(list(loader.batches(batch_size=B, **SEEDS)), list(want.batches(batch_size=B, **SEEDS)))
    (tmp_path / "class0" / "04.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"class0/04\.jpg is no whole image: the file is empty; pass recipe"):
        list(loader.batches(batch_size=B, shuffle=False, **SEEDS))


def test_a_worker_that_is_killed_is_told_in_one_line() -> None:
    """The kernel kills a process for want of memory; torch says only that it exited."""
    from noisebench._streaming import Workers

    def read(request: int) -> int:
        if request == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return request

    workers = Workers(read, torch.device("cpu"), 1)
    with pytest.raises(UserError, match=r"was killed, often for want of memory; lower recipe\.workers"):
        list(workers.answers([0, 1, 2]))
