"""The index of an image folder: what it lists, when it is made anew, and what it refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisebench import _index_store
from noisebench.errors import UserError
from noisebench.image_index import FileImages, Listed, Names, list_folders, list_lines

LONG_AGO = 1_000_000_000
"""In seconds. A folder that changed within the last two may change again with the same time stamp."""


def tree(root: Path, *files: str) -> Path:
    """Files whose content is their path."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    return root


def settle(root: Path) -> Path:
    """Let everything below `root` have changed long ago; the index aside."""
    for folder, _, files in os.walk(root):
        if ".noisebench" not in folder:
            for place in [*(Path(folder, file) for file in files), Path(folder)]:
                os.utime(place, (LONG_AGO, LONG_AGO))
    return root


def contents(listed: Listed) -> list[tuple[str, int]]:
    return [(listed.images.encoded(i).decode(), int(label)) for i, label in enumerate(listed.labels)]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which indexes were written since."""
    written: list[str] = []
    write = _index_store._write

    def counted(file: Path, *arguments: Any) -> None:
        written.append(file.name)
        write(file, *arguments)

    monkeypatch.setattr(_index_store, "_write", counted)
    return written


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return settle(
        tree(tmp_path / "animals", "cat/2.jpg", "cat/1.JPEG", "cat/.hidden.jpg", "cat/notes.txt", "dog/3.png")
    )


# Names


@given(st.lists(st.text(st.characters(), max_size=20), max_size=20), st.data())
def test_names_are_what_was_put_in_even_where_it_is_no_unicode(names: list[str], data: st.DataObject) -> None:
    packed = Names.of(iter(names))
    assert list(packed) == names
    assert len(packed) == len(names)
    if names:
        assert packed[-1] == names[-1]
        at = data.draw(st.lists(st.integers(0, len(names) - 1)))
        assert list(packed.take(np.array(at, np.int64))) == [names[i] for i in at]
        assert list(pickle.loads(pickle.dumps(packed))) == names


@pytest.mark.parametrize("i", [2, -3])
def test_a_place_beyond_the_names_is_an_index_error(i: int) -> None:
    with pytest.raises(IndexError, match=rf"{i} is not among 2"):
        Names.of(["a", "b"])[i]
    with pytest.raises(IndexError, match=r"not in 0\.\.1"):
        Names.of(["a", "b"]).take(np.array([i]))


# Folders


def test_folders_are_classes_and_images_are_sorted_within(animals: Path) -> None:
    listed = list_folders(animals)
    assert listed.classes == ("cat", "dog")
    assert contents(listed) == [("cat/1.JPEG", 0), ("cat/2.jpg", 0), ("dog/3.png", 1)]
    assert listed.labels.dtype == np.int64
    assert listed.images.name(2) == f"{animals}/dog/3.png"
    assert listed.label_sets is None


def test_classes_that_are_given_have_their_labels_in_that_order(animals: Path) -> None:
    assert contents(list_folders(animals, ["dog", "cat"])) == [("dog/3.png", 0), ("cat/1.JPEG", 1), ("cat/2.jpg", 1)]
    assert list_folders(animals).classes == ("cat", "dog")


def test_images_may_lie_in_a_folder_within_their_class(tmp_path: Path) -> None:
    tree(tmp_path, "a/images/1.jpg", "a/boxes.txt", "b/images/1.jpg")
    assert contents(list_folders(tmp_path, inner="images")) == [("a/images/1.jpg", 0), ("b/images/1.jpg", 1)]
    assert contents(list_folders(tmp_path, inner="images", suffixes=[".jpg"]))


def test_a_part_of_a_part_is_taken(animals: Path) -> None:
    images = list_folders(animals).images
    part = images.take(np.array([2, 0, 0]))
    assert isinstance(part, FileImages)
    assert part.names is images.names, "names are shared"
    assert [part.encoded(i).decode() for i in range(3)] == ["dog/3.png", "cat/1.JPEG", "cat/1.JPEG"]
    assert [part.take(np.array([1])).encoded(0)] == [b"cat/1.JPEG"]
    with pytest.raises(IndexError, match=r"not in 0\.\.2"):
        part.take(np.array([3]))


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        tree(tmp_path, "a/1.jpg")
        (tmp_path / "a" / name).write_bytes(b"found")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert list_folders(tmp_path).images.encoded(1) == b"found"


def test_an_image_that_is_gone_is_named_when_it_is_read(animals: Path) -> None:
    images = list_folders(animals).images
    (animals / "dog/3.png").unlink()
    with pytest.raises(UserError, match=r"animals/dog/3\.png is missing"):
        images.encoded(2)


# When the index is made anew


def test_the_index_is_built_once(animals: Path, builds: list[str]) -> None:
    first, again = list_folders(animals), list_folders(animals)
    assert len(builds) == 1
    assert contents(first) == contents(again)
    assert list(first.images.names) == list(again.images.names)
    assert again.images.names.text.base is not None, "mapped, not read"


CHANGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, int]]]] = {
    "an image more": (
        lambda root: tree(root, "dog/4.png"),
        [("cat/1.JPEG", 0), ("cat/2.jpg", 0), ("dog/3.png", 1), ("dog/4.png", 1)],
    ),
    "an image less": (lambda root: (root / "cat/2.jpg").unlink(), [("cat/1.JPEG", 0), ("dog/3.png", 1)]),
    "a class more": (
        lambda root: tree(root, "ant/5.png"),
        [("ant/5.png", 0), ("cat/1.JPEG", 1), ("cat/2.jpg", 1), ("dog/3.png", 2)],
    ),
    "a class less": (
        lambda root: ((root / "dog/3.png").unlink(), (root / "dog").rmdir()),
        [("cat/1.JPEG", 0), ("cat/2.jpg", 0)],
    ),
    "a class of another name": (
        lambda root: (root / "cat").rename(root / "emu"),
        [("dog/3.png", 0), ("cat/1.JPEG", 1), ("cat/2.jpg", 1)],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_folders_is_noticed(animals: Path, change: str) -> None:
    list_folders(animals)
    apply, expected = CHANGES[change]
    apply(animals)
    listed = list_folders(animals)
    assert [label for _, label in expected] == listed.labels.tolist()
    if change != "a class of another name":  # its images still say the old one
        assert contents(listed) == expected


def test_a_folder_that_changed_this_moment_is_listed_anew_at_every_opening(tmp_path: Path, builds: list[str]) -> None:
    tree(tmp_path, "a/1.jpg")
    list_folders(tmp_path)
    stamp = (tmp_path / "a").stat().st_mtime_ns
    tree(tmp_path, "a/2.jpg")
    os.utime(tmp_path / "a", ns=(stamp, stamp))  # as where the clock of the file system has not moved on
    assert len(list_folders(tmp_path).images) == 2


def damaged(content: bytes, how: str) -> bytes:
    if how == "a flipped bit":
        return content[:-1] + bytes([content[-1] ^ 1])
    if how == "a flipped bit of the header":
        return content[:60] + bytes([content[60] ^ 1]) + content[61:]
    return {"empty": b"", "truncated": content[:-70], "only its start": content[:25], "something else": b"x" * 999}[how]


@pytest.mark.parametrize(
    "how", ["empty", "truncated", "only its start", "something else", "a flipped bit", "a flipped bit of the header"]
)
def test_a_damaged_index_is_made_anew(animals: Path, builds: list[str], how: str) -> None:
    expected = contents(list_folders(animals))
    (index,) = (animals / ".noisebench").glob("*.index")
    index.write_bytes(damaged(index.read_bytes(), how))
    assert contents(list_folders(animals)) == expected
    assert len(builds) == 2
    list_folders(animals)
    assert len(builds) == 2, "and the new one is whole"


def test_an_index_survives_a_new_one_that_takes_its_place(animals: Path) -> None:
    before = list_folders(animals)
    tree(animals, "cat/0.jpg")
    list_folders(animals)
    assert before.images.name(0) == f"{animals}/cat/1.JPEG"


def test_a_kill_while_the_index_is_written_leaves_the_next_opening_whole(animals: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from noisebench import _index_store, image_index\n"
        "_index_store.os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "image_index.list_folders(Path(sys.argv[1]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(animals)], check=False)
    assert ended.returncode != 0
    assert list((animals / ".noisebench").glob(".*.index.*")), "the kill came too early"
    assert len(list_folders(animals).images) == 3
    assert not list((animals / ".noisebench").glob(".*.index.*")), "nothing of the killed process is left"


def test_of_openings_at_once_one_builds(animals: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write = _index_store._write
    monkeypatch.setattr(_index_store, "_write", lambda *arguments: (time.sleep(0.05), write(*arguments)))
    found: list[int] = []
    openings = [threading.Thread(target=lambda: found.append(len(list_folders(animals).images))) for _ in range(4)]
    for one in openings:
        one.start()
    for one in openings:
        one.join()
    assert found == [3] * 4
    assert len(builds) == 1


def test_where_the_folder_cannot_be_written_the_index_is_in_the_cache(
    animals: Path, tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (animals / ".noisebench").write_text("a file, so that no folder can be made")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert contents(list_folders(animals)) == contents(list_folders(animals))
    assert len(builds) == 1
    assert list((tmp_path / "cache" / "noisebench").glob("*/*.index"))
    (tmp_path / "cache").rename(tmp_path / "other")
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"the index of .*animals cannot be written: .*; make one of them writable"):
        list_folders(animals)


# Folders that are refused


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat"], r"animals has 1 folder \('dog'\) of no class; move"),
        (["ant", "bee", "cat", "dog"], r"animals lacks 2 folders \('ant', 'bee'\) of its 4 classes"),
        (["cat", "cat"], "class 'cat' is given twice"),
    ],
)
def test_a_folder_too_many_or_missing_is_refused(animals: Path, classes: Sequence[str], message: str) -> None:
    list_folders(animals)
    with pytest.raises(UserError, match=message):
        list_folders(animals, classes)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is missing"):
        list_folders(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no folder; give each class's images a folder"):
        list_folders(tmp_path)
    tree(tmp_path, "a/1.jpg", "b/readme.txt")
    with pytest.raises(UserError, match=r"b holds no image \(\.jpg, .*\); put"):
        list_folders(tmp_path)
    with pytest.raises(UserError, match=r"a/images is missing"):
        list_folders(tmp_path, inner="images")
    with pytest.raises(UserError, match=r"1\.jpg is no folder"):
        list_folders(tmp_path / "a/1.jpg")


def test_a_folder_among_images_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "a/more/2.jpg")
    with pytest.raises(UserError, match=r"a/more is a folder among a class's images"):
        list_folders(tmp_path)


def test_an_unreadable_folder_is_refused(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refusing(folder: Path) -> Any:
        if Path(folder).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"cat cannot be read: Permission denied"):
        list_folders(animals)


# Lists


def lines(animals: Path, pairs: list[tuple[str, int]], **options: Any) -> Listed:
    listing = animals / "list.txt"
    if not listing.exists():
        listing.write_text("as the publisher has it")
        settle(animals)
    return list_lines(animals, [listing], lambda: pairs, ("x", "y"), **options)


def test_a_list_gives_order_and_labels(animals: Path) -> None:
    listed = lines(animals, [("dog/3.png", 1), ("./cat/../cat/2.jpg", 0)])
    assert contents(listed) == [("dog/3.png", 1), ("cat/2.jpg", 0)]
    assert listed.images.name(1) == f"{animals}/cat/2.jpg"
    assert listed.classes == ("x", "y")


def test_a_list_is_read_once_and_again_when_it_changes(animals: Path, builds: list[str]) -> None:
    pairs = [("dog/3.png", 1), ("cat/2.jpg", 0)]
    lines(animals, pairs)
    assert len(lines(animals, [("not", 9)]).images) == 2
    assert len(builds) == 1
    (animals / "list.txt").write_text("another size")
    assert len(lines(animals, pairs[:1]).images) == 1


def test_an_image_that_goes_missing_later_is_noticed(animals: Path) -> None:
    pairs = [("dog/3.png", 1), ("cat/2.jpg", 0)]
    lines(animals, pairs)
    (animals / "cat/2.jpg").unlink()
    with pytest.raises(UserError, match=r"list\.txt: 1 of 2 images are missing, the first is .*cat/2\.jpg"):
        lines(animals, pairs)


def test_parts_of_one_list_have_indexes_of_their_own(animals: Path, builds: list[str]) -> None:
    for _ in range(2):
        assert contents(lines(animals, [("dog/3.png", 1)], part="train")) == [("dog/3.png", 1)]
        assert contents(lines(animals, [("cat/2.jpg", 0)], part="test")) == [("cat/2.jpg", 0)]
    assert len(builds) == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [("dog/3.png", 1), ("a.jpg", 0), ("no/b.jpg", 0)],
            r"2 of 3 images are missing, the first is .*animals/a\.jpg",
        ),
        ([("/etc/passwd", 0)], r"image 1: '/etc/passwd' is no path below .*animals; give relative paths"),
        ([("dog/3.png", 1), ("cat/../../b.jpg", 0)], r"image 2: 'cat/\.\./\.\./b\.jpg' is no path below"),
        ([("..", 0)], "is no path below"),
        ([("", 0)], "image 1: '' is no path below"),
        ([("dog/3.png", 0), ("dog/./3.png", 0)], r"image 2: 'dog/\./3\.png' is there twice"),
        ([("dog", 0)], "1 of 1 images are missing"),
        ([("dog/3.png", 2)], r"'dog/3\.png' has class 2; labels are in 0\.\.1"),
        ([("dog/3.png", -1)], "has class -1"),
        ([], "names no image"),
    ],
)
def test_a_list_that_does_not_fit_its_folder_is_refused(
    animals: Path, pairs: list[tuple[str, int]], message: str
) -> None:
    with pytest.raises(UserError, match=rf"animals/list\.txt:? .*{message}|list\.txt: {message}"):
        lines(animals, pairs)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt is missing"):
        list_lines(tmp_path, [tmp_path / "list.txt"], lambda: [("a", 0)], ("x",))
