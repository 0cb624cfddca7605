"""Named random streams: every random draw of a run has a purpose, so that adding one shifts no other.

A stream is a seed derived from the run's seed and the stream's name; nothing is drawn from a global state, and so a
run can be resumed at any epoch without storing the state of a generator.
"""

from __future__ import annotations

import hashlib


def stream(seed: int, *name: str | int) -> int:
    """The seed of the stream `name` under `seed`: 63 bits of a SHA-256, equal on every machine.

    Example:
        ``torch.Generator().manual_seed(stream(seed, "order", epoch))``
    """
    key = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
