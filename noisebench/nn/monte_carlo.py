"""log E[softmax(u / temperature)] for normal u, streamed: memory does not grow with the number of samples.

Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image Classification (CVPR 2021), Eq. 3; every
other implementation holds [batch, samples, classes] for the backward pass. Here both passes go over chunks, and the
backward pass draws the same samples again from a stored seed.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
import torch.utils.checkpoint
from torch import Tensor

from noisebench.errors import UserError
from noisebench.nn import _triton as kernels
from noisebench.nn._draws import Draws, Sampling, check_sampling
from noisebench.nn._streaming import Direct, Form, Projected, gradients, log_mean_softmax
from noisebench.nn.gaussian_sigmoid import expected_sigmoid

Link = Literal["softmax", "sigmoid"]
Backend = Literal["auto", "eager", "compiled", "triton"]

_WORTH_COMPILING = 2**24
"""Elements, samples x classes x batch, from which on compiling pays for itself within a few steps."""
_CHUNK = {"eager": 2**18, "compiled": 3 * 2**18, "cuda": 2**24}
"""Elements in a chunk: what stays in a CPU core's cache, or keeps a GPU busy."""


def mc_log_probs(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float | Tensor,
    num_samples: int,
    link: Link = "softmax",
    generator: torch.Generator | None = None,
    per_example: bool = False,
    sampling: Sampling = "plain",
    backend: Backend = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Log-probabilities log E[softmax(u / temperature)] of u ~ N(loc, diag(scale²) + V Vᵀ), by Monte Carlo.

    Collier et al. 2021, Eq. 3 and Algorithm 1. The average is taken in the log domain, with no clipping: value and
    gradient are right for any probability. (In float32 a gradient has the digits that log p leaves: 2e-5 relative at
    log p = -1,000.) Differentiable once in every tensor, in reverse mode. With `weight`, the noise is on the features
    instead and u = weight (loc + noise) + bias (HET-XL; Collier et al., ICLR 2023).

    Args:
        loc: mean of u, [B, K], finite; with `weight` of the features, [B, D].
        scale: standard deviation of the independent part, as `loc`; its sign does not matter.
        factors: V, [B, K, R]; or [K, R] with `gain`; no low-rank part if None ("diag").
        gain: parameter-efficient form, V(x) = gain(x)[:, None] * factors, [B, K].
        weight: [K, D]; bias: [K]; for noise on the features.
        temperature: above 0; a tensor of no dimension gets a gradient.
        num_samples: S; time is linear in it, memory constant but for [B, S] numbers in the fused kernels. Not used by
            the sigmoid link.
        link: "softmax"; "sigmoid" gives logits of E[sigmoid(u_c / temperature)] without samples (appendix A): that
            expectation depends on the variance of u_c alone and is a one-dimensional integral, done by quadrature.
        generator: of the seed of the draws; torch's global one by default.
        per_example: draw for each example anew; by default all examples share the S draws, unbiased and much faster.
        sampling: "plain"; "antithetic" pairs (S even); "sobol", quasi-Monte-Carlo with a scrambled sequence, for up to
            21,201 dimensions (K + R).
        backend: of the softmax link. "triton" fuses everything on a GPU and makes the random numbers in the kernel
            (other draws than the others); "compiled" compiles the chunk (CPU: needs a C++ compiler); "eager". "auto"
            takes triton for float32 on CUDA, compiled for large problems where a compiler is found, else eager.
        chunk: elements (examples x samples x classes) that are in memory at once; about, and by default what suits the
            device. A problem of which one row does not fit takes a row at a time.

    Returns:
        [B, K], float64 if `loc` is, else float32, under autocast too. Log-probabilities, or logits for "sigmoid".

    Raises:
        UserError: shapes that disagree, temperature not above 0, num_samples below 1, an option that does not exist, or
            more dimensions than Sobol sequences have.
    """
    _check(loc, scale, factors, gain, weight, bias, temperature, num_samples, link, sampling, backend, chunk)
    dtype = torch.float64 if loc.dtype == torch.float64 else torch.float32
    with torch.autocast(loc.device.type, enabled=False):
        loc, scale = loc.to(dtype), scale.to(dtype)
        factors, gain, weight, bias = (None if x is None else x.to(dtype) for x in (factors, gain, weight, bias))
        if weight is not None and bias is None:
            bias = weight.new_zeros(weight.shape[0])
        if link == "sigmoid":
            return _sigmoid(loc, scale, factors, gain, weight, bias, temperature)
        # Dividing the inputs once by the temperature divides every sample.
        if weight is not None and bias is not None:
            weight, bias = weight / temperature, bias / temperature
        else:
            loc, scale = loc / temperature, scale / temperature
            if gain is not None:
                gain = gain / temperature
            elif factors is not None:
                factors = factors / temperature
        where = loc.device if generator is None else generator.device
        seed = torch.randint(2**62, (), generator=generator, device=where)
        options = (num_samples, per_example, sampling, backend, chunk or 0)
        log_probs: Tensor = _log_probs(loc, scale, factors, gain, weight, bias, seed, *options)[0]
        return log_probs


def _sigmoid(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    temperature: float | Tensor,
) -> Tensor:
    """Logits of E[sigmoid(u / temperature)], from the variances of u alone."""
    variance = scale.square()
    if weight is None:
        if factors is not None:
            low = factors.square().sum(-1)
            variance = variance + (low if gain is None else gain.square() * low)
    else:
        loc, variance = torch.nn.functional.linear(loc, weight, bias), variance @ weight.square().T
        for r in range(0 if factors is None else factors.shape[-1]):
            # One column of W V at a time, made again in the backward pass: [B, K] in memory, and not R of them.
            again: Any = torch.utils.checkpoint.checkpoint
            variance = variance + again(_column, weight, factors, gain, r, use_reentrant=False)
    return expected_sigmoid(loc / temperature, variance / temperature**2)


def _column(weight: Tensor, factors: Tensor, gain: Tensor | None, r: int) -> Tensor:
    column = factors[..., r] if gain is None else gain * factors[:, r]
    return (column @ weight.T).square()


# ------------------------------------------------------------------------------ the integral as an operator of torch


def _use_triton(backend: str, loc: Tensor, weight: Tensor | None, sampling: str) -> bool:
    fits = loc.dtype == torch.float32 and weight is None and sampling != "sobol" and kernels.available(loc.device)
    if backend == "triton" and not fits:
        raise UserError(
            "backend: 'triton' needs float32 on a CUDA device, noise on the logits and no Sobol sequence; use 'auto'"
        )
    return backend == "triton" or (backend == "auto" and loc.device.type == "cuda" and fits)


def _fused(*inputs: Any) -> Any:
    """The kernels' arguments: contiguous, and the seed where they run."""
    return [x.contiguous().to(inputs[0].device) if isinstance(x, Tensor) else x for x in inputs]


def _flags(per_example: bool, sampling: str) -> Any:
    return {"per_example": per_example, "antithetic": sampling == "antithetic"}


@cache
def _compiler_found() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))


