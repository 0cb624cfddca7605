"""Names to methods and datasets: files in methods/ and datasets/ here, entry points elsewhere, all equal.

Names, summaries and the code that counts in a fingerprint are read from the sources with `ast`, without importing
them, so that listing and placing cells cost neither torch nor a plug-in's imports.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from noisebench.errors import BrokenPlugin, unknown

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One registered method or dataset.

    Attributes:
        name: what users write.
        summary: first line of its docstring; empty where the source cannot be read.
        origin: "noisebench", or the distribution that declares the entry point.
        module: what to import.
        attribute: the class within it; empty for a dataset that is a module.
        source: its file, or None where it cannot be found without importing.
        constants: literal module or class constants by name, for `noisebench list`.
        defaults: a method's settings as far as their defaults are literals.
    """

    name: str
    summary: str
    origin: str
    module: str
    attribute: str
    source: Path | None
    constants: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """Import it.

        Raises:
            BrokenPlugin: the import failed; names the plug-in and the reason.
        """
        try:
            module = importlib.import_module(self.module)
            return getattr(module, self.attribute) if self.attribute else module
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise BrokenPlugin(f"'{self.name}' ({self.origin}) cannot be imported: {reason}") from error

    def code(self) -> str:
        """SHA-256 of the code that gives its results: comments, docstrings and layout do not count.

        That is its file, the files of methods/, datasets/ and noisebench/nn/ that it imports; of a plug-in its package.
        """
        if self.source is None:  # compiled: its distribution's version has to do
            with suppress(metadata.PackageNotFoundError):
                return f"{self.origin} {metadata.version(self.origin)}"
            return "unknown"
        files = [self.source]
        if self.origin != "noisebench" and (self.source.parent / "__init__.py").exists():
            files = sorted(self.source.parent.rglob("*.py"))  # a plug-in may spread over its package
        return _code_of(tuple(files))


