"""`NoisyLabels`, what an injection gives, and the table of kinds; `noisebench.noise` is the public face."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _noise_checks as checks
from ._noise_checks import FloatArray, LabelArray
from ._noise_given import Matched, Real
from ._noise_kinds import SMALL, Asymmetric, Clean, Kind, Pairflip, Symmetric
from ._noise_open_set import OpenSet
from ._noise_rows import ClassDependent, File, Instance, Matrix, count_transitions
from .errors import UserError

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Clean(),
        Symmetric(),
        Pairflip(),
        Asymmetric(),
        ClassDependent(),
        Matrix(),
        Instance(),
        File(),
        Real(),
        Matched(),
        OpenSet(),
    )
}
"""Every kind by name; its ``.summary`` is a line of help, its ``.options`` map each option to one."""


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Noisy labels and what is known of them; the true labels are not among it.

    Attributes:
        labels: noisy labels, int64 [N]; uint8 [N, K] where the true ones are multi-hot.
        kind: a name of `KINDS`.
        rate: the rate asked; for `matrix` and a trace the one they imply, 1 - trace(T)/K; None for `file`, `real` and
            `matched`.
        realised_rate: share of the labels (multi-hot: of the entries) that differ from the true ones; None where nobody
            knows these.
        expected_rate: that share as T implies it for these true labels; None alike.
        options: resolved options, ready for JSON (a T given as an array is its SHA-256).
        seed: the seed of the draws.
        num_classes: K.
        description: the label of `describe`.
        outliers: open-set noise alone, else None: int64 [N], the position in the source of the image that stands in for
            the sample, -1 where it is its own. An outlier counts as wrong whatever its label.
        labelled: open-set noise alone, else None: bool [N], the outliers that methods which need them are told of.
        source_size: open-set noise alone, else None: how many images the source has.
    """

    labels: LabelArray = field(repr=False)
    kind: str
    rate: float | None
    realised_rate: float | None
    expected_rate: float | None
    options: Mapping[str, Any]
    seed: int
    num_classes: int
    description: str
    outliers: NDArray[np.int64] | None = field(default=None, repr=False)
    labelled: NDArray[np.bool_] | None = field(default=None, repr=False)
    source_size: int | None = None
    _kept: FloatArray | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        """What Jupyter shows: the rate asked, expected and realised."""
        from .shown import noise_html

        return noise_html(self)

    @property
    def include_true(self) -> bool | None:
        """Whether symmetric noise may draw the true label again; None for other kinds."""
        return self.options.get("include_true")

    @property
    def known(self) -> bool:
        """Whether the true labels, and so a rate and a T, are known of it."""
        return self.expected_rate is not None

    @property
    def states(self) -> int:
        """The side of T: K; 2 for an entry of multi-hot labels, K + 1 where there are outliers."""
        if self.outliers is not None:
            return self.num_classes + 1
        return 2 if self.labels.ndim == 2 else self.num_classes

    @cached_property
    def transition(self) -> FloatArray:
        """T as asked, float64 [K, K], made when first read.

        [2, 2] for multi-hot labels; [K + 1, K + 1] for `open_set` (Sukhbaatar et al. 2014, Eq. 8, transposed): the
        identity, and last ((1 - alpha)/K, ..., alpha) for outliers, of which the share alpha is labelled as such.

        For `instance` the mean over each class of the probabilities used; for `file`, `real` and `matched` the counted
        T (a class without samples keeps its label). Those, and a loaded `matrix`, are kept up to K = 1,000 only.

        Raises:
            UserError: it is not kept, or nobody knows it.
        """
        if self._kept is not None:
            return self._kept
        if not self.known:
            raise UserError(f"transition: nobody knows the true labels under noise '{self.kind}', and so no T")
        if self.kind in ("instance", "file", "matrix", "real", "matched"):
            raise UserError(f"transition: noise '{self.kind}' keeps T up to {SMALL} classes, not {self.num_classes}")
        classes = 2 if self.labels.ndim == 2 else self.num_classes
        kind = KINDS[self.kind]
        rate, options = kind.resolve(self.rate, self.options, classes)
        return kind.matrix(rate or 0.0, options, classes)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the labels as little-endian int64; multi-hot ones row by row as uint8."""
        return sha256_of(self.labels)

    def realised_transition(self, true_labels: ArrayLike) -> FloatArray:
        """T counted against `true_labels`, of the noisy ones' shape, float64 [K, K]; a class without samples has NaN.

        [2, 2] for multi-hot labels; [K + 1, K + 1] for open-set noise, where outliers are truly of class K and those
        that are labelled as such have it for a label.
        """
        true, noisy = fitting(true_labels, self), self.labels
        if self.outliers is not None and self.labelled is not None:
            true = np.where(self.outliers >= 0, self.num_classes, true)
            noisy = np.where(self.labelled, self.num_classes, noisy)
        return count_transitions(true.reshape(-1), noisy.reshape(-1), self.states)


def sha256_of(labels: ArrayLike) -> str:
    """SHA-256 that noise.json holds of labels: [N] as little-endian int64, multi-hot [N, K] as uint8."""
    array = np.asarray(labels)
    return array_sha256(array, stored_type(array))


def fitting(true_labels: ArrayLike, noisy: NoisyLabels) -> NDArray[Any]:
    """True labels, checked, of the shape of the noisy ones."""
    true = checks.check_any_labels(true_labels, noisy.num_classes, "true_labels")
    if true.shape != noisy.labels.shape:
        found, wanted = (str(len(a)) if a.ndim == 1 else str(list(a.shape)) for a in (true, noisy.labels))
        raise UserError(f"true_labels: {found} labels do not fit {wanted} noisy ones")
    return true


def array_sha256(array: NDArray[Any], dtype: str = "<i8") -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=dtype).data).hexdigest()


def stored_type(labels: NDArray[Any]) -> str:
    """How labels are stored and hashed."""
    return "|u1" if labels.ndim == 2 else "<i8"
