"""Data parallel runs: what the processes that share every batch (`recipe.ranks`) tell each other.

Networks are not wrapped, since a loss may call them any number of times, or one of two only: gradients are averaged in
`Run.optimize`. All ranks do the same in the same order, and what is here all of them call together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import lightning_fabric
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisebench.config import Recipe
from noisebench.data import Loader
from noisebench.errors import TrainingFailed
from noisebench.method import Batch
from noisebench.seats import PATIENCE, Seat, make_fabric

T = TypeVar("T")

EVALUATION_BATCH = 512


class RankLost(Exception):
    """Another rank does not answer: it failed, and says why itself, or it died."""


def join(recipe: Recipe, accelerator: str, seat: Seat | None = None) -> Group:
    """Meet the other ranks; by default, and with one, there are none.

    Raises:
        UserError: see `make_fabric`. RankLost: they did not come.
    """
    seat = seat or Seat()
    fabric = make_fabric(recipe, accelerator, seat)
    if seat.ranks > 1:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it has a banner for each rank
        with _answered():
            if seat.meeting and not distributed.is_initialized():
                distributed.init_process_group(
                    "nccl" if fabric.device.type == "cuda" else "gloo",
                    init_method=f"file://{seat.meeting}",
                    rank=seat.rank,
                    world_size=seat.ranks,
                    timeout=PATIENCE,
                )
            fabric.launch()
    return Group(fabric, seat.rank, seat.ranks)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = str(error).encode("ascii", "ignore").decode().splitlines()[:1]
        raise RankLost(" ".join(["another rank does not answer:", *said])[:200]) from error


class Group:
    """The ranks of a run. Of one rank every call gives back what it was given.

    Attributes:
        fabric: device, precision and backward.
        rank: of this process; ranks: how many there are.
    """

    def __init__(self, fabric: lightning_fabric.Fabric, rank: int = 0, ranks: int = 1) -> None:
        self.fabric, self.rank, self.ranks = fabric, rank, ranks

    def same(self, value: T) -> T:
        """The first rank's value, on all; plain data."""
        if self.ranks == 1:
            return value
        told = [value]
        with _answered():
            distributed.broadcast_object_list(told, 0)
        return told[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank goes through the block, then the others."""
        if self.rank > 0:
            self.same(None)
        yield
        if self.rank == 0:
            self.same(None)

    def all(self, value: T) -> list[T]:
        """The values of all ranks, in their order; plain data."""
        found = [value] * self.ranks
        if self.ranks > 1:
            with _answered():
                distributed.all_gather_object(found, value)
        return found

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place, the same bits on each."""
        if self.ranks > 1:
            with _answered():
                distributed.all_reduce(tensor)
        return tensor

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """The first rank's values into the tensors of all."""
        if self.ranks > 1:
            with _answered(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    distributed.broadcast(whole.view(-1).view(torch.uint8), 0)  # as no backend takes every type
                    tensor.copy_(whole)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks, without gradient; n may differ between them.

        In the order of the whole batch, where each rank gives one for each sample of its share; else rank by rank.
        """
        rows = rows.detach()
        return rows if self.ranks == 1 else self.gather_each([rows])[0]

    def gather_each(self, several: Sequence[Tensor]) -> list[Tensor]:
        """`gather` of tensors that have as many rows each."""
        sizes = self._parts(torch.tensor([len(several[0])]), [1] * self.ranks)
        counts = [int(size) for size in sizes]
        return [self._in_order(self._parts(rows, counts)).to(rows.device) for rows in several]

    def _parts(self, rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The rows of each rank, which has so many."""
        rows = rows.to(self.fabric.device)
        shape, most = rows.shape[1:], max(sizes)
        sent = rows.new_zeros(most, max(1, shape.numel()))
        sent[: len(rows)] = rows.reshape(len(rows), -1) if rows.numel() else 0
        found = torch.empty(self.ranks * sent.numel() * sent.element_size(), dtype=torch.uint8, device=sent.device)
        with _answered():
            distributed.all_gather_into_tensor(found, sent.flatten().view(torch.uint8))
        whole = found.view(rows.dtype).view(self.ranks, most, sent.shape[1])
        return [part[:size, : shape.numel()].reshape(size, *shape) for part, size in zip(whole, sizes, strict=True)]

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        count = sum(map(len, parts))
        if [len(part) for part in parts] != [len(range(rank, count, self.ranks)) for rank in range(self.ranks)]:
            return torch.cat(list(parts))
        whole = parts[0].new_empty(count, *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            whole[rank :: self.ranks] = part
        return whole

    def over(
        self, loader: Loader, fn: Callable[[Batch], Tensor], indices: Tensor | None = None, augment: int | None = None
    ) -> Tensor:
        """`fn` over the samples of a loader in their order, each sample on one rank: [n, ...] on all.

        Args:
            fn: batch -> [B, ...].
            indices: as of `Loader.batches`.
            augment: seed of the augmentation; without one there is none.
        """
        alone = self.ranks == 1 or (len(loader) if indices is None else len(indices)) < self.ranks
        batches = loader.batches(
            indices,
            augment=augment is not None,
            shuffle=False,
            # A multiple of the ranks: the shares of all batches together are those of one long batch.
            batch_size=max(1, EVALUATION_BATCH // self.ranks) * self.ranks,
            order_seed=0,
            augment_seed=augment or 0,
            rank=0 if alone else self.rank,
            ranks=1 if alone else self.ranks,
        )
        rows = torch.cat([fn(batch) for batch in batches])
        return rows if alone else self.gather(rows)

    def mean_losses(self, losses: Tensor, shares: Sequence[int]) -> Tensor:
        """Mean losses [n] of shares of so many samples as those of the whole batches."""
        if self.ranks == 1:
            return losses
        weights = losses.new_tensor(shares)
        both = self.add(torch.stack([losses * weights, weights]))
        return both[0] / both[1]

    def means(self, named: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean of each of some values [n], over all ranks that have it."""
        if self.ranks == 1:
            return {name: float(values.mean()) for name, values in named.items()}
        found = self.all({name: (float(values.double().sum()), len(values)) for name, values in named.items()})
        means = {}
        for name in dict.fromkeys(name for part in found for name in part):
            totals, counts = zip(*(part[name] for part in found if name in part), strict=True)
            means[name] = sum(totals) / sum(counts)
        return means

    def average_norms(self, module: nn.Module) -> None:
        """Average what BatchNorm layers keep of the shares that each rank saw."""
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if self.ranks > 1 else []
        kept = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        if kept:
            mean = self.add(torch.cat([b.flatten() for b in kept])) / self.ranks
            for buffer, part in zip(kept, torch.split(mean, [b.numel() for b in kept]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def check_same(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a state that is not the same on all ranks, bit for bit.

        Raises:
            TrainingFailed: with the first name that is not.
        """
        if self.ranks == 1:
            return
        sums = torch.stack([_checksum(value).to(self.fabric.device) for value in state.values()])
        parts = torch.stack(self._parts(sums[None], [1] * self.ranks))
        differs = (parts != parts[0]).flatten(0, 1).any(dim=0).tolist()
        for name, apart in zip(state, differs, strict=True):
            if apart:
                raise TrainingFailed(
                    f"'{name}' is not the same on all ranks: a method must update it from what run.gather gives, or "
                    "from what all ranks share"
                )


def _checksum(value: Tensor) -> Tensor:
    """Of the bits of a tensor and where they stand, int64: counts of equal sum, or rows that are swapped, differ."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if value.is_complex():
        value = torch.view_as_real(value)
    found = torch.zeros((), dtype=torch.int64, device=value.device)
    factors = _factors(value.device)
    for part in torch.split(value.detach().flatten().view(kinds[value.element_size()]), len(factors)):
        found = found * 6364136223846793005 + (part * factors[: len(part)]).sum()
    return found


@cache
def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (2**18,), generator=generator).to(device)


class GradientAverage:
    """Gradients of all ranks as one all-reduce: of the mean loss over the whole batch, whatever share each rank had."""

    def __init__(self, group: Group, parameters: Sequence[Tensor]) -> None:
        self._group, self._parameters = group, list(parameters)
        self._flat: Tensor | None = None
        self._views: list[Tensor] = []

    def __call__(self, samples: int, step: int) -> None:
        """Average them, each rank's weighted with its samples; of a parameter without one on any rank there is none.

        Raises:
            TrainingFailed: another rank is at another step. Told on the CPU alone: reading from a GPU makes it wait.
        """
        if self._group.ranks == 1:
            return
        flat = self._buffer() if self._flat is None else self._flat
        count = len(self._parameters)
        grads = [parameter.grad for parameter in self._parameters]
        given = [(view, grad) for view, grad in zip(self._views, grads, strict=True) if grad is not None]
        if len(given) < count:
            flat.zero_()
        torch._foreach_copy_([view for view, _ in given], [grad for _, grad in given])
        flat[-2 - count :] = torch.tensor([*(float(grad is not None) for grad in grads), step % 4096, 1.0])
        self._group.add(flat.mul_(samples))
        flat[:-1].div_(flat[-1].clone())
        if flat.device.type == "cpu" and abs(float(flat[-2]) - step % 4096) > 0.01:
            raise TrainingFailed(
                f"the ranks call run.optimize at other steps (step {step + 1} here): decide alike on all, from "
                "run.generator or run.gather, or give a loss of 0 where there is nothing to learn"
            )
        # Only where one is missing here must the others be asked, for the same reason.
        there = [True] * count if len(given) == count else (flat[-2 - count : -2] > 0).tolist()
        for parameter, view, known in zip(self._parameters, self._views, there, strict=True):
            parameter.grad = view.to(parameter.dtype) if known else None

    def _buffer(self) -> Tensor:
        """One tensor with the gradients, in the order that memory has, a flag for each, the step and the samples."""
        kind = torch.float32
        for parameter in self._parameters:
            kind = torch.promote_types(kind, parameter.dtype)
        sizes = [parameter.numel() for parameter in self._parameters]
        self._flat = torch.zeros(sum(sizes) + len(sizes) + 2, dtype=kind, device=self._group.fabric.device)
        parts = torch.split(self._flat, [*sizes, len(sizes), 1, 1])
        for parameter, part in zip(self._parameters, parts, strict=False):
            self._views.append(part.as_strided(parameter.shape, torch.empty_like(parameter).stride()))
        return self._flat


class SampleState:
    """Buffers with a row for each training sample, e.g. targets: every rank gets the rows that the others wrote."""

    def __init__(self, group: Group, method: nn.Module, samples: int) -> None:
        kept = method.named_buffers() if group.ranks > 1 else ()
        self._group, self._method = group, method
        self._names = [name for name, buffer in kept if buffer.ndim and len(buffer) == samples]

    def share(self, index: Tensor) -> None:
        """Take over the rows of the whole batch, of which this rank had those at `index`."""
        if not self._names:
            return
        buffers = [self._method.get_buffer(name) for name in self._names]
        where, *rows = self._group.gather_each([index, *(buffer[index.to(buffer.device)] for buffer in buffers)])
        for buffer, new in zip(buffers, rows, strict=True):
            buffer[where.to(buffer.device)] = new
