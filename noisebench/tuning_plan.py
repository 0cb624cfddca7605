"""What tuning tries: the rows of a board, what is searched of each, and the studies' names."""

from __future__ import annotations

import copy
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from noisebench.assembly import make_hparams, method_class
from noisebench.config import Benchmark, Cell, MethodSpec
from noisebench.errors import UserError
from noisebench.fingerprints import digest
from noisebench.method import Method
from noisebench.search import Choice, Range, Space, assign

SEED = 1000
OBJECTIVE = "score on the noisy validation split at its best epoch, mean over the board's columns"


@dataclass(frozen=True)
class Row:
    """A row of the board and what is searched of it.

    Attributes:
        spec: the row as it stands.
        space: setting -> what is tried.
        own: its own values of these settings, as far as they can be told.
        budget: how many trials it gets: 1 where nothing is searched.
        label: what it is called under other settings: an automatic label names no setting that is searched, unless
            another row has that name.
    """

    spec: MethodSpec
    space: Space
    own: Mapping[str, Any]
    budget: int
    label: str

    def under(self, settings: Mapping[str, Any]) -> MethodSpec:
        """The row under other settings."""
        label = self.label if settings else self.spec.label
        hparams = with_settings(self.spec.hparams, settings)
        return MethodSpec(name=self.spec.name, label=label, hparams=hparams, recipe=self.spec.recipe)


