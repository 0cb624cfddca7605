"""The noise layer, its methods and loss correction, against float64 NumPy written from the papers' equations.

Sukhbaatar et al. 2014 write Q, column-stochastic; T here is its transpose.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import noisebench
from noisebench.assembly import Setup, method_class, split
from noisebench.checks import sample_data
from noisebench.config import Recipe
from noisebench.errors import UserError
from noisebench.fitting import Memory
from noisebench.method import Batch, Task, epochs_from
from noisebench.methods.loss_correction import estimate_transition
from noisebench.nn import TransitionLayer
from noisebench.nn.transition import project_simplex
from noisebench.noise import inject, transition_matrix

Array = npt.NDArray[Any]
T = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.1, 0.6]])


def drawn(size: int = 16, classes: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and labels [B]."""
    draw = torch.Generator().manual_seed(1)
    return scale * torch.randn(size, classes, generator=draw), torch.randint(classes, (size,), generator=draw)


def softmax64(logits: Tensor) -> Array:
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def eq3(p: Array, t: Array, y: Tensor) -> tuple[float, Array, Array]:
    """Eq. 3 of p(true) [B, K], with its gradients by the logits, [B, K], and by T, [K, K]."""
    by_logits, by_t, losses = np.zeros_like(p), np.zeros_like(t), []
    for n, k in enumerate(y.tolist()):
        noisy = sum(p[n, i] * t[i, k] for i in range(len(t)))
        losses.append(-np.log(noisy))
        by_logits[n] = p[n] * (1 - t[:, k] / noisy) / len(p)
        by_t[:, k] -= p[n] / noisy / len(p)
    return float(np.mean(losses)), by_logits, by_t


def cut(gradient: Array) -> Array:
    """The gradient of T as the layer lets it through: along the simplex, each row of norm 1 at most."""
    rows = [row - row.sum() / len(row) for row in gradient]
    return np.array([row / max(1.0, float(np.sqrt((row**2).sum()))) for row in rows])


