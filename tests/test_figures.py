"""The papers' figures: each made from small finished runs or their board, its numbers computed again by other means."""

from __future__ import annotations

import contextlib
import copy
import csv
import inspect
import json
import math
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from commands import noisebench
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from noisebench import figures, finding, nn
from noisebench.analysis import FinishedRun
from noisebench.assembly import split
from noisebench.board import describe_board, rebuild
from noisebench.cell import run_cell
from noisebench.config import Benchmark, Recipe, build
from noisebench.errors import UserError
from noisebench.figures import _taylor, catalogue
from noisebench.finding import Finding
from noisebench.method import Method
from noisebench.nn import BetaMixture
from noisebench.table import Table

SYMMETRIC, OPEN_SET = {"kind": "symmetric", "rate": 0.4}, {"kind": "open_set", "rate": 0.4, "source": "shapes"}
RECIPE = {"epochs": 1, "batch_size": 16, "validation": 0, "record_losses": True, "checkpoint_seconds": 99}
BOARD = {
    "name": "small",
    "title": "a small $board",
    "datasets": ["digits@80", "digits@160"],
    "noise": [{"kind": "none"}, OPEN_SET],
    "seeds": [0, 1],
    "methods": [
        "ce",
        {"name": "het_full", "label": "het 2", "hparams": {"train_samples": 2, "eval_samples": 2}},
        {"name": "het_full", "label": "het 4", "hparams": {"train_samples": 4, "eval_samples": 4}},
    ],
    "recipe": RECIPE,
}
ALONE: dict[str, Any] = {"datasets": ["digits@160"], "noise": [SYMMETRIC], "seeds": [0]}


def benchmark(**changes: Any) -> Benchmark:
    made: Benchmark = build(Benchmark, BOARD | changes, "board")
    return made


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, one_picture: None) -> Path:
    """A finished board; and single runs, trained for longer, or tested on 100 images."""
    folder, board = tmp_path_factory.mktemp("out"), benchmark()
    longer = benchmark(**ALONE | {"noise": [{"kind": "asymmetric", "rate": 0.4}]}, recipe=RECIPE | {"epochs": 6})
    het = {"name": "het_full", "label": "het few", "hparams": {"train_samples": 2, "eval_samples": 2}}
    few = benchmark(**ALONE, recipe=RECIPE | {"epochs": 2, "test_size": 100}, methods=["transition", "m_dyr_h", het])
    for cell in (*board.cells(), *longer.cells(), *few.cells()):
        if (cell.method.label, cell.noise.kind) != ("het 2", "asymmetric"):
            assert run_cell(cell, folder, accelerator="cpu")["status"] == "finished"
    describe_board(board, folder)
    return folder


