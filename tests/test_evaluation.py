"""Metrics against formulas written a second way in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from noisebench.assembly import Setup, split
from noisebench.checks import RECIPE, sample_data
from noisebench.config import Recipe
from noisebench.errors import UserError
from noisebench.evaluation import _ranks, classification_metrics
from noisebench.noise import inject


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


def test_a_probability_of_zero_costs_the_floor_and_not_infinity() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert classification_metrics(p, torch.tensor([0, 1]))["nll"] == pytest.approx(-np.log(1e-12) / 2)


def test_top5_is_not_given_where_it_would_say_nothing() -> None:
    p, y = some(20, 5, 0)
    assert "top5" not in classification_metrics(p, y)


def test_noise_auc_is_of_the_ranks_so_that_large_losses_are_not_tied() -> None:
    scores = torch.tensor([0.1, 50.0, 80.0, 0.2, 60.0, 0.3])  # a sigmoid in float32 would tie 50, 60 and 80
    wrong = torch.tensor([0, 0, 1, 0, 1, 0])
    expected = roc_auc_score(wrong.numpy(), scores.numpy())
    assert float(binary_auroc(_ranks(scores), wrong)) == pytest.approx(expected) == pytest.approx(1.0)


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
    from noisebench.assembly import method_class

    cls = method_class("ce")
    setup = Setup(cls, cls.Hparams(), data, noisy.labels, RECIPE, 7, accelerator="cpu")
    train_at, val_at = (at.numpy() for at in split(96, RECIPE, 7))
    evaluator = setup.evaluator
    assert evaluator._validation is not None
    np.testing.assert_array_equal(evaluator._validation.labels.numpy(), noisy.labels[val_at])
    np.testing.assert_array_equal(evaluator._test.labels.numpy(), data.test_labels)
    np.testing.assert_array_equal(evaluator._train.labels.numpy(), noisy.labels[train_at])
    np.testing.assert_array_equal(evaluator._wrong.numpy(), (noisy.labels != data.train_labels)[train_at])


def test_the_memorised_share_counts_wrong_labels_that_are_predicted() -> None:
    data = sample_data()
    noisy = inject(data.train_labels, "symmetric", 0.5, num_classes=4, seed=0)
    from noisebench.assembly import method_class
    from noisebench.fitting import Memory

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
