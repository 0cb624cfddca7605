"""Plain data in and out: YAML, pydantic models from it, `--set`; every mistake is one line that says where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from noisebench.errors import UserError, unknown

_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""YAML 1.1 reads 1e-3 as text; researchers mean a number."""


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


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes what `_Loader` would read as a number, and repeats what stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def to_yaml(data: Any) -> str:
    """Plain data as YAML, from which `parse_yaml` gives the same again (tuples as lists)."""
    readable = "\\x85" not in repr(data)  # PyYAML writes this one as a line break otherwise
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=readable, width=120)


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
    message = message.replace("a valid tuple", "a list, e.g. [a, b]")  # as YAML has it
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
