"""Tiny trees in a publisher's own layout, for the tests of datasets at scale."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from noisebench.errors import UserError
from noisebench.image_data import is_encoded

WNIDS = ("n01440764", "n01443537", "n02012849", "n03126707")
WORDS = ("tench, Tinca tinca", "goldfish", "crane", "crane")
NAMES = ("tench", "goldfish", "crane (n02012849)", "crane (n03126707)")


def module(name: str) -> Any:
    return importlib.import_module(f"noisebench.datasets.{name}")


def refusal(name: str, root: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        module(name).load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(file: Path, content: str | bytes = "") -> None:
    """A file, whose content is its own name where none is given: what is read tells where it came from."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = content or file.name
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def lines(file: Path, *rows: str) -> None:
    put(file, "".join(f"{row}\n" for row in rows))


def contents(images: Any) -> list[str]:
    assert is_encoded(images)
    return [images.encoded(i).decode() for i in range(len(images))]


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def sized(monkeypatch: pytest.MonkeyPatch, name: str, **constants: Any) -> None:
    for constant, value in constants.items():
        monkeypatch.setattr(module(name), constant, value)
