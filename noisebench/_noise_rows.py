"""The kinds of label noise that need more than a rate: a random T, a given T, the samples' features, or a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import _noise_checks as checks
from ._noise_checks import FloatArray, IntArray
from ._noise_kinds import SMALL, Asked, Drawn, Kind, Options, Resolved, percent
from .errors import UserError

_BLOCK = 1 << 22  # numbers at a time of an instance block (32 MiB in float64)


class ClassDependent(Kind):
    """Random T: a diagonal that varies around its mean, and the rest of each row from Dirichlet(1, ..., 1)."""

    name = "class_dependent"
    summary = "a random T with the wanted trace, the same over seeds"
    options: ClassVar[Mapping[str, str]] = {
        "trace": "sum of T's diagonal, in [0, K], instead of a rate; trace = K * (1 - rate)",
        "matrix_seed": "which random T (default 0); the seed of the labels does not change it",
    }

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        seed = checks.check_integer(options.get("matrix_seed", 0), "matrix_seed")
        trace = options.get("trace")
        if trace is None:
            return checks.check_rate(rate, self.name), {"matrix_seed": seed}
        value = self._trace(trace)
        if num_classes is None:
            return None, {"trace": value, "matrix_seed": seed}
        if value > num_classes:
            raise UserError(
                f"trace: {value:g} is out of range; it must be in [0, {num_classes}] for {num_classes} classes"
            )
        implied = 1.0 - value / num_classes
        if rate is not None and not math.isclose(checks.check_rate(rate, self.name), implied, abs_tol=1e-9):
            raise UserError(
                f"rate: {rate} and trace: {value:g} disagree (that trace is rate {implied:g}); give one of them"
            )
        return implied, {"trace": value, "matrix_seed": seed}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        trace, seed = options.get("trace"), options.get("matrix_seed", 0)
        text = super().describe(rate, options) if trace is None else f"{self.name} trace {self._trace(trace):.6g}"
        return f"{text} (matrix {seed})" if seed else text

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        diagonal = self._diagonal(rate, options, num_classes)
        return np.stack([self._row(i, diagonal, options) for i in range(num_classes)])

    def draw(self, asked: Asked) -> Drawn:
        diagonal = self._diagonal(asked.rate, asked.options, asked.num_classes)
        noisy = draw_rows(asked.labels, self.generator(asked.seed), lambda i: self._row(i, diagonal, asked.options))
        return Drawn(noisy, _expected(asked.labels, diagonal))

    def _diagonal(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        mean = 1.0 - rate
        offset = self.generator(options["matrix_seed"], "diagonal").random(num_classes)
        offset -= offset.mean()
        # At most half-way to 0 or 1, so that every class keeps some of both whatever the trace.
        return np.asarray(mean + min(0.2, mean / 2, rate / 2) * offset / np.abs(offset).max())

    def _row(self, i: int, diagonal: FloatArray, options: Options) -> FloatArray:
        # A stream a row: a row can be made when it is needed, without the K - 1 others.
        others = self.generator(options["matrix_seed"], "row", i).standard_exponential(len(diagonal) - 1)
        return np.insert(others / others.sum() * (1.0 - diagonal[i]), i, diagonal[i])

    @staticmethod
    def _trace(trace: object) -> float:
        if isinstance(trace, bool) or not isinstance(trace, (int, float, np.number)) or not trace >= 0:
            raise UserError(f"trace: {trace!r} must be a number in [0, K]")
        return float(trace)


class Matrix(Kind):
    name = "matrix"
    summary = "a transition matrix of your own"
    options: ClassVar[Mapping[str, str]] = {
        "T": "required: [K, K] rows of P(noisy | true), or a .npy, .csv or .txt file of it"
    }

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        no_rate(rate, self.name, "T")
        given = options.get("T")
        if given is None:
            raise UserError("T: missing; noise 'matrix' needs T as [K, K] or as a path to a .npy, .csv or .txt file")
        if isinstance(given, (str, Path)):
            path = checks.check_path(given, "T", (".npy", ".csv", ".txt"))
            matrix = checks.check_matrix(checks.read_matrix(path), num_classes, f"T: '{path}'")
            return float(1.0 - np.diag(matrix).mean()), {"T": matrix, "recorded": str(given)}
        matrix = checks.check_matrix(given, num_classes)
        return float(1.0 - np.diag(matrix).mean()), {"T": matrix, "recorded": f"sha256:{_digest(given)}"}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        given = options.get("T")
        if given is None or isinstance(given, (str, Path)):
            return self.name if given is None else f"{self.name} {_short(given)}"
        matrix = checks.check_matrix(given, None)
        return f"{self.name} {percent(round(float(1.0 - np.diag(matrix).mean()), 4))} ({_digest(given)[:6]})"

    def record(self, options: Options) -> Options:
        return {"T": options["recorded"]}

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        matrix: FloatArray = options["T"]
        return matrix

    def draw(self, asked: Asked) -> Drawn:
        matrix: FloatArray = asked.options["T"]
        noisy = draw_rows(asked.labels, self.generator(asked.seed), lambda i: matrix[i])
        return Drawn(noisy, _expected(asked.labels, np.diag(matrix)), matrix)


class Instance(Kind):
    """Xia et al. 2020, "Part-dependent Label Noise", Algorithm 2.

    Sample i flips with its own rate q_i ~ N(rate, 0.1^2) truncated to [0, 1]; its label y goes to the other classes by
    q_i * softmax(x_i W_y), the own class left out, with W_y ~ N(0, I) of shape [S, K]. Truncation moves the mean of
    q_i where the rate is within 0.2 of 0 or 1 (0.13 at 0.1): `expected_rate` is the mean of the q_i drawn.
    """

    name = "instance"
    summary = "by the sample's own features (Xia et al. 2020); needs features"
    per_entry = False

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        value = checks.check_rate(rate, self.name)
        if value == 0.0:
            raise UserError(
                "rate: 0 would still flip 8% by instance noise (q_i ~ N(rate, 0.1^2) in [0, 1]); use noise 'none'"
            )
        return value, {}

    def draw(self, asked: Asked) -> Drawn:
        table = _check_features(asked.features, len(asked.labels))
        rates = truncated_normal(self.generator(asked.seed, "rates"), asked.rate, 0.1, len(asked.labels))
        uniform = self.generator(asked.seed, "draw").random(len(asked.labels))
        mean = np.eye(asked.num_classes) if asked.num_classes <= SMALL else None
        noisy = np.empty(len(asked.labels), dtype=np.int64)
        for label, members in _by_class(asked.labels):
            weights = self.generator(asked.seed, "weights", label).standard_normal((table.shape[1], asked.num_classes))
            total = np.zeros(asked.num_classes)
            rows = max(1, _BLOCK // max(weights.shape))
            for start in range(0, len(members), rows):
                index = members[start : start + rows]
                flips = instance_flips(table[index], weights, label, rates[index], index)
                total += flips.sum(axis=0)
                cumulative = np.cumsum(flips, axis=1)
                cumulative /= cumulative[:, -1:]
                noisy[index] = (uniform[index, None] >= cumulative).sum(axis=1)
            if mean is not None:
                mean[label] = total / len(members)
        return Drawn(noisy, float(rates.mean()), mean)


class File(Kind):
    name = "file"
    summary = "noisy labels from a file, e.g. human ones"
    options: ClassVar[Mapping[str, str]] = {
        "path": "required: .npy, .npz (array 'labels'), .txt or .csv (a label a line); multi-hot [N, K]: .npy or .npz"
    }

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        no_rate(rate, self.name, "path")
        if options.get("path") is None:
            raise UserError("path: missing; noise 'file' needs the path of a .npy, .npz, .txt or .csv file of labels")
        path = checks.check_path(options["path"], "path", (".npy", ".npz", ".txt", ".csv"))
        labels, name = checks.read_labels(path), f"path: '{path}'"
        if labels.ndim == 2:
            return None, {"path": str(options["path"]), "labels": checks.check_multihot(labels, None, name)}
        labels = checks.check_labels(labels, num_classes, name)
        return None, {"path": str(options["path"]), "labels": labels}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        return f"{self.name} {_short(options['path'])}" if "path" in options else self.name

    def record(self, options: Options) -> Options:
        return {"path": options["path"]}

    def draw(self, asked: Asked) -> Drawn:
        noisy = asked.options["labels"].astype(np.int64)
        if noisy.shape != asked.shape:
            found, wanted = (
                str(shape[0]) if noisy.ndim == len(asked.shape) == 1 else str(list(shape))
                for shape in (noisy.shape, asked.shape)
            )
            raise UserError(f"path: '{asked.options['path']}' has {found} labels, but the data set has {wanted}")
        noisy = noisy.reshape(-1)
        counted = None
        if asked.num_classes <= SMALL:
            counted = count_transitions(asked.labels, noisy, asked.num_classes)
            counted = np.where(np.isnan(counted), np.eye(asked.num_classes), counted)
        return Drawn(noisy, float(np.count_nonzero(noisy != asked.labels) / len(asked.labels)), counted)


def count_transitions(true: NDArray[Any], noisy: NDArray[Any], num_classes: int) -> FloatArray:
    """T counted from pairs, float64 [K, K]; a class without samples has a row of NaN."""
    pairs = true.astype(np.int64) * num_classes + noisy
    counts = np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def truncated_normal(generator: np.random.Generator, mean: float, sd: float, size: int) -> FloatArray:
    """N(mean, sd^2) truncated to [0, 1], float64 [size], by drawing again what falls outside."""
    values = mean + sd * generator.standard_normal(size)
    while len(outside := np.flatnonzero((values < 0.0) | (values > 1.0))):
        values[outside] = mean + sd * generator.standard_normal(len(outside))
    return values


def instance_flips(x: NDArray[Any], weights: FloatArray, label: int, rates: FloatArray, index: IntArray) -> FloatArray:
    """P(noisy | x, true = label), float64 [B, K].

    Args:
        x: features [B, S]; uint8 is scaled to [0, 1].
        weights: W of the class, [S, K].
        label: the true class of all of them.
        rates: flip rates [B].
        index: where they stand in the data set, for an error.
    """
    # In float64 the order of a sum, which differs between BLAS libraries, moves p by 1e-13: no label hangs on it.
    logits = x.astype(np.float64) @ weights
    if x.dtype == np.uint8:
        logits /= 255.0
    if not np.isfinite(logits).all():
        first = int(index[np.argmin(np.isfinite(logits).all(axis=1))])
        raise UserError(f"features: sample {first} is not finite")
    logits[:, label] = -np.inf
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits *= (rates / logits.sum(axis=1))[:, None]
    logits[:, label] = 1.0 - rates
    return np.asarray(logits)


def _check_features(features: object, samples: int) -> NDArray[Any]:
    if features is None:
        raise UserError("features: missing; noise 'instance' needs the samples as an array [N, ...] (uint8 or float)")
    array = np.asarray(features)
    if array.ndim < 2 or len(array) != samples:
        raise UserError(
            f"features: shape {array.shape} does not fit; it must be [{samples}, ...], a sample for each label"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise UserError(f"features: dtype {array.dtype} must be uint8 or float")
    return array.reshape(samples, -1)


def _by_class(labels: NDArray[Any]) -> Iterator[tuple[int, IntArray]]:
    """(class, where it stands) for every class that occurs."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, members in zip(classes, np.split(order, starts[1:]), strict=True):
        yield int(label), members


