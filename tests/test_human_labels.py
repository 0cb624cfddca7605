"""Labels that people gave: their rates on the real files, their proven order, how a wrong or forged file is refused.

Tests of real files need NOISEBENCH_DATA; the others make their own, beside images that are all black.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisebench.checks import check_dataset
from noisebench.config import load_benchmark
from noisebench.errors import UserError
from noisebench.image_data import ExtraTest, ImageData
from noisebench.label_files import LabelFile, check_same, corrected_test, people_test, pickled_columns

Columns = dict[str, Any]
IntArray = npt.NDArray[np.int64]
COUNT = 200
REVERSED = object()
SOURCE = "https://github.com/UCSC-REAL/cifar-10-100n"


def module(name: str) -> ModuleType:
    return importlib.import_module(f"noisebench.datasets.{name}")


def black(labels: IntArray, num_classes: int) -> ImageData:
    """A dataset of black images with these labels."""
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    return ImageData(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        num_classes=num_classes,
        classes=tuple(map(str, range(num_classes))),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        class_map={0: 1},
    )


def saved(path: Path, content: bytes) -> LabelFile:
    """A file of that content, which passes as the publisher's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return LabelFile(path, hashlib.md5(content).hexdigest(), SOURCE)


def torch_bytes(value: Any, folder: Path) -> bytes:
    torch.save(value, folder / "made.pt")
    return (folder / "made.pt").read_bytes()


