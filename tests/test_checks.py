"""The conformance suite catches a method that breaks exactly one of its rules, and names that rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench import checks
from noisebench.assembly import Setup
from noisebench.checks import Outcome, check_dataset, check_method
from noisebench.data import ImageData
from noisebench.method import Batch, Classifier, Task, sigmoid_loss
from noisebench.training import Run


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs show all that four do."""
    monkeypatch.setattr(checks, "RECIPE", checks.RECIPE.model_copy(update={"epochs": 2}))


class Sound(Classifier):
    """Cross-entropy: keeps every rule, and each class below breaks one."""

    name = "sound"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.y)


class Nameless(Sound):
    name = ""


class Thawed(Sound):
    @dataclass
    class Hparams:
        rate: float = 0.1


class NoDataclass(Sound):
    class Hparams:
        pass


class EarlyNetworks(Sound):
    def __init__(self, hparams: Any = None) -> None:
        super().__init__(hparams)
        self.early = nn.Linear(2, 2)


class NeedsArguments(Sound):
    def __init__(self, hparams: Any) -> None:
        super().__init__(hparams)


class NotFinite(Sound):
    def loss(self, batch: Batch, run: Run) -> Tensor:
        return super().loss(batch, run) * float("nan")


class Logits(Sound):
    def predict(self, x: Tensor) -> Tensor:
        out: Tensor = self(x)
        return out


class NoBuild(Sound):
    def build(self, task: Task) -> None:
        raise NotImplementedError


class OffTheSimplex(Sound):
    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x) * 1.0001  # the evaluator forgives it, the suite does not


class Forgotten(Sound):
    def build(self, task: Task) -> None:
        super().build(task)
        self.forgotten = nn.Parameter(torch.zeros(3))

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.net.parameters())}]


class Twice(Sound):
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self.net.parameters()] * 2}]


class OwnRandomness(Sound):
    def build(self, task: Task) -> None:
        super().build(task)
        with torch.no_grad():
            self.register_buffer("salt", torch.tensor(float(int.from_bytes(os.urandom(2), "big"))))


class StateInAnAttribute(Sound):
    def build(self, task: Task) -> None:
        super().build(task)
        self.steps = 0

    def loss(self, batch: Batch, run: Run) -> Tensor:
        self.steps += 1
        return super().loss(batch, run) / self.steps


class LooksAtTheBatch(Sound):
    def build(self, task: Task) -> None:
        super().build(task)
        self.norm = nn.BatchNorm2d(task.image_shape[0], track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.norm(x))
        return out


class Declared(LooksAtTheBatch):
    stochastic = "for this test's sake"


class Peeks(Sound):
    """Handed the data behind the harness's back; a method has no honest way to it."""

    seen: ClassVar[ImageData]

    def loss(self, batch: Batch, run: Run) -> Tensor:
        true = torch.as_tensor(self.seen.train_labels)[batch.index]
        return F.cross_entropy(self(batch.x), true)


class PeeksAtTheTest(Peeks):
    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.y) * float(np.mean(self.seen.test_labels[:20]))


class PredictsFromAnAttribute(Sound):
    temperature = 1.0

    def after_step(self, batch: Batch, run: Run) -> None:
        self.temperature = 2.0

    def predict(self, x: Tensor) -> Tensor:
        return torch.softmax(self(x) / self.temperature, dim=1)


class ShortScores(Sound):
    def noise_scores(self, run: Run) -> Tensor:
        return torch.zeros(5)


class ScoresNotFinite(Sound):
    def noise_scores(self, run: Run) -> Tensor:
        return run.per_sample(lambda batch: batch.y / 0.0)


class LooseTransition(Sound):
    def transition(self) -> Tensor:
        return torch.eye(4) * 1.01


def failures(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.detail for outcome in outcomes if outcome.status == "failed"}


