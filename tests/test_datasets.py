"""The shipped datasets: what they hold, and how a missing, damaged or forged file is refused.

Tests of real files need NOISEBENCH_DATA, a folder in torchvision's layout; the others make their own tiny files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import pickle
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisebench.checks import check_dataset
from noisebench.errors import UserError
from noisebench.torchvision_data import load_idx

NAMES = ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"]
CONSTANTS = ["CLASSES", "NUM_CLASSES", "CLASS_MAP", "MEAN", "STD", "LICENCE", "SOURCE"]
FOLDERS = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw", "cifar10": "cifar-10-batches-py"}

# The coarse label of each fine label, as stored in the authors' files (and in CIFAR-100N's `clean_coarse_label`).
COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14,
    13,
]  # fmt: skip


def dataset(name: str) -> ModuleType:
    return importlib.import_module(f"noisebench.datasets.{name}")


def real_root(name: str) -> Path:
    root = os.environ.get("NOISEBENCH_DATA")
    if not root:
        pytest.skip("NOISEBENCH_DATA is not set: no real files to read")
    if not (Path(root) / FOLDERS[name]).is_dir():
        pytest.skip(f"NOISEBENCH_DATA has no {FOLDERS[name]}")
    return Path(root)


def refusal(name: str, root: Path | None, **options: Any) -> str:
    """The message with which `name` refuses to load; always one line."""
    with pytest.raises(UserError) as caught:
        dataset(name).load(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What the files say of themselves


@pytest.mark.parametrize("name", NAMES)
def test_constants_can_be_read_without_importing(name: str) -> None:
    module = dataset(name)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    literals = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert set(CONSTANTS) <= set(literals)
    assert len(set(literals["CLASSES"])) == literals["NUM_CLASSES"]
    assert len(literals["MEAN"]) == len(literals["STD"])
    assert (ast.get_docstring(tree) or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_map_never_maps_a_class_to_itself(name: str) -> None:
    module = dataset(name)
    assert module.CLASS_MAP
    for true, taken_for in module.CLASS_MAP.items():
        assert true != taken_for
        assert {true, taken_for} <= set(range(module.NUM_CLASSES))


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("digits", "7>1, 2>7, 5>6, 6>5, 3>8"),
        ("mnist", "7>1, 2>7, 5>6, 6>5, 3>8"),
        ("cifar10", "truck>automobile, bird>airplane, cat>dog, dog>cat, deer>horse"),
        ("fashion_mnist", "Ankle boot>Sneaker, Sneaker>Sandal, Pullover>Shirt, Coat>Dress, Dress>Coat"),
    ],
)
def test_class_maps_are_the_published_ones(name: str, flips: str) -> None:
    module = dataset(name)
    assert {f"{module.CLASSES[a]}>{module.CLASSES[b]}" for a, b in module.CLASS_MAP.items()} == set(flips.split(", "))


def test_cifar100_superclasses_are_the_true_ones() -> None:
    module = dataset("cifar100")
    coarse = {fine: index for index, fines in enumerate(module.SUPERCLASSES.values()) for fine in fines}
    assert list(module.CLASSES) == sorted(module.CLASSES)
    assert [coarse[fine] for fine in module.CLASSES] == COARSE
    assert {len(fines) for fines in module.SUPERCLASSES.values()} == {5}


def test_cifar100_flips_go_round_each_superclass() -> None:
    flip = dataset("cifar100").CLASS_MAP
    assert sorted(flip) == sorted(flip.values()) == list(range(100))
    for superclass in range(20):
        members = [fine for fine in range(100) if COARSE[fine] == superclass]
        assert [flip[fine] for fine in members] == members[1:] + members[:1]


# Digits: always there


def test_digits_have_the_promised_shapes_and_statistics() -> None:
    data = dataset("digits").load(None)
    assert data.train_images.shape == (1200, 8, 8, 1)
    assert data.test_images.shape == (597, 8, 8, 1)
    assert (data.train_images.min(), data.train_images.max()) == (0, 240)
    pixels = data.train_images / 255
    assert data.mean == (round(float(pixels.mean()), 4),)
    assert data.std == (round(float(pixels.std()), 4),)


def test_digits_split_is_stratified_and_never_changes() -> None:
    data = dataset("digits").load(None)
    train, test = np.bincount(data.train_labels), np.bincount(data.test_labels)
    assert np.all(np.abs(train - (train + test) * 1200 / 1797) <= 1)
    found = hashlib.sha256(data.train_images.tobytes() + data.train_labels.astype("<i8").tobytes()).hexdigest()
    assert found == "f3cca0a5b3b71e6d5de753f1064e759947e2951834e024252ddfbb64883c523f"


def test_digits_are_all_of_scikit_learns_once() -> None:
    from sklearn.datasets import load_digits

    data = dataset("digits").load(None)
    ours = np.concatenate([data.train_images, data.test_images]).reshape(1797, 64) // 15
    labels = np.concatenate([data.train_labels, data.test_labels])
    pixels, targets = load_digits(return_X_y=True)
    assert sorted(map(tuple, np.c_[ours, labels])) == sorted(map(tuple, np.c_[pixels, targets].astype(int)))


# Multi digits: made of digits


def tiles_of(images: np.ndarray) -> np.ndarray:
    """[N, 16, 16, 1] -> [N, 4, 64]."""
    return images.reshape(-1, 2, 8, 2, 8).swapaxes(2, 3).reshape(-1, 4, 64)


def test_multi_digits_are_tiles_of_digits_and_their_labels_those_of_the_tiles() -> None:
    multi, digits = dataset("multi_digits"), dataset("digits").load(None)
    data = multi.load(None)
    assert (True, 10, data.classes) == (multi.MULTILABEL, multi.NUM_CLASSES, multi.CLASSES)
    assert data.train_images.shape == (2000, 16, 16, 1)
    assert data.test_images.shape == (1000, 16, 16, 1)
    for images, labels, sources, classes in (
        (data.train_images, data.train_labels, digits.train_images, digits.train_labels),
        (data.test_images, data.test_labels, digits.test_images, digits.test_labels),
    ):
        known = {image.tobytes(): int(c) for image, c in zip(sources, classes, strict=True)}  # of this split alone
        empty = bytes(64)
        for tiles, label in zip(tiles_of(images), labels, strict=True):
            present = {known[tile.tobytes()] for tile in tiles if tile.tobytes() != empty}
            assert set(np.flatnonzero(label)) == present
        filled = (tiles_of(images).max(axis=2) > 0).sum(axis=1)
        assert filled.mean() == pytest.approx(2, abs=0.1)
        assert set(filled) == {0, 1, 2, 3, 4}
    assert not {i.tobytes() for i in digits.train_images} & {i.tobytes() for i in digits.test_images}


def test_multi_digits_never_change() -> None:
    data = dataset("multi_digits").load(None)
    pixels = data.train_images / 255
    assert data.mean == (round(float(pixels.mean()), 4),)
    assert data.std == (round(float(pixels.std()), 4),)
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    found = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    assert found == "9beaef36169860c0d6ceb3da86d23574f37613df92df0725603514dedd0f862a"


# Shapes: drawn, to be outliers for digits


def test_shapes_are_of_the_size_and_range_of_digits_and_share_no_class_with_them() -> None:
    shapes, digits = (dataset(name).load(None) for name in ("shapes", "digits"))
    for name in ("train_images", "test_images"):
        mine, theirs = getattr(shapes, name), getattr(digits, name)
        assert mine.shape == theirs.shape
        assert set(np.unique(mine)) <= set(np.unique(theirs))
    assert not set(shapes.classes) & set(digits.classes)
    drawn = [image.tobytes() for image in (*shapes.train_images, *shapes.test_images)]
    assert len(set(drawn)) == len(drawn)


def test_shapes_never_change() -> None:
    data = dataset("shapes").load(None)
    pixels = data.train_images / 255
    assert data.mean == (round(float(pixels.mean()), 4),)
    assert data.std == (round(float(pixels.std()), 4),)
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    found = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    assert found == "c18aa6a1707f0dd8e44296f68a63b47e57d90a91a78abbf8ec7cf28b36cf0d50"


def test_every_shipped_dataset_that_is_here_conforms() -> None:
    for name in ("digits", "multi_digits", "shapes"):
        check_dataset(dataset(name))


# Files in MNIST's format, made here


def idx_files(folder: Path, train: int = 5, test: int = 3) -> dict[str, str]:
    """Four small idx files of 2x4 images; returns their MD5 sums."""
    folder.mkdir(parents=True, exist_ok=True)
    md5 = {}
    for part, count in (("train", train), ("t10k", test)):
        pixels = np.arange(count * 8, dtype=np.uint8)
        images = b"\0\0\x08\x03" + np.array([count, 2, 4], ">u4").tobytes() + pixels.tobytes()
        labels = b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(range(count))
        for file, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / file).write_bytes(content)
            md5[file] = hashlib.md5(content).hexdigest()
    return md5


def test_idx_files_are_read_in_order(tmp_path: Path) -> None:
    md5 = idx_files(tmp_path / "MNIST" / "raw")
    splits = load_idx("MNIST", tmp_path, False, md5)
    assert splits.train_images.shape == (5, 2, 4, 1)
    assert splits.test_images.shape == (3, 2, 4, 1)
    assert splits.train_images[1].ravel().tolist() == list(range(8, 16))
    assert splits.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert splits.train_labels.dtype == np.int64


@given(st.data())
def test_no_changed_byte_and_no_cut_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("root")
    md5 = idx_files(root / "MNIST" / "raw")
    path = root / "MNIST" / "raw" / data.draw(st.sampled_from(sorted(md5)))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} has {len(content)} bytes and MD5 .*--download"):
        load_idx("MNIST", root, False, md5)


# What is refused


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_a_root_the_error_names_the_variable(name: str) -> None:
    message = refusal(name, None)
    assert "--data-root" in message
    assert "NOISEBENCH_DATA" in message


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_root_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} is no folder" in refusal(name, tmp_path / "absent")
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is no folder" in refusal(name, tmp_path / "file", download=True)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
    ],
)
def test_a_missing_file_is_named(name: str, missing: str, tmp_path: Path) -> None:
    message = refusal(name, tmp_path)
    assert f"{tmp_path / missing} is missing" in message
    assert "--download" in message


class Forged:
    """What a forged pickle would run."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("cifar10", "cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]),
        ("cifar100", "cifar-100-python", ["train", "test", "meta"]),
    ],
)
def test_a_forged_pickle_is_never_opened(name: str, folder: str, files: list[str], tmp_path: Path) -> None:
    witness = tmp_path / "pwned"
    (tmp_path / folder).mkdir()
    for file in files:
        (tmp_path / folder / file).write_bytes(pickle.dumps(Forged(witness)))
    assert f"{tmp_path / folder / files[0]} has" in refusal(name, tmp_path)
    assert not witness.exists()
    pickle.loads((tmp_path / folder / files[0]).read_bytes())
    assert witness.exists(), "the forgery itself must work, or this test shows nothing"


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize("damage", ["cut", "changed", "absent"])
def test_the_damaged_file_of_a_real_cifar10_is_named(file: str, damage: str, tmp_path: Path) -> None:
    source, copy = real_root("cifar10") / FOLDERS["cifar10"], tmp_path / FOLDERS["cifar10"]
    copy.mkdir()
    for path in source.iterdir():
        if path.name != file:
            (copy / path.name).symlink_to(path)
    content = bytearray((source / file).read_bytes())
    content[-1] ^= 1
    if damage != "absent":
        (copy / file).write_bytes(content if damage == "changed" else content[:-1])
    assert str(copy / file) in refusal("cifar10", tmp_path)


