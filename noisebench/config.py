"""What a benchmark and a run are: pydantic models, their files, cells and their fingerprints.

Imports neither torch nor MLflow: a board of finished cells is placed in an instant.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from noisebench import noise as noise_module
from noisebench import registry
from noisebench.errors import UserError, unknown
from noisebench.fingerprints import dataset_code, digest, files_in, method_code
from noisebench.reading import build as build
from noisebench.reading import explain as explain
from noisebench.reading import override as override
from noisebench.reading import parse_yaml as parse_yaml

RULES = 2
"""Version of the rules of a leaderboard: moves whenever a change of the harness alters results (see CHANGELOG)."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0, le=1, strict=True)]
"""A point in a run or a length of it: an `int` counts epochs, a `float` in [0, 1] is a share of the run's epochs."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Schedule(_Model):
    """Learning rate by epoch: linear warm-up, then constant, multi-step or cosine."""

    kind: Literal["constant", "multistep", "cosine"] = "cosine"
    milestones: tuple[Epochs, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup: Epochs = 0

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if bool(self.milestones) != (self.kind == "multistep"):
            raise ValueError("milestones belong to kind multistep, which needs some, and to no other")
        return self


class Recipe(_Model):
    """How a network is trained: shared by every method of a board."""

    backbone: str = "small_cnn"
    backbone_options: dict[str, Any] = {}
    epochs: int = Field(default=60, ge=1, strict=True)
    batch_size: int = Field(default=128, ge=2, strict=True)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(default=None, gt=0)
    padding: int = Field(default=0, ge=0)
    flip: bool = False
    validation: float = Field(default=0.1, ge=0, lt=1)
    train_size: int | None = Field(default=None, ge=2)  # only so many of the training images, validation included
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = True  # faster on CPUs too: 1.3x to 1.5x for small networks
    compile: bool = False
    loader: Literal["auto", "resident", "streaming"] = "auto"
    workers: int = Field(default=2, ge=0)
    threads: int = Field(default=1, ge=1)
    checkpoint_seconds: float = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer sgd with a momentum above 0")
        return self


class Noise(BaseModel):
    """One kind of label noise; options beyond these are the kind's own (noisebench.noise.KINDS)."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str
    rate: float | None = None
    seed: Seed | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own options, as they were given."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """A short unambiguous name, e.g. ``symmetric 40% (excl. true)``."""
        return noise_module.describe(self.kind, self.rate, **self.options)

    @model_validator(mode="after")
    def _known(self) -> Noise:
        self.check()
        return self

    def resolved(self) -> dict[str, Any]:
        """Kind, rate and options with defaults filled in; an asymmetric kind may leave the mapping to the dataset."""
        options, default = self.options, self.kind == "asymmetric" and "mapping" not in self.options
        if default:
            options["mapping"] = {0: 1}
        found = noise_module.resolved(self.kind, self.rate, options)
        return found | {"mapping": "the dataset's"} if default else found

    def check(self, num_classes: int | None = None, multilabel: bool = False) -> None:
        """Refuse what can be refused before the labels are there.

        Raises:
            UserError: naming the argument.
        """
        options = self.options
        if self.kind == "asymmetric" and not multilabel:
            options.setdefault("mapping", {0: 1})  # without one it takes the dataset's own, known only later
        noise_module.check(self.kind, self.rate, options, num_classes, multilabel)


class MethodSpec(_Model):
    """A row of a board: a method, its settings where they differ from the defaults, and its label."""

    name: str
    label: str = ""
    hparams: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labelled(self) -> MethodSpec:
        if not self.label:
            settings = ", ".join(f"{k}={v}" for k, v in self.hparams.items())
            object.__setattr__(self, "label", f"{self.name} ({settings})" if settings else self.name)
        return self

    @property
    def resolved(self) -> dict[str, Any]:
        """Its settings with the defaults that can be read without importing it."""
        entry = registry.methods().entries.get(self.name)
        return (entry.defaults if entry else {}) | self.hparams


class TunedRow(_Model):
    """How the settings of a row of a tuned board were found.

    Attributes:
        trials: settings tried, the row's own first; 1 for a row with nothing to search.
        failed: how many of them failed.
        before: the objective of the row's own settings; None where they failed.
        after: that of the settings that were chosen.
        search: what was searched, e.g. {"temperature": "0.1:5.0:log"}.
        method, hparams: the row's method and all its settings, as they were chosen.
    """

    trials: int = Field(ge=1)
    failed: int = Field(default=0, ge=0)
    before: float | None = None
    after: float | None = None
    search: dict[str, str] = {}
    method: str
    hparams: dict[str, Any]


class Tuned(_Model):
    """What a tuned board says of itself: the budget, equal for all rows that had something to search."""

    trials: int = Field(ge=1)
    seed: Seed
    objective: str
    rows: dict[str, TunedRow]

    @property
    def note(self) -> str:
        """For the board's title: which rows were tuned and which were not."""
        searched = [label for label, row in self.rows.items() if row.search]
        plain = [label for label, row in self.rows.items() if not row.search]
        budget = f"{self.trials} trial{'s' if self.trials > 1 else ''}{' each' if len(searched) > 1 else ''}"
        left = f"; nothing to tune in {', '.join(plain)}" if plain else ""
        return f"(tuned on the noisy validation split, seed {self.seed}: {budget} for {', '.join(searched)}{left})"

    @model_validator(mode="after")
    def _equal_budgets(self) -> Tuned:
        for label, row in self.rows.items():
            if row.trials != (self.trials if row.search else 1):
                right = f"tuned.trials is {self.trials}" if row.search else "it searched nothing, so that it has 1"
                raise ValueError(f"rows: '{label}' has {row.trials} trials, but {right}")
        return self


