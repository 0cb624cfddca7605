"""log E[softmax(u)] by Monte Carlo in chunks that stay in the cache, and its gradient by drawing the same again.

Notation: u_s the logits of sample s (already divided by the temperature), lse_s = logsumexp_k u_sk, p_s = softmax(u_s),
P = mean_s p_s, w_sk = p_sk / (S P_k), which sums to one over s. For an upstream gradient g of log P::

    d log P_k / d u_sj = w_sk (delta_kj - p_sj)      =>      G_sj = w_sj g_j - p_sj a_s,  a_s = sum_k g_k w_sk

and p_sj = w_sj (S P_j). Averages are taken in the log domain: no probability is too small for its logarithm or for its
gradient. A chunk costs one exponential per element, exp(u_sk - max_k u_sk - shift_k), which gives both softmax and w:

- backward, shift = log (S P). A sample's share of S P is at most one, so that this exponential is at most K; where
  exp(shift) underflows, so does p in every sample, and it is missed in no sum.
- forward, shift = the largest log p of the first chunk, if that is above -60 for all its classes: whatever comes later
  stays in range. Else a second exponential is taken and the shift follows the largest log p so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from noisebench.nn._draws import Block, Draws

_LOWEST_SHIFT = -60.0
"""exp(60) times 3e12 samples is still a float32: no later sample can overflow a sum under a shift above this."""


def _logits(base: Tensor | None, low: Tensor | None, coefs: list[Tensor], noises: list[Tensor]) -> Tensor:
    """[b, K, s]: samples last, so that sums over classes and over samples are both fast for few and many classes."""
    parts = [part for part in (None if base is None else base[..., None], low) if part is not None]
    logits = sum(parts[1:], parts[0])
    for coef, noise in zip(coefs, noises, strict=True):
        logits = torch.addcmul(logits, coef[..., None], noise)
    return logits


def _weights(logits: Tensor, shift: Tensor, share: Tensor) -> Tensor:
    """softmax(logits) / share [b, K, s]; share = exp(shift) [b, K]."""
    raised = torch.exp(logits - logits.amax(1, keepdim=True) - shift[..., None])
    return raised * (raised * share[..., None]).sum(1, keepdim=True).reciprocal()


def _first_step(
    base: Tensor | None, low: Tensor | None, coefs: list[Tensor], noises: list[Tensor], shift: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Shift (the largest log-probability so far) and sum of exp(log p_s - shift), with these samples [b, K]."""
    logits = _logits(base, low, coefs, noises)
    logs = logits - torch.logsumexp(logits, 1, keepdim=True)
    raised = torch.maximum(shift, logs.amax(2))
    return raised, total * torch.exp(shift - raised) + torch.exp(logs - raised[..., None]).sum(2)


def _next_step(
    base: Tensor | None, low: Tensor | None, coefs: list[Tensor], noises: list[Tensor], shift: Tensor, total: Tensor
) -> Tensor:
    """The sum with these samples, under the shift as it is."""
    return total + _weights(_logits(base, low, coefs, noises), shift, shift.exp()).sum(2)


Found = tuple[Tensor, Tensor | None, list[Tensor]]
"""What `_backward_step` gives."""


def _backward_step(
    base: Tensor | None,
    low: Tensor | None,
    coefs: list[Tensor],
    noises: list[Tensor],
    shift: Tensor,
    grad: Tensor,
) -> Found:
    """G [b, K, s], its sum over samples (with a base), and the gradients of the coefficients [b, K]."""
    share = shift.exp()
    weights = _weights(_logits(base, low, coefs, noises), shift, share)
    a = (weights * grad[..., None]).sum(1, keepdim=True)
    g = weights * (grad[..., None] - share[..., None] * a)
    return g, None if base is None else g.sum(2), [(g * noise).sum(2) for noise in noises]


@cache
def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(step, dynamic=False)


def _plain(step: Callable[..., Any]) -> Callable[..., Any]:
    return step


