"""Metrics from `predict` alone. Only the evaluator holds clean labels and the test set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_calibration_error,
)

from noisebench.data import Loader
from noisebench.errors import TrainingFailed
from noisebench.method import Method
from noisebench.streams import stream

if TYPE_CHECKING:
    from noisebench.training import Run

NLL_FLOOR = 1e-12
ECE_BINS = 15
EVALUATION_BATCH = 512
MEMORISED_SAMPLES = 10_000
"""At most so many wrongly labelled training images are looked at for the memorised share (a fixed random choice)."""


class Evaluator:
    """Scores a method after every epoch.

    Args:
        test: loader of the test set under its clean labels.
        validation: loader of the held-out split under its **noisy** labels, or None.
        train: loader of the training split under its noisy labels.
        wrong: bool [N], which training labels are wrong.
        transition: the true T [K, K], or None where it is not known.
        seed: of the run, for the choice of images.
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
    ) -> None:
        self._test, self._validation, self._train = test, validation, train
        self._seed = seed
        self._wrong, self._transition, self._num_classes = wrong, transition, num_classes
        suspects = wrong.nonzero().flatten().cpu()
        if len(suspects) > MEMORISED_SAMPLES:
            generator = torch.Generator().manual_seed(stream(seed, "memorised"))
            suspects = suspects[torch.randperm(len(suspects), generator=generator)[:MEMORISED_SAMPLES]].sort().values
        self._suspects = suspects

    def __call__(self, method: Method, run: Run) -> dict[str, float]:
        """All metrics of the method as it stands; shares in [0, 1], NLL in nats."""
        probabilities, labels = self._predict(method, run, "test", self._test)
        found = {f"test.{k}": v for k, v in classification_metrics(probabilities, labels).items()}
        if self._validation is not None:
            probabilities, labels = self._predict(method, run, "validation", self._validation)
            found["val.accuracy"] = _accuracy(probabilities, labels)
        if len(self._suspects):
            probabilities, labels = self._predict(method, run, "memorised", self._train, self._suspects)
            found["train.memorised"] = _accuracy(probabilities, labels)
        scores = method.noise_scores(run)
        if scores is not None and scores.shape != self._wrong.shape:
            raise TrainingFailed(f"noise_scores must give [{len(self._wrong)}], it gave {list(scores.shape)}")
        if scores is not None and not bool(scores.isfinite().all()):
            raise TrainingFailed("noise_scores gave a value that is NaN or infinite")
        if scores is not None and bool(self._wrong.any()) and not bool(self._wrong.all()):
            found["train.noise_auc"] = float(binary_auroc(_ranks(scores), self._wrong.to(scores.device).long()))
        estimate = method.transition()
        if estimate is not None and (estimate.shape != (self._num_classes,) * 2 or not bool(estimate.isfinite().all())):
            raise TrainingFailed(f"transition must give finite [K, K], it gave {list(estimate.shape)}")
        if estimate is not None and self._transition is not None:
            found["train.transition_error"] = float((estimate.double().cpu() - self._transition).abs().mean())
        return found

    def _predict(
        self, method: Method, run: Run, which: str, loader: Loader, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # A stream for each set: the size of one must not shift the draws of a Monte-Carlo method on another.
        torch.manual_seed(stream(self._seed, "evaluate", run.epoch, which))
        rows, labels = [], []
        for batch in loader.batches(
            indices, augment=False, shuffle=False, batch_size=EVALUATION_BATCH, order_seed=0, augment_seed=0
        ):
            rows.append(method.predict(batch.x).float())
            labels.append(batch.y)
        probabilities = torch.cat(rows)
        check_probabilities(probabilities, self._num_classes)
        return probabilities, torch.cat(labels)


def check_probabilities(p: Tensor, num_classes: int) -> None:
    """Refuse a prediction that is no probability.

    Raises:
        TrainingFailed: another shape than [B, K], a value that is not finite or negative, rows that do not sum to one.
    """
    if p.ndim != 2 or p.shape[1] != num_classes:
        raise TrainingFailed(f"predict must give [B, {num_classes}], it gave {list(p.shape)}")
    if not bool(p.isfinite().all()):
        raise TrainingFailed("predict gave a value that is NaN or infinite")
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


def _accuracy(p: Tensor, y: Tensor, top_k: int = 1) -> float:
    return float(multiclass_accuracy(p, y, p.shape[1], average="micro", top_k=top_k, validate_args=False))


def _ranks(scores: Tensor) -> Tensor:
    """Scores as ranks in [0, 1]: torchmetrics would squash anything outside, and so tie large losses."""
    inverse: Tensor = torch.unique(scores.double(), return_inverse=True)[1]
    return inverse.double() / max(1, int(inverse.max()))
