"""Transfer: which weights a row begins with, the board and its mean, and one line for every mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from noisebench import board, cli, loading, tracking, transfer
from noisebench.cell import run_cell, weights_sha256
from noisebench.config import Benchmark, Cell, Recipe, build
from noisebench.errors import UserError
from noisebench.executors import Place
from noisebench.finished import FinishedRun
from noisebench.image_data import ImageData
from noisebench.nn import make_backbone
from noisebench.starting import start_from

pytestmark = pytest.mark.usefixtures("one_picture")

UPSTREAM: dict[str, Any] = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.4}],
    "seeds": [0, 1],
    "methods": ["ce", "co_teaching", "transition_true", {"name": "ensemble", "label": "two", "hparams": {"size": 2}}],
    "recipe": {"epochs": 2, "batch_size": 32, "train_size": 120, "test_size": 100, "checkpoint_seconds": 0},
}
DOWNSTREAM = ["digits@200", "shapes"]
SHORT = "recipe.epochs=2"


def upstream(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, UPSTREAM | changes, "small.yaml")
    return made


def here(cells: list[Cell], place: Place, *rest: Any) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells in this process, one after the other."""
    for cell in cells:
        yield cell, run_cell(cell, place.out, accelerator="cpu")


def board_of(benchmark: Benchmark, out: Path, to: list[str] | None = None, **options: Any) -> transfer.TransferBoard:
    options = {"method": "ce", "size": 150, "settings": [SHORT]} | options
    return transfer.transfer_board(benchmark, to or DOWNSTREAM, out, **options)


class NoSender:
    """In the place of the process that sends to MLflow, which takes seconds a board."""

    def finish(self) -> None:
        """Nothing was left unsent."""


