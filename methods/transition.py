"""Noise layers behind the softmax (Sukhbaatar et al. 2014): T learned, T known, and a class for outliers.

The layer is `noisebench.nn.TransitionLayer`; the papers' Q is the transpose of our T.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.errors import UserError
from noisebench.method import Batch, Classifier, Epochs, Range, Task
from noisebench.nn import TransitionLayer
from noisebench.training import Run


class _NoiseLayer(Classifier):
    paper = "Sukhbaatar et al., Training Convolutional Networks with Noisy Labels, ICLR 2015 workshop (2014)"
    layer: TransitionLayer

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """-log (T^t p)_y, Eq. 3."""
        return F.nll_loss(self.layer(F.log_softmax(self(batch.x).float(), dim=1)), batch.y)


class Transition(_NoiseLayer):
    """A noise layer behind the softmax, with T learned by back-propagation and kept on the simplex."""

    name = "transition"
    coupled = "the gradient of T is cut to norm 1 a row before the ranks average it, not after"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"weight": Range(0.03, 3.0, log=True)}

    @dataclass(frozen=True)
    class Hparams:
        """Settings. The paper gives no values: these were found on digits and Fashion-MNIST, one set for all noise.

        Attributes:
            warmup: with T = I, before T is learned (the paper's Fig. 1b).
            regulariser: "ridge", "trace" or "nuclear", on T; without one T stays at the identity.
            weight: of the regulariser, which is 1 at the identity.
            lr_scale: learning rate of T, as a multiple of the network's.
            projection: onto the simplex: "euclidean", or "renormalise" for the paper's cheap form.
        """

        warmup: Epochs = 0.4
        regulariser: Literal["ridge", "trace", "nuclear"] = "ridge"
        weight: Annotated[float, Field(ge=0)] = 0.2
        lr_scale: Annotated[float, Field(gt=0)] = 0.1
        projection: Literal["euclidean", "renormalise"] = "euclidean"

    hparams: Hparams

    def build(self, task: Task) -> None:
        """The network, and T at the identity."""
        super().build(task)
        settings = self.hparams
        self.layer = TransitionLayer(task.num_classes, projection=settings.projection, regulariser=settings.regulariser)

    def param_groups(self) -> list[dict[str, Any]]:
        """T apart: its decay is the regulariser."""
        matrix = {"params": [self.layer.matrix], "lr_scale": self.hparams.lr_scale, "weight_decay": 0.0}
        return [{"params": list(self.net.parameters())}, matrix]

    def epoch(self, run: Run) -> Iterator[Batch]:
        """Refuse a warm-up that T would never come after."""
        if run.epochs_from(self.hparams.warmup) >= run.epochs:
            raise UserError(f"{self.name}: warmup is {self.hparams.warmup} of {run.epochs} epochs: T would never move")
        yield from run.loader()

    def _learns(self, run: Run) -> bool:
        return run.epoch >= run.epochs_from(self.hparams.warmup)

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Eq. 3 and the weighted regulariser; cross-entropy during the warm-up."""
        if not self._learns(run):
            return F.cross_entropy(self(batch.x), batch.y)
        return super().loss(batch, run) + self.hparams.weight * self.layer.penalty()

    def after_step(self, batch: Batch, run: Run) -> None:
        """Project T."""
        if self._learns(run):
            self.layer.project()

    def transition(self) -> Tensor:
        """The learned T, [K, K]."""
        return self.layer.matrix.detach()


class TransitionTrue(_NoiseLayer):
    """A noise layer behind the softmax that holds the true T: what a learned one can reach at best."""

    name = "transition_true"
    needs = ("transition",)

    def build(self, task: Task) -> None:
        """The network, and the true T."""
        super().build(task)
        self.layer = TransitionLayer(task.num_classes, task.given["transition"], learned=False)


class TransitionOutlier(_NoiseLayer):
    """A noise layer for images of no class: an outlier class, whose images have uniform labels but for a known few."""

    name = "transition_outlier"
    needs = ("outliers", "transition")
    outliers: Tensor

    def build(self, task: Task) -> None:
        """A network with K + 1 outputs, T of Eq. 8, and which training samples are known outliers.

        Raises:
            UserError: no outlier is known, so that T is singular: class K + 1 could be anything.
        """
        matrix = task.given["transition"]
        if not matrix[-1, -1] > 0:
            raise UserError(f"{self.name}: T is singular where no outlier is known; give the noise labelled > 0")
        self.net = nn.Sequential(task.backbone(), nn.Linear(task.feature_dim, task.num_classes + 1))
        self.layer = TransitionLayer(task.num_classes + 1, matrix, learned=False)
        self.register_buffer("outliers", task.given["outliers"])

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Eq. 3, with class K + 1 as the label of a known outlier."""
        known = self.outliers[batch.index]
        return super().loss(batch._replace(y=torch.where(known, len(self.layer.matrix) - 1, batch.y)), run)

    def predict(self, x: Tensor) -> Tensor:
        """The first K probabilities, renormalised."""
        return torch.softmax(self(x)[:, :-1].float(), dim=1)

    def inlier_scores(self, x: Tensor) -> Tensor:
        """The log-odds of 1 - p(outlier | x), [B] (Fig. 4b): they order as it does, where it is rounded to 1 too."""
        logits = self(x).float()
        scores: Tensor = torch.logsumexp(logits[:, :-1], dim=1) - logits[:, -1]
        return scores
