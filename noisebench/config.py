"""What a benchmark and a run are: pydantic models, YAML, cells and their fingerprints.

Imports neither torch nor MLflow: a board of finished cells is placed in an instant.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from noisebench import noise as noise_module
from noisebench import registry
from noisebench.errors import UserError, unknown

RULES = 1
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

    def check(self, num_classes: int | None = None) -> None:
        """Refuse what can be refused before the labels are there.

        Raises:
            UserError: naming the argument.
        """
        options = self.options
        if self.kind == "asymmetric":
            options.setdefault("mapping", {0: 1})  # without one it takes the dataset's own, known only later
        noise_module.check(self.kind, self.rate, options, num_classes)


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
        return _digest(
            {
                "dataset": _dataset_code(self.dataset),
                "noise": self.noise.resolved(),
                "seed": self.noise_seed,
                "files": _files(self.noise.options),
                "rules": RULES,
            }
        )

    def fingerprint(self) -> str:
        """SHA-256 of all that can change the result; the label, the loader and its workers cannot."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return _digest(
            {
                "method": self.method.name,
                "hparams": self.method.resolved,
                "code": _method_code(self.method.name, self.method.resolved),
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _dataset_code(name: str) -> list[str]:
    return [name, registry.datasets()[name].code()]


def _method_code(name: str, hparams: Mapping[str, Any]) -> list[str]:
    """The method's code, and that of every method that its settings name (an ensemble's member)."""
    known = registry.methods().entries
    return [registry.methods()[name].code(), *(known[n].code() for n in _strings(hparams) if n in known)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _files(options: Mapping[str, Any]) -> dict[str, str]:
    """Content hashes of the files that options name (a T or labels from a file)."""
    found = {}
    for key, value in options.items():
        if isinstance(value, str) and Path(value).is_file():
            found[key] = hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return found


# ------------------------------------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; researchers mean a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML to plain data.

    Raises:
        UserError: not YAML; with the line.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{where}{line}: not valid YAML: {problem}") from None


def build(model: type[Any], data: Any, where: str) -> Any:
    """`model` from plain data.

    Raises:
        UserError: one line with the key's full path, the value and what would be right.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys and values, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first problem of a pydantic error as one line: path, value, what would be right."""
    details = error.errors(include_url=False)
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    extra = first["type"] == "extra_forbidden"
    path = ".".join(str(part) for part in first["loc"] if extra or not _is_tag(part))
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if extra and model is not None:
        return str(unknown("key", path, _keys(model)))
    if first["type"] == "missing":
        return f"{path}: is missing"
    if first["type"] == "value_error":
        return f"{path}: {message}" if path else message
    union = [d for d in details if d["loc"][: len(first["loc"]) - 1] == first["loc"][:-1] and _is_tag(d["loc"][-1])]
    if len(union) > 1:
        message = " or ".join(dict.fromkeys(d["msg"].replace("Input should be", "should be") for d in union))
    return f"{path}: {_short(first['input'])}: {message}"


def _is_tag(part: Any) -> bool:
    """Whether a part of pydantic's path names a branch of a union rather than a key."""
    return isinstance(part, str) and bool(re.fullmatch(r"int|float|(constrained|function|nullable|lax)-.*", part))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys(inner, f"{prefix}{name}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def override(data: dict[str, Any], settings: list[str], option: str = "--set") -> dict[str, Any]:
    """`data` with ``a.b=value`` settings applied; the values are YAML. `option` is what the user wrote before them.

    Raises:
        UserError: no `=`, or a path that runs through something that is no mapping.
    """
    data = json.loads(json.dumps(data, default=str))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise UserError(f"{option} {setting}: expected KEY=VALUE")
        *parents, last = path.strip().split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{option} {setting}: '{parent}' holds a value, not keys")
        node[last] = parse_yaml(text, f"{option} {path}")
    return data


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
        classes = registry.datasets()[name].constants.get("NUM_CLASSES")
        for i, spec in enumerate(benchmark.noise):
            try:
                spec.check(classes if isinstance(classes, int) else None)
            except UserError as error:
                raise UserError(f"{where}: noise[{i}] on {name}: {error}") from None
    backbone, known_backbones = benchmark.recipe.backbone, registry.backbone_names()
    if backbone not in known_backbones and not backbone.startswith("timm:"):
        raise unknown(f"{where}: recipe.backbone", backbone, [*known_backbones, "timm:NAME"])