class Direct:
    """Noise on the logits: u = loc + scale * e + factors z, or + gain * (factors z) with factors [K, R].

    Args:
        loc, scale: [B, K]; factors: [B, K, R], or [K, R] with gain [B, K], or None.
    """

    def __init__(self, loc: Tensor, scale: Tensor, factors: Tensor | None, gain: Tensor | None) -> None:
        self.rank = 0 if factors is None else factors.shape[-1]
        self.dim = self.num_classes = loc.shape[1]
        self.like = loc
        self._loc, self._scale, self._factors, self._gain = loc, scale, factors, gain
        # `full`: the mean is one more factor, whose draw is 1: one product makes both, and another both gradients.
        self._full = None if factors is None or gain is not None else torch.cat([factors, loc[..., None]], dim=-1)

    def shared(self, block: Block) -> Tensor | None:
        """What all examples need of a block: [z; 1] [R + 1, s] for `full`, factors z [K, s] for `pe`."""
        if self._full is not None:
            return torch.cat([block.low, torch.ones_like(block.low[:1])])
        return None if self._factors is None else self._factors @ block.low

    def parts(self, at: slice, block: Block, shared: Tensor | None) -> tuple[Any, ...]:
        """The arguments of `_logits`."""
        coefs, noises = [self._scale[at]], [block.diagonal]
        if self._full is not None and shared is not None:
            return None, self._full[at] @ shared, coefs, noises
        if self._gain is not None and shared is not None:
            return self._loc[at], None, [*coefs, self._gain[at]], [*noises, shared]
        return self._loc[at], None, coefs, noises

    def zeros(self) -> Any:
        """Where gradients are gathered: contiguous, which `zeros_like` is not for a transposed tensor."""
        inputs = (self._loc, self._scale, self._factors, self._gain)
        if self._full is None:
            return [None if x is None else x.new_zeros(x.shape) for x in inputs]
        # [B, R + 1, K]: the product that fills it is twice as fast in this order
        return [None, self._scale.new_zeros(self._scale.shape), self._full.new_zeros(self._full.mT.shape), None]

    def gather(self, grads: Any, at: slice, block: Block, found: Found, shared: Tensor | None) -> None:
        """Add a chunk's share."""
        g, summed, coefs = found
        d_loc, d_scale, d_factors, d_gain = grads
        d_scale[at] += coefs[0]
        if self._full is not None and shared is not None:
            d_factors[at].baddbmm_(shared.expand(len(g), -1, -1), g.mT)
            return
        d_loc[at] += summed
        if self._gain is not None:
            d_gain[at] += coefs[1]
            d_factors.addmm_(torch.einsum("bk,bks->ks", self._gain[at], g), block.low.T)

    def finished(self, grads: Any) -> list[Tensor | None]:
        """The gradients of the arguments, in their order."""
        d_loc, d_scale, d_factors, d_gain = grads
        if self._full is not None:
            d_loc, d_factors = (
                x.clone(memory_format=torch.contiguous_format) for x in (d_factors[:, -1], d_factors[:, :-1].mT)
            )
        return [d_loc, d_scale, d_factors, d_gain]


