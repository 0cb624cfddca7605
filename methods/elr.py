"""Early-learning regularisation: a running target for every sample (Liu et al., NeurIPS 2020)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.method import Batch, Classifier, Range, Task
from noisebench.training import Run


class EarlyLearningRegularisation(Classifier):
    """Early-learning regularisation: stay close to a running average of one's own early predictions."""

    name = "elr"
    paper = "Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"weight": Range(0.5, 10.0, log=True), "momentum": Range(0.5, 0.99)}

    targets: Tensor

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            weight: lambda of Eq. 6; 3 for CIFAR-10, 7 for CIFAR-100 (the paper's appendix).
            momentum: beta of Eq. 9; 0.7 for CIFAR-10, 0.9 for CIFAR-100.
        """

        weight: Annotated[float, Field(ge=0)] = 3.0
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.7

    hparams: Hparams

    def build(self, task: Task) -> None:
        """The network, and a target [N, K] that starts at zero."""
        super().build(task)
        self.register_buffer("targets", torch.zeros(task.num_train, task.num_classes))

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """CE + lambda * mean log(1 - <p, t>), t the running average of p; p clipped to [1e-4, 1 - 1e-4] as theirs."""
        logits = self(batch.x).float()
        p = torch.softmax(logits, dim=1).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            beta = self.hparams.momentum
            target = beta * self.targets[batch.index] + (1 - beta) * p / p.sum(dim=1, keepdim=True)
            self.targets[batch.index] = target
        regulariser = torch.log(1 - (p * target).sum(dim=1)).mean()
        return F.cross_entropy(logits, batch.y) + self.hparams.weight * regulariser
