"""Open-set noise: what is drawn and stored, which images a method sees, who is told, and inliers told from outliers."""

from __future__ import annotations

import gc
import hashlib
import json
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from typer.testing import CliRunner

from noisebench import cli, fit, noise, registry
from noisebench.assembly import Setup, method_class, split
from noisebench.board import check_settings
from noisebench.cell import run_cell
from noisebench.checks import RECIPE, sample_data
from noisebench.config import Benchmark, Cell, Noise, build, check_names
from noisebench.errors import TrainingFailed, UserError
from noisebench.evaluation import precision_recall
from noisebench.executors import Place
from noisebench.finished import FinishedRun
from noisebench.fitting import Memory
from noisebench.image_data import ImageData
from noisebench.loading import load_dataset, load_source
from noisebench.method import Classifier
from noisebench.noise import NoisyLabels
from noisebench.open_set import Mixed, mix

TRUE = np.arange(2_000) % 10


def injected(rate: float = 0.3, source: Any = 5_000, seed: int = 0, **options: Any) -> NoisyLabels:
    return noise.inject(TRUE, "open_set", rate, num_classes=10, seed=seed, source=source, **options)


def outliers_of(noisy: NoisyLabels) -> tuple[np.ndarray, np.ndarray]:
    """Position in the source, or -1, and who is labelled."""
    assert noisy.outliers is not None
    assert noisy.labelled is not None
    return noisy.outliers, noisy.labelled


# ---------------------------------------------------------------------------------------------------- what is drawn


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(2, 30), st.integers(1, 3_000), st.floats(0, 1), st.integers(0, 2**40))
def test_inliers_are_untouched_and_no_image_is_taken_twice_before_all_were_once(
    rate: float, classes: int, size: int, share: float, seed: int
) -> None:
    true = np.arange(1_000) % classes
    noisy = noise.inject(true, "open_set", rate, num_classes=classes, seed=seed, source=size, labelled=share)
    outliers, labelled = outliers_of(noisy)
    out = outliers >= 0
    np.testing.assert_array_equal(noisy.labels[~out], true[~out])
    assert (outliers.dtype, labelled.dtype, outliers.shape) == (np.int64, bool, true.shape)
    assert -1 <= outliers.min() <= outliers.max() < size
    assert 0 <= noisy.labels.min() <= noisy.labels.max() < classes
    used = np.bincount(outliers[out], minlength=size)
    assert used.max() - used.min() <= 1
    assert not (labelled & ~out).any()
    assert noisy.realised_rate == out.mean()
    assert noisy.expected_rate == rate
    assert abs(out.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / 1_000) + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**40))
def test_an_outlier_at_a_lower_rate_is_the_same_image_under_the_same_label_at_a_higher_one(
    first: float, second: float, seed: int
) -> None:
    low, high = (injected(rate, 700, seed) for rate in sorted((first, second)))
    (at, told), (at_high, told_high) = outliers_of(low), outliers_of(high)
    out = at >= 0
    np.testing.assert_array_equal(at[out], at_high[out])
    np.testing.assert_array_equal(low.labels[out], high.labels[out])
    np.testing.assert_array_equal(told[out], told_high[out])


def test_another_seed_is_another_draw_and_the_same_seed_the_same() -> None:
    first, again, other = injected(seed=4), injected(seed=4), injected(seed=5)
    for mine, same, different in zip(outliers_of(first), outliers_of(again), outliers_of(other), strict=True):
        np.testing.assert_array_equal(mine, same)
        assert (mine != different).any()
    assert first.sha256 == again.sha256 != other.sha256


