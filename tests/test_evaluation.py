"""Metrics against formulas written a second way in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from noisebench.assembly import Setup, method_class, split
from noisebench.checks import RECIPE, sample_data
from noisebench.config import Recipe
from noisebench.errors import TrainingFailed, UserError
from noisebench.evaluation import check_probabilities
from noisebench.fitting import Memory
from noisebench.method import Classifier
from noisebench.noise import inject
from noisebench.scoring import (
    area_under_roc,
    average_precision,
    calibration,
    classification_metrics,
    multilabel_metrics,
)


def some(size: int, classes: int, seed: int, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    p = torch.softmax(sharp * torch.randn(size, classes, generator=draw), 1)
    return p, torch.randint(classes, (size,), generator=draw)


def ece_by_hand(p: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """sum over bins of |accuracy - confidence| x share of samples; bins (lo, hi], equal widths."""
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 20), st.floats(0.1, 8.0))
def test_metrics_are_the_formulas(seed: int, classes: int, sharp: float) -> None:
    p, y = some(200, classes, seed, sharp)
    found = classification_metrics(p, y)
    q, labels = p.double().numpy(), y.numpy()
    order = np.argsort(-q, axis=1)
    assert found["accuracy"] == pytest.approx((order[:, 0] == labels).mean())
    assert found["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert found["nll"] == pytest.approx(-np.log(np.maximum(q[np.arange(200), labels], 1e-12)).mean(), rel=1e-5)
    assert found["ece"] == pytest.approx(ece_by_hand(q, labels), abs=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_bins_of_a_reliability_diagram_are_those_of_the_ece(several: bool) -> None:
    p, y = some(300, 8, 3)
    y = torch.nn.functional.one_hot(y, 8) if several else y
    found = calibration(p, y)
    entries = (p.flatten(), y.flatten() == 1) if several else (p.amax(1), p.argmax(1) == y)
    confidence, right = (values.double().numpy() for values in entries)
    for b, (count, sure, accurate) in enumerate(zip(*found.values(), strict=True)):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        assert count == inside.sum()
        if count:
            assert (sure, accurate) == pytest.approx((confidence[inside].mean(), right[inside].mean()), abs=1e-6)
        else:
            assert sure is accurate is None
    gaps = [n * abs(a - c) for n, c, a in zip(*found.values(), strict=True) if n]
    metrics = (multilabel_metrics if several else classification_metrics)(p, y)
    assert sum(gaps) / sum(found["count"]) == pytest.approx(metrics["ece"], abs=1e-5)


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    found = calibration(torch.eye(2), torch.tensor([0, 0]))
    assert found["count"] == [0] * 14 + [2]
    assert (found["confidence"][-1], found["accuracy"][-1]) == (1.0, 0.5)


def test_losses_of_right_and_wrong_labels_are_told_where_asked_and_change_nothing_else() -> None:
    data = sample_data()
    noisy = inject(data.train_labels, "symmetric", 0.4, num_classes=data.num_classes, seed=0)
    lines, setups = [], []
    Plain = method_class("ce")
    for asked in (False, True):
        recipe = RECIPE.model_copy(update={"record_losses": asked})
        setup = Setup(Plain, Plain.Hparams(), data, noisy.labels, recipe, 7, noisy, "cpu")
        setup.train(journal := Memory())
        lines.append(journal.history[-1]["metrics"])
        setups.append(setup)
    told = {name: value for name, value in lines[1].items() if ".loss_" in name}
    assert {name: value for name, value in lines[1].items() if name not in told} == lines[0]
    at = split(len(data.train_labels), RECIPE, 7)[0].numpy()
    with torch.no_grad():
        p = setups[1].method.eval().predict(setups[1].run._loader.normalised(np.asarray(data.train_images[at])))
    losses = -np.log(p.double().numpy()[np.arange(len(at)), noisy.labels[at]])
    wrong = noisy.labels[at] != data.train_labels[at]
    for which, chosen in (("right", ~wrong), ("wrong", wrong)):
        for name, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            assert told.pop(f"train.loss_{which}.{name}") == pytest.approx(np.quantile(losses[chosen], share), rel=1e-5)
    assert not told


def test_a_probability_of_zero_costs_the_floor_and_not_infinity() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert classification_metrics(p, torch.tensor([0, 1]))["nll"] == pytest.approx(-np.log(1e-12) / 2)


def test_top5_is_not_given_where_it_would_say_nothing() -> None:
    p, y = some(20, 5, 0)
    assert "top5" not in classification_metrics(p, y)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 50), st.integers(1, 30))
def test_the_auc_is_that_of_scikit_learn(seed: int, size: int, steps: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(steps, size=size) / steps  # with ties
    positive = np.arange(size) % 2 == 0
    found = area_under_roc(torch.from_numpy(scores), torch.from_numpy(positive))
    assert found == pytest.approx(roc_auc_score(positive, scores), abs=1e-6)


def test_an_auc_is_of_any_numbers() -> None:
    scores = torch.tensor([0.1, 50.0, 80.0, 0.2, 60.0, -3.0])  # a sigmoid in float32 would tie 50, 60 and 80
    assert area_under_roc(scores, torch.tensor([0, 0, 1, 0, 1, 0]).bool()) == 1.0
    assert area_under_roc(-scores, torch.tensor([0, 0, 1, 0, 1, 0]).bool()) == 0.0


def test_the_split_is_a_partition_that_the_seed_alone_decides() -> None:
    recipe = Recipe(validation=0.2)
    train, val = split(100, recipe, 5)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(100))
    assert len(val) == 20
    assert torch.equal(split(100, recipe, 5)[1], val)
    assert not torch.equal(split(100, recipe, 6)[1], val)
    assert [len(part) for part in split(100, Recipe(validation=0.2, train_size=30), 5)] == [24, 6]
    with pytest.raises(UserError, match=r"recipe\.train_size: 101: there are 100 training images"):
        split(100, Recipe(train_size=101), 5)


def test_validation_is_under_noisy_labels_and_the_test_set_under_clean_ones() -> None:
    data = sample_data()
    noisy = inject(data.train_labels, "symmetric", 0.5, num_classes=4, seed=0)
    cls = method_class("ce")
    setup = Setup(cls, cls.Hparams(), data, noisy.labels, RECIPE, 7, accelerator="cpu")
    train_at, val_at = (at.numpy() for at in split(96, RECIPE, 7))
    evaluator = setup.evaluator
    assert evaluator._validation is not None
    np.testing.assert_array_equal(evaluator._validation.labels.numpy(), noisy.labels[val_at])
    np.testing.assert_array_equal(evaluator.test.labels.numpy(), data.test_labels)
    np.testing.assert_array_equal(evaluator._train.labels.numpy(), noisy.labels[train_at])
    np.testing.assert_array_equal(evaluator._wrong.numpy(), (noisy.labels != data.train_labels)[train_at])


def test_the_memorised_share_counts_wrong_labels_that_are_predicted() -> None:
    data = sample_data()
    noisy = inject(data.train_labels, "symmetric", 0.5, num_classes=4, seed=0)
    cls = method_class("ce")
    setup = Setup(cls, cls.Hparams(), data, noisy.labels, RECIPE, 7, accelerator="cpu")
    setup.train(journal := Memory())
    train_at = split(96, RECIPE, 7)[0].numpy()
    x = (torch.from_numpy(data.train_images[train_at]).permute(0, 3, 1, 2).float() / 255 - 0.25) / 0.2
    with torch.no_grad():
        predicted = setup.method.eval().predict(x).argmax(1).numpy()
    wrong = noisy.labels[train_at] != data.train_labels[train_at]
    expected = (predicted[wrong] == noisy.labels[train_at][wrong]).mean()
    assert journal.history[-1]["metrics"]["train.memorised"] == pytest.approx(expected)


# ----------------------------------------------------------------------------------------- several labels an image


def several(size: int, classes: int, seed: int, steps: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels that go with them somewhat; `steps` rounds p, so that many are tied."""
    draw = torch.Generator().manual_seed(seed)
    p = torch.sigmoid(2 * torch.randn(size, classes, generator=draw) - 1)
    y = (torch.rand(size, classes, generator=draw) < 0.6 * p).to(torch.uint8)
    y[0, 0] = 1
    return (p * steps).round() / steps if steps else p, y


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 12), st.sampled_from([0, 3, 10]))
def test_gap_is_the_micro_averaged_average_precision(seed: int, size: int, classes: int, steps: int) -> None:
    p, y = several(size, classes, seed, steps)
    expected = average_precision_score(y.numpy(), p.numpy(), average="micro")
    assert average_precision(p, y) == pytest.approx(expected, abs=1e-12)


