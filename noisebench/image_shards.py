"""WebDataset shards: tar files whose samples are files of one name, the image beside its label; headers read once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from noisebench._index_images import Names, Packing, TarImages
from noisebench._index_store import Built, cannot_read, seen, stored
from noisebench._tar_headers import Member, members
from noisebench.errors import UserError
from noisebench.image_index import IMAGE_SUFFIXES, Listed
from noisebench.label_rows import SEPARATOR, LabelCells

_LABEL_BYTES = 1 << 20


class _Sample(NamedTuple):
    """An image of a shard, and its labels as they are written; `several` where they are written as a list."""

    image: Member
    labels: Sequence[str]
    several: bool


def list_shards(
    shards: Sequence[Path],
    classes: Sequence[str] | None = None,
    *,
    several: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Listed:
    """The images of uncompressed tar files, in their order there.

    A sample is the run of files whose names are the same up to the first dot of the last part. It has one image (by the
    ending), and its label in ``.cls`` or else ``.json`` ("label"): a class's number or name. Several are joined by
    ``;`` in ``.cls``, or are a list in ``.json``.

    The index lies beside the first shard; it is made anew when the size or time of a shard changes.

    Args:
        shards: the tar files, at least one.
        classes: names of the K classes; without them labels are numbers, and classes are called by those.
        several: give `Listed.label_sets` in any case; without it, where a label is written as a list.
        suffixes: endings of images, in lower case.

    Raises:
        UserError: a shard is missing, compressed, truncated or damaged; a sample has no image or no label, two of one
            kind, or a label that is no class; a sample is there twice in a shard. The message names shard and sample.
    """
    if not shards:
        raise UserError("there is no shard; give at least one tar file")
    folder = shards[0].parent
    paths = [os.path.relpath(shard, folder) for shard in shards]

    def build() -> Built:
        watched = [seen(folder, path) for path in paths]
        return Built(*_scanned(shards, LabelCells(classes), tuple(suffixes)), watched)

    arrays, facts = stored(folder, ["shards", *paths, "", *suffixes], ["by name", *classes] if classes else [], build)
    several = several or facts["several"]
    labels, starts, members_of = arrays["labels"].astype(np.int64), arrays["set_starts"], arrays["set_classes"]
    names = Names(arrays["text"], arrays["offsets"])
    return Listed(
        TarImages(shards, arrays["shard"], arrays["start"], arrays["size"], names),
        labels if several else members_of[starts[labels]].astype(np.int64),
        tuple(classes) if classes else tuple(map(str, range(facts["count"]))),
        (starts, members_of) if several else None,
    )


def _scanned(
    shards: Sequence[Path], cells: LabelCells, suffixes: tuple[str, ...]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays and facts of the index; a single label is the set of it alone."""
    packing, several = Packing(), False
    labels, starts, sizes, counts = [], [], [], []
    for shard in shards:
        samples = list(_samples(shard, suffixes))
        several = several or any(one.several for one in samples)
        packing.add(one.image.name for one in samples)
        labels.append(np.array([cells.set_of(s.labels, f"{shard}: {s.image.name}") for s in samples], np.int32))
        starts.append(np.array([one.image.start for one in samples], np.int64))
        sizes.append(np.array([one.image.size for one in samples], np.int64))
        counts.append(len(samples))
    names, size = packing.names(), np.concatenate(sizes)
    if not len(names):
        raise UserError(f"{shards[0]}{' and the others' if shards[1:] else ''}: no sample of an image and its label")
    set_starts, set_classes = cells.sets()
    arrays: dict[str, npt.NDArray[Any]] = {
        "text": names.text,
        "offsets": names.offsets,
        "labels": np.concatenate(labels),
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        "start": np.concatenate(starts),
        "size": size.astype(np.int32) if int(size.max()) < 2**31 else size,
        "set_starts": set_starts,
        "set_classes": set_classes,
    }
    return arrays, {"several": several, "count": cells.count}


def _samples(shard: Path, suffixes: tuple[str, ...]) -> Iterator[_Sample]:
    """The samples of one shard."""
    try:
        with shard.open("rb") as opened:
            handle = opened.fileno()
            key, files, done = "", dict[str, Member](), set[str]()
            for member in members(shard, handle):
                folder, slash, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if not (stem and ending):  # as WebDataset does
                    continue
                now = f"{folder}{slash}{stem}"
                if now != key:
                    if files:
                        yield _sample(shard, handle, key, files, suffixes)
                    if now in done:
                        raise UserError(f"{shard}: sample '{now}' is there twice; make the shard anew")
                    done.add(now)
                    key, files = now, {}
                if ending.lower() in files:
                    raise UserError(f"{shard}: sample '{key}' has two files .{ending.lower()}; make the shard anew")
                files[ending.lower()] = member
            if files:
                yield _sample(shard, handle, key, files, suffixes)
    except OSError as error:
        raise cannot_read(shard, error) from None


def _sample(shard: Path, handle: int, key: str, files: dict[str, Member], suffixes: tuple[str, ...]) -> _Sample:
    images = [member for ending, member in files.items() if f".{ending}".endswith(suffixes)]
    if len(images) != 1:
        held = ", ".join(f".{ending}" for ending in files)
        raise UserError(f"{shard}: sample '{key}' has {len(images)} images (its files: {held}); give it one")
    written = files.get("cls") or files.get("json")
    if written is None:
        raise UserError(f"{shard}: sample '{key}' has no label; give it a .cls, or a .json with a \"label\"")
    if written.size > _LABEL_BYTES:
        raise UserError(f"{shard}: {written.name} has {written.size} bytes, and is no label")
    content = os.pread(handle, written.size, written.start)
    return _Sample(images[0], *_written(content, f"{shard}: {written.name}", written is files.get("json")))


def _written(content: bytes, where: str, as_json: bool) -> tuple[Sequence[str], bool]:
    """Labels as they are written, and whether as a list."""
    try:
        if not as_json:
            labels = content.decode("utf-8").split(SEPARATOR)
            return labels, len(labels) > 1
        found = json.loads(content)
    except ValueError as error:  # no UTF-8, no JSON
        raise UserError(f"{where} cannot be read: {error}") from None
    label = found.get("label") if isinstance(found, dict) else None
    several = label if isinstance(label, list) else [label]
    if any(isinstance(one, bool) or not isinstance(one, (int, str)) for one in several):
        raise UserError(f'{where}: "label" must be a class\'s number or name, or a list of them')
    return [str(one) for one in several], isinstance(label, list)
