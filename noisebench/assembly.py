"""From names and settings to a method, its data, its noise and its run: what the loop needs, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor, nn

from noisebench import noise, open_set, registry
from noisebench.config import Recipe, explain
from noisebench.data import Augmentation, ImageData, Images, Labels, Loader, make_loader
from noisebench.errors import BrokenPlugin, UserError, unknown
from noisebench.evaluation import Evaluator, FurtherTest
from noisebench.method import Method, Task
from noisebench.nn import make_backbone
from noisebench.ranks import Group, join
from noisebench.scoring import calibration
from noisebench.starting import start_from
from noisebench.streams import stream
from noisebench.training import Journal, Run, train

MOST_CLASSES = 1000
"""Up to so many classes the true T is held by the evaluator and given to methods that need it."""

NEEDS = {
    "transition": f"the true T, which is known up to {MOST_CLASSES} classes only, and where true labels are",
    "outliers": "labelled outliers: they are there under noise open_set only",
}
"""What a method may ask for in its `needs`, and what it is told where that is not there."""


def method_class(name: str) -> type[Method]:
    """The registered method's class.

    Raises:
        UserError: unknown. BrokenPlugin: cannot be imported, or is no `Method`.
    """
    found = registry.methods()[name].load()
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise BrokenPlugin(f"'{name}' is no noisebench Method: the entry point gives {found!r}")
    return found


def make_hparams(cls: type[Method], settings: Mapping[str, Any], where: str) -> Any:
    """The method's settings with `settings` put in, types and ranges checked.

    Raises:
        UserError: the key's path, the value, what would be right.
    """
    try:
        known = [f.name for f in fields(cls.Hparams)]
        reader = TypeAdapter(cls.Hparams)
    except (TypeError, PydanticUserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenPlugin(
            f"{where}: Hparams must be a frozen dataclass of types that pydantic reads: {reason}"
        ) from None
    for key in settings:
        if key not in known:
            raise unknown(f"{where}: hparams", key, known) if known else UserError(f"{where} has no hparams")
    try:
        return reader.validate_python(dict(settings))
    except ValidationError as error:
        raise UserError(f"{where}: hparams.{explain(error)}") from None


def split(num: int, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the training and of the validation split, sorted; the same for every method of a column.

    Raises:
        UserError: more images asked for than there are.
    """
    if recipe.train_size is not None and recipe.train_size > num:
        raise UserError(f"recipe.train_size: {recipe.train_size}: there are {num} training images")
    order = torch.randperm(num, generator=torch.Generator().manual_seed(stream(seed, "split")))
    order = order[: recipe.train_size]
    held_out = round(recipe.validation * len(order))
    return order[held_out:].sort().values, order[:held_out].sort().values


