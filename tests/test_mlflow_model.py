"""Models in MLflow: chosen, logged once, registered once, loaded without dataset or run folder, predicting the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisebench import _deploying, _model_store, tracking
from noisebench.board import describe_board
from noisebench.cell import run_cell
from noisebench.config import Benchmark, build
from noisebench.errors import UserError
from noisebench.finished import FinishedRun
from noisebench.mlflow_model import DEVICE, Predictor

pytestmark = pytest.mark.usefixtures("one_picture")

BOARD = {
    "name": "models",
    "title": "Models <b>of</b> a | small board",
    "datasets": ["digits"],
    "noise": [{"kind": "symmetric", "rate": 0.4}],
    "seeds": [0, 1],
    "methods": [
        "ce",  # the plainest
        "transition_true",  # built with the true T
        {"name": "het_full", "label": "het | *draws*", "hparams": {"train_samples": 5, "eval_samples": 7}},
    ],
    "recipe": {"epochs": 1, "train_size": 300, "test_size": 150, "batch_size": 32},
    "tracking": {"register_as": "small-models"},
}


class Made:
    """A board that is sent, and how to look at it."""

    def __init__(self, out: Path) -> None:
        self.out, self.uri = out, tracking.store_uri(out)
        self.benchmark: Benchmark = build(Benchmark, BOARD, "board")
        self.folders = {}
        for cell in self.benchmark.cells():
            assert run_cell(cell, out, accelerator="cpu")["status"] == "finished"
            self.folders[cell.method.label, cell.seed] = out / cell.folder()
        describe_board(self.benchmark, out)

    def sync(self) -> tracking.Pending:
        """As a newly started process would."""
        sender = tracking.Sender(self.uri, self.out, "models")
        try:
            return sender.sync()
        finally:
            sender.close()

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def models(self) -> list[Any]:
        experiment = self.client().get_experiment_by_name("noisebench/models").experiment_id
        return sorted(self.client().search_logged_models([experiment]), key=lambda model: str(model.tags["label"]))

    def versions(self) -> list[Any]:
        return list(self.client().search_model_versions("name = 'small-models'"))

    def acknowledged(self) -> Path:
        return self.out / "boards/models/sent-models.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    import mlflow

    made = Made(tmp_path_factory.mktemp("out"))
    assert not made.sync()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", made.uri)  # MLflow sets it, too, and would leave it to other modules
        mlflow.set_tracking_uri(made.uri)
        yield made
    mlflow.set_tracking_uri(None)


def load(made: Made, label: str) -> Any:
    import mlflow

    (model,) = [model for model in made.models() if model.tags["label"] == label]
    return mlflow.pyfunc.load_model(model.model_uri)


def folder_of(made: Made, model: Any) -> Path:
    return made.folders[model.tags["label"], int(model.tags["seed"])]


# --------------------------------------------------------------------------------------------------- which, and once


def test_each_method_has_one_model_of_the_seed_with_the_best_validation_score(made: Made) -> None:
    models = made.models()
    assert [model.tags["label"] for model in models] == ["ce", "het | *draws*", "transition_true"]
    for model in models:
        label = model.tags["label"]
        scores = {
            seed: json.loads((made.folders[label, seed] / "metrics.jsonl").read_text())["metrics"]["val.accuracy"]
            for seed in (0, 1)
        }
        assert scores[int(model.tags["seed"])] == max(scores.values())
        assert str(model.status) == "READY"
        result = json.loads((folder_of(made, model) / "result.json").read_text())
        assert {m.key: m.value for m in model.metrics}["selected.accuracy"] == result["metrics"]["selected"]["accuracy"]
        run = made.client().get_run(model.source_run_id)
        assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
        assert model.model_uri in run.data.tags["mlflow.note.content"]


def test_each_is_a_version_of_the_registered_model_and_the_best_has_an_alias(made: Made) -> None:
    assert sorted(version.tags["label"] for version in made.versions()) == ["ce", "het | *draws*", "transition_true"]
    best = made.client().get_model_version_by_alias("small-models", "best")
    scores = json.loads(made.acknowledged().read_text())["models"]
    fair = {model["version"]: model["score"] for model in scores.values() if model["label"] != "transition_true"}
    assert fair[str(best.version)] == max(fair.values()), "it was given the true T"
    assert best.tags["privileged"] == "no"


@pytest.mark.parametrize("lost", ["nothing", "the acknowledgement", "everything noted"])
def test_sending_again_makes_no_second_model_and_no_second_version(made: Made, lost: str) -> None:
    before = [model.model_id for model in made.models()], sorted(v.version for v in made.versions())
    if lost != "nothing":
        made.acknowledged().unlink()
    if lost == "everything noted":
        for file in [*made.out.glob("runs/*/sent-models.json"), made.out / "boards/models/sent.json"]:
            file.unlink()
    assert not made.sync()
    assert not made.sync()
    assert before == ([model.model_id for model in made.models()], sorted(v.version for v in made.versions()))


@pytest.mark.parametrize(
    "step", ["log_model_artifacts", "log_outputs", "finalize_logged_model", "create_model_version"]
)
def test_a_kill_at_any_step_is_taken_up_where_it_was(made: Made, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    model = made.models()[0]
    for version in made.client().search_model_versions(f"run_id = '{model.source_run_id}'"):
        made.client().delete_model_version("small-models", version.version)
    made.client().delete_logged_model(model.model_id)
    made.acknowledged().unlink()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, killed)
        with pytest.raises(KeyboardInterrupt):
            made.sync()
    assert not made.sync()
    assert [one.tags["label"] for one in made.models()] == ["ce", "het | *draws*", "transition_true"]
    assert [str(one.status) for one in made.models()] == ["READY"] * 3
    assert len(made.versions()) == 3
    assert load(made, "ce").predict(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)


def test_of_two_that_were_made_at_once_one_stays(made: Made) -> None:
    model = made.models()[0]
    made.client().create_logged_model(model.experiment_id, "twin", model.source_run_id, dict(model.tags))
    made.acknowledged().unlink()
    assert not made.sync()
    assert len(made.models()) == 3
    assert load(made, "ce").predict(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
    assert not made.sync()


def test_a_server_that_keeps_no_models_is_told_once_and_is_no_error(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def older(*_: object, **__: object) -> None:
        raise MlflowException("API request to endpoint failed with error code 404", ENDPOINT_NOT_FOUND)

    models = made.models()
    made.acknowledged().unlink()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_logged_models", older)
        assert not made.sync()
        note = made.client().get_run(models[0].source_run_id).data.tags["mlflow.note.content"]
        assert "No model was logged: the MLflow server is older than 3.0" in note
        patch.setattr(MlflowClient, "search_runs", older)  # nothing is asked again
        assert not made.sync()
    made.acknowledged().unlink()
    assert not made.sync()
    assert [model.model_id for model in made.models()] == [model.model_id for model in models]


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " ", "..", "a\nb", "x" * 201])
def test_a_name_that_the_registry_refuses_is_told_before_the_first_cell(name: str) -> None:
    with pytest.raises(UserError, match=r"board: tracking\.register_as: .*: give a name of at most 200") as wrong:
        build(Benchmark, BOARD | {"tracking": {"register_as": name}}, "board")
    assert "\n" not in str(wrong.value)


# ----------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("label", ["ce", "het | *draws*", "transition_true"])
def test_a_model_predicts_what_the_harness_did_to_the_last_bit(made: Made, label: str) -> None:
    model = load(made, label)
    (stored,) = [one for one in made.models() if one.tags["label"] == label]
    run = FinishedRun.load(folder_of(made, stored), accelerator="cpu")
    asked = FinishedRun.load(folder_of(made, stored), accelerator="cpu").predict().numpy()
    images = run._setup.evaluator.test._source.images.permute(0, 2, 3, 1).numpy()  # those that were evaluated
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert np.array_equal(model.predict(images), asked)
    assert np.array_equal(model.predict(images), asked), "the same images have the same probabilities"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_loads_in_a_fresh_process_without_dataset_and_run_folder(made: Made, tmp_path: Path) -> None:
    model = made.models()[0]
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    folder = made.out / "mlflow-artifacts/models" / model.model_id / "artifacts"
    runs = made.out / "runs"
    runs.rename(made.out / "away")
    code = (
        "import sys, numpy as np, mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model({str(folder)!r})\n"  # from its files, in half the time
        "np.save('out.npy', model.predict(np.load('images.npy')))\n"
        "print('noisebench.loading' in sys.modules and 'noisebench.datasets.digits' in sys.modules)"
    )
    try:
        environment = {key: value for key, value in os.environ.items() if key != "NOISEBENCH_DATA"}
        environment |= {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
    finally:
        (made.out / "away").rename(runs)
    assert done.stdout.strip() == "False"
    assert np.array_equal(np.load(tmp_path / "out.npy"), load(made, "ce").predict(images))


def test_the_folder_of_a_model_says_what_it_takes_and_needs_and_holds_no_pickled_object(made: Made) -> None:
    model = load(made, "ce")
    assert str(model.metadata.signature.inputs.inputs[0].type) == "uint8"
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 10)
    assert model.metadata.signature.params is None
    (folder,) = (made.out / "mlflow-artifacts/models").glob(f"{made.models()[0].model_id}/artifacts")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    environment = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
    assert names - {"registered_model_meta"} == environment | {
        "data/model.json",
        "data/weights.pt",
    }  # MLflow notes loads
    needed = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert needed == ["mlflow", "noisebench", "torch", "numpy"]


def predictor(made: Made, label: str = "ce") -> Predictor:
    (model,) = [model for model in made.models() if model.tags["label"] == label]
    return Predictor(made.out / "mlflow-artifacts/models" / model.model_id / "artifacts/data")


def test_lists_serve_and_the_classes_are_named(made: Made) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    one = predictor(made)
    assert np.array_equal(one.predict(images.tolist()), one.predict(images))
    assert one.predict(images[:0]).shape == (0, 10)
    assert one.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((2, 8, 8, 1)), r"images are float64 \[2, 8, 8, 1\]; give uint8 \[N, 8, 8, 1\]"),
        (np.zeros((2, 8, 8), np.uint8), r"images are uint8 \[2, 8, 8\]; give uint8 \[N, 8, 8, 1\]"),
        (np.zeros((2, 1, 8, 8), np.uint8), r"images are uint8 \[2, 1, 8, 8\]; give uint8"),
        ([[1, 2], [3]], "images are lists of unequal lengths; give uint8"),
        ([[[[300]] * 8] * 8], r"pixels range over 300..300; give 0..255"),
        ("text", "images are <U4"),
        (None, "images are object"),
    ],
    ids=["float", "no channel", "channels first", "ragged", "too bright", "text", "nothing"],
)
def test_a_wrong_input_is_one_clear_line(made: Made, images: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as wrong:
        predictor(made).predict(images)
    assert "\n" not in str(wrong.value)


def test_mlflow_itself_refuses_a_wrong_input_before_that(made: Made) -> None:
    model = load(made, "ce")
    for images in (np.zeros((2, 8, 8, 1)), np.zeros((2, 9, 8, 1), np.uint8)):
        with pytest.raises(Exception, match=r"expected (dtype uint8|shape)"):
            model.predict(images)
    with pytest.raises(UserError, match="give uint8"):
        model.get_raw_model().predict(np.zeros((2, 8, 8, 1)))


def test_a_device_that_is_not_there(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, "nonsense")
    with pytest.raises(UserError, match=f"{DEVICE}: 'nonsense' is no device of this machine"):
        load(made, "ce")


def test_damaged_weights_and_those_of_another_method_are_told(made: Made, tmp_path: Path) -> None:
    (model, *_) = made.models()
    there = made.out / "mlflow-artifacts/models" / model.model_id / "artifacts/data"
    shutil.copytree(there, tmp_path / "a")
    (tmp_path / "a/weights.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"weights\.pt cannot be read"):
        Predictor(tmp_path / "a")
    torch.save({"other": torch.zeros(1)}, tmp_path / "a/weights.pt")
    with pytest.raises(UserError, match="the weights do not fit the method that is installed here"):
        Predictor(tmp_path / "a")


# -------------------------------------------------------------------------------------------------- which weights


@pytest.fixture
def cell(made: Made, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A finished cell in an output folder of its own, and that folder."""
    board = json.loads((made.out / "boards/models/board.json").read_text())
    shutil.copytree(made.out / board["cells"][0]["folder"], tmp_path / board["cells"][0]["folder"])
    return board["cells"][0], tmp_path


