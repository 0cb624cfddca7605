"""`noisebench new`: a working, installable plug-in package with a method or a dataset, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from noisebench import registry
from noisebench.errors import UserError

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "noisebench-{dashed}"
version = "0.1.0"
description = "The {what} {name} for noisebench"
requires-python = ">=3.10"
dependencies = ["noisebench"]

[project.entry-points."noisebench.{what}s"]
{name} = "{point}"

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

_DATASET = '''\
"""{cls}: say in one line what the images are, how many, and of what size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from noisebench.image_data import ImageData

NUM_CLASSES = 2
CLASSES = ("dark", "bright")
SIZE = {{"train": 200, "test": 100}}
NOISE = "none known"
LICENCE = "say under what terms it may be used"
SOURCE = "say where to get it"
FILES: dict[str, str] = {{}}  # of what lies below the data root, path: MD5, or "" where none is published


def load(root: Path | None, download: bool = False) -> ImageData:
    """Images uint8 [N, 8, 8, 1]; replace what is drawn here by what you read below `root`."""
    draw = np.random.Generator(np.random.PCG64(0))
    labels: npt.NDArray[np.int64] = np.arange(300, dtype=np.int64) % NUM_CLASSES
    images = (draw.random((300, 8, 8, 1)) * 128 + 127 * labels[:, None, None, None]).astype(np.uint8)
    return ImageData(
        train_images=images[:200],
        train_labels=labels[:200],
        test_images=images[200:],
        test_labels=labels[200:],
        num_classes=NUM_CLASSES,
        classes=CLASSES,
        mean=(0.5,),
        std=(0.25,),
    )
'''

_TEST = """\
from noisebench.checks import check_method

from {name} import {cls}


def test_{name}_conforms():
    check_method({cls})
"""

_DATASET_TEST = """\
from noisebench.checks import check_dataset

import {name}


def test_{name}_conforms():
    check_dataset({name})
"""

_README = """\
# {name}

A {what} for noisebench.

    pip install -e .
    noisebench check {name}
    noisebench leaderboard --set '{setting}'
"""


def setting(name: str, what: str) -> str:
    """What sets a board to it: a value of `noisebench leaderboard --set`."""
    return f"methods=[ce, {name}]" if what == "method" else f"datasets=[{name}]"


def write_plugin(name: str, parent: Path, what: Literal["method", "dataset"] = "method") -> Path:
    """Write the package of a method or a dataset below `parent` as a whole, or nothing.

    Raises:
        UserError: no Python name, a name that is taken, or a folder that exists.
    """
    if not re.fullmatch("[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a {what}: use lower-case letters, digits and _, e.g. my_method")
    for kind, known in (("method", registry.methods()), ("dataset", registry.datasets())):
        if name in known.entries:
            raise UserError(f"a {kind} '{name}' exists already; choose another name")
    folder = parent / name
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another name, or another place with --in")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # one of the two would hide the other
        raise UserError(f"a Python module '{name}' exists already; choose another name")
    cls = "".join(part.capitalize() for part in name.split("_"))
    if re.search(rf"import .*\b{cls}\b", _METHOD):  # it would hide what the template imports
        cls += "Method"
    values = {"name": name, "dashed": name.replace("_", "-"), "cls": cls, "what": what, "setting": setting(name, what)}
    values["point"] = f"{name}:{cls}" if what == "method" else name
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}."))
    try:
        for file, text in {
            "pyproject.toml": _PYPROJECT,
            f"{name}.py": _METHOD if what == "method" else _DATASET,
            f"tests/test_{name}.py": _TEST if what == "method" else _DATASET_TEST,
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
