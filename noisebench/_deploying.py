"""Which models of a board MLflow keeps, and the folder of each as MLflow wants it; `noisebench.mlflow_model` loads it.

Imported by the sender alone. It imports no torch, but for a run of an older noisebench that did not note what its
method must know of the dataset, and for a method that is given labelled outliers.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisebench._run_folder import RunFolder, load, sha
from noisebench.errors import UserError
from noisebench.files import data_root_from
from noisebench.metrics import SCORES

PACKAGES = ("noisebench", "torch", "numpy")
"""What must be installed where a model is loaded, beside the package of a method that is not noisebench's own."""


class NoModel(Exception):
    """A run whose model cannot be logged, ever; the reason is a line for people."""


@dataclass(frozen=True)
class Group:
    """Finished cells of which one model is kept.

    Attributes:
        key: names it in the acknowledgement.
        of: tells whether anything has changed since: the cells' results and what was asked for.
        cells: as board.json has them, in the order of the board.
    """

    key: str
    of: str
    cells: tuple[dict[str, Any], ...]


def groups(board: Mapping[str, Any], finals: Mapping[str, str]) -> Iterator[Group]:
    """The groups of a board whose cells have all ended: method x column, or each cell by itself.

    Args:
        board: its board.json, with ``config.tracking`` as `tracking_options.Tracking` has it.
        finals: fingerprint -> hash of result.json or failure.json.
    """
    asked = {"models": "best", "register_as": None} | (board.get("config", {}).get("tracking") or {})
    if asked["models"] == "none":
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in board["cells"]:
        key = [cell["label"], cell["dataset"], cell["noise"]] + [cell["seed"]] * (asked["models"] == "all")
        found.setdefault(json.dumps(key), []).append(cell)
    for name, cells in found.items():
        if all(cell["fingerprint"] in finals for cell in cells):
            state = [*(finals[cell["fingerprint"]] for cell in cells), *(str(value) for value in asked.values())]
            yield Group(name, sha(" ".join(state).encode()), tuple(cells))


def register_as(board: Mapping[str, Any]) -> str | None:
    """The name in the model registry that the board asks for."""
    name = (board.get("config", {}).get("tracking") or {}).get("register_as")
    return str(name) if name else None


def best_of(cells: tuple[dict[str, Any], ...], out: Path) -> tuple[dict[str, Any] | None, float | None]:
    """The cell with the best score on the noisy validation split and that score; the first where there is no split.

    None where no cell is finished. The test set has no part in it.
    """
    best: tuple[dict[str, Any] | None, float | None] = (None, None)
    for cell in cells:
        folder = RunFolder(out / cell["folder"])
        if folder.final.get("status") != "finished":
            continue
        score = max(_validation_scores(folder), default=None)
        if best[0] is None or (score is not None and (best[1] is None or score > best[1])):
            best = cell, score
    return best


def _validation_scores(folder: RunFolder) -> Iterator[float]:
    for line in folder.lines():
        for name in SCORES:
            value = line["metrics"].get(f"val.{name}")
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield value


# --------------------------------------------------------------------------------------------------- a model's folder


@dataclass(frozen=True)
class Staged:
    """A model's folder, ready to be sent.

    Attributes:
        folder: holds ``model.json``, ``weights.pt`` and, of a method that was given something, ``given.npz``.
        about: what model.json holds.
        metrics: of the epoch whose weights these are.
        requirements: of pip.
    """

    folder: Path
    about: dict[str, Any]
    metrics: dict[str, float]
    requirements: list[str]


def stage(cell: Mapping[str, Any], out: Path, folder: Path) -> Staged:
    """Write the data of a finished cell's model into `folder`; its weights are linked, not copied.

    Raises:
        NoModel: its weights are not there, or nobody knows what its method must know of the dataset.
    """
    run = out / cell["folder"]
    config, result = load(run / "config.json"), load(run / "result.json")
    which, epoch, weights = _weights(run, result)
    folder.mkdir(parents=True)
    recipe = config["recipe"] | {"start": None, "compile": False, "ranks": 1}  # of the training alone
    about = {
        "format": 1,
        "title": f"{cell['label']} on {cell['dataset']}, {cell['noise']}, seed {cell['seed']}",
        "method": config["method"],
        "hparams": config["hparams"],
        "recipe": recipe,
        "seed": config["seed"],
        "which": which,
        "epoch": epoch,
        "inputs": config.get("inputs") or _inputs_of_dataset(config),
        "fingerprint": config["fingerprint"],
        "weights_sha256": result.get("weights_sha256") if which == "last" or epoch == result.get("epochs") else None,
    }
    (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _link(weights, folder / "weights.pt")
    if config.get("privileged"):
        _write_given(config, out, folder / "given.npz")
    metrics = {
        name: value
        for name, value in result["metrics"][which].items()
        if name != "epoch" and isinstance(value, (int, float))
    }
    return Staged(folder, about, metrics, _requirements(config, result))


def _weights(run: Path, result: Mapping[str, Any]) -> tuple[str, int, Path]:
    """Which of its epochs, that epoch (1-based) and the file with its weights."""
    last, selected = int(result["epochs"]), result["metrics"].get("selected")
    found: tuple[str, int, Path] = ("last", last, run / "model.pt")
    if selected and selected["epoch"] == last:
        found = ("selected", last, run / "model.pt")
    elif selected and (run / "selected.pt").exists():
        found = ("selected", int(selected["epoch"]), run / "selected.pt")
    if not found[2].exists():
        raise NoModel(f"{found[2].name} is not in its run folder")
    return found


def _inputs_of_dataset(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json does not say, from the dataset itself."""
    from noisebench.config import Recipe, build
    from noisebench.loading import load_dataset
    from noisebench.mlflow_model import input_facts

    try:
        data = load_dataset(config["dataset"], data_root_from(None))
        return input_facts(data, build(Recipe, config["recipe"], "recipe"))
    except UserError as error:
        raise NoModel(f"config.json does not say what the method must know of its dataset, and {error}") from None


def _write_given(config: Mapping[str, Any], out: Path, file: Path) -> None:
    """What the method was given beyond noisy labels, of the same shapes and types (`Task.given`)."""
    import numpy as np

    from noisebench import noise
    from noisebench.assembly import known_of, split
    from noisebench.config import Recipe, build

    try:
        noisy = noise.load(out / config["noise_folder"])
    except UserError as error:
        raise NoModel(str(error)) from None
    recipe: Recipe = build(Recipe, config["recipe"], "recipe")
    known = known_of(noisy, split(len(noisy.labels), recipe, config["seed"])[0])
    given: dict[str, Any] = {need: known[need].numpy() for need in config["privileged"]}
    np.savez_compressed(file, **given)


def _requirements(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """`PACKAGES` in the versions of the run, and that of a method that came from elsewhere."""
    from importlib.metadata import PackageNotFoundError, version

    from noisebench import registry

    names = list(PACKAGES)
    entry = registry.methods().entries.get(config["method"])
    origin = getattr(entry, "origin", "noisebench")
    if origin not in names and re.fullmatch(r"[\w.-]+", origin):
        names.append(origin)
    then = result.get("versions") or {}
    found = []
    for name in names:
        known = then.get(name)
        with suppress(PackageNotFoundError):
            known = known or version(name)
        found.append(f"{name}=={known}" if known else name)
    return found


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.absolute())
    except OSError:  # a system without links
        shutil.copyfile(source, target)
