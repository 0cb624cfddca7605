"""Datasets by their names, and their noise: the artefact that all methods of a column share."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from noisebench import dataset_names, noise, open_set
from noisebench.config import Cell, Noise, slugify
from noisebench.errors import UserError
from noisebench.files import read_json, write_json
from noisebench.given_labels import with_given
from noisebench.image_data import ImageData, is_encoded


def load_dataset(name: str, root: Path | None, download: bool = False) -> ImageData:
    """The registered dataset, kept for the next cell of the same process; ``name@n`` gives the whole of it too.

    One that takes a path is written ``name:path``, see `dataset_names.dataset_module`.

    Raises:
        UserError: unknown, missing or damaged.
    """
    return whole_dataset(dataset_names.sized(name)[0], root, download)


@lru_cache(maxsize=2)
def whole_dataset(name: str, root: Path | None, download: bool = False) -> ImageData:
    """See `load_dataset`."""
    data = dataset_names.dataset_module(name, root).load(root, download=download)
    if not isinstance(data, ImageData):
        raise UserError(f"dataset '{name}': load() must give an ImageData, it gave {type(data).__name__}")
    return data


def load_source(
    spec: Noise, data: ImageData, dataset: str, root: Path | None, download: bool = False
) -> ImageData | None:
    """The dataset that the noise takes its outliers from; None for a kind without.

    Args:
        data: the dataset that the noise is for; dataset: its name, for messages.

    Raises:
        UserError: the source is unknown, missing or damaged, or does not fit the dataset.
    """
    if spec.source is None:
        return None
    spec.check(data.num_classes, data.multilabel, dataset)
    found = load_dataset(spec.source, root, download)
    open_set.check_loaded(data, found, dataset, spec.source)
    return found


def make_noise(
    spec: Noise, data: ImageData, seed: int, source: ImageData | None = None, dataset: str = "this dataset"
) -> noise.NoisyLabels:
    """Noisy labels for the whole training set, under the kind's own seed where it has one.

    An asymmetric kind without a mapping takes the dataset's own.

    Args:
        source: what `load_source` gives.
        dataset: the dataset's name, for messages.

    Raises:
        UserError: the kind or its options do not fit the dataset.
    """
    seed = seed if spec.seed is None else spec.seed
    if data.label_sets is not None and spec.kind == "asymmetric":
        raise UserError("noise asymmetric: labels name sets of classes here, and a mapping of sets has no meaning")
    options, given = with_given(spec.kind, spec.options, data, dataset)
    if spec.kind == "asymmetric":
        options.setdefault("mapping", data.class_map)
        if not options["mapping"] and data.multilabel:
            raise UserError("noise asymmetric: give mapping: {1: 0} for labels that go missing, {0: 1} for false ones")
        if not options["mapping"]:
            raise UserError("noise asymmetric: this dataset publishes no class map; give mapping: {true: wrong, ...}")
    if source is not None:
        options["source"] = len(source.train_images)
    if spec.kind == "instance" and is_encoded(data.train_images):
        raise UserError("noise instance: it needs images of one size in memory; these are files; give another kind")
    features = np.asarray(data.train_images) if spec.kind == "instance" else None
    classes = data.num_classes if data.label_sets is None else len(data.label_sets)
    made = noise.inject(
        data.train_labels, spec.kind, spec.rate, num_classes=classes, seed=seed, features=features, **options
    )
    # By their names, which say more than numbers.
    named = {} if source is None else {"source": spec.source}
    named |= {} if given is None else {"given": given}
    return replace(made, options={**made.options, **named}, description=spec.label) if named else made


def stored_noise(
    cell: Cell, data: ImageData, out: Path, source: ImageData | None = None
) -> tuple[noise.NoisyLabels, Path]:
    """The cell's noise artefact: made once for all methods, under a lock, and then only read."""
    key, dataset = cell.noise_key(), dataset_names.sized(cell.dataset)[0]
    slug = slugify(f"{dataset}-{cell.noise.label}")
    folder = out / "noise" / f"{slug}-s{cell.noise_seed}-{key[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        new, made = not (folder / "noise.json").exists(), None
        if new or cell.noise.kind in ("real", "matched"):  # the labels given may be others now, under the same name
            made = make_noise(cell.noise, data, cell.noise_seed, source, dataset)
        if new and made is not None:
            noise.save(made, folder, name=f"{dataset} {cell.noise.label}", true_labels=data.train_labels)
        found, drawn = noise.load(folder), folder / "transition.png"
        told = (read_json(folder / "noise.json") or {}).get("true_sha256")
        if told != noise.sha256_of(data.train_labels) or (made is not None and made.sha256 != found.sha256):
            raise UserError(f"{folder} was made for other labels than {dataset} has now; remove it")
        if found.known and not drawn.exists():  # a kill may have come between the two
            draw_noise(found, data, folder)
    return found, folder


def draw_noise(noisy: noise.NoisyLabels, data: ImageData, folder: Path) -> None:
    """T asked beside T realised: ``folder/transition.json`` and a picture, up to 100 classes: more show nothing.

    A row of null is that of a class without samples.
    """
    if noisy.known and noisy.states <= 100:
        realised = noisy.realised_transition(data.train_labels)
        told = [[None if np.isnan(share) else share for share in row] for row in realised.tolist()]
        write_json(folder / "transition.json", {"asked": noisy.transition.tolist(), "realised": told})
        names = ("absent", "present") if data.multilabel else data.classes
        names += () if noisy.outliers is None else ("outlier",)
        noise.draw_transition(noisy.transition, realised, folder / "transition.png", names)
