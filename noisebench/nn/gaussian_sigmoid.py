"""The mean of a sigmoid under a Gaussian, without samples, in value and gradient.

Under the sigmoid link of Collier et al., "Correlated Input-Dependent Label Noise in Large-Scale Image Classification"
(CVPR 2021), appendix A, the probability of a class depends on its own mean and variance alone:

    p(a) = E[sigmoid(a + r xi)],   xi ~ N(0, 1),   r^2 = v.

p(-a) = 1 - p(a), so a = -b <= 0 below. Two rules, each a sum of smooth terms of one sign, so that nothing cancels and
relative accuracy holds for p < 1e-300 too:

v <= 1: Gauss-Hermite quadrature in xi, nodes x and -x taken together, with e^-b as a factor in front. The poles of the
    sigmoid, at distance pi / r, are far enough away.

v > 1: Gauss-Hermite would need ever more nodes. Here sigmoid(u) = Phi(c u) + D(u) with c^2 = pi / 8 (the probit that
    shares its slope at 0, MacKay 1992), E[Phi(c u)] = Phi(c a / sqrt(1 + c^2 v)), and what is left,

        E[D] = integral over u > 0 of D(-u) (N(u; b, v) - N(u; -b, v)) du,

    has an even analytic integrand, positive and falling as e^-u: the trapezoidal rule in t, u = s sinh(t / s),
    converges exponentially. The derivatives p' = E[sigmoid'] and p'' = E[sigmoid''] are that sum with other constants.
    Where b nears v the integrand would fall too slowly relative to p. From sigmoid(u) = e^u sigmoid(-u),

        p(-b) = e^(-b + v/2) p(b - v),

    which leads from any b > v / 2 back to |b - v|; beyond v only the absolute accuracy of p(-|b - v|) counts.

The gradient with respect to v is p'' / 2 (the heat equation), which is right at v = 0 too.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from noisebench.errors import UserError

_SMOOTH = 8 / math.pi  # 1 / c^2: Phi(c u) is a step seen through Gaussian noise of this variance
_SPLIT = 1.0  # variance at which the rules change hands
_REFLECT_AFTER = 1.0  # b > v / 2 + this is reflected; 0 would let p'' cancel near v = 1
_BLOCK = 1 << 20  # elements at a time: some twenty tensors of this size are the memory beyond the result

# Step h, stretch s and end U of the trapezoidal rule; nodes of Gauss-Hermite. Measured against mpmath (tests).
_RULES = {torch.float64: (0.4, 7.0, 66.0, 52), torch.float32: (0.7, 5.0, 34.0, 20)}


def expected_sigmoid(mean: Tensor, variance: Tensor) -> Tensor:
    """logit(E[sigmoid(mean + sqrt(variance) * xi)]), xi ~ N(0, 1), by quadrature: no samples.

    The logit is odd in the mean, and equal to it where the variance is 0. For standard deviations of 0 to 1e3 and means
    within +-1e3, the logit and both its derivatives agree with mpmath to 3e-13 (float64) and 1e-6 (float32), relative
    also for p < 1e-300. So do log p and log(1 - p), but the one near 0 has only the digits that the logit's ulp leaves.

    Two tensors of the input's shape are kept for the backward pass; what is needed besides does not grow with the
    number of nodes, nor beyond some twenty tensors of 2^20 elements. To `torch.compile` it is one opaque operator.

    Args:
        mean: any shape, floating.
        variance: the same shape, >= 0 (a negative one gives NaN).

    Returns:
        Logits of that shape: float64 where an argument is, else float32 (also for bfloat16 and under autocast).
        Differentiable once.

    Raises:
        UserError: the shapes disagree, or an argument is not floating.
    """
    for name, value in (("mean", mean), ("variance", variance)):
        if not value.dtype.is_floating_point:
            raise UserError(f"{name} is {value.dtype}; expected a floating dtype")
    if mean.shape != variance.shape:
        raise UserError(f"variance has shape {tuple(variance.shape)}; expected that of mean, {tuple(mean.shape)}")
    dtype = torch.promote_types(torch.promote_types(mean.dtype, variance.dtype), torch.float32)
    logit: Tensor = _operator(mean.to(dtype), variance.to(dtype))[0]
    return logit


@torch.library.custom_op("noisebench::expected_sigmoid", mutates_args=())
def _operator(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logit and its derivatives in mean and variance, all contiguous."""
    mean, variance = mean.contiguous(), variance.contiguous()
    if mean.numel() <= _BLOCK:
        return _quadrature(mean, variance)
    logit, d_mean, d_variance = (torch.empty_like(mean) for _ in range(3))
    for start in range(0, mean.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        parts = _quadrature(mean.view(-1)[block], variance.view(-1)[block])
        for whole, part in zip((logit, d_mean, d_variance), parts, strict=True):
            whole.view(-1)[block] = part
    return logit, d_mean, d_variance


@_operator.register_fake
def _(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return mean.new_empty(mean.shape), mean.new_empty(mean.shape), mean.new_empty(mean.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: object, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor | None, *second: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    # The derivatives are outputs too, so a second differentiation arrives here as a gradient of them.
    if any(g is not None for g in second):
        raise NotImplementedError("expected_sigmoid is differentiable once; its second derivatives are not implemented")
    if grad is None:
        return None, None
    d_mean, d_variance = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad * d_mean, grad * d_variance


_operator.register_autograd(_backward, setup_context=_setup_context)


def _quadrature(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b = mean.abs()
    wide = variance > _SPLIT
    narrow_sums = _narrow(b, variance.clamp(max=_SPLIT))
    wide_sums = _wide(b, variance.clamp(min=_SPLIT))
    log_p, slope, curve, gap = (torch.where(wide, w, n) for w, n in zip(wide_sums, narrow_sums, strict=True))
    p = log_p.exp()
    size = torch.where(gap < 0.5, 2 * torch.atanh(gap.clamp(max=0.5)), torch.log1p(-p) - log_p)
    logit = torch.where(variance == 0, mean, torch.copysign(size, mean))
    return logit, slope / (1 - p), torch.copysign(curve / (2 - 2 * p), -mean)


def _narrow(b: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, p'/p, p''/p and 1 - 2p at -b for v <= 1, by Gauss-Hermite."""
    r, q, odd = v.sqrt(), torch.exp(-b), -torch.expm1(-2 * b)
    even = 1 + q * q
    p, d1, d2, gap = (torch.zeros_like(b) for _ in range(4))
    for x, weight in _hermite(_RULES[b.dtype][3]):
        # The sigmoid and its derivatives at -b + r x plus those at -b - r x, over q, in terms of c = 2 cosh(r x).
        c = torch.exp(r * x)
        c += 1 / c
        over = torch.addcmul(even, q, c).reciprocal_()
        square, product = over * over, even * c
        gap.add_(over, alpha=weight)
        p.addcmul_(over, torch.add(c, q, alpha=2), value=weight)
        d1.addcmul_(square, torch.add(product, q, alpha=4), value=weight)
        d2.addcmul_(square * over, product.addcmul_(q, 8 - c * c), value=weight)
    return torch.log(p) - b, d1 / p, odd * d2 / p, 2 * odd * gap


def _wide(b: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for v > 1: the probit approximation and its exact remainder."""
    r = v.sqrt()
    reflected = b > v / 2 + _REFLECT_AFTER
    beyond = reflected & (b > v)
    near = torch.where(reflected, (b - v).abs(), b)
    near = torch.where(beyond, torch.minimum(near, 100 + 40 * r), near)  # all is 0 there, and infinity is not

    # Sums at -near, in units of exp(-near^2 / 2v); beyond v, where 1 - p counts, in units of 1.
    half = (near / r).square() / 2
    unit = torch.where(beyond, half, 0.0)
    inverse, slant = 1 / v, near / v
    p, d1, d2 = (torch.zeros_like(b) for _ in range(3))
    for u, w, w1, w2 in _trapezoid(*_RULES[b.dtype][:3]):
        right = torch.add(-unit, slant, alpha=u).add_(inverse, alpha=-u * u / 2).exp_()
        less = torch.expm1(slant * (-2 * u)).mul_(right)  # the Gaussian at -near less the one at near
        p.sub_(less, alpha=w)
        d1.add_(right, alpha=2 * w1).add_(less, alpha=w1)
        d2.sub_(less, alpha=w2)
    p, d1, d2 = p / r, d1 / r, d2 / r
    z = near / torch.sqrt(2 * (v + _SMOOTH))
    gap = torch.erf(z) - 2 * p * torch.exp(unit - half)
    p = p + torch.special.erfcx(z) / 2 * torch.exp(half * (_SMOOTH / (v + _SMOOTH)) - unit)

    # Back to -b: p(-b) = e^(-b + v/2) p(b - v), differentiated.
    far = torch.where(beyond, 1 - p, p)
    slope = torch.where(reflected, far - d1, d1)
    curve = torch.where(reflected, far - 2 * d1 + torch.where(beyond, -d2, d2), d2)
    log_p = torch.log(far) + torch.where(beyond, v / 2 - b, -(b / r).square() / 2)
    gap = torch.where(reflected, 1 - 2 * log_p.exp(), gap)
    return log_p, slope / far, curve / far, gap


@functools.cache
def _hermite(nodes: int) -> tuple[tuple[float, float], ...]:
    """The positive nodes of the rule for N(0, 1), with their weights; each stands for its mirror image too."""
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    return tuple(zip(x[nodes // 2 :].tolist(), weight[nodes // 2 :].tolist(), strict=True))


@functools.cache
def _trapezoid(step: float, stretch: float, end: float) -> tuple[tuple[float, float, float, float], ...]:
    """Nodes u >= 0 and weights for D(-u), sigmoid'(u) and -sigmoid''(u), the Gaussian's constant among them."""
    rows = []
    for j in range(int(stretch * math.asinh(end / stretch) / step) + 1):
        u = stretch * math.sinh(j * step / stretch)
        du = step * math.cosh(j * step / stretch) / math.sqrt(2 * math.pi) * (0.5 if j == 0 else 1)
        tail = 1 / (1 + math.exp(u))
        density = tail * (1 - tail)
        remainder = tail - math.erfc(u / math.sqrt(2 * _SMOOTH)) / 2
        rows.append((u, du * remainder, du * density, du * density * math.tanh(u / 2)))
    return tuple(rows)
