"""noisebench: one harness for learning with noisy labels.

`fit` trains one method, `leaderboard` runs a benchmark; both are imported when first used, so that
``import noisebench`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from noisebench.errors import UserError

if TYPE_CHECKING:
    from noisebench.board import leaderboard
    from noisebench.fitting import Result, fit
    from noisebench.table import Table

__all__ = ["Result", "Table", "UserError", "fit", "leaderboard"]

_HOMES = {"fit": "fitting", "Result": "fitting", "leaderboard": "board", "Table": "table"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        found = getattr(importlib.import_module(f"noisebench.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'noisebench' has no attribute '{name}'")
