"""The run folder of a run of several ranks: the first writes, and all take the same path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noisebench.ranks import Group

if TYPE_CHECKING:
    from noisebench.cell_folder import Folder


class Differs(Exception):
    """An epoch that was run again came out otherwise."""


class SharedFolder:
    """The journal of one rank; see `cell_folder.Folder`, which the first has and the others do without.

    Args:
        group: all ranks.
        path: of the run folder, which all of them can read.
        folder: of the first rank.
    """

    def __init__(self, group: Group, path: Path, folder: Folder | None = None) -> None:
        self.path = path
        self._group, self._folder = group, folder
        self._damaged: dict[str, str] = {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Of the first rank."""
        return [] if self._folder is None else self._folder.history

    @property
    def num_damaged(self) -> int:
        """Of the first rank, which is told of all."""
        return 0 if self._folder is None else self._folder.num_damaged

    def begin(self, spent: float = 0) -> None:
        """Start the first rank's clocks."""
        if self._folder is not None:
            self._folder.begin(spent)

    def clear(self) -> None:
        """Forget the run."""
        if self._folder is not None:
            self._folder.clear()

    def log(self, text: str) -> None:
        """One more line of the first rank."""
        if self._folder is not None:
            self._folder.log(text)

    def damaged(self, name: str, reason: str) -> None:
        """Keep an image that does not decode for the end of the epoch, when the first rank names those of all."""
        self._damaged[name] = reason

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """The first rank notes the metrics, which are those of all.

        Raises:
            Differs: on all ranks, where it does on the first.
        """
        found = self._group.all(self._damaged)
        self._damaged = {}
        verdict = None
        if self._folder is not None:
            for damaged in found:
                for name, reason in damaged.items():
                    self._folder.damaged(name, reason)
            try:
                self._folder.epoch(epoch, metrics)
            except Differs as error:
                verdict = str(error)
        verdict = self._group.same(verdict)
        if verdict is not None:
            raise Differs(verdict)

    def due(self) -> bool:
        """Never: between two epochs alone the state of one rank is that of all."""
        return False

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        """The first rank stores the state, if it is time."""
        if self._folder is not None:
            self._folder.checkpoint(state, last)

    def stored_state(self) -> dict[str, Any] | None:
        """The checkpoint, which all ranks read, if the first finds that it can be used."""
        state = None if self._folder is None else self._folder.stored_state()
        there = self._group.same(state is not None)
        if self._folder is None and there:
            state = torch.load(self.path / "checkpoint.pt", map_location="cpu", weights_only=True)
        return state
