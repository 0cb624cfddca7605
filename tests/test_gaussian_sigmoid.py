"""E[sigmoid(mean + sd * xi)] against mpmath, also where p < 1e-300, with both gradients."""

from __future__ import annotations

import functools
import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from mpmath.calculus.quadrature import GaussLegendre
from torch import Tensor
from torch.nn.functional import logsigmoid

from noisebench.errors import UserError
from noisebench.nn.gaussian_sigmoid import expected_sigmoid

DIGITS = 20
MEANS = (0.0, -1e-6, -0.3, -2.0, -9.0, -40.0, -300.0, -1000.0)
VARIANCES = (0.0, 1e-8, 0.05, 0.6, 1.0, 1.0625, 1.5, 4.0, 20.0, 400.0, 2500.0, 1e6)
# Where the rule for a large variance changes its branch: the mean at -v/2 - 1 and at -v; and the tails beyond.
SEAMS = [
    (-v * x - y, v)
    for v in (1.0625, 6.0, 90.0, 1900.0)
    for x, y in ((0.5, 0.875), (0.5, 1.125), (0.9375, 0), (1.125, 0))
]
GRID = [(a, v) for a in MEANS for v in VARIANCES] + [(a, v) for a, v in SEAMS if a > -1000]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


@functools.cache
def reference(mean: float, variance: float) -> tuple[float, float, float, float, float]:
    """log p, log(1 - p), the logit and its derivatives in mean (<= 0) and variance: Gauss-Legendre panels in mpmath."""
    with mp.workdps(DIGITS):
        a, v = mp.mpf(mean), mp.mpf(variance)
        if variance == 0:
            s = 1 / (1 + mp.exp(-a))
            return tuple(map(float, (mp.log(s), mp.log1p(-s), a, 1, (1 - 2 * s) / 2)))  # type: ignore[return-value]
        r = mp.sqrt(v)

        def integrand(u: mpmath.mpf) -> mpmath.mpf:
            return mp.exp(-((u - a) ** 2) / (2 * v)) / (1 + mp.exp(-u))

        low, high = a, a + v  # the mode is where 1 - sigmoid(u) = (u - a) / v; from there it falls on both sides
        for _ in range(50):
            mode = (low + high) / 2
            low, high = (mode, high) if 1 / (1 + mp.exp(mode)) > (mode - a) / v else (low, mode)
        steps = (0, 1, 2.5, 5, 9, 16, 28, 50)
        edges = sorted(
            {c + sign * k * unit for c in (a, mode, 0) for unit in (r, 1) for k in steps for sign in (-1, 1)}
        )
        least = integrand(mode) * mp.mpf("1e-20")
        p = p1 = p2 = mp.zero
        for left, right in itertools.pairwise(edges):
            if max(integrand(left), integrand(right)) < least:
                continue
            half, middle = (right - left) / 2, (right + left) / 2
            for node, weight in rule():
                u = middle + half * node
                s = 1 / (1 + mp.exp(-u))
                f = weight * half * mp.exp(-((u - a) ** 2) / (2 * v)) * s
                p, p1, p2 = p + f, p1 + f * (1 - s), p2 + f * (1 - s) * (1 - 2 * s)
        log_p = mp.log(p / (r * mp.sqrt(2 * mp.pi)))
        other = mp.log1p(-mp.exp(log_p))
        slope, curve = p1 / p / mp.exp(other), p2 / p / mp.exp(other)
        values = log_p, other, log_p - other, slope, curve / 2
        return tuple(map(float, values))  # type: ignore[return-value]


@functools.cache
def rule() -> list[tuple[mpmath.mpf, mpmath.mpf]]:
    return list(GaussLegendre(mp).calc_nodes(4, 80))


