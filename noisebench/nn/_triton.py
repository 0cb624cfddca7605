"""The Triton kernels as two functions of tensors: what is launched, in which blocks, and how parts are put together."""

# mypy: disable-error-code="no-untyped-call,import-untyped,import-not-found"
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
except ImportError:  # torch comes without Triton on some platforms
    triton = None

from noisebench.nn._triton_kernels import _DIAG, _FULL, _PE, _average, _draws, _gradients, _rows

_LOG2E = 1 / math.log(2)


class _Blocks(NamedTuple):
    """The examples and samples (a multiple of 4) of a tile; it has 32 classes, one for each thread."""

    examples: int
    samples: int


_CLASSES = 32
# As large as a thread's 255 registers allow (read from the machine code for sm_90): a normal then serves more examples,
# and a factor more samples. Constants, not tuned at run time: the order of the sums depends on them.
_BLOCKS = {
    ("rows", _DIAG): _Blocks(8, 4), ("rows", _FULL): _Blocks(4, 8), ("rows", _PE): _Blocks(8, 8),
    ("average", _DIAG): _Blocks(16, 4), ("average", _FULL): _Blocks(8, 8), ("average", _PE): _Blocks(8, 8),
    ("gradients", _DIAG): _Blocks(8, 4), ("gradients", _FULL): _Blocks(4, 8), ("gradients", _PE): _Blocks(4, 8),
}  # fmt: skip


def _power_of_two(x: int) -> int:
    return 1 << max(x - 1, 0).bit_length()


