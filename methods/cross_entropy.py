"""Cross-entropy on the labels as they are: the baseline, and its control with more parameters."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.method import Batch, Classifier, Task, sigmoid_loss, sigmoid_predict
from noisebench.training import Run


class CrossEntropy(Classifier):
    """Cross-entropy on the noisy labels, the baseline; binary and summed over the classes in a multilabel task."""

    name = "ce"
    paper = "baseline"
    multilabel = True

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            link: "sigmoid" takes one label an image for a row of K binary ones and trains K sigmoids; predictions are
                then normalised (Collier et al. 2021, appendix F, after Beyer et al. 2020). A multilabel task has
                sigmoids whatever is set.
        """

        link: Literal["softmax", "sigmoid"] = "softmax"

    hparams: Hparams

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """-log p_y, mean over the batch; with sigmoids the binary cross-entropy, summed over the classes."""
        logits = self(batch.x)
        if self.several or self.hparams.link == "sigmoid":
            return sigmoid_loss(logits, batch.y)
        return F.cross_entropy(logits, batch.y)

    def predict(self, x: Tensor) -> Tensor:
        """softmax(logits) [B, K], or what the sigmoids give: see `sigmoid_predict`."""
        if self.hparams.link == "sigmoid":
            return sigmoid_predict(self(x), multilabel=self.several)
        return super().predict(x)


class EqualParameters(CrossEntropy):
    """Cross-entropy with a hidden layer sized to the parameters of `het_full`: a control for their number."""

    name = "ce_equal_params"
    paper = "Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image Classification, CVPR 2021"

    @dataclass(frozen=True)
    class Hparams(CrossEntropy.Hparams):
        """Settings; `ce`'s, and this.

        Attributes:
            rank: of the `het_full` whose parameters are matched.
        """

        rank: Annotated[int, Field(ge=1)] = 6

    hparams: Hparams

    def build(self, task: Task) -> None:
        """A backbone, Dense + ReLU, and a linear head."""
        self.several = task.multilabel
        features, classes = task.feature_dim, task.num_classes
        hidden = hidden_units(features, classes, min(self.hparams.rank, classes))
        layers = [nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
        self.net = nn.Sequential(task.backbone(), *layers)


def hidden_units(features: int, classes: int, rank: int) -> int:
    """Units of the hidden layer with which the head has as many parameters as `het_full`'s, to the nearest unit.

    H (D + 1) + (H + 1) K of the control against (D + 1) K (2 + R) of mean, scale and factors. For ImageNet, D = 2048,
    K = 1000 and R = 15, that is 11,424, where the paper takes 11,500.
    """
    return round(((features + 1) * classes * (2 + rank) - classes) / (features + 1 + classes))
