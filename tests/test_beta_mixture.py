"""The beta mixture against a float64 version written from Arazo et al. 2019, Eqs. 2-9; and inputs that tell nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.mixture import GaussianMixture as SkGaussianMixture
from torch import Tensor

from noisebench.errors import UserError
from noisebench.nn import BetaMixture, GaussianMixture
from noisebench.scoring import area_under_roc, calibration_error

Array = npt.NDArray[np.float64]
EPS = 1e-4
KINDS = (BetaMixture, GaussianMixture)


class Parameters(NamedTuple):
    """alpha, beta and weight of the clean and of the noisy component, [2] each."""

    alpha: Array
    beta: Array
    weight: Array


START = Parameters(np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([0.5, 0.5]))


# ----------------------------------------------------------------- the paper's equations, a component at a time


def scaled(losses: Array, low: float, high: float) -> Array:
    """Losses as the authors' code scales them, by its constants."""
    x = (losses - low - 1e-5) / (high - low - 9e-6)
    return np.clip(np.where(x >= 1, 0.999, np.where(x <= 0, 0.001, x)), EPS, 1 - EPS)


def bayes(x: Array, p: Parameters) -> Array:
    """p(k | x) [2, N]: Eqs. 4 and 9."""
    joint = np.stack([p.weight[k] * stats.beta.pdf(x, p.alpha[k], p.beta[k]) for k in (0, 1)])
    return np.asarray(joint / joint.sum(0))


def iterate(x: Array, p: Parameters) -> Parameters:
    """One E-step and one M-step."""
    gamma = bayes(x, p)
    alpha, beta = np.empty(2), np.empty(2)
    for k in (0, 1):
        mean = (gamma[k] * x).sum() / gamma[k].sum()  # Eq. 6
        variance = (gamma[k] * (x - mean) ** 2).sum() / gamma[k].sum()  # Eq. 7
        alpha[k] = mean * (mean * (1 - mean) / variance - 1)  # Eq. 5
        beta[k] = alpha[k] * (1 - mean) / mean
    return Parameters(alpha, beta, gamma.mean(1))  # Eq. 8


def log_likelihood(x: Array, p: Parameters) -> float:
    """Of the mixture, Eq. 2."""
    return float(np.log(sum(p.weight[k] * stats.beta.pdf(x, p.alpha[k], p.beta[k]) for k in (0, 1))).sum())


def in_order(p: Parameters) -> Parameters:
    mean = p.alpha / (p.alpha + p.beta)
    return p if mean[1] >= mean[0] else Parameters(*(value[::-1].copy() for value in p))


def brute_force(x: Array, p: Parameters, hold_low: bool = True, points: int = 100_000) -> Array:
    """P(noisy | x) with both holds by looking the argmax and the argmin up on a grid.

    Where the components are in order the posterior rises, has a hump (its argmax lies within, and its argmin on the
    right must not hold all), or a dip (the other way round): the interior extremum is held first.
    """
    grid = np.linspace(EPS, 1 - EPS, points)
    curve, found = bayes(grid, p)[1], bayes(x, p)[1]
    top, bottom = int(curve.argmax()), int(curve.argmin())
    if hold_low and 0 < bottom < points - 1:
        found = np.where(x < grid[bottom], curve[bottom], found)
        top = bottom + int(curve[bottom:].argmax())
    return np.where(x > grid[top], curve[top], found)


# ------------------------------------------------------------------------------------------------- data


def simulate(noisy: float, clean: tuple[float, float], wrong: tuple[float, float], n: int, seed: int = 0) -> Tensor:
    """Losses [2, n] in [0, 1] of a mixture, and beside them which are noisy."""
    draw = np.random.default_rng(seed)
    is_noisy = draw.random(n) < noisy
    return torch.tensor(np.stack([np.where(is_noisy, draw.beta(*wrong, n), draw.beta(*clean, n)), is_noisy]))


def cross_entropies(noisy: float, n: int = 2000, seed: int = 0) -> Tensor:
    """Raw losses: piled up at zero where clean, around ln 10 and beyond where noisy."""
    draw = np.random.default_rng(seed)
    return torch.tensor(np.where(draw.random(n) < noisy, draw.gamma(12, 0.25, n), draw.gamma(0.5, 0.5, n)))