def test_draws_are_these_on_every_platform() -> None:
    """Pinned: a change here changes every board's open-set noise, and belongs in the CHANGELOG."""
    noisy = injected()
    outliers, labelled = outliers_of(noisy)
    assert noisy.sha256[:16] == "8664198a0959fa72"
    assert hashlib.sha256(outliers.astype("<i8").tobytes()).hexdigest()[:16] == "345ccdc5b0ce7b2e"
    assert hashlib.sha256(labelled.tobytes()).hexdigest()[:16] == "623caf86a3c259e7"


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_t_is_that_of_equation_8_and_what_is_counted_is_near_it(alpha: float) -> None:
    true = np.arange(60_000) % 10
    noisy = noise.inject(true, "open_set", 0.5, num_classes=10, seed=0, source=10, labelled=alpha)
    by_hand = np.eye(11)
    by_hand[10] = [(1 - alpha) / 10] * 10 + [alpha]
    np.testing.assert_allclose(noisy.transition, by_hand)
    np.testing.assert_allclose(noise.transition_matrix("open_set", 0.5, 10, source=10, labelled=alpha), by_hand)
    counted = noisy.realised_transition(true)
    np.testing.assert_array_equal(counted[:10], by_hand[:10])
    np.testing.assert_allclose(counted[10], by_hand[10], atol=5 * np.sqrt(0.25 / 30_000))


def test_the_images_may_be_given_instead_of_their_number() -> None:
    by_images, by_number = injected(source=np.zeros((77, 2, 2, 1), np.uint8)), injected(source=77)
    np.testing.assert_array_equal(outliers_of(by_images)[0], outliers_of(by_number)[0])
    assert by_images.options == by_number.options == {"source": 77, "labelled": 0.1}
    assert by_images.source_size == 77


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"source": "cifar100"}, "open-set 30% from cifar100"),
        ({"source": "cifar100", "labelled": 0.25}, "open-set 30% from cifar100 (25% labelled)"),
        ({"source": 100}, "open-set 30%"),
    ],
)
def test_the_label_says_where_outliers_come_from(options: dict[str, Any], label: str) -> None:
    assert noise.describe("open_set", 0.3, **options) == label


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (None, {"source": 5}, "rate: missing; noise 'open_set' needs a rate in [0, 1]"),
        (0.3, {}, "source: missing; noise 'open_set' needs the dataset that outliers come from"),
        (0.3, {"source": 0}, "source: 0 is too small"),
        (0.3, {"source": True}, "source: True is not an integer"),
        (0.3, {"source": 0.5}, "source: a float is no set of images [M, H, W, C]"),
        (0.3, {"source": np.zeros((5, 4), np.uint8)}, "source: [5, 4] is not [M, H, W, C]"),
        (0.3, {"source": []}, "source: [0] is not [M, H, W, C]"),
        (0.3, {"source": 5, "labelled": 1.5}, "labelled: 1.5 is no share of the outliers; it must be in [0, 1]"),
        (0.3, {"source": 5, "labelled": "all"}, "labelled: 'all' is no share"),
        (0.3, {"sauce": 5}, "option 'sauce' is unknown; did you mean source?"),
    ],
)
def test_a_mistake_is_named(rate: Any, options: dict[str, Any], message: str) -> None:
    for attempt in (
        lambda: noise.check("open_set", rate, options, 10),
        lambda: noise.inject(TRUE, "open_set", rate, num_classes=10, seed=0, **options),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert message in str(error.value)


def test_a_name_cannot_be_drawn_from_and_labels_must_be_one_a_sample() -> None:
    with pytest.raises(UserError, match="source: 'shapes' is a name; give the images"):
        injected(source="shapes")
    with pytest.raises(UserError, match="noise 'open_set' is for one label a sample, and here are several"):
        noise.inject(np.eye(4, dtype=np.uint8), "open_set", 0.3, num_classes=4, seed=0, source=5)


# ------------------------------------------------------------------------------------------------------ the artefact


def test_artefact_round_trip(tmp_path: Path) -> None:
    noisy = replace(injected(), options={"source": "shapes", "labelled": 0.1})
    loaded = noise.load(noise.save(noisy, tmp_path / "a", true_labels=TRUE))
    for stored, drawn in zip(outliers_of(loaded), outliers_of(noisy), strict=True):
        np.testing.assert_array_equal(stored, drawn)
        assert stored.dtype == drawn.dtype
    np.testing.assert_array_equal(loaded.labels, noisy.labels)
    np.testing.assert_array_equal(loaded.transition, noisy.transition)
    for name in ("options", "source_size", "realised_rate", "states", "sha256", "description"):
        assert getattr(loaded, name) == getattr(noisy, name), name
    facts = json.loads((tmp_path / "a" / "noise.json").read_text())
    assert (facts["source"], facts["source_size"], facts["options"]["labelled"]) == ("shapes", 5_000, 0.1)
    for name, array in zip(("outliers", "labelled"), outliers_of(noisy), strict=True):
        assert facts[f"{name}_sha256"] == hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["outliers", "labelled"])
