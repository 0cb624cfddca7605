"""Metrics as functions of tensors: what the evaluator and the analyses compute, with no state and no data.

Formulas in torch alone, on the device of their input: a library of metrics would cost each worker seconds to import.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NLL_FLOOR = 1e-12
ECE_BINS = 15


def accuracy(p: Tensor, y: Tensor, top_k: int = 1) -> float:
    """The share of samples whose label [B] is among the `top_k` largest of p [B, K]."""
    hits = p.argmax(1) == y if top_k == 1 else (p.topk(top_k, 1).indices == y[:, None]).any(1)
    return float(hits.sum() / len(y))


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The expected calibration error: mean |share of right - confidence| over 15 equal-width bins, by their counts.

    Args:
        confidence: float [N], clamped to [0, 1]; right: bool [N].
    """
    confidence, bins = confidence.clamp(0, 1), _bins(confidence)
    count, sure, correct = (
        torch.zeros(ECE_BINS + 1, dtype=confidence.dtype, device=bins.device).scatter_add_(0, bins, values)
        for values in (torch.ones_like(confidence), confidence, right.to(confidence.dtype))
    )
    gaps = (correct / count).nan_to_num() - (sure / count).nan_to_num()
    return float((gaps.abs() * (count / count.sum())).sum())


def _bins(confidence: Tensor) -> Tensor:
    """The bin of each, closed on the left: 0 to 14, and 15 for a confidence of 1 alone."""
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=confidence.dtype, device=confidence.device)
    return torch.bucketize(confidence.clamp(0, 1), edges, right=True) - 1


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve of scores [N], any numbers, larger = more likely positive; positive: bool [N].

    Both kinds are there. By the trapezoidal rule, so that ties count a half.
    """
    ordered, order = scores.double().sort(descending=True)
    last = torch.cat([(ordered[1:] != ordered[:-1]).nonzero().flatten(), order.new_tensor([len(order) - 1])])
    hits = positive[order].long().cumsum(0)[last]
    misses = 1 + last - hits
    rates = [torch.cat([n.new_zeros(1), n]) / n[-1] for n in (misses, hits)]
    return float(torch.trapezoid(rates[1], rates[0]))


def classification_metrics(p: Tensor, y: Tensor) -> dict[str, float]:
    """Top-1, top-5, NLL (floored at 1e-12) and ECE (15 equal-width bins) of probabilities [B, K] against y [B]."""
    found = {"accuracy": accuracy(p, y)}
    if p.shape[1] > 5:
        found["top5"] = accuracy(p, y, top_k=5)
    found["nll"] = float(-p.gather(1, y[:, None]).clamp_min(NLL_FLOOR).double().log().mean())
    confidence, predicted = p.clamp(0, 1).max(1)
    found["ece"] = calibration_error(confidence, predicted == y)
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
    bins = _bins(confidence)
    gaps = torch.zeros(ECE_BINS + 1, dtype=torch.float64, device=p.device)
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
        "ece": calibration_error(p.flatten(), y.flatten().bool()),
    }


def average_precision(p: Tensor, y: Tensor) -> float:
    """gAP: average precision over all entries [B, K] at once (micro-averaged), exact; 0 where no label is present.

    The mean over the present entries of the precision at their own p; equal to the sum over thresholds of
    (R_n - R_{n-1}) P_n, ties included.
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
    bins = _bins(confidence).clamp_max(ECE_BINS - 1)  # 1 belongs to the last
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