def with_settings(hparams: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`hparams` with settings put in, where ``a.b`` is the key ``b`` of the setting ``a``."""
    found = copy.deepcopy(dict(hparams))
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"search of '{key}': '{parent}' holds a value, not keys")
        node[last] = value
    return found


def plan(benchmark: Benchmark, trials: int = 20, seed: int = SEED, search: Iterable[str] = ()) -> list[Row]:
    """What is searched of every row: its method's own space, with `search` put in.

    Args:
        benchmark: the board.
        trials: of every row that has something to search.
        seed: what the trials run on.
        search: ``KEY=LOW:HIGH[:log]``, ``KEY=[a, b]``, or either with a row before it.

    Raises:
        UserError: the board or a space is not fit for it.
    """
    name = benchmark.name
    if benchmark.tuned is not None:
        raise UserError(f"{name} is a tuned board already; tune the one that it was made from")
    if benchmark.recipe.validation == 0:
        raise UserError(f"{name}: recipe.validation is 0: tuning needs a noisy validation split, e.g. 0.1")
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed {seed}: should be from 0 to {2**31 - 1}")
    if seed in benchmark.seeds:
        raise UserError(
            f"--seed {seed} is one of the board's seeds; tune on another, or the table would be of what was fitted"
        )
    classes = {spec.label: method_class(spec.name) for spec in benchmark.methods}
    known = {label: [f.name for f in fields(cls.Hparams)] for label, cls in classes.items()}
    given = assign(search, {spec.label: spec.name for spec in benchmark.methods}, known)
    rows = []
    for spec in benchmark.methods:
        cls = classes[spec.label]
        hparams = make_hparams(cls, spec.hparams, f"{name}: method '{spec.name}'")
        suggested = cls.search_with(hparams)
        asked = {key: _typed(cls, key, values, suggested.get(key)) for key, values in given[spec.label].items()}
        space = {**suggested, **asked}
        _check_space(spec, space)
        plain = {f.name: getattr(hparams, f.name) for f in fields(hparams)}
        own = {key: value for key in space if (value := _at(plain, key)) is not None or key in plain}
        rows.append(Row(spec, space, own, trials if space else 1, _short_label(spec, space)))
    if not any(row.space for row in rows):
        labels = ", ".join(row.spec.label for row in rows)
        numbers = (f"{s.name}.{k}" for s in benchmark.methods for k, v in s.resolved.items() if type(v) in (int, float))
        example = next(numbers, "METHOD.KEY")
        raise UserError(
            f"nothing to tune: {labels} search nothing by themselves; give --search {example}=LOW:HIGH, say"
        )
    _refuse_rows_that_could_meet(rows)
    taken = Counter(label for row in rows for label in {row.label, row.spec.label})
    return [replace(row, label=row.spec.label) if taken[row.label] > 1 else row for row in rows]


def _short_label(spec: MethodSpec, space: Space) -> str:
    if spec.label != MethodSpec(name=spec.name, hparams=spec.hparams, recipe=spec.recipe).label:
        return spec.label  # a user's own
    searched = {key.partition(".")[0] for key in space}
    left = {k: v for k, v in spec.hparams.items() if k not in searched}
    return MethodSpec(name=spec.name, hparams=left, recipe=spec.recipe).label


def _typed(cls: type[Method], key: str, values: Range | Choice, suggested: Range | Choice | None) -> Range | Choice:
    """A range of whole numbers for a whole setting, of any for another: people write 1:8 for both."""
    if not isinstance(values, Range):
        return values
    kind = get_type_hints(cls.Hparams).get(key)
    if kind is None and isinstance(suggested, Range):  # a setting of another method, say an ensemble's member
        kind = int if suggested.whole else float
    if kind is float:
        return Range(float(values.low), float(values.high), values.log)
    if kind is int and values.low == int(values.low) and values.high == int(values.high):
        return Range(int(values.low), int(values.high), values.log)
    return values


def _at(settings: Mapping[str, Any], key: str) -> Any:
    node: Any = settings
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _check_space(spec: MethodSpec, space: Space) -> None:
    cls = method_class(spec.name)
    for key, values in space.items():
        where = f"search of '{spec.label}', {key} in {values}"
        if not isinstance(values, (Range, Choice)):
            raise UserError(f"{where}: give a Range or a Choice")
        for value in values.extremes:
            cls.needs_with(make_hparams(cls, with_settings(spec.hparams, {key: value}), where))


def _refuse_rows_that_could_meet(rows: list[Row]) -> None:
    """Two rows of a method that differ only in what is searched could end as one row twice."""
    kept: list[Row] = []
    clashes = []
    for row in rows:
        twin = next((other for other in kept if _could_meet(row, other)), None)
        if twin is None:
            kept.append(row)
        else:
            clashes.append((twin.spec.label, row.spec.label))
    if clashes:
        one, two = clashes[0]
        labels = ",".join(row.spec.label for row in kept)
        raise UserError(
            f"'{one}' and '{two}' differ only in what is searched and could end as the same row twice; leave one of "
            f"them out, e.g. with --methods {shlex.quote(labels)}"
        )


def _could_meet(one: Row, two: Row) -> bool:
    searched = {*one.space, *two.space}
    settings = [_without(row.spec.resolved, searched) for row in (one, two)]
    same = one.spec.name == two.spec.name and one.spec.recipe == two.spec.recipe
    return same and settings[0] == settings[1]


def _without(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """`settings` without these keys, where ``a.b`` is the key ``b`` of the setting ``a``."""
    found = copy.deepcopy(dict(settings))
    for key in keys:
        *parents, last = key.split(".")
        node: Any = found
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return found


def trial_cells(benchmark: Benchmark, spec: MethodSpec, seed: int) -> list[Cell]:
    """The cells of a trial: one a column of the board."""
    return benchmark.model_copy(update={"methods": (spec,), "seeds": (seed,)}).cells()


def study_name(benchmark: Benchmark, row: Row, seed: int) -> str:
    """The row's label and a digest of all that can change a score: board, code, own settings, space, seed."""
    cells = [cell.fingerprint() for cell in trial_cells(benchmark, row.spec, seed)]
    named = [value for values in row.space.values() if isinstance(values, Choice) for value in values.values]
    whole = MethodSpec(name=row.spec.name, hparams={**row.spec.hparams, "chosen from": named})  # their code, if methods
    codes = trial_cells(benchmark, whole, seed)[0].fingerprint()
    space = {key: [type(values).__name__, str(values)] for key, values in row.space.items()}
    return f"{row.spec.label[:200]} {digest([cells, codes, space, OBJECTIVE])[:12]}"
