"""What a benchmark and a run are: pydantic models, their files, cells and their fingerprints.

Imports neither torch nor MLflow: a board of finished cells is placed in an instant.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cached_property
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from noisebench import board_files, dataset_names, registry
from noisebench import noise as noise_module
from noisebench._models import Model, Seed
from noisebench._tuned import Tuned as Tuned
from noisebench._tuned import TunedRow as TunedRow
from noisebench.board_files import Scale, with_changes
from noisebench.board_files import check_names as check_names
from noisebench.errors import UserError
from noisebench.execution import Execution
from noisebench.fingerprints import dataset_code, digest, files_in, method_code
from noisebench.open_set import check_source
from noisebench.published import Published
from noisebench.reading import build as build
from noisebench.reading import explain as explain
from noisebench.reading import override as override
from noisebench.reading import parse_yaml as parse_yaml
from noisebench.recipe import Epochs as Epochs
from noisebench.recipe import Recipe as Recipe
from noisebench.recipe import Schedule as Schedule
from noisebench.recipe import Start as Start
from noisebench.tracking_options import Tracking

RULES = 3
"""Version of the rules of a leaderboard: moves whenever a change of the harness alters results (see CHANGELOG)."""


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

    @property
    def source(self) -> str | None:
        """The dataset that outliers come from, under open-set noise; else None."""
        return self.options.get("source") if self.kind == "open_set" else None

    @property
    def given(self) -> str | None:
        """The dataset's labels that it takes, or takes T from; None where that is not said, and for other kinds."""
        return self.options.get("given") if self.kind in ("real", "matched") else None

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

    def check(self, num_classes: int | None = None, multilabel: bool = False, dataset: str | None = None) -> None:
        """Refuse what can be refused before the labels are there; `dataset` is the name of the one that it is for.

        Raises:
            UserError: naming the argument.
        """
        options = self.options
        if self.kind == "asymmetric" and not multilabel:
            options.setdefault("mapping", {0: 1})  # without one it takes the dataset's own, known only later
        noise_module.check(self.kind, self.rate, options, num_classes, multilabel)
        if self.source is not None:
            check_source(self.source, dataset)


