"""The kinds of label noise: what each takes, its transition matrix, and how its labels are drawn.

One class a kind; `noisebench.noise` is the public face. T[i, j] = P(noisy = j | true = i). Every sample is drawn by
itself from row T[y]. Nothing here forms an [N, K] array, nor a [K, K] one to draw labels (T is 3.8 GB at K = 21,841).

Draws come from PCG64 streams, mostly as plain uniform doubles, which are the same bits on every platform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _noise_checks as checks
from ._noise_checks import FloatArray, IntArray
from .errors import UserError, unknown
from .streams import stream

Options = dict[str, Any]
Resolved = tuple[float | None, Options]  # rate and options, checked, with defaults filled in

SMALL = 1000  # up to this K, a [K, K] matrix is small enough to be kept and stored
_CHUNK = 1 << 18  # samples at a time: temporaries stay in cache, memory stays O(N)


class Drawn(NamedTuple):
    """Noisy labels [N], the share of wrong ones that T implies, and T [K, K] where only the draw knows it.

    A share of None: nobody knows the true labels.

    For open-set noise also `outliers` int64 [N], the image of the source that stands in for each sample or -1,
    `labelled` bool [N], and `source_size`, how many images the source has.
    """

    labels: IntArray
    expected_rate: float | None
    transition: FloatArray | None = None
    outliers: IntArray | None = None
    labelled: NDArray[np.bool_] | None = None
    source_size: int | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of a draw: true labels [N] (any integer dtype), rate (0 where there is none), options; checked.

    Multi-hot labels come flattened, with `num_classes` 2; `shape` is that of the labels before.
    """

    labels: NDArray[Any]
    rate: float
    options: Options
    num_classes: int
    seed: int
    features: object = None
    shape: tuple[int, ...] = ()


class Kind(ABC):
    """A kind of label noise. `options` maps each option it takes to a line of help; `summary` is a line of help.

    `per_entry`: whether it can be drawn for each entry of multi-hot labels by itself.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    per_entry: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.summary

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        """Rate and options checked, with defaults filled in; `num_classes` is None where it is not known yet."""
        return checks.check_rate(rate, self.name), {}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        """A short label, e.g. ``pairflip 45%``; reads no file."""
        return f"{self.name} {percent(checks.check_rate(rate, self.name))}"

    def record(self, options: Options) -> Options:
        """Resolved options as they are kept with the labels and written as JSON."""
        return options

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        """T, float64 [K, K]."""
        raise UserError(
            f"noise '{self.name}' has no transition matrix without labels; inject() gives it as .transition"
        )

    @abstractmethod
    def draw(self, asked: Asked) -> Drawn:
        """Noisy labels for the true ones, each drawn by itself."""

    def generator(self, seed: int, *purpose: str | int) -> np.random.Generator:
        """The generator of one purpose of this kind under `seed`."""
        return np.random.Generator(np.random.PCG64(stream(seed, "noise", self.name, *purpose)))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options this kind does not take."""
        for option in options:
            if option not in self.options and not self.options:
                raise UserError(f"noise '{self.name}' takes no options, but '{option}' was given")
            if option not in self.options:
                raise unknown(f"noise '{self.name}': option", option, self.options)


class Clean(Kind):
    name = "none"
    summary = "clean labels, as they are"

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        if rate is not None and checks.check_rate(rate, self.name) != 0.0:
            raise UserError(f"rate: {rate} was given, but noise 'none' has rate 0")
        return 0.0, {}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        return "clean"

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        return np.eye(num_classes)

    def draw(self, asked: Asked) -> Drawn:
        return Drawn(asked.labels.astype(np.int64), 0.0)


class _Replacing(Kind):
    """Kinds where a sample is picked with P = rate and then its label replaced."""

    @abstractmethod
    def replace(self, true: IntArray, uniform: FloatArray, asked: Asked) -> IntArray:
        """The new labels of the picked samples, from `uniform` draws in [0, 1)."""

    @abstractmethod
    def expected(self, asked: Asked) -> float:
        """The share of wrong labels that T implies."""

    def draw(self, asked: Asked) -> Drawn:
        generator = self.generator(asked.seed)
        noisy = np.empty(len(asked.labels), dtype=np.int64)
        for start in range(0, len(asked.labels), _CHUNK):
            part = noisy[start : start + _CHUNK]
            part[...] = asked.labels[start : start + _CHUNK]
            uniform = generator.random(len(part))
            picked = np.flatnonzero(uniform < asked.rate)
            # One draw does both: below the rate, draw / rate is uniform again. So the samples changed at a lower
            # rate are among those changed at a higher one.
            part[picked] = self.replace(part[picked], uniform[picked] / asked.rate, asked)
        return Drawn(noisy, self.expected(asked))