def test_a_sound_method_passes_and_what_it_does_not_offer_is_skipped() -> None:
    outcomes = check_method(Sound)
    assert [o.status for o in outcomes] == ["passed"] * (len(outcomes) - 1) + ["skipped"]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize(
    ("cls", "check", "reason"),
    [
        (Nameless, "is a Method", "set the class attribute `name`"),
        (Thawed, "is a Method", "Hparams must be frozen"),
        (NoDataclass, "is a Method", "Hparams must be a dataclass"),
        (SimpleNamespace(name="x"), "is a Method", "is no class"),
        (dict, "is a Method", "is no subclass of noisebench.method.Method"),
        (EarlyNetworks, "can be made without arguments", "make them in build"),
        (NeedsArguments, "can be made without arguments", "hparams"),
        (NotFinite, "trains", "the loss became nan in epoch 1, step 1"),
        (Logits, "trains", "rows on the simplex"),
        (NoBuild, "trains", "NotImplementedError"),
        (OffTheSimplex, "predicts class probabilities", "rows sum to one only within 0.0001"),
        (Forgotten, "has every trainable parameter", "in no group: forgotten"),
        (Twice, "has every trainable parameter", "in two groups: net."),
        (OwnRandomness, "gives the same weights for the same seed", "different weights"),
        (StateInAnAttribute, "resumes", "resumed after epoch 1: other weights"),
        (LooksAtTheBatch, "predicts the same however", "in batches of 1 a probability differs"),
        (PredictsFromAnAttribute, "saves state that loads", "keep all state in buffers"),
        (ShortScores, "trains", "5"),
        (ScoresNotFinite, "trains", "noise_scores gave a value that is NaN or infinite"),
        (LooseTransition, "gives noise scores", "sum to one only within 0.01"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if isinstance(value, type) else "",
)
def test_a_method_that_breaks_one_rule_fails_that_check(cls: Any, check: str, reason: str) -> None:
    failed = failures(check_method(cls, raise_on_failure=False))
    follow_ups = {"resumes", "ends in the same weights"} if cls is OwnRandomness else set()  # need repeatable weights
    found = {name: detail for name, detail in failed.items() if not name.startswith(tuple(follow_ups))}
    ((name, detail),) = found.items()
    assert name.startswith(check)
    assert reason in detail


@pytest.fixture
def handed() -> Iterator[Any]:
    class Handing(Setup):
        def __init__(self, cls: Any, hparams: Any, data: ImageData, *rest: Any) -> None:
            Peeks.seen = data
            super().__init__(cls, hparams, data, *rest)

    yield Handing
    del Peeks.seen


@pytest.mark.parametrize("cls", [Peeks, PeeksAtTheTest])
def test_a_method_that_sees_clean_labels_or_the_test_set_is_caught(
    cls: type[Peeks], handed: type[Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "Setup", handed)
    ((name, detail),) = failures(check_method(cls, raise_on_failure=False)).items()
    assert name.startswith("ends in the same weights when clean labels and the test set are altered")
    assert "reached the weights" in detail


def test_a_declared_dependence_on_the_batch_is_skipped_with_its_reason() -> None:
    outcomes = check_method(Declared)
    (skipped,) = (o for o in outcomes if o.name.startswith("predicts the same however"))
    assert (skipped.status, skipped.detail) == ("skipped", "declared: for this test's sake")


def test_in_a_test_every_failed_check_is_in_the_one_error() -> None:
    class Both(OffTheSimplex, Forgotten):
        name = "both"

    with pytest.raises(AssertionError) as caught:
        check_method(Both)
    text = str(caught.value)
    assert text.startswith("both fails 2 checks:")
    assert "rows sum to one only within" in text
    assert "in no group: forgotten" in text


# ----------------------------------------------------------------------------------------------------- datasets


def dataset(**changes: Any) -> Any:
    data = replace(checks.sample_data(), **changes)
    return SimpleNamespace(load=lambda root, download=False: data)


def test_a_sound_dataset_passes() -> None:
    assert not failures(check_dataset(dataset()))
    assert [o.status for o in check_dataset(dataset(class_map={}))] == ["passed"] * 3 + ["skipped"]


def test_a_dataset_that_breaks_one_rule_fails_that_check() -> None:
    data = checks.sample_data()
    without_class_3 = np.where(data.test_labels == 3, 0, data.test_labels)
    loads = iter([data, replace(data, train_labels=data.train_labels[::-1].copy())])
    for broken, check, reason in (
        (SimpleNamespace(load=lambda root, download=False: {}), "loads an ImageData", "load() gave dict"),
        (SimpleNamespace(load=lambda root: data), "loads an ImageData", "download"),
        (dataset(test_labels=without_class_3), "has every class", "test: no sample of class 3"),
        (dataset(class_map={0: 1, 2: 2}), "has a class map", "class 2 maps to itself"),
        (
            SimpleNamespace(load=lambda root, download=False: next(loads)),
            "loads the same again",
            "train_labels differs",
        ),
    ):
        ((name, detail),) = failures(check_dataset(broken, raise_on_failure=False)).items()
        assert name.startswith(check)
        assert reason in detail


def test_a_dataset_is_given_the_root(tmp_path: Path) -> None:
    roots: list[Path | None] = []

    def load(root: Path | None, download: bool = False) -> ImageData:
        roots.append(root)
        return checks.sample_data()

    check_dataset(SimpleNamespace(load=load), tmp_path)
    assert set(roots) == {tmp_path}


# --------------------------------------------------------------------------------------------- several labels an image


class Several(Classifier):
    """Binary cross-entropy: keeps every rule of a multilabel task, and each class below breaks one."""

    name = "several"
    multilabel = True

    def loss(self, batch: Batch, run: Run) -> Tensor:
        return sigmoid_loss(self(batch.x), batch.y)


class OnlyClasses(Several):
    def loss(self, batch: Batch, run: Run) -> Tensor:
        return F.cross_entropy(self(batch.x), batch.y.long())


class SoftmaxAllTheSame(Several):
    def predict(self, x: Tensor) -> Tensor:
        return torch.softmax(self(x), dim=1)


class AboveOne(Several):
    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x) * (3.0 if self.several else 1.0)


class CountsThere(Several):
    def build(self, task: Task) -> None:
        super().build(task)
        self.steps = 0

    def loss(self, batch: Batch, run: Run) -> Tensor:
        self.steps += batch.y.ndim == 2
        return super().loss(batch, run) / (1 + self.steps)


class NormalisesThere(Several):
    def predict(self, x: Tensor) -> Tensor:
        p = super().predict(x)
        return p / p.amax() if self.several else p


class WideTransition(Several):
    def transition(self) -> Tensor:
        return torch.eye(4)


def test_a_method_that_takes_several_labels_is_checked_with_both() -> None:
    outcomes = check_method(Several)
    assert not failures(outcomes)
    ours = [o.name for o in outcomes if o.name.startswith("several labels: ")]
    assert len(ours) == 6
    assert "several labels: predicts a probability in [0, 1] for each class of an image" in ours
    assert not [o for o in check_method(Sound) if o.name.startswith("several labels: ")]


@pytest.mark.parametrize(
    ("cls", "check", "reason"),
    [
        (OnlyClasses, "trains", "got Long"),
        (SoftmaxAllTheSame, "predicts a probability in [0, 1]", "every row sums to one, as a softmax's do"),
        (AboveOne, "trains", "predict must give probabilities in [0, 1]; they range over"),
        (CountsThere, "resumes", "resumed after epoch 1: other weights"),
        (NormalisesThere, "predicts the same however", "in batches of 1 a probability differs"),
        (WideTransition, "trains", "transition must give finite [2, 2], it gave [4, 4]"),
    ],
)
def test_a_method_that_breaks_one_rule_of_several_labels_fails_that_check(cls: Any, check: str, reason: str) -> None:
    ((name, detail),) = failures(check_method(cls, raise_on_failure=False)).items()
    assert name.startswith(f"several labels: {check}")
    assert reason in detail


def test_a_dataset_of_several_labels_is_checked() -> None:
    data = checks.sample_data(multilabel=True)
    told = {"NUM_CLASSES": 4, "MULTILABEL": True}

    def module(data: ImageData, **constants: Any) -> Any:
        return SimpleNamespace(load=lambda root, download=False: data, **constants)

    assert [o.status for o in check_dataset(module(data, **told))] == ["passed"] * 3 + ["skipped"]
    without_class_3 = data.test_labels * np.array([1, 1, 1, 0], np.uint8)
    for broken, reason in (
        (module(replace(data, test_labels=without_class_3)), "test: no sample of class 3"),
        (module(data, NUM_CLASSES=4), "MULTILABEL is False, but the data's is True"),
        (module(data, NUM_CLASSES=5, MULTILABEL=True), "NUM_CLASSES is 5, but the data's is 4"),
        (module(checks.sample_data(), **told), "MULTILABEL is True, but the data's is False"),
    ):
        ((_, detail),) = failures(check_dataset(broken, raise_on_failure=False)).items()
        assert reason in detail
