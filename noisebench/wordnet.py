"""Classes that are synsets of WordNet: their names, and what stands above them as sets of labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from noisebench.errors import UserError
from noisebench.image_data import LabelSets
from noisebench.image_files import lines_of

STRANGERS = 0.01
"""Share of the classes that a hierarchy may lack; such a class has no ancestors."""
_WNID = re.compile(r"n\d{8}")


def words_of(listing: Path) -> dict[str, str]:
    """WordNet id -> its words: a list with an id and the words a line, a blank or a tab between.

    Raises:
        UserError: it is missing, cannot be read, or a line does not begin with a WordNet id; the line is named.
    """
    words = {}
    for number, line in enumerate(lines_of(listing), 1):
        wnid, *rest = line.split(maxsplit=1)
        if not _WNID.fullmatch(wnid):
            raise UserError(f"{listing}, line {number}: '{wnid[:40]}' is no WordNet id (n and 8 digits)")
        words[wnid] = rest[0].strip() if rest else ""
    return words


def names_of(wnids: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """The first of each class's words; the WordNet id too where classes share it, and alone where there is none."""
    names = [words.get(wnid, "").split(",")[0].strip() or wnid for wnid in wnids]
    shared = {name for name, other in zip(sorted(names), sorted(names)[1:], strict=False) if name == other}
    return tuple(f"{name} ({wnid})" if name in shared else name for name, wnid in zip(names, wnids, strict=True))


def with_ancestors(wnids: Sequence[str], hierarchy: Path) -> LabelSets:
    """A set for each class, in their order: the class itself and all of its ancestors that are classes.

    A synset may have several parents. Synsets between two classes that are none themselves are passed through.

    Args:
        wnids: the classes' WordNet ids.
        hierarchy: "parent child" a line, as image-net.org's wordnet.is_a.txt.

    Raises:
        UserError: the file is missing or cannot be read, a line is no pair of WordNet ids, a synset stands above
            itself, or more than 1% of the classes are not in it.
    """
    parents = _parents_of(hierarchy)
    known = parents.keys() | {parent for several in parents.values() for parent in several}
    strangers = [wnid for wnid in wnids if wnid not in known]
    if len(strangers) > STRANGERS * len(wnids):
        raise UserError(
            f"{hierarchy} lacks {len(strangers)} of the {len(wnids)} classes, e.g. {strangers[0]}; give the whole "
            f"hierarchy of these classes"
        )
    above: dict[str, Sequence[str]] = {}
    todo = list(wnids)
    while todo:  # only what stands above a class: a quarter of WordNet's nouns
        if (synset := todo.pop()) not in above:
            above[synset] = parents.get(synset, ())
            todo += above[synset]
    try:
        order = tuple(TopologicalSorter(above).static_order())
    except CycleError as error:
        circle = " > ".join(error.args[1][:6])
        raise UserError(f"{hierarchy}: {circle}: a synset stands above itself; copy the file anew") from None
    place = {wnid: label for label, wnid in enumerate(wnids)}
    sets: dict[str, frozenset[int]] = {}
    for synset in order:
        own = frozenset([place[synset]] if synset in place else [])
        sets[synset] = own.union(*(sets[parent] for parent in above[synset]))
    found = [sorted(sets[wnid]) for wnid in wnids]
    starts = np.concatenate([[0], np.cumsum([len(members) for members in found])]).astype(np.int64)
    return LabelSets(starts, np.fromiter((label for members in found for label in members), np.int32, starts[-1]))


def _parents_of(hierarchy: Path) -> dict[str, list[str]]:
    """Child -> its parents."""
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(hierarchy), 1):
        pair = line.split()
        if len(pair) != 2 or not all(_WNID.fullmatch(wnid) for wnid in pair):
            raise UserError(f"{hierarchy}, line {number}: '{line[:60]}' is no pair of WordNet ids, parent and child")
        parents.setdefault(pair[1], []).append(pair[0])
    return parents
