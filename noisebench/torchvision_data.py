"""Datasets in torchvision's folder layout: every file checked before it is read, and errors that name the file.

torchvision checks the CIFAR pickles, but says only "not found or corrupted"; of MNIST it checks the archives alone and
reads whatever raw files lie there. Here the same published MD5 sums decide, for the raw files too.
"""

from __future__ import annotations

import hashlib
import http.client
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from noisebench.errors import UserError

_CIFAR_TRAIN = 50_000


class Splits(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int64 [N] of both splits, named as in `ImageData`."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]


def load_idx(name: str, root: Path | None, download: bool, md5: Mapping[str, str]) -> Splits:
    """The four idx files of torchvision's `MNIST` or `FashionMNIST`, in ``root/<name>/raw``.

    Args:
        name: torchvision's class, and the folder's name.
        root: the data folder.
        download: let torchvision fetch what is missing.
        md5: {"train-images-idx3-ubyte": MD5 of the raw file, ...}, all four.

    Raises:
        UserError: no root, a file is missing, a file's content is not the published one, or the download failed.
    """
    folder = data_root(name, root, download) / name / "raw"
    if download:
        download_files(name, folder.parent.parent)
    # The bytes that were checked are the bytes that are used: nothing is read twice.
    raw = {file: checked(name, folder / file, digest) for file, digest in md5.items()}

    def images(part: str) -> npt.NDArray[np.uint8]:
        content = raw[f"{part}-images-idx3-ubyte"]
        count, height, width = np.frombuffer(content, ">u4", count=3, offset=4)
        return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width, 1)

    def labels(part: str) -> npt.NDArray[np.int64]:
        return np.frombuffer(raw[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8).astype(np.int64)

    return Splits(images("train"), labels("train"), images("t10k"), labels("t10k"))


def load_cifar(name: str, root: Path | None, download: bool) -> Splits:
    """torchvision's `CIFAR10` or `CIFAR100`; the images are views of its [N, C, H, W] storage.

    The pickles are opened by torchvision alone, after its own MD5 check of all of them.

    Raises:
        UserError: no root, a file is missing, a file's content is not the published one, or the download failed.
    """
    root = data_root(name, root, download)
    dataset = _torchvision(name)
    if download:
        download_files(name, root)
    # One dataset of both parts: torchvision's check reads all files at every construction, and two would do it twice.
    parts = {"train_list": [*dataset.train_list, *dataset.test_list], "test_list": []}
    try:
        both = type(name, (dataset,), parts)(root)
    except (RuntimeError, OSError):
        # torchvision does not say which file is wrong.
        for file, digest in [*parts["train_list"], (dataset.meta["filename"], dataset.meta["md5"])]:
            checked(name, root / dataset.base_folder / file, digest)
        raise
    images, labels = both.data, np.asarray(both.targets, np.int64)
    return Splits(images[:_CIFAR_TRAIN], labels[:_CIFAR_TRAIN], images[_CIFAR_TRAIN:], labels[_CIFAR_TRAIN:])


def _torchvision(name: str) -> Any:
    from torchvision import datasets  # seconds to import, and not needed for MNIST that is there

    return getattr(datasets, name)


def data_root(name: str, root: Path | None, download: bool = False) -> Path:
    """The data folder, which exists, or is to be made by a download.

    Raises:
        UserError: there is none; `name` is what the message calls the dataset.
    """
    if root is None:
        raise UserError(
            f"{name} needs a data folder; set --data-root or NOISEBENCH_DATA to one in torchvision's layout"
        )
    root = Path(root).expanduser()
    if not root.is_dir() and not (download and not root.exists()):
        raise UserError(f"the data folder {root} is no folder; set --data-root or NOISEBENCH_DATA to one that exists")
    return root


def checked(name: str, path: Path, md5: str) -> bytes:
    """The content of `path`, after comparing its MD5.

    Raises:
        UserError: it is missing, cannot be read, or has another MD5; `name` is what the message calls the dataset.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{name} is incomplete: {path} is missing; set --data-root or NOISEBENCH_DATA to a folder in torchvision's "
            f"layout, or pass --download"
        ) from None
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be read: {error.strerror}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{name} is damaged: {path} has {len(content)} bytes and MD5 {found}, not the published {md5}; delete the "
            f"file and pass --download, or copy it anew"
        )
    return content


def download_files(name: str, root: Path, **options: str) -> None:
    """Let torchvision's class `name` fetch what is missing; one process at a time, since several cells may ask at once.

    Raises:
        UserError: that failed.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            _torchvision(name)(root, download=True, **options)
    except (OSError, RuntimeError, EOFError, ValueError, http.client.HTTPException, tarfile.TarError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} could not be downloaded to {root}: {reason[:300]}") from error