class Symmetric(_Replacing):
    name = "symmetric"
    summary = "any other class alike (include_true: uniform over all classes, the true one too)"
    options: ClassVar[Mapping[str, str]] = {
        "include_true": "true: a uniform draw over all K classes with P = rate (rate * (K-1)/K wrong); default false"
    }

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        value, include = checks.check_rate(rate, self.name), self._include(options)
        if num_classes is not None and not include and value > (num_classes - 1) / num_classes + 1e-12:
            limit = (num_classes - 1) / num_classes
            raise UserError(
                f"rate: {value:g} is over what symmetric noise excluding the true label allows for {num_classes} "
                f"classes, (K-1)/K = {limit:.6g}: beyond it the true label is less likely than any other; "
                "lower it, or set include_true"
            )
        return value, {"include_true": include}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        return f"{super().describe(rate, options)} ({'incl' if self._include(options) else 'excl'}. true)"

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        others = rate / num_classes if options["include_true"] else rate / (num_classes - 1)
        matrix = np.full((num_classes, num_classes), others)
        np.fill_diagonal(matrix, 1.0 - others * (num_classes - 1))
        return matrix

    def replace(self, true: IntArray, uniform: FloatArray, asked: Asked) -> IntArray:
        if asked.options["include_true"]:
            return uniform_below(asked.num_classes, uniform)
        return (true + 1 + uniform_below(asked.num_classes - 1, uniform)) % asked.num_classes

    def expected(self, asked: Asked) -> float:
        return asked.rate * (asked.num_classes - 1) / asked.num_classes if asked.options["include_true"] else asked.rate

    @staticmethod
    def _include(options: Mapping[str, Any]) -> bool:
        include = options.get("include_true", False)
        if not isinstance(include, (bool, np.bool_)):
            raise UserError(f"include_true: {include!r} is not true or false")
        return bool(include)


class Pairflip(_Replacing):
    name = "pairflip"
    summary = "class i to class i+1 (the last one to 0)"

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        eye = np.eye(num_classes)
        return (1.0 - rate) * eye + rate * np.roll(eye, 1, axis=1)

    def replace(self, true: IntArray, uniform: FloatArray, asked: Asked) -> IntArray:
        return (true + 1) % asked.num_classes

    def expected(self, asked: Asked) -> float:
        return asked.rate


class Asymmetric(_Replacing):
    name = "asymmetric"
    summary = "each mapped class to the one class it is mistaken for; other classes stay clean"
    options: ClassVar[Mapping[str, str]] = {"mapping": "required: {true class: noisy class, ...}, e.g. {9: 1, 2: 0}"}

    def resolve(self, rate: object, options: Mapping[str, Any], num_classes: int | None) -> Resolved:
        value, given = checks.check_rate(rate, self.name), options.get("mapping")
        if not isinstance(given, Mapping) or not given:
            got = "missing" if given is None else f"{given!r} is not a class map"
            raise UserError(f"mapping: {got}; noise 'asymmetric' needs {{true class: noisy class, ...}}, e.g. {{9: 1}}")
        mapping: dict[int, int] = {}
        for key, target in given.items():
            source, to = (_class_number(part, num_classes) for part in (key, target))
            if source in mapping:
                raise UserError(f"mapping: class {source} is given twice")
            if source == to:
                raise UserError(f"mapping: class {source} maps to itself; leave out classes that stay clean")
            mapping[source] = to
        return value, {"mapping": dict(sorted(mapping.items()))}

    def describe(self, rate: object, options: Mapping[str, Any]) -> str:
        text, given = super().describe(rate, options), options.get("mapping")
        # Of multi-hot labels there are these two, missing and false: a board may hold both.
        told = {f"{source} to {to}" for source, to in given.items()} if isinstance(given, Mapping) else set()
        return f"{text} ({told.pop()})" if told in ({"1 to 0"}, {"0 to 1"}) else text

    def matrix(self, rate: float, options: Options, num_classes: int) -> FloatArray:
        matrix = np.eye(num_classes)
        for source, to in options["mapping"].items():
            matrix[source, source], matrix[source, to] = 1.0 - rate, rate
        return matrix

    def replace(self, true: IntArray, uniform: FloatArray, asked: Asked) -> IntArray:
        # A table over the true labels, so that no flip is ever applied to a label already flipped.
        table = np.arange(asked.num_classes)
        table[list(asked.options["mapping"])] = list(asked.options["mapping"].values())
        return table[true]

    def expected(self, asked: Asked) -> float:
        counts = np.bincount(asked.labels, minlength=asked.num_classes)
        return asked.rate * int(counts[list(asked.options["mapping"])].sum()) / len(asked.labels)


def percent(rate: float) -> str:
    """``0.4`` as ``40%``."""
    return f"{100 * rate:.6g}%"


def uniform_below(count: int, uniform: FloatArray) -> IntArray:
    """Integers in [0, count) from draws in [0, 1); the minimum is for a product that rounds up to `count`."""
    return np.minimum((uniform * count).astype(np.int64), count - 1)


def _class_number(value: object, num_classes: int | None) -> int:
    try:
        number = int(value) if isinstance(value, str) else value  # JSON knows only text keys
    except ValueError:
        number = value
    number = checks.check_integer(number, "mapping")
    if number < 0 or (num_classes is not None and number >= num_classes):
        top = "" if num_classes is None else f"..{num_classes - 1}"
        raise UserError(f"mapping: class {number} is out of range; classes are 0{top or ' or more'}")
    return number