class Benchmark(_Model):
    """A leaderboard: methods x datasets x noise x seeds under one recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    description: str = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    noise: tuple[Noise, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    recipe: Recipe = Recipe()
    tuned: Tuned | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return sorted(registry.methods().entries) if value == "all" else value

    @model_validator(mode="after")
    def _no_twins(self) -> Benchmark:
        for what, names in (
            ("methods", [m.label for m in self.methods]),
            ("datasets", list(self.datasets)),
            ("noise", [n.label for n in self.noise]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            twins = sorted({n for n in names if names.count(n) > 1})
            if twins:
                raise ValueError(f"{what}: '{twins[0]}' is listed twice; give each once, or a label of its own")
        rows: dict[str, str] = {}
        for row in self.methods:
            same = rows.setdefault(json.dumps([row.name, row.resolved], sort_keys=True, default=str), row.label)
            if same != row.label:
                raise ValueError(f"methods: '{same}' and '{row.label}' are one method under the same settings")
        return self

    @model_validator(mode="after")
    def _tells_that_it_is_tuned(self) -> Benchmark:
        if self.tuned is None:
            return self
        for row in self.methods:
            if row.label not in self.tuned.rows:
                raise ValueError(
                    f"methods: '{row.label}' is no tuned row; tune it too, or remove 'tuned' from the board"
                )
            found = self.tuned.rows[row.label]
            if (row.name, row.hparams) != (found.method, found.hparams):
                raise ValueError(
                    f"methods: '{row.label}' is {row.name} {row.hparams}, but tuning chose {found.method} "
                    f"{found.hparams}; put that back, or remove 'tuned' from the board"
                )
        if self.tuned.seed in self.seeds:
            raise ValueError(f"seeds: {self.tuned.seed} is the seed that this board was tuned on; give others")
        if self.tuned.note not in self.title:
            object.__setattr__(self, "title", f"{self.title or self.name} {self.tuned.note}")
        return self

    def retitled(self, changes: str, **update: Any) -> Benchmark:
        """This board with `update`, and with a title that tells what was changed."""
        return self.model_copy(update={"title": f"{self.title or self.name} (changed: {changes})", **update})

    @property
    def which(self) -> Literal["selected", "last"]:
        """The epoch that ranks: chosen on the noisy validation split where there is one, else the last."""
        return "selected" if self.recipe.validation > 0 else "last"

    def cells(self) -> list[Cell]:
        """Every cell, column by column and seed by seed, so that a stopped board has whole columns."""
        return [
            Cell(method=method, dataset=dataset, noise=noise, seed=seed, recipe=self.recipe)
            for seed, dataset, noise, method in itertools.product(self.seeds, self.datasets, self.noise, self.methods)
        ]


class Cell(_Model):
    """method x dataset x noise x seed under a recipe: what one run is."""

    method: MethodSpec
    dataset: str
    noise: Noise
    seed: Seed
    recipe: Recipe

    @property
    def noise_seed(self) -> int:
        """The seed of the noise: the cell's, unless the benchmark fixes it."""
        return self.seed if self.noise.seed is None else self.noise.seed

    @property
    def column(self) -> tuple[str, str]:
        """Dataset and noise, as a table shows them."""
        return self.dataset, self.noise.label

    def noise_key(self) -> str:
        """SHA-256 of all that decides the noisy labels: dataset, its code, noise, seed."""
        return digest(
            {
                "dataset": dataset_code(self.dataset),
                "noise": self.noise.resolved(),
                "seed": self.noise_seed,
                "files": files_in(self.noise.options),
                "rules": RULES,
            }
        )

    def fingerprint(self) -> str:
        """SHA-256 of all that can change the result; the label, the loader and its workers cannot."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return digest(
            {
                "method": self.method.name,
                "hparams": self.method.resolved,
                "code": method_code(self.method.name, self.method.resolved),
                "noise": self.noise_key(),
                "seed": self.seed,
                "recipe": self.recipe.model_dump(mode="json", exclude={"loader", "workers", "checkpoint_seconds"}),
                "rules": RULES,
            }
        )

    def identity(self) -> dict[str, Any]:
        """What every record of the cell begins with."""
        return {
            "fingerprint": self.fingerprint(),
            "method": self.method.name,
            "label": self.method.label,
            "dataset": self.dataset,
            "noise": self.noise.label,
            "seed": self.seed,
            "rules": RULES,
        }

    def folder(self) -> str:
        """Its folder below the output folder: readable, and unique by the fingerprint."""
        slug = slugify(f"{self.method.name}-{self.dataset}-{self.noise.label}")
        return f"runs/{slug}-s{self.seed}-{self.fingerprint()[:12]}"


def slugify(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9=]+", "-", text).strip("-")[:80]


# ------------------------------------------------------------------------------------------------ reading


def load_benchmark(name: str, settings: list[str] | None = None) -> Benchmark:
    """A shipped benchmark by name, or one from a YAML file, with ``a.b=value`` overrides.

    Raises:
        UserError: unknown name, unreadable file, or any wrong key or value.
    """
    shipped = registry.benchmarks()
    if name in shipped:
        path = shipped[name]
    else:
        path = Path(name)
        if path.suffix not in {".yaml", ".yml"}:
            raise unknown("benchmark", name, shipped)
        if not path.is_file():
            raise UserError(f"{name}: no such file; shipped benchmarks: {', '.join(shipped)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        raise UserError(f"{path.name}: expected keys and values, found {type(data).__name__}")
    data.setdefault("name", path.stem)
    benchmark: Benchmark = build(Benchmark, override(data, settings or []), path.name)
    if settings and benchmark != build(Benchmark, data, path.name):  # a quick trial must not pass for the board itself
        benchmark = benchmark.retitled(", ".join(settings))
    check_names(benchmark, path.name)
    return benchmark


def check_names(benchmark: Benchmark, where: str) -> None:
    """Refuse a method, dataset or backbone that does not exist, with the nearest names."""
    for what, known, names in (
        ("methods", registry.methods(), [m.name for m in benchmark.methods]),
        ("datasets", registry.datasets(), list(benchmark.datasets)),
    ):
        for i, name in enumerate(names):
            if name not in known.entries:
                raise unknown(f"{where}: {what}[{i}]: {known.what}", name, known.entries)
    for name in benchmark.datasets:
        constants = registry.datasets()[name].constants
        classes, several = constants.get("NUM_CLASSES"), constants.get("MULTILABEL") is True
        for i, spec in enumerate(benchmark.noise):
            try:
                spec.check(classes if isinstance(classes, int) else None, several)
            except UserError as error:
                raise UserError(f"{where}: noise[{i}] on {name}: {error}") from None
    backbone, known_backbones = benchmark.recipe.backbone, registry.backbone_names()
    if backbone not in known_backbones and not backbone.startswith("timm:"):
        raise unknown(f"{where}: recipe.backbone", backbone, [*known_backbones, "timm:NAME"])
