"""Metrics from `predict` alone. Only the evaluator holds clean labels and the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from noisebench.data import Loader
from noisebench.errors import TrainingFailed, UserError
from noisebench.method import Batch, Method
from noisebench.ranks import EVALUATION_BATCH as EVALUATION_BATCH
from noisebench.streams import stream

if TYPE_CHECKING:
    from noisebench.training import Run

NLL_FLOOR = 1e-12
ECE_BINS = 15
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
            found["test.inlier_auc"] = float(binary_auroc(_ranks(inlier_scores), inlier.long()))
            found["test.inlier_ap"] = average_precision(inlier_scores, inlier)
        if self._validation is not None:
            probabilities, labels = self._predict(method, run, "validation", self._validation)
            if self._multilabel:
                found["val.gap"] = average_precision(probabilities, labels)
            else:
                found["val.accuracy"] = _accuracy(probabilities, labels)
        if len(self._suspects):
            probabilities, labels = self._predict(method, run, "memorised", self._train, self._suspects)
            if self._multilabel:
                wrong = self._entries[self._suspects].to(labels.device)
                found["train.memorised"] = float(((probabilities > 0.5) == labels.bool())[wrong].double().mean())
            else:
                found["train.memorised"] = _accuracy(probabilities, labels)
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
            found["train.noise_auc"] = float(binary_auroc(_ranks(scores), self._wrong.to(scores.device).long()))
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


def classification_metrics(p: Tensor, y: Tensor) -> dict[str, float]:
    """Top-1, top-5, NLL (floored at 1e-12) and ECE (15 equal-width bins) of probabilities [B, K] against y [B]."""
    found = {"accuracy": _accuracy(p, y)}
    if p.shape[1] > 5:
        found["top5"] = _accuracy(p, y, top_k=5)
    found["nll"] = float(-p.gather(1, y[:, None]).clamp_min(NLL_FLOOR).double().log().mean())
    # torchmetrics takes values outside [0, 1] for logits: rounding must not push a probability there.
    found["ece"] = float(
        multiclass_calibration_error(p.clamp(0, 1), y, p.shape[1], ECE_BINS, "l1", validate_args=False)
    )
    return found


def calibration_to_people(p: Tensor, soft: Tensor) -> dict[str, float]:
    """NLL and ECE of probabilities [B, K] against the shares of people that said each class, [B, K].

    NLL is the cross-entropy -sum_k q_k log p_k (Peterson et al. 2019, "Human uncertainty makes classification more
    robust"), p floored at 1e-12: at its least it is the entropy of q, not 0. ECE compares the largest p with the share
    of people that said the same class, over 15 equal-width bins of the former: those of `classification_metrics`, so
    that people who all say the label give its ECE.
    """
    confidence, predicted = p.clamp(0, 1).max(1)
    agreed = soft.gather(1, predicted[:, None]).flatten()
    # torchmetrics' bins: closed on the left, in the type of p, and one of its own for a confidence of 1.
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=p.dtype, device=p.device)
    bins = torch.bucketize(confidence, edges, right=True) - 1
    gaps = torch.zeros(len(edges), dtype=torch.float64, device=p.device)
    gaps.index_add_(0, bins, confidence.double() - agreed)
    nll = -(soft * p.double().clamp_min(NLL_FLOOR).log()).sum(1).mean()
    return {"nll": float(nll), "ece": float(gaps.abs().sum()) / len(p)}


def multilabel_metrics(p: Tensor, y: Tensor) -> dict[str, float]:
    """gAP, NLL and ECE of probabilities [B, K] in [0, 1] against multi-hot y [B, K].

    NLL is the binary cross-entropy summed over the classes, mean over the images (Collier et al. 2021, Table 3), with
    both p and 1 - p floored at 1e-12. ECE (15 equal-width bins) compares p with how often the class is there, over all
    entries.
    """
    right = torch.where(y.bool(), p, 1 - p).clamp_min_(NLL_FLOOR)
    return {
        "gap": average_precision(p, y),
        "nll": -float(right.log_().sum(dtype=torch.float64)) / len(p),
        "ece": float(binary_calibration_error(p, y, ECE_BINS, "l1", validate_args=False)),
    }


def average_precision(p: Tensor, y: Tensor) -> float:
    """gAP: average precision over all entries [B, K] at once (micro-averaged), exact; 0 where no label is present.

    The mean over the present entries of the precision at their own p; equal to the sum over thresholds of
    (R_n - R_{n-1}) P_n, ties included. torchmetrics' exact curve takes four times the memory of this sort.
    """
    everything, present = p.flatten().sort().values, p[y.bool()].sort().values
    if not len(present):
        return 0.0
    hits = len(present) - torch.searchsorted(present, present)
    return float((hits.double() / (len(everything) - torch.searchsorted(everything, present))).mean())


def calibration(p: Tensor, y: Tensor) -> dict[str, list[Any]]:
    """A reliability diagram: 15 equal-width bins of confidence, those of the ECE.

    Args:
        p: probabilities [B, K]; y: labels [B], of which the largest p is looked at, or multi-hot [B, K], of which every
            entry is.

    Returns:
        {"count": 15 ints; "confidence", "accuracy": 15 means in [0, 1], None in an empty bin}.
    """
    confidence, predicted = p.clamp(0, 1).max(1)
    right = predicted == y if y.ndim == 1 else y.flatten().bool()
    if y.ndim == 2:
        confidence = p.clamp(0, 1).flatten()
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=p.dtype, device=p.device)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp_max(ECE_BINS - 1)  # 1 belongs to the last
    count = torch.bincount(bins, minlength=ECE_BINS)
    means = [torch.bincount(bins, values.double(), minlength=ECE_BINS) / count for values in (confidence, right)]
    shown = [[round(v, 6) if n else None for v, n in zip(m.tolist(), count.tolist(), strict=True)] for m in means]
    return {"count": count.tolist(), "confidence": shown[0], "accuracy": shown[1]}


def loss_quartiles(which: str, p: Tensor, y: Tensor) -> dict[str, float]:
    """Quartiles of the cross-entropy in nats of p [B, K], floored at 1e-12, under y (Arazo et al. 2019, Fig. 1).

    Named ``train.loss_<which>.q25``, ``.median``, ``.q75``. Of multi-hot y [B, K] the binary one, summed over classes.
    """
    if y.ndim == 1:
        losses = -p.gather(1, y[:, None]).clamp_min(NLL_FLOOR).double().log().flatten()
    else:
        losses = -torch.where(y.bool(), p, 1 - p).clamp_min(NLL_FLOOR).double().log().sum(1)
    found = losses.cpu().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {f"train.loss_{which}.{name}": value for name, value in zip(("q25", "median", "q75"), found, strict=True)}


def precision_recall(scores: Tensor, positive: Tensor, points: int = 200) -> tuple[Tensor, Tensor]:
    """Precision [n] and recall [n], float64, of "positive from this score on", from the highest score to the lowest.

    One point for each score that occurs, thinned evenly to `points` where there are more; the last has recall one.

    Args:
        scores: [N], larger = more likely positive; positive: bool [N], one at least.
    """
    ordered, order = scores.sort(descending=True)
    found = positive[order].double().cumsum(0)
    last = torch.cat([(ordered[1:] != ordered[:-1]).nonzero().flatten().cpu(), torch.tensor([len(scores) - 1])])
    if len(last) > points:
        last = last[torch.linspace(0, len(last) - 1, points, dtype=torch.float64).round().long()]
    found = found.cpu()
    return found[last] / (last + 1), found[last] / found[-1]


def _accuracy(p: Tensor, y: Tensor, top_k: int = 1) -> float:
    return float(multiclass_accuracy(p, y, p.shape[1], average="micro", top_k=top_k, validate_args=False))


def _ranks(scores: Tensor) -> Tensor:
    """Scores as ranks in [0, 1]: torchmetrics would squash anything outside, and so tie large losses."""
    inverse: Tensor = torch.unique(scores.double(), return_inverse=True)[1]
    return inverse.double() / max(1, int(inverse.max()))
