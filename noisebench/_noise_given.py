"""Noise that people or the web made: the labels themselves, and synthetic noise of the same strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _noise_checks as checks
from ._noise_checks import FloatArray
from ._noise_kinds import SMALL, Asked, Drawn, Kind, Options, Resolved
from ._noise_rows import count_transitions, draw_rows, no_rate
from .errors import UserError


class Real(Kind):
    """The labels that came with a dataset. Their T is counted against the true ones where these are known.

    Without `given` the training labels themselves are such labels, and nobody knows the true ones: no rate, no T.
    """

    name = "real"
    summary = "labels that people or the web gave, as a dataset has them"
    options: ClassVar[Mapping[str, str]] = {
        "given": "which of the dataset's, where it has several, e.g. worse; from Python the labels [N]"
    }

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        no_rate(rate, self.name, "given")
        given = options.get("given")
        if given is None or isinstance(given, str):
            return None, {} if given is None else {"given": given}
        if np.ndim(given) == 0:
            raise UserError(f"given: {given} is no name; give one of the dataset's, or from Python the labels [N]")
        return None, {"given": checks.check_labels(given, num_classes)}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        given = options.get("given")
        return f"{self.name} ({given})" if isinstance(given, str) else self.name

    def record(self, options: Options) -> Options:
        return {key: value for key, value in options.items() if isinstance(value, str)}

    def draw(self, asked: Asked) -> Drawn:
        if "given" not in asked.options:
            return Drawn(asked.labels.astype(np.int64), None)
        given = _given_of(asked, self.name)
        return Drawn(given, float(np.mean(given != asked.labels)), _counted(asked, given))


class Matched(Real):
    """Synthetic noise as strong as people's: class-dependent, with the T and the rate of their labels.

    Each label is drawn from its row of the counted T, so that what is left out is how hard each image is: what people
    make of real noise over synthetic (Wei et al. 2022, "Learning with Noisy Labels Revisited").
    """

    name = "matched"
    summary = "class-dependent, with the T counted of labels that people gave: synthetic noise of equal strength"

    def draw(self, asked: Asked) -> Drawn:
        if "given" not in asked.options:
            raise UserError(f"given: missing; noise '{self.name}' needs the labels whose T it takes")
        given = _given_of(asked, self.name)
        # A row at a time: T itself would be 3.8 GB at K = 21,841.
        rows = np.argsort(asked.labels, kind="stable")
        starts = np.searchsorted(asked.labels[rows], np.arange(asked.num_classes + 1))

        def row(label: int) -> FloatArray:
            members = given[rows[starts[label] : starts[label + 1]]]
            return np.bincount(members, minlength=asked.num_classes) / len(members)

        noisy = draw_rows(asked.labels, self.generator(asked.seed), row)
        return Drawn(noisy, float(np.mean(given != asked.labels)), _counted(asked, given))


def _given_of(asked: Asked, kind: str) -> checks.IntArray:
    """The labels that were given, int64 [N]."""
    given = asked.options["given"]
    if isinstance(given, str):
        raise UserError(f"given: '{given}' is a name; give the labels [N] that noise '{kind}' is to take")
    if len(asked.shape) != 1 or len(given) != len(asked.labels):
        raise UserError(
            f"given: {len(given)} labels do not fit {list(asked.shape)} true ones; give one for each sample"
        )
    return np.asarray(given, dtype=np.int64)


def _counted(asked: Asked, given: checks.IntArray) -> FloatArray | None:
    if asked.num_classes > SMALL:
        return None
    counted = count_transitions(asked.labels, given, asked.num_classes)
    return np.where(np.isnan(counted), np.eye(asked.num_classes), counted)