def test_changed_outliers_are_refused(tmp_path: Path, name: str) -> None:
    file = noise.save(injected(), tmp_path / "a") / "noise.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez_compressed(file, **(arrays | {name: arrays[name][::-1]}))
    with pytest.raises(UserError, match=f"is changed: its {name} do not have the SHA-256"):
        noise.load(tmp_path / "a")
    np.savez_compressed(file, **{key: value for key, value in arrays.items() if key != name})
    with pytest.raises(UserError, match="is truncated or changed"):
        noise.load(tmp_path / "a")


def test_a_description_without_its_outliers_is_refused(tmp_path: Path) -> None:
    file = noise.save(injected(), tmp_path / "a") / "noise.json"
    facts = json.loads(file.read_text())
    del facts["outliers_sha256"]
    file.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is truncated or changed"):
        noise.load(tmp_path / "a")


def test_the_same_labels_with_other_images_are_other_noise(tmp_path: Path) -> None:
    first, second = injected(source=5_000), injected(source=4_000)
    assert first.sha256 == second.sha256
    noise.save(first, tmp_path / "a")
    with pytest.raises(UserError, match="holds other labels"):
        noise.save(second, tmp_path / "a")


def test_the_same_positions_in_another_source_are_other_noise(tmp_path: Path) -> None:
    drawn = injected()
    first, second = (replace(drawn, options=drawn.options | {"source": name}) for name in ("shapes", "others"))
    noise.save(first, tmp_path / "a")
    with pytest.raises(UserError, match="holds other labels"):
        noise.save(second, tmp_path / "a")
    assert noise.save(first, tmp_path / "a") == tmp_path / "a"


# --------------------------------------------------------------------------------------------- what a method sees


def other_data(count: int = 50) -> ImageData:
    """A source for `sample_data`: brighter than any of its images, and of no class of its."""
    draw = np.random.default_rng(1)
    train, test = (draw.integers(230, 256, (n, 8, 8, 1), dtype=np.uint8) for n in (count, 70))
    return replace(
        sample_data(),
        train_images=train,
        train_labels=np.arange(count) % 4,
        test_images=test,
        test_labels=np.arange(70) % 4,
        classes=tuple("wxyz"),
    )


def mixed_noise(rate: float = 0.4, labelled: float = 0.5) -> NoisyLabels:
    data, source = sample_data(), len(other_data().train_images)
    return noise.inject(data.train_labels, "open_set", rate, num_classes=4, seed=0, source=source, labelled=labelled)


