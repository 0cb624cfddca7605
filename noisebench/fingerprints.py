"""What a fingerprint is made of: digests of plain data, of the code of methods and datasets, of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisebench import dataset_names, registry


def digest(value: Any) -> str:
    """SHA-256 of plain data; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def dataset_code(name: str) -> list[str]:
    """A dataset's name and code; ``name@n`` has those of the whole set."""
    plain, _ = dataset_names.sized(name)
    path = dataset_names.with_path(plain)[1]
    # A relative one is below the data root, which no fingerprint knows.
    files = list(files_in({"path": path}).values()) if path and Path(path).is_absolute() else []
    return [plain, dataset_names.dataset_of(name).code(), *files]


def method_code(name: str, hparams: Mapping[str, Any]) -> list[str]:
    """The method's code, and that of every method that its settings name (an ensemble's member)."""
    known = registry.methods().entries
    return [registry.methods()[name].code(), *(known[n].code() for n in _strings(hparams) if n in known)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def files_in(options: Mapping[str, Any]) -> dict[str, str]:
    """Content hashes of the files that options name (a T or labels from a file)."""
    found = {}
    for key, value in options.items():
        if isinstance(value, str) and Path(value).is_file():
            about = Path(value).stat()
            found[key] = _sha256(value, about.st_mtime_ns, about.st_size)
    return found


@lru_cache(maxsize=64)
def _sha256(file: str, changed: int, size: int) -> str:
    """Of a file's content, which may be gigabytes; read once for all cells of a board while it stays as it is."""
    whole = hashlib.sha256()
    with Path(file).open("rb") as content:
        while chunk := content.read(1 << 22):
            whole.update(chunk)
    return whole.hexdigest()