class Projected:
    """Noise on the features (HET-XL): u = weight (loc + scale * e + factors z) + bias.

    Args:
        noise: of the features, with D in place of K; weight: [K, D]; bias: [K].
    """

    def __init__(self, noise: Direct, weight: Tensor, bias: Tensor) -> None:
        self._noise, self._weight, self._bias, self.like = noise, weight, bias, noise.like
        self.rank, self.dim, self.num_classes = noise.rank, noise.dim, weight.shape[0]
        self._features: Tensor

    def shared(self, block: Block) -> Tensor | None:
        """As `Direct.shared`."""
        return self._noise.shared(block)

    def parts(self, at: slice, block: Block, shared: Tensor | None) -> tuple[Any, ...]:
        """The arguments of `_logits`."""
        self._features = _logits(*self._noise.parts(at, block, shared))
        base = self._bias.expand(len(self._features), -1)
        return base, self._weight @ self._features, [], []

    def zeros(self) -> Any:
        """Where gradients are gathered."""
        return [*self._noise.zeros(), *(x.new_zeros(x.shape) for x in (self._weight, self._bias))]

    def gather(self, grads: Any, at: slice, block: Block, found: Found, shared: Tensor | None) -> None:
        """Add a chunk's share; `parts` was just called for it."""
        g, summed, _ = found
        *noise, d_weight, d_bias = grads
        assert summed is not None
        d_bias += summed.sum(0)
        d_weight += torch.einsum("bks,bds->kd", g, self._features)
        back = self._weight.T @ g
        _, _, _, noises = self._noise.parts(at, block, shared)
        found = back, back.sum(2), [(back * n).sum(2) for n in noises]
        self._noise.gather(noise, at, block, found, shared)

    def finished(self, grads: Any) -> list[Tensor | None]:
        """The gradients of the arguments, in their order."""
        *noise, d_weight, d_bias = grads
        return [*self._noise.finished(noise), d_weight, d_bias]


Form = Direct | Projected


class Plan:
    """How a problem is cut: chunks of examples x samples x classes, of at most `budget` elements where one each fits.

    Args:
        form: the problem; draws: its samples, whose blocks are cut further, evenly.
        budget: elements in a chunk.
    """

    def __init__(self, form: Form, draws: Draws, budget: int) -> None:
        self._form, self._draws, self._batch = form, draws, len(form.like)
        together = max(1, self._batch) if draws.batch is None else 1
        rows = max(1, budget // max(form.num_classes, form.dim))
        self.samples = min(draws.block_size, _power_of_two(max(rows // together, min(rows, 64))))
        most = max(1, min(together, rows // self.samples))
        self.examples = next((n for n in range(most, most // 2, -1) if together % n == 0), most)

    def chunks(self) -> Iterator[tuple[slice, Block, Tensor | None, bool]]:
        """(examples, draws, what they share, whether these are a chunk's examples in full); a block is drawn once."""
        for block in self._draws:
            for first in range(0, block.diagonal.shape[1], self.samples):
                rows = slice(first, first + self.samples)
                low, diagonal = block.low[:, rows].contiguous(), block.diagonal[:, rows].contiguous()
                part = Block(block.start + first, block.example, low, diagonal)
                shared = self._form.shared(part)
                starts = range(0, self._batch, self.examples) if block.example is None else [block.example]
                for start in starts:
                    stop = min(self._batch, start + self.examples)
                    yield slice(start, stop), part, shared, stop - start == self.examples


def _power_of_two(n: int) -> int:
    return 1 << (n.bit_length() - 1)


def log_mean_softmax(form: Form, draws: Draws, budget: int, compiled: bool) -> Tensor:
    """log (1/S) sum_s softmax(u_s) [B, K]."""
    plan = Plan(form, draws, budget)
    total = form.like.new_zeros(len(form.like), form.num_classes)
    shift = torch.full_like(total, -math.inf)
    for at, block, shared, full in plan.chunks():
        parts = form.parts(at, block, shared)
        use = _compiled if compiled and full else _plain
        if block.start and bool((shift[at] > _LOWEST_SHIFT).all()):
            total[at] = use(_next_step)(*parts, shift[at], total[at])
        else:
            shift[at], total[at] = use(_first_step)(*parts, shift[at], total[at])
    return shift + total.log() - math.log(draws.num_samples)


def gradients(
    grad: Tensor, log_probs: Tensor, form: Form, draws: Draws, budget: int, compiled: bool
) -> list[Tensor | None]:
    """Gradients of the form's arguments for an upstream gradient [B, K] of the log-probabilities."""
    plan = Plan(form, draws, budget)
    shift = log_probs + math.log(draws.num_samples)
    grads = form.zeros()
    for at, block, shared, full in plan.chunks():
        step = (_compiled if compiled and full else _plain)(_backward_step)
        parts = form.parts(at, block, shared)
        found = step(*parts, shift[at], grad[at])
        form.gather(grads, at, block, found, shared)
    return form.finished(grads)
