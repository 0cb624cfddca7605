"""`FinishedRun`: a run folder as an object, with its method as it was when the training ended."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noisebench import noise
from noisebench.assembly import Setup, build_method, known_of, make_hparams, method_class, split
from noisebench.cell import weights_sha256
from noisebench.config import Cell, Noise, Recipe, build
from noisebench.errors import UserError
from noisebench.evaluation import EVALUATION_BATCH, NLL_FLOOR
from noisebench.files import data_root_from, read_json
from noisebench.loading import load_dataset, load_source
from noisebench.method import Batch, Method
from noisebench.nn.backbones import Backbone

if TYPE_CHECKING:
    from noisebench.data import ImageData

COVARIANCE_ELEMENTS = 2**24
"""So many elements of covariance matrices are held at once, or one matrix where that is larger."""
NEEDED = {
    "config.json": {"dataset", "fingerprint", "hparams", "label", "method", "noise", "noise_folder", "noise_label",
                    "noise_sha256", "recipe", "seed"},
    "result.json": {"metrics", "weights_sha256"},
}  # fmt: skip


class FinishedRun:
    """A run that is finished, read from its folder.

    Attributes:
        folder: where it lies; out: the folder that holds ``runs/`` and ``noise/``.
        config, result: what its config.json and result.json hold.
        data: its dataset; method: the trained method, in eval mode.
        hparams: the settings of `method`.
        noisy: the noise of its training split; true_labels: the clean labels there, of the shape of the noisy ones.
    """

    method: Method

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        result: dict[str, Any],
        data: ImageData,
        noisy: noise.NoisyLabels,
        setup: Setup,
    ) -> None:
        """`load` makes one."""
        self.folder, self.out = folder, folder.parent.parent
        self.config, self.result, self.data = config, result, data
        self.hparams: dict[str, Any] = dict(config["hparams"])
        self.method = setup.method
        self._setup = setup
        self._run = setup.run
        recipe: Recipe = build(Recipe, config["recipe"], f"{folder.name}: recipe")
        train_at = split(len(data.train_labels), recipe, config["seed"])[0].numpy()
        self.true_labels = data.train_labels[train_at]
        self.noisy = _part(noisy, train_at)

    @classmethod
    def load(cls, folder: str | Path, data_root: str | Path | None = None, accelerator: str = "auto") -> FinishedRun:
        """Read a run folder: config.json, result.json, model.pt, and the noise beside it.

        Warns in one line if the code of its method or its dataset is no longer what it was trained with.

        Args:
            folder: ``runs/...`` below the output folder of a board.
            data_root: torchvision's layout; NOISEBENCH_DATA by default.
            accelerator: "auto", "cpu", "cuda"; numbers repeat to the last bit on the device of the training alone.

        Raises:
            UserError: no finished run, or one whose weights, noise or data are not there or do not fit.
        """
        folder = Path(folder).absolute()
        config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
        if config is None or result is None:
            raise UserError(f"{folder}: no finished run (config.json and result.json); give a folder of runs/")
        for (name, keys), found in zip(NEEDED.items(), (config, result), strict=True):
            if keys - found.keys():
                raise UserError(f"{folder / name} is damaged: it lacks {', '.join(sorted(keys - found.keys()))}")
        if not _same_code(config):
            warnings.warn(
                f"{folder.name}: the code of {config['method']} or {config['dataset']}, or a file of the noise, is no "
                "longer what this run was trained with",
                stacklevel=2,
            )
        config = config | {"recipe": config["recipe"] | {"start": None}}  # model.pt has all its weights
        kind = method_class(config["method"])
        hparams = make_hparams(kind, config["hparams"], f"{folder.name}: method '{config['method']}'")
        recipe: Recipe = build(Recipe, config["recipe"], f"{folder.name}: recipe")
        data = load_dataset(config["dataset"], data_root_from(data_root))
        noisy = noise.load(folder.parent.parent / config["noise_folder"])
        if noisy.labels.shape != data.train_labels.shape:
            raise UserError(f"{folder.name}: its noise is for labels {list(noisy.labels.shape)}; the data have changed")
        source = None
        if noisy.outliers is not None:
            spec: Noise = build(Noise, config["noise"], f"{folder.name}: noise")
            source = load_source(spec, data, config["dataset"], data_root_from(data_root))
        try:
            state = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{folder / 'model.pt'} cannot be read: {error.strerror}") from None
        except Exception as error:  # torch raises many kinds for a damaged file
            raise UserError(f"{folder / 'model.pt'} cannot be read: {type(error).__name__}") from None
        with _restoring(recipe.threads):
            setup = Setup(kind, hparams, data, noisy.labels, recipe, config["seed"], noisy, accelerator, source)
        setup.run.epoch = recipe.epochs - 1
        run = cls(folder, config, result, data, noisy, setup)
        run._take(setup.method, state, "its code has changed since")
        if weights_sha256(run.method) != result["weights_sha256"]:
            raise UserError(f"{folder / 'model.pt'} holds other weights than result.json names")
        return run

    @property
    def title(self) -> str:
        """What it is, in one line."""
        c = self.config
        return f"{c['label']} on {c['dataset']}, {c['noise_label']}, seed {c['seed']}"

    def predict(self, images: npt.NDArray[np.uint8] | None = None) -> Tensor:
        """Class probabilities [N, K], as the evaluator took them after the last epoch, draws included.

        Args:
            images: uint8 [N, H, W, C]; the test set by default.
        """
        with self._evaluating():
            if images is None:
                return self._setup.evaluator.predict_test(self.method, self._run)[0]
            torch.manual_seed(0)
            loader, step = self._setup.evaluator.test, EVALUATION_BATCH
            parts = [loader.normalised(images[i : i + step]) for i in range(0, len(images), step)]
            return torch.cat([self.method.predict(x).float() for x in parts])

    def metrics(self) -> dict[str, float]:
        """The test metrics; under the run's own settings they are the ``last`` of its result.json."""
        with self._evaluating():
            evaluator = self._setup.evaluator
            return evaluator.score(*evaluator.predict_test(self.method, self._run))

    def covariances(self, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions [B] in the test set and their covariance matrices [B, K, K], few at a time.

        Args:
            indices: positions, int64 [n]; the whole test set by default.

        Raises:
            UserError: the method offers no covariance.
        """
        size = max(1, min(EVALUATION_BATCH, COVARIANCE_ELEMENTS // self.data.num_classes**2))
        batches = self._setup.evaluator.test.batches(
            indices, augment=False, shuffle=False, batch_size=size, order_seed=0, augment_seed=0
        )
        for batch in batches:
            with self._evaluating():
                found = self.method.covariance(batch.x)
            if found is None:
                raise UserError(f"{self.config['method']} offers no covariance of its noise (Method.covariance)")
            yield batch.index, found

    @property
    def test_labels(self) -> Tensor:
        """The clean labels of the test images that `predict` takes, int64 [N]; multi-hot [N, K] of several labels."""
        return self._setup.evaluator.test.labels.cpu()

    def wrong(self) -> Tensor:
        """Which labels of the training split are wrong, bool [N].

        As "train.noise_auc" has it: an image of several labels if any is, an outlier whatever its label.

        Raises:
            UserError: nobody knows.
        """
        if not self.noisy.known:
            raise UserError(f"nobody knows which labels are wrong under noise {self.noisy.description}")
        wrong = self.noisy.labels != self.true_labels
        if self.noisy.outliers is not None:
            wrong = wrong | (self.noisy.outliers >= 0)
        return torch.from_numpy(wrong.any(axis=1) if wrong.ndim == 2 else wrong)

    def noise_scores(self) -> tuple[Tensor, Tensor]:
        """`Method.noise_scores` of the training split, float64 [N], and which of its labels are `wrong`, bool [N].

        Raises:
            UserError: the method offers none, or nobody knows which labels are wrong.
        """
        wrong = self.wrong()
        with self._evaluating():
            scores = self.method.noise_scores(self._run)
        if scores is None:
            raise UserError(f"{self.config['method']} offers no scores of its training labels (Method.noise_scores)")
        return scores.double().cpu(), wrong

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch: {"epoch", "time", "metrics"}; one that is not so is left out.

        Raises:
            UserError: the file cannot be read, or has no line.
        """
        file, found = self.folder / "metrics.jsonl", []
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        for line in lines:
            with suppress(ValueError):
                epoch = json.loads(line)
                if isinstance(epoch, dict) and isinstance(epoch.get("metrics"), dict) and "epoch" in epoch:
                    found.append(epoch)
        if not found:
            raise UserError(f"{file} has no epoch")
        return found

    def losses(self) -> Tensor:
        """The cross-entropy in nats of each training label as it was given (noisy), float64 [N], in eval mode.

        -log of what `Method.predict` gives the label, that floored at 1e-12; the images are not augmented.

        Raises:
            UserError: an image has several labels.
        """
        if self.data.multilabel:
            raise UserError(f"{self.config['dataset']}: losses need one label an image, and it has several")

        def loss(batch: Batch) -> Tensor:
            p = self.method.predict(batch.x).double()
            return -p.gather(1, batch.y[:, None]).flatten().clamp_min(NLL_FLOOR).log()

        with self._evaluating():
            torch.manual_seed(0)  # of a method that draws samples
            return self._run.per_sample(loss).cpu()

    def features(self, part: Literal["train", "test"], indices: Tensor) -> Tensor:
        """What the backbone gives for some images, float32 [n, D]: features before the head.

        Of a method with several networks those of its first.

        Args:
            part: the training split or the test set; indices: positions in it, int64 [n].

        Raises:
            UserError: the method has no backbone of `noisebench.nn`, or does not ask it for a prediction.
        """
        backbone = next((module for module in self.method.modules() if isinstance(module, Backbone)), None)
        if backbone is None:
            raise UserError(f"{self.config['label']}: it has no backbone of noisebench.nn, so there are no features")
        caught: list[Tensor] = []
        hook = backbone.register_forward_hook(lambda _, __, out: caught.append(out.float().cpu()))
        found = []
        try:
            for batch in self._batches(part, indices):
                with self._evaluating():
                    self.method.predict(batch.x)
                if not caught:
                    raise UserError(f"{self.config['label']}: its predictions do not ask the backbone for features")
                found.append(caught[0])
                caught.clear()
        finally:
            hook.remove()
        return torch.cat(found)

    def images(self, part: Literal["train", "test"], indices: Tensor) -> npt.NDArray[np.uint8]:
        """Some images as the network sees them, without augmentation: uint8 [n, H, W, C].

        Args:
            part: the training split or the test set; indices: positions in it, int64 [n].
        """
        mean, sd = (torch.tensor(values)[:, None, None] for values in (self.data.mean, self.data.std))
        parts = [batch.x.float().cpu() * sd + mean for batch in self._batches(part, indices)]
        shown: npt.NDArray[np.uint8] = (255 * torch.cat(parts)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return shown

    def _batches(self, part: Literal["train", "test"], indices: Tensor) -> Iterator[Batch]:
        """Batches of some images in their order, as they are evaluated."""
        options: dict[str, Any] = {"augment": False, "shuffle": False, "batch_size": EVALUATION_BATCH}
        if part == "train":
            return self._run.loader(indices, **options)
        return self._setup.evaluator.test.batches(indices, order_seed=0, augment_seed=0, **options)

    def inlier_curve(self) -> tuple[Tensor, Tensor]:
        """Precision [n] and recall [n] of telling test inliers from outliers, recall ascending (`Evaluator`).

        The last has recall one: its precision is the share of inliers.

        Raises:
            UserError: the noise is not open-set.
        """
        with self._evaluating():
            return self._setup.evaluator.inlier_curve(self.method, self._run)

    def with_settings(self, **hparams: Any) -> FinishedRun:
        """The same weights under other settings of the method.

        Raises:
            UserError: an unknown setting, a wrong value, or one that the weights do not fit, e.g. another rank.
        """
        cls, changes = type(self.method), ", ".join(f"{key}={value}" for key, value in hparams.items())
        settings = make_hparams(cls, {**self.hparams, **hparams}, f"method '{self.config['method']}'")
        other, data, recipe = copy.copy(self), self.data, build(Recipe, self.config["recipe"], "recipe")
        with _restoring(recipe.threads):
            train_at = split(len(data.train_labels), recipe, self.config["seed"])[0]
            noisy = noise.load(self.out / self.config["noise_folder"]) if cls.needs_with(settings) else None
            known = known_of(noisy, train_at, data.label_sets is not None)
            about = data.num_classes, len(train_at), data.image_shape_at(recipe.image_size), known, data.multilabel
            made = build_method(cls, settings, recipe, self.config["seed"], *about)
        made.to(self._run.device)
        if recipe.channels_last:
            made.to(memory_format=torch.channels_last)
        other._take(made, self.method.state_dict(), f"they were not learned under {changes}")
        other.hparams = {**self.hparams, **hparams}
        return other

    def _take(self, method: Method, state: Mapping[str, Any], reason: str) -> None:
        try:
            method.load_state_dict(state)
        except RuntimeError as error:
            first = " ".join(str(error).split(":", 1)[-1].split()).split(". ")[0].rstrip(".")[:160]
            raise UserError(f"{self.folder.name}: the weights do not fit, {reason}: {first}") from None
        self.method = method.eval()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """As the training loop evaluates; neither the threads nor the global generators notice."""
        with _restoring(self.config["recipe"]["threads"]), torch.no_grad(), self._run.autocast():
            yield


def _part(noisy: noise.NoisyLabels, at: npt.NDArray[np.int64]) -> noise.NoisyLabels:
    """The noise of some samples alone; its rates are still those of all."""
    outliers = None if noisy.outliers is None else noisy.outliers[at]
    labelled = None if noisy.labelled is None else noisy.labelled[at]
    return replace(noisy, labels=noisy.labels[at], outliers=outliers, labelled=labelled)


@contextmanager
def _restoring(threads: int) -> Iterator[None]:
    """So many threads, on whose number bits depend; they and the global generators are put back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _same_code(config: dict[str, Any]) -> bool:
    """Whether the cell that config.json describes has the fingerprint that it has there.

    True where it does not say which settings were given: a fingerprint is of these as they were written, 1 or 1.0.
    """
    if "given" not in config:
        return True
    spec = dict(config["noise"])
    if isinstance(spec.get("mapping"), dict):  # JSON made texts of its classes
        spec["mapping"] = {int(key): value for key, value in spec["mapping"].items()}
    method = {"name": config["method"], "hparams": config["given"]}
    about = {key: config[key] for key in ("dataset", "seed", "recipe")}
    cell: Cell = build(Cell, about | {"method": method, "noise": spec}, "config.json")
    return bool(cell.fingerprint() == config["fingerprint"])
