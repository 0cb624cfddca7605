"""Classes that are synsets: ImageNet-21k in tars of one class each, and what WordNet says stands above them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from publishers import NAMES, WNIDS, WORDS, contents, lines, module, put, refusal, sized, tar_of

from noisebench.errors import UserError
from noisebench.wordnet import names_of, with_ancestors, words_of

# ImageNet-21k


@pytest.fixture
def imagenet21k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tars of 100 images each of animal > fish > tench, and of crane, which is an animal and a machine."""
    sized(monkeypatch, "imagenet21k", NUM_CLASSES=4)
    folder = tmp_path / "imagenet21k"
    for wnid in ("n00000001", "n00000003", "n00000004", "n00000005"):
        put(folder / f"{wnid}.tar", tar_of({f"{wnid}_{k}.JPEG": f"{wnid}_{k}".encode() for k in range(100)}))
    pairs = [("0", "1"), ("1", "2"), ("2", "3"), ("3", "4"), ("1", "5"), ("6", "5")]
    lines(folder / "wordnet.is_a.txt", *(f"n{a:0>8} n{b:0>8}" for a, b in pairs))
    lines(folder / "words.txt", "n00000001\tanimal, beast", "n00000003\tfish", "n00000004\ttench", "n00000005\tcrane")
    return folder


def test_imagenet21k_is_multilabel_by_the_hierarchy(imagenet21k: Path) -> None:
    data = module("imagenet21k").load(imagenet21k.parent)
    assert data.multilabel
    assert data.classes == ("animal", "fish", "tench", "crane")
    assert data.label_sets is not None
    rows = data.label_sets.multihot(torch.arange(4), 4).tolist()
    assert rows == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]  # n00000002 is passed through


def test_imagenet21k_is_split_once_and_for_all(imagenet21k: Path) -> None:
    data = module("imagenet21k").load(imagenet21k.parent)
    train, test = contents(data.train_images), contents(data.test_images)
    assert len(train) + len(test) == 400
    assert 6 <= len(test) <= 28  # 16 are expected
    assert len({*train, *test}) == 400
    again = module("imagenet21k").load(imagenet21k.parent)
    assert contents(again.test_images) == test
    for name, label in zip(train + test, [*data.train_labels, *data.test_labels], strict=True):
        assert name.startswith(("n00000001", "n00000003", "n00000004", "n00000005")[label])


def test_imagenet21k_may_be_unpacked_into_folders(imagenet21k: Path) -> None:
    packed = module("imagenet21k").load(imagenet21k.parent)
    for archive in sorted(imagenet21k.glob("*.tar")):
        with tarfile.open(archive) as tar:
            for member in tar:
                found = tar.extractfile(member)
                assert found
                put(imagenet21k / archive.stem / member.name, found.read())
        archive.unlink()
    data = module("imagenet21k").load(imagenet21k.parent)
    assert data.classes == packed.classes
    assert len(data.train_labels) == len(packed.train_labels)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "n00000004.tar").unlink(), "has 3 tars (WNID.tar), not the 4 of fall 2011"),
        (lambda f: (f / "n00000004.tar").write_bytes((f / "n00000004.tar").read_bytes()[:2000]), "n00000004.tar"),
        (lambda f: (f / "n00000004.tar").write_bytes(b"\x1f\x8b" * 512), "n00000004.tar is compressed (gzip)"),
        (lambda f: put(f / "n00000004.tar", tar_of({"list.txt": b"1"})), "n00000004.tar holds no image"),
        (lambda f: lines(f / "wordnet.is_a.txt", "n00000000 n00000001"), "lacks 3 of the 4 classes, e.g. n00000003"),
        (lambda f: lines(f / "wordnet.is_a.txt", "n00000000"), "line 1: 'n00000000' is no pair"),
    ],
)
def test_a_damaged_imagenet21k_is_one_line(imagenet21k: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(imagenet21k)
    assert says in refusal("imagenet21k", imagenet21k.parent)


# WordNet


def test_a_synset_above_itself_is_refused(tmp_path: Path) -> None:
    lines(tmp_path / "is_a.txt", "n00000001 n00000002", "n00000002 n00000003", "n00000003 n00000001")
    with pytest.raises(UserError, match="a synset stands above itself"):
        with_ancestors(["n00000001"], tmp_path / "is_a.txt")


@given(st.data())
def test_a_set_is_what_can_be_reached_upwards(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 8))
    above = np.triu(np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size),
                                                min_size=size, max_size=size))), 1)  # fmt: skip
    above[np.arange(size - 1), np.arange(1, size)] = True  # so that all are in the file
    wnids = [f"n{i:08}" for i in range(size)]
    file = tmp_path_factory.mktemp("wordnet") / "is_a.txt"
    lines(file, *(f"{wnids[a]} {wnids[b]}" for a, b in np.argwhere(above)))
    kept = data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    reached = np.linalg.matrix_power(above.astype(int) + np.eye(size, dtype=int), size) > 0
    rows = with_ancestors([wnids[i] for i in kept], file).multihot(torch.arange(len(kept)), len(kept))
    assert np.array_equal(rows.numpy() > 0, reached[np.ix_(kept, kept)].T)


def test_names_are_the_first_words(tmp_path: Path) -> None:
    lines(tmp_path / "words.txt", *(f"{wnid}\t{words}" for wnid, words in zip(WNIDS, WORDS, strict=True)))
    assert names_of(WNIDS, words_of(tmp_path / "words.txt")) == NAMES
    assert names_of(["n00000007"], {}) == ("n00000007",)
