"""Co-teaching: two networks choose small-loss samples for each other (Han et al., NeurIPS 2018)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.method import Batch, Epochs, Method, Range, Task
from noisebench.training import Run


class CoTeaching(Method):
    """Co-teaching: two networks, each trained on the samples that have a small loss in the other."""

    name = "co_teaching"
    paper = "Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018"
    coupled = "small losses are chosen among those of the batch, on each rank among those of its share"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"forget_rate": Range(0.05, 0.8)}

    first: nn.Module
    second: nn.Module

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            forget_rate: tau of Eq. 2, the share dropped at last. The paper sets it to the true noise rate, which no
                method may see here: this is the value for 20% noise.
            ramp: T_k, over which the dropped share grows from 0; 10 of the paper's 200 epochs.
            exponent: c of R(T) = 1 - tau * min(T^c / T_k^c, 1); 1 in the paper. Both sides carry it, so that the ramp
                is continuous for every c.
        """

        forget_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
        ramp: Epochs = 0.05
        exponent: Annotated[float, Field(gt=0)] = 1.0

    hparams: Hparams

    def build(self, task: Task) -> None:
        """Two networks of the same form, initialised differently."""
        self.first, self.second = task.classifier(), task.classifier()

    def keep(self, run: Run, size: int) -> int:
        """How many of `size` samples each network hands over in this epoch: at least one."""
        ramp = max(1, run.epochs_from(self.hparams.ramp))
        dropped = self.hparams.forget_rate * min(math.pow(run.epoch / ramp, self.hparams.exponent), 1.0)
        return max(1, round((1 - dropped) * size))

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Sum of both networks' mean losses over the samples that the other chose (from this batch, on this rank)."""
        losses = [F.cross_entropy(net(batch.x).float(), batch.y, reduction="none") for net in (self.first, self.second)]
        keep = self.keep(run, len(batch.y))
        chosen = [loss.detach().argsort(stable=True)[:keep] for loss in losses]
        return losses[0][chosen[1]].mean() + losses[1][chosen[0]].mean()

    def predict(self, x: Tensor) -> Tensor:
        """The first network alone, as the paper reports its networks one by one."""
        return torch.softmax(self.first(x).float(), dim=1)
