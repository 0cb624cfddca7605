"""Whole runs on images of any size: real JPEGs in class folders, lists and shards, from a name to a table."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from noisebench import board, cli, label_rows, tracking
from noisebench.cell import run_cell
from noisebench.cell_folder import Folder
from noisebench.config import Benchmark, Cell, build
from noisebench.executors import Place
from noisebench.fitting import Result, fit
from noisebench.image_data import ExtraTest
from noisebench.loading import load_dataset, whole_dataset
from noisebench.method import Batch, Classifier
from noisebench.training import Run

pytestmark = pytest.mark.usefixtures("one_picture")

CLASSES = ("blue", "green", "red")
RECIPE: dict[str, Any] = {
    "image_size": 32, "epochs": 3, "batch_size": 16, "lr": 0.02, "crop_area": [0.5, 1], "flip": True, "workers": 0,
    "checkpoint_seconds": 0,
}  # fmt: skip
SYMMETRIC = {"kind": "symmetric", "rate": 0.2}


def jpeg(label: int, seed: int) -> bytes:
    """A picture of a class: 40 to 80 pixels a side, much of its colour, stripes of its own, and noise."""
    draw = np.random.default_rng((label, seed))
    height, width = draw.integers(40, 81, 2)
    pixels = draw.normal(60, 25, (height, width, 3))
    pixels[..., 2 - label] += draw.uniform(65, 115)
    stripes: tuple[Any, ...] = ((), (slice(None, None, 6),), (slice(None), slice(None, None, 6)))[label]
    pixels[stripes] += 60 * (label > 0)
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG")
    return content.getvalue()


def make_tree(root: Path, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """``root/train/CLASS/`` with 60 pictures, and ``root/val/CLASS/`` with 30."""
    for split, first, count in (("train", 0, 60), ("val", 1000, 30)):
        for i in range(count):
            file = root / split / classes[i % 3] / f"{i:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg(i % 3, seed + first + i))
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path has what paths may have: spaces, colons, brackets, an @, letters that are no ASCII."""
    return make_tree(tmp_path_factory.mktemp("pictures") / "my: own [é]" / "set@2 of 3")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("strangers"), ("x", "y", "z"), seed=5000)


@pytest.fixture(scope="module")
def rows(tree: Path) -> list[dict[str, str]]:
    """A row for each picture, in the order in which folders are listed; every fifth noisy label is wrong."""
    found = []
    for split in ("train", "val"):
        for i, file in enumerate(sorted((tree / split).rglob("*.jpg"))):
            label = file.parent.name
            noisy = CLASSES[(CLASSES.index(label) + 1) % 3] if i % 5 == 0 else label
            path = file.relative_to(tree.parent).as_posix()
            found.append({"path": path, "label": label, "split": split.replace("val", "test"), "noisy": noisy})
    return found


