"""Folders of one tar file for each class, as some publishers ship them: listed where they lie, nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from noisebench._index_store import Built, cannot_read, seen, stored
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
        UserError: there is no tar, one of them is damaged or cut short, holds no image, or cannot be read.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder} has no tar file; put one for each class there")

    def build() -> Built:
        watched, names, rows = [], [], []
        for label, shard in enumerate(shards):
            report(f"listing the tars of {folder}", label, len(shards))
            watched.append(seen(folder, shard.name))
            found = [one for one in _members(shard) if one[0].lower().endswith(tuple(suffixes))]
            if not found:
                raise UserError(f"{shard} holds no image ({', '.join(suffixes)}); copy it anew, or remove it")
            names.append(Names.of(name for name, _, _ in found))
            rows.append(np.array([(label, start, size) for _, start, size in found], np.int64))
        whole = np.concatenate(rows)
        sizes = np.concatenate([np.diff(some.offsets) for some in names])
        arrays = {
            "text": np.concatenate([some.text for some in names]),
            "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
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


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, start and size of each file in the tar."""
    try:
        with shard.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            raw.seek(tar.offset)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as error:
        raise UserError(f"{shard} is damaged or no tar: {error}; copy it anew") from None
    except OSError as error:
        raise cannot_read(shard, error) from None
