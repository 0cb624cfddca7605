"""The metrics of a run: what they are called, which way is better, which of them judges a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

RULES = {
    "selected": "the epoch selected on held-out noisy labels",
    "last": "the last epoch",
    "best": "the best test epoch (an oracle: it is picked by the test labels)",
}


class Metric(NamedTuple):
    """How a metric is named, compared and shown."""

    title: str
    percent: bool
    higher_is_better: bool


METRICS = {
    "accuracy": Metric("accuracy", True, True),
    "gap": Metric("gAP", True, True),
    "top5": Metric("top-5", True, True),
    "nll": Metric("NLL", False, False),
    "ece": Metric("ECE", False, False),
    "memorised": Metric("memorised", True, False),
    "noise_auc": Metric("noise AUC", True, True),
    "inlier_auc": Metric("inlier AUC", True, True),
    "inlier_ap": Metric("inlier AP", True, True),
    "transition_error": Metric("T error", False, False),
}


def about(name: str) -> Metric | None:
    """The metric of that name, or of a further test ``<test>.<metric>``; None if it is no metric's."""
    test, dot, metric = name.rpartition(".")
    found = METRICS.get(metric)
    return found._replace(title=f"{found.title} ({test})") if found and dot else found


SCORES = ("accuracy", "gap")
"""What a run is judged by: accuracy, or gAP where an image may have several labels. A run reports one of them."""


def score_of(metrics: Iterable[str]) -> str:
    """The one of `SCORES` that is among these names."""
    names = set(metrics)
    return next((name for name in SCORES if name in names), SCORES[0])