def refusal(call: Callable[[], object]) -> str:
    """The message of the refusal; always one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The real files


@pytest.fixture(scope="module")
def root() -> Path:
    given_root = os.environ.get("NOISEBENCH_DATA")
    if not given_root or not (Path(given_root) / "cifar-n").is_dir():
        pytest.skip("NOISEBENCH_DATA is not set or has no cifar-n: no real files to read")
    return Path(given_root)


@pytest.fixture(scope="module")
def cifar10n(root: Path) -> ImageData:
    data = module("cifar10n").load(root)
    assert isinstance(data, ImageData)
    return data


@pytest.mark.parametrize(
    ("name", "percent"), [("aggre", 9.01), ("random1", 17.23), ("random2", 18.12), ("random3", 17.64), ("worse", 40.21)]
)
def test_so_many_labels_of_cifar10n_are_wrong(cifar10n: ImageData, name: str, percent: float) -> None:
    assert round(100 * float((cifar10n.given_labels[name] != cifar10n.train_labels).mean()), 2) == percent


def test_worse_is_a_wrong_one_of_the_three_where_there_is_one(cifar10n: ImageData) -> None:
    sets, true = cifar10n.given_labels, cifar10n.train_labels
    three = np.stack([sets[f"random{k}"] for k in (1, 2, 3)])
    assert ((sets["worse"] != true) == (three != true).any(0)).all()
    assert (three == sets["worse"]).any(0).all()
    two_agree = (three[0] == three[1]) | (three[0] == three[2]) | (three[1] == three[2])
    assert ((three == sets["aggre"]).sum(0) >= 2)[two_agree].all()


@pytest.mark.parametrize(
    ("dataset", "labels", "percent"), [("cifar100n", "fine", 40.20), ("cifar100n_coarse", "coarse", 26.40)]
)
def test_so_many_labels_of_cifar100n_are_wrong(
    root: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, labels: str, percent: float
) -> None:
    fine = module("cifar100n")
    file = LabelFile(root / fine.HUMAN, fine.FILES[fine.HUMAN], SOURCE)
    clean = pickled_columns(file, {"clean_label": 100}, 50_000)["clean_label"]  # the images are not needed for this
    monkeypatch.setattr(module(dataset), "load_clean", lambda *_: black(clean, 100))
    data = module(dataset).load(root)
    assert set(data.given_labels) == {labels}
    assert round(100 * float((data.given_labels[labels] != data.train_labels).mean()), 2) == percent


def test_what_people_said_of_the_test_images(cifar10n: ImageData) -> None:
    soft = cifar10n.extra_test("people").soft
    assert soft is not None
    assert soft.shape == (10_000, 10)
    assert int((soft.argmax(1) == cifar10n.test_labels).sum()) == 9921


@pytest.mark.parametrize(("dataset", "corrected", "left_out"), [("cifar10n", 18, 36), ("mnist", 10, 5)])
def test_checked_labels_of_the_test_images(
    root: Path, request: pytest.FixtureRequest, dataset: str, corrected: int, left_out: int
) -> None:
    data = request.getfixturevalue("cifar10n") if dataset == "cifar10n" else module(dataset).load(root)
    test = data.extra_test("corrected")
    assert int((test.labels != data.test_labels).sum()) == corrected
    assert int((~test.keep).sum()) == left_out
    assert test.keep[test.labels != data.test_labels].all()


def test_cifar10n_has_the_images_and_tests_of_cifar10(root: Path, cifar10n: ImageData) -> None:
    plain = module("cifar10").load(root)
    assert np.array_equal(np.asarray(plain.train_images), np.asarray(cifar10n.train_images))
    assert set(plain.extra_tests) == set(cifar10n.extra_tests) == {"people", "corrected"}
    assert not plain.given_labels


# What the files say of themselves


@pytest.mark.parametrize("name", ["cifar10", "cifar10n", "cifar100n", "cifar100n_coarse"])
def test_sums_of_images_are_torchvisions(name: str) -> None:
    from torchvision import datasets

    theirs = datasets.CIFAR10 if name.startswith("cifar10n") or name == "cifar10" else datasets.CIFAR100
    sums = {*map(tuple, theirs.train_list + theirs.test_list), (theirs.meta["filename"], theirs.meta["md5"])}
    ours = {(Path(file).name, md5) for file, md5 in module(name).FILES.items() if "human" not in file}
    assert ours == sums
    assert all(file.startswith(f"{theirs.base_folder}/") for file in module(name).FILES if "human" not in file)


def test_what_is_said_twice_is_the_same() -> None:
    assert module("cifar100n").FILES == module("cifar100n_coarse").FILES
    assert module("cifar10").CLASSES == module("cifar10n").CLASSES
    assert module("cifar10").EXTRA_FILES == module("cifar10n").EXTRA_FILES


@pytest.mark.parametrize(
    ("board", "columns"),
    [
        ("cifar10n", [f"real ({name})" for name in ("aggre", "random1", "random2", "random3", "worse")]),
        ("cifar100n", ["real"]),
        (
            "human-vs-synthetic",
            [
                *(f"{kind} ({name})" for name in ("aggre", "random1", "worse") for kind in ("real", "matched")),
                "symmetric 40.21% (excl. true)",
            ],
        ),
    ],
)
def test_boards_of_human_labels(board: str, columns: list[str]) -> None:
    found = load_benchmark(board)
    assert [noise.label for noise in found.noise] == columns
    assert len(found.methods) >= 5
    for name in found.datasets:
        assert "people's labels" in module(name).NOISE


# Made files, beside black images


@pytest.fixture
def columns() -> Columns:
    """Labels as the publisher's file of 100 classes has them: the fine ones as arrays, the coarse ones as lists."""
    clean = np.random.default_rng(0).permutation(np.arange(COUNT) % 100)
    noisy = np.where(np.arange(COUNT) % 5 == 0, (clean + 1) % 100, clean)
    superclass = module("cifar100n").SUPERCLASS
    return {
        "clean_label": clean,
        "noisy_label": noisy,
        "clean_coarse_label": superclass[clean].tolist(),
        "noisy_coarse_label": superclass[noisy].tolist(),
    }


@pytest.fixture
def load(tmp_path: Path, columns: Columns, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageData]:
    """Load cifar100n, or its coarse form, from a made file: `columns` with changes, or any bytes."""
    fine, clean = module("cifar100n"), np.array(columns["clean_label"])

    def loaded(content: bytes | None = None, name: str = "cifar100n", **changes: Any) -> ImageData:
        content = torch_bytes(columns | changes, tmp_path) if content is None else content
        file = saved(tmp_path / fine.HUMAN, content)
        monkeypatch.setitem(fine.FILES, fine.HUMAN, file.md5)
        monkeypatch.setattr(module(name), "load_clean", lambda *_: black(clean, 100))
        data = module(name).load(tmp_path)
        assert isinstance(data, ImageData)
        return data

    return loaded


def test_people_s_labels_stand_beside_the_clean_ones(load: Callable[..., ImageData], columns: Columns) -> None:
    data = load()
    assert data.train_labels.tolist() == columns["clean_label"].tolist()
    assert data.given_labels["fine"].tolist() == columns["noisy_label"].tolist()
    assert data.class_map


