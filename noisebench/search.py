"""What may be tried for a setting when a method is tuned: `Range` and `Choice`. Imports neither torch nor Optuna."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from noisebench.errors import UserError, unknown
from noisebench.reading import parse_yaml

FORMS = "KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=[a, b, c]"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones if both bounds are.

    Attributes:
        low, high: finite, low < high.
        log: draw evenly in the logarithm; low must be above 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Refuse bounds that make no range."""
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
                raise UserError(f"range {self}: {bound!r} is no finite number")
        if not self.low < self.high:
            raise UserError(f"range {self}: the low end must be below the high end")
        if self.log and self.low <= 0:
            raise UserError(f"range {self}: a range in the logarithm must begin above 0")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """What must be valid for all of it to be."""
        return self.low, self.high

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.low}:{self.high}" + (":log" if self.log else "")


@dataclass(frozen=True, init=False)
class Choice:
    """One of these values: numbers, text, true, false or none; an order among them means nothing."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        """Refuse what is no plain value, and a value given twice."""
        object.__setattr__(self, "values", values)
        if not values:
            raise UserError("choice []: give at least one value")
        for i, value in enumerate(values):
            plain = value is None or isinstance(value, (bool, int, float, str))
            if not plain or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"choice {self}: {value!r} cannot be chosen; give numbers, text, true, false or null")
            if value in values[:i]:
                raise UserError(f"choice {self}: {value!r} is listed twice")

    @property
    def extremes(self) -> tuple[Any, ...]:
        """What must be valid for all of it to be."""
        return self.values

    def __contains__(self, value: object) -> bool:
        return any(type(known) is type(value) and known == value for known in self.values)

    def __str__(self) -> str:
        return f"[{', '.join(json.dumps(value, default=repr) for value in self.values)}]"


Space = Mapping[str, "Range | Choice"]
"""What is searched of a method: setting -> values. ``settings.q`` is the key ``q`` of the setting ``settings``."""


def parse_search(text: str, where: str) -> Range | Choice:
    """``LOW:HIGH``, ``LOW:HIGH:log`` or ``[a, b, c]``, as users write it.

    Raises:
        UserError: anything else; `where` begins the message.
    """
    text = text.strip()
    try:
        if text.startswith("["):
            values = parse_yaml(text, where)
            if isinstance(values, list):
                return Choice(*values)
        else:
            low, high, *log = text.split(":")
            if log in ([], ["log"]):
                return Range(parse_yaml(low, where), parse_yaml(high, where), bool(log))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
    except ValueError:  # too few parts
        pass
    raise UserError(f"{where}: expected {FORMS}")


def assign(
    settings: Iterable[str], rows: Mapping[str, str], known: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, Range | Choice]]:
    """What each row searches by `settings`: ``KEY=...`` for every row that has the setting, ``ROW.KEY=...`` for one.

    Args:
        settings: as users wrote them.
        rows: label -> its method's name; either stands for the row.
        known: label -> the settings of its method.

    Returns:
        label -> space; where two are for one setting the more specific one holds, of equals the later one.

    Raises:
        UserError: no such setting, or not the form.
    """
    found: dict[str, dict[str, Range | Choice]] = {label: {} for label in rows}

    def row_of(setting: str) -> str:
        return max((n for n in [*rows, *rows.values()] if setting.startswith(f"{n}.")), key=len, default="")

    for setting in sorted(settings, key=lambda text: (bool(row_of(text)), row_of(text) in rows)):
        where, row = f"--search {setting}", row_of(setting)
        key, equals, text = setting[len(row) + 1 if row else 0 :].partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{where}: expected {FORMS}")
        searched = parse_search(text, where)
        meant = [label for label in rows if row in ("", label, rows[label])]
        able = [label for label in meant if key.partition(".")[0] in known[label]]
        if not able:
            options = {option for label in meant for option in known[label]}
            options |= {f"{rows[label]}.{option}" for label in meant for option in known[label] if not row}
            if not options:
                raise UserError(f"{where}: {f'{row} has no' if row else 'none of these methods has'} settings")
            raise unknown(f"{where}: setting", key, options)
        for label in able:
            found[label][key] = searched
    return found