# SVHN, in files made here


def mat_files(root: Path) -> dict[str, str]:
    """A tiny train_32x32.mat and test_32x32.mat; returns their MD5 sums."""
    from scipy.io import savemat

    md5 = {}
    for part, count in (("train", 5), ("test", 3)):
        pixels = np.arange(count * 32 * 32 * 3, dtype=np.int64).astype(np.uint8).reshape(count, 32, 32, 3)
        labels = np.array([[10], [1], [9], [10], [5]][:count], dtype=np.uint8)
        file = root / f"{part}_32x32.mat"
        savemat(file, {"X": pixels.transpose(1, 2, 3, 0), "y": labels})
        md5[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    return md5


def test_svhn_is_read_with_ten_as_class_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svhn = dataset("svhn")
    monkeypatch.setattr(svhn, "MD5", mat_files(tmp_path))
    data = svhn.load(tmp_path)
    assert data.train_labels.tolist() == [0, 1, 9, 0, 5]
    assert data.test_labels.tolist() == [0, 1, 9]
    assert (data.train_images.shape, data.test_images.shape) == ((5, 32, 32, 3), (3, 32, 32, 3))
    assert data.train_images[0, 0, :2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert data.train_images.flags.c_contiguous


def test_svhn_missing_or_damaged_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'train_32x32.mat'} is missing" in refusal("svhn", tmp_path)
    assert "NOISEBENCH_DATA" in refusal("svhn", None)
    mat_files(tmp_path)
    assert "not the published e26dedcc434d2e4c54c9b2d4a06d8373" in refusal("svhn", tmp_path)


def test_svhn_sums_are_torchvisions() -> None:
    from torchvision.datasets import SVHN

    assert {file: md5 for _, file, md5 in SVHN.split_list.values()}.items() >= dataset("svhn").MD5.items()


# TinyImageNet, in a tree made here


@pytest.fixture
def tiny_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of two 64x64 images each, one of them grey, and three validation images."""
    from PIL import Image

    module = dataset("tinyimagenet")
    for name, value in {"NUM_CLASSES": 2, "PER_CLASS": 2, "TEST": 3}.items():
        monkeypatch.setattr(module, name, value)
    folder = tmp_path / "tiny-imagenet-200"

    def save(file: Path, level: int, mode: str = "RGB") -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (64, 64), (level, 0, 255) if mode == "RGB" else level).save(file, "JPEG")

    for i, wnid in enumerate(("n02", "n01")):
        for k in range(2):
            save(folder / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 100 * i + 40 * k, "RGB" if i or k else "L")
    for k in range(3):
        save(folder / "val" / "images" / f"val_{k}.JPEG", 60 * k)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\n")
    boxes = [f"val_{k}.JPEG\t{wnid}\t0\t0\t9\t9" for k, wnid in enumerate(("n02", "n01", "n02"))]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(boxes) + "\n")
    return folder


def test_tinyimagenet_is_read_by_its_lists(tiny_tree: Path) -> None:
    data = dataset("tinyimagenet").load(tiny_tree.parent)
    assert data.classes == ("goldfish", "crane")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [1, 0, 1]
    assert (data.train_images.shape, data.test_images.shape) == ((4, 64, 64, 3), (3, 64, 64, 3))
    assert np.allclose(data.train_images[1, 5, 5], (140, 0, 255), atol=4)
    assert np.ptp(data.train_images[2], axis=-1).max() == 0  # the grey one
    assert np.allclose(data.test_images[2, 5, 5], (120, 0, 255), atol=4)


def test_tinyimagenet_is_decoded_once_and_again_when_its_files_change(tiny_tree: Path) -> None:
    from PIL import Image

    load = dataset("tinyimagenet").load
    first = np.array(load(tiny_tree.parent).train_images)
    made = sorted(tiny_tree.glob("noisebench-train-*.npy"))
    stamp = made[0].stat().st_mtime_ns
    assert np.array_equal(load(tiny_tree.parent).train_images, first)
    assert made[0].stat().st_mtime_ns == stamp
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tiny_tree / "train" / "n01" / "images" / "n01_0.JPEG", "JPEG")
    assert not np.array_equal(load(tiny_tree.parent).train_images[0], first[0])
    assert len(sorted(tiny_tree.glob("*train*.npy"))) == 1
    assert sorted(tiny_tree.glob("*train*.npy")) != made


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def shrink(file: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 64)).save(file, "JPEG")


@pytest.mark.parametrize(
    ("path", "damage", "says"),
    [
        ("train/n01/images/n01_1.JPEG", cut, "n01_1.JPEG is no whole image"),
        ("train/n01/images/n01_1.JPEG", Path.unlink, "images has 1 images (*.JPEG), not 2"),
        ("train/n01/images/n01_1.JPEG", shrink, "n01_1.JPEG is 64x32, not 64x64"),
        ("train/n01/images/n01_1.JPEG", lambda file: file.write_bytes(b""), "n01_1.JPEG is no whole image"),
        ("val/images/val_1.JPEG", Path.unlink, "val_1.JPEG is missing; val_annotations.txt, line 2 names it"),
        ("val/val_annotations.txt", Path.unlink, "val_annotations.txt is missing"),
        (
            "val/val_annotations.txt",
            lambda file: file.write_text("val_0.JPEG n02\n"),
            "line 1: no image and WordNet id",
        ),
        (
            "val/val_annotations.txt",
            lambda file: file.write_text("../x.JPEG\tn02\n"),
            "line 1: no image and WordNet id",
        ),
        ("val/val_annotations.txt", lambda file: file.write_text("val_0.JPEG\tn02\n"), "lists 1 images in 1 lines"),
        ("wnids.txt", lambda file: file.write_text("n01\n"), "wnids.txt lists 1 ids, not 2"),
        ("words.txt", lambda file: file.write_bytes(b"\xff\xfe\xfa"), "words.txt cannot be read"),
    ],
)
def test_a_damaged_tinyimagenet_is_one_line_and_leaves_nothing_half_made(
    path: str, damage: Any, says: str, tiny_tree: Path
) -> None:
    damage(tiny_tree / path)
    assert says in refusal("tinyimagenet", tiny_tree.parent)
    assert not list(tiny_tree.glob(".*"))


def test_a_damaged_copy_of_tinyimagenet_is_named(tiny_tree: Path) -> None:
    dataset("tinyimagenet").load(tiny_tree.parent)
    (copy,) = tiny_tree.glob("noisebench-test-*.npy")
    cut(copy)
    assert f"{copy} is damaged; delete it" in refusal("tinyimagenet", tiny_tree.parent)


def test_tinyimagenet_that_is_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    assert "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip" in refusal("tinyimagenet", tmp_path, download=True)
    assert "NOISEBENCH_DATA" in refusal("tinyimagenet", None)


# Download


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network\nat all")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    message = refusal(name, tmp_path / "new", download=True)
    assert "could not be downloaded" in message
    assert "no network at all" in message


def test_a_download_fills_the_folder_and_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = idx_files(tmp_path / "server")

    def fetch(url: str, download_root: str, filename: str, **_: Any) -> None:
        shutil.copy(tmp_path / "server" / filename.removesuffix(".gz"), download_root)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    root = tmp_path / "new"
    assert len(load_idx("MNIST", root, True, md5).train_labels) == 5
    with pytest.raises(UserError, match="not the published"):
        load_idx("MNIST", root, True, {file: "0" * 32 for file in md5})


# The real files


@pytest.mark.parametrize(
    ("name", "shape", "train", "labels"),
    [
        ("mnist", (28, 28, 1), 60000, [5, 0, 4, 1, 9]),
        ("fashion_mnist", (28, 28, 1), 60000, [9, 0, 0, 3, 0]),
        ("cifar10", (32, 32, 3), 50000, [6, 9, 9, 4, 1]),
    ],
)
def test_real_files_are_what_they_should_be(name: str, shape: tuple[int, ...], train: int, labels: list[int]) -> None:
    data = dataset(name).load(real_root(name))
    assert data.train_images.shape == (train, *shape)
    assert data.test_images.shape == (10000, *shape)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels[:5].tolist() == labels
    assert set(data.test_labels) == set(range(10))
    pixels = data.train_images.reshape(train, -1, shape[2]) if name != "cifar10" else data.train_images
    axes = tuple(range(pixels.ndim - 1))
    assert np.allclose(pixels.mean(axis=axes) / 255, data.mean, atol=1e-4)
    if name != "cifar10":  # whose usual values are another statistic, as its file says
        assert np.allclose(pixels.std(axis=axes) / 255, data.std, atol=1e-4)


def test_real_cifar10_is_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    root = real_root("cifar10")
    data, train, test = dataset("cifar10").load(root), CIFAR10(root, train=True), CIFAR10(root, train=False)
    assert np.array_equal(data.train_images, train.data)
    assert np.array_equal(data.test_images, test.data)
    assert data.train_labels.tolist() == train.targets
    assert data.test_labels.tolist() == test.targets
    assert list(data.classes) == train.classes


def test_fashion_classes_are_torchvisions() -> None:
    from torchvision.datasets import FashionMNIST

    assert list(dataset("fashion_mnist").CLASSES) == FashionMNIST.classes