class Setup:
    """A method with its run and evaluator, ready to train.

    Args:
        cls: the method's class; hparams: its settings.
        data: the dataset; labels: noisy labels of its whole training set, of the clean ones' shape and type.
        recipe: how to train; seed: of the run.
        noisy: what is known of the noise, for the evaluator and for methods that need it.
        source: the dataset that open-set noise takes its outliers from; needed where `noisy` has some. They stand in
            for training images, and its test images are what the evaluator tells inliers from.
        group: the ranks that share the run; by default this process is alone, whatever the recipe says.

    Raises:
        UserError: the method needs what is not there, or the source is not the one that the noise was drawn for.
    """

    def __init__(
        self,
        cls: type[Method],
        hparams: Any,
        data: ImageData,
        labels: Labels,
        recipe: Recipe,
        seed: int,
        noisy: noise.NoisyLabels | None = None,
        accelerator: str = "auto",
        source: ImageData | None = None,
        group: Group | None = None,
    ) -> None:
        self._loaders: list[Loader] = []
        group = group or join(recipe, accelerator)
        device = group.fabric.device
        train_at, val_at = split(len(labels), recipe, seed)
        if len(train_at) < 2:
            raise UserError(f"only {len(train_at)} training images are left; lower recipe.validation")
        augmentation = Augmentation(
            padding=recipe.padding, flip=recipe.flip, mean=data.mean, std=data.std, crop_area=recipe.crop_area
        )

        def loader(images: Images, y: Labels, at: Tensor | None = None, multihot: bool = False) -> Loader:
            at = None if at is not None and len(at) == len(y) else at  # they are sorted: at 14 M, 200 MB less
            chosen, sets = torch.from_numpy(y if at is None else y[at.numpy()]), data.label_sets
            if multihot and sets is not None:
                chosen, sets = sets.multihot(chosen, data.num_classes), None
            made = make_loader(
                images,
                chosen,
                positions=at,
                device=device,
                augmentation=augmentation,
                mode=recipe.loader,
                workers=recipe.workers,
                channels_last=recipe.channels_last,
                size=recipe.image_size,
                skip_damaged=recipe.skip_damaged,
                label_sets=sets,
                num_classes=data.num_classes,
            )
            self._loaders.append(made)
            return made

        images, wrong, strangers = data.train_images, labels != data.train_labels, None
        if noisy is not None and noisy.outliers is not None:
            if source is None or len(source.train_images) != noisy.source_size:
                found = "missing" if source is None else f"it has {len(source.train_images)} training images"
                raise UserError(f"source: {found}; the noise was drawn for a dataset of {noisy.source_size}")
            images = open_set.mix(images, source.train_images, noisy.outliers)
            wrong = wrong | (noisy.outliers >= 0)
            others = np.zeros(len(source.test_images), dtype=np.int64)
            count = min(len(data.test_labels), recipe.test_size or len(data.test_labels))
            strangers = loader(source.test_images, others, _some(len(others), count, seed, "test outliers"))
        train_loader = loader(images, labels, train_at)
        most = recipe.test_size
        test_at = None if most is None else _some(len(data.test_labels), most, 0, "evaluate test")
        if most is not None:
            val_at = val_at[_some(len(val_at), most, 0, "evaluate validation")]
        known = known_of(noisy, train_at, data.label_sets is not None)
        about = data.num_classes, len(train_at), data.image_shape_at(recipe.image_size)
        self.method = build_method(cls, hparams, recipe, seed, *about, known, data.multilabel)
        self.method.to(device)
        if recipe.channels_last:
            self.method.to(memory_format=torch.channels_last)
        self.run = Run(self.method, recipe, train_loader, seed, group)
        self.evaluator = Evaluator(
            test=loader(data.test_images, data.test_labels, test_at, multihot=True),
            validation=loader(images, labels, val_at, multihot=True) if len(val_at) else None,
            train=train_loader,
            wrong=torch.from_numpy(wrong[train_at.numpy()]),
            transition=known.get("transition"),
            num_classes=data.num_classes,
            seed=seed,
            outliers=strangers,
            further=[_further(name, data, recipe, test_at, loader) for name in recipe.evaluate],
            losses=recipe.record_losses and noisy is not None and noisy.known,
        )

    def on_damaged(self, report: Callable[[str, str], None]) -> None:
        """Call `report` with name and reason of each image that does not decode; once for each loader that meets it."""
        for loader in self._loaders:
            loader.on_damaged(report)

    def calibration(self) -> dict[str, list[Any]]:
        """See `scoring.calibration`: of the method as it is after the last epoch, on the test set."""
        self.run.epoch = self.run.epochs - 1
        self.method.eval()
        with torch.no_grad(), self.run.autocast():
            return calibration(*self.evaluator.predict_test(self.method, self.run))

    def train(self, journal: Journal, state: dict[str, Any] | None = None) -> None:
        """Run the training loop, from the start or from a stored state."""
        train(self.run, self.method, self.evaluator, journal, state)


