"""WebDataset shards: which images and labels they hold, read by any process, and what is refused."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisebench import _index_images
from noisebench.errors import UserError
from noisebench.image_data import LabelSets
from noisebench.image_index import TarImages
from noisebench.image_shards import list_shards

LONG_AGO = 1_000_000_000
"""In seconds: a shard that changed within the last two is read at every opening."""


def shard(file: Path, *samples: tuple[str, bytes], **options: Any) -> Path:
    """A tar of (name, content)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **options) as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    os.utime(file, (LONG_AGO, LONG_AGO))
    return file


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [
        shard(tmp_path / "0.tar", ("a.jpg", b"first"), ("a.cls", b"1"), ("b.cls", b" 0\n"), ("b.png", b"second" * 200)),
        shard(tmp_path / "1.tar", ("x/a.json", b'{"label": 2, "size": [3]}'), ("x/a.JPG", b""), ("README", b"")),
    ]


def test_shards_give_images_and_labels_in_their_order(shards: list[Path]) -> None:
    written = []
    for _ in range(2):
        listed = list_shards(shards)
        written += [file.stat().st_mtime_ns for file in (shards[0].parent / ".noisebench").glob("*.index")]
        assert [listed.images.encoded(i) for i in range(3)] == [b"first", b"second" * 200, b""]
        assert listed.labels.tolist() == [1, 0, 2]
        assert listed.classes == ("0", "1", "2")
        assert listed.label_sets is None
        assert listed.images.name(2) == f"{shards[1]}: x/a.JPG"
    assert written[0] == written[1], "the headers are read once"
    assert isinstance(listed.images, TarImages)
    part = listed.images.take(np.array([1, 0])).take(np.array([1]))
    assert isinstance(part, TarImages)
    assert part.encoded(0) == b"first"
    assert (listed.images.shard.dtype, listed.images.size.dtype) == (np.int32, np.int32)


def test_labels_may_be_names(tmp_path: Path) -> None:
    files = [
        shard(tmp_path / "0.tar", ("a.jpg", b""), ("a.cls", b"dog"), ("b.jpg", b""), ("b.json", b'{"label":"cat"}'))
    ]
    assert list_shards(files, ["cat", "dog"]).labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"0\.tar: a\.jpg: label 'dog' is no class number"):
        list_shards(files)
    with pytest.raises(UserError, match=r"0\.tar: b\.jpg: label 'cat' is unknown; did you mean cats"):
        list_shards(files, ["cats", "dog"])


def test_a_label_in_a_list_makes_all_of_them_sets(tmp_path: Path) -> None:
    files = [
        shard(
            tmp_path / "0.tar",
            *(("a.jpg", b""), ("a.cls", b"1"), ("b.jpg", b""), ("b.cls", b"2;0"), ("c.jpg", b"")),
            *(("c.json", b'{"label": [0, 2]}'), ("d.jpg", b""), ("d.json", b'{"label": [1]}')),
        )
    ]
    listed = list_shards(files)
    assert listed.label_sets is not None
    assert listed.labels.tolist() == [0, 1, 1, 0]
    assert [one.tolist() for one in listed.label_sets] == [[0, 1, 3], [1, 0, 2]]
    LabelSets(*listed.label_sets).check(3)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "f" * 90 + "/" + "g" * 50 + "/", "é/"])
def test_every_form_of_tar_is_read_as_tarfile_reads_it(tmp_path: Path, form: int, folder: str) -> None:
    names = [f"{folder}{'n' * length}.jpg" for length in (1, 50, 94)]
    if form != tarfile.USTAR_FORMAT:
        names.append(folder + "m" * 200 + ".jpg")
    files = [(name, name.encode()) for name in names]
    pairs = [pair for file in files for pair in (file, (file[0][:-3] + "cls", b"0"))]
    made = shard(tmp_path / "0.tar", *pairs, format=form)
    images = list_shards([made]).images
    assert [images.names[i] for i in range(len(images))] == names
    assert [images.encoded(i).decode() for i in range(len(images))] == names


