"""The method of a finished run as an MLflow model: what `mlflow.pyfunc.load_model` loads and predicts with.

The model's folder holds ``data/model.json`` (how the method is built and images are normalised), ``data/weights.pt``
(read by torch's weights_only) and, for a method that was given more than noisy labels, ``data/given.npz``. Nothing in
it is a pickled Python object, and loading needs neither the dataset nor the run folder: noisebench, and the package of
a method that is not noisebench's own, must be installed.

`noisebench._deploying` writes the folder; this module imports no MLflow.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisebench.assembly import build_method, make_hparams, method_class
from noisebench.augment import Augmentation, Augmenter
from noisebench.config import Recipe, build
from noisebench.errors import UserError
from noisebench.ranks import EVALUATION_BATCH
from noisebench.streams import stream

if TYPE_CHECKING:
    from noisebench.image_data import ImageData

FORMAT = 1
"""Of model.json; moves when an older noisebench could not read it."""
MOST_NAMES = 1000
"""Up to so many names of classes are kept with a model."""
DEVICE = "MLFLOW_DEFAULT_PREDICTION_DEVICE"
"""MLflow's own variable for where a model predicts; "cpu" where it is not set."""


def input_facts(data: ImageData, recipe: Recipe) -> dict[str, Any]:
    """What building and feeding a method needs to know of its dataset: ``inputs`` of a config.json."""
    count = min(len(data.train_labels), recipe.train_size or len(data.train_labels))
    return {
        "image_shape": list(data.image_shape_at(recipe.image_size)),
        "mean": list(data.mean),
        "std": list(data.std),
        "num_classes": data.num_classes,
        "num_train": count - round(recipe.validation * count),
        "multilabel": data.multilabel,
        "classes": list(data.classes) if data.num_classes <= MOST_NAMES else None,
    }


class Predictor:
    """A trained method that predicts, without its dataset.

    Attributes:
        about: what model.json holds.
        classes: the names of the K classes, in the order of the probabilities; None where they were not kept.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Read the folder ``data`` of a model.

        Raises:
            UserError: a method that is not installed, a device that is not there, weights that cannot be read or do
                not fit.
        """
        self.about: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if self.about["format"] > FORMAT:
            raise UserError(f"{folder}: the model was written by a newer noisebench; update noisebench")
        facts, where = self.about["inputs"], f"{self.about['title']}"
        self.classes: list[str] | None = facts["classes"]
        self._shape: tuple[int, int, int] = tuple(facts["image_shape"])
        self._recipe: Recipe = build(Recipe, self.about["recipe"], f"{where}: recipe")
        self._lock = threading.Lock()
        self._seed = stream(self.about["seed"], "evaluate", self.about["epoch"] - 1, "test")
        kind = method_class(self.about["method"])
        hparams = make_hparams(kind, self.about["hparams"], f"{where}: method '{self.about['method']}'")
        known = {}
        if (folder / "given.npz").exists():
            with np.load(folder / "given.npz", allow_pickle=False) as arrays:
                known = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        try:
            state = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise UserError(f"{folder / 'weights.pt'} cannot be read: {type(error).__name__}") from None
        self._device = _device(device)
        sizes = facts["num_classes"], facts["num_train"], self._shape
        with _own_draws(self._device):
            method = build_method(kind, hparams, self._recipe, self.about["seed"], *sizes, known, facts["multilabel"])
        try:
            method.load_state_dict(state)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:160]
            raise UserError(f"{where}: the weights do not fit the method that is installed here: {first}") from None
        self._method = method.eval().to(self._device)
        if self._recipe.channels_last:
            self._method.to(memory_format=torch.channels_last)
        augmentation = Augmentation(mean=tuple(facts["mean"]), std=tuple(facts["std"]))
        self._augmenter = Augmenter(augmentation, self._device, channels_last=self._recipe.channels_last)

    def predict(
        self, model_input: npt.NDArray[np.uint8] | Sequence[Any], params: dict[str, Any] | None = None
    ) -> npt.NDArray[np.float32]:
        """Class probabilities float32 [N, K] of images uint8 [N, H, W, C], an array or nested lists.

        They are those of the harness on its device, to the last bit under as many threads as the run had; a method that
        draws (Monte Carlo) gives the same images the same probabilities every time.

        Args:
            model_input: images.
            params: MLflow's; there are none.

        Raises:
            UserError: another shape or type.
        """
        images = self._checked(model_input)
        if not len(images):
            return np.zeros((0, self.about["inputs"]["num_classes"]), dtype=np.float32)
        precise = self._recipe.precision == "32-true"
        cast = nullcontext() if precise else torch.autocast(self._device.type, torch.bfloat16)
        with self._lock, _own_draws(self._device), torch.no_grad(), cast:
            torch.manual_seed(self._seed)
            return torch.cat([*self._batches(images)]).cpu().numpy()

    def get_raw_model(self) -> Predictor:
        """What ``get_raw_model()`` of MLflow's model gives: it takes lists too, and tells a wrong input in one line."""
        return self

    def _batches(self, images: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
        for first in range(0, len(images), EVALUATION_BATCH):
            batch = torch.as_tensor(images[first : first + EVALUATION_BATCH], device=self._device)
            yield self._method.predict(self._augmenter.normalised(batch.permute(0, 3, 1, 2))).float()

    def _checked(self, given: Any) -> npt.NDArray[np.uint8]:
        channels, height, width = self._shape
        wanted = f"give uint8 [N, {height}, {width}, {channels}]"
        try:
            images = np.asarray(given)
        except ValueError:
            raise UserError(f"images are lists of unequal lengths; {wanted}") from None
        if isinstance(given, Sequence) and images.dtype.kind in "iu" and images.size:  # lists have no type of their own
            if not 0 <= images.min() <= images.max() <= 255:
                raise UserError(f"pixels range over {images.min()}..{images.max()}; give 0..255")
            images = images.astype(np.uint8)
        if images.dtype != np.uint8:
            raise UserError(f"images are {images.dtype} {list(images.shape)}; {wanted}")
        if images.ndim != 4 or images.shape[1:] != (height, width, channels):
            raise UserError(f"images are uint8 {list(images.shape)}; {wanted}")
        return np.ascontiguousarray(images)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"{DEVICE}: '{name}' is no device of this machine; give cpu, or cuda where there is one"
        ) from None
    return device


@contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """The global generators are put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Predictor:
    """What MLflow calls, with the path of the folder ``data``."""
    return Predictor(Path(path), os.environ.get(DEVICE) or "cpu")