_broken_compiler: list[str] = []


def _streamed(
    work: Callable[[Form, Draws, int, bool], Any],
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    num_samples: int,
    per_example: bool,
    sampling: Any,
    backend: str,
    chunk: int,
) -> Any:
    """`work(form, draws, budget, compiled)` as the backend asks for it; uncompiled where the compiler fails unasked."""
    noise = Direct(loc, scale, factors, gain)
    form: Form = noise if weight is None or bias is None else Projected(noise, weight, bias)
    kind: dict[str, Any] = {"sampling": sampling, "dtype": loc.dtype, "device": loc.device}
    batch = len(loc)
    draws = Draws(int(seed), num_samples, form.rank, form.dim, batch=batch if per_example else None, **kind)
    on_cpu, large = loc.device.type == "cpu", batch * num_samples * form.num_classes >= _WORTH_COMPILING
    unasked = backend == "auto" and on_cpu and large and _compiler_found() and not _broken_compiler
    # A backward pass may run inside the autocast region of the forward pass; and a graph compiled for tensors with a
    # gradient would be another than that for those without.
    with torch.no_grad(), torch.autocast(loc.device.type, enabled=False):
        if backend == "compiled" or unasked:
            try:
                return work(form, draws, chunk or _CHUNK["compiled" if on_cpu else "cuda"], True)
            except Exception as error:
                if not unasked or "memory" in str(error):
                    raise
                _broken_compiler.append(str(error))
                warnings.warn(f"noisebench: torch.compile fails here, slower without: {error}"[:300], stacklevel=2)
        return work(form, draws, chunk or _CHUNK["eager" if on_cpu else "cuda"], False)