def test_links_and_folders_in_a_shard_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "0.tar"
    with tarfile.open(file, "w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("s.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
        for name, content in (("a.jpg", b"image"), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    images = list_shards([file]).images
    assert [images.encoded(i) for i in range(len(images))] == [b"image"]


def test_a_shard_of_another_time_is_read_again(shards: list[Path]) -> None:
    list_shards(shards)
    shard(shards[1], ("z.jpg", b"new"), ("z.cls", b"0"))
    os.utime(shards[1], (LONG_AGO + 1, LONG_AGO + 1))
    listed = list_shards(shards)
    assert listed.images.encoded(2) == b"new"
    assert listed.classes == ("0", "1")


IMAGE, LABEL = ("a.jpg", b"image"), ("a.cls", b"0")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([IMAGE], r"sample 'a' has no label; give it a \.cls"),
        ([LABEL], r"sample 'a' has 0 images \(its files: \.cls\); give it one"),
        ([IMAGE, ("a.png", b""), LABEL], r"sample 'a' has 2 images \(its files: \.jpg, \.png, \.cls\)"),
        ([IMAGE, LABEL, IMAGE], r"sample 'a' has two files \.jpg"),
        ([IMAGE, LABEL, ("b.jpg", b""), ("b.cls", b"0"), IMAGE], "sample 'a' is there twice"),
        ([IMAGE, ("a.cls", b"")], r"a\.jpg: the image has no label"),
        ([IMAGE, ("a.cls", b";")], r"a\.jpg: the image has no label"),
        ([IMAGE, ("a.json", b'{"label": []}')], r"a\.jpg: the image has no label"),
        ([IMAGE, ("a.cls", b"-1")], "label '-1' is no class number"),
        ([IMAGE, ("a.cls", b"\xff")], r"a\.cls cannot be read"),
        ([IMAGE, ("a.json", b"{")], r"a\.json cannot be read"),
        ([IMAGE, ("a.json", b"{}")], '"label" must be a class\'s number or name'),
        ([IMAGE, ("a.json", b'{"label": 1.5}')], '"label" must be a class\'s number or name'),
        ([("README", b"")], "no sample of an image and its label"),
    ],
)
def test_a_sample_that_is_none_is_refused(tmp_path: Path, samples: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(UserError, match=rf"0\.tar: .*{message}"):
        list_shards([shard(tmp_path / "0.tar", *samples)])


def test_a_shard_that_cannot_be_read_singly_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "0.tar", IMAGE, LABEL, ("b.jpg", b"x" * 2000), ("b.cls", b"1")).read_bytes()
    cases = {
        whole[:3000]: "is truncated: it has 3000 bytes, and a file in it ends at ",
        whole[:2048]: "is truncated: it ends at byte 2048 without the mark of its end",
        whole[:1100]: "is truncated",
        whole[:1030] + b"?" + whole[1031:]: "is damaged at byte 1024, or no tar file",
        b"no tar at all" * 99: "is damaged at byte 0, or no tar file",
        b"": "is truncated",
    }
    for content, message in cases.items():
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(UserError, match=rf"0\.tar {message}"):
            list_shards([tmp_path / "0.tar"])
    with tarfile.open(tmp_path / "0.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match=r"0\.tar is compressed \(gzip\); unpack it"):
        list_shards([tmp_path / "0.tar"])
    with pytest.raises(UserError, match=r"1\.tar is missing"):
        list_shards([tmp_path / "1.tar"])


def test_a_shard_that_shrinks_under_a_run_is_named(shards: list[Path]) -> None:
    images = list_shards(shards).images
    shards[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.tar is shorter than it was"):
        images.encoded(1)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"1\.tar is missing"):
        images.encoded(2)


def _read_all(images: TarImages, expected: list[bytes]) -> None:
    for _ in range(200):
        assert [images.encoded(i) for i in range(len(images))] == expected


def test_forked_processes_and_threads_read_the_same_shards(shards: list[Path]) -> None:
    images, expected = list_shards(shards).images, [b"first", b"second" * 200, b""]
    assert isinstance(images, TarImages)
    _read_all(images, expected)  # so that the files are open before the fork
    forked = [multiprocessing.get_context("fork").Process(target=_read_all, args=(images, expected)) for _ in range(2)]
    for one in forked:
        one.start()
    _read_all(images, expected)
    for one in forked:
        one.join()
    assert [one.exitcode for one in forked] == [0, 0]
    _read_all(pickle.loads(pickle.dumps(images)), expected)


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_index_images, "_OPEN_SHARDS", 2)
    images = list_shards([shard(tmp_path / f"{i}.tar", IMAGE, LABEL) for i in range(5)]).images
    assert isinstance(images, TarImages)
    for _ in range(2):
        assert {images.encoded(i) for i in range(5)} == {b"image"}
    held = list(images._open._idle.values())
    assert len(held) == 2
    del images
    for handle in held:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