class MethodSpec(Model):
    """A row of a board: a method, its settings where they differ from the defaults, and its label."""

    name: str
    label: str = ""
    hparams: dict[str, Any] = Field(default={})
    recipe: dict[str, Any] = Field(default={})  # keys in the place of the board's, for a paper whose rows differ in it

    @model_serializer(mode="wrap")
    def _plain(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        return {key: value for key, value in found.items() if key != "recipe" or value}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labelled(self) -> MethodSpec:
        if not self.label:
            told = self.hparams | {f"recipe.{key}": value for key, value in self.recipe.items()}
            settings = ", ".join(f"{k}={v}" for k, v in told.items())
            object.__setattr__(self, "label", f"{self.name} ({settings})" if settings else self.name)
        return self

    @property
    def resolved(self) -> dict[str, Any]:
        """Its settings with the defaults that can be read without importing it."""
        entry = registry.methods().entries.get(self.name)
        return (entry.defaults if entry else {}) | self.hparams


class Benchmark(Model):
    """A leaderboard: methods x datasets x noise x seeds under one recipe, but for what a row says of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    title: str = ""
    description: str = ""
    datasets: tuple[str, ...]  # name, or name@n: n of the training images, validation included
    noise: tuple[Noise, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    recipe: Recipe = Recipe()
    tuned: Tuned | None = None
    published: Published | None = None
    execution: Execution = Execution()
    tracking: Tracking = Tracking()
    scale: dict[str, Scale] = Field(default={})

    @field_validator("methods", mode="before")
    @classmethod
    def _all(cls, value: Any, info: ValidationInfo) -> Any:
        if value != "all":
            return value
        outliers = any(spec.source for spec in info.data.get("noise", ()))
        known = registry.methods().entries
        return sorted(name for name in known if outliers or "outliers" not in known[name].constants.get("needs", ()))

    @model_serializer(mode="wrap")
    def _plain(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialise(self)
        as_ever = {"published": None, "execution": Execution(), "tracking": Tracking(), "scale": dict[str, Scale]()}
        return {key: value for key, value in found.items() if key not in as_ever or getattr(self, key) != as_ever[key]}

    @model_validator(mode="after")
    def _rows_recipes_are_sound(self) -> Benchmark:
        for row in self.methods:
            if "validation" in row.recipe:
                raise ValueError(f"methods: '{row.label}': recipe.validation is the board's, for all rows alike")
            try:
                with_changes(self.recipe, row.recipe)
            except ValidationError as error:
                raise ValueError(f"methods: '{row.label}': recipe: {explain(error, Recipe)}") from None
        return self

    @model_validator(mode="after")
    def _published_has_a_place(self) -> Benchmark:
        if self.published:
            self.published.check([m.label for m in self.methods], self.datasets, [n.label for n in self.noise])
        return self

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
        columns: dict[tuple[str, int | None], str] = {}
        for name in self.datasets:
            other = columns.setdefault((dataset_names.sized(name)[0], self.recipe_of(name).train_size), name)
            if other != name:
                raise ValueError(f"datasets: '{other}' and '{name}' are one column under this recipe.train_size")
        if self.datasets and self.recipe.train_size is not None and all("@" in name for name in self.datasets):
            raise ValueError("recipe.train_size: every dataset of this board says its own (name@n); change it there")
        rows: dict[str, str] = {}
        for row in self.methods:
            recipe = with_changes(self.recipe, row.recipe).identity()
            same = rows.setdefault(json.dumps([row.name, row.resolved, recipe], sort_keys=True, default=str), row.label)
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

    def recipe_of(self, dataset: str) -> Recipe:
        """The recipe for one of its datasets, before a row changes it: ``name@n`` sets recipe.train_size."""
        size = dataset_names.sized(dataset)[1]
        return self.recipe if size is None else self.recipe.model_copy(update={"train_size": size})

    def cells(self) -> list[Cell]:
        """Every cell, column by column and seed by seed, so that a stopped board has whole columns."""
        return [
            Cell(
                method=row,
                dataset=dataset,
                noise=noise,
                seed=seed,
                recipe=with_changes(self.recipe_of(dataset), row.recipe),
            )
            for seed, dataset, noise, row in itertools.product(self.seeds, self.datasets, self.noise, self.methods)
        ]


class Cell(Model):
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
        """SHA-256 of all that decides the noisy labels: dataset, its code, noise, seed; the code of a source too."""
        source, names = self.noise.source, (self.noise.source, self.noise.given)
        return digest(
            {
                "dataset": dataset_code(self.dataset),
                "noise": self.noise.resolved(),
                "seed": self.noise_seed,
                "files": files_in({k: v for k, v in self.noise.options.items() if v not in names}),
                "rules": RULES,
            }
            | ({} if source is None else {"source": dataset_code(source)})
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
                "recipe": self.recipe.identity(),
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
        slug = slugify(f"{self.method.name}-{dataset_names.sized(self.dataset)[0]}-{self.noise.label}")
        return f"runs/{slug}-s{self.seed}-{self.fingerprint()[:12]}"


def slugify(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9=]+", "-", text).strip("-")[:80]


# ------------------------------------------------------------------------------------------------ reading


def load_benchmark(name: str, settings: list[str] | None = None, scale: str | None = None) -> Benchmark:
    """A shipped benchmark by name, or one from a YAML file, with ``a.b=value`` overrides.

    Args:
        name: of a shipped one, or the file.
        settings: the overrides.
        scale: one of the board's ``scale``, see `board_files.Scale`; overrides come on top of it.

    Raises:
        UserError: unknown name or scale, unreadable file, or any wrong key or value.
    """
    path = board_files.find(name)
    data, inherited = board_files.read(path)
    where = path.name
    if scale is not None:
        figures = data.get("published")
        written: Benchmark = build(Benchmark, data | {"published": None}, where)
        if figures is not None:
            build(Published, figures, f"{where}: published")
        data = board_files.at_scale(data, written, scale, where)
        where = f"{where} at scale {scale}"
    given = override(data, settings or [])
    if given.get("published") != override(data, []).get("published"):
        raise UserError("--set published: these are a paper's figures; write a board of your own for others")
    # Figures may name what a changed board leaves out, or one that extends theirs.
    loose = given.pop("published", None) if settings or inherited else None
    over_rows = board_files.over_rows(given, settings or [])
    try:
        benchmark: Benchmark = build(Benchmark, given, where)
    except UserError as error:
        also = f" (rows with a recipe of their own take {', '.join(over_rows)}, too)" if over_rows else ""
        raise UserError(f"{error}{also}") from None
    if settings:
        written = build(Benchmark, data | ({"published": None} if inherited else {}), where)
        same = {key: getattr(benchmark, key) for key in ("published", "execution", "tracking")}
        if benchmark != written.model_copy(update=same):  # a quick trial must not pass for the board
            told = [s for s in settings if not s.startswith(("execution.", "tracking."))]
            benchmark = benchmark.retitled(", ".join(told))
    if loose:
        benchmark = benchmark.model_copy(update={"published": build(Published, loose, f"{where}: published")})
    if scale is not None:
        benchmark = benchmark.model_copy(
            update={"title": f"{benchmark.title} {board_files.small_print(benchmark, scale)}"}
        )
    check_names(benchmark, where)
    return benchmark
