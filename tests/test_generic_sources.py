"""Anyone's own images, in class folders, in a list or in shards: the same dataset whichever way it is given."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from noisebench import label_rows
from noisebench.checks import check_dataset
from noisebench.data import ImageData
from noisebench.datasets import image_folder, image_list, webdataset
from noisebench.errors import UserError
from noisebench.image_data import is_encoded

SINGLE = "path,label,split\n1.jpg,dog,train\n2.jpg,cat,train\n3.jpg,cat,test\n4.jpg,dog,test\n"
SEVERAL = "path,label,split\n1.jpg,dog;cat,train\n2.jpg,ant,train\n3.jpg, cat ; dog,test\n4.jpg,ant,test\n"


def contents(data: ImageData, split: str) -> list[str]:
    images = getattr(data, f"{split}_images")
    assert is_encoded(images)
    return [images.encoded(i).decode() for i in range(len(images))]


def listed(folder: Path, text: str) -> Path:
    """A CSV, and images 1.jpg to 4.jpg beside it whose content is their name."""
    folder.mkdir(exist_ok=True)
    for i in range(1, 5):
        (folder / f"{i}.jpg").write_text(f"{i}.jpg")
    (folder / "list.csv").write_text(text)
    return folder / "list.csv"


def parquet(csv: Path, **columns: Sequence[Any]) -> Path:
    table = pytest.importorskip("pyarrow").table(columns)
    __import__("pyarrow.parquet").parquet.write_table(table, csv.with_suffix(".parquet"))
    return csv.with_suffix(".parquet")


def folders(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(Path(file).name)
    return root


def shards(root: Path, **samples: list[tuple[str, str]]) -> Path:
    """``root/PART-0.tar`` of (image, label)."""
    root.mkdir(exist_ok=True)
    for part, pairs in samples.items():
        with tarfile.open(root / f"{part}-0.tar", "w") as tar:
            for image, label in pairs:
                for name, content in ((image, image), (f"{Path(image).stem}.cls", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content.encode()))
    return root


# The same data in each form


def as_folder(root: Path) -> ImageData:
    files = ("train/dog/1.jpg", "train/cat/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg")
    return image_folder.load(None, path=folders(root, *files))


def as_list(root: Path) -> ImageData:
    return image_list.load(None, path=listed(root, SINGLE))


def as_parquet(root: Path) -> ImageData:
    path = listed(root, "")
    columns = {
        "path": [f"{i}.jpg" for i in range(1, 5)],
        "label": ["dog", "cat", "cat", "dog"],
        "split": ["train"] * 2 + ["test"] * 2,
    }
    return image_list.load(None, path=parquet(path, **columns))


def as_shards(root: Path) -> ImageData:
    made = shards(root, train=[("1.jpg", "dog"), ("2.jpg", "cat")], test=[("3.jpg", "0"), ("4.jpg", "1")])
    (made / "classes.txt").write_text("cat\ndog\n")
    return webdataset.load(None, path=made)


@pytest.mark.parametrize("load", [as_folder, as_list, as_parquet, as_shards])
def test_every_form_gives_the_same_dataset(load: Callable[[Path], ImageData], tmp_path: Path) -> None:
    data = load(tmp_path / "data")
    assert data.classes == ("cat", "dog")
    found = {
        (name, data.classes[int(label)]) for name, label in zip(contents(data, "train"), data.train_labels, strict=True)
    }
    assert found == {("1.jpg", "dog"), ("2.jpg", "cat")}
    assert contents(data, "test") == ["3.jpg", "4.jpg"]
    assert data.test_labels.tolist() == [0, 1]
    assert data.test_labels.dtype == np.int64
    assert data.clean_known
    assert not data.multilabel
    assert data.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("load", [as_folder, as_list, as_parquet, as_shards])
def test_every_form_passes_the_conformance_suite(load: Callable[[Path], ImageData], tmp_path: Path) -> None:
    module = SimpleNamespace(__name__="own", load=lambda root, download=False: load(tmp_path / "data"))
    check_dataset(module)


@pytest.mark.parametrize("source", [image_folder, image_list, webdataset])
def test_sources_say_that_they_take_a_path(source: Any) -> None:
    assert source.TAKES_PATH is True
    assert source.NOISE
    assert source.LICENCE
    assert source.SOURCE


# Several classes an image

MULTIHOT = [[0, 1, 1], [1, 0, 0]]


def several_as_list(root: Path) -> ImageData:
    return image_list.load(None, path=listed(root, SEVERAL))


def several_as_parquet(root: Path) -> ImageData:
    return image_list.load(
        None,
        path=parquet(
            listed(root, ""),
            path=[f"{i}.jpg" for i in range(1, 5)],
            labels=[["dog", "cat"], ["ant"], ["cat", "dog", "dog"], ["ant"]],
            split=["train"] * 2 + ["test"] * 2,
        ),
    )


def several_as_shards(root: Path) -> ImageData:
    made = shards(root, train=[("1.jpg", "dog;cat"), ("2.jpg", "ant")], val=[("3.jpg", "1;2"), ("4.jpg", "ant")])
    (made / "classes.txt").write_text("ant\ncat\ndog\n")
    return webdataset.load(None, path=made)


SEVERAL_FORMS = [several_as_list, several_as_parquet, several_as_shards]


@pytest.mark.parametrize("load", SEVERAL_FORMS)
def test_several_classes_an_image_are_multi_hot(load: Callable[[Path], ImageData], tmp_path: Path) -> None:
    data = load(tmp_path / "data")
    assert data.classes == ("ant", "cat", "dog")
    assert data.train_labels.dtype == np.uint8
    assert data.train_labels.tolist() == data.test_labels.tolist() == MULTIHOT
    assert data.multilabel


@pytest.mark.parametrize("load", SEVERAL_FORMS)
def test_where_multi_hot_is_too_large_labels_name_sets(
    load: Callable[[Path], ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(label_rows, "DENSE", 11)
    data = load(tmp_path / "data")
    assert data.label_sets is not None
    for labels in (data.train_labels, data.test_labels):
        assert labels.dtype == np.int64
        assert data.label_sets.multihot(torch.from_numpy(labels), 3).tolist() == MULTIHOT


def test_one_split_of_shards_with_lists_makes_both_multi_hot(tmp_path: Path) -> None:
    data = webdataset.load(None, path=shards(tmp_path, train=[("1.jpg", "0"), ("2.jpg", "1")], test=[("3.jpg", "3;1")]))
    assert data.train_labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert data.test_labels.tolist() == [[0, 1, 0, 1]]
    assert data.classes == ("0", "1", "2", "3")


# Lists


def test_noisy_labels_stand_beside_the_true_ones(tmp_path: Path) -> None:
    text = "path,split,noisy,label\n1.jpg,train,cat,dog\n2.jpg,train,cat,cat\n3.jpg,test,,cat\n4.jpg,test,,dog\n"
    data = image_list.load(None, path=listed(tmp_path, text))
    assert data.train_labels.tolist() == [1, 0]
    assert {name: labels.tolist() for name, labels in data.given_labels.items()} == {"noisy": [0, 0]}


def test_numbers_are_labels(tmp_path: Path) -> None:
    text = SINGLE.replace("dog", "10").replace("cat", "9")
    data = image_list.load(None, path=listed(tmp_path, text))
    assert data.train_labels.tolist() == [10, 9]
    assert data.classes == tuple(map(str, range(11)))


def test_a_list_that_changed_is_read_again(tmp_path: Path) -> None:
    path = listed(tmp_path, SINGLE)
    for place in (path, tmp_path):
        os.utime(place, (1e9, 1e9))
    image_list.load(None, path=path)
    path.write_text(SINGLE.replace("2.jpg,cat,train\n", ""))
    assert contents(image_list.load(None, path=path), "train") == ["1.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.jpg,dog\n", r"column split is missing; it has path, label"),
        ("path,split\n1.jpg,train\n", r"column label \(or labels, one of the two\) is missing"),
        ("", "column path is missing; it has none"),
        ("path,label,split\n", "names no image"),
        (SINGLE + "5.jpg,dog,test\n6.jpg,dog,test\n", r"2 of 6 images are missing, the first is .*/5\.jpg"),
        (SINGLE + "../x.jpg,dog,test\n", r"line 6: '\.\./x\.jpg' is no path below"),
        (SINGLE + "/x.jpg,dog,test\n", r"line 6: '/x\.jpg' is no path below"),
        (SINGLE + "1.jpg,dog,test\n", r"line 6: '1\.jpg' is there twice"),
        (SINGLE.replace("2.jpg,cat", "2.jpg,"), "line 3: the image has no label"),
        (SEVERAL.replace("2.jpg,ant", "2.jpg,;"), "line 3: the image has no label"),
        (SINGLE.replace("dog,train", "dog,trian"), r"line 2: split 'trian' is unknown; did you mean train"),
        (SINGLE.replace("test", "train"), "no row has the split 'test'"),
        (SINGLE + "\n5.jpg,dog\n", "line 7: not the 3 cells of the header"),
        (SINGLE + "5.jpg,dog,test,more\n", "line 6: not the 3 cells of the header"),
        (SINGLE + '"5.jpg,dog,test\n', "is no CSV file in UTF-8"),
        ("path,label,split,noisy\n1.jpg,dog;cat,train,dog\n", "column 'noisy' is for images of one label each"),
        ("path,label,split,noisy\n1.jpg,dog,train,\n", r"line 2: noisy: label '' is unknown"),
        (SINGLE.replace("dog", "99999999999").replace("cat", "0"), "class number 99999999999 is no label"),
    ],
)
def test_a_list_that_is_wrong_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = listed(tmp_path, text)
    for place in (path, tmp_path):
        os.utime(place, (1e9, 1e9))
    for _ in range(2):  # and no index of it is kept
        with pytest.raises(UserError, match=rf"list\.csv[:,]? {message}"):
            image_list.load(None, path=path)


def test_a_parquet_row_without_a_label_is_refused_by_number(tmp_path: Path) -> None:
    path = parquet(listed(tmp_path, ""), path=["1.jpg", "2.jpg"], labels=[["dog"], []], split=["train", "test"])
    with pytest.raises(UserError, match=r"list\.parquet, row 2: the image has no label"):
        image_list.load(None, path=path)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path, SINGLE)
    for name, message in {
        "none.csv": "is missing",
        "none.parquet": "is missing",
        "list.txt": r"the list must be a \.csv or \.parquet file",
        "bad.parquet": "is no Parquet file",
        "bad.csv": "is no CSV file in UTF-8",
    }.items():
        if not name.startswith("none"):
            (tmp_path / name).write_bytes(b"path,label,split\n\xff\xfe,1,train\n")
        with pytest.raises(UserError, match=rf"{name}:? {message}"):
            image_list.load(None, path=path.with_name(name))


# Folders and shards


def test_the_test_folder_has_the_same_classes(tmp_path: Path) -> None:
    root = folders(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg")
    with pytest.raises(UserError, match=r"test lacks 1 folder \('dog'\) of its 2 classes"):
        image_folder.load(None, path=root)
    folders(tmp_path, "test/dog/4.jpg", "test/emu/5.jpg")
    with pytest.raises(UserError, match=r"test has 1 folder \('emu'\) of no class"):
        image_folder.load(None, path=root)


@pytest.mark.parametrize("files", [(), ("train/cat/1.jpg",), ("val/cat/1.jpg",)])
def test_a_folder_without_both_splits_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"must hold train/CLASS/ and val/CLASS/ or test/CLASS/ folders"):
        image_folder.load(None, path=folders(tmp_path, *files))


def test_shards_without_both_splits_or_with_a_class_twice_are_refused(tmp_path: Path) -> None:
    root = shards(tmp_path, train=[("1.jpg", "0")])
    with pytest.raises(UserError, match=r"must hold shards train-\*\.tar, and val-\*\.tar or test-\*\.tar"):
        webdataset.load(None, path=root)
    shards(tmp_path, val=[("2.jpg", "0")])
    (root / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(UserError, match=r"classes\.txt: class 'cat' is there twice"):
        webdataset.load(None, path=root)