@pytest.fixture(autouse=True, scope="module")
def no_sender() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "start", lambda out, board: NoSender())
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the upstream board is finished."""
    out = tmp_path_factory.mktemp("out")
    board.run_board(upstream(), Place(out, accelerator="cpu"), run=here)
    return out


@pytest.fixture(scope="module")
def ended(done: Path) -> transfer.Transferred:
    """What its transfer board gives."""
    return transfer.transfer(board_of(upstream(), done), Place(done, accelerator="cpu"), run=here)


def run_of(out: Path, method: str, seed: int = 0) -> Path:
    """The folder of an upstream run."""
    return out / next(c for c in upstream().cells() if c.method.label == method and c.seed == seed).folder()


def recipe_of(out: Path, method: str = "ce") -> Recipe:
    """The recipe of a transfer cell of seed 0."""
    return next(c.recipe for c in board_of(upstream(), out).cells() if c.method.label == method and c.seed == 0)


# ------------------------------------------------------------------------------------------ where a backbone begins


@pytest.mark.parametrize(
    ("method", "prefix"),
    [("ce", "net.0."), ("co_teaching", "first.0."), ("transition_true", "net.0."), ("two", "members.0.net.0.")],
)
def test_a_backbone_begins_with_the_first_one_of_the_run_whatever_its_method(
    done: Path, method: str, prefix: str
) -> None:
    backbone = make_backbone("small_cnn", (1, 8, 8))
    start_from(backbone, recipe_of(done, method), (1, 8, 8))
    stored = torch.load(run_of(done, method) / "model.pt", weights_only=True)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, stored[prefix + name]), name


def test_without_a_start_a_backbone_stays_as_it_is() -> None:
    backbone = make_backbone("small_cnn", (1, 8, 8))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    start_from(backbone, Recipe(), (1, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_run_without_such_a_backbone_is_named(done: Path) -> None:
    with pytest.raises(UserError, match="no module of ce has the weights of a small_cnn"):
        start_from(nn.MultiheadAttention(2, 1), recipe_of(done), (1, 8, 8))


def test_a_backbone_of_another_form_is_refused(done: Path) -> None:
    narrow = recipe_of(done).model_copy(update={"backbone_options": {"widths": [16, 32]}})
    with pytest.raises(UserError, match=r"small_cnn {}, and this recipe small_cnn .* they must be the same"):
        start_from(make_backbone("small_cnn", (1, 8, 8), widths=[16, 32]), narrow, (1, 8, 8))


def test_images_of_other_channels_are_refused_and_of_other_sizes_are_not(done: Path) -> None:
    start_from(make_backbone("small_cnn", (1, 28, 28)), recipe_of(done), (1, 28, 28))
    with pytest.raises(UserError, match=r"does not take images of 3x8x8 .* is \[16, 1, 3, 3\], and \[16, 3, 3, 3\]"):
        start_from(make_backbone("small_cnn", (3, 8, 8)), recipe_of(done), (3, 8, 8))


def test_training_begins_with_the_upstream_weights_and_a_new_head(done: Path) -> None:
    """At a rate of almost nothing they stay as they were."""
    cell = board_of(
        upstream(methods=["ce"]), done, ["digits"], settings=["recipe.epochs=1", "recipe.lr=1e-20"]
    ).cells()[0]
    run_cell(cell, done, accelerator="cpu")
    before = torch.load(run_of(done, "ce") / "model.pt", weights_only=True)
    after = torch.load(done / cell.folder() / "model.pt", weights_only=True)
    assert torch.equal(before["net.0.layers.0.weight"], after["net.0.layers.0.weight"])
    assert not torch.equal(before["net.1.weight"], after["net.1.weight"])


# ------------------------------------------------------------------------------------------ identity


def test_the_weights_count_in_a_fingerprint_and_the_folder_does_not(done: Path) -> None:
    cell = board_of(upstream(), done).cells()[0]
    start = cell.recipe.start
    assert start is not None
    elsewhere = start.model_copy(update={"run": "/elsewhere"})
    others = start.model_copy(update={"weights": "0" * 64})
    fingerprints = [
        cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"start": each})}).fingerprint()
        for each in (start, elsewhere, others, None)
    ]
    assert fingerprints[0] == fingerprints[1] == cell.fingerprint()
    assert len(set(fingerprints)) == 3


def test_a_cell_begins_with_the_upstream_run_of_its_row_and_seed(done: Path) -> None:
    for cell in board_of(upstream(), done).cells():
        folder = run_of(done, cell.method.label, cell.seed)
        assert cell.recipe.start is not None
        assert cell.recipe.start.run == str(folder)
        assert cell.recipe.start.weights == json.loads((folder / "result.json").read_text("utf-8"))["weights_sha256"]


def test_a_run_is_read_without_the_one_it_began_with(ended: transfer.Transferred, done: Path, tmp_path: Path) -> None:
    cell = board_of(upstream(), done).cells()[0]
    for name in (cell.folder(), "noise"):
        shutil.copytree(done / name, tmp_path / name)
    file = tmp_path / cell.folder() / "config.json"
    file.write_text(file.read_text("utf-8").replace(str(done), str(tmp_path)), encoding="utf-8")
    found = FinishedRun.load(tmp_path / cell.folder(), accelerator="cpu")  # and without a warning, which is an error
    assert weights_sha256(found.method) == found.result["weights_sha256"]


# ------------------------------------------------------------------------------------------ the board


def test_a_row_an_upstream_method_a_column_a_dataset(ended: transfer.Transferred, done: Path) -> None:
    table = ended.outcome.table
    assert set(table.methods) == {"ce", "co_teaching", "transition_true", "two"}
    assert [tuple(column) for column in table.columns] == [("digits@200", "clean"), ("shapes@150", "clean")]
    assert ended.outcome.failed == 0
    assert table.ranking.rule == "last"
    assert table.privileged == ended.mean.privileged == {"transition_true": ("transition",)}
    folder = done / "boards" / "small-transfer"
    for where, expected in ((folder, table), (folder / "mean", ended.mean)):
        assert (where / "leaderboard.json").read_text("utf-8") == expected.to_json()


def test_the_mean_is_over_the_datasets_seed_by_seed(ended: transfer.Transferred) -> None:
    table, mean = ended.outcome.table, ended.mean
    (column,) = mean.columns
    assert column == ("mean of digits@200, shapes@150", "clean")
    for method in mean.methods:
        parts = [dict(table.cells[method, each, table.ranking].values) for each in table.columns]
        expected = {seed: (parts[0][seed] + parts[1][seed]) / 2 for seed in (0, 1)}  # type: ignore[operator]
        assert dict(mean.cells[method, column, mean.ranking].values) == pytest.approx(expected)


def test_a_run_that_failed_on_one_dataset_has_no_mean(ended: transfer.Transferred, done: Path) -> None:
    results = [dict(result) for result in ended.outcome.results]
    lost = next(result for result in results if result["label"] == "two")
    lost.update(status="failed", reason="out of memory")
    mean = transfer.mean_table(board_of(upstream(), done), results)
    cell = mean.cells["two", mean.columns[0], mean.ranking]
    assert (cell.failed, len(cell.numbers)) == (1, 1)
    assert mean.failures == (("two", mean.columns[0], lost["seed"], f"{lost['dataset']}: out of memory"),)


def test_finished_cells_are_not_run_again(ended: transfer.Transferred, done: Path) -> None:
    def none(*given: Any) -> Iterator[Any]:
        raise AssertionError("nothing is left to run")

    again = transfer.transfer(board_of(upstream(), done), Place(done, accelerator="cpu"), run=none)
    assert again.to_json() == ended.to_json()


# ------------------------------------------------------------------------------------------ mistakes


def test_a_run_that_is_not_finished_is_named(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'ce' on digits / symmetric 40% .*, seed 0: no finished run below .*missing"):
        board_of(upstream(), tmp_path)
    other = upstream(methods=[{"name": "ce", "hparams": {"link": "sigmoid"}}])
    with pytest.raises(UserError, match="run the board first, with the same code and settings"):
        board_of(other, done)


def remove(folder: Path) -> None:
    (folder / "model.pt").unlink()


def cut(folder: Path) -> None:
    (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:1000])


def exchange(folder: Path) -> None:
    shutil.copy(run_of(folder.parent.parent, "ce", 1) / "model.pt", folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(remove, "model.pt is missing"), (cut, "model.pt cannot be read"), (exchange, "model.pt holds other weights")],
)
def test_weights_that_are_missing_damaged_or_others(done: Path, tmp_path: Path, damage: Any, message: str) -> None:
    out, one = tmp_path / "out", upstream(methods=["ce"], seeds=[0])
    shutil.copytree(done / "runs", out / "runs")
    damage(run_of(out, "ce"))
    with pytest.raises(UserError, match=message):
        transfer.check_images(board_of(one, out, ["digits"]), Place(out, accelerator="cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": ["digit"]}, "'digit'.*digits"),
        ({"column": "pairflip 40%"}, r"column 'pairflip 40%'.*; give one of: digits / symmetric 40%"),
        ({"settings": ["seeds=[7]"]}, "seeds: 7: the upstream board has no such run of 'ce'"),
        ({"settings": ["recipe.epoch=7"]}, "recipe.epoch.*epochs"),
        ({"method": "cee"}, "'cee'.*ce"),
    ],
)
def test_a_mistake_is_one_line(done: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        board_of(upstream(), done, **options)
    assert "\n" not in str(error.value)


def test_of_several_columns_one_must_be_chosen() -> None:
    several = upstream(noise=[{"kind": "none"}, {"kind": "symmetric", "rate": 0.4}])
    with pytest.raises(UserError, match=r"no column is chosen.*: digits / clean; digits / symmetric 40%"):
        transfer.only_column(several)
    assert transfer.only_column(several, "clean").noise == several.noise[:1]
    assert transfer.only_column(several, f"digits / {several.noise[1].label}").noise == several.noise[1:]


def test_a_dataset_of_too_few_images_is_refused(done: Path) -> None:
    made = board_of(upstream(methods=["ce"]), done, ["shapes@1201"])
    with pytest.raises(UserError, match="'shapes@1201': there are 1200 training images"):
        transfer.transfer(made, Place(done, accelerator="cpu"), run=here)


def test_a_dataset_of_other_images_is_refused_and_those_that_fit_are_named(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_dataset

    def coloured(name: str, *given: Any) -> ImageData:
        data = real(name, *given)
        if not name.startswith("shapes"):
            return data
        images = [np.repeat(np.asarray(part), 3, axis=3) for part in (data.train_images, data.test_images)]
        return replace(
            data, train_images=images[0], test_images=images[1], mean=3 * tuple(data.mean), std=3 * tuple(data.std)
        )

    monkeypatch.setattr(loading, "load_dataset", coloured)
    with pytest.raises(
        UserError, match=r"shapes@150: .*3x8x8.*; of the datasets that were named, digits@200 would fit"
    ):
        transfer.check_images(board_of(upstream(), done), Place(done, accelerator="cpu"))


# ------------------------------------------------------------------------------------------ the command


def test_the_command_prints_both_tables_or_json(ended: transfer.Transferred, done: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(UPSTREAM), encoding="utf-8")
    to = ",".join(DOWNSTREAM)
    said = ["transfer", str(file), "--to", to, "--size", "150", "--set", SHORT, "--out", str(done)]
    shown = CliRunner().invoke(cli.app, said)
    assert shown.exit_code == 0, shown.output
    assert "shapes@150" in shown.output
    assert "the mean" in shown.output
    found = json.loads(CliRunner().invoke(cli.app, [*said, "--json"]).stdout)
    assert found == json.loads(ended.to_json())


def test_the_command_needs_datasets() -> None:
    outcome = CliRunner().invoke(cli.app, ["transfer", "digits"])
    assert isinstance(outcome.exception, UserError)
    assert "--to" in str(outcome.exception)
