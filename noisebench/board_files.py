"""A benchmark's file as plain data: found, read, joined with the board that it extends, and scaled down."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from noisebench import dataset_names, registry
from noisebench._models import Model, Seed
from noisebench.errors import UserError, unknown
from noisebench.reading import override, parse_yaml
from noisebench.recipe import Recipe

if TYPE_CHECKING:
    from noisebench.config import Benchmark

ITS_OWN = ("title", "description", "tuned")
"""What a board that extends another does not take from it."""


class Scale(Model):
    """A board made small, so that all of its table can be seen in minutes: what ``--scale NAME`` changes.

    Attributes:
        size: so many training images of every dataset.
        datasets: in the place of the board's, in its order, where one `size` does not do.
        seeds, methods: in the place of the board's; the rows keep their labels.
        recipe: keys of the recipe, each in the place of the board's.
    """

    size: int | None = Field(default=None, ge=2)
    datasets: tuple[str, ...] | None = None
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)
    methods: tuple[str | dict[str, Any], ...] | None = Field(default=None, min_length=1)
    recipe: dict[str, Any] = Field(default={})


def find(name: str, beside: Path | None = None) -> Path:
    """The file of a shipped benchmark, or the YAML file of that path, which is relative to that of `beside`.

    Raises:
        UserError: there is none.
    """
    shipped = registry.benchmarks()
    if name in shipped:
        return shipped[name]
    path = Path(name) if beside is None else beside.parent / name
    if path.suffix not in {".yaml", ".yml"}:
        raise unknown("benchmark", name, shipped)
    if not path.is_file():
        raise UserError(f"{name}: no such file; shipped benchmarks: {', '.join(shipped)}")
    return path


def read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], bool]:
    """What a benchmark's file holds, joined with the board that it ``extends``; `above`: the files that extend it.

    Returns:
        The data, and whether the paper's figures in it are another board's: those may name rows that this one lacks.

    Raises:
        UserError: unreadable, no YAML, or extends something that is not there, or itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        raise UserError(f"{path.name}: expected keys and values, found {type(data).__name__}")
    data.setdefault("name", path.stem)
    other = data.pop("extends", None)
    if other is None:
        return data, False
    if not isinstance(other, str):
        raise UserError(f"{path.name}: extends: {other!r}: give one board, by its name or its file")
    try:
        base = find(other, path)
    except UserError as error:
        raise UserError(f"{path.name}: extends: {error}") from None
    if base.resolve() in {file.resolve() for file in (*above, path)}:
        raise UserError(f"{path.name}: extends: '{other}' leads back to itself; name another board")
    found, _ = read(base, (*above, path))
    found = {key: value for key, value in found.items() if key not in ITS_OWN}
    return joined(found, data), "published" not in data


