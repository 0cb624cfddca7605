"""`Run`, what a method sees of its training, and the only training loop."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from noisebench.config import Recipe, Schedule
from noisebench.data import Loader
from noisebench.errors import TrainingFailed, UserError
from noisebench.evaluation import Evaluator
from noisebench.method import Batch, Epochs, Method, epochs_from
from noisebench.ranks import GradientAverage, Group, SampleState
from noisebench.streams import stream


def learning_rate_factor(schedule: Schedule, epoch: int, epochs: int) -> float:
    """What the base rate is multiplied with in an epoch (0-based).

    Warm-up is linear and reaches 1 in the epoch after it; cosine runs from the end of the warm-up and would be 0 one
    epoch after the last; a milestone m takes effect in epoch m, the (m+1)-th.
    """
    warmup = epochs_from(schedule.warmup, epochs)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    if schedule.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
    if schedule.kind == "multistep":
        passed = sum(epoch >= epochs_from(m, epochs) for m in schedule.milestones)
        return float(schedule.gamma**passed)
    return 1.0


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random states that `Run.begin_epoch` sets, as plain data and tensors on the CPU."""
    legacy: Any = np.random.get_state()  # noqa: NPY002
    kind, key, *rest = legacy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, key.tolist(), *rest),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002


class Run:
    """One training run, as its method sees it.

    Attributes:
        epoch: the current epoch, 0-based; epochs: how many there are.
        step: updates since the start of the run.
        ranks: processes that share every batch, see `noisebench.method`.
        device: where batches live.
        generator: random numbers on the device for the method's own draws; set anew every epoch, alike on all ranks.
        group: the ranks; a method has `gather`.
    """

    def __init__(self, method: Method, recipe: Recipe, loader: Loader, seed: int, group: Group) -> None:
        """Make the optimiser over the method's parameter groups; the method is built and on the device."""
        self.epochs = recipe.epochs
        self.epoch = 0
        self.step = 0
        self.ranks, self.group = group.ranks, group
        self.device = group.fabric.device
        self.generator = torch.Generator(device=self.device)
        self._method = method
        self._recipe = recipe
        self._loader = loader
        self._seed = seed
        self._fabric = group.fabric
        self._calls = 0
        self._share = 1  # of the batch that a step is for, how many samples are here; outside steps all count alike
        self._shares: list[int] = []
        self._losses: list[tuple[int, Tensor]] = []
        self._logged: dict[str, list[Tensor]] = {}
        self._make_optimizer()
        self._average = GradientAverage(group, self._parameters)
        self._state_per_sample = SampleState(group, method, len(loader))
        group.copy_first(list(method.state_dict().values()))

    # ------------------------------------------------------------------------------- what methods call

    def loader(
        self,
        indices: Tensor | None = None,
        views: int = 1,
        augment: bool = True,
        shuffle: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of the training set; of several ranks each has its share of every batch.

        Args:
            indices: positions to draw from, int64 [n]; all by default.
            views: independent augmentations of each image; x is [views, B, C, H, W] if more than one.
            augment: crop and flip as the recipe says; else only normalised.
            shuffle: new order at every call, ragged tail dropped; else in order, tail kept.
            batch_size: the recipe's by default.
        """
        call = self._calls
        self._calls += 1
        return self._batches(call, indices, views=views, augment=augment, shuffle=shuffle, batch_size=batch_size)

    def per_sample(self, fn: Callable[[Batch], Tensor], augment: bool = False) -> Tensor:
        """`fn` over the whole training set in order, in eval mode and without gradient: [N, ...].

        Args:
            fn: batch -> [B, ...].
            augment: with the training augmentation (Arazo et al. do so).
        """
        was_training = self._method.training
        self._method.eval()
        # Its own stream: a pass over the set shifts neither the order nor the augmentation of training.
        seed = stream(self._seed, "per_sample", self.epoch) if augment else None
        try:
            with torch.no_grad(), self.autocast():
                self.group.average_norms(self._method)
                return self.group.over(self._loader, fn, augment=seed)
        finally:
            self._method.train(was_training)

    def optimize(self, loss: Tensor) -> None:
        """One step of the optimiser down the gradient of `loss`, a scalar."""
        if loss.ndim:
            raise TrainingFailed(f"the loss must be a scalar, not of shape {tuple(loss.shape)}")
        self.optimizer.zero_grad(set_to_none=True)
        # Each operation goes back in the precision in which it came. Inside the region of autocast, what a method did
        # in float32 would have its gradient in bfloat16.
        with torch.autocast(self.device.type, enabled=False):
            self._fabric.backward(loss)
        self._average(self._share, self.step)
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip_norm)
        self.optimizer.step()
        torch.clear_autocast_cache()  # autocast keeps its casts of the weights, which are old ones now
        self._losses.append((self.step + 1, loss.detach()))
        self._shares.append(self._share)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all ranks, without gradient: in the whole batch's order, if there is one a sample.

        All ranks must call it, with n as each has it: a sample more on the first ones, or as many, is a batch's share,
        and other numbers are put rank by rank. Of one rank it gives back what it is given.
        """
        return self.group.gather(rows)

    def reset_optimizer(self, module: nn.Module | None = None) -> None:
        """Forget the optimiser's state (momentum), of `module`'s parameters or of all; the rate stays as it is."""
        for parameter in self._parameters if module is None else module.parameters():
            self.optimizer.state.pop(parameter, None)

    def epochs_from(self, value: Epochs) -> int:
        """A setting as a number of epochs: an int as it is, a float as a share of this run."""
        return epochs_from(value, self.epochs)

    def log(self, **values: float | Tensor) -> None:
        """Numbers for the record; the mean over the epoch is stored as ``train.<name>``."""
        for name, value in values.items():
            # A copy: of a buffer that changes in place, every step's value would be the last one.
            value = value.detach().clone() if isinstance(value, Tensor) else torch.as_tensor(value)
            self._logged.setdefault(name, []).append(value)

    # ------------------------------------------------------------------------------- what the loop calls

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The recipe's precision."""
        with self._fabric.autocast():
            yield

    def begin_epoch(self, epoch: int) -> None:
        """Set the rate and every random stream of an epoch; all follow from the seed and the epoch alone."""
        self.epoch = epoch
        self._calls = 0
        self._losses, self._shares, self._logged = [], [], {}
        factor = learning_rate_factor(self._recipe.schedule, epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self._recipe.lr * factor * group["lr_scale"]
        self.generator.manual_seed(stream(self._seed, "method", epoch))
        own = ("rank", self.group.rank) if self.group.rank else ()  # or all shares would have the same dropout
        shared = stream(self._seed, "global", epoch, *own)  # for plug-ins that draw from the global generators
        torch.manual_seed(shared)
        random.seed(shared)
        np.random.seed(shared % 2**32)  # noqa: NPY002

    def take_share(self, batch: Batch) -> None:
        """A step follows, for this rank's share of a batch."""
        self._share = len(batch.index)

    def share_state(self, batch: Batch) -> None:
        """A step is done: what it wrote for its samples, the other ranks get."""
        self._share = 1
        self._state_per_sample.share(batch.index)

    def meet(self) -> None:
        """Between two epochs all ranks have the same state.

        Raises:
            TrainingFailed: they have not.
        """
        self.group.average_norms(self._method)
        try:
            self.group.check_same(self._method.state_dict())
        except TrainingFailed as error:
            raise TrainingFailed(f"after epoch {self.epoch + 1}: {error}") from None

    def resume_epoch(self, epoch: int, batch: int, state: dict[str, Any]) -> Iterator[Batch]:
        """Take an epoch up after so many of its batches, from `state_dict(within=True)`: the batches that are left.

        For the default `Method.epoch` alone, whose batches are those of the epoch's first call of `loader`.
        """
        self.begin_epoch(epoch)
        self.load_state_dict(state)
        within = state["within"]
        set_random_state(within["random"], self.device)
        self.generator.set_state(within["generator"])
        self._calls = within["calls"]
        self._losses = list(zip(within["steps"], within["losses"].to(self.device), strict=True))
        # Each to where it was: a mean has other bits elsewhere, and what is logged from now on must be beside it.
        there = {"cpu": torch.device("cpu"), self.device.type: self.device}
        self._logged = {name: list(values.to(there[kind])) for name, (kind, values) in within["logged"].items()}
        return self._batches(0, start=batch)

    def end_epoch(self) -> dict[str, float]:
        """Mean loss and logged values of the epoch.

        Raises:
            TrainingFailed: a loss was NaN or infinite; with epoch and step.
        """
        record = {}
        if self._losses:
            losses = self.group.mean_losses(torch.stack([loss.float() for _, loss in self._losses]), self._shares)
            bad = (~losses.isfinite()).nonzero()
            if len(bad):
                step, loss = self._losses[int(bad[0])][0], float(losses[int(bad[0])])
                raise TrainingFailed(f"the loss became {loss} in epoch {self.epoch + 1}, step {step}")
            record["train.loss"] = float(losses.mean())
        logged = {name: torch.stack([v.float() for v in values]) for name, values in self._logged.items()}
        record |= {f"train.{name}": mean for name, mean in self.group.means(logged).items()}
        record["train.lr"] = self.optimizer.param_groups[0]["lr"]
        return record

    def state_dict(self, within: bool = False) -> dict[str, Any]:
        """All that a resumed run needs beside the method's own state; `within`: in the middle of an epoch."""
        state = {"device": self.device.type, "step": self.step, "optimizer": self.optimizer.state_dict()}
        return state | {"within": self._state_within()} if within else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])

    def _state_within(self) -> dict[str, Any]:
        """What lives for an epoch: random states, losses and logged values; on the CPU."""
        losses = [loss.float() for _, loss in self._losses]
        logged = {name: torch.stack([v.float() for v in values]) for name, values in self._logged.items()}
        return {
            "random": random_state(self.device),
            "generator": self.generator.get_state(),
            "calls": self._calls,
            "steps": [step for step, _ in self._losses],
            "losses": (torch.stack(losses) if losses else torch.empty(0)).cpu(),
            "logged": {name: (values.device.type, values.cpu()) for name, values in logged.items()},
        }

    def _batches(
        self, call: int, indices: Tensor | None = None, *, batch_size: int | None = None, **options: Any
    ) -> Iterator[Batch]:
        """The batches of the epoch's `call`-th call of `loader`; `options` as of `Loader.batches`."""
        size = batch_size or self._recipe.batch_size
        seed = stream(self._seed, "augment", self.epoch, call)
        given = {
            "order_seed": stream(self._seed, "order", self.epoch, call),
            "rank": self.group.rank,
            "ranks": self.ranks,
            **options,
        }
        count = len(self._loader) if indices is None else len(indices)
        if count and count < self.ranks:
            raise UserError(f"run.loader: a batch of {count} samples has none for some of {self.ranks} ranks")
        tail = 0 if given.get("shuffle", True) or count <= size else count % size
        if not 0 < tail < self.ranks:
            return self._loader.batches(indices, batch_size=size, augment_seed=seed, **given)
        # A tail without a sample for each rank goes with the batch before it: all ranks must have as many batches.
        order = torch.arange(count) if indices is None else indices
        whole = self._loader.batches(order[: -size - tail], batch_size=size, augment_seed=seed, **given)
        last = stream(seed, "tail")
        return itertools.chain(
            whole, self._loader.batches(order[-size - tail :], batch_size=size + tail, augment_seed=last, **given)
        )

    def _make_optimizer(self) -> None:
        recipe = self._recipe
        groups = []
        for given in self._method.param_groups():
            group = {"lr_scale": 1.0, **given, "lr": recipe.lr}
            group.setdefault("weight_decay", recipe.weight_decay)
            groups.append(group)
        self._parameters = [p for group in groups for p in group["params"]]
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
        else:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
            self.optimizer = kind(groups, lr=recipe.lr)


