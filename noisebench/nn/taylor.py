"""The mean of a softmax under Gaussian noise to second order, in closed form; Collier et al. 2021, appendix C."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisebench.errors import UserError

FLOOR = 0.1
"""Where the factor 1 + t_k on a softmax probability falls below this, its logarithm goes on along the tangent."""


def taylor_log_probs(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    floor: float = FLOOR,
) -> Tensor:
    """log of s_k + 1/2 tr(H_k Sigma): to second order E[softmax(u / tau)_k], where Sigma is the covariance of u / tau.

    s = softmax(loc / tau), H_k is the Hessian of s_k there, Sigma = (diag(scale^2) + V V^T) / tau^2: Eq. 7 of Collier
    et al., "Correlated Input-Dependent Label Noise in Large-Scale Image Classification" (CVPR 2021); Eq. 9 is the
    diagonal case. In closed form, with neither K x K nor, for gain, [B, K, R] formed:

        1/2 tr(H_k Sigma) = s_k t_k,   t_k = (c_k - sum_j s_j c_j) / 2,
        c_k = Sigma_kk - 2 (Sigma s)_k = (scale_k^2 (1 - 2 s_k) + |V_k|^2 - 2 V_k (V^T s)) / tau^2.

    The result is log s_k + log(1 + t_k). The approximation may leave [0, 1] as the noise grows:

    - where 1 + t_k < `floor`, log is replaced by its tangent at the floor: finite, with a continuous slope that leads
      back. Only there the probabilities do not sum to one;
    - above, nothing is held back: 1 + t_k grows with the variance, so a log-probability may be positive and a loss that
      reads it below zero.

    Where standard deviations reach tau it is further off than a softmax without the noise, at a quarter of that closer
    (a test measures both): check it against `mc_log_probs` where it is used.

    Args:
        loc: [B, K].
        scale: [B, K], standard deviations of the noise of each class.
        factors: V, [B, K, R]; or with gain [K, R], for V = gain[..., None] * factors. None: a diagonal covariance.
        gain: [B, K], only with factors [K, R].
        temperature: tau > 0; a number or a tensor of shape (), which gets a gradient.
        floor: in (0, 1).

    Returns:
        Log-probabilities [B, K], float64 if an argument is, else float32 (also for bfloat16 and under autocast).

    Raises:
        UserError: shapes that disagree, temperature <= 0 (of a tensor: only on a CPU, where reading it costs nothing),
            floor outside (0, 1).
    """
    _check(loc, scale, factors, gain, temperature, floor)
    with torch.autocast(loc.device.type, enabled=False):
        loc, scale, factors, gain, temperature = _promoted(loc, scale, factors, gain, temperature)
        log_s = torch.log_softmax(loc / temperature, dim=-1)
        s = log_s.exp()
        c = scale.square() * (1 - 2 * s)
        if factors is not None and gain is None:
            # |V_k - m|^2 differs by a constant, which drops out; noise common to all classes does so without rounding.
            mean = torch.einsum("bk,bkr->br", s, factors)
            c = c + (factors - mean[:, None, :]).square().sum(-1)
        elif factors is not None and gain is not None:
            mean = (s * gain) @ factors
            c = c + gain * (gain * factors.square().sum(-1) - 2 * (mean @ factors.T))
        t = (c - (s * c).sum(-1, keepdim=True)) / (2 * temperature**2)
        return log_s + _log1p_above(t, floor - 1)


def _log1p_above(t: Tensor, least: float) -> Tensor:
    """log(1 + t) for t >= least, its tangent at `least` below."""
    # The argument is clamped so that the branch not taken has no infinite slope: 0 * inf would be a NaN gradient.
    tangent = math.log1p(least) + (t - least) / (1 + least)
    return torch.where(t >= least, torch.log1p(t.clamp(min=least)), tangent)


def _promoted(
    loc: Tensor, scale: Tensor, factors: Tensor | None, gain: Tensor | None, temperature: float | Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float | Tensor]:
    dtype = torch.float32
    for value in (loc, scale, factors, gain):
        dtype = dtype if value is None else torch.promote_types(dtype, value.dtype)
    return (
        loc.to(dtype),
        scale.to(dtype),
        None if factors is None else factors.to(dtype),
        None if gain is None else gain.to(dtype),
        temperature.to(dtype) if isinstance(temperature, Tensor) else temperature,
    )


def _check(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    temperature: float | Tensor,
    floor: float,
) -> None:
    if loc.ndim != 2:
        raise UserError(f"loc has shape {tuple(loc.shape)}; expected [B, K]")
    batch, classes = loc.shape
    if scale.shape != loc.shape:
        raise UserError(f"scale has shape {tuple(scale.shape)}; expected that of loc, {(batch, classes)}")
    if gain is not None and factors is None:
        raise UserError("gain is given without factors; expected factors [K, R] with it")
    if gain is not None and gain.shape != loc.shape:
        raise UserError(f"gain has shape {tuple(gain.shape)}; expected that of loc, {(batch, classes)}")
    if factors is not None:
        lead = (batch, classes) if gain is None else (classes,)
        if factors.ndim != len(lead) + 1 or factors.shape[:-1] != lead:
            expected = ", ".join(str(n) for n in (*lead, "R"))
            what = "without gain" if gain is None else "with gain"
            raise UserError(f"factors has shape {tuple(factors.shape)}; expected [{expected}] {what}")
    if isinstance(temperature, Tensor):
        if temperature.ndim:
            raise UserError(
                f"temperature has shape {tuple(temperature.shape)}; expected a number or a tensor of shape ()"
            )
        readable = temperature.device.type == "cpu" and not torch.compiler.is_compiling()
    else:
        readable = True
    if readable and not temperature > 0:
        raise UserError(f"temperature is {float(temperature)}; expected a number above 0")
    if not 0 < floor < 1:
        raise UserError(f"floor is {floor}; expected a number between 0 and 1")
