"""Bootstrapping: labels blended with the network's own prediction, by a fixed weight or by P(noisy) of each sample.

Static: Reed et al. 2015. Dynamic, and with mixup: Arazo et al. 2019, whose names are kept: DY, M (mixup), MD (mixup of
the images guided by P(noisy)), DYR (with the regulariser), S, H, SH (soft, hard, soft to hard).

One family of three pieces. A target: (1 - w) y + w z with w a constant or P(noisy), z a softmax of some temperature. A
mix: none, mixup, or guided. And phases, as shares of the run that are the authors' epochs at 300. Departures from
their code: the posterior is exact and held on the left too (see `noisebench.nn.BetaMixture`); labels are mixed half and
half in all of the guided phase, where theirs first draws a weight that has nothing to do with that of the images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.errors import UserError
from noisebench.method import Batch, Classifier, Epochs, Range, Task
from noisebench.nn import BetaMixture, GaussianMixture
from noisebench.training import Run

EDGE = 1e-4  # P(noisy) stays this far from 0 and 1, as theirs does
TEMPERATURES = {"soft": 1.0, "hard": 0.0}


def own_targets(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), without gradient, float32 [B, K] (Eq. 16); one-hot at temperature 0."""
    logits = logits.detach().float()
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return torch.softmax(logits / temperature, dim=1)


def blended(y: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) y + w z (Eq. 10), [B, K]: labels int64 [B], own predictions [B, K], weights [B] or one for all."""
    weight = weight.reshape(-1, 1)
    return (1 - weight) * F.one_hot(y, own.shape[1]) + weight * own


def uniform_prior(logits: Tensor) -> Tensor:
    """KL of the uniform distribution and the batch's mean prediction (Eq. 14): against one class for all; [B, K]."""
    log_mean = torch.logsumexp(F.log_softmax(logits.float(), dim=1), dim=0) - math.log(len(logits))
    return -math.log(logits.shape[1]) - log_mean.mean()


def first_epoch(method: Classifier, phase: str, run: Run, least: int = 1) -> int:
    """The first epoch (0-based) of a phase, by the name of its setting; a mixture needs the losses of one before it.

    Raises:
        UserError: the run ends before it.
    """
    first = max(least, run.epochs_from(getattr(method.hparams, phase)))
    if first >= run.epochs:
        raise UserError(f"{method.name}: {phase} is after epoch {first} of {run.epochs}: nothing would be bootstrapped")
    return first


class BootstrapStatic(Classifier):
    """Static bootstrapping: every label is blended with the network's own prediction by one weight."""

    name = "bootstrap_static"
    paper = "Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, ICLR 2015 workshop"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"weight": Range(0.02, 0.8, log=True)}

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            target: "soft", the predicted probabilities, or "hard", the predicted class.
            weight: of the own prediction; by default 0.05 soft and 0.2 hard (Reed et al.).
            start: bootstrapping begins after so many epochs of cross-entropy. Arazo et al. give it in an appendix that
                we do not have: 30 of 120 is our choice.
        """

        target: Literal["soft", "hard"] = "hard"
        weight: Annotated[float, Field(ge=0, le=1)] | None = None
        start: Epochs = 0.25

    hparams: Hparams

    def epoch(self, run: Run) -> Iterator[Batch]:
        """Refuse a start that the run ends before."""
        first_epoch(self, "start", run, least=0)
        yield from run.loader()

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Cross-entropy with the blended target (Eq. 10), whose own part has no gradient."""
        logits = self(batch.x).float()
        if run.epoch < first_epoch(self, "start", run, least=0):
            return F.cross_entropy(logits, batch.y)
        own = own_targets(logits, TEMPERATURES[self.hparams.target])
        weight = (
            {"soft": 0.05, "hard": 0.2}[self.hparams.target] if self.hparams.weight is None else self.hparams.weight
        )
        return F.cross_entropy(logits, blended(batch.y, own, logits.new_tensor(weight)))


