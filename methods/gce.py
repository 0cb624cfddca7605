"""Generalised cross-entropy: between cross-entropy and mean absolute error (Zhang & Sabuncu, NeurIPS 2018)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.method import Batch, Classifier, Range
from noisebench.training import Run


class GeneralisedCrossEntropy(Classifier):
    """Generalised cross-entropy L_q, between cross-entropy (q -> 0) and mean absolute error (q = 1)."""

    name = "gce"
    paper = "Zhang & Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, 2018"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"q": Range(0.1, 1.0)}

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            q: in (0, 1]; 0.7 in all of the paper's experiments (section 4). The untruncated loss, Eq. 6.
        """

        q: Annotated[float, Field(gt=0, le=1)] = 0.7

    hparams: Hparams

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """(1 - p_y^q) / q, mean over the batch; through log p, so that a tiny p keeps its gradient."""
        q = self.hparams.q
        log_p = -F.cross_entropy(self(batch.x).float(), batch.y, reduction="none")
        return ((1 - torch.exp(q * log_p)) / q).mean()