class Rows:
    """An `ImageSource` that counts what is read of it."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.read = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        self.read += 1
        return self.images[index]


@pytest.mark.parametrize("first", ["array", "memmap", "source"])
@pytest.mark.parametrize("second", ["array", "source"])
def test_mixed_images_are_the_source_s_where_outliers_are(tmp_path: Path, first: str, second: str) -> None:
    draw = np.random.default_rng(0)
    mine, others = (draw.integers(0, 256, (n, 3, 3, 2), dtype=np.uint8) for n in (40, 30))
    before = mine.copy()
    given: Any = mine
    if first == "memmap":
        np.save(tmp_path / "a.npy", mine)
        given = np.load(tmp_path / "a.npy", mmap_mode="r")
    elif first == "source":
        given = Rows(mine)
    outliers = np.where(draw.random(40) < 0.4, draw.integers(0, 30, 40), -1)
    mixed = mix(given, others if second == "array" else Rows(others), outliers)
    assert isinstance(mixed, np.ndarray) == (first == "array")
    if isinstance(given, Rows):
        assert given.read == 0, "lazy: nothing is read before it is asked for"
    assert len(mixed) == 40
    for i, at in enumerate(outliers):
        np.testing.assert_array_equal(mixed[i], mine[i] if at < 0 else others[at])
    np.testing.assert_array_equal(mine, before)


@pytest.mark.parametrize("lazy", [False, True])
def test_training_and_validation_are_of_the_mixed_images_and_the_test_set_is_not(lazy: bool) -> None:
    data, source, noisy = sample_data(), other_data(), mixed_noise()
    outliers, _ = outliers_of(noisy)
    by_hand = np.asarray(data.train_images).copy()
    for i in np.flatnonzero(outliers >= 0):
        by_hand[i] = source.train_images[outliers[i]]
    given = replace(data, train_images=Rows(np.asarray(data.train_images))) if lazy else data
    cls = method_class("ce")
    recipe = RECIPE.model_copy(update={"workers": 0})
    setup = Setup(cls, cls.Hparams(), given, noisy.labels, recipe, 7, noisy, "cpu", source)
    train_at, val_at = split(96, RECIPE, 7)
    evaluator = setup.evaluator
    assert evaluator._validation is not None
    parts = (
        (setup.run._loader, by_hand[train_at], noisy.labels[train_at]),
        (evaluator._validation, by_hand[val_at], noisy.labels[val_at]),
        (evaluator.test, np.asarray(data.test_images), data.test_labels),
    )
    for loader, images, labels in parts:
        assert (type(loader._source).__name__ == "_Streaming") == (lazy and loader is not evaluator.test)
        whole = {"augment": False, "shuffle": False, "batch_size": 20, "order_seed": 0, "augment_seed": 0}
        batches = list(loader.batches(**whole))
        assert torch.equal(torch.cat([b.x for b in batches]), loader.normalised(images))
        np.testing.assert_array_equal(torch.cat([b.y for b in batches]), labels)
    assert isinstance(mix(given.train_images, source.train_images, outliers), Mixed) == lazy
    np.testing.assert_array_equal(
        evaluator._wrong.numpy(), ((noisy.labels != data.train_labels) | (outliers >= 0))[train_at.numpy()]
    )


def test_a_source_of_another_size_than_the_noise_was_drawn_for_is_refused() -> None:
    data, noisy, cls = sample_data(), mixed_noise(), method_class("ce")
    for source, found in ((None, "missing"), (other_data(49), "it has 49 training images")):
        with pytest.raises(UserError, match=f"source: {found}; the noise was drawn for a dataset of 50"):
            Setup(cls, cls.Hparams(), data, noisy.labels, RECIPE, 7, noisy, "cpu", source)


# ------------------------------------------------------------------------------------------------- who is told what


class Told(Classifier):
    """Cross-entropy that keeps what it was given."""

    name = "told"
    needs = ("outliers",)

    def build(self, task):  # type: ignore[no-untyped-def]
        super().build(task)
        self.given = dict(task.given)

    def loss(self, batch, run):  # type: ignore[no-untyped-def]
        return torch.nn.functional.cross_entropy(self(batch.x), batch.y)


def setup_of(cls: type[Classifier], noisy: NoisyLabels | None = None) -> Setup:
    noisy = mixed_noise() if noisy is None else noisy
    source = None if noisy.outliers is None else other_data()
    return Setup(cls, cls.Hparams(), sample_data(), noisy.labels, RECIPE, 7, noisy, "cpu", source)


def test_a_method_that_needs_them_is_told_the_labelled_outliers_of_its_split_alone() -> None:
    given = setup_of(Told).method.given
    noisy, train_at = mixed_noise(), split(96, RECIPE, 7)[0].numpy()
    assert set(given) == {"outliers"}
    assert given["outliers"].dtype == torch.bool
    np.testing.assert_array_equal(given["outliers"].numpy(), outliers_of(noisy)[1][train_at])
    assert given["outliers"].sum() < (outliers_of(noisy)[0][train_at] >= 0).sum()


def test_nobody_is_told_which_others_are_outliers() -> None:
    """Nor of the source's test images, by whatever path leads from the method or its run, images in memory."""
    setup = setup_of(Told)
    outliers, train_at = outliers_of(mixed_noise())[0], split(96, RECIPE, 7)[0].numpy()
    seen: dict[int, Any] = {}
    queue: list[Any] = [setup.method, setup.run]
    while queue:
        thing = queue.pop()
        if id(thing) not in seen and not isinstance(thing, (type, types.ModuleType, types.FunctionType)):
            seen[id(thing)] = thing
            queue += gc.get_referents(thing)
    arrays = [np.asarray(t.detach()) if isinstance(t, torch.Tensor) else t for t in seen.values()]
    secrets = (outliers, outliers[train_at], outliers >= 0, (outliers >= 0)[train_at], other_data().test_images)
    assert not [1 for a in arrays if isinstance(a, np.ndarray) for secret in secrets if np.array_equal(a, secret)]


