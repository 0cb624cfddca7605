"""Labels as lists and shards have them written: names or numbers of classes, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from noisebench.image_data import Labels, LabelSets

Sets: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]
"""`starts` int64 [S + 1] and `classes` int32: the arguments of `LabelSets`."""
Listed: TypeAlias = tuple[npt.NDArray[np.int64], Sets | None]
"""Labels int64 [N], and where those are ids of sets, the sets."""

DENSE = 2**31
"""Bytes of multi-hot labels; for more, labels name sets."""

SEPARATOR = ";"
"""Between the classes of an image that has several."""


class LabelCells:
    """Classes by name or number, and ids for the sets of them that occur.

    Args:
        classes: names of the K classes; without them labels are numbers, and `count` is one more than the highest.
    """

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.count = len(classes) if classes else 0
        self._place = {name: number for number, name in enumerate(classes)} if classes else None
        self._sets: dict[tuple[int, ...], int] = {}

    def number(self, label: str, where: str) -> int:
        """The class of `label`: the one of that name, else of that number. `where` is what a message begins with.

        Raises:
            UserError: there is no such class.
        """
        label = label.strip()
        if self._place is not None and label in self._place:
            return self._place[label]
        number = int(label) if is_number(label) else -1
        if self._place is None and 0 <= number < 2**31 - 1:
            self.count = max(self.count, number + 1)
            return number
        if 0 <= number < self.count:
            return number
        if self._place is None:
            raise UserError(f"{where}: label '{label}' is no class number of 0 or more; name the classes to use names")
        raise unknown(f"{where}: label", label, self._place)

    def set_of(self, labels: Iterable[str], where: str) -> int:
        """The id of the set of classes that `labels` name.

        Raises:
            UserError: there are none, or there is no such class.
        """
        numbers = tuple(sorted({self.number(label, where) for label in labels if label.strip()}))
        if not numbers:
            raise UserError(f"{where}: the image has no label; give it one or more, or take it out")
        return self._sets.setdefault(numbers, len(self._sets))

    def sets(self) -> Sets:
        """All sets so far, by id."""
        starts = np.cumsum([0, *map(len, self._sets)], dtype=np.int64)
        return starts, np.fromiter((c for one in self._sets for c in one), np.int32, count=int(starts[-1]))


def is_number(label: str) -> bool:
    """Whether it is a class's number as people write them: ASCII digits."""
    return label.isascii() and label.isdigit()


def dense_or_sets(train: Listed, test: Listed, count: int) -> tuple[Labels, Labels, LabelSets | None]:
    """Labels of both splits as `ImageData` takes them, and its `label_sets`.

    Without sets they are as they are. With sets they are multi-hot, uint8 [N, count], where both splits fit into
    `DENSE` bytes; else ids of sets, all in one `LabelSets`.

    Args:
        train: labels and sets of the training images; test: of the test images, with sets too or without too.
        count: the number of classes K.
    """
    import torch  # which an index does without

    from noisebench.image_data import LabelSets

    (train_ids, train_sets), (test_ids, test_sets) = train, test
    if train_sets is None or test_sets is None:
        return train_ids, test_ids, None
    if (len(train_ids) + len(test_ids)) * count <= DENSE:
        train_rows, test_rows = (
            LabelSets(*sets).multihot(torch.from_numpy(ids), count).numpy()
            for ids, sets in ((train_ids, train_sets), (test_ids, test_sets))
        )
        return train_rows, test_rows, None
    if train_sets is test_sets:
        return train_ids, test_ids, LabelSets(*train_sets)
    starts = np.concatenate([train_sets[0], test_sets[0][1:] + train_sets[0][-1]])
    both = LabelSets(starts, np.concatenate([train_sets[1], test_sets[1]]))
    return train_ids, test_ids + (len(train_sets[0]) - 1), both
