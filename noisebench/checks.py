"""The conformance suite: what every method and dataset must keep, importable by plug-ins.

In a plug-in's test::

    from noisebench.checks import check_method
    def test_conforms():
        check_method(MyMethod)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from noisebench.assembly import Setup
from noisebench.cell import weights_sha256
from noisebench.config import Recipe, Schedule
from noisebench.data import ImageData, Labels
from noisebench.fitting import Memory
from noisebench.image_data import LabelSets, is_encoded
from noisebench.method import Batch, Method
from noisebench.noise import NoisyLabels, inject
from noisebench.streams import stream

RECIPE = Recipe(
    epochs=4, batch_size=16, lr=0.02, validation=0.125, padding=1, flip=True, schedule=Schedule(kind="cosine", warmup=1)
)
CLASSES = 4
MEAN_WITHIN = 1e-5
"""Of a gradient's norm: what rounding to float32 may make of it."""

WITHIN = 8
"""The step, in the middle of the second epoch, after which a method that keeps the default `epoch` is resumed too."""


@dataclass(frozen=True)
class Outcome:
    """One check: its name, "passed", "failed" or "skipped", and why."""

    name: str
    status: str
    detail: str = ""


class _Skip(Exception):
    """A check that does not apply; the message says why."""


def sample_data(multilabel: bool = False) -> ImageData:
    """A small set of noise images, each class with a bright row of its own: 96 to train, 40 to test."""
    draw = np.random.default_rng(stream(0, "checks"))

    def images(labels: Any) -> Any:
        made = draw.integers(0, 128, (len(labels), 8, 8, 1), dtype=np.uint8)
        image, present = np.nonzero(labels) if multilabel else (np.arange(len(labels)), labels)
        made[image, 2 * present] += 100
        return made

    train: Labels
    test: Labels
    if multilabel:
        train, test = ((draw.random((n, CLASSES)) < 0.4).astype(np.uint8) for n in (96, 40))
    else:
        train, test = (draw.integers(0, CLASSES, n).astype(np.int64) for n in (96, 40))
    return ImageData(
        train_images=images(train),
        train_labels=train,
        test_images=images(test),
        test_labels=test,
        num_classes=CLASSES,
        classes=tuple("abcd"),
        mean=(0.25,),
        std=(0.2,),
        class_map={} if multilabel else {0: 1},
    )


