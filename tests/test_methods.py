"""Every registered method keeps the contract; each built-in's formula is checked against one written a second way."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noisebench import registry
from noisebench.assembly import make_hparams, method_class
from noisebench.checks import check_method
from noisebench.errors import BrokenPlugin, TrainingFailed, UserError
from noisebench.method import Batch, Classifier, Task, sigmoid_loss, sigmoid_predict
from noisebench.methods.cross_entropy import CrossEntropy as CE
from noisebench.methods.loss_correction import estimate_transition


@pytest.mark.parametrize("name", sorted(registry.methods().entries))
def test_every_method_conforms(name: str) -> None:
    check_method(method_class(name))


@pytest.mark.parametrize("member", ["co_teaching", "elr", "forward"])
def test_ensembles_of_other_methods_conform(member: str) -> None:
    cls = method_class("ensemble")
    check_method(cls, cls.Hparams(member=member, size=2))


def test_cross_entropy_with_sigmoids_conforms() -> None:
    cls = method_class("ce")
    check_method(cls, cls.Hparams(link="sigmoid"))


@pytest.mark.parametrize("name", sorted(registry.methods().entries))
def test_every_method_cites_and_says_what_it_is(name: str) -> None:
    entry = registry.methods()[name]
    assert entry.summary.endswith(".")
    assert method_class(name).paper


# ------------------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A "network" whose output is a table of logits, so that a loss can be fed any logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.logits


def logits_and_labels(size: int = 12, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(size, classes, generator=draw), torch.randint(classes, (size,), generator=draw)


def made(name: str, logits: Tensor, **hparams: Any) -> Any:
    cls = method_class(name)
    method = cls(cls.Hparams(**hparams))
    method.build(Task(logits.shape[1], len(logits), (1, 1, 1), 1, lambda: nn.Flatten()))
    method.net = Given(logits)
    return method


def batch_of(labels: Tensor) -> Batch:
    return Batch(torch.eye(len(labels)), labels, torch.arange(len(labels)))


def run_at(epoch: int = 0, epochs: int = 100) -> Any:
    from noisebench.method import epochs_from

    return SimpleNamespace(
        epoch=epoch,
        epochs=epochs,
        epochs_from=lambda v: epochs_from(v, epochs),
        generator=torch.Generator().manual_seed(1),
        device=torch.device("cpu"),
    )


def softmax64(logits: Tensor) -> Any:
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_ce_is_the_mean_negative_log_probability() -> None:
    logits, y = logits_and_labels()
    expected = -np.log(softmax64(logits)[np.arange(12), y.numpy()]).mean()
    assert made("ce", logits).loss(batch_of(y), run_at()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.01, 0.7, 1.0])
def test_gce_is_equation_6(q: float) -> None:
    logits, y = logits_and_labels()
    p = softmax64(logits)[np.arange(12), y.numpy()]
    found = made("gce", logits, q=q).loss(batch_of(y), run_at()).item()
    assert found == pytest.approx(((1 - p**q) / q).mean(), rel=1e-5)


def test_gce_keeps_a_gradient_where_the_probability_is_tiny() -> None:
    logits = torch.zeros(2, 3)
    logits[:, 1] = 60.0
    method = made("gce", logits)
    method.loss(batch_of(torch.tensor([0, 2])), run_at()).backward()
    gradient = method.net.logits.grad
    assert gradient.isfinite().all()
    assert (gradient[:, 1] > 0).all()


def test_mixup_mixes_images_and_labels_with_the_same_weight() -> None:
    logits, y = logits_and_labels()
    method, run = made("mixup", logits, alpha=2.0), run_at()
    torch.manual_seed(3)
    loss = float(method.loss(batch_of(y), run))
    torch.manual_seed(3)
    lam = float(torch.distributions.Beta(2.0, 2.0).sample())
    other = torch.randperm(12, generator=torch.Generator().manual_seed(1)).numpy()
    mixed = torch.from_numpy(lam * logits.numpy() + (1 - lam) * logits.numpy()[other])
    log_p, rows = np.log(softmax64(mixed)), np.arange(12)
    expected = -(lam * log_p[rows, y.numpy()] + (1 - lam) * log_p[rows, y.numpy()[other]]).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_elr_is_equation_6_with_the_running_target_of_equation_9() -> None:
    logits, y = logits_and_labels()
    method = made("elr", logits, weight=2.0, momentum=0.6)
    target = np.zeros((12, 5))
    for _ in range(3):
        loss = float(method.loss(batch_of(y), run_at()))
        p = np.clip(softmax64(logits), 1e-4, 1 - 1e-4)
        target = 0.6 * target + 0.4 * p / p.sum(1, keepdims=True)
        ce = -np.log(softmax64(logits)[np.arange(12), y.numpy()]).mean()
        assert loss == pytest.approx(ce + 2.0 * np.log(1 - (p * target).sum(1)).mean(), rel=1e-5)
    np.testing.assert_allclose(method.targets.numpy(), target, rtol=1e-5)


def test_elr_updates_only_the_targets_of_the_batch() -> None:
    logits, y = logits_and_labels()
    method = made("elr", logits)
    method.loss(Batch(torch.eye(12)[3:5], y[3:5], torch.tensor([3, 4])), run_at())
    touched = method.targets.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 4]


def test_co_teaching_trains_each_network_on_what_the_other_chose() -> None:
    first, y = logits_and_labels()
    second = first.flip(0) * 0.7
    cls = method_class("co_teaching")
    method = cls(cls.Hparams(forget_rate=0.5, ramp=10))
    method.first, method.second = Given(first), Given(second)
    loss = method.loss(batch_of(y), run_at(epoch=10))
    rows = np.arange(12)
    a = -np.log(softmax64(first)[rows, y.numpy()])
    b = -np.log(softmax64(second)[rows, y.numpy()])
    expected = a[np.argsort(b)[:6]].mean() + b[np.argsort(a)[:6]].mean()  # the mean: not divided by the number twice
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_co_teaching_ramps_without_a_jump_and_always_keeps_a_sample() -> None:
    cls = method_class("co_teaching")
    method = cls(cls.Hparams(forget_rate=0.9, ramp=10, exponent=2.0))
    kept = [method.keep(run_at(epoch=e), 1000) for e in range(15)]
    assert kept[0] == 1000
    assert kept == [round((1 - 0.9 * min((e / 10) ** 2, 1)) * 1000) for e in range(15)]
    assert cls(cls.Hparams(forget_rate=0.99, ramp=1)).keep(run_at(epoch=50), 4) == 1


T = np.array([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.1, 0.6]])


def test_forward_is_the_cross_entropy_of_the_mixed_probabilities() -> None:
    logits, y = logits_and_labels(classes=3)
    method = made("forward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    expected = -np.log((softmax64(logits) @ T)[np.arange(12), y.numpy()]).mean()
    assert float(method.loss(batch_of(y), run_at())) == pytest.approx(expected, rel=1e-4)


def test_forward_stays_finite_where_t_leaves_no_probability() -> None:
    logits = torch.tensor([[0.0, 80.0, 0.0]])
    method = made("forward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    loss = method.loss(batch_of(torch.tensor([0])), run_at())
    loss.backward()
    assert loss.isfinite()
    assert method.net.logits.grad.isfinite().all()


def test_backward_weights_the_losses_with_the_inverse() -> None:
    logits, y = logits_and_labels(classes=3)
    method = made("backward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    losses = -np.log(softmax64(logits))
    expected = np.mean([np.linalg.solve(T, losses[i])[y[i]] for i in range(12)])
    assert float(method.loss(batch_of(y), run_at())) == pytest.approx(expected, rel=1e-4)


def test_backward_is_unbiased() -> None:
    """Theorem 1: over the noise, the corrected loss is the loss under the true label."""
    logits, _ = logits_and_labels(1, 3)
    method = made("backward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    for true in range(3):
        by_label = [float(method.loss(batch_of(torch.tensor([j])), run_at())) for j in range(3)]
        expected = -np.log(softmax64(logits)[0, true])
        assert float(T[true] @ by_label) == pytest.approx(expected, abs=1e-4)


def test_forward_keeps_float32_under_bf16() -> None:
    logits, y = logits_and_labels(classes=3)
    method = made("forward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    expected = -np.log((softmax64(logits.bfloat16().float()) @ T)[np.arange(12), y.numpy()]).mean()
    method.net = nn.Flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = Batch(logits.bfloat16(), y, torch.arange(12))
        assert method.loss(batch, run_at()).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("epochs", "estimate_at"), [(2, 0.25), (2, 0), (1, 0.5), (4, 4), (4, 1.0)])
def test_t_is_estimated_after_an_epoch_and_before_the_last_or_the_setting_is_refused(
    epochs: int, estimate_at: float
) -> None:
    import noisebench
    from noisebench.checks import sample_data

    arguments: Any = dict(hparams={"estimate_at": estimate_at}, recipe={"epochs": epochs, "batch_size": 16})
    if epochs == 2:
        assert noisebench.fit("forward", sample_data(), "pairflip", 0.2, **arguments).method.transition() is not None
    else:
        with pytest.raises(UserError, match="T would never be used"):
            noisebench.fit("forward", sample_data(), "pairflip", 0.2, **arguments)


def test_an_ensemble_of_ensembles_of_forward_trains() -> None:
    import noisebench
    from noisebench.checks import sample_data

    inner = {"member": "forward", "size": 2}
    found = noisebench.fit(
        "ensemble",
        sample_data(),
        "pairflip",
        0.2,
        hparams={"member": "ensemble", "size": 2, "settings": inner},
        recipe={"epochs": 2, "batch_size": 16},
    )
    assert len(list(found.method.members)) == 2


def test_backward_refuses_a_near_singular_t() -> None:
    method = made("backward", torch.zeros(4, 2))
    method.matrix.copy_(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    with pytest.raises(TrainingFailed, match="near-singular"):
        method.check_matrix()


def test_t_is_read_off_at_the_surest_sample_of_each_class() -> None:
    p = torch.softmax(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 2, 1)
    found = estimate_transition(p)
    for i in range(4):
        torch.testing.assert_close(found[i], p[p[:, i].argmax()])
    at97 = estimate_transition(p, 97.0)
    for i in range(4):
        assert float(at97[i, i]) == pytest.approx(float(np.percentile(p[:, i].numpy(), 97, method="nearest")))


def test_t_is_found_from_a_perfect_noisy_model() -> None:
    """Where p(noisy | x) = T[y] for surely labelled x, the estimate is T itself."""
    p = torch.from_numpy(T[np.repeat(np.arange(3), 5)])
    torch.testing.assert_close(estimate_transition(p), torch.from_numpy(T))


def test_an_ensemble_averages_members_that_differ() -> None:
    cls = method_class("ensemble")
    method = cls(cls.Hparams(size=2))
    torch.manual_seed(0)
    method.build(Task(3, 10, (1, 2, 2), 4, lambda: nn.Flatten()))
    x = torch.randn(6, 1, 2, 2)
    each = [member.predict(x) for member in method.members]
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(method.predict(x), (each[0] + each[1]) / 2)


def test_an_ensemble_of_something_unknown_names_the_nearest() -> None:
    cls = method_class("ensemble")
    with pytest.raises(UserError, match=r"mixupp.*did you mean mixup"):
        cls(cls.Hparams(member="mixupp")).build(Task(3, 10, (1, 2, 2), 4, lambda: nn.Flatten()))


def test_settings_that_are_no_dataclass_are_a_broken_plug_in_and_not_the_user_s_mistake() -> None:
    class Broken(CE):
        class Hparams:  # type: ignore[assignment]
            q = 1

    class Unreadable(CE):
        @dataclass(frozen=True)
        class Hparams:  # type: ignore[assignment]
            q: nn.Module

    for cls in (Broken, Unreadable):
        with pytest.raises(BrokenPlugin, match="method 'x': Hparams"):
            make_hparams(cls, {}, "method 'x'")


@pytest.mark.parametrize(
    ("name", "hparams", "says"),
    [
        ("gce", {"q": 0}, r"hparams\.q: 0: should be greater than 0"),
        ("forward", {"estimate_at": 2.5}, r"hparams\.estimate_at: 2\.5"),
        ("co_teaching", {"ramp": -3}, r"hparams\.ramp: -3"),
        ("co_teaching", {"forget": 0.1}, "hparams 'forget' is unknown; did you mean forget_rate"),
        ("ce", {"q": 1}, "method 'ce': hparams 'q' is unknown"),
        ("ce", {"link": "probit"}, r"hparams\.link: 'probit': should be 'softmax' or 'sigmoid'"),
        ("ensemble", {"size": 0}, r"hparams\.size: 0"),
    ],
)
def test_wrong_settings_name_the_key_the_value_and_the_range(name: str, hparams: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        make_hparams(method_class(name), hparams, f"method '{name}'")
    assert "\n" not in str(caught.value)


def test_a_method_without_settings_says_so() -> None:
    class Plain(Classifier):
        name = "plain"

    with pytest.raises(UserError, match="method 'plain' has no hparams"):
        make_hparams(Plain, {"q": 1}, "method 'plain'")


# ----------------------------------------------------------------------------------------- several labels an image


def sigmoid64(logits: Tensor) -> Any:
    return 1 / (1 + np.exp(-logits.double().numpy()))


def binary_entropy(logits: Tensor, y: Any) -> float:
    """sum over classes of -[y log p + (1 - y) log(1 - p)], mean over the batch, in float64."""
    p = sigmoid64(logits)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(axis=1).mean())


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_ce_of_several_labels_is_the_binary_cross_entropy_whatever_the_link(link: str) -> None:
    logits, _ = logits_and_labels()
    y = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(1)).float()
    cls = method_class("ce")
    method = cls(cls.Hparams(link=link))
    method.build(Task(5, 12, (1, 1, 1), 1, lambda: nn.Flatten(), multilabel=True))
    method.net = Given(logits)
    loss = method.loss(Batch(torch.eye(12), y, torch.arange(12)), run_at())
    assert loss.item() == pytest.approx(binary_entropy(logits, y.numpy()), rel=1e-5)
    np.testing.assert_allclose(method.predict(torch.eye(12)).detach().numpy(), sigmoid64(logits), rtol=1e-5)


def test_sigmoids_on_one_label_are_trained_on_its_one_hot_row_and_predict_on_the_simplex() -> None:
    logits, y = logits_and_labels()
    method = made("ce", logits, link="sigmoid")
    loss = method.loss(batch_of(y), run_at())
    assert loss.item() == pytest.approx(binary_entropy(logits, np.eye(5)[y.numpy()]), rel=1e-5)
    p = sigmoid64(logits)
    predicted = method.predict(torch.eye(12)).detach().numpy()
    np.testing.assert_allclose(predicted, p / p.sum(1, keepdims=True), rtol=1e-5)


def test_sigmoids_that_underflow_still_give_a_prediction_and_a_gradient() -> None:
    logits = torch.tensor([[-300.0, -301.0, -300.0]], requires_grad=True)
    p = sigmoid_predict(logits.detach(), multilabel=False)
    e = np.exp([0.0, -1.0, 0.0])
    np.testing.assert_allclose(p[0].numpy(), e / e.sum(), rtol=1e-6)
    loss = sigmoid_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(301.0)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [0.0, -1.0, 0.0]


def test_sigmoid_loss_is_in_float32_from_half_and_in_float64_from_double() -> None:
    logits, y = logits_and_labels()
    assert sigmoid_loss(logits.bfloat16(), y).dtype == torch.float32
    assert sigmoid_loss(logits.double(), y).item() == pytest.approx(
        binary_entropy(logits, np.eye(5)[y.numpy()]), rel=1e-12
    )
    assert sigmoid_predict(logits.bfloat16(), multilabel=True).dtype == torch.float32


def test_an_ensemble_takes_several_labels_where_its_member_does() -> None:
    import noisebench
    from noisebench.checks import sample_data

    cls, data = method_class("ensemble"), sample_data(multilabel=True)
    assert cls.multilabel_with(cls.Hparams(member="ce"))
    assert not cls.multilabel_with(cls.Hparams(member="gce"))
    assert not cls.multilabel_with(cls.Hparams(member="ensemble", settings={"member": "gce"}))
    recipe = {"epochs": 1, "batch_size": 16}
    found = noisebench.fit("ensemble", data, hparams={"size": 2}, recipe=recipe)
    assert "gap" in found.metrics["last"]
    with pytest.raises(UserError, match="'ensemble' under these settings is for one label an image, and this dataset"):
        noisebench.fit("ensemble", data, hparams={"size": 2, "member": "gce"}, recipe=recipe)


@pytest.mark.parametrize("name", sorted(registry.methods().entries))
def test_what_a_method_says_of_several_labels_can_be_read_without_importing_it(name: str) -> None:
    assert registry.methods()[name].constants.get("multilabel", False) is method_class(name).multilabel
