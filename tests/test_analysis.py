"""Analyses of finished runs: a small board's against brute force, and a method's whose covariance is known."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from typer.testing import CliRunner

from noisebench import _analysis_noise_figures, analysis, finished, noise, tracking
from noisebench._analysis_figures import ranks as ranks_figure
from noisebench.analysis import FinishedRun
from noisebench.assembly import split
from noisebench.board import describe_board
from noisebench.cell import run_cell
from noisebench.cli import app
from noisebench.config import Benchmark, Cell, Recipe, build
from noisebench.errors import UserError
from noisebench.finding import Finding
from noisebench.method import Method

BOARD = {
    "name": "small",
    "datasets": ["digits"],
    "noise": [{"kind": "asymmetric", "rate": 0.4}],
    "seeds": [0],
    "methods": [
        "ce",
        {"name": "het_full", "label": "full", "hparams": {"train_samples": 8, "eval_samples": 20, "temperature": 1}},
        {"name": "het_diag", "label": "diag", "hparams": {"train_samples": 8, "eval_samples": 20}},
    ],
    "recipe": {"epochs": 4, "train_size": 400, "batch_size": 32, "checkpoint_seconds": 1000},
}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are a few bytes: tests/test_figures.py draws each."""
    monkeypatch.setattr(Finding, "_laid_out", lambda made: nullcontext())
    monkeypatch.setattr(Finding, "_save", lambda made, path, **options: path.write_bytes(b"\x89PNG"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A finished board that was never sent: its output folder, and the run folders by label."""
    out = tmp_path_factory.mktemp("out")
    benchmark: Benchmark = build(Benchmark, BOARD, "board")
    for cell in benchmark.cells():
        assert run_cell(cell, out, accelerator="cpu")["status"] == "finished"
    describe_board(benchmark, out)
    return out, {cell.method.label: out / cell.folder() for cell in benchmark.cells()}


@pytest.fixture
def folders(board: tuple[Path, dict[str, Path]]) -> dict[str, Path]:
    return board[1]


def load(folder: Path) -> FinishedRun:
    """The run, with any warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return FinishedRun.load(folder, accelerator="cpu")


@pytest.fixture
def full(folders: dict[str, Path]) -> FinishedRun:
    return load(folders["full"])


@pytest.fixture
def ce(folders: dict[str, Path]) -> FinishedRun:
    return load(folders["ce"])


# ------------------------------------------------------------------------------------------------ a finished run


@pytest.mark.parametrize("label", ["ce", "full", "diag"])
def test_a_run_is_read_back_with_its_numbers_to_the_last_bit(folders: dict[str, Path], label: str) -> None:
    run = load(folders[label])
    last = json.loads((folders[label] / "result.json").read_text())["metrics"]["last"]
    found = run.metrics()
    assert {key: found[key] for key in ("accuracy", "nll", "ece", "top5")} == {key: last[key] for key in found}
    right = run.predict().argmax(1).numpy() == run.data.test_labels
    assert right.mean() == pytest.approx(last["accuracy"], abs=1e-7)
    assert torch.equal(run.predict(), run.predict())


def test_images_of_ones_own_are_predicted_like_the_test_set(ce: FinishedRun) -> None:
    images = np.asarray(ce.data.test_images)[:600]
    torch.testing.assert_close(ce.predict(images), ce.predict()[:600], rtol=1e-5, atol=1e-6)


def test_neither_threads_nor_the_global_generator_notice(folders: dict[str, Path]) -> None:
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        run = load(folders["full"])
        run.metrics()
        run.with_settings(temperature=0.5).predict()
        analysis.mean_covariance(run)
        drawn = torch.rand(3)
        assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_other_settings_keep_the_weights_and_leave_the_run_as_it_was(full: FinishedRun) -> None:
    before = full.metrics()
    other = full.with_settings(temperature=3.0)
    assert other.hparams["temperature"] == 3.0
    assert full.hparams["temperature"] == 1.0
    for mine, theirs in zip(full.method.state_dict().values(), other.method.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert other.metrics()["nll"] != before["nll"]
    assert full.metrics() == before
    assert full.with_settings(temperature=1.0).metrics() == before


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 3}, "the weights do not fit, they were not learned under rank=3: size mismatch"),
        ({"learn_temperature": True}, "under learn_temperature=True: Missing key"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperatur": 1.0}, "did you mean temperature"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    full: FinishedRun, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        full.with_settings(**settings)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def copied(board: tuple[Path, dict[str, Path]], tmp_path: Path) -> Path:
    """A copy of the board's ce run with its noise, to be changed."""
    out, folders = board
    shutil.copytree(out / "noise", tmp_path / "noise")
    return Path(shutil.copytree(folders["ce"], tmp_path / "runs" / folders["ce"].name))


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_changed_code_is_a_warning_and_no_error(copied: Path) -> None:
    change(copied / "config.json", fingerprint="0" * 64)  # as if the code gave another one than it did
    with pytest.warns(UserWarning, match=r"the code of ce or digits.* is no longer what") as caught:
        run = FinishedRun.load(copied, accelerator="cpu")
    assert [w for w in caught if "\n" in str(w.message)] == []
    assert run.metrics()["accuracy"] == run.result["metrics"]["last"]["accuracy"]


def test_a_run_that_does_not_say_which_settings_it_was_given_is_not_compared(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    assert config.pop("given") == {}
    (copied / "config.json").write_text(json.dumps(config | {"fingerprint": "0" * 64}))
    load(copied)


def test_what_is_no_finished_run_is_refused_in_one_line(copied: Path, tmp_path: Path) -> None:
    model = copied / "model.pt"
    kept = model.read_bytes()
    with pytest.raises(UserError, match="no finished run"):
        FinishedRun.load(tmp_path)
    model.write_bytes(kept[:100])
    with pytest.raises(UserError, match=r"model\.pt cannot be read"):
        FinishedRun.load(copied)
    state = torch.load(copied / "model.pt", weights_only=True) if model.write_bytes(kept) else {}
    next(iter(state.values())).add_(1)
    torch.save(state, model)
    with pytest.raises(UserError, match="other weights than result"):
        FinishedRun.load(copied)
    model.write_bytes(kept)
    shutil.rmtree(tmp_path / "noise")
    with pytest.raises(UserError, match="is missing; a noise artefact"):
        FinishedRun.load(copied)


# ---------------------------------------------------------------------------------------------- covariances


def test_the_mean_covariance_is_that_of_brute_force(full: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """d² and V from the head's layers image by image, against matrices streamed in batches of 7."""
    backbone, head = full.method.net  # type: ignore[misc]
    images = torch.from_numpy(np.asarray(full.data.test_images)).permute(0, 3, 1, 2)
    x = (images / 255 - torch.tensor(full.data.mean)[:, None, None]) / torch.tensor(full.data.std)[:, None, None]
    expected = torch.zeros(10, 10, dtype=torch.float64)
    with torch.no_grad():
        for feature in backbone(x):
            d = torch.nn.functional.softplus(head.scale(feature)) + 1e-3
            v = head.factors(feature).view(10, -1)
            expected += (torch.diag(d**2) + v @ v.T).double() / len(x)
    monkeypatch.setattr(finished, "COVARIANCE_ELEMENTS", 7 * 100)
    mean = analysis.mean_covariance(full)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)

    pairs = analysis.top_covariances(full, count=45)
    sizes = [abs(pair.covariance) for pair in pairs]
    assert sizes == sorted(sizes, reverse=True)
    assert len({(pair.a, pair.b) for pair in pairs}) == 45
    assert all(p.covariance == mean[int(p.a), int(p.b)] and p.a < p.b for p in pairs)  # digits are named 0 to 9
    assert analysis.top_covariances(full, count=3) == pairs[:3]


def test_methods_without_covariances_are_told_in_one_line(ce: FinishedRun, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="ce offers no covariance"):
        analysis.top_covariances(ce)
    with pytest.raises(UserError, match="independent from class to class"):
        analysis.top_covariances(load(folders["diag"]))


class Known(Method):
    """Predicts what it is told, image by image; the covariance of an image is drawn from its pixels."""

    name = "known"

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers, self.at = answers, 0

    def predict(self, x: Tensor) -> Tensor:
        self.at %= len(self.answers)
        self.at += len(x)
        return torch.nn.functional.one_hot(self.answers[self.at - len(x) : self.at], 10).float()

    def covariance(self, x: Tensor) -> Tensor:
        root = torch.stack([torch.outer(torch.linspace(0.3, 2, 10), image.flatten()[20:40]).sin() for image in x * 7])
        return root @ root.transpose(1, 2) * torch.linspace(0.5, 2, 10)  # not symmetric: rows and columns differ


def told(run: FinishedRun, answers: Tensor) -> FinishedRun:
    """The run with a method that gives these answers."""
    other = copy.copy(run)
    other.method = Known(answers)
    return other


def test_ranks_are_those_of_argsort(full: FinishedRun, ce: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = torch.from_numpy(full.data.test_labels)
    drawn = torch.Generator().manual_seed(3)
    mine = torch.where(torch.rand(len(truth), generator=drawn) < 0.6, truth, (truth + 1) % 10)
    wrong = (truth + torch.randint(1, 10, truth.shape, generator=drawn)) % 10
    theirs = torch.where(torch.rand(len(truth), generator=drawn) < 0.5, truth, wrong)
    run, reference = told(full, mine), told(ce, theirs)

    images = torch.from_numpy(np.asarray(full.data.test_images)).permute(0, 3, 1, 2)
    matrices = run.method.covariance((images / 255 - full.data.mean[0]) / full.data.std[0])
    assert matrices is not None
    expected = []
    for i, true in enumerate(truth.tolist()):
        if mine[i] == true and theirs[i] != true:
            order = [j for j in matrices[i, true].abs().argsort(descending=True).tolist() if j != true]
            expected.append(1 + order.index(int(theirs[i])))
    monkeypatch.setattr(finished, "COVARIANCE_ELEMENTS", 50 * 100)
    ranks = analysis.covariance_ranks(run, reference)
    assert 100 < len(expected) < len(truth)
    assert ranks.tolist() == expected
    figure = ranks_figure(run, reference, ranks, 0.5)
    assert sum(row[2] for row in figure.rows) == len(ranks) == pytest.approx(sum(row[3] for row in figure.rows))
    assert figure.rows[0] == (1, 1, expected.count(1), len(ranks) / 9)


@pytest.mark.parametrize("key", ["dataset", "noise_label", "seed", "noise_sha256"])
def test_ranks_need_two_runs_of_one_column_and_seed(full: FinishedRun, ce: FinishedRun, key: str) -> None:
    ce.config[key] = "another"
    with pytest.raises(UserError, match=f"its {key} is another"):
        analysis.covariance_ranks(full, ce)


def test_ranks_need_an_image_that_one_gets_right_and_the_other_wrong(full: FinishedRun, ce: FinishedRun) -> None:
    truth = torch.from_numpy(full.data.test_labels)
    with pytest.raises(UserError, match="no test image that full gets right and ce wrong"):
        analysis.covariance_ranks(told(full, truth), told(ce, truth))


def test_the_p_value_is_that_of_uniform_ranks() -> None:
    def p_value(*ranks: int, classes: int = 10) -> float:
        return analysis.rank_p_value(torch.tensor(ranks), classes)

    assert p_value(1) == pytest.approx(1 / 9)
    assert p_value(9) == pytest.approx(1)
    assert p_value(1, 2) == pytest.approx(3 / 81)  # (1, 1), (1, 2), (2, 1)
    assert p_value(*[1] * 12) == pytest.approx(9.0**-12, rel=1e-9)
    draws = torch.randint(1, 10, (2000, 30), generator=torch.Generator().manual_seed(1))
    share = float(np.mean([analysis.rank_p_value(row, 10) <= 0.05 for row in draws]))
    assert 0.03 < share < 0.06
    many = torch.randint(1, 1000, (200,), generator=torch.Generator().manual_seed(2))
    z = (float(many.double().mean()) - 500) / math.sqrt((999**2 - 1) / 12 / 200)
    assert analysis.rank_p_value(many, 1000) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-3)


# ------------------------------------------------------------------------------------- accuracy against a setting


def test_accuracy_against_a_setting_is_that_of_the_changed_method(full: FinishedRun) -> None:
    points = analysis.accuracy_against(full, "eval_samples", (1, 20))
    last = full.result["metrics"]["last"]
    assert tuple(points[1]) == (20, last["accuracy"], last["nll"])  # its own setting gives its own numbers
    assert points[0].nll > points[1].nll  # one sample is a worse estimate of the mean probability

    cold, warm = analysis.accuracy_against(full, "temperature", (1.0, 5.0))
    assert (cold.score, cold.nll) == (last["accuracy"], last["nll"])
    method = full.with_settings(temperature=5.0)
    truth = torch.from_numpy(full.data.test_labels)
    assert warm.nll == pytest.approx(float(torch.nn.functional.nll_loss(method.predict().log(), truth)), rel=1e-5)


def test_a_setting_that_changes_nothing_is_no_curve(full: FinishedRun, ce: FinishedRun) -> None:
    with pytest.raises(UserError, match="predictions do not depend on train_samples"):
        analysis.accuracy_against(full, "train_samples", (1, 2))
    with pytest.raises(UserError, match="ce has no setting eval_samples; it has link"):
        analysis.accuracy_against(ce, "eval_samples", (1, 2))


# ------------------------------------------------------------------------------------- what is learned of the noise


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory, one_picture: None) -> dict[str, Path]:
    """Finished runs of methods that learn T, tell outliers or score labels: their folders by method."""
    out = tmp_path_factory.mktemp("learners")
    symmetric, open_set = {"kind": "symmetric", "rate": 0.4}, {"kind": "open_set", "rate": 0.4, "source": "shapes"}
    runs = {"transition": symmetric, "m_dyr_h": symmetric, "transition_outlier": open_set, "gce": open_set}
    found = {}
    for method, spec in runs.items():
        about = {"method": method, "dataset": "digits", "noise": spec, "seed": 0, "recipe": BOARD["recipe"]}
        cell: Cell = build(Cell, about, "test")
        result = run_cell(cell, out, accelerator="cpu")
        assert result["status"] == "finished", result
        found[method] = out / cell.folder()
    return found


def test_t_asked_and_realised_stand_beside_the_learned_one(learners: dict[str, Path]) -> None:
    run = load(learners["transition"])
    found = analysis.transitions(run)
    np.testing.assert_array_equal(found.asked, noise.transition_matrix("symmetric", 0.4, 10))
    np.testing.assert_array_equal(found.learned, run.method.state_dict()["layer.matrix"].double().numpy())
    stored = noise.load(run.out / run.config["noise_folder"])
    train_at = split(1200, build(Recipe, run.config["recipe"], ""), seed=0)[0].tolist()
    assert len(train_at) == 360  # 400, of which a tenth is for validation
    for true in range(10):
        given = [stored.labels[i] for i in train_at if run.data.train_labels[i] == true]
        np.testing.assert_allclose(found.realised[true], np.bincount(given, minlength=10) / len(given))
    error = run.result["metrics"]["last"]["transition_error"]
    assert found.error(found.learned, found.asked) == pytest.approx(error, abs=1e-7)
    assert found.error(np.eye(10), found.asked) == pytest.approx(0.08)
    unknown = found.realised.copy()
    unknown[3] = np.nan  # a class without samples is left out of the mean
    others = np.delete(np.abs(found.learned - found.realised), 3, axis=0)
    assert found.error(found.learned, unknown) == pytest.approx(others.mean())


def test_a_t_of_another_shape_is_not_set_beside_that_of_the_noise(learners: dict[str, Path]) -> None:
    run = load(learners["transition_outlier"])
    with pytest.raises(UserError, match=r"^transition_outlier offers no T \(Method\.transition\)"):
        analysis.transitions(run)
    run.method = Scored(torch.zeros(0), torch.eye(10))
    with pytest.raises(UserError, match=r"the T of the method is \[10, 10\], that of the noise \[11, 11\]"):
        analysis.transitions(run)
    run.method = Scored(torch.zeros(0), torch.eye(11))
    found = analysis.transitions(run)
    assert found.error(found.learned, found.asked) == pytest.approx(1.8 / 121)  # of the last row alone, (.09, ..., .1)
    assert run.noisy.outliers is not None
    assert run.noisy.labelled is not None
    assert found.realised[10, 10] == run.noisy.labelled.sum() / (run.noisy.outliers >= 0).sum()
    figure = _analysis_noise_figures.transitions(run, found)
    assert figure.as_json()["states"] == [*"0123456789", "outlier"]


class Scored(Method):
    """Gives these scores and this T."""

    name = "scored"

    def __init__(self, scores: Tensor | None, matrix: Tensor | None = None) -> None:
        super().__init__()
        self.scores, self.matrix = scores, matrix

    def noise_scores(self, run: Any) -> Tensor | None:
        return self.scores

    def transition(self) -> Tensor | None:
        return self.matrix


def test_scores_are_judged_as_in_training_and_their_calibration_by_hand(learners: dict[str, Path]) -> None:
    run = load(learners["m_dyr_h"])
    found = analysis.noise_detection(run)
    assert found.auc == pytest.approx(run.result["metrics"]["last"]["noise_auc"], abs=1e-6)
    assert found.auc == pytest.approx(roc_auc_score(found.wrong, found.scores))
    assert found.ece == pytest.approx(ece(found.scores, found.wrong), abs=1e-6)

    figure = _analysis_noise_figures.scores(run, found)
    assert sum(row[2] for row in figure.rows) == int((~found.wrong).sum())
    assert sum(row[3] for row in figure.rows) == int(found.wrong.sum())
    gaps = [abs((right + bad) * mean - bad) for _, _, right, bad, mean in figure.rows if mean is not None]
    assert sum(gaps) / 360 == pytest.approx(found.ece, abs=1e-6)

    run.method = Scored(3 * found.scores - 1)  # no probabilities: the same order, and no calibration
    again = analysis.noise_detection(run)
    assert (again.auc, again.ece) == (pytest.approx(found.auc), None)
    assert _analysis_noise_figures.scores(run, again).facts["ece"] is None


def ece(scores: Tensor, wrong: Tensor) -> float:
    """In 15 bins, image by image."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for score, bad in zip(scores.tolist(), wrong.tolist(), strict=True):
        bins.setdefault(min(14, int(score * 15)), []).append((score, bad))
    return sum(abs(sum(s - b for s, b in members)) for members in bins.values()) / len(scores)


def test_an_outlier_and_an_image_with_one_wrong_entry_of_several_count_as_wrong(learners: dict[str, Path]) -> None:
    run = load(learners["gce"])
    with pytest.raises(UserError, match=r"^gce offers no scores of its training labels \(Method\.noise_scores\)"):
        run.noise_scores()
    assert run.noisy.outliers is not None
    outliers = torch.from_numpy(run.noisy.outliers >= 0)
    run.method = Scored(outliers.double())
    assert analysis.noise_detection(run).auc == 1.0
    assert torch.equal(run.noise_scores()[1], outliers)

    true = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
    labels = true ^ np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    run.true_labels, run.noisy = true, replace(run.noisy, labels=labels, outliers=None, labelled=None)
    run.method = Scored(torch.zeros(4))
    assert run.noise_scores()[1].tolist() == [False, True, True, False]
    run.true_labels = labels
    with pytest.raises(UserError, match="no training label is wrong: there is nothing to tell apart"):
        analysis.noise_detection(run)


def test_the_inlier_curves_of_two_runs_stand_side_by_side(learners: dict[str, Path]) -> None:
    run, other = load(learners["transition_outlier"]), load(learners["gce"])
    done = analysis.analyse(run, other, samples=(), temperatures=())
    found = done.found["inlier_detection_gce"]
    assert set(done.found) == {"loss_histogram", "inlier_detection_gce"}
    none = {
        "loss_curves",
        "learned_transition",
        "noise_scores",
        "covariance_ranks",
        "taylor",
        "top_covariances",
        "examples",
    }
    assert set(done.skipped) == none
    assert [row["run"] for row in found["rows"]] == ["transition_outlier", "gce"]
    for one, row, curve in zip((run, other), found["rows"], found["curves"], strict=True):
        last = one.result["metrics"]["last"]
        assert (row["ap"], row["auc"]) == (last["inlier_ap"], last["inlier_auc"])
        precision, recall = (part.tolist() for part in one.inlier_curve())
        assert (curve["precision"], curve["recall"]) == (precision, recall)
        assert row["p_at_r0.9"] == next(p for p, r in zip(precision, recall, strict=True) if r >= 0.9)
    assert found["share"] == 0.5  # as many outliers as test images
    assert (run.folder / "analysis" / "inlier_detection_gce.pdf").exists()

    elsewhere = load(learners["m_dyr_h"])
    told = analysis.analyse(run, elsewhere, samples=(), temperatures=())
    assert "its noise_label is symmetric 40% (excl. true)" in told.skipped["inlier_detection"]


def test_the_command_takes_what_a_run_offers(learners: dict[str, Path]) -> None:
    for method, against, name, told in (
        ("transition", "m_dyr_h", "learned transition", "mean absolute error of the learned T: 0."),
        ("m_dyr_h", None, "noise scores", "noise scores of 360 training labels, "),
        ("transition_outlier", "gce", "inlier detection gce", "597 test images of its classes among 597 of shapes"),
    ):
        other = () if against is None else ("--against", learners[against])
        ran = noisebench(learners[method], *other, "--device", "cpu")
        assert f"\n{name} " in ran.output
        assert told in ran.output
        assert (learners[method] / "analysis" / f"{name.replace(' ', '_')}.png").exists()
        if method == "transition":  # the two runs have nothing to be compared in
            assert ran.exit_code == 1
            assert "error: covariance_ranks was asked for: transition offers no covariance" in ran.output
        else:
            assert ran.exit_code == 0, ran.output


# ---------------------------------------------------------------------------------------------- all of them


def test_everything_is_written_and_logged_to_its_run(
    board: tuple[Path, dict[str, Path]], full: FinishedRun, ce: FinishedRun
) -> None:
    out = board[0]
    done = analysis.analyse(full, ce, samples=(1, 20), temperatures=(0.5, 1.0))
    assert done.tracked.startswith("MLflow has no run of this folder")  # nothing was sent yet; no store is made
    assert not (out / "mlflow.db").exists()
    tracking.Sender(tracking.store_uri(out), out, "small").sync()
    done = analysis.analyse(full, ce, samples=(1, 20), temperatures=(0.5, 1.0))
    assert done.tracked == "MLflow: logged as analysis/ of its run"
    assert set(done.skipped) == {"loss_curves", "learned_transition", "inlier_detection", "noise_scores"}
    names = {"top_covariances", "covariance_ranks_ce", "accuracy_eval_samples", "accuracy_temperature"}
    names |= {"loss_histogram", "taylor", "examples_ce"}
    assert set(done.found) == names

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.store_uri(out))
    experiment = client.get_experiment_by_name("noisebench/small")
    assert experiment is not None
    logged = {
        run.data.tags["noisebench.label"]: {
            Path(a.path).name for a in client.list_artifacts(run.info.run_id, "analysis")
        }
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags["noisebench.kind"] == "cell"
    }
    files = {f"{name}.{end}" for name in names for end in ("png", "pdf", "csv", "json")}
    assert logged == {"full": files, "ce": set(), "diag": set()}
    assert {file.name for file in (full.folder / "analysis").iterdir()} == files  # and nothing is left aside

    with (full.folder / "analysis" / "top_covariances.csv").open() as table:
        rows = list(csv.DictReader(table))
    pairs = analysis.top_covariances(full)
    assert [(row["a"], row["b"], float(row["covariance"])) for row in rows] == pairs
    facts = json.loads((full.folder / "analysis" / "covariance_ranks_ce.json").read_text())
    assert facts["ranks"] == analysis.covariance_ranks(full, ce).tolist()
    assert facts["fingerprint"] == full.config["fingerprint"]
    for name in names:
        assert (full.folder / "analysis" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_store_that_does_not_answer_costs_no_file(full: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = analysis.analyse(full, samples=(), temperatures=(0.5, 1.0))
    assert done.tracked.startswith("MLflow could not be written: ")
    assert all(file.exists() for file in done.files)
    assert len(done.files) == 4 * len(done.found)


# ----------------------------------------------------------------------------------------------- the command


def noisebench(*argv: str | Path) -> Any:
    return CliRunner().invoke(app, ["analyse", *map(str, argv)])


def test_the_command_shows_what_applies_and_says_why_the_rest_does_not(folders: dict[str, Path]) -> None:
    ran = noisebench(folders["diag"], "--samples", "1,5", "--temperatures", "0.5,2", "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    assert "accuracy eval samples" in ran.output
    assert "left out, top covariances: diag: the noise is independent from class to class" in ran.output
    assert "/analysis/*.png, .pdf" in ran.output
    assert "warning" not in ran.output

    ran = noisebench(folders["ce"], "--samples", "1,5", "--device", "cpu")
    assert ran.exit_code == 1
    assert "error: accuracy_eval_samples was asked for: ce has no setting eval_samples" in ran.output

    ran = noisebench(folders["ce"], "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    assert "50 rows: loss_histogram.csv" in ran.output
    assert "left out, learned transition: ce offers no T (Method.transition)" in ran.output
    assert "left out, taylor: ce offers no covariance" in ran.output


def test_the_command_prints_json_for_programs(folders: dict[str, Path]) -> None:
    options = ("--against", folders["ce"], "--samples", "1,5", "--temperatures", "0.5,2", "--json", "--device", "cpu")
    ran = noisebench(folders["full"], *options)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [row["eval_samples"] for row in found["found"]["accuracy_eval_samples"]["rows"]] == [1, 5]
    assert {Path(file).suffix for file in found["files"]} == {".png", ".pdf", ".csv", ".json"}
    assert len(found["files"]) == 4 * len(found["found"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("nowhere",), "no finished run"),
        (("nowhere", "--samples", "1,x"), "--samples: '1,x'; give numbers by commas"),
        (("nowhere", "--temperatures", ","), "--temperatures: ','; give numbers by commas"),
    ],
)
def test_mistakes_are_one_line(argv: tuple[str, ...], told: str) -> None:
    ran = noisebench(*argv)
    assert isinstance(ran.exception, UserError)
    assert told in str(ran.exception)


def test_the_command_warns_of_changed_code_in_one_line(copied: Path) -> None:
    change(copied / "config.json", fingerprint="0" * 64)
    ran = noisebench(copied, "--device", "cpu")
    warned = [line for line in ran.output.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "is no longer what this run was trained with" in warned[0]