class _Suite:
    def __init__(self, cls: type[Method], hparams: Any, multilabel: bool = False) -> None:
        self.cls, self.hparams = cls, hparams
        self.data, self.source = sample_data(multilabel), replace(sample_data(), classes=tuple("efgh"))

    @property
    def settings(self) -> Any:
        return self.cls.Hparams() if self.hparams is None else self.hparams

    @cached_property
    def noisy(self) -> NoisyLabels:
        drawn: dict[str, Any] = {"kind": "symmetric", "rate": 0.1 if self.data.multilabel else 0.4}
        if "outliers" in self.cls.needs_with(self.settings):  # known only where images are of no class
            drawn = {"kind": "open_set", "rate": 0.4, "labelled": 0.5, "source": len(self.source.train_images)}
        return inject(self.data.train_labels, num_classes=CLASSES, seed=1, **drawn)

    def setup(self, data: ImageData | None = None) -> Setup:
        given = self.noisy.labels, RECIPE, 7, self.noisy, "cpu", self.source
        return Setup(self.cls, self.settings, data or self.data, *given)

    def trained(self, data: ImageData | None = None, state: Any = None, keep: bool = False) -> tuple[Setup, Memory]:
        setup, journal = self.setup(data), Memory(keep)
        if keep:  # states are live tensors: keep copies
            store = journal.checkpoint
            journal.checkpoint = lambda state, last: store(_through_a_file(state), last)  # type: ignore[method-assign]
            journal.due = lambda: setup.run.step == WITHIN  # type: ignore[method-assign]
        setup.train(journal, state)
        return setup, journal

    # Each check returns nothing, or raises with the reason.

    def contract(self) -> None:
        """is a Method with a name and a frozen dataclass of settings"""
        known: Any = self.cls  # an entry point may give anything
        assert isinstance(known, type), f"{known!r} is no class"
        assert issubclass(known, Method), f"{known!r} is no subclass of noisebench.method.Method"
        assert self.cls.name, "set the class attribute `name`"
        settings = self.cls.Hparams
        assert is_dataclass(settings), "Hparams must be a dataclass"
        assert settings.__dataclass_params__.frozen, "Hparams must be frozen: @dataclass(frozen=True)"  # type: ignore[attr-defined]

    def default_constructible(self) -> None:
        """can be made without arguments, and makes no networks before build"""
        made = self.cls()
        assert not list(made.parameters()), "__init__ made parameters; make them in build"

    def trains(self) -> None:
        """trains for a few epochs with finite losses"""
        self.setup_trained, self.journal = self.trained(keep=True)
        assert len(self.journal.history) == RECIPE.epochs

    def simplex(self) -> None:
        """predicts class probabilities, each row on the simplex"""
        p = self._predict(len(self.data.test_images))
        assert p.shape == (len(self.data.test_images), CLASSES), f"shape {list(p.shape)}"
        assert bool((p >= 0).all()), "a negative probability"
        worst = float((p.sum(1) - 1).abs().max())
        assert worst < 1e-5, f"rows sum to one only within {worst:.2g}"

    def intervals(self) -> None:
        """predicts a probability in [0, 1] for each class of an image"""
        p = self._predict(len(self.data.test_images))
        assert p.shape == (len(self.data.test_images), CLASSES), f"shape {list(p.shape)}"
        low, high = float(p.min()), float(p.max())
        assert low >= 0, f"a negative probability, {low:.4g}"
        assert high <= 1, f"a probability above one, {high:.4g}"
        apart = float((p.sum(1) - 1).abs().max())
        assert apart > 1e-3, "every row sums to one, as a softmax's do: several classes can be present"

    def groups(self) -> None:
        """has every trainable parameter in exactly one group"""
        method = self.setup_trained.method
        names = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
        grouped = [id(p) for group in method.param_groups() for p in group["params"]]
        missing = [name for key, name in names.items() if key not in grouped]
        assert not missing, f"in no group: {', '.join(missing)}"
        twice = [names.get(key, "?") for key in set(grouped) if grouped.count(key) > 1]
        assert not twice, f"in two groups: {', '.join(twice)}"

    def same_seed(self) -> None:
        """gives the same weights for the same seed, bit for bit"""
        again, _ = self.trained()
        assert self._hash(again) == self._hash(self.setup_trained), "two runs of one seed ended in different weights"

    def resume(self) -> None:
        """resumes from any checkpoint to the same weights, bit for bit"""
        for state in self.journal.states[:-1]:
            resumed, _ = self.trained(state=state)
            batch = f", batch {state['batch']}" if "batch" in state else ""
            where = f"resumed after epoch {state['epoch']}{batch}: other weights than uninterrupted"
            assert self._hash(resumed) == self._hash(self.setup_trained), where + "; keep all state in buffers"

    def batch_split(self) -> None:
        """predicts the same however samples are batched"""
        if self.cls.stochastic:
            raise _Skip(f"declared: {self.cls.stochastic}")
        whole = self._predict(len(self.data.test_images))
        for size in (1, 7):
            worst = float((self._predict(size) - whole).abs().max())
            assert worst < 1e-5, f"in batches of {size} a probability differs by {worst:.2g}"

    def mean_of_samples(self) -> None:
        """has a loss that is a mean over the samples of a batch, or says why not"""
        why = self.cls.coupled_with(self.settings)
        if why:
            raise _Skip(f"declared: {why}")
        gradient = self._gradient
        quarters = [range(first, first + 4) for first in range(0, 16, 4)]
        whole, mean = gradient(range(16)), (gradient(range(8)) + gradient(range(8, 16))) / 2
        apart = _apart(mean, whole, whole)
        if apart > MEAN_WITHIN and _apart(gradient(range(16), seed=1), whole, whole) > MEAN_WITHIN:
            # It may draw for each sample, and halves are given other draws. Of as many samples each time: does it
            # depend on the others what comes of four samples in the place of four? A pairing may miss it once.
            a, b, *others = quarters
            steps = [[gradient((*a, *c), seed) - gradient((*b, *c), seed) for c in others] for seed in (1, 2, 3)]
            apart = max(_apart(one, other, whole) for one, other in steps)
        assert apart <= MEAN_WITHIN, (
            f"the mean of the gradients of two halves of a batch differs from the whole's by {apart:.2g} of it: set "
            "`coupled` to what couples the samples, since ranks that share a batch each take the loss over their part"
        )

    def clean_labels(self) -> None:
        """ends in the same weights when clean labels and the test set are altered"""
        draw = np.random.default_rng(3)
        altered = replace(
            self.data,
            train_labels=draw.permutation(self.data.train_labels),
            test_images=draw.permutation(self.data.test_images.reshape(-1)).reshape(self.data.test_images.shape),  # type: ignore[union-attr]
            test_labels=draw.permutation(self.data.test_labels),
        )
        other, _ = self.trained(altered)
        assert self._hash(other) == self._hash(self.setup_trained), "clean labels or the test set reached the weights"

    def state_loads(self) -> None:
        """saves state that loads with weights_only=True and predicts the same"""
        fresh = self.setup()
        fresh.method.load_state_dict(_through_a_file(self.setup_trained.method.state_dict()))
        same = torch.equal(self._predict(40, fresh), self._predict(40))
        assert same or bool(self.cls.stochastic), "a reloaded method predicts otherwise; keep all state in buffers"

    def optional(self) -> None:
        """gives noise scores [N] and T [K, K], where it offers them"""
        method, run = self.setup_trained.method, self.setup_trained.run
        scores, matrix = method.noise_scores(run), method.transition()
        if scores is None and matrix is None:
            raise _Skip("offers neither")
        num_train = round(96 * (1 - RECIPE.validation))
        if scores is not None:
            assert scores.shape == (num_train,), f"noise_scores gave {list(scores.shape)}, not [{num_train}]"
            assert bool(scores.isfinite().all()), "a noise score is not finite"
        if matrix is not None:
            side = 2 if self.data.multilabel else CLASSES
            sides = {side, self.noisy.states}  # with outliers, a class for them may stand last
            assert matrix.shape in {(s, s) for s in sides}, f"transition gave {list(matrix.shape)}, not {[side, side]}"
            worst = float((matrix.sum(1) - 1).abs().max())
            assert worst < 1e-4, f"rows of transition() sum to one only within {worst:.2g}"

    def _gradient(self, samples: Sequence[int], seed: int | None = None) -> torch.Tensor:
        """Of all parameters, float64 [n], for a batch of some of 16 samples in the last epoch.

        Without what BatchNorm and dropout do to the samples of a batch.
        """
        fresh = self.setup()
        method, run = fresh.method, fresh.run
        method.load_state_dict(_through_a_file(self.setup_trained.method.state_dict()))
        run.begin_epoch(RECIPE.epochs - 1)
        method.train()
        given = next(iter(method.epoch(run)))  # what an epoch begins with, e.g. with which of several networks
        views = len(given.x) if given.x.ndim == 5 else 1
        (whole,) = run.loader(torch.arange(16), views=views, augment=False, shuffle=False)
        for module in method.modules():
            if isinstance(module, (_BatchNorm, _DropoutNd)):
                module.forward = lambda x: x  # type: ignore[method-assign]
        run.begin_epoch(RECIPE.epochs - 1)
        if seed is not None:
            torch.manual_seed(seed)
            run.generator.manual_seed(seed)
        parameters = [p for p in method.parameters() if p.requires_grad]
        found: list[torch.Tensor] = []

        def record(loss: torch.Tensor) -> None:
            grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            found.append(torch.cat([grad.flatten() for grad in grads]).double())

        run.optimize = record  # type: ignore[method-assign]
        at = torch.tensor(samples)
        method.step(Batch(whole.x[..., at, :, :, :], whole.y[at], whole.index[at]), run)
        if not found:
            raise _Skip("its step does without run.optimize")
        return torch.cat(found)

    def _hash(self, setup: Setup) -> str:
        return weights_sha256(setup.method)

    def _predict(self, size: int, setup: Setup | None = None) -> torch.Tensor:
        method = (setup or self.setup_trained).method
        method.eval()
        torch.manual_seed(5)
        images = torch.from_numpy(np.asarray(self.data.test_images)).permute(0, 3, 1, 2).float() / 255
        x = (images - self.data.mean[0]) / self.data.std[0]
        with torch.no_grad():
            return torch.cat([method.predict(part) for part in torch.split(x, size)]).float()