GAMMA = torch.tensor(np.random.default_rng(5).gamma(2.0, 0.8, 2000))
RAW = {"losses 20%": cross_entropies(0.2), "losses 80%": cross_entropies(0.8, seed=1), "one gamma": GAMMA}
IN_01 = {
    "far apart": simulate(0.5, (2, 10), (8, 3), 2000)[0],
    "overlapping": simulate(0.3, (1, 4), (3, 2), 2000)[0],
    "peaks at both ends": simulate(0.6, (0.3, 4), (4, 0.4), 2000)[0],
}
CASES = [(name, x, True) for name, x in RAW.items()] + [(name, x, False) for name, x in IN_01.items()]


def prepared(losses: Tensor, normalise: bool) -> tuple[Array, Array]:
    """What is fitted and what the posterior is asked for, in [EPS, 1 - EPS]."""
    raw = losses.double().numpy()
    if not normalise:
        return np.clip(raw, EPS, 1 - EPS), np.clip(raw, EPS, 1 - EPS)
    low, high = np.percentile(raw, [5, 95])
    # Beyond the percentiles the fit has 0.001 and 0.999; the posterior asked for there stays in order with the rest.
    asked = np.clip((raw - low - 1e-5) / (high - low - 9e-6), EPS, 1 - EPS)
    return scaled(raw[(raw >= low) & (raw <= high)], low, high), asked


def parameters(mixture: BetaMixture) -> Parameters:
    return Parameters(*(np.asarray(t.double()) for t in (mixture.alpha, mixture.beta, mixture.weight)))


def set_to(p: Parameters) -> BetaMixture:
    """A mixture on [0, 1] that has these parameters without a fit."""
    mixture = BetaMixture(normalise=False).fit(torch.linspace(0, 1, 50))
    for name in Parameters._fields:
        getattr(mixture, name).copy_(torch.tensor(getattr(p, name)))
    return mixture


# ------------------------------------------------------------------------------------- agreement with the paper


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize(("name", "losses", "normalise"), CASES, ids=[case[0] for case in CASES])
def test_parameters_and_posterior_are_those_of_the_equations(
    name: str, losses: Tensor, normalise: bool, iterations: int
) -> None:
    x, asked = prepared(losses, normalise)
    wanted = START
    for _ in range(iterations):
        wanted = iterate(x, wanted)
    wanted = in_order(wanted)
    mixture = BetaMixture(max_iter=iterations, normalise=normalise).fit(losses)
    for got, value in zip(parameters(mixture), wanted, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)
    got = mixture.posterior(losses)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), brute_force(asked, wanted), rtol=0, atol=1e-6)


def test_percentiles_are_numpys() -> None:
    for count in (19, 1000, 2003):
        losses = cross_entropies(0.4, count)
        mixture = BetaMixture().fit(losses)
        low, high = np.percentile(losses.numpy(), [5, 95])
        got = [float(mixture.low), float(mixture.width)]
        np.testing.assert_allclose(got, [low + 1e-5, high - low - 9e-6], rtol=1e-12)


