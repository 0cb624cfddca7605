"""The second-order softmax mean against a Hessian by autograd and a dense covariance, in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisebench.errors import UserError
from noisebench.nn.taylor import FLOOR, _log1p_above, taylor_log_probs

B, K, R = 3, 6, 2
KINDS = ("diag", "full", "pe")


def draw(kind: str, size: float = 0.3, seed: int = 0, shape: tuple[int, int, int] = (B, K, R)) -> dict[str, Tensor]:
    """Random arguments; `size` is that of the noise."""
    batch, classes, rank = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    arguments = {"loc": normal(batch, classes), "scale": size * (0.5 + normal(batch, classes).abs())}
    if kind == "full":
        arguments["factors"] = size * normal(batch, classes, rank)
    if kind == "pe":
        arguments |= {"factors": size * normal(classes, rank), "gain": normal(batch, classes)}
    return arguments


def covariance(loc: Tensor, scale: Tensor, factors: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
    dense = torch.diag_embed(scale**2)
    if factors is not None:
        v = factors if gain is None else gain[..., None] * factors
        dense = dense + v @ v.mT
    return dense


def brute_force(temperature: float, loc: Tensor, **noise: Tensor) -> Tensor:
    """s + 1/2 tr(H Sigma) by autograd's Hessian [K, K, K] of the softmax of each example."""
    rows = []
    for logits, sigma in zip(loc, covariance(loc, **noise), strict=True):
        hessian = torch.func.hessian(lambda u: torch.softmax(u / temperature, 0))(logits)
        rows.append(torch.softmax(logits / temperature, 0) + torch.einsum("kij,ij->k", hessian, sigma) / 2)
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_half_the_trace_of_hessian_times_covariance(kind: str, temperature: float) -> None:
    arguments = draw(kind, size=0.2 * temperature)
    wanted = brute_force(temperature, **arguments)
    got = taylor_log_probs(**arguments, temperature=temperature)
    torch.testing.assert_close(got.exp(), wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(got, wanted.log(), rtol=1e-10, atol=1e-12)


def test_diagonal_case_is_equation_9_of_the_paper() -> None:
    arguments = draw("diag")
    s, variance = torch.softmax(arguments["loc"], -1), arguments["scale"] ** 2
    others = 1 - torch.eye(K, dtype=torch.float64)
    wanted = s * (1 - (s * (1 - 2 * s) * variance) @ others / 2 + (1 - s) * (1 - 2 * s) * variance / 2)
    torch.testing.assert_close(taylor_log_probs(**arguments).exp(), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_beats_a_softmax_without_noise_where_the_noise_is_small_and_not_where_it_is_large(kind: str) -> None:
    """Odd orders vanish: its error grows with the fourth power of the noise, that of leaving it out with the second."""

    def errors(size: float) -> tuple[float, float]:
        arguments = draw(kind, size)
        loc = arguments["loc"]
        draws = torch.randn(50_000, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        noise = draws @ torch.linalg.cholesky(covariance(**arguments)).mT  # [B, S, K]
        mean = torch.cat([torch.softmax(loc[:, None] + sign * noise, -1) for sign in (1, -1)], 1).mean(1)
        found = taylor_log_probs(**arguments).exp(), torch.softmax(loc, -1)
        return float((found[0] - mean).abs().max()), float((found[1] - mean).abs().max())

    (small, left_out), (large, left_out_too) = errors(0.15), errors(1.0)
    assert small < left_out / 4
    assert large > 2 * left_out_too


@settings(max_examples=50)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), size=st.floats(0, 0.4))
def test_sums_to_one_unless_the_floor_is_reached(kind: str, seed: int, size: float) -> None:
    log_p = taylor_log_probs(**draw(kind, size, seed))
    ratio = log_p - torch.log_softmax(draw(kind, size, seed)["loc"], -1)
    if bool((ratio > math.log(FLOOR)).all()):
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(B, dtype=torch.float64), rtol=1e-12, atol=0)


def test_noise_common_to_all_classes_changes_nothing() -> None:
    arguments = draw("full")
    arguments["scale"] = torch.zeros(B, K)
    arguments["factors"] = torch.full((B, K, R), 1000.0)
    wanted = torch.log_softmax(arguments["loc"].float(), -1)
    torch.testing.assert_close(taylor_log_probs(**{k: v.float() for k, v in arguments.items()}), wanted)


@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_also_of_a_learned_temperature_and_below_the_floor(kind: str, size: float) -> None:
    arguments = draw(kind, size)
    temperature = torch.tensor(0.9, dtype=torch.float64)
    reached = taylor_log_probs(**arguments) - torch.log_softmax(arguments["loc"], -1) < math.log(FLOOR)
    assert bool(reached.any()) == (size == 3.0)
    names = list(arguments)

    def function(temperature: Tensor, *values: Tensor) -> Tensor:
        return taylor_log_probs(**dict(zip(names, values, strict=True)), temperature=temperature)

    inputs = [temperature.requires_grad_(), *(value.requires_grad_() for value in arguments.values())]
    assert torch.autograd.gradcheck(function, inputs)