def _apart(one: torch.Tensor, other: torch.Tensor, of: torch.Tensor) -> float:
    return float((one - other).norm() / of.norm().clamp_min(1e-30))


def _through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def check_method(cls: type[Method], hparams: Any = None, *, raise_on_failure: bool = True) -> list[Outcome]:
    """Run the conformance suite on a method class; a few seconds on a CPU.

    What matters where an image has several labels is checked too, of a method that says it takes them.

    Args:
        cls: the class. hparams: settings other than the defaults.
        raise_on_failure: raise with every failed check's reason, as a test wants it.

    Raises:
        AssertionError: a check failed.
    """
    threads = torch.get_num_threads()
    try:
        suite = _Suite(cls, hparams)
        checks = [
            suite.contract, suite.default_constructible, suite.trains, suite.simplex, suite.groups, suite.same_seed,
            suite.resume, suite.batch_split, suite.mean_of_samples, suite.clean_labels, suite.state_loads,
            suite.optional,
        ]  # fmt: skip
        needed = {"contract", "default_constructible", "trains"}  # the rest would only repeat the same failure
        outcomes = _run(checks, needed)
        if all(outcome.status != "failed" for outcome in outcomes) and cls.multilabel_with(suite.settings):
            several = _Suite(cls, hparams, multilabel=True)
            checks = [
                several.trains, several.intervals, several.resume, several.batch_split, several.state_loads,
                several.optional,
            ]  # fmt: skip
            outcomes += [replace(o, name=f"several labels: {o.name}") for o in _run(checks, needed)]
        name = getattr(cls, "name", "") or getattr(cls, "__name__", repr(cls))
        return _judged(name, outcomes, raise_on_failure)
    finally:
        torch.set_num_threads(threads)