def test_needs_that_the_noise_does_not_have_are_named() -> None:
    flips = noise.inject(sample_data().train_labels, "symmetric", 0.4, num_classes=4, seed=0)
    with pytest.raises(UserError, match="method 'told' needs labelled outliers: they are there under noise open_set"):
        setup_of(Told, flips)

    class Both(Told):
        needs = ("transition", "outliers")

    class OnlyT(Told):
        needs = ("transition",)

    class More(Told):
        needs = ("clean_labels",)

    assert setup_of(Both).method.given["transition"].shape == (5, 5)
    with pytest.raises(UserError, match="method 'told' needs a T of the 4 classes; here it has one for outliers"):
        setup_of(OnlyT)
    with pytest.raises(UserError, match="method 'told' needs 'clean_labels' is unknown; known: outliers, transition"):
        setup_of(More)


@pytest.mark.parametrize("side", [4, 5, 6])
def test_an_estimate_of_t_may_have_a_class_for_outliers(side: int) -> None:
    class Estimates(Told):
        def transition(self) -> torch.Tensor:
            return torch.eye(side)

    setup = setup_of(Estimates)
    setup.method.eval()
    if side == 6:
        with pytest.raises(TrainingFailed, match=r"transition must give finite \[4, 4\], it gave \[6, 6\]"):
            setup.evaluator(setup.method, setup.run)
        return
    metrics = setup.evaluator(setup.method, setup.run)
    # Eq. 8 with half of the outliers labelled, against the identity: its last row is 4 times 1/8 and once 1/2 off.
    assert metrics.get("train.transition_error") == (None if side == 4 else pytest.approx(1 / 25))


# ------------------------------------------------------------------------------------- inliers told from outliers


class Bright(Told):
    """Takes bright images for outliers, as those of `other_data` are; in float16, so that some scores are tied."""

    name = "bright"

    def inlier_scores(self, x: torch.Tensor) -> torch.Tensor:
        return -x.flatten(1)[:, :3].mean(1).half().float()

    def noise_scores(self, run):  # type: ignore[no-untyped-def]
        return -run.per_sample(lambda batch: self.inlier_scores(batch.x))


@pytest.mark.parametrize("cls", [Told, Bright])
def test_inlier_detection_is_scikit_learn_s(cls: type[Told]) -> None:
    setup = setup_of(cls)
    method = setup.method.eval()
    with torch.no_grad():
        metrics = setup.evaluator(method, setup.run)
        data, source = sample_data(), other_data()
        chosen = setup.evaluator._outliers
        assert chosen is not None
        assert len(chosen) == len(data.test_images) == 40 < len(source.test_images)
        strangers = torch.cat(
            [b.x for b in chosen.batches(augment=False, shuffle=False, batch_size=9, order_seed=0, augment_seed=0)]
        )
        among = chosen.normalised(np.asarray(source.test_images))
        assert all(any(torch.equal(x, other) for other in among) for x in strangers)
        x = torch.cat([chosen.normalised(np.asarray(data.test_images)), strangers])
        scores = method.inlier_scores(x) if cls is Bright else method.predict(x).amax(1)
        precision, recall = setup.evaluator.inlier_curve(method, setup.run)
    inlier = np.arange(80) < 40
    assert metrics["test.inlier_auc"] == pytest.approx(roc_auc_score(inlier, scores), abs=1e-6)
    assert metrics["test.inlier_ap"] == pytest.approx(average_precision_score(inlier, scores), abs=1e-6)
    theirs = precision_recall_curve(inlier, scores)
    np.testing.assert_allclose(precision, theirs[0][:-1][::-1], atol=1e-9)
    np.testing.assert_allclose(recall, theirs[1][:-1][::-1], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3_000), st.sampled_from([1.0, 10.0, 1e9]))
