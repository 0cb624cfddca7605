"""Forward and backward loss correction with an estimated T (Patrini et al., CVPR 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.errors import TrainingFailed, UserError
from noisebench.method import Batch, Classifier, Epochs, Task
from noisebench.training import Run

FLOOR = 1e-7  # of a probability inside a logarithm, as in the authors' code (Keras' epsilon)
PAPER = "Patrini et al., Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach, CVPR 2017"


class _Corrected(Classifier):
    """Plain cross-entropy first; then T is estimated from the network's own probabilities, and the loss corrected."""

    paper = PAPER
    matrix: Tensor
    estimated: Tensor

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            estimate_at: when T is estimated and the optimiser reset; epoch 75 of 300 in Arazo et al. 2019. At least one
                epoch comes before it.
            percentile: row i of T is taken at the sample whose p_i is the highest (100, Eq. 12), or at this percentile
                of p_i; 97 guards against outliers.
            max_condition: largest condition number of T that `backward` will invert.
        """

        estimate_at: Epochs = 0.25
        percentile: Annotated[float, Field(gt=0, le=100)] = 100.0
        max_condition: Annotated[float, Field(gt=1)] = 1e4

    hparams: Hparams

    def build(self, task: Task) -> None:
        """The network, and T, the identity until it is estimated."""
        super().build(task)
        self.register_buffer("matrix", torch.eye(task.num_classes))
        self.register_buffer("estimated", torch.tensor(False))

    def epoch(self, run: Run) -> Iterator[Batch]:
        """Estimate T when its epoch has come."""
        when = max(1, run.epochs_from(self.hparams.estimate_at))
        if when >= run.epochs:
            raise UserError(f"{self.name}: estimate_at is after epoch {when} of {run.epochs}: T would never be used")
        if run.epoch == when:
            probabilities = run.per_sample(lambda batch: self.predict(batch.x))
            self.matrix.copy_(estimate_transition(probabilities, self.hparams.percentile))
            self.estimated.fill_(True)
            self.check_matrix()
            run.reset_optimizer()
        yield from run.loader()

    def check_matrix(self) -> None:
        """Refuse an estimate that cannot be used."""

    def transition(self) -> Tensor | None:
        """The estimated T, [K, K], once there is one."""
        return self.matrix if self.estimated else None


class Forward(_Corrected):
    """Forward correction: cross-entropy of the predictions after they went through an estimated T."""

    name = "forward"

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """-log (T^t p)_y (Theorem 2)."""
        p = torch.softmax(self(batch.x).float(), dim=1)
        with torch.autocast(p.device.type, enabled=False):  # which would round p to bfloat16
            noisy = p @ self.matrix
        return F.nll_loss(torch.log(noisy.clamp_min(FLOOR)), batch.y)


class Backward(_Corrected):
    """Backward correction: the losses of all classes, weighted by the inverse of an estimated T."""

    name = "backward"

    def check_matrix(self) -> None:
        """Refuse a T that is near-singular."""
        condition = float(torch.linalg.cond(self.matrix.double()))
        if not condition <= self.hparams.max_condition:
            raise TrainingFailed(
                f"backward: the estimated T is near-singular (condition number {condition:.3g}, at most "
                f"{self.hparams.max_condition:g}); estimate it later (estimate_at), or use forward"
            )

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """sum_j T^-1[y, j] * (-log p_j) (Theorem 1)."""
        losses = -torch.log(torch.softmax(self(batch.x).float(), dim=1).clamp_min(FLOOR))
        inverse = torch.linalg.inv(self.matrix.double()).float()  # float32 loses as many digits as the condition has
        weights: Tensor = inverse[batch.y]
        return (weights * losses).sum(dim=1).mean()


def estimate_transition(probabilities: Tensor, percentile: float = 100.0) -> Tensor:
    """T from a noisy model's probabilities [N, K]: row i is the prediction at the sample most surely of class i.

    Args:
        probabilities: float [N, K], rows on the simplex.
        percentile: 100 takes the sample with the highest p_i (Eq. 12 and 13), 97 the one at that percentile of p_i.

    Returns:
        [K, K], rows sum to one.
    """
    rank = round((percentile / 100) * (len(probabilities) - 1))
    chosen = probabilities.argsort(dim=0, stable=True)[rank]
    rows = probabilities[chosen]
    return rows / rows.sum(dim=1, keepdim=True)
