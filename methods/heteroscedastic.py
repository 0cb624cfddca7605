"""Heteroscedastic classifiers: normal noise on the logits with a covariance that depends on the input.

Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image Classification, CVPR 2021; HET-XL: Collier
et al., Massively Scaling Heteroscedastic Classifiers, ICLR 2023. The layer is `noisebench.nn.HeteroscedasticHead`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from noisebench.method import Batch, Classifier, Range, Task, sigmoid_loss, sigmoid_predict
from noisebench.nn import HeteroscedasticHead
from noisebench.training import Run


class _Heteroscedastic(Classifier):
    paper = "Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image Classification, CVPR 2021"
    multilabel = True
    stochastic = "the Monte-Carlo samples are drawn anew for every batch"
    search: ClassVar = {"temperature": Range(0.1, 5.0, log=True)}

    options: ClassVar[dict[str, Any]] = {}
    """Of the head, beside the settings of the same names."""

    @dataclass(frozen=True)
    class Hparams:
        """Settings; defaults from the paper and the authors' code for CIFAR where the paper has none.

        Attributes:
            temperature: of the softmax or sigmoid; the authors' CIFAR code has 1.3; the paper 0.9 for ImageNet, and
                0.15 for sigmoids. To be tuned: ``noisebench tune``.
            learn_temperature: a parameter inside 0.05 to 5 instead, which starts there (Collier et al. 2023).
            link: "sigmoid" trains K sigmoids on the one-hot labels and normalises predictions (appendix F); a
                multilabel task has sigmoids whatever is set.
            train_samples: Monte-Carlo samples of a training step; the paper 1,000, and 10,000 for ImageNet.
            eval_samples: of a prediction.
            sampling: how they are drawn.
        """

        temperature: Annotated[float, Field(gt=0)] = 1.3
        learn_temperature: bool = False
        link: Literal["softmax", "sigmoid"] = "softmax"
        train_samples: Annotated[int, Field(ge=1)] = 1000
        eval_samples: Annotated[int, Field(ge=1)] = 1000
        sampling: Literal["plain", "antithetic", "sobol"] = "plain"

    hparams: Any

    def build(self, task: Task) -> None:
        """A backbone with the head in place of the linear layer."""
        self.several = task.multilabel
        settings = {"link": "softmax", **self.hparams.__dict__, **self.options}
        self.sigmoid = task.multilabel or settings["link"] == "sigmoid"
        settings["link"] = "sigmoid" if self.sigmoid else "softmax"
        if "rank" in settings:  # one default serves every dataset
            on_features = settings.get("noise_on") == "features"
            settings["rank"] = min(settings["rank"], task.feature_dim if on_features else task.num_classes)
        self.net = nn.Sequential(task.backbone(), HeteroscedasticHead(task.feature_dim, task.num_classes, **settings))

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Cross-entropy of the head's log-probabilities; binary, summed over classes, of its logits for sigmoids.

        Cross-entropy normalises what is normal already, but for a Taylor series that has left [0, 1].
        """
        out = self(batch.x)
        return sigmoid_loss(out, batch.y) if self.sigmoid else F.cross_entropy(out, batch.y)

    def predict(self, x: Tensor) -> Tensor:
        """E[softmax(u / temperature)] [B, K]; E[sigmoid], normalised unless the task is multilabel."""
        out = self(x)
        return sigmoid_predict(out, multilabel=self.several) if self.sigmoid else out.softmax(dim=1)

    def covariance(self, x: Tensor) -> Tensor:
        """Sigma(x) of the logits, [B, K, K]."""
        backbone, head = self.net.children()
        found: Tensor = cast(HeteroscedasticHead, head).covariance(backbone(x))
        return found


class HetDiag(_Heteroscedastic):
    """Heteroscedastic, diagonal covariance: every class has noise of its own, independent of the others."""

    name = "het_diag"
    options: ClassVar = {"covariance": "diag"}


class HetFull(_Heteroscedastic):
    """Heteroscedastic, full covariance: low-rank factors from the features, so that noise is correlated."""

    name = "het_full"
    search: ClassVar = {"temperature": Range(0.1, 5.0, log=True), "rank": Range(1, 10)}
    options: ClassVar = {"covariance": "full"}

    @dataclass(frozen=True)
    class Hparams(_Heteroscedastic.Hparams):
        """Settings; `_Heteroscedastic`'s, and these.

        Attributes:
            rank: of the factors, K at most; the authors' CIFAR code has 6, the paper 15 for 1,000 classes and 50 for
                21,843.
        """

        rank: Annotated[int, Field(ge=1)] = 6


class HetPE(HetFull):
    """Heteroscedastic, parameter-efficient: factors shared by all images, scaled per class by each image."""

    name = "het_pe"
    options: ClassVar = {"covariance": "pe"}


class HetXL(HetFull):
    """HET-XL: the noise is on the features, so that its parameters do not grow with the classes."""

    name = "het_xl"
    paper = "Collier et al., Massively Scaling Heteroscedastic Classifiers, ICLR 2023"
    search: ClassVar = {"rank": Range(1, 10)}
    options: ClassVar = {"covariance": "pe", "noise_on": "features"}

    @dataclass(frozen=True)
    class Hparams(HetFull.Hparams):
        """Settings as `het_full`'s, but that the temperature is learned, as in its paper."""

        learn_temperature: bool = True


class HetTaylor(_Heteroscedastic):
    """Heteroscedastic, full covariance, without samples: second-order Taylor series in closed form."""

    name = "het_taylor"
    paper = "Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image Classification, CVPR 2021"
    multilabel = False
    stochastic = ""
    search: ClassVar = {"temperature": Range(0.1, 5.0, log=True), "rank": Range(1, 10)}
    options: ClassVar = {"covariance": "full", "taylor": True}

    @dataclass(frozen=True)
    class Hparams:
        """Settings, as `het_full`'s of the same names."""

        temperature: Annotated[float, Field(gt=0)] = 1.3
        learn_temperature: bool = False
        rank: Annotated[int, Field(ge=1)] = 6