def write_csv(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_parquet(file: Path, rows: list[dict[str, str]]) -> Path:
    columns: dict[str, list[Any]] = {key: [row[key] for row in rows] for key in rows[0]}
    if any(";" in label for label in columns["label"]):
        columns["labels"] = [label.split(";") for label in columns.pop("label")]
    pyarrow = pytest.importorskip("pyarrow")
    __import__("pyarrow.parquet").parquet.write_table(pyarrow.table(columns), file)
    return file


def write_shards(folder: Path, rows: list[dict[str, str]], images: Path) -> Path:
    """Two shards a split, with the names of the classes in their sorted order."""
    folder.mkdir()
    names = sorted({name for row in rows for name in row["label"].split(";")})
    (folder / "classes.txt").write_text("\n".join(names))
    for split in ("train", "test"):
        part = [row for row in rows if row["split"] == split]
        for number, some in enumerate((part[:25], part[25:])):
            with tarfile.open(folder / f"{split}-{number}.tar", "w") as tar:
                for place, row in enumerate(some):
                    several = row["label"].split(";")
                    label = ("json", json.dumps({"label": several})) if several[1:] else ("cls", row["label"])
                    for ending, content in (
                        ("jpg", (images / row["path"]).read_bytes()),
                        (label[0], label[1].encode()),
                    ):
                        member = tarfile.TarInfo(f"{place:04}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return folder


def cell_of(dataset: str, method: str = "ce", noise: dict[str, Any] | None = None, **recipe: Any) -> Cell:
    given = {"method": method, "dataset": dataset, "noise": noise or SYMMETRIC, "seed": 0, "recipe": RECIPE | recipe}
    made: Cell = build(Cell, given, "test")
    return made


def run(cell: Cell, out: Path) -> dict[str, Any]:
    return run_cell(cell, out, accelerator="cpu")


def trained(dataset: Any, noise: str = "symmetric", rate: float | None = 0.2, method: Any = "ce", **how: Any) -> Result:
    options = how.pop("noise_options", None)
    return fit(method, dataset, noise, rate, recipe=RECIPE | how, noise_options=options, device="cpu")


def log_of(cell: Cell, out: Path) -> list[str]:
    """The lines of log.txt without their times."""
    return [line[20:] for line in (out / cell.folder() / "log.txt").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------ learning


def test_it_learns_and_the_number_of_workers_changes_no_bit(tree: Path) -> None:
    alone, helped = (trained(f"image_folder:{tree}", method="elr", workers=workers) for workers in (0, 2))
    assert alone.metrics["last"]["accuracy"] > 0.8, "chance is a third"
    assert helped.weights_sha256 == alone.weights_sha256
    assert helped.history == alone.history


def test_the_same_images_in_any_form_end_in_the_same_weights(
    tree: Path, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    lists = tree.parent
    expected = trained(f"image_folder:{tree}", epochs=2)
    for dataset in (
        f"image_list:{write_csv(lists / 'single.csv', rows)}",
        f"image_list:{write_parquet(lists / 'single.parquet', rows)}",
        f"webdataset:{write_shards(tmp_path / 'shards', rows, lists)}",
    ):
        assert trained(dataset, epochs=2).weights_sha256 == expected.weights_sha256, dataset


def test_several_labels_an_image_are_the_same_as_rows_and_as_sets(
    tree: Path, rows: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [
        {key: row[key] for key in ("path", "split")} | {"label": row["label"] + ";striped" * (row["label"] != "blue")}
        for row in rows
    ]
    datasets = (
        f"image_list:{write_csv(tree.parent / 'several.csv', several)}",
        f"image_list:{write_parquet(tree.parent / 'several.parquet', several)}",
        f"webdataset:{write_shards(tmp_path / 'shards', several, tree.parent)}",
    )
    assert load_dataset(datasets[0], None).label_sets is None
    expected = trained(datasets[0], "none", None, epochs=4)
    assert expected.metrics["last"]["gap"] > 0.85, "4 of 9 labels are there"
    for most in (label_rows.DENSE, 0):
        monkeypatch.setattr(label_rows, "DENSE", most)
        whole_dataset.cache_clear()
        for dataset in datasets if most else datasets[1:]:
            found = trained(dataset, "none", None, epochs=4, workers=0 if most else 2)
            assert (load_dataset(dataset, None).label_sets is None) == bool(most)
            assert found.weights_sha256 == expected.weights_sha256, dataset
            assert found.metrics == expected.metrics
    whole_dataset.cache_clear()


def test_a_column_of_noisy_labels_is_real_noise(tree: Path, rows: list[dict[str, str]], tmp_path: Path) -> None:
    cell = cell_of(f"image_list:{write_csv(tree.parent / 'real.csv', rows)}", noise={"kind": "real"}, epochs=1)
    assert run(cell, tmp_path)["status"] == "finished"
    config = json.loads((tmp_path / cell.folder() / "config.json").read_text())
    labels = np.load(tmp_path / config["noise_folder"] / "noise.npz")["labels"].tolist()
    assert labels == [CLASSES.index(row["noisy"]) for row in rows if row["split"] == "train"]
    assert trained(cell.dataset, "matched", None, epochs=1).noise.expected_rate == pytest.approx(0.2)


class TwoViews(Classifier):
    """Cross-entropy of two views of each image that must be different crops."""

    name = "two_views"
    paper = "none"

    def epoch(self, run: Run) -> Any:
        yield from run.loader(views=2)

    def loss(self, batch: Batch, run: Run) -> Tensor:
        first, second = batch.x
        assert first.shape == second.shape == (16, 3, 32, 32)
        assert not torch.equal(first, second)
        return F.cross_entropy(self(first), batch.y) + F.cross_entropy(self(second), batch.y)


def test_methods_that_look_at_samples_at_views_and_at_several_networks_work_too(tree: Path) -> None:
    scored = trained(f"image_folder:{tree}", method="m_dyr_h")
    assert scored.history[-1]["metrics"]["train.noise_auc"] > 0.8, "labels and images belong together, one by one"
    for method in (TwoViews, "ensemble", "co_teaching"):
        assert trained(f"image_folder:{tree}", method=method).metrics["last"]["accuracy"] > 0.6, method


def test_parts_of_the_sets_and_further_tests_of_images_of_any_size(tree: Path, strangers: Path) -> None:
    data, other = (load_dataset(f"image_folder:{path}", None) for path in (tree, strangers))
    labels = other.test_labels.astype(np.int64)
    tests = {
        "others": lambda: ExtraTest(labels=labels, images=other.test_images),
        "swapped": lambda: ExtraTest(labels=labels[::-1].copy(), images=other.test_images),
        "corrected": lambda: ExtraTest(labels=labels, keep=np.arange(30) % 2 == 0),
    }
    for most in (None, 9):
        last = trained(replace(data, extra_tests=tests), evaluate=list(tests), test_size=most).metrics["last"]
        assert last["others.accuracy"] > 0.8
        assert last["swapped.accuracy"] < 0.5
        assert last["corrected.accuracy"] > 0.8
        assert most is None or last["accuracy"] * most == pytest.approx(round(last["accuracy"] * most), abs=1e-4)
    few = trained(f"image_folder:{tree}@30", epochs=1)
    assert len(few.noise.labels) == 60
    assert few.method.state_dict().keys() == trained(f"image_folder:{tree}", epochs=1).method.state_dict().keys()


def test_outliers_come_from_another_folder(tree: Path, strangers: Path, tmp_path: Path) -> None:
    noise = {"kind": "open_set", "rate": 0.3, "source": f"image_folder:{strangers}"}
    cells = (cell_of(f"image_folder:{tree}", "elr", noise, epochs=2, workers=workers) for workers in (0, 2))
    results = [run(cell, tmp_path / str(cell.recipe.workers)) for cell in cells]
    assert results[0]["status"] == "finished", results[0]["reason"]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["noise"] == f"open-set 30% from image_folder:{strangers}"
    assert {"inlier_auc", "inlier_ap"} <= results[0]["metrics"]["last"].keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise": {"kind": "instance", "rate": 0.2}}, "noise instance: it needs images of one size in memory"),
        ({"noise": {"kind": "real"}}, "came without noisy labels; give another kind of noise"),
        ({"noise": {"kind": "open_set", "rate": 0.2, "source": "digits"}}, "must both be of any size, or neither"),
        ({"padding": 2}, "recipe.padding is 2; give 0: images of any size are cropped by recipe.crop_area"),
        ({"loader": "resident"}, "mode 'resident' needs images as an array"),
        ({"evaluate": ["corrected"]}, "recipe.evaluate: 'corrected': this dataset offers no further tests"),
    ],
)
def test_what_such_images_do_not_have_is_refused_in_a_line(
    changes: dict[str, Any], reason: str, tree: Path, tmp_path: Path
) -> None:
    result = run(cell_of(f"image_folder:{tree}", **changes), tmp_path)
    assert result["status"] == "failed"
    assert reason in result["reason"]


# ------------------------------------------------------------------------------------------------------------ stopping


class Killed(BaseException):
    """What no `except Exception` catches: the nearest thing to a kill within one process."""


def killed_after(times: int) -> Callable[[Folder], bool]:
    """A `due` that stores after every batch, and kills once, when asked so often."""
    asked = 0

    def due(self: Folder) -> bool:
        nonlocal asked
        asked += 1
        if asked == times:
            raise Killed
        return True

    return due


@pytest.mark.parametrize(("method", "workers"), [("ce", 0), ("elr", 2), ("mixup", 0)])
def test_killed_in_the_middle_of_an_epoch_it_ends_in_the_same_weights(
    method: str, workers: int, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(f"image_folder:{tree}", method, workers=workers)
    expected = run(cell, tmp_path / "undisturbed")
    monkeypatch.setattr(Folder, "due", killed_after(5))  # epochs have 3 batches
    with pytest.raises(Killed):
        run(cell, tmp_path)
    result = run(cell, tmp_path)
    assert "resumed after epoch 1, batch 1 " in "\n".join(log_of(cell, tmp_path))
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]


# ------------------------------------------------------------------------------------------------------------ damaged


@pytest.fixture
def damaged(tree: Path, tmp_path: Path) -> Path:
    """The tree with three damaged images: no image, one that is cut, and in the test set an empty one."""
    root = tmp_path / "damaged"
    shutil.copytree(tree, root)
    (root / "train/red/002.jpg").write_bytes(b"no image at all")
    cut = root / "train/blue/003.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    (root / "val/green/004.jpg").write_bytes(b"")
    return root


NAMES = ["train/blue/003.jpg", "train/red/002.jpg", "val/green/004.jpg"]


def named_in(log: list[str], root: Path) -> list[str]:
    """The images that a log names as damaged, in the order of their names."""
    paths = [line.removeprefix("damaged: ").partition(" is ")[0] for line in log if line.startswith("damaged: ")]
    return sorted(Path(path).relative_to(root).as_posix() for path in paths)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_fails_the_cell_with_its_name_and_how_to_go_on(
    workers: int, damaged: Path, tmp_path: Path
) -> None:
    result = run(cell_of(f"image_folder:{damaged}", workers=workers), tmp_path)
    assert result["status"] == "failed"
    name, _, reason = result["reason"].partition(" is no whole image: ")
    assert Path(name).relative_to(damaged).as_posix() in NAMES
    assert reason.endswith("; pass recipe.skip_damaged=true to go on with a grey image in its place")


@pytest.mark.parametrize("workers", [0, 2])
def test_asked_to_go_on_it_names_each_damaged_image_once_and_counts_them(
    workers: int, damaged: Path, tmp_path: Path
) -> None:
    cell = cell_of(f"image_folder:{damaged}", workers=workers, skip_damaged=True)
    result = run(cell, tmp_path)
    assert result["status"] == "finished", result["reason"]
    assert result["damaged"] == 3
    log = log_of(cell, tmp_path)
    assert named_in(log, damaged) == NAMES
    assert log[-2:] == ["finished", "3 images do not decode; grey in their place"]


def test_a_run_without_damaged_images_says_nothing_of_them(tree: Path, tmp_path: Path) -> None:
    cell = cell_of(f"image_folder:{tree}", epochs=1, skip_damaged=True)
    assert "damaged" not in run(cell, tmp_path)
    assert log_of(cell, tmp_path)[-1] == "finished"


def test_images_are_named_once_however_often_a_run_is_interrupted(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(f"image_folder:{damaged}", skip_damaged=True, epochs=1, validation=0)
    expected = run(cell, tmp_path / "undisturbed")
    # Killed before the last batch of its only epoch: the images before it are not met again in training.
    monkeypatch.setattr(Folder, "due", killed_after(3))
    with pytest.raises(Killed):
        run(cell, tmp_path)
    result = run(cell, tmp_path)
    assert result["damaged"] == expected["damaged"]
    log = log_of(cell, tmp_path)
    assert named_in(log, damaged) == named_in(log_of(cell, tmp_path / "undisturbed"), damaged)


def test_a_run_that_starts_anew_counts_anew(
    tree: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(f"image_folder:{damaged}", skip_damaged=True, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "checkpoint", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(cell, tmp_path)
    assert len(named_in(log_of(cell, tmp_path), damaged)) == 3
    shutil.copytree(tree, damaged, dirs_exist_ok=True)  # somebody repairs them
    whole_dataset.cache_clear()
    assert "damaged" not in run(cell, tmp_path)


def test_damage_in_every_set_that_is_looked_at_is_found(tree: Path, strangers: Path, tmp_path: Path) -> None:
    """Validation, test, outliers in training, and test outliers."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(tree, ours)
    shutil.copytree(strangers, theirs)
    broken = [*(theirs / "train").rglob("*.jpg"), theirs / "val/x/000.jpg", ours / "val/red/005.jpg"]
    for file in broken:
        file.write_bytes(b"damaged")
    noise = {"kind": "open_set", "rate": 0.2, "source": f"image_folder:{theirs}"}
    cell = cell_of(f"image_folder:{ours}", noise=noise, epochs=1, skip_damaged=True, validation=0.2, batch_size=12)
    result = run(cell, tmp_path)
    assert result["status"] == "finished", result["reason"]
    log = "\n".join(log_of(cell, tmp_path))
    assert log.count("ours/val/red/005.jpg is no whole image") == 1
    assert log.count("theirs/val/x/000.jpg is no whole image") == 1
    assert log.count("theirs/train/") == 12, "batches of 12 leave none of the 48 images out, and 12 are held out"
    assert result["damaged"] == 14


def test_a_name_that_is_no_utf_8_can_be_told_too(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "odd")
    try:
        (tmp_path / "odd" / "val" / "red" / "005\udcff.jpg").write_bytes(b"damaged")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    for skip, status in ((False, "failed"), (True, "finished")):
        cell = cell_of(f"image_folder:{tmp_path / 'odd'}", epochs=1, skip_damaged=skip)
        result = run(cell, tmp_path)
        assert result["status"] == status
        assert "odd/val/red/005\\udcff.jpg is no whole image" in "\n".join(log_of(cell, tmp_path))
        assert skip or "005\\udcff.jpg" in result["reason"]


# ------------------------------------------------------------------------------------------------------------ commands


def said(*arguments: str, code: int = 0) -> str:
    ran = CliRunner().invoke(cli.app, arguments)
    assert ran.exit_code == code, (ran.output, ran.exception)
    return ran.output


def test_the_commands_take_a_path(tree: Path, tmp_path: Path) -> None:
    dataset = f"image_folder:{tree}"
    assert "FAIL" not in said("check", dataset)
    assert "60 training and 30 test images, 3 classes" in said("data", "verify", dataset)
    facts = json.loads(said("inject", "--dataset", dataset, "--rate", "0.3", "--out", str(tmp_path / "n"), "--json"))
    assert (facts["labels"], facts["dataset"]) == (60, dataset)


def test_run_tells_how_many_images_are_damaged(damaged: Path, tmp_path: Path) -> None:
    settings = [f"recipe.{key}={json.dumps(value)}" for key, value in (RECIPE | {"epochs": 1}).items()]
    command = ["run", "--dataset", f"image_folder:{damaged}", "--out", str(tmp_path), "--device", "cpu"]
    command += [part for setting in settings for part in ("--set", setting)]
    said(*command, code=1)
    command += ["--set", "recipe.skip_damaged=true"]
    for _ in range(2):  # trained, and read
        assert "  3 images do not decode; grey in their place (log.txt names them)\n" in said(*command)


def test_a_board_of_folders(tree: Path, strangers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start", lambda *_: SimpleNamespace(finish=lambda: None))  # MLflow takes seconds
    given = {
        "name": "mine",
        "datasets": [f"image_folder:{tree}", f"image_folder:{strangers}@40"],
        "noise": [SYMMETRIC, {"kind": "pairflip", "rate": 0.2}],
        "seeds": [0],
        "methods": ["ce"],
        "recipe": RECIPE | {"epochs": 1},
    }
    benchmark: Benchmark = build(Benchmark, given, "mine.yaml")

    def here(cells: list[Cell], place: Place, jobs: int, idle: Callable[[], None]) -> Any:
        return ((cell, run(cell, place.out)) for cell in cells)

    outcome = board.run_board(benchmark, Place(tmp_path, accelerator="cpu"), 1, run=here)
    assert outcome.failed == 0
    assert {result["dataset"] for result in outcome.results} == set(benchmark.datasets)
    assert board.rebuild(benchmark, tmp_path, "runs").to_json() == outcome.table.to_json()
    for folder in (tmp_path / "runs", tmp_path / "noise"):
        assert all(entry.name.isascii() and not set(entry.name) & set(" :@[]") for entry in folder.iterdir())
    with (tmp_path / "boards/mine/leaderboard.csv").open(encoding="utf-8") as handle:
        assert {row["dataset"] for row in csv.DictReader(handle)} == set(benchmark.datasets)