def test_a_curve_is_thinned_to_points_of_itself_with_both_its_ends(seed: int, size: int, steps: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = (torch.rand(size, generator=draw, dtype=torch.float64) * steps).round()
    positive = torch.rand(size, generator=draw) < 0.5
    positive[0] = True
    precision, recall = precision_recall(scores, positive)
    assert len(precision) == len(recall) == min(200, len(scores.unique()))
    theirs = precision_recall_curve(positive, scores)
    whole = set(zip(theirs[0][:-1].round(9), theirs[1][:-1].round(9), strict=True))
    assert set(zip(precision.numpy().round(9), recall.numpy().round(9), strict=True)) <= whole
    assert float(recall[-1]) == 1.0
    assert bool((recall.diff() >= 0).all())


def test_outliers_are_wrong_samples_for_noise_auc_and_the_memorised_share() -> None:
    setup = setup_of(Bright, mixed_noise(labelled=0.0))
    setup.train(journal := Memory())
    metrics = journal.history[-1]["metrics"]
    noisy, train_at = mixed_noise(), split(96, RECIPE, 7)[0].numpy()
    out = outliers_of(noisy)[0][train_at] >= 0
    with torch.no_grad():
        method = setup.method.eval()
        assert metrics["train.noise_auc"] == pytest.approx(roc_auc_score(out, method.noise_scores(setup.run)))
        x = setup.run._loader.normalised(
            np.asarray(mix(sample_data().train_images, other_data().train_images, outliers_of(noisy)[0]))[train_at]
        )
        predicted = method.predict(x).argmax(1).numpy()
    given = noisy.labels[train_at]
    assert metrics["train.memorised"] == pytest.approx((predicted == given)[out].mean())


def test_scores_that_are_none_are_refused_and_there_is_no_curve_without_outliers() -> None:
    class Scalar(Told):
        def inlier_scores(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    class Infinite(Told):
        def inlier_scores(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x),), torch.inf)

    for cls, found in ((Scalar, r"\[\]"), (Infinite, r"\[40\]")):
        setup = setup_of(cls)
        with pytest.raises(TrainingFailed, match=rf"inlier_scores must give finite \[40\], it gave {found}"):
            setup.evaluator(setup.method.eval(), setup.run)
    cls = method_class("ce")
    data = sample_data()
    setup = Setup(cls, cls.Hparams(), data, data.train_labels, RECIPE, 7, accelerator="cpu")
    assert not {name for name in setup.evaluator(setup.method.eval(), setup.run) if "inlier" in name}
    with pytest.raises(UserError, match="there are no outliers to tell from: inlier detection is for noise open_set"):
        setup.evaluator.inlier_curve(setup.method, setup.run)


# ------------------------------------------------------------------------------------------- boards and the command


def board_of(**noise_settings: Any) -> Benchmark:
    board: Benchmark = build(
        Benchmark,
        {
            "name": "b",
            "datasets": ["digits"],
            "noise": [{"kind": "open_set", "rate": 0.3, **noise_settings}],
            "methods": ["ce"],
        },
        "b.yaml",
    )
    return board


