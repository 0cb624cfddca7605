"""The artefact that every method of a column shares: a folder with noise.npz and noise.json."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _noise_checks as checks
from ._noise_kinds import SMALL
from ._noise_labels import NoisyLabels, array_sha256, fitting, sha256_of, stored_type
from ._noise_open_set import OpenSet
from .errors import UserError

_OUTLIER_TYPES = {"outliers": "<i8", "labelled": "|b1"}


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
    matrix = noisy.transition.astype("<f8", copy=False) if noisy.known and noisy.states <= SMALL else None
    arrays: dict[str, NDArray[Any]] = {"labels": noisy.labels.astype(stored_type(noisy.labels), copy=False)}
    arrays |= {} if matrix is None else {"transition": matrix}
    arrays |= _outliers_of(noisy)
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
        "transition_sha256": None if matrix is None else array_sha256(matrix, "<f8"),
        "true_sha256": None if true_labels is None else sha256_of(fitting(true_labels, noisy)),
        "noisebench": _version(),
    }
    if noisy.labels.ndim == 2:
        facts["multilabel"] = True
    if noisy.outliers is not None:
        source = noisy.options["source"]
        facts |= {"source": source if isinstance(source, str) else None, "source_size": noisy.source_size}
        facts |= {f"{name}_sha256": array_sha256(arrays[name], dtype) for name, dtype in _OUTLIER_TYPES.items()}
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
        classes, told = int(facts["num_classes"]), {"labels": sha256, "transition": transition_sha256}
        if known["kind"] == OpenSet.name:
            told |= {name: facts[f"{name}_sha256"] for name in _OUTLIER_TYPES}
            known["source_size"] = int(facts["source_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{facts_file}' is truncated or changed ({type(error).__name__}: {error})") from None
    try:
        with arrays_file.open("rb") as stored, np.load(stored, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name, digest in told.items() if digest is not None}
    except checks.UNREADABLE as error:
        raise UserError(f"'{arrays_file}' is truncated or changed ({error})") from None
    types = {"labels": stored_type(found["labels"]), "transition": "<f8", **_OUTLIER_TYPES}
    for name, array in found.items():
        if array.dtype != np.dtype(types[name]) or array_sha256(array, types[name]) != told[name]:
            raise UserError(f"'{arrays_file}' is changed: its {name} do not have the SHA-256 that noise.json gives")
    kept = found.pop("transition", None)
    return NoisyLabels(**found, options=options, num_classes=classes, _kept=kept, **known)


def _is_there(folder: Path, noisy: NoisyLabels) -> bool:
    """Whether the artefact is there already, whole and with the same labels; one that is not is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = load(folder)
    stored, wanted = _outliers_of(found), _outliers_of(noisy)
    same = stored.keys() == wanted.keys() and all(np.array_equal(stored[name], wanted[name]) for name in wanted)
    same &= found.options.get("source") == noisy.options.get("source")  # of another set it is another image
    if found.sha256 != noisy.sha256 or not same:
        raise UserError(f"'{folder}' holds other labels; remove it, or write to another folder")
    return True


def _outliers_of(noisy: NoisyLabels) -> dict[str, NDArray[Any]]:
    """The arrays that open-set noise has beside its labels, as they are stored."""
    found = {"outliers": noisy.outliers, "labelled": noisy.labelled}
    return {k: v.astype(_OUTLIER_TYPES[k], copy=False) for k, v in found.items() if v is not None}


def _version() -> str:
    try:
        return metadata.version("noisebench")
    except metadata.PackageNotFoundError:
        return "0.1.0"
