"""How datasets are written: ``name``, ``name:path`` for those that take a path, and ``@n`` for n training images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from noisebench import registry
from noisebench.errors import UserError


def with_path(dataset: str) -> tuple[str, str | None]:
    """The name and the path of ``name:path``; None for the path where there is none.

    An ``@n`` stays where it is: take it off first, with `sized`.
    """
    name, colon, path = dataset.partition(":")
    return name, path if colon and path else None


def dataset_of(dataset: str) -> registry.Entry:
    """The entry of a dataset that is written ``name``, ``name:path``, ``name@n`` or ``name:path@n``.

    Raises:
        UserError: unknown, with the nearest names.
    """
    return registry.datasets()[with_path(sized(dataset)[0])[0]]


class Placed:
    """A dataset module that takes a path, with its path: ``load`` then is as that of any other."""

    def __init__(self, module: Any, path: Path) -> None:
        self._module, self._path, self.__name__ = module, path, f"{module.__name__}:{path}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def load(self, root: Path | None, download: bool = False) -> Any:
        """What the module's load gives for the path."""
        return self._module.load(root, download=download, path=self._path)


def dataset_module(dataset: str, root: Path | None) -> Any:
    """The imported module (or object) of a dataset written as `dataset_of` takes it, bound to its path if it has one.

    A relative path is one below `root`, or where there is none such below the current directory.

    Raises:
        UserError: unknown, a path is missing or is one too many. BrokenPlugin: it cannot be imported.
    """
    plain, path = with_path(sized(dataset)[0])
    entry = registry.datasets()[plain]
    if (entry.constants.get("TAKES_PATH") is True) != (path is not None):
        raise UserError(
            f"dataset '{dataset}': write " + (f"{plain}:PATH" if path is None else f"{plain}, without a path")
        )
    if path is None:
        return entry.load()
    below = None if root is None else root / Path(path).expanduser()
    found = below if below is not None and below.exists() else Path(path).expanduser().absolute()
    if not found.exists():
        where = "" if below in (None, found) else f" nor {below}"
        raise UserError(f"dataset '{dataset}': there is no {found}{where}")
    return Placed(entry.load(), found)


def sized(dataset: str) -> tuple[str, int | None]:
    """A dataset's own name, and how many of its training images ``name@n`` takes; None where that is not said.

    A path belongs to the name; an @ within one does not count.

    Raises:
        UserError: no name before the @, or no number of 2 or more behind it.
    """
    name, at, size = dataset.rpartition("@") if ":" in dataset else dataset.partition("@")
    if ":" in dataset and not re.fullmatch("[0-9]+", size):
        name, at, size = dataset, "", ""
    if at and not (name and re.fullmatch("[2-9]|[1-9][0-9]{1,11}", size)):
        raise UserError(f"dataset '{dataset}': write {name or 'NAME'}@N, with N training images, 2 or more")
    return name, int(size) if at else None