@pytest.mark.parametrize(
    ("dataset", "source", "message"),
    [
        ("digits", {}, "source: missing; noise 'open_set' needs the dataset that outliers come from"),
        ("digits", {"source": "shape"}, "source: dataset 'shape' is unknown; did you mean shapes?"),
        ("digits", {"source": 100}, "source: 100 is no dataset's name"),
        ("digits", {"source": "digits"}, "noise[0] on digits: source: 'digits' is the dataset itself"),
        ("digits@300", {"source": "digits"}, "source: 'digits' is the dataset itself"),
        (
            "digits",
            {"source": "mnist"},
            "noise[0] on digits: source: 'mnist' shares classes with 'digits' (0, 1, 2, 3, 4 and 5 more)",
        ),
        ("digits", {"source": "multi_digits"}, "source: images of 'multi_digits' have several labels"),
        ("multi_digits", {"source": "shapes"}, "noise 'open_set' is for one label a sample, and here are several"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_when_a_board_is_read(
    dataset: str, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_names(board_of(**source).model_copy(update={"datasets": (dataset,)}), "b.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_only_the_data_tell_is_refused_when_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Noise = build(Noise, {"kind": "open_set", "rate": 0.3, "source": "shapes"}, "noise")
    data, shapes = load_dataset("digits", None), load_dataset("shapes", None)
    small = replace(shapes, train_images=shapes.train_images[:, :7], test_images=shapes.test_images[:, :7])  # type: ignore[index,call-overload]
    alike = replace(shapes, classes=("Square", "CROSS", *shapes.classes[2:]))
    several = replace(sample_data(multilabel=True), classes=tuple("wxyz"))
    own = replace(data, classes=("SQUARE", "cross", *data.classes[2:]))
    for first, second, message in (
        (data, small, r"source: images of 'shapes' are 7 x 8 x 1 \(H, W, C\), those of 'mine' 8 x 8 x 1"),
        (own, alike, r"source: 'shapes' shares classes with 'mine' \(Square, CROSS\)"),
        (data, several, "source: images of 'shapes' have several labels"),
    ):
        monkeypatch.setattr("noisebench.loading.load_dataset", lambda name, root, download=False, d=second: d)
        with pytest.raises(UserError, match=message):
            load_source(spec, first, "mine", None)


def test_a_source_that_does_not_fit_or_is_missing_is_refused_before_a_board_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, shapes = board_of(source="shapes"), load_dataset("shapes", None)
    small = replace(shapes, train_images=shapes.train_images[:, :7], test_images=shapes.test_images[:, :7])  # type: ignore[index,call-overload]

    def changed(name: str, root: Path | None, download: bool = False) -> ImageData:
        return small if name == "shapes" else load_dataset(name, root, download)

    check_settings(board, Place(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("noisebench.loading.load_dataset", changed)
        with pytest.raises(
            UserError, match=r"^b: noise\[0\] on digits: source: images of 'shapes' are 7 x 8 x 1 \(H, W"
        ):
            check_settings(board, Place(tmp_path))
    with pytest.raises(UserError, match=r"^b: noise\[0\] on digits: .* is missing; set --data-root") as caught:
        check_settings(board_of(source="fashion_mnist"), Place(tmp_path, data_root=tmp_path))
    assert "\n" not in str(caught.value)


def test_the_code_of_the_source_is_part_of_the_cell_s_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def cell() -> Cell:
        return board_of(source="shapes").cells()[0]

    before = cell().noise_key(), cell().fingerprint()
    assert cell().column == ("digits", "open-set 30% from shapes")
    assert board_of(source="shapes", labelled=0.2).cells()[0].noise_key() != before[0]
    known = registry.datasets().entries
    monkeypatch.setitem(known, "shapes", replace(known["shapes"], source=Path(__file__)))
    assert cell().noise_key() != before[0]
    assert cell().fingerprint() != before[1]


RUN = {"epochs": 2, "batch_size": 64, "lr": 0.05, "train_size": 300, "checkpoint_seconds": 0, "channels_last": False}


def test_a_cell_from_its_start_to_its_analysis(tmp_path: Path) -> None:
    spec = {"kind": "open_set", "rate": 0.3, "source": "shapes"}
    about = {"method": "ce", "dataset": "digits", "noise": spec, "seed": 0, "recipe": RUN}
    cell: Cell = build(Cell, about, "test")
    result = run_cell(cell, tmp_path, accelerator="cpu")
    assert result["status"] == "finished", result
    assert result["noise"] == "open-set 30% from shapes"
    assert {"inlier_auc", "inlier_ap", "memorised"} <= set(result["metrics"]["last"])
    config = json.loads((tmp_path / cell.folder() / "config.json").read_text())
    assert config["noise"] == spec | {"seed": 0}
    folder = tmp_path / config["noise_folder"]
    assert json.loads((folder / "noise.json").read_text())["source"] == "shapes"
    assert (folder / "transition.png").stat().st_size > 0
    found = FinishedRun.load(tmp_path / cell.folder(), accelerator="cpu")
    assert found.metrics()["accuracy"] == result["metrics"]["last"]["accuracy"]
    recipe = {key: value for key, value in RUN.items() if key != "checkpoint_seconds"}
    again = fit("ce", "digits", "open_set", 0.3, noise_options={"source": "shapes"}, recipe=recipe, device="cpu")
    assert again.weights_sha256 == result["weights_sha256"]


def test_a_method_without_its_outliers_is_a_failed_cell_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisebench.cell.method_class", lambda name: Told)
    cell: Cell = build(
        Cell,
        {"method": "ce", "dataset": "digits", "noise": {"kind": "none"}, "seed": 0, "recipe": RUN},
        "test",
    )
    result = run_cell(cell, tmp_path, accelerator="cpu")
    assert result["status"] == "failed"
    assert result["reason"] == "method 'told' needs labelled outliers: they are there under noise open_set only"


def test_inject_on_the_command_line(tmp_path: Path) -> None:
    argv = ["inject", "--noise", "open_set", "--rate", "0.3", "--out", str(tmp_path / "a")]
    ran = CliRunner().invoke(cli.app, [*argv, "--option", "source=shapes", "--option", "labelled=0.5"])
    assert ran.exit_code == 0, ran.output
    stored = noise.load(tmp_path / "a")
    outliers, labelled = outliers_of(stored)
    assert stored.options == {"source": "shapes", "labelled": 0.5}
    assert "digits, open-set 30% from shapes (50% labelled), seed 0: 1200 labels" in ran.output
    assert f"outliers       {(outliers >= 0).sum()} from shapes, {labelled.sum()} of them" in ran.output
    for wrong, message in ((["--option", "source=digits"], "is the dataset itself"), ([], "source: missing")):
        failed = CliRunner().invoke(cli.app, [*argv, *wrong])
        assert isinstance(failed.exception, UserError)
        assert message in str(failed.exception)


def test_fashion_mnist_with_outliers_of_mnist(data_root: str) -> None:
    root = Path(data_root)
    if not all((root / name).is_dir() for name in ("MNIST", "FashionMNIST")):
        pytest.skip("NOISEBENCH_DATA has no MNIST beside FashionMNIST")
    spec: Noise = build(Noise, {"kind": "open_set", "rate": 0.2, "source": "mnist"}, "noise")
    data = load_dataset("fashion_mnist", root)
    source = load_source(spec, data, "fashion_mnist", root)
    assert source is not None
    noisy = noise.inject(data.train_labels, "open_set", 0.2, num_classes=10, seed=0, source=len(source.train_images))
    outliers, _ = outliers_of(noisy)
    mixed = mix(data.train_images, source.train_images, outliers)
    first = int(np.argmax(outliers >= 0))
    np.testing.assert_array_equal(mixed[first], source.train_images[outliers[first]])
    assert noisy.realised_rate == pytest.approx(0.2, abs=0.01)


def test_a_board_whose_noise_has_no_outliers_refuses_a_method_that_needs_some_before_any_cell() -> None:
    board = {"name": "b", "datasets": ["digits"], "noise": [{"kind": "symmetric", "rate": 0.4}]}
    benchmark: Benchmark = build(Benchmark, board | {"methods": ["ce", "transition_outlier"]}, "b.yaml")
    with pytest.raises(
        UserError, match=r"methods\[1\] 'transition_outlier' needs labelled outliers: they are there under"
    ):
        check_settings(benchmark, Place(Path()))