def with_gradients(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = mean.clone().requires_grad_(), variance.clone().requires_grad_()
    logit = expected_sigmoid(mean, variance)
    d_mean, d_variance = torch.autograd.grad(logit.sum(), (mean, variance))
    return logit.detach(), d_mean, d_variance


def relative(got: Tensor, wanted: list[float]) -> float:
    """The largest relative error; absolute below 1e-7, for the reference ends at the twentieth decimal."""
    want = torch.tensor(wanted, dtype=torch.float64)
    return float(((got.double() - want).abs() / want.abs().clamp(min=1e-7)).max())


def test_the_reference_is_the_integral() -> None:
    """Against mpmath's own adaptive quadrature of the definition, and finite differences of it."""
    with mp.workdps(DIGITS):
        for mean, variance in ((-1.0, 2.0), (-30.0, 9.0)):
            points = [-20, -8, -3, 0, 1, 3, 5, 8, 12, 20]

            def p(a: mpmath.mpf, v: mpmath.mpf, points: list[int] = points) -> mpmath.mpf:
                return mp.quad(lambda x: mp.npdf(x) / (1 + mp.exp(-a - mp.sqrt(v) * x)), points)

            def logit(a: mpmath.mpf, v: mpmath.mpf) -> mpmath.mpf:
                return mp.log(p(a, v) / (1 - p(a, v)))

            step = mp.mpf("1e-5")
            d_mean = (logit(mean + step, variance) - logit(mean - step, variance)) / (2 * step)
            d_variance = (logit(mean, variance + step) - logit(mean, variance - step)) / (2 * step)
            wanted = (float(mp.log(p(mean, variance))), float(logit(mean, variance)), float(d_mean), float(d_variance))
            got = reference(mean, variance)
            assert (got[0], *got[2:]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_and_gradients_everywhere(dtype: torch.dtype) -> None:
    exact = [reference(a, v) for a, v in GRID]
    log_p, log_not_p, logits, d_mean, d_variance = map(list, zip(*exact, strict=True))
    assert min(log_p) < -900  # the grid reaches far below the smallest double
    mean, variance = (torch.tensor(column, dtype=dtype) for column in zip(*GRID, strict=True))
    got, got_d_mean, got_d_variance = with_gradients(mean, variance)
    tolerance = TOLERANCE[dtype]
    assert relative(got, logits) < tolerance  # relative near 0 too
    assert relative(got_d_mean, d_mean) < tolerance
    assert relative(got_d_variance, d_variance) < tolerance
    assert relative(logsigmoid(got), log_p) < tolerance
    # log(1 - p) = -p here; an ulp of the logit is one of log p, so p has no more digits than that.
    normal = [x > math.log(torch.finfo(dtype).tiny) + 3 for x in log_p]
    ulps = torch.tensor([max(1.0, -x) for x in log_p])
    error = (logsigmoid(-got).double() / torch.tensor(log_not_p, dtype=torch.float64) - 1) / ulps
    assert float(error[torch.tensor(normal)].abs().max()) < tolerance


def test_at_variance_zero_it_is_the_sigmoid_with_its_heat_equation() -> None:
    mean = torch.tensor([-800.0, -3.7, -1e-9, 0.0, 0.3, 12.0, 800.0], dtype=torch.float64)
    logit, d_mean, d_variance = with_gradients(mean, torch.zeros_like(mean))
    assert torch.equal(logit, mean)
    torch.testing.assert_close(d_mean, torch.ones_like(mean), rtol=1e-14, atol=0)
    torch.testing.assert_close(d_variance, -torch.tanh(mean / 2) / 2, rtol=1e-13, atol=0)


means = st.floats(-1000, 1000)
deviations = st.floats(0, 1000)


@given(mean=means, deviation=deviations)
def test_antisymmetric_to_the_bit_and_drawn_towards_zero(mean: float, deviation: float) -> None:
    a, v = torch.tensor([mean, -mean], dtype=torch.float64), torch.full((2,), deviation**2, dtype=torch.float64)
    logit, d_mean, d_variance = with_gradients(a, v)
    assert logit[0] == -logit[1]
    assert d_mean[0] == d_mean[1]
    assert d_variance[0] == -d_variance[1]
    assert logit[0].abs() <= a[0].abs() * (1 + 1e-14)
    assert 0 < d_mean[0] <= 1 + 1e-14


@given(mean=means, step=st.floats(1e-6, 10), deviation=deviations)
def test_monotone_in_the_mean(mean: float, step: float, deviation: float) -> None:
    a = torch.tensor([mean, mean + step], dtype=torch.float64)
    low, high = expected_sigmoid(a, torch.full_like(a, deviation**2)).tolist()
    assert low < high or deviation > 100  # there the rise may be below an ulp
    assert low <= high + 1e-12 * abs(high)


@settings(max_examples=50)
@given(mean=st.floats(-50, 50), deviation=st.floats(0.01, 30))
def test_the_rules_join_without_a_step(mean: float, deviation: float) -> None:
    """Values a part in 1e12 apart agree, wherever they are: at v = 1, v/2 + 1 = -mean, v = -mean."""
    for v in (deviation**2, 1.0, abs(mean), max(2 * abs(mean) - 2, 0.0)):
        around = torch.tensor([v * (1 - 1e-12), v * (1 + 1e-12)], dtype=torch.float64)
        for value in with_gradients(torch.full_like(around, mean), around):
            torch.testing.assert_close(value[0], value[1], rtol=1e-11, atol=1e-14)


def test_gradcheck_for_any_strides_and_shapes() -> None:
    torch.manual_seed(0)
    mean = (torch.randn(3, 4, dtype=torch.float64) * 3).requires_grad_()
    variance = (torch.rand(4, 3, dtype=torch.float64) * 3).T.requires_grad_()
    assert torch.autograd.gradcheck(expected_sigmoid, (mean, variance))
    assert expected_sigmoid(mean[:0], variance[:0]).shape == (0, 4)
    assert expected_sigmoid(mean[0, 0], variance[0, 0]).shape == ()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(5, 7) * 9, torch.rand(5, 7) * 20
    whole = with_gradients(mean, variance)
    monkeypatch.setattr("noisebench.nn.gaussian_sigmoid._BLOCK", 8)
    for a, b in zip(whole, with_gradients(mean, variance), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # not to the bit: vectorised tails


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_huge_values_stay_finite_and_nan_stays_nan(dtype: torch.dtype) -> None:
    huge = [1e4, 1e10, 1e19, 1e30]
    mean = torch.tensor([a for a in huge for _ in huge], dtype=dtype)
    variance = torch.tensor(huge * len(huge), dtype=dtype)
    for value in with_gradients(mean, variance):
        assert bool(value.isfinite().all())
    nan = float("nan")
    assert bool(expected_sigmoid(torch.tensor([nan, 1.0, 1.0]), torch.tensor([4.0, nan, -1.0])).isnan().all())


def test_memory_does_not_grow_with_the_nodes() -> None:
    """Nothing but two tensors of the input's shape is saved."""
    saved: list[Tensor] = []
    mean = torch.zeros(2, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        expected_sigmoid(mean, torch.ones(2, 50))
    assert [x.shape for x in saved] == [(2, 50), (2, 50)]


def test_half_precision_and_autocast_compute_in_float32() -> None:
    mean, variance = torch.linspace(-5, 5, 11), torch.linspace(0, 9, 11)
    wanted = expected_sigmoid(mean, variance)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expected_sigmoid(mean, variance), wanted)
        half = expected_sigmoid(mean.bfloat16(), variance.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, expected_sigmoid(mean.bfloat16().float(), variance.bfloat16().float()))
    assert expected_sigmoid(mean, variance.double()).dtype == torch.float64


def test_torch_compile_takes_it_whole() -> None:
    def loss(mean: Tensor, scale: Tensor) -> Tensor:
        return expected_sigmoid(mean / 0.15, (scale / 0.15).square()).square().sum()

    torch.manual_seed(0)
    inputs = torch.randn(4, 6, requires_grad=True), torch.rand(4, 6, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value = compiled(*inputs)
    torch.testing.assert_close(value, loss(*inputs))
    for a, b in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(loss(*inputs), inputs), strict=True):
        torch.testing.assert_close(a, b)
    operator = torch.ops.noisebench.expected_sigmoid.default
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, inputs, test_utils=names)


def test_a_second_differentiation_says_that_it_is_not_there() -> None:
    mean = torch.tensor([0.5], requires_grad=True)
    (first,) = torch.autograd.grad(expected_sigmoid(mean, torch.ones(1)).sum(), mean, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        first.sum().backward()


def test_refusals_name_the_argument() -> None:
    with pytest.raises(UserError, match=r"variance has shape \(3,\); expected that of mean, \(2,\)"):
        expected_sigmoid(torch.zeros(2), torch.zeros(3))
    with pytest.raises(UserError, match=r"mean is torch.int64; expected a floating dtype"):
        expected_sigmoid(torch.zeros(2, dtype=torch.int64), torch.zeros(2))
