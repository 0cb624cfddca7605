"""Standard normal draws for the Monte-Carlo head, the same again from the same seed, never all in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from noisebench.errors import UserError

Sampling = Literal["plain", "antithetic", "sobol"]

SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM
"""As many as there are direction numbers for (Joe and Kuo 2008): 21,201."""

_BLOCK = 2**16
"""Normals drawn in one call, about. Part of what a seed means: another value gives other draws."""


class Block(NamedTuple):
    """The draws of some samples, for one example or for all, from `start` on: `low` [R, s], `diagonal` [D, s]."""

    start: int
    example: int | None
    low: Tensor
    diagonal: Tensor


class Draws:
    """`num_samples` draws of `rank + dim` independent standard normals, in blocks that depend on nothing else.

    Args:
        seed: of all draws.
        num_samples: S; even for antithetic pairs.
        rank: R, columns of the low-rank part; first, since the first dimensions of a Sobol sequence are its best.
        dim: D, columns of the diagonal part.
        batch: B for draws of each example's own, or None for draws that all share.
        sampling: "plain"; "antithetic", each draw with its negative; "sobol", a scrambled Sobol sequence, for each
            example shifted modulo one by a vector of its own (Cranley and Patterson 1976).

    Raises:
        UserError: an odd number of antithetic samples, or more dimensions than Sobol sequences have.
    """

    def __init__(
        self,
        seed: int,
        num_samples: int,
        rank: int,
        dim: int,
        *,
        batch: int | None = None,
        sampling: Sampling = "plain",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sampling(sampling, num_samples, rank + dim)
        self.num_samples, self.batch = num_samples, batch
        self._seed, self._rank, self._columns = seed, rank, rank + dim
        self._sampling, self._dtype, self._device = sampling, dtype, torch.device(device)
        self.block_size = max(16, 1 << (_BLOCK // self._columns | 1).bit_length() - 1)
        """Samples in a block, but for the last: a power of two."""

    def __iter__(self) -> Iterator[Block]:
        """Blocks of samples in order, for one example after the other where each has its own."""
        generator = torch.Generator(self._device).manual_seed(self._seed)
        examples: list[int | None] = [None] if self.batch is None else list(range(self.batch))
        engine = shifts = None
        if self._sampling == "sobol":
            engine = torch.quasirandom.SobolEngine(self._columns, scramble=True, seed=self._seed)  # type: ignore[no-untyped-call]
            if self.batch is not None:
                shape = (self.batch, self._columns)
                shifts = torch.rand(shape, generator=generator, device=self._device, dtype=torch.float64)
        for start in range(0, self.num_samples, self.block_size):
            size = min(self.block_size, self.num_samples - start)
            points = None if engine is None else engine.draw(size, dtype=torch.float64).to(self._device)
            for example in examples:
                if points is None:
                    normals = self._normals(size, generator)
                else:
                    u = points if shifts is None else (points + shifts[example]) % 1
                    # Points are multiples of 2^-30: neither 0 nor 1 may reach the quantile function.
                    normals = torch.special.ndtri(u.clamp(2.0**-32, 1 - 2.0**-32)).to(self._dtype).T
                yield Block(start, example, normals[: self._rank], normals[self._rank :])

    def _normals(self, size: int, generator: torch.Generator) -> Tensor:
        pairs = self._sampling == "antithetic"
        shape = (self._columns, size // 2 if pairs else size)
        drawn = torch.randn(shape, generator=generator, device=self._device, dtype=self._dtype)
        return torch.cat([drawn, -drawn], dim=1) if pairs else drawn

    def materialised(self) -> tuple[Tensor, Tensor]:
        """All of them: low [1 or B, S, R] and diagonal [1 or B, S, D]; for tests and small problems."""
        parts = list(self)
        rows = [[p for p in parts if p.example == i] for i in ([None] if self.batch is None else range(self.batch))]
        low = torch.stack([torch.cat([part.low for part in row], dim=1).T for row in rows])
        return low, torch.stack([torch.cat([part.diagonal for part in row], dim=1).T for row in rows])


def check_sampling(sampling: str, num_samples: int, columns: int, name: str = "num_samples") -> None:
    """Refuse a way of sampling that does not exist or does not fit.

    Raises:
        UserError: one line.
    """
    if sampling not in ("plain", "antithetic", "sobol"):
        raise UserError(f"sampling: {sampling!r}; give 'plain', 'antithetic' or 'sobol'")
    if sampling == "antithetic" and num_samples % 2:
        raise UserError(f"{name}: {num_samples}; antithetic draws come in pairs, give an even number")
    if sampling == "sobol" and columns > SOBOL_DIMENSIONS:
        raise UserError(
            f"sampling: 'sobol' has {SOBOL_DIMENSIONS:,} dimensions, and classes + rank are {columns:,}; "
            "use 'plain' or 'antithetic'"
        )
