"""mixup: convex combinations of pairs of images and of their labels (Zhang et al., ICLR 2018)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.method import Batch, Classifier, Range
from noisebench.training import Run


class Mixup(Classifier):
    """mixup: train on convex combinations of pairs of images and labels."""

    name = "mixup"
    paper = "Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018"
    coupled = "pairs are formed within the batch, on each rank within its share, with a weight of its own"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"alpha": Range(0.1, 32.0, log=True)}

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            alpha: of Beta(alpha, alpha); 32 is the largest of Zhang et al.'s noisy-label experiments (section 3.4)
                and Arazo et al. 2019's.
        """

        alpha: Annotated[float, Field(gt=0)] = 32.0

    hparams: Hparams

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """lam * CE(f(x_mix), y_a) + (1 - lam) * CE(f(x_mix), y_b), one lam ~ Beta(alpha, alpha) a batch."""
        lam = float(torch.distributions.Beta(self.hparams.alpha, self.hparams.alpha).sample())
        other = torch.randperm(len(batch.y), generator=run.generator, device=run.device)
        logits = self(lam * batch.x + (1 - lam) * batch.x[other])
        return lam * F.cross_entropy(logits, batch.y) + (1 - lam) * F.cross_entropy(logits, batch.y[other])