@pytest.fixture(scope="module")
def folders(out: Path) -> dict[str, Path]:
    """Run folders of 160 images, seed 0, by label; of the board's with "clean " or "open " before it."""
    names, found = {"none": "clean ", "open_set": "open "}, {}
    for file in out.glob("runs/*/config.json"):
        config = json.loads(file.read_text())
        if (config["seed"], config["recipe"]["train_size"]) == (0, 160):
            found[names.get(config["noise"]["kind"], "") + config["label"]] = file.parent
    return found


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path]) -> dict[str, FinishedRun]:
    return {name: FinishedRun.load(folder, accelerator="cpu") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def table(out: Path) -> Table:
    return rebuild(benchmark(), out, "runs")


def rows_of(made: Finding) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.as_json()["rows"]
    return found


def pixels(run: FinishedRun, part: str) -> Tensor:
    """Normalised images of the training split or the test set, from the data alone."""
    images = np.asarray(run.data.train_images if part == "train" else run.data.test_images)
    if part == "train":
        images = images[split(len(images), build(Recipe, run.config["recipe"], ""), run.config["seed"])[0].numpy()]
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return (x - torch.tensor(run.data.mean)[:, None, None]) / torch.tensor(run.data.std)[:, None, None]


# ----------------------------------------------------------------------------------------------- training losses


@pytest.fixture
def losses(runs: dict[str, FinishedRun]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of ce at its end, from its layers: cross-entropy under the noisy labels, and which of these are wrong."""
    run = runs["ce"]
    with torch.no_grad():
        found = F.cross_entropy(
            run.method.net(pixels(run, "train")), torch.from_numpy(run.noisy.labels), reduction="none"
        )  # type: ignore[operator,union-attr]
    return found.double().numpy(), run.noisy.labels != run.true_labels


def test_loss_curves_end_at_the_quartiles_of_the_final_weights(
    runs: dict[str, FinishedRun], losses: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> None:
    values, wrong = losses
    made = figures.loss_curves(runs["ce"], runs["het 4"])
    rows = rows_of(made)
    assert [(row["run"], row["epoch"]) for row in rows] == [(name, i) for name in ("ce", "het 4") for i in range(1, 7)]
    for side, mine in (("right", values[~wrong]), ("wrong", values[wrong])):
        found = [rows[5][f"{side}_{quartile}"] for quartile in ("q25", "median", "q75")]
        np.testing.assert_allclose(found, np.quantile(mine, [0.25, 0.5, 0.75]), rtol=1e-4)
    panels = made.figure.axes
    assert [axis.get_title() for axis in panels] == ["ce", "het 4"]
    assert panels[0].get_ylabel() == "cross-entropy (nats)"
    assert list(panels[0].lines[0].get_ydata()) == [row["right_median"] for row in rows[:6]]


def test_losses_that_were_not_recorded_are_asked_for(runs: dict[str, FinishedRun], copied: Path) -> None:
    run = FinishedRun.load(copied, accelerator="cpu")
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]

    def write(value: float | None) -> None:
        for line in lines:
            kept = {k: v for k, v in line["metrics"].items() if not k.startswith("train.loss_")}
            line["metrics"] = kept | ({} if value is None else {"train.loss_right.median": value})
        (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write(None)
    with pytest.raises(UserError, match=r"losses were not recorded; train it with --set recipe.record_losses=true"):
        figures.loss_curves(run)
    write(math.nan)
    with pytest.raises(UserError, match="its recorded losses are all NaN"):
        figures.loss_curves(run)
    write(1.5)  # under no noise there are no wrong labels: a line less, and no number in the file
    made = figures.loss_curves(run, run)
    assert {row["run"] for row in rows_of(made)} == {run.title}  # one label would not tell two seeds apart
    assert [line.get_label() for line in made.figure.axes[0].lines] == ["right labels"]
    assert rows_of(made)[0]["wrong_median"] is None
    with pytest.raises(UserError, match="no run is given"):
        figures.loss_curves()


def test_loss_histogram_is_that_of_trimmed_losses_with_both_mixtures(
    runs: dict[str, FinishedRun], losses: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> None:
    values, wrong = losses
    made = figures.loss_histogram(runs["ce"], bins=20)
    rows, facts = rows_of(made), made.facts
    low, high = np.percentile(values, (5, 95))
    kept = (values >= low) & (values <= high)
    x = ((values - low - 1e-5) / (high - low - 9e-6)).clip(0, 1)
    edges = np.linspace(0, 1, 21)
    for side, chosen in (("right", kept & ~wrong), ("wrong", kept & wrong)):
        expected = np.histogram(x[chosen], edges)[0] / kept.sum() * 20
        np.testing.assert_allclose([row[side] for row in rows], expected, atol=1e-9)
    assert sum(row["right"] + row["wrong"] for row in rows) / 20 == pytest.approx(1)

    theirs = GaussianMixture(2, random_state=0).fit(x[kept][:, None].clip(1e-4, 1 - 1e-4))
    assert facts["gaussian"]["log_likelihood"] == pytest.approx(theirs.score(x[kept][:, None]), abs=0.02)
    middle = np.array([[(row["loss_from"] + row["loss_to"]) / 2] for row in rows])
    found = [row["gaussian_clean"] + row["gaussian_noisy"] for row in rows]
    np.testing.assert_allclose(found, np.exp(theirs.score_samples(middle)), atol=0.1)
    beta = facts["beta"]
    assert sum(beta["weight"]) == pytest.approx(1)
    total = sum(row["beta_clean"] + row["beta_noisy"] for row in rows) / 20
    assert total == pytest.approx(1, abs=0.2)  # at middles of bars alone
    noisy = [
        w
        * math.exp((a - 1) * math.log(0.525) + (b - 1) * math.log(0.475))
        * math.gamma(a + b)
        / math.gamma(a)
        / math.gamma(b)
        for w, a, b in zip(beta["weight"], beta["alpha"], beta["beta"], strict=True)
    ]
    assert [rows[10]["beta_clean"], rows[10]["beta_noisy"]] == pytest.approx(noisy)
    for name, mixture in (("beta", BetaMixture()), ("gaussian", nn.GaussianMixture())):
        scores = mixture.fit(torch.from_numpy(values)).posterior(torch.from_numpy(values))
        assert facts[name]["auc"] == pytest.approx(roc_auc_score(wrong, scores), abs=2e-3)


def test_a_loss_histogram_needs_losses_that_differ_and_one_label_an_image(runs: dict[str, FinishedRun]) -> None:
    with pytest.raises(UserError, match="its training losses do not differ"):
        figures.loss_histogram(with_method(runs["ce"], Uniform()))
    with pytest.raises(UserError, match="bins is 1; give a whole number, 2 to 1000"):
        figures.loss_histogram(runs["ce"], bins=1)
    unknown = copy.copy(runs["ce"])
    unknown.noisy = types.SimpleNamespace(known=False, description="real")  # type: ignore[assignment]
    with pytest.raises(UserError, match="nobody knows which labels are wrong"):
        figures.loss_histogram(unknown)
    clean = figures.loss_histogram(runs["clean ce"])  # nothing to tell apart, and yet a picture
    assert clean.facts["wrong"] == 0
    assert clean.as_json()["beta"]["auc"] is None


class Uniform(Method):
    """Gives every class the same probability."""

    name = "uniform"

    def predict(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 10), 0.1)


def with_method(run: FinishedRun, method: Method) -> FinishedRun:
    other = copy.copy(run)
    other.method = method
    other._run = copy.copy(run._run)
    other._run._method = method
    return other


# ----------------------------------------------------------------------------------------------------- features


class Projection:
    """In the place of UMAP, whose compiling takes longer than this file: the first two features."""

    asked: ClassVar[list[tuple[dict[str, Any], NDArray[np.float32]]]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options

    def fit_transform(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        self.asked.append((self.options, found))
        return found[:, :2]


def test_features_are_those_before_the_head_coloured_by_true_class(
    runs: dict[str, FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Projection, __version__="0"))
    Projection.asked.clear()
    run = runs["ce"]
    made = figures.features(run, runs["m_dyr_h"], most=60, seed=3)
    (options, train), (_, test), _, (_, fewer) = Projection.asked
    assert options == {"n_neighbors": 15, "random_state": 3, "n_jobs": 1}
    assert (train.shape, test.shape, fewer.shape) == ((60, 64), (60, 64), (60, 64))
    rows = rows_of(made)
    with torch.no_grad():
        for part, found in (("train", train), ("test", test)):
            mine = [row for row in rows if (row["run"], row["part"]) == ("ce", part)]
            at = [row["index"] for row in mine]
            assert at == sorted(set(at))
            torch.testing.assert_close(torch.from_numpy(found), run.method.net[0](pixels(run, part)[at]))  # type: ignore[index,operator,union-attr]
            truth = run.true_labels if part == "train" else run.data.test_labels
            assert [row["true_class"] for row in mine] == [str(truth[i]) for i in at]
            gaps = ((found[:, None] - found[None]) ** 2).sum(-1) + 1e9 * np.eye(60)
            same = np.mean([truth[at[i]] == truth[at[j]] for i, j in enumerate(gaps.argmin(1))])
            (panel,) = [one for one in made.facts["panels"] if (one["run"], one["part"]) == ("ce", part)]
            assert panel["same_class"] == pytest.approx(same, abs=0.02)
    wrong = run.noisy.labels != run.true_labels
    assert [row["wrong_label"] for row in rows[:60]] == [bool(wrong[row["index"]]) for row in rows[:60]]
    assert max(row["index"] for row in rows if row["run"] == "m_dyr_h" and row["part"] == "test") < 100

    outliers = [row for row in rows_of(figures.features(runs["open ce"], most=60)) if row["true_class"] == "outlier"]
    noisy = runs["open ce"].noisy
    assert noisy.outliers is not None
    assert outliers
    assert all(noisy.outliers[row["index"]] >= 0 and row["wrong_label"] for row in outliers)


def test_umap_itself_is_seeded(runs: dict[str, FinishedRun]) -> None:
    numba = pytest.importorskip("numba", reason="umap-learn is not installed")
    numba.config.DISABLE_JIT = True  # to compile takes fifteen seconds, and so few points take none
    pytest.importorskip("umap", reason="umap-learn is not installed")
    first, again, other = (rows_of(figures.features(runs["ce"], most=24, epochs=4, seed=s)) for s in (0, 0, 1))
    assert len(first) == 48
    assert all(math.isfinite(row["x"]) and math.isfinite(row["y"]) for row in first)
    assert first == again
    assert first != other


def test_without_umap_the_command_says_how_to_install_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    ran = noisebench("figure", "features", folders["ce"], "--device", "cpu")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: features needs umap-learn, which is not installed: pip install 'noisebench[umap]'\n"


def test_a_method_without_a_backbone_has_no_features(runs: dict[str, FinishedRun]) -> None:
    with pytest.raises(UserError, match=r"no backbone of noisebench\.nn"):
        with_method(runs["ce"], Uniform()).features("test", torch.tensor([0]))


# -------------------------------------------------------------------------------------------------- covariances


@pytest.fixture
def known(runs: dict[str, FinishedRun]) -> tuple[Tensor, Tensor, Tensor]:
    """Of "het 4": covariances [N, K, K] of the test set, from its layers, and the predictions of it and of ce."""
    run = runs["het 4"]
    backbone, head = run.method.net  # type: ignore[misc]
    with torch.no_grad():
        features = backbone(pixels(run, "test"))
        d, v = F.softplus(head.scale(features)) + 1e-3, head.factors(features).view(len(features), 10, -1)
    return torch.diag_embed(d**2) + v @ v.mT, run.predict().argmax(1), runs["ce"].predict().argmax(1)


def test_top_covariances_show_the_image_that_the_run_is_surest_of(
    runs: dict[str, FinishedRun], known: tuple[Tensor, Tensor, Tensor]
) -> None:
    run, mean = runs["het 4"], known[0].double().mean(0)
    made = figures.top_covariances(run, count=5)
    p, truth = run.predict(), run.data.test_labels
    assert len(rows_of(made)) == 5
    sizes = sorted((float(mean[i, j].abs()) for i in range(10) for j in range(i)), reverse=True)
    for row, size in zip(rows_of(made), sizes, strict=False):
        assert row["covariance"] == pytest.approx(float(mean[int(row["a"]), int(row["b"])]), rel=1e-4)
        assert abs(row["covariance"]) == pytest.approx(size, rel=1e-4)
        for key in ("a", "b"):
            image, c = row[f"image_{key}"], int(row[key])
            assert truth[image] == c
            assert p[image, c] == max(p[i, c] for i in range(len(truth)) if truth[i] == c)
    at = torch.tensor([row["image_a"] for row in rows_of(made)])
    np.testing.assert_array_equal(run.images("test", at), np.asarray(run.data.test_images)[at.numpy()])

    few = figures.top_covariances(runs["het few"], count=3)  # tested on a hundred images, not the first ones
    assert few.facts["images"] == 100
    assert all(str(int(runs["het few"].test_labels[row["image_a"]])) == row["a"] for row in rows_of(few))
    with pytest.raises(UserError, match="count is 101; give a whole number, 1 to 100"):
        figures.top_covariances(run, count=101)


def test_examples_are_mistakes_of_the_other_run_with_the_largest_covariance(
    runs: dict[str, FinishedRun], known: tuple[Tensor, Tensor, Tensor]
) -> None:
    run, other = runs["het 4"], runs["ce"]
    covariance, mine, theirs = known
    expected = []
    for i, true in enumerate(run.data.test_labels.tolist()):
        row = covariance[i, true].abs().clone()
        row[true] = -1
        if mine[i] == true != theirs[i] and row.argmax() == theirs[i]:
            expected.append((abs(float(covariance[i, true, theirs[i]])), i))
    expected.sort(reverse=True)
    made = figures.examples(run, other, count=3)
    rows = rows_of(made)
    assert [row["index"] for row in rows] == [i for _, i in expected[:3]]
    assert made.facts["of_largest"] == len(expected)
    for row, (size, i) in zip(rows, expected, strict=False):
        assert abs(row["covariance"]) == pytest.approx(size, rel=1e-4)
        assert (row["true_class"], row["reference_prediction"]) == (
            str(int(run.data.test_labels[i])),
            str(int(theirs[i])),
        )
    assert len([axis for axis in made.figure.axes if axis.images]) == len(rows)
    run.config["label"] = "het of a label that leaves no room for the class"
    told = figures.examples(run, other, count=1).figure.axes[0].texts[0].get_text()
    run.config["label"] = "het 4"
    assert told.splitlines()[1] == f"het of a label …: {rows[0]['prediction']}"
    ranks = figures.covariance_ranks(run, other).facts["ranks"]
    assert ranks.count(1) == len(expected)
    with pytest.raises(UserError, match="ce offers no covariance"):
        figures.examples(other, run)
    with pytest.raises(UserError, match="its noise_label is open-set"):
        figures.examples(run, runs["open ce"])


def test_taylor_coefficients_are_those_of_the_hessian(runs: dict[str, FinishedRun]) -> None:
    u = torch.tensor([0.9, -0.3, 0.4, 1.5], dtype=torch.float64)
    s = u.softmax(0)
    for k in range(4):
        hessian = torch.autograd.functional.hessian(lambda u, k=k: u.softmax(0)[k], u) / s[k]  # type: ignore[no-untyped-call]
        j = (k + 1) % 4
        p, q = np.array(float(s[k])), np.array(float(s[j]))
        assert _taylor.of_true_variance(p) == pytest.approx(float(hessian[k, k]) / 2)
        assert _taylor.of_other_variance(q) == pytest.approx(float(hessian[j, j]) / 2)
        assert _taylor.of_covariance(q, p) == pytest.approx(float(hessian[j, k] + hessian[k, j]) / 2)
    alone = rows_of(figures.taylor())
    assert len(alone) == 101
    assert alone[30] == pytest.approx({"p": 0.3, "of_true_variance": 0.14, "of_other_variance": -0.06})

    run = runs["het 4"]
    made = figures.taylor(run)
    p, truth = run.predict().double().numpy(), run.data.test_labels
    mine = p[np.arange(len(truth)), truth]
    others = np.where(np.arange(10) == truth[:, None], 0, p).max(1)
    assert made.facts["mean_of_covariance"] == pytest.approx(float((-others * (1 - 2 * mine)).mean()))
    for key, values in (("share_true", mine), ("share_other", others)):
        shares = [row[key] for row in rows_of(made)]
        assert sum(shares) == pytest.approx(1)
        assert shares[5] == pytest.approx(float((np.abs(values - 0.05) < 0.005).mean()), abs=1e-9)
    with pytest.raises(UserError, match="ce offers no covariance"):
        figures.taylor(runs["ce"])


def test_samples_and_temperatures_of_a_run_are_changed_at_evaluation_alone(runs: dict[str, FinishedRun]) -> None:
    run = runs["het 4"]
    for make, setting in ((figures.samples, "eval_samples"), (figures.temperatures, "temperature")):
        made = make(run, values=[3, 7])
        for row in rows_of(made):
            metrics = run.with_settings(**{setting: row[setting]}).metrics()
            assert (row["accuracy"], row["nll"]) == (metrics["accuracy"], metrics["nll"])
        assert made.facts["at"] == "evaluation alone, the weights as they are"
    with pytest.raises(UserError, match=r"values is \[0\]; give numbers above 0"):
        figures.samples(run, values=[0])


# ------------------------------------------------------------------------------------------------------- boards


def by_hand(out: Path, label: str, images: int, noise: str) -> tuple[float, float]:
    """Mean and sd in per cent of the last test error over the seeds, from the result files."""
    errors = []
    for file in out.glob("runs/*/result.json"):
        result, config = json.loads(file.read_text()), json.loads((file.parent / "config.json").read_text())
        if (result["label"], config["recipe"]["train_size"], result["noise"]) == (label, images, noise):
            errors.append(100 - 100 * result["metrics"]["last"]["accuracy"])
    assert len(errors) == 2
    return float(np.mean(errors)), float(np.std(errors, ddof=1))


OPEN = "open-set 40% from shapes"


def test_error_by_size_noise_and_outliers_are_means_over_the_seeds(out: Path, table: Table) -> None:
    sizes = rows_of(figures.error_by_size(table))
    assert len(sizes) == 2 * 3 * 2  # noises, methods, sizes
    for row in sizes:
        noise = row["panel"].removesuffix(" on digits")
        expected = by_hand(out, row["line"], row["training_images"], noise)
        assert (row["error_percent"], row["sd"]) == pytest.approx(expected)
        assert (row["seeds_finished"], row["seeds"]) == (2, 2)

    noises = rows_of(figures.error_by_noise(table))
    assert {row["panel"] for row in noises} == {f"open-set from shapes on digits@{n}" for n in (80, 160)}
    for row in noises:
        size, noise = int(row["panel"].rpartition("@")[2]), {0: "clean", 40: OPEN}[row["noise_level_percent"]]
        assert (row["error_percent"], row["sd"]) == pytest.approx(by_hand(out, row["line"], size, noise))

    made = figures.outlier_error(table)
    assert [row["error_percent"] for row in rows_of(made)] == [row["error_percent"] for row in noises]
    assert {row["outliers_per_inlier"] for row in rows_of(made)} == {0, 40 / 60}
    assert [tick.get_text() for tick in made.figure.axes[0].get_xticklabels()] == ["0\n(0)", "40\n(32)"]


def test_a_grid_has_the_means_of_all_cells(out: Path, table: Table) -> None:
    rows = rows_of(figures.grid(table))
    assert len(rows) == 12
    for row in rows:
        size = int(row["dataset"].removeprefix("digits@"))
        assert row["error_percent"] == pytest.approx(by_hand(out, row["method"], size, row["noise"])[0])


def test_rows_that_differ_in_samples_alone_make_a_line(out: Path, table: Table) -> None:
    settings = {row.label: {**row.resolved, "method": row.name} for row in benchmark().methods}
    made = figures.samples_of_rows(table, settings=settings)
    rows = rows_of(made)
    assert {(row["line"], row["x_is"]) for row in rows} == {
        ("het_full", "Monte-Carlo samples, training and evaluation")
    }
    for row in rows:
        noise, size = row["panel"].split(" on digits@")
        mean, sd = by_hand(out, f"het {row['samples']}", int(size), noise)
        assert (row["score_percent"], row["sd"]) == pytest.approx((100 - mean, sd))

    fixed: Mapping[str, Any] = {key: {**own, "train_samples": 2} for key, own in settings.items()}
    rows = rows_of(figures.samples_of_rows(table, settings=fixed))
    assert {row["x_is"] for row in rows} == {"eval_samples alone"}
    with pytest.raises(UserError, match="no rows differ in train_samples or eval_samples alone"):
        figures.samples_of_rows(table, settings={"het 2": settings["het 2"], "het 4": settings["het 4"] | {"rank": 3}})


def results(seeds: tuple[int, ...] = (0, 1), **changes: Any) -> list[dict[str, Any]]:
    """Of a board with two sizes under one noise, as runs write them."""
    return [
        {
            "label": "m", "dataset": f"digits@{n}", "noise": "pairflip 20%", "seed": seed, "status": "finished",
            "metrics": {"last": {"epoch": 1, "accuracy": accuracy}}, **changes,
        }
        for n, accuracy in ((100, 0.5), (200, 0.75))
        for seed in seeds
    ]  # fmt: skip


def test_what_a_board_lacks_is_said_and_never_drawn() -> None:
    one = figures.error_by_size(Table.from_results(results(seeds=(0,))))
    assert one.facts["notes"] == ["one finished seed, so there is no sd"]
    assert [(row["error_percent"], row["sd"]) for row in rows_of(one)] == [(50, None), (25, None)]
    assert not one.figure.axes[0].collections  # no band

    some = results()
    some[1] |= {"status": "failed", "reason": "no"}
    some[2]["metrics"]["last"]["accuracy"] = math.nan
    some[3] |= {"status": "missing"}
    made = figures.error_by_size(Table.from_results(some))
    notes = ["open markers (1): not all seeds are finished", "1 of 2 points have no finished run"]
    assert made.facts["notes"] == ["one finished seed, so there is no sd", *notes]
    assert [row["error_percent"] for row in rows_of(made)] == [50, None]
    assert rows_of(figures.grid(Table.from_results(some)))[1]["error_percent"] is None

    none = Table.from_results(results(status="missing"), title="empty")
    for make in (figures.error_by_size, figures.grid):
        with pytest.raises(UserError, match="empty: no cell of this figure is finished"):
            make(none)
    with pytest.raises(UserError, match="no kind of noise has several rates"):
        figures.error_by_noise(Table.from_results(results()))
    with pytest.raises(UserError, match="no open-set noise of several rates"):
        figures.outlier_error(Table.from_results(results()))
    single = Table.from_results([row for row in results() if row["dataset"] == "digits@100"])
    for make in (figures.error_by_size, figures.grid):
        with pytest.raises(UserError, match="each dataset has one size"):
            make(single)


def test_many_rows_and_long_names_are_told_apart() -> None:
    names = [*map(str, range(16)), "_$x$ <b>", "long " * 16 + "a", "long " * 16 + "b"]
    table = Table.from_results([row | {"label": name} for name in names for row in results(seeds=(0,))])
    made = figures.error_by_size(table)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in made.figure.axes[0].lines}
    assert len(looks) == len(names)
    (legend,) = made.figure.legends
    assert sorted(" ".join(text.get_text().split()) for text in legend.get_texts()) == sorted(names)
    panels = [axis for axis in figures.grid(table).figure.axes if axis.images]
    assert len({axis.get_position().y0 for axis in panels}) > 1  # in rows
    assert sorted(" ".join(axis.get_title().split()) for axis in panels) == sorted(names)


# ------------------------------------------------------------------------------------- the catalogue, the command


def test_the_catalogue_says_what_the_functions_take() -> None:
    names = [name for entry in catalogue.ENTRIES for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)
    assert catalogue.find("arazo2019-fig1") is catalogue.find("loss-curves")
    made = set()
    for entry in catalogue.ENTRIES:
        for function in filter(None, (entry.of_runs, entry.of_board)):
            made.add(function)
            parameters = inspect.signature(getattr(figures, function)).parameters.values()
            own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            expected = set(entry.options) if function == entry.of_runs else {"settings"} & own
            assert own == expected, entry.name
    assert made == set(figures.__all__)


def test_list_figures_names_each_with_its_paper() -> None:
    found = json.loads(noisebench("list", "figures", "--json").out)["figures"]
    assert [row["name"] for row in found] == [entry.name for entry in catalogue.ENTRIES]
    assert all(row["summary"] and row["paper"] and row["takes"] for row in found)
    shown = " ".join(noisebench("list", "figures").out.split())
    assert "(Arazo et al. 2019, Fig. 1; of one or several runs; arazo2019-fig1)" in shown


OF_RUNS = {
    "arazo2019-fig1": ("ce", "m_dyr_h"),
    "loss-histogram": ("ce",),
    "learned-transition": ("transition",),
    "inlier-detection": ("open het 4", "open ce"),
    "noise-scores": ("m_dyr_h",),
    "collier2021-fig2": ("het 4", "ce"),
    "taylor": ("het 4",),
    "top-covariances": ("het 4",),
    "examples": ("het 4", "ce"),
    "temperatures": ("het 4",),
}
WITH_PDF = ("error-by-size", "examples", "loss-histogram")
"""Lines, images, areas; the PDFs of the others, which take a third of the time, are of the like."""


@pytest.mark.parametrize("name", [*OF_RUNS, "error-by-size", "error-by-noise", "grid", "outlier-error", "samples"])
def test_the_command_draws_every_figure(
    name: str, out: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = [folders[label] for label in OF_RUNS[name]] if name in OF_RUNS else [out / "boards" / "small"]
    monkeypatch.setattr(finding, "DPI", 40)
    if name not in WITH_PDF:
        draw = Finding._draw
        monkeypatch.setattr(
            Finding,
            "_draw",
            lambda made, file, form, **more: (
                file.write_bytes(b"%PDF") if form == "pdf" else draw(made, file, form, **more)
            ),
        )
    drawn: list[Finding] = []
    monkeypatch.setattr(
        Finding, "write", lambda made, stem, write=Finding.write: (drawn.append(made), write(made, stem))[1]
    )
    ran = noisebench("figure", name, *what, "--out", tmp_path / "it", "--json", "--device", "cpu")
    assert ran.code == 0, ran.err
    files = {Path(file).suffix: Path(file).read_bytes() for file in json.loads(ran.out)["files"]}
    assert {file.name for file in tmp_path.iterdir()} == {f"it{end}" for end in files}
    assert files[".png"].startswith(b"\x89PNG")
    assert files[".pdf"].startswith(b"%PDF")
    assert b"/CreationDate" not in files[".pdf"]
    assert b"/Type3" not in files[".pdf"]
    stored = json.loads(files[".json"])
    assert stored == json.loads(ran.out)["found"]
    assert stored["figure"] == catalogue.find(name).name
    table = list(csv.DictReader(files[".csv"].decode().splitlines()))
    assert len(table) == len(stored["rows"]) > 0
    assert list(table[0]) == list(stored["rows"][0])
    (made,) = drawn
    assert not any("mathdefault" in text.get_text() for text in made.figure.findobj(Text))
    for axis in made.figure.axes:
        pictures = axis.images or not axis.axison  # a panel of its own axes, or shared ones
        assert pictures or axis.get_xlabel() or axis.get_ylabel(), name


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure = Figure((2, 2), layout="constrained")
        figure.subplots().plot([0, 1], [1, math.nan])
        figure.suptitle("costs $5")
        made = Finding(("x", "y"), [(0, 1.0), (1, math.nan)], {"p": math.inf}, figure)
        made.write(tmp_path / name)
        assert figure.get_layout_engine() is not None  # it can be changed and written again
    for end in ("png", "pdf", "csv", "json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    assert (tmp_path / "a.csv").read_text() == "x,y\n0,1.0\n1,\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {"p": None, "rows": [{"x": 0, "y": 1}, {"x": 1, "y": None}]}
    assert made._repr_png_().startswith(b"\x89PNG")
    assert list(made.to_pandas()["x"]) == [0, 1]


def test_files_are_put_beside_the_run_or_the_board(
    out: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Finding, "_save", lambda *_, **__: None)  # the numbers' files do
    monkeypatch.setattr(Finding, "_laid_out", lambda _: contextlib.nullcontext())
    board, run = out / "boards" / "small", folders["ce"]
    ran = noisebench("figure", "grid", board, "--methods", "ce")
    assert str(board / "figures" / "grid.png") in ran.out
    with (board / "figures" / "grid.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"ce"}
    ran = noisebench("figure", "loss-curves", run, "--against", folders["m_dyr_h"], "--device", "cpu")
    assert str(run / "analysis" / "loss_curves_m-dyr-h.png") in ran.out
    assert "MLflow has no run of this folder" in ran.out
    (tmp_path / "there").mkdir()
    for given, stem in (("there", "there/taylor"), ("it.pdf", "it"), ("v1.2", "v1.2")):
        ran = noisebench("figure", "taylor", "--out", tmp_path / given)
        assert f"{tmp_path / stem}.png" in ran.out
        assert (tmp_path / f"{stem}.csv").is_file()


@pytest.fixture
def copied(out: Path, folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of ce's run with its noise, to be changed."""
    shutil.copytree(out / "noise", tmp_path / "noise")
    return Path(shutil.copytree(folders["ce"], tmp_path / "runs" / folders["ce"].name))


def test_a_damaged_run_is_said(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finding, "write", lambda _, stem: [stem.with_suffix(".png")])
    (copied / "model.pt").rename(copied / "away.pt")
    with pytest.raises(UserError, match=r"model\.pt cannot be read: No such file"):
        FinishedRun.load(copied, accelerator="cpu")
    (copied / "away.pt").rename(copied / "model.pt")
    lines = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text(f'[1]\n{{"epoch": 1}}\n{lines}')
    ran = noisebench("figure", "loss-curves", copied, "--device", "cpu")
    assert ran.code == 0
    assert "metrics.jsonl is damaged" in ran.out  # what MLflow knows the run by
    (copied / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result\.json is damaged: it lacks metrics, weights_sha256"):
        FinishedRun.load(copied, accelerator="cpu")


def test_mistakes_are_one_line_each(out: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    ce, board = folders["ce"], out / "boards" / "small"
    for argv, told in (
        (("loss-curve", ce), "figure 'loss-curve' is unknown; did you mean loss-curves"),
        (("xyz",), "figure 'xyz' is unknown; known: loss-curves, loss-histogram"),
        (("grid", ce), "figure grid takes a board; "),
        (("grid",), "figure grid takes a board; nothing was given"),
        (("loss-histogram", board), "figure loss-histogram takes a run; "),
        (("loss-histogram", ce, ce), "figure loss-histogram takes a run; 2 runs were given"),
        (("loss-histogram",), "figure loss-histogram takes a run; 0 runs were given"),
        (("examples", ce), "figure examples takes a run and another (--against); 1 run was given"),
        (("learned-transition", ce), "ce offers no T"),
        (("loss-curves", tmp_path), "no finished run"),
        (("loss-curves", ce, "no/run"), "takes one or several runs; no/run is no folder of a finished run"),
        (("grid", "digitz"), "benchmark 'digitz' is unknown; did you mean digits"),
        (("grid", "no.yaml"), "no.yaml: no such file"),
        (
            ("loss-histogram", ce, "--option", "bin=3"),
            "--option: figure loss-histogram: option 'bin' is unknown; did you mean bins?",
        ),
        (("loss-curves", ce, "--option", "a=3"), "--option a: figure loss-curves has no options"),
        (("loss-histogram", ce, "--option", "bins=many"), "bins is 'many'; give a whole number, 2 to 1000"),
        (
            ("samples", board, "--option", "values=[1]"),
            "--option values: figure samples has it for a run, not for a board",
        ),
        (("loss-curves", ce, "--methods", "ce"), "--methods: it is of a board, and runs were given"),
        (("error-by-size", "digits", "--runs", tmp_path), "each dataset has one size"),
    ):
        ran = noisebench("figure", *argv, "--device", "cpu")
        assert (ran.code, ran.out) == (2, ""), argv
        assert ran.err.startswith("error: "), argv
        assert told in ran.err, argv
        assert ran.err.count("\n") == 1, argv
