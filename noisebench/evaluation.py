"""Metrics from `predict` alone. Only the evaluator holds clean labels and the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from noisebench.data import Loader
from noisebench.errors import TrainingFailed, UserError
from noisebench.method import Batch, Method
from noisebench.ranks import EVALUATION_BATCH as EVALUATION_BATCH
from noisebench.scoring import (
    ECE_BINS as ECE_BINS,
)
from noisebench.scoring import (
    NLL_FLOOR as NLL_FLOOR,
)
from noisebench.scoring import (
    accuracy,
    area_under_roc,
    average_precision,
    calibration_to_people,
    classification_metrics,
    loss_quartiles,
    multilabel_metrics,
    precision_recall,
)
from noisebench.streams import stream

if TYPE_CHECKING:
    from noisebench.training import Run

MEMORISED_SAMPLES = 10_000
"""At most so many training images with a wrong label are looked at for the memorised share (a fixed random choice).

And as many with a right one where losses are recorded."""


class FurtherTest(NamedTuple):
    """A further look at every epoch, see `image_data.ExtraTest`.

    Attributes:
        name: its metrics are ``<name>.accuracy`` and so on.
        images: a loader of its images; None for the test set's.
        labels: int64 [M], or None.
        keep: bool [M], the images that count, or None for all.
        soft: float64 [M, K], the share of people that said each class, or None.
    """

    name: str
    images: Loader | None
    labels: Tensor | None
    keep: Tensor | None
    soft: Tensor | None

    def score(self, p: Tensor) -> dict[str, float]:
        """Metrics of probabilities [M, K]: against `labels`, and NLL and ECE against `soft` where there are such."""
        kept = slice(None) if self.keep is None else self.keep.to(p.device)
        found: dict[str, float] = {}
        p = p[kept]
        if self.labels is not None:
            found |= classification_metrics(p, self.labels.to(p.device)[kept])
        if self.soft is not None:
            found |= calibration_to_people(p, self.soft.to(p.device)[kept])
        return {f"{self.name}.{metric}": value for metric, value in found.items()}


class Evaluator:
    """Scores a method after every epoch. Whether its task is multilabel is told by the labels.

    Args:
        test: loader of the test set under its clean labels.
        validation: loader of the held-out split under its **noisy** labels, or None.
        train: loader of the training split under its noisy labels.
        wrong: bool, of the shape of the training labels: which of them (multi-hot: which entries) are wrong.
        transition: the true T [K, K] (multi-hot: [2, 2]; open-set noise: [K + 1, K + 1]), or None where unknown.
        seed: of the run, for the choice of images.
        outliers: loader of test images of no class of `test`, under open-set noise; their labels are not looked at.
        further: tests beside the test set's own.
        losses: whether to record the training losses of right and of wrong labels, too.

    Attributes:
        test: as it was given.
    """

    def __init__(
        self,
        test: Loader,
        validation: Loader | None,
        train: Loader,
        wrong: Tensor,
        transition: Tensor | None,
        num_classes: int,
        seed: int,
        outliers: Loader | None = None,
        further: Sequence[FurtherTest] = (),
        losses: bool = False,
    ) -> None:
        self.test, self._validation, self._train, self._outliers = test, validation, train, outliers
        self._seed, self._further = seed, further
        self._transition, self._num_classes = transition, num_classes
        self._multilabel = test.labels.ndim == 2
        self._entries = wrong
        self._wrong = wrong.any(dim=1) if wrong.ndim == 2 else wrong  # of an image
        suspects = self._wrong.nonzero().flatten().cpu()
        if self._multilabel and wrong.ndim == 1:  # labels name sets: which classes of one are wrong is not told
            suspects = suspects[:0]
        self._suspects = self._few(suspects, "memorised")
        self._losses = losses
        self._others = self._few((~self._wrong).nonzero().flatten().cpu(), "rightly labelled")

    def __call__(self, method: Method, run: Run) -> dict[str, float]:
        """All metrics of the method as it stands; shares in [0, 1], NLL in nats.

        Under open-set noise an outlier is wrong whatever its label: "train.noise_auc" tells them too, and
        "train.memorised" counts those that are predicted as the label they were given. "test.inlier_auc" and
        "test.inlier_ap" are areas under the ROC and the precision-recall curve of telling the test set (the positives)
        from outliers by `Method.inlier_scores`.
        """
        probabilities, labels = self.predict_test(method, run)
        found = {f"test.{k}": v for k, v in self.score(probabilities, labels).items()}
        for other in self._further:
            images = other.images
            found |= other.score(probabilities if images is None else self._predict(method, run, other.name, images)[0])
        if self._outliers is not None:
            inlier_scores, inlier = self._inlier_scores(method, run, probabilities)
            found["test.inlier_auc"] = area_under_roc(inlier_scores, inlier)
            found["test.inlier_ap"] = average_precision(inlier_scores, inlier)
        if self._validation is not None:
            probabilities, labels = self._predict(method, run, "validation", self._validation)
            if self._multilabel:
                found["val.gap"] = average_precision(probabilities, labels)
            else:
                found["val.accuracy"] = accuracy(probabilities, labels)
        if len(self._suspects):
            probabilities, labels = self._predict(method, run, "memorised", self._train, self._suspects)
            if self._multilabel:
                wrong = self._entries[self._suspects].to(labels.device)
                found["train.memorised"] = float(((probabilities > 0.5) == labels.bool())[wrong].double().mean())
            else:
                found["train.memorised"] = accuracy(probabilities, labels)
            if self._losses:
                found |= loss_quartiles("wrong", probabilities, labels)
        if self._losses and len(self._others):
            found |= loss_quartiles("right", *self._predict(method, run, "losses", self._train, self._others))
        scores = method.noise_scores(run)
        if scores is not None and scores.shape != self._wrong.shape:
            raise TrainingFailed(f"noise_scores must give [{len(self._wrong)}], it gave {list(scores.shape)}")
        if scores is not None and not bool(scores.isfinite().all()):
            raise TrainingFailed("noise_scores gave a value that is NaN or infinite")
        if scores is not None and bool(self._wrong.any()) and not bool(self._wrong.all()):
            found["train.noise_auc"] = area_under_roc(scores, self._wrong.to(scores.device))
        estimate = method.transition()
        side, known = 2 if self._multilabel else self._num_classes, self._transition
        shapes = [(side, side)] + ([] if known is None else [tuple(known.shape)])  # of open-set noise with outliers
        if estimate is not None and (tuple(estimate.shape) not in shapes or not bool(estimate.isfinite().all())):
            raise TrainingFailed(f"transition must give finite [{side}, {side}], it gave {list(estimate.shape)}")
        if estimate is not None and known is not None and estimate.shape == known.shape:
            found["train.transition_error"] = float((estimate.double().cpu() - known).abs().mean())
        return found

    def _few(self, positions: Tensor, which: str) -> Tensor:
        """`MEMORISED_SAMPLES` of them, a fixed random choice, sorted; all where there are not more."""
        if len(positions) <= MEMORISED_SAMPLES:
            return positions
        generator = torch.Generator().manual_seed(stream(self._seed, which))
        return positions[torch.randperm(len(positions), generator=generator)[:MEMORISED_SAMPLES]].sort().values

    def predict_test(self, method: Method, run: Run) -> tuple[Tensor, Tensor]:
        """Probabilities [N, K] of the test set, with the draws that belong to `run.epoch`, and its clean labels."""
        return self._predict(method, run, "test", self.test)

    def inlier_curve(self, method: Method, run: Run) -> tuple[Tensor, Tensor]:
        """Precision [n] and recall [n] of telling test inliers from test outliers, recall ascending, n at most 200.

        Raises:
            UserError: there are no outliers: the noise is not open-set.
        """
        if self._outliers is None:
            raise UserError("there are no outliers to tell from: inlier detection is for noise open_set")
        return precision_recall(*self._inlier_scores(method, run, self.predict_test(method, run)[0]))

    def score(self, probabilities: Tensor, labels: Tensor) -> dict[str, float]:
        """`multilabel_metrics` or `classification_metrics`, as the task is."""
        return (multilabel_metrics if self._multilabel else classification_metrics)(probabilities, labels)

    def _inlier_scores(self, method: Method, run: Run, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [n] of the test set and then of outliers, and whether each is an inlier, bool [n].

        Of a method that offers none, the largest probability (Hendrycks and Gimpel 2017); `probabilities` are those of
        the test set.
        """
        assert self._outliers is not None
        inliers = self._offered(method, run, "inliers", self.test)
        outliers = self._offered(method, run, "outliers", self._outliers)
        if inliers is None or outliers is None:
            inliers = probabilities.amax(1)
            outliers = self._predict(method, run, "outliers", self._outliers)[0].amax(1)
        scores = torch.cat([inliers, outliers])
        return scores, torch.arange(len(scores), device=scores.device) < len(inliers)

    def _offered(self, method: Method, run: Run, which: str, loader: Loader) -> Tensor | None:
        """`Method.inlier_scores` of a whole set [n], checked."""

        def scores_of(batch: Batch) -> Tensor:
            scores = method.inlier_scores(batch.x)
            if scores is None:
                raise _NotOffered
            if scores.shape != (len(batch.x),) or not bool(scores.isfinite().all()):
                raise TrainingFailed(f"inlier_scores must give finite [{len(batch.x)}], it gave {list(scores.shape)}")
            return scores.double()

        torch.manual_seed(stream(self._seed, "evaluate", run.epoch, which))
        try:
            return run.group.over(loader, scores_of)
        except _NotOffered:
            return None

    def _predict(
        self, method: Method, run: Run, which: str, loader: Loader, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # A stream for each set: the size of one must not shift the draws of a Monte-Carlo method on another.
        torch.manual_seed(stream(self._seed, "evaluate", run.epoch, which))
        # The same draws on every rank: a batch's are shared by its samples, wherever they are.
        probabilities = run.group.over(loader, lambda batch: method.predict(batch.x).float(), indices)
        check_probabilities(probabilities, self._num_classes, self._multilabel)
        return probabilities, loader.labels if indices is None else loader.labels[indices.to(loader.labels.device)]


class _NotOffered(Exception):
    """A method without inlier scores; no rank has them."""


def check_probabilities(p: Tensor, num_classes: int, multilabel: bool = False) -> None:
    """Refuse a prediction that is no probability.

    Raises:
        TrainingFailed: another shape than [B, K], a value that is not finite or negative, rows that do not sum to one;
            where an image may have several labels, a value outside [0, 1] instead.
    """
    if p.ndim != 2 or p.shape[1] != num_classes:
        raise TrainingFailed(f"predict must give [B, {num_classes}], it gave {list(p.shape)}")
    if not bool(p.isfinite().all()):
        raise TrainingFailed("predict gave a value that is NaN or infinite")
    if multilabel:
        low, high = float(p.min()), float(p.max())
        if low < 0 or high > 1:
            raise TrainingFailed(f"predict must give probabilities in [0, 1]; they range over {low:.4g}..{high:.4g}")
        return
    total = p.sum(1)
    if bool((p < 0).any()) or bool(((total - 1).abs() > 1e-3).any()):
        worst = float(total[(total - 1).abs().argmax()])
        raise TrainingFailed(f"predict must give rows on the simplex; the worst row sums to {worst:.4g}")
