"""Label noise: transition matrices, injection, and the artefact that every method of a column shares.

T[i, j] = P(noisy = j | true = i) everywhere: rows sum to one. Labels are drawn one sample at a time from row T[y], so
the share that is wrong varies around what was asked; both are kept. Arrays in, arrays out; NumPy alone is imported, so
that a configuration can be checked without torch.

Where a sample has several labels they are multi-hot, [N, K] of 0 and 1. Each entry is then a label of its own with two
classes, 0 (absent) and 1 (present), drawn by itself, and T is [2, 2]: ``asymmetric`` with mapping {1: 0} makes labels
go missing, and ``symmetric`` flips entries either way. A rate is the share of entries; that of ``asymmetric``
is the share of the entries of a mapped class, with {1: 0} of the labels that are there.

Example:
    >>> noisy = inject([0, 1, 2] * 100, "symmetric", 0.4, num_classes=3, seed=0)
    >>> noisy.description, noisy.expected_rate
    ('symmetric 40% (excl. true)', 0.4)
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _noise_checks as checks
from ._noise_checks import FloatArray, LabelArray
from ._noise_drawing import draw_transition
from ._noise_kinds import SMALL, Asked, Asymmetric, Clean, Kind, Pairflip, Symmetric
from ._noise_rows import ClassDependent, File, Instance, Matrix, count_transitions
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
    "transition_matrix",
]

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (Clean(), Symmetric(), Pairflip(), Asymmetric(), ClassDependent(), Matrix(), Instance(), File())
}
"""Every kind by name; its ``.summary`` is a line of help, its ``.options`` map each option to one."""


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Noisy labels and what is known of them; the true labels are not among it.

    Attributes:
        labels: noisy labels, int64 [N]; uint8 [N, K] where the true ones are multi-hot.
        kind: a name of `KINDS`.
        rate: the rate asked; for `matrix` and a trace the one they imply, 1 - trace(T)/K; None for `file`.
        realised_rate: share of the labels (multi-hot: of the entries) that differ from the true ones.
        expected_rate: that share as T implies it for these true labels.
        options: resolved options, ready for JSON (a T given as an array is its SHA-256).
        seed: the seed of the draws.
        num_classes: K.
        description: the label of `describe`.
    """

    labels: LabelArray = field(repr=False)
    kind: str
    rate: float | None
    realised_rate: float
    expected_rate: float
    options: Mapping[str, Any]
    seed: int
    num_classes: int
    description: str
    _kept: FloatArray | None = field(default=None, repr=False)

    @property
    def include_true(self) -> bool | None:
        """Whether symmetric noise may draw the true label again; None for other kinds."""
        return self.options.get("include_true")

    @property
    def states(self) -> int:
        """How many values a label can take, the side of T: K, or 2 for an entry of multi-hot labels."""
        return 2 if self.labels.ndim == 2 else self.num_classes

    @cached_property
    def transition(self) -> FloatArray:
        """T as asked, float64 [K, K] ([2, 2] for multi-hot labels), made when first read.

        For `instance` the mean over each class of the probabilities used; for `file` the counted T (for both, a class
        without samples keeps its label). Those two, and a loaded `matrix`, are kept up to K = 1,000 only.
        """
        if self._kept is not None:
            return self._kept
        if self.kind in ("instance", "file", "matrix"):
            raise UserError(f"transition: noise '{self.kind}' keeps T up to {SMALL} classes, not {self.num_classes}")
        return transition_matrix(self.kind, self.rate, self.states, **self.options)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the labels as little-endian int64; multi-hot ones row by row as uint8."""
        return sha256_of(self.labels)

    def realised_transition(self, true_labels: ArrayLike) -> FloatArray:
        """T counted against `true_labels`, of the noisy ones' shape, float64 [K, K]; a class without samples has NaN.

        [2, 2] for multi-hot labels.
        """
        true = _fitting(true_labels, self)
        return count_transitions(true.reshape(-1), self.labels.reshape(-1), self.states)


def transition_matrix(kind: str, rate: float | None, num_classes: int, **options: Any) -> FloatArray:
    """T, float64 [K, K], row-stochastic.

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
    return NoisyLabels(
        labels=noisy,
        kind=kind,
        rate=resolved_rate,
        realised_rate=float(np.count_nonzero(noisy != true) / true.size),
        expected_rate=drawn.expected_rate,
        options=found.record(resolved),
        seed=seed,
        num_classes=classes,
        description=found.describe(rate, options),
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


def sha256_of(labels: ArrayLike) -> str:
    """SHA-256 that noise.json holds of labels: [N] as little-endian int64, multi-hot [N, K] as uint8."""
    array = np.asarray(labels)
    return _sha256(array, _stored_type(array))


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


def save(
    noisy: NoisyLabels, folder: str | os.PathLike[str], name: str | None = None, true_labels: ArrayLike | None = None
) -> Path:
    """Write the artefact: ``folder`` with noise.npz and noise.json; return the folder.

    It is written aside and then renamed, so it is whole or absent. One with the same labels that is there is left.

    Args:
        noisy: what to write.
        folder: the artefact's own folder; the folders above it are made if missing.
        name: what to call it in noise.json; by default its description.
        true_labels: true labels, of which only the SHA-256 is written, see `sha256_of`.

    Raises:
        UserError: where the folder is there but damaged, or with other labels.
    """
    final = Path(folder)
    if _is_there(final, noisy):
        return final
    arrays: dict[str, NDArray[Any]] = {"labels": noisy.labels.astype(_stored_type(noisy.labels), copy=False)}
    if noisy.states <= SMALL:
        arrays["transition"] = noisy.transition.astype("<f8", copy=False)
    facts = {
        "name": name or noisy.description,
        "description": noisy.description,
        "kind": noisy.kind,
        "rate": noisy.rate,
        "expected_rate": noisy.expected_rate,
        "realised_rate": noisy.realised_rate,
        "include_true": noisy.include_true,
        "options": dict(noisy.options),
        "seed": noisy.seed,
        "num_classes": noisy.num_classes,
        "num_samples": len(noisy.labels),
        "sha256": noisy.sha256,
        "transition_sha256": _sha256(arrays["transition"], "<f8") if "transition" in arrays else None,
        "true_sha256": None if true_labels is None else sha256_of(_fitting(true_labels, noisy)),
        "noisebench": _version(),
    }
    if noisy.labels.ndim == 2:
        facts["multilabel"] = True
    aside = final.with_name(f".{final.name}.{secrets.token_hex(6)}")
    aside.mkdir(parents=True)
    try:
        np.savez_compressed(aside / "noise.npz", **arrays)  # type: ignore[arg-type]
        (aside / "noise.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        try:
            aside.rename(final)
        except OSError:
            if not _is_there(final, noisy):  # else another process was first with the same labels
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def load(folder: str | os.PathLike[str]) -> NoisyLabels:
    """Read an artefact back, with its SHA-256 checked.

    Raises:
        UserError: naming the file that is missing, truncated or changed.
    """
    facts_file, arrays_file = Path(folder) / "noise.json", Path(folder) / "noise.npz"
    for file in (facts_file, arrays_file):
        if not file.is_file():
            raise UserError(f"'{file}' is missing; a noise artefact is a folder with noise.json and noise.npz")
    try:
        facts: dict[str, Any] = json.loads(facts_file.read_text(encoding="utf-8"))
        options, sha256, transition_sha256 = dict(facts["options"]), facts["sha256"], facts["transition_sha256"]
        if "mapping" in options:
            options["mapping"] = {int(key): value for key, value in options["mapping"].items()}
        known = {key: facts[key] for key in ("kind", "rate", "realised_rate", "expected_rate", "seed", "description")}
        classes = int(facts["num_classes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{facts_file}' is truncated or changed ({type(error).__name__}: {error})") from None
    try:
        with arrays_file.open("rb") as stored, np.load(stored, allow_pickle=False) as arrays:
            labels = arrays["labels"]
            transition = None if transition_sha256 is None else arrays["transition"]
    except checks.UNREADABLE as error:
        raise UserError(f"'{arrays_file}' is truncated or changed ({error})") from None
    for name, array, dtype, told in (
        ("labels", labels, _stored_type(labels), sha256),
        ("transition", transition, "<f8", transition_sha256),
    ):
        if array is not None and (array.dtype != np.dtype(dtype) or _sha256(array, dtype) != told):
            raise UserError(f"'{arrays_file}' is changed: its {name} do not have the SHA-256 that noise.json gives")
    return NoisyLabels(labels=labels, options=options, num_classes=classes, _kept=transition, **known)


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


def _sha256(array: NDArray[Any], dtype: str = "<i8") -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=dtype).data).hexdigest()


def _stored_type(labels: NDArray[Any]) -> str:
    """How labels are stored and hashed."""
    return "|u1" if labels.ndim == 2 else "<i8"


def _fitting(true_labels: ArrayLike, noisy: NoisyLabels) -> NDArray[Any]:
    """True labels, checked, of the shape of the noisy ones."""
    true = checks.check_any_labels(true_labels, noisy.num_classes, "true_labels")
    if true.shape != noisy.labels.shape:
        found, wanted = (str(len(a)) if a.ndim == 1 else str(list(a.shape)) for a in (true, noisy.labels))
        raise UserError(f"true_labels: {found} labels do not fit {wanted} noisy ones")
    return true


def _is_there(folder: Path, noisy: NoisyLabels) -> bool:
    """Whether the artefact is there already, whole and with the same labels; one that is not is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if load(folder).sha256 != noisy.sha256:
        raise UserError(f"'{folder}' holds other labels; remove it, or write to another folder")
    return True


def _version() -> str:
    try:
        return metadata.version("noisebench")
    except metadata.PackageNotFoundError:
        return "0.1.0"
