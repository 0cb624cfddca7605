"""Folders of one tar file for each class, as some publishers ship them: listed where they lie, nothing is unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noisebench._index_images import Packing
from noisebench._index_store import Built, cannot_read, seen, stored
from noisebench._tar_headers import Member, members
from noisebench.archives import report
from noisebench.errors import UserError
from noisebench.image_index import IMAGE_SUFFIXES, Listed, Names, TarImages


def list_tars(folder: Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Listed:
    """The images in ``folder/CLASS.tar``, by class and then as they stand in the tar; the sorted names are the classes.

    The headers are read once, into an index; a tar whose size or time has changed is read again.

    Args:
        folder: holds an uncompressed tar for each class.
        suffixes: endings of the members that count, in lower case; others are left out.

    Raises:
        UserError: there is no tar, one of them is compressed, damaged or cut short, holds no image, or cannot be read.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder} has no tar file; put one for each class there")

    def build() -> Built:
        watched, packing, rows = [], Packing(), []
        for label, shard in enumerate(shards):
            report(f"listing the tars of {folder}", label, len(shards))
            watched.append(seen(folder, shard.name))
            found = _images(shard, tuple(suffixes))
            packing.add(one.name for one in found)
            rows.append(np.array([(label, one.start, one.size) for one in found], np.int64))
        names, whole = packing.names(), np.concatenate(rows)
        arrays: dict[str, npt.NDArray[Any]] = {
            "text": names.text,
            "offsets": names.offsets,
            "labels": whole[:, 0].astype(np.int32),
            "start": whole[:, 1],
            "size": whole[:, 2],
        }
        return Built(arrays, {}, watched)

    classes = tuple(shard.stem for shard in shards)
    found = stored(folder, ["tars", *suffixes], classes, build).arrays
    names = Names(found["text"], found["offsets"])
    images = TarImages(shards, found["labels"], found["start"], found["size"], names)
    return Listed(images, found["labels"].astype(np.int64), classes)


def _images(shard: Path, suffixes: tuple[str, ...]) -> list[Member]:
    try:
        with shard.open("rb") as opened:
            found = [one for one in members(shard, opened.fileno()) if one.name.lower().endswith(suffixes)]
    except OSError as error:
        raise cannot_read(shard, error) from None
    if not found:
        raise UserError(f"{shard} holds no image ({', '.join(suffixes)}); copy it anew, or remove it")
    return found
