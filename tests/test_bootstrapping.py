"""The bootstrapping family against float64 NumPy written from Arazo et al. 2019, Eqs. 3 to 16 and section 4."""

from __future__ import annotations

from math import lgamma
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import noisebench
from noisebench.assembly import Setup, method_class
from noisebench.checks import CLASSES, check_method, sample_data
from noisebench.config import Recipe
from noisebench.errors import UserError
from noisebench.fitting import Memory
from noisebench.method import Batch, Task, epochs_from
from noisebench.methods.bootstrapping import EDGE, uniform_prior
from noisebench.noise import inject

Array = npt.NDArray[Any]
SIZE, K = 10, 4
MIXUP = ["m_dyr_s", "m_dyr_h", "md_dyr_h", "md_dyr_sh"]


def softmax64(logits: Array, temperature: float = 1.0) -> Array:
    """Eq. 16."""
    z = logits.astype(np.float64) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def hard(h: Array) -> Array:
    return np.asarray(np.eye(h.shape[1])[h.argmax(1)])


def blend(y: Array, z: Array, w: Any) -> Array:
    """The target of Eq. 10."""
    w = np.broadcast_to(w, len(y))[:, None]
    return np.asarray((1 - w) * np.eye(z.shape[1])[y] + w * z)


def eq10(target: Array, h: Array) -> float:
    return float(np.mean([-(t @ np.log(p)) for t, p in zip(target, h, strict=True)]))


def eq14(h: Array) -> float:
    """With p_c = 1 / C and the mean over the batch."""
    return sum(1 / h.shape[1] * np.log(1 / h.shape[1] / mean) for mean in h.mean(0))


def eq14_by_logits(h: Array) -> Array:
    by_h = -1 / h.shape[1] / h.mean(0) / len(h) * np.ones_like(h)
    return np.asarray(h * (by_h - (by_h * h).sum(1, keepdims=True)))


def p_noisy(fitted: Array, asked: Array) -> Array:
    """Section 3.1 with the authors' trimming and constants: ten steps of EM, and Eq. 9 held past its extremes."""
    low, high = np.percentile(fitted, [5, 95])

    def scaled(losses: Array) -> Array:
        return np.asarray((losses - low - 1e-5) / (high - low - 9e-6))

    def density(x: Array, k: int) -> Array:
        a, b = alpha[k], beta[k]
        log_norm = lgamma(a + b) - lgamma(a) - lgamma(b)
        return np.asarray(weight[k] * np.exp(log_norm + (a - 1) * np.log(x) + (b - 1) * np.log(1 - x)))

    x = scaled(fitted[(fitted >= low) & (fitted <= high)])
    x = np.clip(np.where(x >= 1, 0.999, np.where(x <= 0, 0.001, x)), 1e-4, 1 - 1e-4)
    alpha, beta, weight = [1.0, 2.0], [2.0, 1.0], [0.5, 0.5]
    for _ in range(10):
        each = np.stack([density(x, k) for k in (0, 1)])
        gamma = each / each.sum(0)
        for k in (0, 1):
            mean = (gamma[k] @ x) / gamma[k].sum()
            variance = (gamma[k] @ (x - mean) ** 2) / gamma[k].sum()
            alpha[k] = mean * (mean * (1 - mean) / variance - 1)
            beta[k] = alpha[k] * (1 - mean) / mean
            weight[k] = gamma[k].mean()
    grid = np.linspace(1e-4, 1 - 1e-4, 200_001)
    on_grid = density(grid, 1) / (density(grid, 0) + density(grid, 1))
    at = np.clip(scaled(asked), 1e-4, 1 - 1e-4)
    at = np.clip(at, grid[on_grid.argmin()], grid[on_grid.argmax()])
    return np.asarray(density(at, 1) / (density(at, 0) + density(at, 1)))