class Table(nn.Module):
    """A "network" that gives the logits of sample n for the n-th row of the identity."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.logits


def made(name: str, logits: Tensor, given: dict[str, Tensor] | None = None, extra: int = 0, **hparams: Any) -> Any:
    cls = method_class(name)
    method = cls(cls.Hparams(**hparams))
    method.build(Task(logits.shape[1] - extra, len(logits), (1, 1, 1), 1, nn.Flatten, given or {}))
    method.net = Table(logits)
    return method


def batch_of(y: Tensor) -> Batch:
    return Batch(torch.eye(len(y)), y, torch.arange(len(y)))


def run_at(epoch: int, epochs: int = 100) -> Any:
    return SimpleNamespace(epoch=epoch, epochs=epochs, epochs_from=lambda value: epochs_from(value, epochs))


def close(found: Tensor, expected: Array | float) -> None:
    """To 1e-6: of float32, which the layer works in."""
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------ the layer


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_layer_is_equations_2_and_3_with_their_gradients(scale: float) -> None:
    logits, y = drawn(scale=scale)
    p, layer = softmax64(logits), TransitionLayer(3, torch.from_numpy(T))
    logits.requires_grad_()
    noisy = layer(logits.log_softmax(1))
    close(noisy, np.log(np.einsum("ni,ij->nj", p, T)))
    loss = nn.functional.nll_loss(noisy, y)
    loss.backward()
    expected, by_logits, by_t = eq3(p, T, y)
    close(loss, expected)
    assert logits.grad is not None
    assert layer.matrix.grad is not None
    close(logits.grad, by_logits)
    close(layer.matrix.grad, cut(by_t))
    assert np.linalg.norm(by_t) > 1


def test_a_gradient_of_t_within_norm_1_loses_only_what_the_projection_would_take_back() -> None:
    logits, y = drawn()
    layer = TransitionLayer(3, torch.from_numpy(T))
    (0.3 * nn.functional.nll_loss(layer(logits.log_softmax(1)), y)).backward()
    by_t = 0.3 * eq3(softmax64(logits), T, y)[2]
    assert np.linalg.norm(by_t) < 1
    assert layer.matrix.grad is not None
    close(layer.matrix.grad, by_t - by_t.mean(axis=1, keepdims=True))


def test_a_copy_of_the_layer_cuts_the_gradient_too() -> None:
    logits, y = drawn()
    grads, first = [], TransitionLayer(3, torch.from_numpy(T))
    for layer in (first, copy.deepcopy(first)):
        (1000 * nn.functional.nll_loss(layer(logits.log_softmax(1)), y)).backward()
        grads.append(layer.matrix.grad)
    close(grads[0].norm(dim=1), np.ones(3))
    close(grads[1], grads[0].double().numpy())


def test_a_label_that_t_leaves_no_probability_has_a_finite_loss_and_gradient() -> None:
    layer = TransitionLayer(2, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    logits = torch.tensor([[3.0, -3.0]], requires_grad=True)
    loss = nn.functional.nll_loss(layer(logits.log_softmax(1)), torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-np.log(1e-12), rel=1e-6)
    assert logits.grad is not None
    assert layer.matrix.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool(layer.matrix.grad.isfinite().all())


def test_the_layer_keeps_float32_under_bf16() -> None:
    logits, y = drawn()
    plain = made("transition_true", logits, {"transition": torch.from_numpy(T)})
    mixed = made("transition_true", logits, {"transition": torch.from_numpy(T)})
    rounded = logits.bfloat16().float()  # the table's matrix product is what a network does in bfloat16
    plain.net = Table(rounded)
    mixed.net = Table(rounded)
    expected = plain.loss(batch_of(y), run_at(50))
    expected.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed.loss(batch_of(y), run_at(50))
    found.backward()
    assert found.dtype == torch.float32
    close(found, float(expected.detach()))
    # The one rounding left is that of the gradient of the bfloat16 logits themselves.
    torch.testing.assert_close(mixed.net.logits.grad, plain.net.logits.grad, rtol=2**-8, atol=1e-5)


def by_bisection(row: Array) -> Array:
    """The nearest point of the simplex: max(v - t, 0), with the t for which that sums to one."""
    low, high = row.max() - 1, row.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
    return np.asarray(np.maximum(row - low, 0))


@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.01, 0.3, 1.0, 30.0]))
def test_the_projection_is_the_nearest_point_of_the_simplex(seed: int, classes: int, spread: float) -> None:
    draw = np.random.default_rng(seed)
    rows = 1 / classes + spread * draw.standard_normal((3, classes))
    found = project_simplex(torch.from_numpy(rows)).numpy()
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(found, [by_bisection(row) for row in rows], atol=1e-12)
    np.testing.assert_allclose(project_simplex(torch.from_numpy(found)).numpy(), found, atol=1e-15)
    others = draw.dirichlet(np.full(classes, 0.3), 50)
    for row, nearest in zip(rows, found, strict=True):
        assert np.square(row - nearest).sum() <= np.square(row - others).sum(1).min() + 1e-9


@pytest.mark.parametrize("size", [1e3, 1e7, 1e8, 1e12])
def test_the_projection_of_a_large_row_in_float32_is_on_the_simplex(size: float) -> None:
    found = project_simplex(torch.tensor([[1.0, size, 0.0], [size, size, 0.0]]))
    close(found, np.array([[0, 1, 0], [0.5, 0.5, 0]]))


def test_the_projection_leaves_the_simplex_as_it_is_and_breaks_ties_evenly() -> None:
    layer = TransitionLayer(3, torch.from_numpy(T))
    layer.project()
    close(layer.matrix, T)
    close(project_simplex(torch.tensor([[5.0, 5.0, 0.0], [-7.0, -7.0, -7.0]])), np.array([[0.5, 0.5, 0], [1 / 3] * 3]))


def test_renormalise_clamps_and_divides_and_an_all_negative_row_becomes_uniform() -> None:
    layer = TransitionLayer(3, projection="renormalise")
    with torch.no_grad():
        layer.matrix.copy_(torch.tensor([[1.5, -0.3, 0.5], [-1.0, -2.0, -0.1], [0.2, 0.2, 0.4]]))
    layer.project()
    close(layer.matrix, np.array([[0.75, 0, 0.25], [1 / 3] * 3, [0.25, 0.25, 0.5]]))


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("ridge", (T**2).sum(), 2 * T),
        ("trace", np.trace(T), np.eye(3)),
        ("nuclear", np.linalg.norm(T, "nuc"), np.linalg.svd(T)[0] @ np.linalg.svd(T)[2]),
    ],
)
def test_the_regularisers_are_numpys_over_k(name: Any, value: float, gradient: Array) -> None:
    layer = TransitionLayer(3, torch.from_numpy(T), regulariser=name)
    penalty = layer.penalty()
    penalty.backward()
    close(penalty, value / 3)
    assert layer.matrix.grad is not None
    close(layer.matrix.grad, cut(gradient / 3))
    assert float(TransitionLayer(7, regulariser=name).penalty().detach()) == pytest.approx(1, abs=1e-6)


def test_the_nuclear_norm_has_a_gradient_where_t_is_singular_or_its_singular_values_are_equal() -> None:
    for start in (torch.full((4, 4), 0.25), torch.eye(4)):
        layer = TransitionLayer(4, start, regulariser="nuclear")
        layer.penalty().backward()
        assert layer.matrix.grad is not None
        assert bool(layer.matrix.grad.isfinite().all())


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (torch.eye(4), r"T is \[4, 4\]; give \[3, 3\]"),
        (torch.ones(3), r"T is \[3\]; give \[3, 3\]"),
        (torch.tensor([[1.0, 0, 0], [0.5, 0.4, 0], [0, 0, 1]]), "row 1 sums to 0.9"),
        (torch.tensor([[1.0, 0, 0], [0, 1, 0], [1.2, -0.2, 0]]), "row 2 .* -0.2 as its least"),
        (torch.tensor([[1.0, 0, 0], [0, torch.nan, 0], [0, 0, 1]]), "row 1 sums to nan"),
    ],
)
def test_what_is_no_t_of_so_many_classes_is_refused(matrix: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        TransitionLayer(3, matrix)
    assert "\n" not in str(caught.value)


def test_t_may_be_a_numpy_array_as_transition_matrix_gives_it() -> None:
    close(TransitionLayer(3, T).matrix, T)


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"projection.*euclidian.*did you mean euclidean"):
        TransitionLayer(3, projection="euclidian")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"regulariser.*rigde.*did you mean ridge"):
        TransitionLayer(3, regulariser="rigde")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ T learned


def test_transition_is_cross_entropy_in_the_warm_up_then_equation_3_and_the_penalty() -> None:
    logits, y = drawn(scale=0.3)
    method = made("transition", logits, warmup=0.1, weight=0.3)
    p = softmax64(logits)
    before = method.loss(batch_of(y), run_at(9))
    close(before, -np.log(p[np.arange(16), y.numpy()]).mean())
    before.backward()
    assert method.layer.matrix.grad is None
    method.layer.matrix.data.copy_(torch.from_numpy(T))
    after = method.loss(batch_of(y), run_at(10))
    after.backward()
    expected, by_logits, by_t = eq3(p, T, y)
    close(after, expected + 0.3 * (T**2).sum() / 3)
    close(method.layer.matrix.grad, cut(by_t) + cut(0.3 * 2 * T / 3))
    method.net.logits.grad = None
    method.loss(batch_of(y), run_at(10)).backward()
    close(method.net.logits.grad, by_logits)


@pytest.mark.parametrize("projection", ["euclidean", "renormalise"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_t_stays_at_the_identity_in_the_warm_up_and_on_the_simplex_after_it(rate: float, projection: str) -> None:
    cls, seen = method_class("transition"), []

    class Watched(cls):  # type: ignore[misc, valid-type]
        def after_step(self, batch: Batch, run: Any) -> None:
            super().after_step(batch, run)
            seen.append((run.epoch, self.layer.matrix.detach().clone()))

    recipe = {"epochs": 5, "batch_size": 16, "lr": 0.1, "weight_decay": 0.01}
    settings = {"warmup": 2, "weight": 1.0, "projection": projection}
    found = noisebench.fit(Watched, sample_data(), "symmetric", rate, hparams=settings, recipe=recipe)
    assert all(torch.equal(matrix, torch.eye(4)) for epoch, matrix in seen if epoch < 2)
    learned = [matrix for epoch, matrix in seen if epoch >= 2]
    assert not torch.equal(learned[0], torch.eye(4))
    for matrix in learned:
        assert float(matrix.min()) >= 0
        torch.testing.assert_close(matrix.sum(1), torch.ones(4), rtol=0, atol=1e-5)
    transition = found.method.transition()
    assert transition is not None
    assert torch.equal(transition, learned[-1])
    assert not transition.requires_grad


def test_t_has_a_group_of_its_own_without_weight_decay() -> None:
    data, cls = sample_data(), method_class("transition")
    noise = inject(data.train_labels, "symmetric", 0.2, num_classes=4, seed=0)
    recipe = Recipe(epochs=4, batch_size=16, lr=0.1, weight_decay=0.01)
    setup = Setup(cls, cls.Hparams(lr_scale=0.25), data, noise.labels, recipe, 0, noise, "cpu")
    setup.run.begin_epoch(0)
    net, matrix = setup.run.optimizer.param_groups
    layer: Any = setup.method.layer
    assert [id(p) for p in matrix["params"]] == [id(layer.matrix)]
    assert (matrix["weight_decay"], net["weight_decay"]) == (0.0, 0.01)
    assert matrix["lr"] == pytest.approx(0.25 * net["lr"])


def test_one_label_that_the_network_is_sure_is_wrong_does_not_turn_a_row_of_t_over() -> None:
    y = torch.arange(128) % 4
    method = made("transition", 20 * torch.eye(4)[y], warmup=0)
    y[0] = 1
    optimizer = torch.optim.SGD([method.layer.matrix], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        method.loss(batch_of(y), run_at(0)).backward()
        optimizer.step()
        method.after_step(batch_of(y), run_at(0))
    assert float(method.layer.matrix.detach().diagonal().min()) > 0.5


@pytest.mark.parametrize("warmup", [3, 7, 1.0])
def test_a_warm_up_that_leaves_no_epoch_for_t_is_refused(warmup: float) -> None:
    with pytest.raises(UserError, match=f"transition: warmup is {warmup} of 3 epochs"):
        noisebench.fit("transition", sample_data(), hparams={"warmup": warmup}, recipe={"epochs": 3, "batch_size": 16})


def test_the_known_t_is_forward_correction_with_it_and_is_not_learned() -> None:
    logits, y = drawn()
    method, forward = made("transition_true", logits, {"transition": torch.from_numpy(T)}), made("forward", logits)
    forward.matrix.copy_(torch.from_numpy(T))
    loss = method.loss(batch_of(y), run_at(0))
    close(loss, eq3(softmax64(logits), T, y)[0])
    assert float(loss.detach()) == pytest.approx(float(forward.loss(batch_of(y), run_at(0)).detach()), abs=1e-5)
    assert [name for name, _ in method.named_parameters()] == ["net.logits"]
    assert type(method).needs == ("transition",)
    close(method.predict(torch.eye(16)), softmax64(logits))


# ------------------------------------------------------------------------------------------------ a class for outliers


def outliers(classes: int, known: Tensor, alpha: float = 0.3) -> dict[str, Tensor]:
    """What a task under open-set noise gives."""
    t = transition_matrix("open_set", 0.5, classes, source=1, labelled=alpha)
    return {"outliers": known, "transition": torch.from_numpy(t)}


def test_the_outlier_model_is_equation_3_with_equation_8() -> None:
    logits, y = drawn(classes=4)
    y, known = y.clamp_max(2), torch.arange(16) % 5 == 0
    method = made("transition_outlier", logits, outliers(3, known), extra=1)
    q = np.array([[1, 0, 0, 0.7 / 3], [0, 1, 0, 0.7 / 3], [0, 0, 1, 0.7 / 3], [0, 0, 0, 0.3]])  # Eq. 8 as printed
    close(method.layer.matrix, q.T)
    p = softmax64(logits)
    labels = np.where(known.numpy(), 3, y.numpy())
    expected = -np.mean(
        [np.log(0.3 * p[n, 3] if k == 3 else p[n, k] + 0.7 / 3 * p[n, 3]) for n, k in enumerate(labels)]
    )
    close(method.loss(batch_of(y), run_at(0)), expected)
    order = torch.arange(16).flip(0)  # what a sample is known for follows its position, not its place in the batch
    shuffled = Batch(torch.eye(16)[order], y[order], order)
    close(method.loss(shuffled, run_at(0)), expected)


def test_the_outlier_model_predicts_the_first_k_renormalised_and_scores_by_the_rest() -> None:
    logits, _ = drawn(classes=4)
    method = made("transition_outlier", logits, outliers(3, torch.zeros(16, dtype=torch.bool)), extra=1)
    p = softmax64(logits)
    close(method.predict(torch.eye(16)), p[:, :3] / p[:, :3].sum(1, keepdims=True))
    order = method.inlier_scores(torch.eye(16)).argsort()
    assert order.tolist() == np.argsort(1 - p[:, 3]).tolist()


def test_the_outlier_model_predicts_where_it_is_all_but_sure_of_an_outlier() -> None:
    method = made("transition_outlier", torch.tensor([[0.0, 1.0, 200.0]]), outliers(2, torch.tensor([True])), extra=1)
    close(method.predict(torch.eye(1)), softmax64(torch.tensor([[0.0, 1.0]])))


def test_the_outlier_model_refuses_a_t_that_is_singular_since_no_outlier_is_known() -> None:
    with pytest.raises(UserError, match="T is singular where no outlier is known"):
        made("transition_outlier", torch.zeros(4, 4), outliers(3, torch.zeros(4, dtype=torch.bool), 0.0), extra=1)


def test_the_known_outliers_are_those_of_the_training_split() -> None:
    data, other = sample_data(), sample_data()
    noise = inject(data.train_labels, "open_set", 0.4, num_classes=4, seed=3, labelled=0.5, source=96)
    cls = method_class("transition_outlier")
    recipe = Recipe(epochs=1, batch_size=16, validation=0.25)
    setup = Setup(cls, cls.Hparams(), data, noise.labels, recipe, 0, noise, "cpu", other)
    setup.train(Memory())
    assert noise.labelled is not None
    known: Any = setup.method.outliers
    assert known.tolist() == noise.labelled[split(96, recipe, 0)[0].numpy()].tolist()
    assert known.any()


# ---------------------------------------------------------------------------------------------- forward and backward


def test_backward_is_theorem_1_with_its_gradient() -> None:
    logits, y = drawn()
    method = made("backward", logits)
    method.matrix.copy_(torch.from_numpy(T))
    p = softmax64(logits)
    weights = np.linalg.inv(T)[y.numpy()]
    loss = method.loss(batch_of(y), run_at(50))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-(weights * np.log(p)).sum(1).mean(), rel=1e-6)
    by_logits = (weights.sum(1, keepdims=True) * p - weights) / 16
    np.testing.assert_allclose(method.net.logits.grad, by_logits, rtol=1e-5, atol=1e-6)


def test_row_i_of_t_is_read_at_the_percentile_of_p_i() -> None:
    """p_0 rises with the sample: of 101, the surest is the last, and the one at the 97th percentile has 97 below it."""
    p_0 = torch.linspace(0.2, 0.8, 101, dtype=torch.float64)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    p = torch.stack([p_0, 1 - p_0], 1)[order]
    expected = {100.0: [[0.8, 0.2], [0.2, 0.8]], 97.0: [[0.782, 0.218], [0.218, 0.782]], 50.0: [[0.5, 0.5]] * 2}
    for percentile, rows in expected.items():
        np.testing.assert_allclose(estimate_transition(p, percentile).numpy(), rows, atol=1e-12)


@pytest.mark.parametrize("noise", [0.03, 0.4])
def test_forward_is_theorem_2_with_its_gradient(noise: float) -> None:
    logits, y = drawn(64, scale=5.0)
    t = (1 - noise) * np.eye(3) + noise / 3
    method = made("forward", logits)
    method.matrix.copy_(torch.from_numpy(t))
    loss = method.loss(batch_of(y), run_at(50))
    loss.backward()
    expected, by_logits, _ = eq3(softmax64(logits), t, y)
    close(loss, expected)
    close(method.net.logits.grad, by_logits)


def test_backward_keeps_its_digits_where_t_is_hard_to_invert() -> None:
    logits, y = drawn(64, 10, 1.0)
    t = torch.from_numpy(0.1 + 2e-4 * (np.eye(10) - 0.1)).float()
    method = made("backward", logits)
    method.matrix.copy_(t)
    method.check_matrix()  # a condition number of 5,000 is within the limit
    expected = -(np.linalg.inv(t.double().numpy())[y.numpy()] * np.log(softmax64(logits))).sum(1).mean()
    assert float(method.loss(batch_of(y), run_at(50)).detach()) == pytest.approx(expected, rel=2e-6)


def test_inliers_that_are_all_but_sure_are_still_told_apart() -> None:
    logits = torch.stack([torch.linspace(10, 40, 16), torch.zeros(16), torch.zeros(16)], 1)
    method = made("transition_outlier", logits, outliers(2, torch.zeros(16, dtype=torch.bool)), extra=1)
    assert bool((method.inlier_scores(torch.eye(16)).diff() > 0).all())


def test_two_classes_and_a_batch_of_one_sample_repeated() -> None:
    logits, t = torch.tensor([[0.3, -0.4]]).repeat(8, 1), np.array([[0.6, 0.4], [0.1, 0.9]])
    y = torch.tensor([0, 1] * 4)
    expected = eq3(softmax64(logits), t, y)[0]
    close(made("transition_true", logits, {"transition": torch.from_numpy(t)}).loss(batch_of(y), run_at(0)), expected)
