"""Open-set noise: some samples are images of another dataset, under a label of the first."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _noise_checks as checks
from ._noise_checks import FloatArray
from ._noise_kinds import Asked, Drawn, Kind, Options, Resolved, percent, uniform_below
from .errors import UserError

LABELLED = 0.1


class OpenSet(Kind):
    """Sukhbaatar et al. 2014, "Training Convolutional Networks with Noisy Labels", Eq. 8.

    With P = rate a sample is an outlier: its image is one of the source's, its label uniform over the K classes. With
    P = `labelled` (the paper's alpha) an outlier is known to be one, to methods that ask for it; those are the extra
    images of class K + 1 that make the paper's T invertible. T is [K + 1, K + 1], outliers last.

    Each of these has a stream of its own, so that a sample that is an outlier at a lower rate is the same image under
    the same label at a higher one. No image of the source is used twice before all were used once.
    """

    name = "open_set"
    summary = "images of another dataset, under labels uniform over the classes (Sukhbaatar et al. 2014)"
    options: ClassVar[Mapping[str, str]] = {
        "source": "required: the other dataset's name; from Python its images [M, H, W, C], or how many they are",
        "labelled": f"share of the outliers that is told to methods that ask for it (default {LABELLED})",
    }
    per_entry = False

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        value = checks.check_rate(rate, self.name)
        return value, {"source": _source(options.get("source")), "labelled": _labelled(options)}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        source, labelled = options.get("source"), _labelled(options)
        text = f"open-set {percent(checks.check_rate(rate, self.name))}"
        text += f" from {source}" if isinstance(source, str) else ""
        return text if labelled == LABELLED else f"{text} ({percent(labelled)} labelled)"

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        matrix = np.eye(num_classes + 1)
        matrix[-1, :-1], matrix[-1, -1] = (1.0 - options["labelled"]) / num_classes, options["labelled"]
        return matrix

    def draw(self, asked: Asked) -> Drawn:
        size, samples = asked.options["source"], len(asked.labels)
        if isinstance(size, str):
            raise UserError(f"source: '{size}' is a name; give the images [M, H, W, C], or how many they are")
        uniform = self.generator(asked.seed).random(samples)
        at = np.flatnonzero(uniform < asked.rate)
        at = at[np.argsort(uniform[at], kind="stable")]  # those of a lower rate come first, whatever the rate
        images = np.argsort(self.generator(asked.seed, "images").random(size), kind="stable")
        outliers = np.full(samples, -1, dtype=np.int64)
        outliers[at] = images[np.arange(len(at)) % size]
        noisy = asked.labels.astype(np.int64)
        noisy[at] = uniform_below(asked.num_classes, self.generator(asked.seed, "labels").random(samples)[at])
        told = self.generator(asked.seed, "labelled").random(samples) < asked.options["labelled"]
        return Drawn(noisy, asked.rate, outliers=outliers, labelled=told & (outliers >= 0), source_size=size)


def _source(given: object) -> str | int:
    """The source's name, or how many images it has."""
    if given is None:
        raise UserError("source: missing; noise 'open_set' needs the dataset that outliers come from")
    if isinstance(given, (str, numbers.Integral)):
        return given if isinstance(given, str) else checks.check_integer(given, "source", least=1)
    try:
        size = len(given)  # type: ignore[arg-type]
        shape = np.shape(given[0]) if size else ()  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"source: a {type(given).__name__} is no set of images [M, H, W, C]") from None
    if len(shape) != 3:
        raise UserError(f"source: {[size, *shape]} is not [M, H, W, C]; give images, or how many they are")
    return size


def _labelled(options: Mapping[str, Any]) -> float:
    share = options.get("labelled", LABELLED)
    if isinstance(share, (bool, np.bool_)) or not isinstance(share, numbers.Real) or not 0.0 <= float(share) <= 1.0:
        raise UserError(f"labelled: {share!r} is no share of the outliers; it must be in [0, 1], e.g. {LABELLED}")
    return float(share)