class Table(nn.Module):
    """A "network" that gives row n of its logits for the image that is row n of the identity, and mixes for mixes.

    It notes of every call its mode, whether it has a gradient, and the image; in eval mode it gives other logits.
    """

    def __init__(self, logits: Tensor, in_eval: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.in_eval = logits if in_eval is None else in_eval
        self.calls: list[tuple[str, str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        mode = "train" if self.training else "eval"
        self.calls.append((mode, "gradient" if torch.is_grad_enabled() else "none", x.flatten(1).detach()))
        return x.flatten(1) @ (self.logits if self.training else self.in_eval)


def drawn(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(SIZE, K, generator=torch.Generator().manual_seed(seed))


LOGITS, IN_EVAL = drawn(0), drawn(1)
Y = torch.randint(K, (SIZE,), generator=torch.Generator().manual_seed(2))
BATCH = Batch(torch.eye(SIZE).reshape(SIZE, SIZE, 1, 1), Y, torch.arange(SIZE))
# Losses of an earlier epoch, of two kinds, to which the mixture is fitted.
SEEN = torch.cat([torch.linspace(0.02, 1.2, 60) ** 2, torch.linspace(1.5, 4.5, 40)])
CE_IN_EVAL = -np.log(softmax64(IN_EVAL.numpy())[np.arange(SIZE), Y.numpy()])
NOISY = np.clip(p_noisy(SEEN.double().numpy(), CE_IN_EVAL), 1e-4, 1 - 1e-4)


def made(name: str, fit: bool = True, **hparams: Any) -> Any:
    cls = method_class(name)
    method = cls(cls.Hparams(**hparams))
    method.build(Task(K, SIZE, (SIZE, 1, 1), 1, nn.Flatten))
    method.net = Table(LOGITS, IN_EVAL)
    if fit and hasattr(method, "mixture"):
        method.mixture.fit(SEEN)
    return method.train()


def run_at(epoch: int, epochs: int = 300) -> Any:
    """The run in its `epoch`-th epoch, counted from 1 as in the paper."""
    return SimpleNamespace(
        epoch=epoch - 1,
        epochs=epochs,
        epochs_from=lambda value: epochs_from(value, epochs),
        generator=torch.Generator().manual_seed(5),
        device=torch.device("cpu"),
    )


def loss_of(method: Any, run: Any) -> tuple[float, Array]:
    """The loss of the batch, and its gradient by the table of logits."""
    torch.manual_seed(6)
    loss = method.loss(BATCH, run)
    method.net.logits.grad = None
    loss.backward()
    return float(loss.detach()), method.net.logits.grad.double().numpy()


def draws() -> tuple[Array, float]:
    """What `loss_of` lets a method draw: the partners, and Beta(32, 32)."""
    torch.manual_seed(6)
    delta = float(torch.distributions.Beta(32.0, 32.0).sample())
    return torch.randperm(SIZE, generator=torch.Generator().manual_seed(5)).numpy(), delta


def agrees(found: tuple[float, Array], loss: float, by_logits: Array, tolerance: float = 1e-6) -> None:
    assert found[0] == pytest.approx(loss, rel=tolerance)
    np.testing.assert_allclose(found[1], by_logits, rtol=tolerance, atol=tolerance * np.abs(by_logits).max())


def test_the_mixture_tells_the_samples_apart_so_that_the_tests_below_can_fail() -> None:
    assert NOISY.min() < 0.2
    assert NOISY.max() > 0.8
    assert len(np.unique(NOISY.round(2))) > 5


# ------------------------------------------------------------------------------------------------- no mixup


@pytest.mark.parametrize(("target", "weight"), [("soft", None), ("hard", None), ("soft", 0.4), ("hard", 0.7)])
def test_static_bootstrapping_is_equation_10_and_its_own_target_has_no_gradient(target: Any, weight: Any) -> None:
    method = made("bootstrap_static", target=target, weight=weight)
    h, y = softmax64(LOGITS.numpy()), Y.numpy()
    agrees(loss_of(method, run_at(30, 120)), eq10(np.eye(K)[y], h), (h - np.eye(K)[y]) / SIZE)
    w = weight if weight is not None else {"soft": 0.05, "hard": 0.2}[target]
    goal = blend(y, h if target == "soft" else hard(h), w)
    agrees(loss_of(method, run_at(31, 120)), eq10(goal, h), (h - goal) / SIZE)


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_dynamic_bootstrapping_is_equation_10_with_p_noisy_as_the_weight(target: Any) -> None:
    method = made("bootstrap_dynamic", target=target)
    h, y = softmax64(LOGITS.numpy()), Y.numpy()
    agrees(loss_of(method, run_at(30, 120)), eq10(np.eye(K)[y], h), (h - np.eye(K)[y]) / SIZE)
    goal = blend(y, h if target == "soft" else hard(h), NOISY)
    agrees(loss_of(method, run_at(31, 120)), eq10(goal, h), (h - goal) / SIZE)


# ------------------------------------------------------------------------------------------------- mixup


def expected(goal: Array, image: Array, label: float, other: Array, eta: float) -> tuple[float, Array]:
    """Eq. 13 + eta Eq. 14 of images mixed by `image` [B] and targets [B, K] mixed by `label`, with the gradient."""
    rows = np.eye(SIZE)
    mix = image[:, None] * rows + (1 - image)[:, None] * rows[other]  # of images, and so of the table's logits
    h = softmax64(mix @ LOGITS.double().numpy())
    goals = label * goal + (1 - label) * goal[other]
    loss = label * eq10(goal, h) + (1 - label) * eq10(goal[other], h) + eta * eq14(h)
    return loss, mix.T @ ((h - goals) / SIZE + eta * eq14_by_logits(h))


@pytest.mark.parametrize("name", MIXUP)
def test_before_bootstrapping_it_is_mixup(name: str) -> None:
    other, delta = draws()
    found = loss_of(made(name), run_at(105))
    agrees(found, *expected(np.eye(K)[Y.numpy()], np.full(SIZE, delta), delta, other, eta=0))
    mixup = made("mixup")
    agrees(found, *loss_of(mixup, run_at(105)))


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize(("name", "own"), [("m_dyr_s", softmax64), ("m_dyr_h", hard)])
def test_m_dyr_is_equation_13_and_the_regulariser_from_epoch_106(name: str, own: Any, eta: float) -> None:
    other, delta = draws()
    goal = blend(Y.numpy(), own(LOGITS.double().numpy()), NOISY)
    found = loss_of(made(name, regulariser=eta), run_at(106))
    agrees(found, *expected(goal, np.full(SIZE, delta), delta, other, eta))


def eq15(other: Array) -> Array:
    clean = 1 - NOISY
    return np.asarray(clean / (clean + clean[other]))


@pytest.mark.parametrize("name", ["md_dyr_h", "md_dyr_sh"])
@pytest.mark.parametrize("epoch", [106, 110])
def test_md_dyr_guides_the_mix_of_images_first_and_halves_that_of_labels(name: str, epoch: int) -> None:
    other, _ = draws()
    found = loss_of(made(name), run_at(epoch))
    agrees(found, *expected(np.eye(K)[Y.numpy()], eq15(other), 0.5, other, eta=0))


@pytest.mark.parametrize("epoch", [111, 155, 199, 300])
def test_md_dyr_bootstraps_from_epoch_111_with_the_temperature_of_its_epoch(epoch: int) -> None:
    other, _ = draws()
    temperature = np.linspace(1, 0.001, 89)[min(epoch - 111, 88)]
    for name, own in (("md_dyr_h", hard(LOGITS.numpy())), ("md_dyr_sh", softmax64(LOGITS.numpy(), temperature))):
        goal = blend(Y.numpy(), own, NOISY)
        agrees(loss_of(made(name), run_at(epoch)), *expected(goal, eq15(other), 0.5, other, eta=1))


def test_the_temperature_falls_from_epoch_111_to_199_and_is_held() -> None:
    method = made("md_dyr_sh")
    found = [method.temperature(run_at(epoch)) for epoch in range(111, 301)]
    np.testing.assert_allclose(found[:89], np.linspace(1, 0.001, 89), rtol=1e-9)
    np.testing.assert_allclose(found[89:], 0.001, rtol=1e-9)
    for ramp in (0, 1, 2):
        assert made("md_dyr_sh", ramp=ramp).temperature(run_at(111)) == 1
        assert made("md_dyr_sh", ramp=ramp).temperature(run_at(112)) == pytest.approx(0.001)


def test_the_regulariser_is_zero_at_uniform_and_finite_where_one_class_has_all() -> None:
    assert float(uniform_prior(torch.zeros(8, K))) == pytest.approx(0, abs=1e-6)
    logits = torch.zeros(8, K)
    logits[:, 0] = 300.0
    logits.requires_grad_()
    value = uniform_prior(logits)
    value.backward()
    assert float(value.detach()) == pytest.approx(0.75 * 300 - np.log(4), rel=1e-6)
    assert logits.grad is not None
    assert bool((logits.grad[:, 0] > 0).all())


# ------------------------------------------------------------------------------------------------- the passes of a step

TRAIN, PEEK, EVAL = ("train", "gradient"), ("train", "none"), ("eval", "none")


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("ce", {1: [TRAIN], 300: [TRAIN]}),
        ("bootstrap_static", {75: [TRAIN], 76: [TRAIN]}),
        ("bootstrap_dynamic", {75: [TRAIN], 76: [TRAIN, EVAL]}),
        ("m_dyr_s", {105: [TRAIN], 106: [PEEK, EVAL, TRAIN]}),
        ("m_dyr_h", {1: [TRAIN], 105: [TRAIN], 106: [PEEK, EVAL, TRAIN], 300: [PEEK, EVAL, TRAIN]}),
        ("md_dyr_h", {105: [TRAIN], 106: [EVAL, TRAIN], 110: [EVAL, TRAIN], 111: [PEEK, EVAL, TRAIN]}),
        ("md_dyr_sh", {105: [TRAIN], 106: [EVAL, TRAIN], 110: [EVAL, TRAIN], 111: [PEEK, EVAL, TRAIN]}),
    ],
)
def test_each_phase_makes_its_passes_and_no_more(name: str, phases: dict[int, list[tuple[str, str]]]) -> None:
    method = made(name)
    for epoch, passes in phases.items():
        method.net.calls.clear()
        loss_of(method, run_at(epoch))
        assert [call[:2] for call in method.net.calls] == passes
        assert method.training
        assert method.net.training
        for mode, gradient, x in method.net.calls:
            if (mode, gradient) != TRAIN:  # the targets and P(noisy) are of the images as they are
                assert torch.equal(x, torch.eye(SIZE))


def test_p_noisy_is_kept_from_zero_and_one() -> None:
    method = made("m_dyr_h")
    method.mixture.posterior = lambda losses: (losses > 1).float()
    found = method.noise_probability(BATCH)
    assert EDGE == 1e-4
    assert set(found.tolist()) == {float(torch.tensor(1e-4)), float(torch.tensor(1 - 1e-4))}


@pytest.mark.parametrize(
    ("name", "tolerance"),  # of the mixup forms, the mixed logits are no numbers of bfloat16
    [("bootstrap_static", 1e-6), ("bootstrap_dynamic", 1e-6), *((name, 0.02) for name in MIXUP)],
)
def test_under_bf16_only_the_network_is_rounded(name: str, tolerance: float) -> None:
    method = made(name)
    method.net = Table(LOGITS.bfloat16().float(), IN_EVAL.bfloat16().float())
    expected_loss, _ = loss_of(method, run_at(200))
    torch.manual_seed(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.loss(BATCH, run_at(200))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=tolerance)


@pytest.mark.parametrize("mixture", ["beta", "gaussian"])
def test_identical_samples_have_a_finite_loss(mixture: Any) -> None:
    for name in ("bootstrap_dynamic", *MIXUP):
        method = made(name, fit=False, mixture=mixture)
        method.net = Table(torch.zeros(SIZE, K))
        method.mixture.fit(torch.full((50,), float(np.log(K))))
        loss, gradient = loss_of(method, run_at(200))
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()


# ------------------------------------------------------------------------------------------------- whole runs

RECIPE = {"epochs": 4, "batch_size": 16, "lr": 0.02, "padding": 1, "flip": True, "validation": 0.0}


def fitted(method: Any, recipe: dict[str, Any] | None = None, **hparams: Any) -> Any:
    return noisebench.fit(method, sample_data(), "symmetric", 0.4, hparams=hparams, recipe=RECIPE | (recipe or {}))


def test_the_mixture_is_fitted_after_each_epoch_to_all_samples_augmented_in_eval_mode() -> None:
    cls, passes, fits = method_class("m_dyr_h"), [], []

    class Watched(cls):  # type: ignore[misc, valid-type]
        def build(self, task: Task) -> None:
            super().build(task)
            real = self.mixture.fit
            self.mixture.fit = lambda losses: (fits.append(losses.clone()), real(losses))[1]

        def label_losses(self, batch: Batch) -> Tensor:
            found = super().label_losses(batch)
            passes.append((setup.run.epoch, self.training, torch.is_grad_enabled(), batch, found))
            return found

    noise = inject(sample_data().train_labels, "symmetric", 0.4, num_classes=CLASSES, seed=0)
    given: Any = Watched, Watched.Hparams(start=3), sample_data(), noise.labels, Recipe(**RECIPE), 0, noise, "cpu"
    setup = Setup(*given)
    run, method = setup.run, setup.method
    assert method.noise_scores(run) is None
    setup.train(Memory())
    assert len(fits) == 4
    images = []
    for epoch in range(3):  # in the last one, steps make passes too
        ends = [one[1:] for one in passes if one[0] == epoch]
        assert all((training, gradient) == (False, False) for training, gradient, *_ in ends)
        assert torch.cat([batch.index for *_, batch, _ in ends]).tolist() == list(range(96))
        assert torch.cat([batch.y for *_, batch, _ in ends]).tolist() == noise.labels.tolist()
        assert torch.equal(torch.cat([losses for *_, losses in ends]), fits[epoch])
        images.append(torch.cat([batch.x for *_, batch, _ in ends]))
    assert not torch.equal(images[0], images[1])  # another augmentation in every epoch
    scores = method.noise_scores(run)
    assert scores is not None
    torch.testing.assert_close(
        scores.double(), torch.from_numpy(p_noisy(*[fits[3].double().numpy()] * 2)), rtol=1e-6, atol=1e-6
    )


def test_the_pass_after_an_epoch_shifts_neither_order_nor_augmentation() -> None:
    def batches(name: str, **hparams: Any) -> list[Batch]:
        cls, seen = method_class(name), []

        class Watched(cls):  # type: ignore[misc, valid-type]
            def step(self, batch: Batch, run: Any) -> None:
                seen.append(batch)
                super().step(batch, run)

        fitted(Watched, **hparams)
        return seen

    for ours, plain in zip(batches("md_dyr_sh", mixture="gaussian", guide=1, start=2), batches("ce"), strict=True):
        assert torch.equal(ours.index, plain.index)
        assert torch.equal(ours.x, plain.x)


@pytest.mark.parametrize(
    ("name", "hparams"),
    [
        ("m_dyr_h", {"start": 2, "mixture": "gaussian"}),
        ("md_dyr_sh", {"guide": 1, "start": 2, "ramp": 2}),
    ],
)
def test_conforms_with_bootstrapping_in_the_middle_of_the_run(name: str, hparams: dict[str, Any]) -> None:
    cls = method_class(name)
    check_method(cls, cls.Hparams(**hparams))


@pytest.mark.parametrize(
    ("name", "hparams", "epochs"),
    [
        ("bootstrap_dynamic", {"start": 4}, 4),
        ("bootstrap_dynamic", {}, 1),  # an epoch of cross-entropy comes first
        ("m_dyr_h", {"start": 1.0}, 4),
        ("md_dyr_sh", {"start": 9}, 4),
        ("md_dyr_h", {"guide": 4}, 4),
        ("bootstrap_static", {"start": 4}, 4),
        ("bootstrap_static", {"start": 1.0}, 4),
    ],
)
def test_a_start_beyond_the_run_is_refused_by_name(name: str, hparams: dict[str, Any], epochs: int) -> None:
    late = "guide" if "guide" in hparams else "start"
    with pytest.raises(UserError, match=rf"{name}: {late} is after epoch \d of {epochs}: nothing would be") as caught:
        fitted(name, {"epochs": epochs}, **hparams)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bootstrap_dynamic", *MIXUP])
def test_a_run_of_two_epochs_bootstraps_in_the_second(name: str) -> None:
    method = fitted(name, {"epochs": 2}).method
    method.net = Table(LOGITS, IN_EVAL)
    method.train()
    loss_of(method, run_at(2, 2))
    assert len(method.net.calls) == (2 if name == "bootstrap_dynamic" else 3)