def _parts(programs: int, length: int, block: int) -> tuple[int, int]:
    """(parts to cut a program's loop of `length` into, so that a GPU's worth of programs runs, length of each)."""
    wanted = max(1, min(16, 4096 // programs))
    each = triton.cdiv(triton.cdiv(length, wanted), block) * block
    return triton.cdiv(length, each), each


class _Problem:
    """One call's inputs in units of log 2, as the kernels want them, and how to launch."""

    def __init__(self, loc: Tensor, scale: Tensor, factors: Tensor | None, gain: Tensor | None, seed: Tensor,
                 num_samples: int, per_example: bool, antithetic: bool) -> None:  # fmt: skip
        self.batch, self.num_classes = loc.shape
        self.num_samples = num_samples
        self.kind = _DIAG if factors is None else _FULL if gain is None else _PE
        self.rank = 0 if factors is None else factors.shape[-1]
        self.per_example = per_example
        self.flags = {"KIND": self.kind, "PER_EXAMPLE": per_example, "ANTITHETIC": antithetic}
        # A warp a program: none waits for another. Fused multiply-adds named, for Triton's default is to change.
        self.options = {"num_warps": 1, "enable_fp_fusion": True}
        padded = triton.cdiv(num_samples, 16) * 16
        z = None
        if factors is not None:  # classes innermost, for neighbouring threads to read neighbouring numbers
            factors = factors.transpose(-1, -2).contiguous()
            z = loc.new_empty(self.batch if per_example else 1, self.rank, padded)
            _draw(z.transpose(1, 2), seed, per_example, antithetic)
            factors = factors * _LOG2E if gain is None else factors
        gain = None if gain is None else gain * _LOG2E
        # Less the largest, in natural units: large numbers are taken from each other before anything rounds them.
        self.loc = loc - loc.amax(1, keepdim=True)
        self.seed, self.tensors = seed, (scale * _LOG2E, factors, gain, z)
        self.sizes = (self.batch, self.num_classes, self.rank, num_samples, padded)

    def blocks(self, kernel: str) -> _Blocks:
        block = _BLOCKS[kernel, self.kind]
        examples = 1 if self.per_example else min(block.examples, _power_of_two(self.batch))
        if kernel == "gradients" and self.kind == _FULL:  # it keeps sums [R, examples * classes] in registers
            examples = min(examples, max(1, 64 // _power_of_two(self.rank)))
        return _Blocks(examples, block.samples)

    def rows(self, loc: Tensor, grad: Tensor | None = None, lse: Tensor | None = None) -> Tensor:
        """lse [B, S] of `loc`, both in units of log 2; with the gradient of log p, a [B, S]."""
        block = self.blocks("rows")
        samples, examples = triton.cdiv(self.num_samples, block.samples), triton.cdiv(self.batch, block.examples)
        parts, each = _parts(samples * examples, self.num_classes, _CLASSES)
        out = loc.new_empty(parts, self.batch, self.num_samples)
        _rows[(samples, examples, parts)](
            out, self.seed, loc, *self.tensors, grad, lse, *self.sizes, each, BACKWARD=grad is not None,
            BB=block.examples, BK=_CLASSES, BS=block.samples, **self.flags, **self.options,
        )  # fmt: skip
        return out.sum(0) if grad is not None else (out / _LOG2E).logsumexp(0) * _LOG2E

    def columns(self, block: _Blocks, most_examples: int) -> tuple[tuple[int, int, int], int]:
        """(programs by classes, by blocks of examples and by parts of the samples; samples of a part)."""
        classes = triton.cdiv(self.num_classes, _CLASSES)
        examples = min(triton.cdiv(self.batch, block.examples), most_examples)
        parts, each = _parts(classes * examples, self.num_samples, block.samples)
        return (classes, examples, parts), each


def available(device: torch.device) -> bool:
    """Whether the kernels run on `device`: Triton is there, and it is a GPU or Triton's interpreter is on."""
    return triton is not None and (device.type == "cuda" or not isinstance(_rows, triton.JITFunction))


def forward(
    loc: Tensor, scale: Tensor, factors: Tensor | None, gain: Tensor | None, seed: Tensor, num_samples: int,
    *, per_example: bool = False, antithetic: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log p [B, K], and for `backward` log-normalisers [B, S] (in units of log 2, of logits less the largest loc).

    Args:
        loc: float32 [B, K], contiguous like all others, and already divided by the temperature like all others.
        scale: [B, K].
        factors: None (diag), [B, K, R] (full), or [K, R] with `gain` (pe).
        gain: [B, K] for pe, else None.
        seed: int64, no dimension, on the same device: the kernels load it themselves, and nothing waits for the device.
        num_samples: S.
        per_example: every example has draws of its own, at several times the cost; else the whole batch shares S draws.
        antithetic: sample 2i + 1 is the negative of sample 2i; S is even.
    """
    problem = _Problem(loc, scale, factors, gain, seed, num_samples, per_example, antithetic)
    lse = problem.rows(problem.loc * _LOG2E)
    block = problem.blocks("average")
    grid, each = problem.columns(block, problem.batch)
    out = loc.new_empty(grid[2], *loc.shape)
    zero = torch.zeros_like(loc)  # loc is the same for all samples: added last, it does not cost the sum its digits
    _average[grid](out, seed, zero, *problem.tensors, lse, *problem.sizes, each, BB=block.examples, BK=_CLASSES,
                   BS=block.samples, **problem.flags, **problem.options)  # fmt: skip
    return problem.loc + ((out / _LOG2E).logsumexp(0) - math.log(num_samples)), lse


def backward(
    grad: Tensor, log_probs: Tensor, lse: Tensor, loc: Tensor, scale: Tensor, factors: Tensor | None,
    gain: Tensor | None, seed: Tensor, num_samples: int, *, per_example: bool = False, antithetic: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of loc, scale, factors and gain (None where there is none) from `grad`, that of log p [B, K].

    `log_probs` and `lse` are what `forward` returned, the rest what it was given.
    """
    problem = _Problem(loc, scale, factors, gain, seed, num_samples, per_example, antithetic)
    grad = grad.contiguous()
    weight = (log_probs + math.log(num_samples)).exp()
    # loc and log p are large together where p is tiny: their difference is exact.
    loc = (problem.loc - log_probs - math.log(num_samples)) * _LOG2E
    row_sums = problem.rows(loc, grad, lse)
    block = problem.blocks("gradients")
    # For pe a program sums V's gradient over many examples: few partial sums [R, K] are stored.
    grid, each = problem.columns(block, 4 if problem.kind == _PE else problem.batch)
    d_loc, d_scale = loc.new_empty(2, grid[2], *loc.shape)
    d_gain = None if gain is None else torch.empty_like(d_loc)
    d_factors = None
    if factors is not None:
        d_factors = loc.new_empty(grid[2], grid[1] if gain is not None else problem.batch, problem.rank, loc.shape[1])
    _gradients[grid](
        d_loc, d_scale, d_factors, d_gain, seed, loc, *problem.tensors, grad, weight, lse, row_sums,
        *problem.sizes, each, RP=max(4, _power_of_two(problem.rank)), BB=block.examples, BK=_CLASSES, BS=block.samples,
        **problem.flags, **problem.options,
    )  # fmt: skip
    if d_factors is not None:
        d_factors = (
            d_factors.sum((0, 1)) / _LOG2E if gain is not None else d_factors.sum(0)
        )  # by gain in units of log 2
        d_factors = d_factors.transpose(-1, -2).contiguous()
    return d_loc.sum(0), d_scale.sum(0), d_factors, None if d_gain is None else d_gain.sum(0)


def _draw(out: Tensor, seed: Tensor, per_example: bool, antithetic: bool) -> None:
    """Fill out [1 or B, S, columns], of any strides."""
    examples, num_samples, columns = out.shape
    grid = (triton.cdiv(num_samples, 32), triton.cdiv(columns, 32), examples)
    _draws[grid](out, seed, num_samples, columns, out.stride(1), out.stride(2), out.stride(0), PER_EXAMPLE=per_example,
                 ANTITHETIC=antithetic, BK=32, BS=32, num_warps=4, enable_fp_fusion=True)  # fmt: skip


def draws(
    seed: Tensor, num_samples: int, num_classes: int, rank: int, batch: int,
    *, per_example: bool = False, antithetic: bool = False, device: torch.device,
) -> Tensor:  # fmt: skip
    """The draws that the kernels make, float32 [1 or batch, S, R + K], low-rank columns first: for tests.

    Column c of samples 4j, ..., 4j + 3 of example b is Philox-4x32-10 of the counter (c, j, b or 0 if shared, 0) under
    the 64-bit seed, through Box-Muller. The first S draws of more are the draws of S.
    """
    out = torch.empty(batch if per_example else 1, num_samples, rank + num_classes, device=device)
    _draw(out, seed, per_example, antithetic)
    return out