class Journal(Protocol):
    """Where a run's record goes."""

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a finished epoch (1-based)."""

    def due(self) -> bool:
        """Whether to offer the state now, within an epoch; asked after every batch, where that is possible."""

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        """Offer the state after an epoch, or within one (it has "batch"); the journal decides whether to store it."""


def train_epoch(
    run: Run, method: Method, epoch: int, journal: Journal | None = None, state: dict[str, Any] | None = None
) -> dict[str, float]:
    """One epoch (0-based) of training alone; its mean loss and what the method logged.

    Args:
        journal: gets the state within the epoch when it is due, if the method keeps the default `epoch`: code around
            the yields of another cannot be taken up in the middle.
        state: a state within this epoch to go on from; the method has its part of it already.

    Raises:
        TrainingFailed: a loss that is not finite.
    """
    if state is None:
        run.begin_epoch(epoch)
    left = None if state is None else run.resume_epoch(epoch, state["batch"], state["run"])
    done = 0 if state is None else state["batch"]
    # Of other devices `random_state` does not have all that a method may draw from.
    # And of other ranks nothing is known in the middle of an epoch.
    resumable = type(method).epoch is Method.epoch and run.device.type in ("cpu", "cuda") and run.ranks == 1
    method.train()
    with run.autocast():
        for batch in method.epoch(run) if left is None else left:
            run.take_share(batch)
            method.step(batch, run)
            run.step += 1
            method.after_step(batch, run)
            run.share_state(batch)
            torch.clear_autocast_cache()  # also after a step that did without `optimize`; a resumed run has none either
            done += 1
            if resumable and journal is not None and journal.due():
                journal.checkpoint(state_of(run, method, epoch, done), last=False)
    record = run.end_epoch()
    run.meet()
    return record


def state_of(run: Run, method: Method, epoch: int, batch: int | None = None) -> dict[str, Any]:
    """All that a run needs to go on after so many epochs and, if given, so many batches of the next."""
    state = {"epoch": epoch, "method": method.state_dict(), "run": run.state_dict(within=batch is not None)}
    return state if batch is None else state | {"batch": batch}


def train(
    run: Run, method: Method, evaluator: Evaluator, journal: Journal, state: dict[str, Any] | None = None
) -> None:
    """The training loop: from the start, or from the `state` that the journal stored.

    Raises:
        TrainingFailed: a loss that is not finite, or a prediction that is no probability.
    """
    start = 0
    if state is not None:
        method.load_state_dict(state["method"])
        run.load_state_dict(state["run"])
        start = state["epoch"]
        if "batch" not in state:
            state = None
    for epoch in range(start, run.epochs):
        metrics = train_epoch(run, method, epoch, journal, state)
        state = None
        method.eval()
        try:
            with torch.no_grad(), run.autocast():
                metrics.update(evaluator(method, run))
        except TrainingFailed as error:
            raise TrainingFailed(f"after epoch {epoch + 1}: {error}") from error
        journal.epoch(epoch + 1, metrics)
        journal.checkpoint(state_of(run, method, epoch + 1), last=epoch + 1 == run.epochs)