class _Dynamic(Classifier):
    """What all dynamic forms share: a mixture, fitted after every epoch to the cross-entropy of each sample."""

    paper = "Arazo et al., Unsupervised Label Noise Modeling and Loss Correction, ICML 2019"
    mixture: BetaMixture | GaussianMixture
    losses: Tensor

    @dataclass(frozen=True)
    class Hparams:
        """Settings of all dynamic forms.

        Attributes:
            start: bootstrapping begins after so many epochs; one at least, since the mixture needs losses.
            mixture: "beta", or "gaussian" for the paper's comparison.
        """

        start: Epochs = 0.35
        mixture: Literal["beta", "gaussian"] = "beta"

    hparams: Hparams

    def build(self, task: Task) -> None:
        """The network, the mixture, and each sample's loss after the last epoch, [N]."""
        super().build(task)
        self.num_classes = task.num_classes
        self.mixture = BetaMixture() if self.hparams.mixture == "beta" else GaussianMixture()
        self.register_buffer("losses", torch.zeros(task.num_train))

    def epoch(self, run: Run) -> Iterator[Batch]:
        """A pass over the training set at its end, in eval mode and with the training augmentation, for the mixture."""
        first_epoch(self, "start", run)
        yield from run.loader()
        self.losses.copy_(run.per_sample(self.label_losses, augment=True))
        self.mixture.fit(self.losses)

    def label_losses(self, batch: Batch) -> Tensor:
        """The plain cross-entropy of each sample, [B]."""
        return F.cross_entropy(self(batch.x).float(), batch.y, reduction="none")

    @torch.no_grad()
    def noise_probability(self, batch: Batch) -> Tensor:
        """P(noisy) of each sample of a batch as it is, [B], from a forward pass in eval mode."""
        self.eval()
        found = self.mixture.posterior(self.label_losses(batch)).clamp(EDGE, 1 - EDGE)
        self.train()
        return found

    def noise_scores(self, run: Run) -> Tensor | None:
        """P(noisy) of every sample after the last epoch, [N]."""
        return self.mixture.posterior(self.losses) if self.mixture.fitted else None


