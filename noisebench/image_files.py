"""Folders of small image files as one array: decoded once, into a file beside them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from noisebench.decoding import decode_with_pillow
from noisebench.errors import UserError


def lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def images_of(files: Sequence[Path], size: tuple[int, int], cache: Path) -> npt.NDArray[np.uint8]:
    """The images of `files` as RGB, uint8 [N, H, W, 3], a read-only `np.memmap` of a cached copy.

    The copy is made under a lock, aside and then renamed. It is for exactly these files: their names and sizes are in
    its name, and copies of what was there before are removed.

    Args:
        files: image files in any format that Pillow reads; grey ones become RGB.
        size: (H, W) of every image.
        cache: where the copy goes; a key is put before its suffix.

    Raises:
        UserError: a file is missing, damaged or of another size, or the copy cannot be written or is damaged.
    """
    names = "\n".join(f"{file.parent.name}/{file.name} {_bytes_in(file)}" for file in files)
    key = hashlib.sha256(f"{size}\n{names}".encode()).hexdigest()[:12]
    made = cache.with_name(f"{cache.stem}-{key}{cache.suffix}")
    try:
        with FileLock(cache.with_suffix(".lock")):
            if not made.exists():
                _decode(files, size, made)
                for old in cache.parent.glob(f"{cache.stem}-*{cache.suffix}"):
                    if old != made:
                        old.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{made} cannot be written: {error.strerror or error}; images are decoded into it") from None
    try:
        found: npt.NDArray[np.uint8] = np.load(made, mmap_mode="r")
    except (OSError, ValueError):
        raise UserError(f"{made} is damaged; delete it, and the images are decoded again") from None
    return found


def _bytes_in(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _decode(files: Sequence[Path], size: tuple[int, int], made: Path) -> None:
    """Write the images to `made`, aside and then renamed."""
    aside = made.with_name(f".{made.name}.{secrets.token_hex(6)}")
    try:
        images = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=(len(files), *size, 3))
        for i, file in enumerate(files):
            images[i] = _pixels(file, size)
        images.flush()
        del images
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(made)
    finally:
        aside.unlink(missing_ok=True)


def _pixels(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    pixels = decode_with_pillow(content, str(file))
    if pixels.shape != (*size, 3):
        raise UserError(f"{file} is {pixels.shape[0]}x{pixels.shape[1]}, not {size[0]}x{size[1]}")
    return pixels
