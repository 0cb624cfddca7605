"""The contract of a method for learning with noisy labels: `Method`, `Batch`, `Task` and the settings' types.

The training loop, which calls a method and is the same for all of them, is this (training.py has it in full)::

    torch.manual_seed(stream(seed, "init"))
    method = MyMethod(MyMethod.Hparams(...))
    method.build(task)                                  # networks, buffers
    for epoch in range(epochs):
        set the learning rate of every parameter group  # recipe's schedule x the group's lr_scale
        method.train()
        for batch in method.epoch(run):                 # default: yield from run.loader()
            method.step(batch, run)                     # default: run.optimize(method.loss(batch, run))
            method.after_step(batch, run)               # e.g. project a parameter, update an average
            save the same and all random states, if it is time and `epoch` is the default
        method.eval()
        evaluate method.predict(x) on the noisy validation split and on the test set
        save state_dict() of the method and of the optimiser, if it is time

Everything a method learns is a parameter or a buffer, so that a checkpoint is complete without the method's help.
Random numbers come from `run.generator` (on the device) or from torch's global generator; both are set at the start
of every epoch from the run's seed, so that a resumed run draws the same numbers.

A run may be shared by several processes, its ranks (`recipe.ranks`). Each has the whole method, every `step` gets its
share of the batch, and a method need not know, if it keeps to this:

- The loss is a mean over the samples of the batch: `run.optimize` averages the gradients of the shares, and what it
  records is the whole batch's. A loss that is none says so in `coupled`; it is taken over each share by itself.
- A buffer with a row for each training sample gets the rows of all ranks after every step, those at the `index` of the
  batch that `epoch` gave. `run.per_sample` gives every rank all rows. Any other buffer or parameter must come out the
  same on all ranks: computed from what all of them have, or from ``run.gather(rows)``, the rows of the whole batch.
  That is checked after every epoch.
- BatchNorm sees the rank's share; its running averages are averaged in `run.per_sample` and after every epoch.
- `run.generator` draws the same on all ranks: what the batch shares, e.g. a choice. The global generators differ: what
  each sample has of its own, e.g. dropout.
- All ranks call `run.optimize`, `run.gather` and `run.per_sample` in the same order and as often, and give `run.loader`
  the same indices.

A method sees noisy labels only. What else it needs (the true transition matrix, for one) it names in `needs`; the
harness hands that over in `Task`, and the leaderboard marks the row as privileged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.config import Epochs
from noisebench.errors import UserError
from noisebench.search import Choice, Range

if TYPE_CHECKING:
    from noisebench.training import Run

MethodName = str
"""The name of another method, as a setting (`ensemble`'s member): its code counts in the run's fingerprint too."""

__all__ = [
    "Batch",
    "Choice",
    "Classifier",
    "Epochs",
    "Method",
    "MethodName",
    "Range",
    "Task",
    "epochs_from",
    "sigmoid_loss",
    "sigmoid_predict",
]


class Batch(NamedTuple):
    """One batch of training samples, on the device.

    Attributes:
        x: images, float32 [B, C, H, W], augmented and normalised; [views, B, C, H, W] if more than one view was asked.
        y: noisy labels, int64 [B]; float32 [B, K] of 0 and 1 where an image has several (`Task.multilabel`).
        index: positions in the training set, int64 [B], in 0..num_train-1; for a state per sample.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch


@dataclass(frozen=True)
class Task:
    """What a method may know of its task when it builds its networks.

    Attributes:
        num_classes: K.
        num_train: N, the size of the training split (validation excluded).
        image_shape: (C, H, W).
        feature_dim: D, the size of the features that a backbone gives.
        make_backbone: makes a new backbone; use `backbone()`.
        given: what the method's `needs` asked for: "transition" is the true T, float64 [K, K], rows sum to one; [2, 2]
            over {absent, present} for a multilabel task, [K + 1, K + 1] with a class for outliers under open-set noise
            (only for a method that needs "outliers" too). "outliers" is bool [N], the training images that are known
            not to be of any class (their y means nothing); there under open-set noise alone.
        multilabel: whether an image may have several labels, or none.
    """

    num_classes: int
    num_train: int
    image_shape: tuple[int, int, int]
    feature_dim: int
    make_backbone: Callable[[], nn.Module]
    given: dict[str, Tensor] = field(default_factory=dict)
    multilabel: bool = False

    def backbone(self) -> nn.Module:
        """A new backbone of the board's kind: [B, C, H, W] -> features [B, D]."""
        return self.make_backbone()

    def classifier(self) -> nn.Module:
        """A new backbone with a linear head: [B, C, H, W] -> logits [B, K]."""
        return nn.Sequential(self.backbone(), nn.Linear(self.feature_dim, self.num_classes))


class Method(nn.Module):
    """A method for learning with noisy labels; subclass it, set `name`, and write `build`, `loss` and `predict`.

    Class attributes:
        name: what users write; classes without one are parts, not methods.
        paper: citation, one line.
        needs: what beyond noisy labels it must be given, "transition" or "outliers"; marks the row as privileged.
        stochastic: why `predict` depends on how samples are batched, if it does (Monte Carlo); else empty.
        coupled: why its loss is no mean over samples, if so (pairs of samples, a choice among them, the batch's mean):
            of several ranks each takes it over its own share of the batch.
        multilabel: whether it can be trained where an image has several labels; it is refused there if not.
        search: settings worth tuning and what to try for them, e.g. ``{"temperature": Range(0.1, 5.0, log=True)}``;
            ``noisebench tune`` searches it. It is no part of a run's fingerprint.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    stochastic: ClassVar[str] = ""
    coupled: ClassVar[str] = ""
    multilabel: ClassVar[bool] = False
    search: ClassVar[Mapping[str, Range | Choice]] = {}
    hparams: Any  # a subclass with settings narrows this: `hparams: Hparams`

    @dataclass(frozen=True)
    class Hparams:
        """Settings with their defaults; a subclass writes its own frozen dataclass of this name."""

    def __init__(self, hparams: Any = None) -> None:
        """Store the settings, nothing else; `build` makes the networks."""
        super().__init__()
        self.hparams = self.Hparams() if hparams is None else hparams

    @classmethod
    def needs_with(cls, hparams: Any) -> tuple[str, ...]:
        """What it needs under these settings; `needs`, unless a setting names another method."""
        return cls.needs

    @classmethod
    def multilabel_with(cls, hparams: Any) -> bool:
        """Whether it takes several labels an image under these settings; `multilabel`, unless a setting decides it."""
        return cls.multilabel

    @classmethod
    def coupled_with(cls, hparams: Any) -> str:
        """Why its loss is no mean over samples under these settings; `coupled`, unless a setting decides it."""
        return cls.coupled

    @classmethod
    def search_with(cls, hparams: Any) -> Mapping[str, Range | Choice]:
        """What is searched under these settings; `search`, unless a setting names another method."""
        return cls.search

    def build(self, task: Task) -> None:
        """Make networks and buffers. Called once, with torch's global generator at the stream "init"."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: {"params": [...]}, with `lr_scale` and `weight_decay` where they differ."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def epoch(self, run: Run) -> Iterator[Batch]:
        """The batches of one epoch. Code before the first yield starts the epoch, code after the last one ends it."""
        yield from run.loader()

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """The loss of a batch: a scalar with a gradient."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def step(self, batch: Batch, run: Run) -> None:
        """One update. Override for meta-gradients or several passes (SAM)."""
        run.optimize(self.loss(batch, run))

    def after_step(self, batch: Batch, run: Run) -> None:
        """Whatever must follow an update, e.g. a projection."""

    def predict(self, x: Tensor) -> Tensor:
        """Class probabilities [B, K] of images [B, C, H, W]; called in eval mode without gradient.

        Rows sum to one; in a multilabel task each entry is the probability of its class in [0, 1].
        """
        raise NotImplementedError(f"{type(self).__name__}.predict")

    # Optional, used by reports; a method that does not offer one leaves it as it is.

    def noise_scores(self, run: Run) -> Tensor | None:
        """How suspect each training label is, float [N], larger = more likely wrong."""
        return None

    def inlier_scores(self, x: Tensor) -> Tensor | None:
        """How likely each image of x is one of the K classes and no outlier, float [B], larger = more likely.

        Called as `predict` is, under open-set noise; without it the largest predicted probability is taken.
        """
        return None

    def transition(self) -> Tensor | None:
        """The method's estimate of T, [K, K], T[i, j] = P(noisy j | true i).

        [2, 2] in a multilabel task; [K + 1, K + 1], outliers last, where the method has a class for them.
        """
        return None

    def covariance(self, x: Tensor) -> Tensor | None:
        """Covariance of the latent noise at x, [B, K, K]."""
        return None


def epochs_from(value: Epochs, total: int) -> int:
    """`value` as a number of epochs of a run of `total`: an int as it is, a float as a share, rounded.

    Raises:
        UserError: negative, or a float above 1.
    """
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value > 1):
        raise UserError(
            f"{value!r} is no number of epochs: give an int >= 0, or a float in [0, 1] for a share of the run"
        )
    return round(value * total) if isinstance(value, float) else value


def sigmoid_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits), summed over the classes, mean over the batch, in float32 at least.

    Args:
        logits: [B, K].
        y: multi-hot [B, K] in [0, 1]; or classes int64 [B], which stand for their one-hot rows (Beyer et al. 2020, "Are
            we done with ImageNet?"; Collier et al. 2021, appendix F).
    """
    if y.ndim == 1:
        y = F.one_hot(y, logits.shape[1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logits.to(wide), y.to(wide), reduction="sum") / len(logits)


def sigmoid_predict(logits: Tensor, multilabel: bool) -> Tensor:
    """sigmoid(logits) [B, K] in float32 at least; unless `multilabel`, normalised so that rows sum to one."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # The softmax of log p is p / sum(p), also where every sigmoid underflows.
    return torch.sigmoid(logits) if multilabel else torch.softmax(F.logsigmoid(logits), dim=1)


class Classifier(Method):
    """A method with one network, `self.net`, that gives logits; most methods start from it.

    Attributes:
        several: whether its task is multilabel, set by `build`: its logits are then those of K sigmoids.
    """

    net: nn.Module
    several: bool = False

    def build(self, task: Task) -> None:
        """One backbone with a linear head."""
        self.net = task.classifier()
        self.several = task.multilabel

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self.net(x)
        return logits

    def predict(self, x: Tensor) -> Tensor:
        """softmax(logits) [B, K]; sigmoid(logits) in a multilabel task."""
        logits = self(x).float()
        return sigmoid_predict(logits, multilabel=True) if self.several else torch.softmax(logits, dim=1)