def _further(
    name: str,
    data: ImageData,
    recipe: Recipe,
    test_at: Tensor | None,
    loader: Callable[[Images, Labels, Tensor | None], Loader],
) -> FurtherTest:
    """A further test as the evaluator takes it; its images a fixed choice of recipe.test_size, where that is said."""
    extra = data.extra_test(name)
    if data.multilabel:
        raise UserError(f"recipe.evaluate: '{name}': further tests are for one label an image; leave it out")
    images, at = None, test_at
    count = len(data.test_labels if extra.images is None else extra.images)
    labels = np.zeros(count, dtype=np.int64) if extra.labels is None else extra.labels
    if extra.images is not None:
        at = None if recipe.test_size is None else _some(count, recipe.test_size, 0, f"evaluate {name}")
        images = loader(extra.images, labels, at)
    keep, soft = (
        None if a is None else torch.from_numpy(a if at is None else a[at.numpy()]) for a in (extra.keep, extra.soft)
    )
    if keep is not None and not bool(keep.any()):
        raise UserError(f"recipe.test_size: {recipe.test_size}: none of these images counts for '{name}'; give more")
    told = None if extra.labels is None else torch.from_numpy(labels if at is None else labels[at.numpy()])
    return FurtherTest(name, images, told, keep, soft)


def known_of(noisy: noise.NoisyLabels | None, train_at: Tensor, sets: bool = False) -> dict[str, Tensor]:
    """What is known of the noise and may be given to a method (see `Task.given`).

    Args:
        train_at: the training split.
        sets: whether labels name sets of classes: T is then one of sets, of which methods know nothing.
    """
    found: dict[str, Tensor] = {}
    if noisy is not None and noisy.known and noisy.states <= MOST_CLASSES and not sets:
        found |= {"transition": torch.from_numpy(np.array(noisy.transition))}
    if noisy is not None and noisy.labelled is not None:
        found |= {"outliers": torch.from_numpy(noisy.labelled[train_at.numpy()])}
    return found


def _some(count: int, most: int, seed: int, what: str) -> Tensor:
    """Which of so many images the evaluator takes, at most `most`: a fixed choice, sorted."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(stream(seed, what)))
    return order[:most].sort().values


def check_several(cls: type[Method], hparams: Any, dataset: str) -> None:
    """Refuse a method that takes one label an image, for a dataset whose images may have several.

    Raises:
        UserError: with the methods that take several.
    """
    if not cls.multilabel_with(hparams):
        able = [name for name, entry in registry.methods().entries.items() if entry.constants.get("multilabel") is True]
        so_set = " under these settings" if cls.multilabel else ""
        raise UserError(
            f"method '{cls.name}'{so_set} is for one label an image, and {dataset} has several; methods that take "
            f"several: {', '.join(able)}"
        )


def build_method(
    cls: type[Method],
    hparams: Any,
    recipe: Recipe,
    seed: int,
    num_classes: int,
    num_train: int,
    image_shape: tuple[int, int, int],
    known: Mapping[str, Tensor] | None = None,
    multilabel: bool = False,
) -> Method:
    """A method with its networks, on the CPU, its weights from the stream "init" alone.

    `known` is what `known_of` gives; a method gets of it what it needs.

    Raises:
        UserError: it needs what is not there, or takes no multilabel task.
    """
    if multilabel:
        check_several(cls, hparams, "this dataset")

    def backbone() -> nn.Module:
        made = make_backbone(recipe.backbone, image_shape, **recipe.backbone_options)
        start_from(made, recipe, image_shape)
        if recipe.compile:
            made.compile()
        return made

    given, known = {}, known or {}
    needs = cls.needs_with(hparams)
    for need in needs:
        if need not in NEEDS:
            raise unknown(f"method '{cls.name}' needs", need, NEEDS)
        if need not in known:
            raise UserError(f"method '{cls.name}' needs {NEEDS[need]}")
        if "outliers" in known and "outliers" not in needs:  # it would be surprised by a T that is no [K, K]
            raise UserError(f"method '{cls.name}' needs a T of the {num_classes} classes; here it has one for outliers")
        given[need] = known[need].clone()
    feature_dim: Any = backbone().feature_dim
    torch.manual_seed(stream(seed, "init"))
    method = cls(hparams)
    method.build(
        Task(
            num_classes=num_classes,
            num_train=num_train,
            image_shape=image_shape,
            feature_dim=feature_dim,
            make_backbone=backbone,
            given=given,
            multilabel=multilabel,
        )
    )
    return method