def test_the_weights_are_those_of_the_selected_epoch_where_they_are_there(cell: tuple[dict[str, Any], Path]) -> None:
    run = cell[1] / cell[0]["folder"]
    result = json.loads((run / "result.json").read_text())
    result |= {"epochs": 9, "metrics": {"last": {"epoch": 9}, "selected": {"epoch": 4}, "best": {"epoch": 5}}}
    (run / "result.json").write_text(json.dumps(result))

    def staged(name: str) -> tuple[Any, ...]:
        made = _deploying.stage(*cell, cell[1] / name / "data")
        return made.about["which"], made.about["epoch"], (made.folder / "weights.pt").resolve().name

    assert staged("without it") == ("last", 9, "model.pt")
    (run / "selected.pt").write_bytes(b"weights")
    assert staged("with it") == ("selected", 4, "selected.pt")
    del result["metrics"]["selected"]
    (run / "result.json").write_text(json.dumps(result))
    assert staged("no split") == ("last", 9, "model.pt")


@pytest.mark.parametrize("method", ["ce", {"name": "het_full", "hparams": {"train_samples": 5, "eval_samples": 7}}])
def test_a_model_of_an_epoch_before_the_last_predicts_as_the_method_did_then(tmp_path: Path, method: Any) -> None:
    recipe = BOARD["recipe"] | {"epochs": 5, "lr": 0.3}  # so wild that the last epoch is seldom the best
    short = BOARD | {"methods": [method], "recipe": recipe, "seeds": list(range(6))}
    for cell in build(Benchmark, short, "board").cells():
        result = run_cell(cell, tmp_path, accelerator="cpu")
        epoch = result["metrics"]["selected"]["epoch"]
        if epoch < 5:
            break
    assert epoch < 5, "no seed chose an epoch before the last"
    about = cell.identity() | {"folder": cell.folder()}
    staged = _deploying.stage(about, tmp_path, tmp_path / "model")
    assert (staged.about["which"], staged.about["epoch"]) == ("selected", epoch)
    evaluator = FinishedRun.load(tmp_path / cell.folder(), accelerator="cpu")._setup.evaluator
    images = evaluator.test._source.images.permute(0, 2, 3, 1).numpy()
    scored = evaluator.score(torch.from_numpy(Predictor(staged.folder).predict(images)), evaluator.test.labels)
    then = json.loads((tmp_path / cell.folder() / "metrics.jsonl").read_text().splitlines()[epoch - 1])["metrics"]
    assert scored == {name: then[f"test.{name}"] for name in scored}


def test_a_run_without_weights_has_no_model_and_says_why(cell: tuple[dict[str, Any], Path]) -> None:
    (cell[1] / cell[0]["folder"] / "model.pt").unlink()
    with pytest.raises(_deploying.NoModel, match=r"model\.pt is not in its run folder"):
        _deploying.stage(*cell, cell[1] / "model")


def test_what_a_board_asks_for_decides_the_groups(made: Made) -> None:
    board = json.loads((made.out / "boards/models/board.json").read_text())
    ended = {cell["fingerprint"]: "hash" for cell in board["cells"]}

    def sizes(models: str, ended: dict[str, str] = ended) -> list[int]:
        board["config"]["tracking"] = {"models": models}
        return [len(group.cells) for group in _deploying.groups(board, ended)]

    assert (sizes("best"), sizes("all"), sizes("none")) == ([2, 2, 2], [1] * 6, [])
    assert sizes("best", dict(list(ended.items())[:5])) == [2, 2], "a method waits for its last seed"


def test_an_alias_has_no_character_that_mlflow_refuses() -> None:
    assert _model_store.alias_of("best", "digits, symmetric 40% (excl. true)") == "best-digits-symmetric-40-excl-true"