def check_dataset(module: Any, root: Path | None = None, *, raise_on_failure: bool = True) -> list[Outcome]:
    """Run the conformance suite on a dataset module or object with ``load(root, download=False)``.

    Raises:
        AssertionError: a check failed.
    """
    found: dict[str, ImageData] = {}

    def loads() -> None:
        """loads an ImageData whose shapes, dtypes and labels fit"""
        found["data"] = module.load(root, download=False)
        data = found["data"]
        assert isinstance(data, ImageData), f"load() gave {type(data).__name__}"
        _check_constants(module, data)
        # What a board's noise is checked against before anything is loaded.
        several = getattr(module, "MULTILABEL", False)
        for constant, told, true in (
            ("NUM_CLASSES", getattr(module, "NUM_CLASSES", data.num_classes), data.num_classes),
            ("MULTILABEL", several if hasattr(module, "NUM_CLASSES") else data.multilabel, data.multilabel),
        ):
            assert told == true, f"{constant} is {told}, but the data's is {true}"

    def every_class() -> None:
        """has every class in the training and in the test labels"""
        data = found["data"]
        for which, labels in (("train", data.train_labels), ("test", data.test_labels)):
            if data.label_sets is not None:
                sets = data.label_sets.multihot(torch.from_numpy(np.unique(labels)), data.num_classes)
                seen = np.flatnonzero(sets.any(dim=0).numpy())
            else:
                seen = np.flatnonzero(labels.any(axis=0)) if data.multilabel else np.unique(labels)
            missing = sorted(set(range(data.num_classes)) - set(seen.tolist()))
            assert not missing, f"{which}: no sample of class {missing[0]}"

    def repeats() -> None:
        """loads the same again"""
        data, again = found["data"], module.load(root, download=False)
        for field in fields(data):
            first, second = (_comparable(field.name, getattr(one, field.name)) for one in (data, again))
            assert first.keys() == second.keys(), f"{field.name} differs between two loads"
            for key, value in first.items():
                assert np.array_equal(value, second[key]), f"{field.name}{key} differs between two loads"

    def class_map() -> None:
        """has a class map without a class that maps to itself"""
        if not found["data"].class_map:
            raise _Skip("publishes none")
        fixed = [a for a, b in found["data"].class_map.items() if a == b]
        assert not fixed, f"class {fixed[0]} maps to itself"

    name = getattr(module, "__name__", type(module).__name__)
    return _judged(name, _run([loads, every_class, repeats, class_map], {"loads"}), raise_on_failure)