def test_gap_at_its_ends() -> None:
    y = torch.tensor([[1, 0], [0, 1]])
    assert average_precision(y.float(), y) == 1.0
    assert average_precision(torch.full((2, 2), 0.5), y) == 0.5, "all tied: the share of present entries"
    assert average_precision(torch.rand(2, 2), torch.zeros(2, 2)) == 0.0, "no label is present"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_multilabel_metrics_are_the_formulas(seed: int, classes: int) -> None:
    p, y = several(200, classes, seed)
    found, q, present = multilabel_metrics(p, y), p.double().numpy(), y.numpy().astype(bool)
    nll = -(np.where(present, np.log(q), np.log(1 - q))).sum(axis=1).mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    bins, ece = np.floor(q * 15), 0.0
    for b in range(15):
        inside = bins == b
        if inside.any():
            ece += inside.mean() * abs(present[inside].mean() - q[inside].mean())
    assert found["ece"] == pytest.approx(ece, abs=1e-5)
    assert found.keys() == {"gap", "nll", "ece"}


def test_a_multilabel_nll_is_floored_both_ways() -> None:
    p, floor = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), -np.log(1e-12)
    assert multilabel_metrics(p, torch.tensor([[1, 0], [1, 0]]))["nll"] == pytest.approx(2 * floor / 2)
    assert multilabel_metrics(p, torch.tensor([[0, 1], [1, 0]]))["nll"] == 0.0