def draw_rows(labels: NDArray[Any], generator: np.random.Generator, row: Callable[[int], FloatArray]) -> IntArray:
    """A class from row T[y] for every sample, by inverting the cumulative sum; rows are asked for one at a time."""
    uniform = generator.random(len(labels))
    noisy = np.empty(len(labels), dtype=np.int64)
    for label, members in _by_class(labels):
        cumulative = np.cumsum(row(label))
        cumulative /= cumulative[-1]  # ends at exactly 1, so that no draw falls past the end
        noisy[members] = np.searchsorted(cumulative, uniform[members], side="right")
    return noisy


def _expected(labels: NDArray[Any], diagonal: FloatArray) -> float:
    counts = np.bincount(labels, minlength=len(diagonal))
    return float(counts @ (1.0 - diagonal) / len(labels))


def no_rate(rate: object, kind: str, option: str) -> None:
    if rate is not None:
        raise UserError(
            f"rate: {rate} was given, but the rate of noise '{kind}' comes from {option}; leave it out (None)"
        )


def _short(path: str | Path) -> str:
    """The file with its folder: enough to tell two apart, without a machine's whole path."""
    return "/".join(Path(path).parts[-2:]).lstrip("/")


def _digest(matrix: object) -> str:
    return hashlib.sha256(np.asarray(matrix, dtype="<f8").tobytes()).hexdigest()