def joined(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`data` with the keys of `changes` in their places; of a recipe, and of a scale of the same name, key by key."""
    found = data | changes
    for key, both in (("recipe", dict.__or__), ("scale", _scales)):
        if isinstance(data.get(key), dict) and isinstance(changes.get(key), dict):
            found[key] = both(data[key], changes[key])
    return found


def _scales(scales: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    known = {name: one for name, one in scales.items() if isinstance(one, dict)}
    return scales | {
        n: joined(known[n], one) if n in known and isinstance(one, dict) else one for n, one in changes.items()
    }


def at_scale(data: dict[str, Any], written: Benchmark, name: str, where: str) -> dict[str, Any]:
    """The plain data of a board, scaled down; its name tells, so that its tables are other files.

    Args:
        data: the board's; written: the board as the data makes it, but for its published figures; where: its file.

    Raises:
        UserError: the board has no such scale, or it does not fit the board.
    """
    data = copy.deepcopy(data)
    data.pop("scale", None)
    if not written.scale:
        raise UserError(f"--scale {name}: {written.name} has no scale; run it as it is, or change it by --set")
    if name not in written.scale:
        raise unknown(f"--scale: {written.name} has others: scale", name, written.scale)
    scale, old = written.scale[name], list(written.datasets)
    new = list(scale.datasets) if scale.datasets is not None else old
    if len(new) != len(old):
        raise UserError(f"{where}: scale.{name}.datasets: {len(new)} for {len(old)} of the board; give one for each")
    if scale.size is not None and scale.datasets is None:
        new = [f"{dataset_names.sized(dataset)[0]}@{scale.size}" for dataset in old]
    changes: dict[str, Any] = {"name": f"{written.name}-{name}", "datasets": new, "recipe": scale.recipe}
    changes |= {key: list(value) for key in ("seeds", "methods") if (value := getattr(scale, key)) is not None}
    published = data.get("published")
    if isinstance(published, dict):
        names = dict(zip(old, new, strict=True))
        note = f"Ours is run at {name} scale: what differs tells of the scale, and nothing of the paper."
        published["note"] = f"{published.get('note', '')} {note}".strip()
        for table in published.get("tables", ()):
            table["dataset"] = names.get(table.get("dataset"), table.get("dataset"))
    return joined(data, changes)


def over_rows(data: dict[str, Any], settings: list[str]) -> list[str]:
    """Let ``recipe.KEY=VALUE`` hold for rows that say otherwise, too: who asks for two epochs waits for no 270.

    Args:
        data: the board's, in which the settings are already; it is changed.
        settings: all of them.

    Returns:
        Those that some row said otherwise.
    """
    rows, found = data.get("methods"), []
    for setting in settings:
        house, _, rest = setting.strip().partition(".")
        key = rest.partition("=")[0].partition(".")[0].strip()
        for row in rows if house == "recipe" and isinstance(rows, list) else ():
            own = row.get("recipe") if isinstance(row, dict) else None
            if isinstance(own, dict) and key in own:
                row["recipe"] = override(own, [rest])
                found.append(setting)
    return list(dict.fromkeys(found))


def small_print(benchmark: Benchmark, scale: str) -> str:
    """For the title of a board at a scale: what it is run with."""
    if not benchmark.datasets:
        return f"(--scale {scale}: nothing to run)"
    epochs = sorted({with_changes(benchmark.recipe, row.recipe).epochs for row in benchmark.methods})
    lengths = "–".join(map(str, dict.fromkeys((epochs[0], epochs[-1]))))
    seeds = f"{len(benchmark.seeds)} seed{'s' * (len(benchmark.seeds) > 1)}"
    return f"(--scale {scale}: {', '.join(benchmark.datasets)}; {benchmark.recipe.backbone}, {lengths} epochs, {seeds})"


def with_changes(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some of its keys replaced: a row's own."""
    return Recipe.model_validate(recipe.model_dump() | changes) if changes else recipe


def check_names(benchmark: Benchmark, where: str) -> None:
    """Refuse a method, dataset or backbone that does not exist, with the nearest names."""
    if not benchmark.datasets and benchmark.published is None:
        raise UserError(f"{where}: datasets: give one at least; a paper's table whose data nobody has may have none")
    for what, known, names in (
        ("methods", registry.methods(), [m.name for m in benchmark.methods]),
        (
            "datasets",
            registry.datasets(),
            [dataset_names.with_path(dataset_names.sized(name)[0])[0] for name in benchmark.datasets],
        ),
    ):
        for i, name in enumerate(names):
            if name not in known.entries:
                raise unknown(f"{where}: {what}[{i}]: {known.what}", name, known.entries)
    for name in benchmark.datasets:
        constants = dataset_names.dataset_of(name).constants
        classes, several = constants.get("NUM_CLASSES"), constants.get("MULTILABEL") is True
        for i, spec in enumerate(benchmark.noise):
            try:
                spec.check(classes if isinstance(classes, int) else None, several, name)
            except UserError as error:
                raise UserError(f"{where}: noise[{i}] on {name}: {error}") from None
    known_backbones = registry.backbone_names()
    backbones = {"recipe.backbone": benchmark.recipe.backbone}
    for i, row in enumerate(benchmark.methods):
        if "backbone" in row.recipe:
            backbones[f"methods[{i}].recipe.backbone"] = row.recipe["backbone"]
    for key, backbone in backbones.items():
        if backbone not in known_backbones and not backbone.startswith("timm:"):
            raise unknown(f"{where}: {key}", backbone, [*known_backbones, "timm:NAME"])
