"""The one exception that a user's mistake raises: a single clear line, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line: what was wrong, where, what would be right."""

    def __init__(self, message: str = "") -> None:
        """A line break or another unprintable character of what was given is shown as its escape."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in the place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BrokenPlugin(UserError):
    """A method or dataset that cannot be imported or breaks the contract: its cells fail, the others go on."""


class TrainingFailed(Exception):
    """A run that cannot go on: the reason, with epoch and step where there is one. Its cell fails, no other."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not among `known`, with the nearest names.

    Args:
        what: what kind of thing was named, with its place, e.g. ``"methods[2]: method"``.
        name: the name that was given.
        known: every name that would have been right.
    """
    options = sorted(known)
    near = difflib.get_close_matches(str(name), options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(options)}"
    return UserError(f"{what} '{name}' is unknown; {hint}")