class BootstrapDynamic(_Dynamic):
    """Dynamic bootstrapping (DY-S, DY-H): each label is blended with the own prediction by its P(noisy)."""

    name = "bootstrap_dynamic"

    @dataclass(frozen=True)
    class Hparams(_Dynamic.Hparams):
        """Settings.

        Attributes:
            target: "soft", the predicted probabilities, or "hard", the predicted class.
            start: after so many epochs of cross-entropy; our choice, see `BootstrapStatic`.
        """

        target: Literal["soft", "hard"] = "hard"
        start: Epochs = 0.25

    hparams: Hparams

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Cross-entropy with the blended target (Eq. 10), w = P(noisy)."""
        logits = self(batch.x).float()
        if run.epoch < first_epoch(self, "start", run):
            return F.cross_entropy(logits, batch.y)
        own = own_targets(logits, TEMPERATURES[self.hparams.target])
        return F.cross_entropy(logits, blended(batch.y, own, self.noise_probability(batch)))


class _MixupDynamic(_Dynamic):
    """Mixup, then mixup of samples with blended labels, and the regulariser."""

    coupled = "pairs, and the mean prediction of Eq. 14, are the batch's, on each rank those of its share"
    # The ranges are ours: none is from the paper.
    search: ClassVar = {"alpha": Range(0.5, 32.0, log=True), "regulariser": Range(0.1, 3.0, log=True)}

    @dataclass(frozen=True)
    class Hparams(_Dynamic.Hparams):
        """Settings; the defaults are the paper's.

        Attributes:
            alpha: of mixup's Beta(alpha, alpha).
            regulariser: eta, the weight of Eq. 14.
        """

        alpha: Annotated[float, Field(gt=0)] = 32.0
        regulariser: Annotated[float, Field(ge=0)] = 1.0

    hparams: Hparams

    def temperature(self, run: Run) -> float:
        """Of the own predictions in this epoch; 0 is hard."""
        raise NotImplementedError

    def guided(self, run: Run) -> bool:
        """Whether P(noisy) guides the mix in this epoch."""
        return False

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """Eq. 13 plus eta times Eq. 14 on the mixed batch; the mix alone before bootstrapping begins."""
        bootstrapping, guided = run.epoch >= first_epoch(self, "start", run), self.guided(run)
        other = torch.randperm(len(batch.y), generator=run.generator, device=run.device)
        targets = F.one_hot(batch.y, self.num_classes).float()
        if bootstrapping:  # from a pass in train mode, as theirs, which moves BatchNorm's averages too
            with torch.no_grad():
                own = own_targets(self(batch.x), self.temperature(run))
        noisy = self.noise_probability(batch) if bootstrapping or guided else batch.x.new_zeros(len(batch.y))
        if bootstrapping:
            targets = blended(batch.y, own, noisy)
        if guided:
            clean = (1 - noisy).reshape(-1, 1, 1, 1)
            of_image, of_label = clean / (clean + clean[other]), 0.5  # Eq. 15
        else:
            of_label = float(torch.distributions.Beta(self.hparams.alpha, self.hparams.alpha).sample())
            of_image = torch.as_tensor(of_label)
        logits = self(of_image * batch.x + (1 - of_image) * batch.x[other]).float()
        loss = F.cross_entropy(logits, of_label * targets + (1 - of_label) * targets[other])
        return loss + self.hparams.regulariser * uniform_prior(logits) if bootstrapping else loss


class MixupDynamicSoft(_MixupDynamic):
    """M-DYR-S: mixup, then mixup of samples whose labels are blended with soft predictions by P(noisy)."""

    name = "m_dyr_s"

    def temperature(self, run: Run) -> float:
        """Soft."""
        return 1.0


class MixupDynamicHard(_MixupDynamic):
    """M-DYR-H: mixup, then mixup of samples whose labels are blended with the predicted classes by P(noisy)."""

    name = "m_dyr_h"

    def temperature(self, run: Run) -> float:
        """Hard."""
        return 0.0


class GuidedMixupDynamicHard(MixupDynamicHard):
    """MD-DYR-H: as M-DYR-H, with the images' weights in the mix from P(noisy)."""

    name = "md_dyr_h"

    @dataclass(frozen=True)
    class Hparams(_MixupDynamic.Hparams):
        """Settings; the defaults are the paper's.

        Attributes:
            guide: P(noisy) guides the mix after so many epochs, 105 of 300.
            start: bootstrapping begins after 110 of 300.
        """

        guide: Epochs = 0.35
        start: Epochs = 0.36667

    hparams: Hparams

    def epoch(self, run: Run) -> Iterator[Batch]:
        """Refuse phases in another order."""
        if first_epoch(self, "guide", run) > first_epoch(self, "start", run):
            raise UserError(f"{self.name}: guide comes after start; give guide <= start")
        yield from super().epoch(run)

    def guided(self, run: Run) -> bool:
        """From `guide` on."""
        return run.epoch >= first_epoch(self, "guide", run)


class GuidedMixupDynamicSoftToHard(GuidedMixupDynamicHard):
    """MD-DYR-SH: as MD-DYR-H, with predictions that go from soft to hard."""

    name = "md_dyr_sh"

    @dataclass(frozen=True)
    class Hparams(GuidedMixupDynamicHard.Hparams):
        """Settings; the defaults are the paper's.

        Attributes:
            ramp: over so many epochs the temperature falls, an equal step an epoch; 89 of 300.
            coldest: from 1 to this, where it stays.
        """

        ramp: Epochs = 0.29667
        coldest: Annotated[float, Field(gt=0, le=1)] = 0.001

    hparams: Hparams

    def temperature(self, run: Run) -> float:
        """linspace(1, coldest, ramp), an entry an epoch."""
        steps = max(1, run.epochs_from(self.hparams.ramp) - 1)
        done = min(1.0, (run.epoch - first_epoch(self, "start", run)) / steps)
        return 1 + (self.hparams.coldest - 1) * done