def _check_constants(module: Any, data: ImageData) -> None:
    """What `noisebench list` and `noisebench data` go by, where the module says it."""
    size = {"train": len(data.train_labels), "test": len(data.test_labels)}
    told = getattr(module, "SIZE", size)
    assert told == size, f"SIZE is {told}, but the data's is {size}"
    noise = getattr(module, "NOISE", "not said")
    assert isinstance(noise, str), f"NOISE is {noise!r}; give one line"
    assert len(noise.splitlines()) == 1, f"NOISE is {noise!r}; give one line"
    for constant in ("FILES", "EXTRA_FILES"):
        files = getattr(module, constant, {})
        assert isinstance(files, dict), f"{constant} is {type(files).__name__}; give {{path below the data root: MD5}}"
        for file, md5 in files.items():
            inside = isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts
            assert inside, f"{constant}: {file!r} is no path below the data root"
            known = isinstance(md5, str) and re.fullmatch("([0-9a-f]{32})?", md5)
            assert known, f"{constant}: {file!r} has {md5!r}; give its MD5 in lower-case hex, or '' for none"


def _comparable(name: str, value: Any) -> dict[str, Any]:
    """A field of `ImageData` as arrays, by what a message adds to its name; of many images some."""
    if name.endswith("images"):
        read = (lambda i: np.frombuffer(value.encoded(i), np.uint8)) if is_encoded(value) else value.__getitem__
        some = range(0, len(value), max(97, len(value) // 1000))
        return {f"[{i}]": np.asarray(read(i)) for i in some} | {"": len(value)}
    if isinstance(value, LabelSets):
        return {".starts": value.starts, ".classes": value.classes}
    if isinstance(value, Mapping):  # of further tests, which are functions, the names are compared
        return {f"[{key!r}]": 0 if callable(one) else one for key, one in value.items()}
    return {"": value}


def _run(checks: list[Callable[[], None]], needed: set[str]) -> list[Outcome]:
    outcomes = []
    for check in checks:
        title = (check.__doc__ or check.__name__).strip()
        try:
            check()
            outcomes.append(Outcome(title, "passed"))
        except _Skip as skip:
            outcomes.append(Outcome(title, "skipped", str(skip)))
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(title, "failed", " ".join(reason.split())[:300]))
            if check.__name__ in needed:
                break
    return outcomes


def _judged(name: str, outcomes: list[Outcome], raise_on_failure: bool) -> list[Outcome]:
    failed = [f"{o.name}: {o.detail}" for o in outcomes if o.status == "failed"]
    if failed and raise_on_failure:
        raise AssertionError(f"{name} fails {len(failed)} checks:\n" + "\n".join(failed))
    return outcomes
