"""What `noisebench list` shows, read without importing torch."""

from __future__ import annotations

from typing import Any

from noisebench import noise, registry
from noisebench.config import parse_yaml
from noisebench.figures import catalogue


def everything() -> dict[str, Any]:
    """Methods, datasets, kinds of noise, benchmarks, backbones and figures with a line each, and what was left out."""
    benchmarks = []
    for name, path in registry.benchmarks().items():
        data = parse_yaml(path.read_text(encoding="utf-8"), path.name)
        benchmarks.append({"name": name, "summary": data.get("title", "")})
    return {
        "methods": [_row(entry, "paper", "coupled") for entry in registry.methods().entries.values()],
        "datasets": [_dataset(entry) for entry in registry.datasets().entries.values()],
        "noise": [{"name": kind, "summary": str(about)} for kind, about in noise.KINDS.items()],
        "benchmarks": benchmarks,
        "backbones": [
            *({"name": name, "summary": ""} for name in registry.backbone_names()),
            {"name": "timm:NAME", "summary": "any model of timm, e.g. timm:resnet50"},
        ],
        "figures": [_figure(entry) for entry in catalogue.ENTRIES],
        "problems": [*registry.methods().problems, *registry.datasets().problems],
    }


def _row(entry: registry.Entry, *constants: str) -> dict[str, Any]:
    known = {key.lower(): entry.constants[key] for key in constants if key in entry.constants}
    return {"name": entry.name, "summary": entry.summary, "origin": entry.origin, **known}


def _figure(entry: catalogue.Entry) -> dict[str, Any]:
    names = list(entry.aliases)
    about = {"paper": entry.paper, "takes": entry.takes, "aliases": names, "options": dict(entry.options)}
    return {"name": entry.name, "summary": entry.shows, **about}


def _dataset(entry: registry.Entry) -> dict[str, Any]:
    """What the dataset's constants say of it; None where they do not, or are of another type than they should be."""

    def told(constant: str, kind: type) -> Any:
        value = entry.constants.get(constant)
        return value if isinstance(value, kind) else None

    size = told("SIZE", dict) or {}
    return {
        "name": entry.name,
        "summary": entry.summary,
        "origin": entry.origin,
        "size": size if size and all(isinstance(count, int) for count in size.values()) else None,
        "classes": told("NUM_CLASSES", int),
        "multilabel": told("MULTILABEL", bool) or False,
        "noise": told("NOISE", str),
        "licence": told("LICENCE", str),
        "source": told("SOURCE", str),
        "takes_path": told("TAKES_PATH", bool) or False,
        "files": told("FILES", dict) or {},
    }
