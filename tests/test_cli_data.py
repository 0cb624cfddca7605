"""`noisebench data` and `noisebench list datasets`, on a dataset of another distribution: equal to a built-in."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import noisebench

from noisebench import loading, registry
from noisebench.checks import check_dataset, sample_data
from noisebench.errors import UserError
from noisebench.image_data import ExtraTest
from noisebench.verifying import prepare, verify

ONE, TWO, MORE = b"images" * 9, b"labels", b"opinions"
MD5 = {name: hashlib.md5(content).hexdigest() for name, content in (("one", ONE), ("more", MORE))}
PLUGIN = f'''\
"""Mine: 96 training and 40 test images."""

from pathlib import Path

import numpy as np

from noisebench.archives import unpack
from noisebench.checks import sample_data
from noisebench.errors import UserError

NUM_CLASSES = 4
LICENCE = "CC0"
SOURCE = "https://example.org/mine"
SIZE = {{"train": 96, "test": 40}}
NOISE = "about half, from the web"
FILES = {{"mine.zip": "", "mine/one.bin": "{MD5["one"]}", "mine/two.bin": ""}}
EXTRA_FILES = {{"more/opinions.bin": "{MD5["more"]}"}}


def load(root, download=False):
    from dataclasses import replace
    from noisebench.image_data import ExtraTest

    if (Path(root) / "mine" / "two.bin").read_bytes() != b"labels":
        raise UserError("Mine: two.bin lists a missing image")

    def people():
        if not (Path(root) / "more" / "opinions.bin").exists():
            raise UserError("Mine: opinions.bin is missing")
        return ExtraTest(labels=np.zeros(40, np.int64))

    return replace(sample_data(), extra_tests={{"people": people}})


def prepare(root):
    unpack(root / "mine.zip", root / "mine")
'''


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The dataset `mine`, of a distribution on sys.path."""
    site = tmp_path / "site"
    metadata = site / "noisebench_mine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: noisebench-mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[noisebench.datasets]\nmine = plug_mine\nother = plug_other\n")
    (site / "plug_mine.py").write_text(PLUGIN)
    (site / "plug_other.py").write_text('"""Other."""\n\nSIZE = "large"\nTAKES_PATH = True\n')
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("NOISEBENCH_DATA", raising=False)
    registry._registry.cache_clear()
    loading.whole_dataset.cache_clear()
    yield
    registry._registry.cache_clear()
    loading.whole_dataset.cache_clear()
    for module in ("plug_mine", "plug_other"):
        sys.modules.pop(module, None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the archive alone."""
    folder = tmp_path / "data"
    folder.mkdir()
    with zipfile.ZipFile(folder / "mine.zip", "w") as archive:
        archive.writestr("one.bin", ONE)
        archive.writestr("two.bin", TWO)
    return folder


@pytest.fixture
def prepared(root: Path) -> Path:
    prepare("mine", root)
    return root


def statuses(root: Path | None, name: str = "mine") -> dict[str, str]:
    return {file.file: file.status for file in verify(name, root).files}


# verify


def test_a_whole_dataset_is_verified(prepared: Path) -> None:
    ran = noisebench("data", "verify", "mine", "--data-root", prepared)
    assert (ran.code, ran.err) == (0, "")
    assert "ok   mine/one.bin" in ran.out
    assert f"?    mine/two.bin\n     no checksum is published; SHA-256 {hashlib.sha256(TWO).hexdigest()}" in ran.out
    assert "ok   loads: 96 training and 40 test images, 4 classes" in ran.out
    assert "-    further test people\n     Mine: opinions.bin is missing" in ran.out


def test_an_archive_is_not_needed_once_it_is_unpacked(prepared: Path) -> None:
    (prepared / "mine.zip").unlink()
    assert statuses(prepared)["mine.zip"] == "not needed"
    assert verify("mine", prepared).ok


def test_an_archive_alone_does_not_pass(root: Path) -> None:
    found = verify("mine", root)
    assert not found.ok
    assert statuses(root)["mine/one.bin"] == "missing"


def test_a_changed_file_fails_with_both_checksums(prepared: Path) -> None:
    (prepared / "mine" / "one.bin").write_bytes(ONE + b"!")
    ran = noisebench("data", "verify", "mine", "--data-root", prepared)
    assert ran.code == 1
    assert ran.err == "error: mine failed verification: mine/one.bin is changed\n"
    found = hashlib.md5(ONE + b"!").hexdigest()
    assert f"FAIL mine/one.bin\n     MD5 {found} (55 bytes), published is {MD5['one']}; delete it" in ran.out
    assert "not tried: mine/one.bin is changed" in ran.out, "a changed file is not opened"


def test_a_missing_file_fails_and_says_where_to_get_it(prepared: Path) -> None:
    (prepared / "mine" / "two.bin").unlink()
    ran = noisebench("data", "verify", "mine", "--data-root", prepared)
    assert ran.code == 1
    assert "FAIL mine/two.bin\n     is missing" in ran.out
    assert "get it from https://example.org/mine" in ran.out


def test_what_load_refuses_fails(prepared: Path) -> None:
    (prepared / "mine" / "two.bin").write_bytes(b"other")
    ran = noisebench("data", "verify", "mine", "--data-root", prepared)
    assert ran.code == 1
    assert ran.err == "error: mine failed verification: Mine: two.bin lists a missing image\n"


def test_a_plug_in_that_raises_anything_fails_in_one_line(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(root: Path, download: bool = False) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(importlib.import_module("plug_mine"), "load", load)
    assert verify("mine", prepared).reason == "RuntimeError: two lines"


def test_files_of_further_tests_may_be_missing_but_not_changed(prepared: Path) -> None:
    more = prepared / "more" / "opinions.bin"
    assert statuses(prepared)["more/opinions.bin"] == "not needed"
    more.parent.mkdir()
    more.write_bytes(MORE)
    found = verify("mine", prepared)
    assert (found.ok, found.further) == (True, {"people": ""})
    more.write_bytes(b"changed")
    assert statuses(prepared)["more/opinions.bin"] == "changed"
    assert not verify("mine", prepared).ok


def test_a_further_test_that_does_not_fit_fails_where_its_files_are(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prepared / "more").mkdir()
    (prepared / "more" / "opinions.bin").write_bytes(MORE)
    short = replace(sample_data(), extra_tests={"people": lambda: ExtraTest(labels=np.zeros(3, np.int64))})
    module = importlib.import_module("plug_mine")
    monkeypatch.setattr(module, "load", lambda root, download=False: short)
    ran = noisebench("data", "verify", "mine", "--data-root", prepared)
    assert ran.code == 1
    assert "FAIL further test people" in ran.out


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_cannot_be_read_fails(prepared: Path) -> None:
    (prepared / "mine" / "one.bin").chmod(0)
    assert statuses(prepared)["mine/one.bin"] == "unreadable"


def test_verify_as_json(prepared: Path) -> None:
    ran = noisebench("data", "verify", "mine", "--data-root", prepared, "--json")
    found = json.loads(ran.out)
    assert (found["dataset"], found["root"], found["ok"]) == ("mine", str(prepared), True)
    assert found["files"][1] == {
        "file": "mine/one.bin",
        "status": "ok",
        "published": MD5["one"],
        "found": MD5["one"],
        "size": len(ONE),
        "reason": "",
    }


def test_a_dataset_without_files_says_so_and_needs_no_root() -> None:
    ran = noisebench("data", "verify", "digits@300")
    assert (ran.code, ran.err) == (0, "")
    assert "it has no files with a checksum" in ran.out
    assert "1,200 training and 597 test images" in ran.out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("verify", "mine"), "mine needs a data folder; set --data-root"),
        (("prepare", "mine"), "mine needs a data folder; set --data-root"),
        (("verify", "mine", "--data-root", "gone"), "gone is no folder"),
        (("verify", "mien"), "dataset 'mien' is unknown; did you mean mine"),
        (("prepare", "mien"), "dataset 'mien' is unknown; did you mean mine"),
        (("verify", "image_folder"), "dataset 'image_folder': write image_folder:PATH"),
        (("prepare", "image_folder"), "dataset 'image_folder': write image_folder:PATH"),
        (("verify", "image_folder:gone"), "dataset 'image_folder:gone': there is no "),
        (("verify", "digits:gone"), "dataset 'digits:gone': write digits, without a path"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(argv: tuple[str, ...], says: str) -> None:
    ran = noisebench("data", *argv)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_every_shipped_checksum_has_the_form_of_one() -> None:
    for name, entry in registry.datasets().entries.items():
        files = entry.constants.get("FILES", {}) | entry.constants.get("EXTRA_FILES", {})
        assert all(md5 == "" or (len(md5) == 32 and int(md5, 16) >= 0) for md5 in files.values()), name
        assert not any(Path(file).is_absolute() for file in files), name


def test_the_real_files_are_the_published_ones(data_root: str) -> None:
    found = verify("mnist", Path(data_root))
    if any(file.status == "missing" for file in found.files):
        pytest.skip("NOISEBENCH_DATA has no MNIST")
    assert found.ok


# prepare


def test_prepare_unpacks_once(root: Path) -> None:
    ran = noisebench("data", "prepare", "mine", "--data-root", root)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "mine is prepared: checking mine.zip, unpacking mine.zip\n"
    assert (root / "mine" / "one.bin").read_bytes() == ONE
    again = noisebench("data", "prepare", "mine", "--data-root", root)
    assert (again.code, again.out) == (
        0,
        "mine: there is nothing to unpack or to convert; noisebench data verify mine checks what is there\n",
    )


def test_prepare_compares_an_archive_before_it_is_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("plug_mine")
    monkeypatch.setattr(module, "FILES", module.FILES | {"mine.zip": "0" * 32})
    ran = noisebench("data", "prepare", "mine", "--data-root", root)
    found = hashlib.md5((root / "mine.zip").read_bytes()).hexdigest()
    assert (ran.code, ran.out) == (2, "")
    assert f"{root / 'mine.zip'} has " in ran.err
    assert f"MD5 {found}, not the published {'0' * 32}; delete it" in ran.err
    assert not (root / "mine").exists()
    monkeypatch.setitem(module.FILES, "mine.zip", found)
    assert prepare("mine", root).done == ("reading mine.zip", "checking mine.zip", "unpacking mine.zip")
    (root / "mine.zip").write_bytes(b"changed later")
    assert prepare("mine", root).done == (), "it is unpacked, and not read again"


def test_prepare_as_json(root: Path) -> None:
    found = json.loads(noisebench("data", "prepare", "mine", "--data-root", root, "--json").out)
    assert found["done"] == ["checking mine.zip", "unpacking mine.zip"]
    assert found["missing"] == []


def test_what_prepare_refuses_is_one_line_with_the_files_name(root: Path) -> None:
    (root / "mine.zip").write_bytes(b"a page")
    ran = noisebench("data", "prepare", "mine", "--data-root", root)
    assert ran.code == 2
    assert f"{root / 'mine.zip'} is damaged or no archive" in ran.err
    assert not (root / "mine").exists()


def test_a_dataset_that_is_not_packed_says_what_is_missing_and_where_it_is(root: Path) -> None:
    ran = noisebench("data", "prepare", "svhn", "--data-root", root)
    assert (ran.code, ran.out) == (1, "")
    assert "train_32x32.mat and 1 more missing" in ran.err
    assert "get it from http://ufldl.stanford.edu/housenumbers" in ran.err
    assert noisebench("data", "prepare", "digits") == (
        0,
        "digits: there is nothing to unpack or to convert; noisebench data verify digits checks what is there\n",
        "",
    )


def test_tinyimagenet_is_unpacked_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    module = importlib.import_module("noisebench.datasets.tinyimagenet")
    for name, value in {"NUM_CLASSES": 2, "PER_CLASS": 1, "TEST": 2}.items():
        monkeypatch.setattr(module, name, value)
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 99, 199)).save(jpeg, "JPEG")
    top = "tiny-imagenet-200/"
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{top}wnids.txt", "n02\nn01\n")
        archive.writestr(f"{top}words.txt", "n01\tcat\nn02\tdog\n")
        archive.writestr(f"{top}val/val_annotations.txt", "a.JPEG\tn02\t0\nb.JPEG\tn01\t0\n")
        for name in ("train/n01/images/1", "train/n02/images/1", "val/images/a", "val/images/b"):
            archive.writestr(f"{top}{name}.JPEG", jpeg.getvalue())
    zipped = "tiny-imagenet-200.zip"
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip has .* not the published 90528d7ca1a48142e341f4ef8d"):
        prepare("tinyimagenet", tmp_path)
    monkeypatch.setitem(module.FILES, zipped, hashlib.md5((tmp_path / zipped).read_bytes()).hexdigest())
    first = prepare("tinyimagenet", tmp_path)
    assert [what.split()[0] for what in first.done] == ["reading", "checking", "unpacking", "decoding"]
    assert first.missing == ()
    assert prepare("tinyimagenet", tmp_path).done == ()
    assert module.load(tmp_path).test_labels.tolist() == [1, 0]


# list datasets


def test_the_list_of_datasets_says_all_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = noisebench("list", "datasets")
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    mine = lines.index("mine Mine: 96 training and 40 test images.")
    assert lines[mine + 1 : mine + 7] == [
        "images 96 train + 40 test",
        "classes 4",
        "noise about half, from the web",
        "licence CC0",
        "from https://example.org/mine",
        "plug-in noisebench-mine",
    ]
    assert "other:PATH Other." in lines, "a constant of a wrong type spoils no list"
    assert "plug_mine" not in sys.modules, "listing imports nothing"


def test_the_list_of_datasets_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(noisebench("list", "datasets", "--json").out)["datasets"]}
    keys = {"name", "summary", "origin", "size", "classes", "multilabel", "noise", "licence", "source", "takes_path"}
    assert all(set(row) == keys | {"files"} for row in rows.values())
    assert rows["mine"]["size"] == {"train": 96, "test": 40}
    assert rows["mine"]["files"]["mine/one.bin"] == MD5["one"]
    assert rows["other"]["size"] is None
    assert rows["multi_digits"]["multilabel"]


def test_every_shipped_dataset_says_its_noise_licence_and_source() -> None:
    for row in json.loads(noisebench("list", "datasets", "--json").out)["datasets"]:
        if row["origin"] == "noisebench":
            assert all(row[key] for key in ("summary", "noise", "licence", "source")), row["name"]
            assert row["size"] or row["takes_path"], row["name"]


def test_the_list_of_everything_stays_a_line_a_name() -> None:
    text = noisebench("list").out
    assert "licence" not in text
    assert "Mine: 96 training and 40 test images.  (noisebench-mine)" in text


# check


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"SIZE": {"train": 95, "test": 40}}, "SIZE is {'train': 95, 'test': 40}, but the data's is {'train': 96,"),
        ({"NOISE": "two\nlines"}, "give one line"),
        ({"NOISE": None}, "NOISE is None; give one line"),
        ({"FILES": ["a"]}, "FILES is list; give {path below the data root: MD5}"),
        ({"FILES": {"a": "ABC"}}, "FILES: 'a' has 'ABC'; give its MD5"),
        ({"FILES": {"../a": ""}}, "FILES: '../a' is no path below the data root"),
        ({"EXTRA_FILES": {"/a": ""}}, "EXTRA_FILES: '/a' is no path below"),
    ],
)
def test_constants_that_do_not_fit_fail_the_check(constants: dict[str, Any], says: str) -> None:
    right = {"SIZE": {"train": 96, "test": 40}, "NOISE": "none known", "FILES": {"a": "", "b": "0" * 32}}

    def outcomes(**constants: Any) -> list[str]:
        module = SimpleNamespace(load=lambda root, download=False: sample_data(), **constants)
        return [o.detail for o in check_dataset(module, raise_on_failure=False) if o.status == "failed"]

    assert outcomes(**right) == []
    (detail,) = outcomes(**(right | constants))
    assert says in detail
