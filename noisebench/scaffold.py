"""`noisebench new`: a working, installable plug-in package with a method and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import tempfile
from pathlib import Path

from noisebench import registry
from noisebench.errors import UserError

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "noisebench-{dashed}"
version = "0.1.0"
description = "The method {name} for noisebench"
requires-python = ">=3.10"
dependencies = ["noisebench"]

[project.entry-points."noisebench.methods"]
{name} = "{name}:{cls}"

[tool.setuptools]
py-modules = ["{name}"]
"""

_METHOD = '''\
"""{cls}: say in one line what it does."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from noisebench.method import Batch, Classifier
from noisebench.training import Run


class {cls}(Classifier):
    """Cross-entropy with smoothed labels; replace this line and `loss` by your own."""

    name = "{name}"
    paper = "Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016"

    @dataclass(frozen=True)
    class Hparams:
        """Settings with the paper's values."""

        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    hparams: Hparams

    def loss(self, batch: Batch, run: Run) -> Tensor:
        """A scalar; batch.y are the noisy labels, self(batch.x) the logits."""
        return F.cross_entropy(self(batch.x), batch.y, label_smoothing=self.hparams.smoothing)
'''

_TEST = """\
from noisebench.checks import check_method

from {name} import {cls}


def test_{name}_conforms():
    check_method({cls})
"""

_README = """\
# {name}

A method for noisebench.

    pip install -e .
    noisebench check {name}
    noisebench leaderboard --set 'methods=[ce, {name}]'
"""


def write_plugin(name: str, parent: Path) -> Path:
    """Write the package below `parent` as a whole, or nothing.

    Raises:
        UserError: no Python name, a name that is taken, or a folder that exists.
    """
    if not re.fullmatch("[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a method: use lower-case letters, digits and _, e.g. my_method")
    for what, known in (("method", registry.methods()), ("dataset", registry.datasets())):
        if name in known.entries:
            raise UserError(f"a {what} '{name}' exists already; choose another name")
    folder = parent / name
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another name, or another place with --in")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # one of the two would hide the other
        raise UserError(f"a Python module '{name}' exists already; choose another name")
    cls = "".join(part.capitalize() for part in name.split("_"))
    if re.search(rf"import .*\b{cls}\b", _METHOD):  # it would hide what the template imports
        cls += "Method"
    values = {"name": name, "dashed": name.replace("_", "-"), "cls": cls}
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}."))
    try:
        for file, text in {
            "pyproject.toml": _PYPROJECT,
            f"{name}.py": _METHOD,
            f"tests/test_{name}.py": _TEST,
            "README.md": _README,
        }.items():
            target = aside / file
            target.parent.mkdir(exist_ok=True)
            target.write_text(text.format(**values), encoding="utf-8")
        aside.chmod(0o755)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