def test_the_coarse_task_is_of_superclasses(load: Callable[..., ImageData], columns: Columns) -> None:
    data = load(name="cifar100n_coarse")
    assert (data.num_classes, data.classes[:2]) == (20, ("aquatic_mammals", "fish"))
    assert data.train_labels.tolist() == columns["clean_coarse_label"]
    assert data.test_labels.tolist() == columns["clean_coarse_label"]
    assert data.given_labels["coarse"].tolist() == columns["noisy_coarse_label"]
    assert not data.class_map  # of fine classes


@pytest.mark.parametrize("name", ["cifar100n", "cifar100n_coarse"])
def test_the_dataset_conforms(
    name: str, load: Callable[..., ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(name=name)
    monkeypatch.setattr(module(name), "SIZE", {"train": COUNT, "test": COUNT})
    check_dataset(module(name), tmp_path)


@pytest.mark.parametrize("where", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_pickled_by_any_numpy_are_read(where: str, tmp_path: Path) -> None:
    labels = np.arange(50) % 10
    plain = pickle.dumps({"labels": labels}, protocol=2)
    current = next(name for name in (b"numpy._core.multiarray", b"numpy.core.multiarray") if name in plain)
    stream = torch_bytes({"labels": labels}, tmp_path)
    assert current in stream
    legacy = (  # the form of torch before its zip files, whose pickle has no lengths to mend
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        + pickle.dumps(1001, protocol=2)
        + pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, protocol=2)
        + plain.replace(current, where.encode())
        + pickle.dumps([], protocol=2)
    )
    for content in (stream, legacy):
        found = pickled_columns(saved(tmp_path / "x.pt", content), {"labels": 10}, 50)
        assert found["labels"].tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["cifar10n", "cifar100n", "cifar100n_coarse"])
def test_without_a_root_the_error_names_the_variable(name: str, tmp_path: Path) -> None:
    assert "NOISEBENCH_DATA" in refusal(lambda: module(name).load(None))
    assert "is missing" in refusal(lambda: module(name).load(tmp_path))  # the images, with how to get them
    assert "--download" in refusal(lambda: module(name).load(tmp_path))


def test_a_missing_file_says_where_to_get_it(load: Callable[..., ImageData], tmp_path: Path) -> None:
    load()
    (tmp_path / "cifar-n" / "CIFAR-100_human.pt").unlink()
    message = refusal(lambda: module("cifar100n").load(tmp_path))
    assert f"{tmp_path / 'cifar-n' / 'CIFAR-100_human.pt'} is missing" in message
    assert f"get it from {SOURCE}" in message


def test_a_file_of_other_content_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "labels.pt"
    path.write_bytes(pickle.dumps(Forged(tmp_path / "ran")))
    message = refusal(lambda: pickled_columns(LabelFile(path, "0" * 32, SOURCE), {"labels": 10}, 5))
    assert f"{path} has {path.stat().st_size} bytes and MD5" in message
    assert f"not the published {'0' * 32}; copy it anew from {SOURCE}" in message


class Forged:
    """What a forged pickle would run."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("wrap", [lambda forged: forged, lambda forged: {"clean_label": [forged]}])
@pytest.mark.parametrize("write", [torch_bytes, lambda value, _: pickle.dumps(value)])
def test_a_forged_pickle_runs_nothing_even_under_the_right_sum(
    wrap: Any, write: Any, load: Callable[..., ImageData], tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    content = write(wrap(Forged(witness)), tmp_path)
    message = refusal(lambda: load(content))
    assert str(tmp_path / "cifar-n") in message
    assert not witness.exists()
    pickle.loads(pickle.dumps(Forged(witness)))
    assert witness.exists(), "the forgery itself must work, or this test shows nothing"


def test_the_refusal_names_what_a_forged_file_asks_for(load: Callable[..., ImageData], tmp_path: Path) -> None:
    content = torch_bytes({"clean_label": Forged(tmp_path / "ran")}, tmp_path)
    assert f"asks for {os.mkdir.__module__}.mkdir, and may ask for arrays alone" in refusal(lambda: load(content))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clean_label": REVERSED}, "its clean_label differs from the labels of the images for"),
        ({"clean_coarse_label": REVERSED}, "its clean_coarse_label differs from the labels of the images for"),
        ({"clean_label": np.zeros(COUNT, dtype=np.int64)}, "re-ordered or of another set"),
        ({"noisy_label": np.zeros(COUNT - 1, dtype=np.int64)}, f"holds int64 [{COUNT - 1}] as 'noisy_label', not a"),
        ({"noisy_label": np.zeros((COUNT, 1), dtype=np.int64)}, f"holds int64 [{COUNT}, 1] as 'noisy_label'"),
        ({"noisy_label": [100] * COUNT}, "holds class 100 in 'noisy_label', which has classes 0..99"),
        ({"noisy_coarse_label": [-1] * COUNT}, "holds class -1 in 'noisy_coarse_label', which has classes 0..19"),
        ({"noisy_coarse_label": [0.5] * COUNT}, "holds float64"),
        ({"noisy_coarse_label": [True] * COUNT}, "holds bool"),
        ({"noisy_coarse_label": ["1"] * COUNT}, "not a whole number for each of"),
        ({"noisy_coarse_label": [1, [2]]}, "holds no plain list as 'noisy_coarse_label'"),
        ({"noisy_coarse_label": None}, "holds object [] as 'noisy_coarse_label'"),
    ],
)
def test_a_column_that_is_not_of_these_images_is_refused(
    changes: Columns, says: str, load: Callable[..., ImageData], columns: Columns, tmp_path: Path
) -> None:
    changed = {key: columns[key][::-1] if value is REVERSED else value for key, value in changes.items()}
    message = refusal(lambda: load(**changed))
    assert says in message
    assert str(tmp_path / "cifar-n" / "CIFAR-100_human.pt") in message
    assert SOURCE in message


def test_a_re_ordered_file_says_how_many_differ() -> None:
    file = LabelFile(Path("x.pt"), "", SOURCE)
    labels = np.arange(10)
    message = refusal(lambda: check_same(file, labels[[1, 0, *range(2, 10)]], labels, "its clean_label"))
    assert "for 2 of 10" in message
    check_same(file, labels.copy(), labels, "its clean_label")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"worse_label": [0]}, "has no 'clean_label', but worse_label"),
        ({}, "has no 'clean_label', but nothing"),
        ([1, 2], "holds list, not a dict of labels"),
        (torch.zeros(3), "holds Tensor, not a dict of labels"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    value: Any, says: str, load: Callable[..., ImageData], tmp_path: Path
) -> None:
    assert says in refusal(lambda: load(torch_bytes(value, tmp_path)))


@settings(max_examples=150)
@given(st.data())
def test_a_cut_or_changed_file_is_refused_or_read_but_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    content = bytearray(torch_bytes({"labels": np.arange(20) % 10}, folder))
    place = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    try:
        found = pickled_columns(saved(folder / "x.pt", bytes(content)), {"labels": 10}, 20)
    except UserError as error:
        assert str(folder / "x.pt") in str(error)
    else:
        assert not cut
        assert found["labels"].shape == (20,)


# What people said of test images


def npy(value: Any, folder: Path, allow_pickle: bool = False) -> LabelFile:
    np.save(folder / "made.npy", value, allow_pickle=allow_pickle)
    return saved(folder / "people.npy", (folder / "made.npy").read_bytes())


def shares(labels: IntArray, wrong: int = 0) -> npt.NDArray[np.float64]:
    """0.8 for the label, and for another class in the first `wrong` rows; the rest evenly."""
    said = np.where(np.arange(len(labels)) < wrong, (labels + 1) % 5, labels)
    return np.eye(5)[said] * 0.75 + 0.05


LABELS = np.arange(40) % 5


def test_people_may_disagree_with_one_label_in_ten(tmp_path: Path) -> None:
    test = people_test(npy(shares(LABELS, wrong=4), tmp_path), LABELS, 5)
    assert test.labels is None
    assert test.keep is None
    assert np.array_equal(test.soft, shares(LABELS, wrong=4))  # type: ignore[arg-type]
    message = refusal(lambda: people_test(npy(shares(LABELS, wrong=5), tmp_path), LABELS, 5))
    assert "the test label of 35 of 40 images only: it is re-ordered or of another set" in message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (shares(LABELS)[1:], "holds float64 [39, 5], not float [40, 5]"),
        (shares(LABELS).astype(np.int64), "holds int64 [40, 5]"),
        (shares(LABELS) * np.where(np.arange(40) == 7, 1.01, 1)[:, None], "holds in row 7 no shares that sum to one"),
        (np.where(np.arange(40)[:, None] == 3, [[2.0, -1, 0, 0, 0]], shares(LABELS)), "holds in row 3"),
        (np.where(np.arange(40)[:, None] == 3, np.nan, shares(LABELS)), "holds in row 3"),
    ],
)
def test_shares_that_are_none_are_refused(value: Any, says: str, tmp_path: Path) -> None:
    assert says in refusal(lambda: people_test(npy(value, tmp_path), LABELS, 5))


def test_a_forged_or_cut_npy_is_refused(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    forged = npy(np.array([Forged(witness)], dtype=object), tmp_path, allow_pickle=True)
    assert "is no whole .npy file" in refusal(lambda: people_test(forged, LABELS, 5))
    assert not witness.exists()
    whole = npy(shares(LABELS), tmp_path).content()
    for content in (b"", whole[:50], whole[:-1]):
        assert "is no whole .npy file" in refusal(lambda c=content: people_test(saved(tmp_path / "p", c), LABELS, 5))  # type: ignore[misc]


# Checked labels


def entry(image: int, guessed: int, votes: str, **changes: Any) -> dict[str, Any]:
    """An entry of the publisher's JSON: the label of `image` is doubted; `votes` are given, guessed, neither, both."""
    counts = dict(zip(("given", "guessed", "neither", "both"), map(int, votes.split("-")), strict=False))
    label = int(LABELS[image])
    return {"id": image, "given_original_label": label, "our_guessed_label": guessed, "mturk": counts} | changes


def checked(entries: Any, folder: Path) -> ExtraTest:
    return corrected_test(saved(folder / "checked.json", json.dumps(entries).encode()), LABELS, 5)


@pytest.mark.parametrize(
    ("votes", "label", "kept"),
    [
        ("5-0-0-0", 3, True),
        ("3-2-0-0", 3, True),
        ("0-5-0-0", 4, True),
        ("2-3-0-0", 4, True),
        ("2-2-1-0", 3, False),
        ("1-1-3-0", 3, False),
        ("0-2-0-3", 3, False),
        ("2-2-1", 3, False),  # MNIST's entries have no `both`
    ],
)
def test_three_of_five_decide(votes: str, label: int, kept: bool, tmp_path: Path) -> None:
    test = checked([entry(8, 4, votes)], tmp_path)
    assert test.labels is not None
    assert test.keep is not None
    assert (test.labels[8], test.keep[8]) == (label, kept)
    others = np.arange(40) != 8
    assert np.array_equal(test.labels[others], LABELS[others])
    assert test.keep[others].all()


def test_a_guess_that_is_the_given_label_keeps_it(tmp_path: Path) -> None:
    test = checked([entry(8, 3, "5-5-0"), entry(9, 4, "4-4-1")], tmp_path)  # as in MNIST's file: every vote is both
    assert np.array_equal(test.labels, LABELS)  # type: ignore[arg-type]
    assert bool(test.keep.all())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry(8, 4, "5-0-0"), entry(9, 0, "5-0-0", given_original_label=0)], "given_original_label differs from the"),
        ([entry(8, 4, "5-0-0"), entry(8, 4, "5-0-0")], "holds image 8 twice"),
        ([entry(8, 4, "5-0-0"), entry(8, 4, "5-0-0", id=40)], "holds in entry 1 what is no image"),
        ([entry(8, 4, "5-0-0", id=-1)], "holds in entry 0 what is no image"),
        ([entry(8, 5, "5-0-0")], "holds in entry 0 what is no image, class or number of votes: [8, 3, 5, 5, 0, 0]"),
        ([entry(8, 4, "5-0-0", mturk={"given": "5"})], "holds in entry 0"),
        ([entry(8, 4, "5-0-0", mturk=[5])], "is no whole list of checked labels"),
        ([{"id": 8}], "is no whole list of checked labels"),
        ({"id": 8}, "is no whole list of checked labels"),
        (8, "is no whole list of checked labels"),
    ],
)
def test_votes_that_are_none_are_refused(entries: Any, says: str, tmp_path: Path) -> None:
    message = refusal(lambda: checked(entries, tmp_path))
    assert says in message
    assert str(tmp_path / "checked.json") in message


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    file = saved(tmp_path / "checked.json", content)
    assert "is no whole list of checked labels in JSON" in refusal(lambda: corrected_test(file, LABELS, 5))