@pytest.mark.parametrize(
    ("p", "says"),
    [
        (torch.tensor([[0.2, 1.2]]), r"predict must give probabilities in \[0, 1\]; they range over 0.2..1.2"),
        (torch.tensor([[-0.1, 0.5]]), "they range over -0.1..0.5"),
        (torch.tensor([[float("nan"), 0.5]]), "NaN or infinite"),
        (torch.tensor([[0.2, 0.3, 0.4]]), r"\[B, 2\], it gave \[1, 3\]"),
    ],
)
def test_several_probabilities_are_each_in_0_1(p: torch.Tensor, says: str) -> None:
    with pytest.raises(TrainingFailed, match=says):
        check_probabilities(p, 2, multilabel=True)
    check_probabilities(torch.tensor([[0.9, 0.8], [0.0, 0.0]]), 2, multilabel=True)


class Reports(Classifier):
    """Binary cross-entropy that also says which images look wrong, and what T is."""

    name = "reports"
    multilabel = True

    def loss(self, batch, run):  # type: ignore[no-untyped-def]
        return torch.nn.functional.binary_cross_entropy_with_logits(self(batch.x), batch.y)

    def noise_scores(self, run):  # type: ignore[no-untyped-def]
        return run.per_sample(lambda b: torch.nn.functional.softplus(self(b.x) * (1 - 2 * b.y)).amax(1))

    def transition(self) -> torch.Tensor:
        return torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def test_what_is_measured_where_images_have_several_labels() -> None:
    data = sample_data(multilabel=True)
    noisy = inject(data.train_labels, "asymmetric", 0.4, num_classes=4, seed=0, mapping={1: 0})
    setup = Setup(Reports, Reports.Hparams(), data, noisy.labels, RECIPE, 7, noisy, "cpu")
    setup.train(journal := Memory())
    metrics = journal.history[-1]["metrics"]
    train_at, val_at = (at.numpy() for at in split(96, RECIPE, 7))

    def predicted(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return setup.method.eval().predict(setup.run._loader.normalised(images)).double().numpy()

    on_test, on_val, on_train = (
        predicted(np.asarray(images))
        for images in (data.test_images, data.train_images[val_at], data.train_images[train_at])
    )
    assert metrics["test.gap"] == pytest.approx(average_precision_score(data.test_labels, on_test, average="micro"))
    of_val = average_precision_score(noisy.labels[val_at], on_val, average="micro")
    assert metrics["val.gap"] == pytest.approx(of_val), "under the noisy labels"
    wrong = noisy.labels[train_at] != data.train_labels[train_at]
    assert metrics["train.memorised"] == pytest.approx(
        np.mean((on_train > 0.5)[wrong] == noisy.labels[train_at][wrong])
    )
    scores = setup.method.noise_scores(setup.run)
    assert scores is not None
    assert metrics["train.noise_auc"] == pytest.approx(roc_auc_score(wrong.any(axis=1), scores.detach().numpy()))
    assert metrics["train.transition_error"] == pytest.approx((0.1 + 0.1 + 0.2 + 0.2) / 4)
    assert not {"test.accuracy", "val.accuracy", "test.top5"} & set(metrics)


def test_a_t_of_the_classes_is_refused_where_t_is_of_entries() -> None:
    class Wide(Reports):
        def transition(self) -> torch.Tensor:
            return torch.eye(4)

    data = sample_data(multilabel=True)
    setup = Setup(Wide, Wide.Hparams(), data, data.train_labels, RECIPE, 7, accelerator="cpu")
    with pytest.raises(TrainingFailed, match=r"transition must give finite \[2, 2\], it gave \[4, 4\]"):
        setup.train(Memory())