@cache
def _code_of(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    queue, seen = list(files), set(files)
    while queue:
        file = queue.pop(0)
        try:
            tree = _parse(file)
        except (SyntaxError, OSError):  # compiled, or a template that is no Python yet
            digest.update(file.read_bytes() if file.is_file() else b"missing")
            continue
        digest.update(repr(_essence(tree)).encode())
        for other in _imported(tree):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return digest.hexdigest()


def _essence(node: Any) -> Any:
    """What a syntax tree says, without docstrings and places; the same under every version of Python."""
    if isinstance(node, list):
        return [_essence(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    found: list[Any] = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if name == "body" and documented and value and isinstance(value[0], ast.Expr):
            value = value[1:] if isinstance(value[0].value, ast.Constant) else value
        if name == "body" and isinstance(node, ast.ClassDef):
            value = [item for item in value if not _is_search(item) and not _is_text(item, METHOD_NOTES)]
        if name == "body" and isinstance(node, ast.Module):
            value = [item for item in value if not _is_text(item, NOTES)]
        if value not in (None, []) and name not in ("kind", "type_comment", "type_ignores"):
            found.append((name, _essence(value)))
    return found


def _is_search(node: ast.stmt) -> bool:
    """Whether a statement is a class's search space: what may be tried changes no result of what was."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    value = getattr(node, "value", None)
    return (
        isinstance(target, ast.Name)
        and target.id == "search"
        and isinstance(value, ast.Dict)
        and all(isinstance(v, ast.Call) and getattr(v.func, "id", "") in ("Range", "Choice") for v in value.values)
    )


NOTES = ("LICENCE", "SOURCE", "NOISE")
"""Constants of a dataset that tell people of it and change no result."""

METHOD_NOTES = ("coupled",)
"""The same of a method's class."""


def _is_text(node: ast.stmt, names: tuple[str, ...]) -> bool:
    """Whether a statement gives one of these names its text."""
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return (
        isinstance(node, ast.Assign)
        and isinstance(target, ast.Name)
        and target.id in names
        and isinstance(node.value, ast.Constant)
    )


def _imported(tree: ast.Module) -> list[Path]:
    """The files of methods/, datasets/ and noisebench/nn/ that a file imports, the latter's also by what they offer."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = [node.module or "" for node in imports]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    parts = [alias.name for node in imports if node.module == "noisebench.nn" for alias in node.names]
    modules += [_nn_parts()[name] for name in parts if name in _nn_parts()]
    paths = [module.split(".") for module in modules]
    return sorted(
        PACKAGE / p[1] / f"{p[2]}.py"
        for p in paths
        if len(p) > 2 and p[0] == "noisebench" and p[1] in ("methods", "datasets", "nn")
    )


@cache
def _nn_parts() -> dict[str, str]:
    """What `noisebench.nn` offers: name -> the module that has it."""
    tree = _parse(PACKAGE / "nn" / "__init__.py")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def _parse(file: Path) -> ast.Module:
    """The file's syntax tree.

    Raises:
        SyntaxError: it is no Python source.
    """
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (ValueError, RecursionError) as error:  # a null byte or another encoding; before 3.12 no SyntaxError
        raise SyntaxError(str(error)) from None


def _constants(body: list[ast.stmt], outside: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Literals by name; a name of one, here or `outside`, stands for it."""
    found: dict[str, Any] = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and getattr(node, "value", None) is not None:
            value: ast.expr = node.value  # type: ignore[attr-defined]
            with suppress(ValueError, TypeError, KeyError):
                if isinstance(value, ast.Name):
                    found[target.id] = {**outside, **found}[value.id]
                else:
                    found[target.id] = ast.literal_eval(value)
    return found


def _class_constants(node: ast.ClassDef, module: ast.Module) -> dict[str, Any]:
    """Its own constants, and those that it inherits within its file; a name is never inherited."""
    found: dict[str, Any] = {}
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)} - {node.name}
    for other in module.body[: module.body.index(node)]:
        if isinstance(other, ast.ClassDef) and other.name in bases:
            found |= _class_constants(other, module)
    found.pop("name", None)
    return found | _constants(node.body, _constants(module.body))


def _defaults(node: ast.ClassDef, module: ast.Module) -> dict[str, Any]:
    """Literal defaults of a method's settings, its own and those that it inherits within its file."""
    above = {other.name: other for other in module.body[: module.body.index(node)] if isinstance(other, ast.ClassDef)}
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and inner.name == "Hparams":
            found: dict[str, Any] = {}
            for base in inner.bases:  # class Hparams(Other.Hparams)
                if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id in above:
                    found |= _defaults(above[base.value.id], module)
            return found | _constants(inner.body, _constants(module.body))
    for name in (base.id for base in node.bases if isinstance(base, ast.Name)):
        if name in above:
            return _defaults(above[name], module)
    return {}


def _summary(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").split("\n", 1)[0]


def _methods_of(file: Path, module: str) -> Iterator[Entry]:
    tree = _parse(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            constants = _class_constants(node, tree)
            name = constants.get("name")
            if isinstance(name, str) and name:
                yield Entry(
                    name, _summary(node), "noisebench", module, node.name, file, constants, _defaults(node, tree)
                )


def _dataset_of(file: Path, module: str) -> Iterator[Entry]:
    tree = _parse(file)
    yield Entry(file.stem, _summary(tree), "noisebench", module, "", file, _constants(tree.body))


def _source_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists():
                return file
    return None


def _from_entry_point(point: metadata.EntryPoint, what: str) -> Entry:
    source = _source_of(point.module)
    origin = point.dist.name if point.dist else "entry point"
    summary, constants, defaults = "", {}, {}
    if source is not None:
        try:
            tree = _parse(source)
            classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == point.attr]
            summary = _summary(classes[0] if classes else tree)
            constants = _class_constants(classes[0], tree) if classes else _constants(tree.body)
            defaults = _defaults(classes[0], tree) if classes else {}
        except (SyntaxError, OSError):
            summary = f"(this {what}'s source does not parse)"
    return Entry(point.name, summary, origin, point.module, point.attr or "", source, constants, defaults)


@dataclass(frozen=True)
class Registry:
    """All entries of one kind, and what went wrong while reading them."""

    what: str
    entries: dict[str, Entry]
    problems: list[str]

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UserError: unknown, with the nearest names.
        """
        if name not in self.entries:
            raise unknown(self.what, name, self.entries)
        return self.entries[name]


@cache
def _registry(what: str) -> Registry:
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    reader = _methods_of if what == "method" else _dataset_of
    for file in sorted((PACKAGE / f"{what}s").glob("*.py")):
        try:
            found = list(reader(file, f"noisebench.{what}s.{file.stem}"))
        except SyntaxError as error:
            where = f", line {error.lineno}" if error.lineno else ""
            problems.append(f"{what}s/{file.name}{where}: {error.msg}; the others go on")
            continue
        for entry in found:
            if entry.name in entries:
                problems.append(f"{what} '{entry.name}' is in {entries[entry.name].source} and again in {file}")
            else:
                entries[entry.name] = entry
    for point in sorted(metadata.entry_points(group=f"noisebench.{what}s"), key=lambda p: (p.name, p.value)):
        try:
            entry = _from_entry_point(point, what)
        except (AttributeError, ValueError):
            problems.append(f"{what} '{point.name}': its entry point '{point.value}' is not module:attribute")
            continue
        if point.name not in entries:
            entries[point.name] = entry
        elif (entries[point.name].module, entries[point.name].attribute) != (entry.module, entry.attribute):
            problems.append(f"{what} '{point.name}' of {entry.origin} is left out: {entries[point.name].origin} has it")
    return Registry(what, entries, problems)


def methods() -> Registry:
    """Every registered method."""
    return _registry("method")


def datasets() -> Registry:
    """Every registered dataset."""
    return _registry("dataset")


def benchmarks() -> dict[str, Path]:
    """The shipped benchmarks: name -> YAML file."""
    return {file.stem: file for file in sorted((PACKAGE / "benchmarks").glob("*.yaml"))}


def backbone_names() -> tuple[str, ...]:
    """The backbones of noisebench.nn by name, read without importing torch."""
    source = (PACKAGE / "nn" / "backbones.py").read_text(encoding="utf-8")
    names: tuple[str, ...] = _constants(ast.parse(source).body)["BACKBONE_NAMES"]
    return names
