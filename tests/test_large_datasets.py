"""The datasets at scale, each in a tiny tree in its publisher's own layout, with the counts set to the tree's."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from publishers import NAMES, WNIDS, WORDS, contents, lines, module, put, refusal, sized, tar_of

from noisebench.errors import UserError
from noisebench.image_data import ImageData

# Every one of them


ALL = ("animal10n", "clothing1m", "food101n", "imagenet", "imagenet21k", "webvision", "webvision_mini")
SIZES = {
    "animal10n": (50_000, 5_000),
    "clothing1m": (1_000_000, 10_526),
    "food101n": (310_009, 25_250),
    "imagenet": (1_281_167, 50_000),
    "webvision": (2_439_574, 50_000),
    "webvision_mini": (65_944, 2_500),
}


@pytest.mark.parametrize("name", ALL)
def test_one_that_is_not_there_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    message = refusal(name, tmp_path)
    assert f"{tmp_path}" in message
    assert "is missing; " in message
    assert "https://" in message
    assert "--download cannot" in message
    assert "NOISEBENCH_DATA" in refusal(name, None)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_sizes_are_the_publishers(name: str, size: tuple[int, int]) -> None:
    assert (module(name).SIZE["train"], module(name).SIZE["test"]) == size


def test_the_sums_are_torchvisions() -> None:
    from torchvision.datasets import Food101
    from torchvision.datasets.imagenet import ARCHIVE_META

    assert {f"imagenet/{file}": md5 for file, md5 in ARCHIVE_META.values()} == module("imagenet").FILES
    assert module("food101n").FILES["food-101.tar.gz"] == Food101._MD5


# Clothing1M


@pytest.fixture
def clothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sized(monkeypatch, "clothing1m", SIZE={"train": 3, "test": 2}, VALIDATION=1)
    folder = tmp_path / "clothing1m"
    keys = [f"images/{i}/{10 + i}/pic{i}.jpg" for i in range(6)]
    for key in keys:
        put(folder / key)
    lists = folder / "annotations"
    lines(lists / "noisy_train_key_list.txt", keys[2], keys[0], keys[1])
    lines(lists / "clean_test_key_list.txt", keys[3], keys[4])
    lines(lists / "clean_val_key_list.txt", keys[5])
    lines(lists / "noisy_label_kv.txt", *(f"{key} {13 - i}" for i, key in enumerate(keys[:4])))
    lines(lists / "clean_label_kv.txt", *(f"{key} {i}" for i, key in enumerate(keys[2:], 2)))
    return folder


def check_clothing(data: ImageData) -> None:
    assert contents(data.train_images) == ["pic2.jpg", "pic0.jpg", "pic1.jpg"]
    assert data.train_labels.tolist() == [11, 13, 12]  # the noisy ones, in the order of the keys
    assert (contents(data.test_images), data.test_labels.tolist()) == (["pic3.jpg", "pic4.jpg"], [3, 4])


def test_clothing1m_trains_on_noisy_and_tests_on_clean_labels(clothing: Path) -> None:
    data = module("clothing1m").load(clothing.parent)
    check_clothing(data)
    assert not data.clean_known
    validation = data.extra_test("validation")
    assert (contents(validation.images), validation.labels.tolist()) == (["pic5.jpg"], [5])


def test_clothing1m_finds_its_lists_beside_the_images_too(clothing: Path) -> None:
    for file in (clothing / "annotations").iterdir():
        file.rename(clothing / file.name)
    (clothing / "annotations").rmdir()
    check_clothing(module("clothing1m").load(clothing.parent))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "images/1/11/pic1.jpg").unlink(), "pic1.jpg"),
        (lambda f: (f / "annotations/noisy_label_kv.txt").unlink(), "noisy_label_kv.txt is missing"),
        (
            lambda f: lines(f / "annotations/noisy_label_kv.txt", "images/0/10/pic0.jpg 14"),
            "line 1: no image and class",
        ),
        (lambda f: lines(f / "annotations/noisy_label_kv.txt", "images/0/10/pic0.jpg"), "line 1: no image and class"),
        (lambda f: lines(f / "annotations/noisy_label_kv.txt", "images/0/10/pic0.jpg 3"), "pic2.jpg' has no label"),
        (
            lambda f: lines(f / "annotations/noisy_train_key_list.txt", "images/0/10/pic0.jpg"),
            "noisy_train_key_list.txt lists 1 images, not 3",
        ),
    ],
)
def test_a_damaged_clothing1m_is_one_line(clothing: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(clothing)
    assert says in refusal("clothing1m", clothing.parent)


def test_clothing1m_is_unpacked_beside_its_archives(clothing: Path) -> None:
    module("clothing1m").load(clothing.parent)
    for i in range(10):
        name = f"{i}/{10 + i}/pic{i}.jpg"
        (clothing / "images" / name).unlink(missing_ok=True)
        (clothing / "images" / f"{i}" / f"{10 + i}").rmdir() if i < 6 else None
        (clothing / "images" / f"{i}").rmdir() if i < 6 else None
        put(clothing / "images" / f"{i}.tar", tar_of({name: f"pic{i}.jpg".encode()}))
    module("clothing1m").prepare(clothing.parent)
    module("clothing1m").prepare(clothing.parent)
    check_clothing(module("clothing1m").load(clothing.parent))


# ImageNet


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sized(monkeypatch, "imagenet", NUM_CLASSES=4, SIZE={"train": 5, "test": 4})
    folder = tmp_path / "imagenet"
    for i, wnid in enumerate(WNIDS):
        for k in range(2 if i == 1 else 1):
            put(folder / "train" / wnid / f"{wnid}_{k}.JPEG")
        put(folder / "val" / wnid / f"ILSVRC2012_val_{i + 1:08}.JPEG")
    lines(folder / "synset_words.txt", *(f"{wnid} {words}" for wnid, words in zip(WNIDS, WORDS, strict=True)))
    return folder


def check_imagenet(data: ImageData) -> None:
    assert data.classes == NAMES
    assert data.train_labels.tolist() == [0, 1, 1, 2, 3]
    assert contents(data.train_images)[1:3] == [f"{WNIDS[1]}_0.JPEG", f"{WNIDS[1]}_1.JPEG"]
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert contents(data.test_images)[3] == "ILSVRC2012_val_00000004.JPEG"


def test_imagenet_is_read_from_torchvisions_layout(imagenet: Path) -> None:
    data = module("imagenet").load(imagenet.parent)
    check_imagenet(data)
    assert data.clean_known
    (imagenet / "synset_words.txt").unlink()
    assert module("imagenet").load(imagenet.parent).classes == WNIDS


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").unlink(), "train has 4 images, not 5"),
        (lambda f: (f / "val" / WNIDS[1] / "ILSVRC2012_val_00000002.JPEG").unlink(), WNIDS[1]),
        (lambda f: put(f / "val" / "n99999999" / "ILSVRC2012_val_00000005.JPEG"), "5 class folders, not 4"),
        (lambda f: (f / "train" / WNIDS[1]).rename(f / "train" / "n99999999"), "in one of train and val only"),
        (lambda f: lines(f / "synset_words.txt", "tench"), "synset_words.txt, line 1: 'tench' is no WordNet id"),
    ],
)
def test_a_damaged_imagenet_is_one_line(imagenet: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(imagenet)
    assert says in refusal("imagenet", imagenet.parent)


def devkit() -> bytes:
    """The development kit, with the ids in another order than the WordNet ids, and a synset above two of them."""
    from scipy.io import savemat

    kind = [(n, object) for n in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(4 - i, wnid, words, "", 0) for i, (wnid, words) in enumerate(zip(WNIDS, WORDS, strict=True))]
    synsets = np.array([*rows[::-1], (5, "n00015388", "animal", "", 2)], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in (
            ("meta.mat", meta.getvalue()),
            ("ILSVRC2012_validation_ground_truth.txt", b"4\n3\n2\n1\n"),
        ):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def packed_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sized(monkeypatch, "imagenet", NUM_CLASSES=4, SIZE={"train": 5, "test": 4})
    folder = tmp_path / "imagenet"
    classes = {}
    for i, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{k}.JPEG" for k in range(2 if i == 1 else 1)]
        classes[f"{wnid}.tar"] = tar_of({name: name.encode() for name in names})
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in (3, 1, 2, 4)]
    put(folder / "ILSVRC2012_img_train.tar", tar_of(classes))
    put(folder / "ILSVRC2012_img_val.tar", tar_of({name: name.encode() for name in names}))
    put(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit())
    md5 = hashlib.md5((folder / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()).hexdigest()
    sized(monkeypatch, "imagenet", FILES={**module("imagenet").FILES, "imagenet/ILSVRC2012_devkit_t12.tar.gz": md5})
    return folder


def test_imagenet_is_made_of_the_publishers_archives_once(packed_imagenet: Path) -> None:
    module("imagenet").prepare(packed_imagenet.parent)
    check_imagenet(module("imagenet").load(packed_imagenet.parent))
    for archive in packed_imagenet.glob("*.tar*"):
        archive.unlink()
    module("imagenet").prepare(packed_imagenet.parent)
    check_imagenet(module("imagenet").load(packed_imagenet.parent))
    assert not (packed_imagenet / ".val-unsorted").exists()


def test_a_stopped_preparation_of_imagenet_goes_on(packed_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.link", killed)
        with pytest.raises(KeyboardInterrupt):
            module("imagenet").prepare(packed_imagenet.parent)
    assert not (packed_imagenet / "val").exists()
    module("imagenet").prepare(packed_imagenet.parent)
    check_imagenet(module("imagenet").load(packed_imagenet.parent))


@pytest.mark.parametrize("links", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_imagenet_is_sorted_where_there_are_no_hard_links(
    packed_imagenet: Path, monkeypatch: pytest.MonkeyPatch, links: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(links, os.strerror(links))

    monkeypatch.setattr("os.link", refused)
    module("imagenet").prepare(packed_imagenet.parent)
    check_imagenet(module("imagenet").load(packed_imagenet.parent))
    assert not [file for file in packed_imagenet.iterdir() if file.name.startswith(".val") and file.is_dir()]


def test_a_disk_that_is_full_while_imagenet_is_sorted_is_one_line(
    packed_imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", full)
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(UserError, match=r"^ImageNet: .*val cannot be written: No space left on device$"):
            module("imagenet").prepare(packed_imagenet.parent)
    assert not (packed_imagenet / "val").exists()
    module("imagenet").prepare(packed_imagenet.parent)
    check_imagenet(module("imagenet").load(packed_imagenet.parent))


def test_a_forged_development_kit_is_not_opened(packed_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, "imagenet", FILES={"imagenet/ILSVRC2012_devkit_t12.tar.gz": "0" * 32})
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz has .* not the published 0000"):
        module("imagenet").prepare(packed_imagenet.parent)


# WebVision, whose classes are listed in another order than the folders of ILSVRC12


@pytest.fixture
def webvision(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sized(monkeypatch, "webvision", NUM_CLASSES=4, SIZE={"train": 5, "test": 4})
    sized(monkeypatch, "webvision_mini", NUM_CLASSES=2, SIZE={"train": 2, "test": 2})
    folder = imagenet.parent / "webvision"
    info = folder / "info"
    order = (1, 0, 2, 3)
    lines(info / "synsets.txt", *(f"{WNIDS[i]} {WORDS[i]}" for i in order))
    lines(info / "train_filelist_google.txt", "google/q0001/b.jpg 0", "google/q0001/a.jpg 1", "google/q0002/c.jpg 3")
    lines(info / "train_filelist_flickr.txt", "flickr/q0001/d.jpg 0", "flickr/q0003/e.jpg 2")
    lines(info / "val_filelist.txt", *(f"val{i:06}.jpg {label}" for i, label in enumerate((2, 1, 0, 3), 1)))
    for part in ("google", "flickr"):
        for row in (info / f"train_filelist_{part}.txt").read_text().split()[::2]:
            put(folder / row)
    for i in range(1, 5):
        put(folder / "val_images_256" / f"val{i:06}.jpg")
    return folder


def test_webvision_is_google_then_flickr(webvision: Path) -> None:
    data = module("webvision").load(webvision.parent)
    assert contents(data.train_images) == ["b.jpg", "a.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert data.train_labels.tolist() == [0, 1, 3, 0, 2]
    assert data.test_labels.tolist() == [2, 1, 0, 3]
    assert contents(data.test_images)[0] == "val000001.jpg"
    assert data.classes == (NAMES[1], NAMES[0], NAMES[2], NAMES[3])
    assert not data.clean_known


def test_webvision_mini_is_the_first_classes_of_google(webvision: Path) -> None:
    data = module("webvision_mini").load(webvision.parent)
    assert (contents(data.train_images), data.train_labels.tolist()) == (["b.jpg", "a.jpg"], [0, 1])
    assert (contents(data.test_images), data.test_labels.tolist()) == (["val000002.jpg", "val000003.jpg"], [1, 0])
    assert data.classes == ("goldfish", "tench")


@pytest.mark.parametrize(("name", "labels"), [("webvision", [1, 0, 2, 3]), ("webvision_mini", [1, 0])])
def test_ilsvrc12_is_evaluated_in_webvisions_classes(webvision: Path, name: str, labels: list[int]) -> None:
    found = module(name).load(webvision.parent).extra_test("ilsvrc12")
    assert found.labels.tolist() == labels
    assert contents(found.images) == [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, len(labels) + 1)]


def test_ilsvrc12_that_is_not_there_stops_that_evaluation_alone(webvision: Path, imagenet: Path) -> None:
    imagenet.rename(imagenet.with_name("elsewhere"))
    data = module("webvision_mini").load(webvision.parent)
    with pytest.raises(UserError, match=r"imagenet/val is missing"):
        data.extra_test("ilsvrc12")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "flickr/q0003/e.jpg").unlink(), "e.jpg"),
        (lambda f: lines(f / "info/train_filelist_google.txt", "google/q0001/b.jpg 4"), "line 1: no image and class"),
        (lambda f: lines(f / "info/train_filelist_google.txt", "google/q0001/b.jpg"), "line 1: no image and class"),
        (lambda f: lines(f / "info/train_filelist_google.txt", "google/q0001/b.jpg 0"), "3 images of 4 classes, not 5"),
        (lambda f: lines(f / "info/synsets.txt", WNIDS[0]), "synsets.txt lists 1 synsets, not 4"),
        (lambda f: (f / "flickr").rename(f / "flicker"), "flickr is missing; put google_resized_256.tar"),
    ],
)
def test_a_damaged_webvision_is_one_line(webvision: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(webvision)
    assert says in refusal("webvision", webvision.parent)


def test_webvision_is_unpacked_and_mini_needs_no_flickr(webvision: Path) -> None:
    packed = {"google": "google_resized_256", "val_images_256": "val_images_256", "info": "info"}
    for part, archive in packed.items():
        files = {str(file.relative_to(webvision)): file for file in sorted((webvision / part).rglob("*.*"))}
        put(webvision / f"{archive}.tar", tar_of({name: file.read_bytes() for name, file in files.items()}))
        (webvision / part).rename(webvision / f"old-{part}")
    (webvision / "flickr").rename(webvision / "old-flickr")
    module("webvision_mini").prepare(webvision.parent)
    assert contents(module("webvision_mini").load(webvision.parent).train_images) == ["b.jpg", "a.jpg"]
    assert "flickr is missing" in refusal("webvision", webvision.parent)


# ANIMAL-10N and Food-101N


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    sized(monkeypatch, "animal10n", SIZE={"train": 3, "test": 2})
    for part, names in (("training", ("3_7.jpg", "0_12.jpg", "9_1.jpg")), ("testing", ("1_5.jpg", "2_0.jpg"))):
        folder = tmp_path / "animal10n" / part
        folder.mkdir(parents=True)
        for name in names:
            Image.new("RGB", (64, 64), (20 * int(name[0]), 0, 0)).save(folder / name)
    return tmp_path / "animal10n"


def test_animal10n_is_labelled_by_its_file_names(animals: Path) -> None:
    data = module("animal10n").load(animals.parent)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 3, 9], [1, 2])
    assert data.train_images.shape == (3, 64, 64, 3)
    assert np.allclose(data.train_images[:, 0, 0, 0], [0, 60, 180], atol=4)
    assert not data.clean_known


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "training/3_7.jpg").unlink(), "training has 2 images (*.jpg), not 3"),
        (
            lambda f: (f / "training/3_7.jpg").rename(f / "training/wolf_7.jpg"),
            "name begins with no label",
        ),
        (lambda f: (f / "testing/1_5.jpg").write_bytes(b"no image"), "1_5.jpg is no whole image"),
    ],
)
def test_a_damaged_animal10n_is_one_line(animals: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(animals)
    assert says in refusal("animal10n", animals.parent)


@pytest.fixture
def food(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sized(monkeypatch, "food101n", NUM_CLASSES=2, SIZE={"train": 3, "test": 2})
    release, clean = tmp_path / "food-101n" / "Food-101N_release", tmp_path / "food-101"
    lines(release / "meta" / "classes.txt", "class_name", "waffles", "apple_pie")
    lines(release / "meta" / "imagelist.tsv", "class_name/key", "waffles/b.jpg", "apple_pie/a.jpg", "waffles/c.jpg")
    for row in ("waffles/b.jpg", "apple_pie/a.jpg", "waffles/c.jpg"):
        put(release / "images" / row)
    lines(clean / "meta" / "test.txt", "apple_pie/101", "waffles/102")
    for row in ("apple_pie/101.jpg", "waffles/102.jpg"):
        put(clean / "images" / row)
    return tmp_path


def check_food(data: ImageData) -> None:
    assert data.classes == ("apple_pie", "waffles")
    assert (contents(data.train_images), data.train_labels.tolist()) == (["b.jpg", "a.jpg", "c.jpg"], [1, 0, 1])
    assert (contents(data.test_images), data.test_labels.tolist()) == (["101.jpg", "102.jpg"], [0, 1])
    assert not data.clean_known


def test_food101n_is_tested_on_food101(food: Path) -> None:
    check_food(module("food101n").load(food))


def test_food101n_is_unpacked(food: Path) -> None:
    release = food / "food-101n" / "Food-101N_release"
    with zipfile.ZipFile(food / "food-101n" / "Food-101N_release.zip", "w") as packed:
        for file in sorted(release.rglob("*.*")):
            packed.write(file, file.relative_to(release.parent))
    release.rename(food / "old")
    with tarfile.open(food / "food-101.tar.gz", "w:gz") as tar:
        tar.add(food / "food-101", "food-101")
    (food / "food-101").rename(food / "old-101")
    module("food101n").prepare(food)
    check_food(module("food101n").load(food))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "food-101/images/waffles/102.jpg").unlink(), "102.jpg"),
        (lambda f: (f / "food-101/meta/test.txt").unlink(), "test.txt is missing"),
        (lambda f: lines(f / "food-101/meta/test.txt", "waffles/102"), "test.txt lists 1 images, not 2"),
        (lambda f: lines(f / "food-101/meta/test.txt", "pizza/1"), "'pizza/1' is in none of the 2 classes"),
        (lambda f: lines(f / "food-101n/Food-101N_release/meta/classes.txt", "waffles"), "lists 1 classes, not 2"),
    ],
)
def test_a_damaged_food101n_is_one_line(food: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(food)
    assert says in refusal("food101n", food)