@torch.library.custom_op("noisebench::log_probs", mutates_args=())
def _log_probs(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    num_samples: int,
    per_example: bool,
    sampling: str,
    backend: str,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, K]; and the log-normalisers [B, S] where the fused kernels made them, else nothing."""
    if _use_triton(backend, loc, weight, sampling):
        return kernels.forward(*_fused(loc, scale, factors, gain, seed, num_samples), **_flags(per_example, sampling))
    given = (loc, scale, factors, gain, weight, bias, seed, num_samples, per_example, sampling, backend, chunk)
    return _streamed(log_mean_softmax, *given), loc.new_empty(0)


@_log_probs.register_fake
def _(loc, scale, factors, gain, weight, bias, seed, num_samples, per_example, sampling, backend, chunk):  # type: ignore[no-untyped-def]
    batch, classes = loc.shape[0], loc.shape[1] if weight is None else weight.shape[0]
    fused = _use_triton(backend, loc, weight, sampling)
    return loc.new_empty(batch, classes), loc.new_empty((batch, num_samples) if fused else 0)


@torch.library.custom_op("noisebench::log_probs_backward", mutates_args=())
def _log_probs_backward(
    grad: Tensor,
    log_probs: Tensor,
    lse: Tensor,
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    num_samples: int,
    per_example: bool,
    sampling: str,
    backend: str,
    chunk: int,
) -> list[Tensor]:
    """Gradients of the tensors that are there, in their order."""
    if _use_triton(backend, loc, weight, sampling):
        fused = _fused(loc, scale, factors, gain, seed, num_samples)
        made = kernels.backward(grad, log_probs, lse, *fused, **_flags(per_example, sampling))
        return [x for x in made if x is not None]
    given = (loc, scale, factors, gain, weight, bias, seed, num_samples, per_example, sampling, backend, chunk)
    found = _streamed(partial(gradients, grad, log_probs), *given)
    return [x for x in found if x is not None]


@_log_probs_backward.register_fake
def _(grad, log_probs, lse, loc, scale, factors, gain, weight, bias, *rest):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in (loc, scale, factors, gain, weight, bias) if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_samples, ctx.per_example, ctx.sampling, ctx.backend, ctx.chunk = inputs
    ctx.save_for_backward(*output, *tensors)


def _twice(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError("mc_log_probs is differentiable once; its second derivatives are not implemented")


_log_probs_backward.register_autograd(_twice)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    log_probs, lse, *tensors = ctx.saved_tensors
    options = (ctx.num_samples, ctx.per_example, ctx.sampling, ctx.backend, ctx.chunk)
    found = iter(_log_probs_backward(grad, log_probs, lse, *tensors, *options))
    *inputs, _seed = tensors
    return (*(None if x is None else next(found) for x in inputs), None, *(None for _ in options))


_log_probs.register_autograd(_backward, setup_context=_setup)


# --------------------------------------------------------------------------------------------------------- checks


def _check(
    loc: Tensor,
    scale: Tensor,
    factors: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    temperature: float | Tensor,
    num_samples: int,
    link: str,
    sampling: str,
    backend: str,
    chunk: int | None,
) -> None:
    if loc.ndim != 2 or not loc.shape[1]:
        raise UserError(f"loc: shape {list(loc.shape)}; give [batch, classes]")
    batch, dim = loc.shape
    expected: dict[str, tuple[Tensor | None, list[Any]]] = {
        "scale": (scale, [batch, dim]),
        "gain": (gain, [batch, dim]),
        "factors": (factors, [batch, dim, "rank"] if gain is None else [dim, "rank"]),
    }
    if weight is not None:
        expected |= {"weight": (weight, ["classes", dim]), "bias": (bias, [weight.shape[0]])}
    for name, (value, shape) in expected.items():
        if value is None and name != "scale":
            continue
        if not isinstance(value, Tensor) or value.device != loc.device:
            found = value.device if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{name}: {found}; give a tensor on {loc.device}, where loc is")
        fits = value.ndim == len(shape) and all(
            isinstance(n, str) or m == n for m, n in zip(value.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(map(str, shape))
            raise UserError(f"{name}: shape {list(value.shape)}; loc is {[batch, dim]}, so give [{wanted}]")
    if gain is not None and factors is None:
        raise UserError("gain: given without factors; give factors [classes, rank] beside it")
    if bias is not None and weight is None:
        raise UserError("bias: given without weight; give weight [classes, features] beside it")
    if factors is not None and not 1 <= factors.shape[-1] <= dim:
        raise UserError(f"factors: rank {factors.shape[-1]}; give 1 to {dim}, as many as loc has columns at most")
    check_temperature(temperature)
    for name, count in (("num_samples", num_samples), ("chunk", 1 if chunk is None else chunk)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"{name}: {count!r}; give an int of 1 or more")
    for name, option, known in (("link", link, get_args(Link)), ("backend", backend, get_args(Backend))):
        if option not in known:
            raise UserError(f"{name}: {option!r}; give one of {', '.join(known)}")
    if link == "softmax":
        check_sampling(sampling, num_samples, dim + (0 if factors is None else factors.shape[-1]))


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a temperature that is not above 0.

    Raises:
        UserError: its value, and what would be right; a tensor's value is not looked at while compiling.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float, Tensor)):
        raise UserError(f"temperature: {temperature!r}; give a number above 0")
    if isinstance(temperature, Tensor):
        if temperature.ndim:
            raise UserError(f"temperature: shape {list(temperature.shape)}; give a number or a tensor of no dimension")
        if torch.compiler.is_compiling():
            return
    value = float(temperature.detach()) if isinstance(temperature, Tensor) else float(temperature)
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"temperature: {value:g}; give a finite number above 0")
