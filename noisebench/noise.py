"""Label noise: transition matrices, injection, and the artefact that every method of a column shares.

T[i, j] = P(noisy = j | true = i) everywhere: rows sum to one. Labels are drawn one sample at a time from row T[y], so
the share that is wrong varies around what was asked; both are kept. Arrays in, arrays out; NumPy alone is imported, so
that a configuration can be checked without torch.

Where a sample has several labels they are multi-hot, [N, K] of 0 and 1. Each entry is then a label of its own with two
classes, 0 (absent) and 1 (present), drawn by itself, and T is [2, 2]: ``asymmetric`` with mapping {1: 0} makes labels
go missing, and ``symmetric`` flips entries either way. A rate is the share of entries; that of ``asymmetric``
is the share of the entries of a mapped class, with {1: 0} of the labels that are there.

Under ``open_set`` it is the image that is wrong: `NoisyLabels.outliers` says which image of another dataset stands in
for each sample, and T has a class more, K, for them.

Example:
    >>> noisy = inject([0, 1, 2] * 100, "symmetric", 0.4, num_classes=3, seed=0)
    >>> noisy.description, noisy.expected_rate
    ('symmetric 40% (excl. true)', 0.4)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _noise_checks as checks
from ._noise_artefact import load, save
from ._noise_checks import FloatArray, LabelArray
from ._noise_drawing import draw_transition
from ._noise_kinds import Asked, Kind
from ._noise_labels import KINDS, NoisyLabels, sha256_of
from .errors import UserError, unknown

__all__ = [
    "KINDS",
    "NoisyLabels",
    "check",
    "describe",
    "draw_transition",
    "inject",
    "load",
    "save",
    "sha256_of",
    "transition_matrix",
]


def transition_matrix(kind: str, rate: float | None, num_classes: int, **options: Any) -> FloatArray:
    """T, float64 [K, K], row-stochastic; [K + 1, K + 1] for `open_set`, outliers last.

    Args:
        kind: a name of `KINDS`, but for `instance` and `file`, whose T comes from the data.
        rate: asked rate in [0, 1]; None where an option implies it.
        num_classes: K.
        **options: those of the kind.

    Raises:
        UserError: naming the argument.
    """
    found, classes = _find(kind, options), checks.check_integer(num_classes, "num_classes", least=2)
    resolved_rate, resolved = found.resolve(rate, options, classes)
    return found.matrix(resolved_rate or 0.0, resolved, classes)


def inject(
    labels: ArrayLike,
    kind: str,
    rate: float | None = None,
    *,
    num_classes: int,
    seed: int,
    features: object = None,
    **options: Any,
) -> NoisyLabels:
    """Draw noisy labels for true ones; every sample by itself from row T[y]. The same seed gives the same labels.

    Args:
        labels: true labels [N], any integer type, in [0, num_classes); or multi-hot [N, num_classes], 0 and 1, whose
            entries are drawn one by one under a T [2, 2] over {absent, present}. Never changed.
        kind: a name of `KINDS`.
        rate: asked rate in [0, 1]; None where an option implies it.
        num_classes: K.
        seed: seed of the draws (see `streams`).
        features: samples [N, ...], uint8 (scaled to [0, 1]) or float; read by `instance` alone.
        **options: those of the kind.

    Raises:
        UserError: naming the argument.
    """
    found, classes = _find(kind, options), checks.check_integer(num_classes, "num_classes", least=2)
    seed = checks.check_integer(seed, "seed")
    true = checks.check_any_labels(labels, classes)
    states = _states(found, classes, true.ndim == 2)
    resolved_rate, resolved = found.resolve(rate, options, states)
    drawn = found.draw(Asked(true.reshape(-1), resolved_rate or 0.0, resolved, states, seed, features, true.shape))
    noisy: LabelArray = drawn.labels
    if true.ndim == 2:
        noisy = noisy.astype(np.uint8).reshape(true.shape)
    wrong = noisy != true if drawn.outliers is None else drawn.outliers >= 0
    return NoisyLabels(
        labels=noisy,
        kind=kind,
        rate=resolved_rate,
        realised_rate=None if drawn.expected_rate is None else float(np.count_nonzero(wrong) / true.size),
        expected_rate=drawn.expected_rate,
        options=found.record(resolved),
        seed=seed,
        num_classes=classes,
        description=found.describe(rate, options),
        outliers=drawn.outliers,
        labelled=drawn.labelled,
        source_size=drawn.source_size,
        _kept=drawn.transition,
    )


def check(
    kind: str,
    rate: float | None,
    options: Mapping[str, Any],
    num_classes: int | None = None,
    multilabel: bool = False,
) -> None:
    """Raise what `inject` would raise for these, without labels; files that are named are read.

    Raises:
        UserError: naming the argument.
    """
    classes, found = None, _find(kind, options)
    if num_classes is not None:
        classes = checks.check_integer(num_classes, "num_classes", least=2)
    if classes is not None or multilabel:
        classes = _states(found, classes or 2, multilabel)
    found.resolve(rate, options, classes)


def resolved(kind: str, rate: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Kind, rate and options with the defaults filled in, ready for JSON: the same noise gives the same dict.

    Raises:
        UserError: naming the argument.
    """
    found = _find(kind, options)
    asked, filled = found.resolve(rate, options, None)
    return {"kind": kind, "rate": asked, **found.record(filled)}


def describe(kind: str, rate: float | None = None, **options: Any) -> str:
    """A short label that says which noise exactly, e.g. ``symmetric 40% (excl. true)``; reads no file.

    Raises:
        UserError: for an unknown kind or option, or a rate out of range.
    """
    return _find(kind, options).describe(rate, options)


def _find(kind: object, options: Mapping[str, Any]) -> Kind:
    """The kind of that name, if it takes these options."""
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise unknown("noise kind", kind, KINDS)
    found.check_options(options)
    return found


def _states(kind: Kind, num_classes: int, multilabel: bool) -> int:
    """How many values each label that is drawn can take: K, or 2 for an entry of multi-hot labels."""
    if multilabel and not kind.per_entry:
        entrywise = ", ".join(name for name, known in KINDS.items() if known.per_entry)
        raise UserError(f"noise '{kind.name}' is for one label a sample, and here are several; use {entrywise}")
    return 2 if multilabel else num_classes