def test_below_the_floor_value_and_slope_are_those_of_the_tangent() -> None:
    """Two classes, the likely one noisy: 1 + t falls linearly with its variance, through the floor and below 0."""
    loc = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    s = float(torch.softmax(loc, -1)[0, 0])
    fall = -(1 - s) * (1 - 2 * s) / 2  # of 1 + t_0 as the variance rises (Eq. 9)
    # Class 0 gains nothing where s > 1/2; so look at it: t_0 = -fall * variance.
    at_floor = (1 - FLOOR) / fall

    def log_factor(variance: float) -> tuple[float, float]:
        v = torch.tensor(variance, dtype=torch.float64, requires_grad=True)
        scale = torch.stack([v.sqrt(), torch.zeros_like(v)])[None]
        value = taylor_log_probs(loc, scale)[0, 0] - math.log(s)
        value.backward()
        return float(value.detach()), float(v.grad)  # type: ignore[arg-type]

    above, below = log_factor(at_floor * (1 - 1e-9)), log_factor(at_floor * (1 + 1e-9))
    assert above == pytest.approx((math.log(FLOOR), -fall / FLOOR), rel=1e-6)
    assert below == pytest.approx(above, rel=1e-6)
    far = log_factor(at_floor * 50)
    assert far[0] == pytest.approx(math.log(FLOOR) - fall * 49 * at_floor / FLOOR)
    assert far[1] == pytest.approx(-fall / FLOOR)


def test_the_pole_of_the_logarithm_leaves_no_nan_in_the_gradient() -> None:
    t = torch.tensor([-1.0, -5.0, 0.0], requires_grad=True)
    _log1p_above(t, FLOOR - 1).sum().backward()
    assert t.grad is not None
    torch.testing.assert_close(t.grad, torch.tensor([1 / FLOOR, 1 / FLOOR, 1.0]))


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    loc = torch.tensor([[900.0, 0.0, -900.0]], requires_grad=True)
    scale = torch.full((1, 3), 30.0, requires_grad=True)
    log_p = taylor_log_probs(loc, scale, temperature=0.5)
    gradients = torch.autograd.grad(log_p.sum(), (loc, scale))
    assert all(bool(value.isfinite().all()) for value in (log_p, *gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_also_under_autocast_and_compiled(kind: str) -> None:
    exact = draw(kind)
    arguments = {name: value.float() for name, value in exact.items()}
    wanted = taylor_log_probs(**exact).float()
    torch.testing.assert_close(taylor_log_probs(**arguments), wanted, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(taylor_log_probs(**arguments), wanted, rtol=1e-5, atol=1e-6)
        assert taylor_log_probs(**{name: value.bfloat16() for name, value in exact.items()}).dtype == torch.float32
    compiled = torch.compile(taylor_log_probs, fullgraph=True, backend="eager")
    temperature = torch.tensor(1.0, requires_grad=True)
    torch.testing.assert_close(compiled(**arguments, temperature=temperature), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_no_matrix_of_classes_by_classes() -> None:
    """K = 20,000 in less than a tenth of one K x K matrix, forward and backward."""
    code = """
import torch
from noisebench.nn.taylor import taylor_log_probs
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
def call(k, full, r=5, b=2):
    loc, scale = torch.randn(b, k, requires_grad=True), torch.rand(b, k, requires_grad=True)
    factors = torch.randn(*((b, k, r) if full else (k, r)), requires_grad=True)
    taylor_log_probs(loc, scale, factors, gain=None if full else torch.randn(b, k)).sum().backward()
for full in (True, False):
    call(10, full)
    before = peak()
    call(20_000, full)
    print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sum(map(float, run.stdout.split())) < 4 * 20_000**2 / 2**20 / 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"temperature": torch.tensor(-1.0)}, "temperature is -1.0; expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; expected a number above 0"),
        ({"temperature": torch.ones(2)}, r"temperature has shape \(2,\); expected a number or a tensor of shape \(\)"),
        ({"loc": torch.zeros(K)}, r"loc has shape \(6,\); expected \[B, K\]"),
        ({"scale": torch.zeros(B, 1)}, r"scale has shape \(3, 1\); expected that of loc, \(3, 6\)"),
        ({"factors": torch.zeros(K, R)}, r"factors has shape \(6, 2\); expected \[3, 6, R\] without gain"),
        (
            {"factors": torch.zeros(B, K, R), "gain": torch.zeros(B, K)},
            r"factors has shape \(3, 6, 2\); expected \[6, R\] with gain",
        ),
        (
            {"factors": torch.zeros(K, R), "gain": torch.zeros(B, 1)},
            r"gain has shape \(3, 1\); expected that of loc, \(3, 6\)",
        ),
        ({"gain": torch.zeros(B, K)}, r"gain is given without factors; expected factors \[K, R\] with it"),
        ({"floor": 0.0}, "floor is 0.0; expected a number between 0 and 1"),
    ],
)
def test_refusals_name_the_argument_and_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        taylor_log_probs(**({"loc": torch.zeros(B, K), "scale": torch.ones(B, K)} | changes))