def test_what_is_beyond_the_percentiles_is_not_fitted() -> None:
    """Other values beyond them change nothing: they are neither fitted nor do they scale."""
    losses = cross_entropies(0.5, 2001)  # a number at which both percentiles are losses of the set
    low, high = np.percentile(losses.numpy(), [5, 95])
    wilder = torch.where(losses > high, 50 * losses, torch.where(losses < low, 0 * losses, losses))
    for a, b in zip(parameters(BetaMixture().fit(losses)), parameters(BetaMixture().fit(wilder)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tolerance_ends_at_a_fixed_point_of_the_equations() -> None:
    losses = simulate(0.5, (2, 10), (8, 3), 2000)[0]
    ten = BetaMixture(normalise=False).fit(losses)
    mixture = BetaMixture(max_iter=5000, tol=1e-9, normalise=False).fit(losses)
    x = prepared(losses, False)[0]
    found = parameters(mixture)
    for got, value in zip(iterate(x, found), found, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)
    assert not np.allclose(parameters(ten).alpha, found.alpha, rtol=1e-3)


def test_a_tolerance_that_is_met_at_once_ends_after_one_iteration() -> None:
    losses = IN_01["far apart"]
    loose = BetaMixture(max_iter=50, tol=1e3, normalise=False).fit(losses)
    for got, value in zip(parameters(loose), in_order(iterate(prepared(losses, False)[0], START)), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)


# ------------------------------------------------------------------------------------------------- the holds

SHAPES = {
    "rising": Parameters(np.array([1.0, 5.0]), np.array([6.0, 2.0]), np.array([0.6, 0.4])),
    "a hump": Parameters(np.array([1.0, 6.0]), np.array([1.5, 4.0]), np.array([0.5, 0.5])),
    "a hump, lowest on the right": Parameters(np.array([0.3, 3.0]), np.array([0.3, 2.5]), np.array([0.5, 0.5])),
    "a dip": Parameters(np.array([2.0, 1.2]), np.array([6.0, 0.7]), np.array([0.8, 0.2])),
    "a dip, highest on the left": Parameters(np.array([8.0, 0.3]), np.array([9.0, 0.28]), np.array([0.5, 0.5])),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_holds_are_at_the_argmax_and_argmin_of_a_grid(shape: str) -> None:
    p = SHAPES[shape]
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    got = set_to(p).posterior(x).numpy()
    np.testing.assert_allclose(got, brute_force(np.clip(x.numpy(), EPS, 1 - EPS), p), rtol=0, atol=1e-6)
    assert (np.diff(got) >= 0).all()


@pytest.mark.parametrize("shape", ["rising", "a hump", "a dip"])
def test_without_the_left_hold_low_losses_have_bayes_own(shape: str) -> None:
    p = SHAPES[shape]
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    mixture = set_to(p)
    free = BetaMixture(normalise=False, hold_low=False).fit(x)
    free.load_state_dict(mixture.state_dict())
    wanted = brute_force(np.clip(x.numpy(), EPS, 1 - EPS), p, hold_low=False)
    np.testing.assert_allclose(free.posterior(x).numpy(), wanted, rtol=0, atol=1e-6)
    same = torch.equal(free.posterior(x), mixture.posterior(x))
    assert same == (shape != "a dip")


def test_low_loss_trap() -> None:
    """At 10% noise the noisy alpha falls below the clean one: without the left hold the lowest losses are noisy."""
    draw, n = np.random.default_rng(0), 20_000
    noisy = draw.random(n) < 0.1
    losses = torch.tensor(np.where(noisy, draw.gamma(2, 1, n), draw.gamma(4, 0.05, n)))
    lowest = losses <= losses.quantile(0.05)
    assert noisy[lowest.numpy()].mean() < 0.01
    held, free = BetaMixture().fit(losses), BetaMixture(hold_low=False).fit(losses)
    assert float(held.alpha[1]) < float(held.alpha[0])
    assert float(free.posterior(losses)[lowest].mean()) > 0.9
    assert float(held.posterior(losses)[lowest].mean()) < 0.05


@pytest.mark.parametrize("name", RAW)
def test_a_larger_loss_is_never_less_noisy(name: str) -> None:
    mixture = BetaMixture().fit(RAW[name])
    found = mixture.posterior(torch.linspace(-1, 20, 100_001, dtype=torch.float64))
    assert bool((found.diff() >= 0).all())
    assert float(found[0]) < 0.5 < float(found[-1])


# ------------------------------------------------------------------------------------- components, starts, scale


@pytest.mark.parametrize(("name", "losses", "normalise"), CASES, ids=[case[0] for case in CASES])
def test_noisy_component_has_the_larger_mean(name: str, losses: Tensor, normalise: bool) -> None:
    for iterations, starts in ((1, 1), (10, 1), (30, 5)):
        p = parameters(BetaMixture(iterations, normalise=normalise, starts=starts).fit(losses))
        clean, noisy = p.alpha / (p.alpha + p.beta)
        assert clean <= noisy
        np.testing.assert_allclose(p.weight.sum(), 1, rtol=1e-6)


def test_swapped_components_are_put_in_order() -> None:
    """A pile at zero with a tail, around a narrow hill: from the paper's start the tail becomes the noisy component."""
    draw = np.random.default_rng(0)
    losses = torch.tensor(np.concatenate([draw.beta(10, 60, 1000), draw.beta(0.1, 1, 1000)]))
    x = prepared(losses, False)[0]
    plain = START
    for _ in range(10):
        plain = iterate(x, plain)
    mean = plain.alpha / (plain.alpha + plain.beta)
    assert mean[1] < mean[0], "the case shows nothing any more: find another"
    mixture = BetaMixture(normalise=False).fit(losses)
    for got, value in zip(parameters(mixture), in_order(plain), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)


def test_of_several_starts_the_likeliest_is_kept() -> None:
    losses = simulate(0.8, (1, 8), (5, 2), 5000)[0]
    x = prepared(losses, False)[0]
    one, five = (BetaMixture(2000, 1e-6, normalise=False, starts=n).fit(losses) for n in (1, 5))
    assert log_likelihood(x, parameters(five)) > log_likelihood(x, parameters(one)) + 10


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_another_scale_have_the_same_posterior(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    """The two small constants of the scaling alone are absolute."""
    losses = cross_entropies(0.4)
    once, twice = kind().fit(losses).posterior(losses), kind().fit(2 * losses).posterior(2 * losses)
    assert float((once - twice).abs().max()) < 2e-3


@pytest.mark.parametrize("noisy", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("pair", [((2, 10), (8, 3)), ((1, 8), (5, 2))], ids=["far apart", "nearer"])
def test_simulated_mixtures_are_found(pair: tuple[tuple[float, float], tuple[float, float]], noisy: float) -> None:
    """Parameters within 10% and ECE below 0.03; the components share 4% of their mass (far apart), 5% (nearer)."""
    (clean, wrong), (losses, truth) = pair, simulate(noisy, *pair, n=50_000)
    mixture = BetaMixture(2000, 1e-6, normalise=False, starts=5).fit(losses)
    p = parameters(mixture)
    np.testing.assert_allclose(p.alpha, [clean[0], wrong[0]], rtol=0.1)
    np.testing.assert_allclose(p.beta, [clean[1], wrong[1]], rtol=0.1)
    np.testing.assert_allclose(p.weight, [1 - noisy, noisy], rtol=0.1)
    assert calibration_error(mixture.posterior(losses), truth) < 0.03


# ------------------------------------------------------------------------------------- inputs that say little


def fitted(losses: Tensor, kind: type[BetaMixture] | type[GaussianMixture] = BetaMixture) -> Tensor:
    """The posterior of the losses that were fitted, which is one in every case."""
    found = kind().fit(losses).posterior(losses)
    assert found.shape == losses.shape
    assert bool(((found >= 0) & (found <= 1)).all()), found
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("losses", [[0.7] * 100, [0.0] * 100, [2.3], [0.0], [float("inf")], [float("inf")] * 5])
def test_equal_losses_tell_nothing(kind: type[BetaMixture] | type[GaussianMixture], losses: list[float]) -> None:
    assert fitted(torch.tensor(losses), kind).tolist() == [0.5] * len(losses)


@pytest.mark.parametrize("loss", [0.0, 0.3, 0.7, 1.0])
def test_equal_losses_that_are_not_scaled_tell_nothing_either(loss: float) -> None:
    losses = torch.full((50,), loss)
    for starts in (1, 3):
        assert BetaMixture(normalise=False, starts=starts).fit(losses).posterior(losses).tolist() == [0.5] * 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [0.02, 0.5, 0.98])
def test_of_two_values_the_larger_is_noisy(kind: type[BetaMixture] | type[GaussianMixture], large: float) -> None:
    losses = torch.full((1000,), 0.1)
    losses[: int(1000 * large)] = 2.0
    found = fitted(losses, kind)
    assert float(found[0]) > 0.5 > float(found[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("losses", [[0.1, 2.0], [0.1, 0.2, 3.0], [0.1, 3.0, 3.0], [0.0, 1.0, float("inf")]])
def test_two_or_three_losses(kind: type[BetaMixture] | type[GaussianMixture], losses: list[float]) -> None:
    found = fitted(torch.tensor(losses), kind)
    assert float(found[-1]) > float(found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_losses_count_as_the_largest_finite_one(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    losses = cross_entropies(0.4)
    losses[::10] = torch.inf
    finite = torch.where(losses.isinf(), losses[losses.isfinite()].max(), losses)
    assert torch.equal(fitted(losses, kind), fitted(finite, kind))
    mixture = kind().fit(finite)
    assert float(mixture.posterior(torch.tensor([torch.inf]))) == float(mixture.posterior(finite).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_no_number_counts_as_infinite(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    losses = cross_entropies(0.4)
    losses[::10] = torch.inf
    assert torch.equal(fitted(torch.where(losses.isinf(), torch.nan, losses), kind), fitted(losses, kind))
    assert fitted(torch.full((4,), torch.nan), kind).tolist() == [0.5] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-6, 1e-9])
def test_near_identical_losses(kind: type[BetaMixture] | type[GaussianMixture], spread: float) -> None:
    draw = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fitted(1 + spread * draw, kind)
    order = draw.argsort()
    assert float(found[order[-50:]].mean()) >= float(found[order[:50]].mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("common", [0.0, 0.3])
def test_nearly_all_losses_are_one_value(kind: type[BetaMixture] | type[GaussianMixture], common: float) -> None:
    """97% are equal, so that both percentiles are: the few larger ones are noisier than the rest."""
    losses = torch.full((1000,), common)
    losses[:30] = torch.linspace(1, 4, 30)
    found = fitted(losses, kind)
    assert float(found[:30].min()) > float(found[30:].max())


AWKWARD = st.sampled_from([0.0, 5e-324, 1e-310, 1e-45, 1e-7, 0.5, 1.0, 1.0 + 1e-12, 700.0, 1e30, 1e300, float("inf")])
LOSSES = st.lists(AWKWARD | st.floats(min_value=0, allow_nan=False, allow_subnormal=True), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    losses=LOSSES, copies=st.integers(1, 5), normalise=st.booleans(), hold_low=st.booleans(), starts=st.integers(1, 3)
)
def test_every_input_has_a_posterior(
    losses: list[float], copies: int, normalise: bool, hold_low: bool, starts: int
) -> None:
    seen = torch.tensor(losses * copies, dtype=torch.float64)
    seen = seen if normalise else seen.clamp(0, 1)
    mixture = BetaMixture(normalise=normalise, hold_low=hold_low, starts=starts).fit(seen)
    asked = torch.cat([seen, torch.tensor([0.0, 1e-320, 0.5, 1.0, 1e308, torch.inf], dtype=torch.float64)])
    found = mixture.posterior(asked)
    assert bool(((found >= 0) & (found <= 1)).all()), found
    if hold_low and len(set(losses)) > 1:
        assert float(found[seen.argmax()]) >= float(found[seen.argmin()])


@settings(max_examples=40, deadline=None)
@given(losses=LOSSES)
def test_every_input_has_a_posterior_of_the_gaussian_mixture(losses: list[float]) -> None:
    fitted(torch.tensor(losses, dtype=torch.float64), GaussianMixture)


# ------------------------------------------------------------------------------------- the Gaussian mixture


def test_gaussian_mixture_is_scikit_learns_on_the_same_scaled_losses() -> None:
    losses = cross_entropies(0.5)
    x, asked = prepared(losses, True)
    theirs = SkGaussianMixture(2, random_state=0).fit(x[:, None])
    wanted = theirs.predict_proba(asked[:, None])[:, theirs.means_.argmax()]
    got = GaussianMixture().fit(losses).posterior(losses).numpy()
    assert np.abs(got - wanted).max() < 1e-3  # where its own start lies follows from the order of the losses


# ------------------------------------------------------------------------------------- as a module


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_before_a_fit_is_refused_by_name(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__}.*fit"):
        kind().posterior(torch.rand(3))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_is_all_that_it_knows(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    losses = cross_entropies(0.4)
    one, other = kind().fit(losses), kind()
    other.load_state_dict(one.state_dict())
    assert bool(other.fitted)
    assert torch.equal(one.posterior(losses), other.posterior(losses))
    assert not list(one.parameters())
    other.load_state_dict(kind().state_dict())
    with pytest.raises(UserError):  # before a fit is a state too
        other.posterior(losses)


def test_buffers_of_the_beta_mixture() -> None:
    state = BetaMixture().state_dict()
    assert {"alpha", "beta", "weight", "low", "width", "fitted"} <= set(state)
    assert [list(state[name].shape) for name in ("alpha", "beta", "weight")] == [[2]] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_of_other_types_are_taken_as_the_numbers_they_are(
    kind: type[BetaMixture] | type[GaussianMixture], dtype: torch.dtype
) -> None:
    losses = cross_entropies(0.4).to(dtype)
    found = fitted(losses, kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fitted(losses.double(), kind), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_leaves_losses_and_gradients_alone(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    losses = cross_entropies(0.4).requires_grad_()
    before = losses.detach().clone()
    assert not fitted(losses, kind).requires_grad
    assert torch.equal(losses.detach(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_forgets_the_first(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    losses = cross_entropies(0.4)
    twice = kind().fit(cross_entropies(0.9, seed=3)).fit(losses)
    assert torch.equal(twice.posterior(losses), fitted(losses, kind))


def test_it_ranks_what_it_should() -> None:
    losses, truth = simulate(0.4, (2, 10), (8, 3), 2000)
    for kind in KINDS:
        assert area_under_roc(fitted(losses, kind), truth) > 0.98


@pytest.mark.parametrize(
    ("settings_", "named"), [({"max_iter": 0}, "max_iter"), ({"tol": -1.0}, "tol"), ({"starts": 0}, "starts")]
)
def test_settings_that_cannot_be_are_refused(settings_: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        BetaMixture(**settings_)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_no_losses_at_all_are_refused(kind: type[BetaMixture] | type[GaussianMixture]) -> None:
    with pytest.raises(UserError, match="loss"):
        kind().fit(torch.empty(0))
