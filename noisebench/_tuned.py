"""What a tuned board says of itself."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from noisebench._models import Model, Seed


class TunedRow(Model):
    """How the settings of a row of a tuned board were found.

    Attributes:
        trials: settings tried, the row's own first; 1 for a row with nothing to search.
        failed: how many of them failed.
        before: the objective of the row's own settings; None where they failed.
        after: that of the settings that were chosen.
        search: what was searched, e.g. {"temperature": "0.1:5.0:log"}.
        method, hparams: the row's method and all its settings, as they were chosen.
    """

    trials: int = Field(ge=1)
    failed: int = Field(default=0, ge=0)
    before: float | None = None
    after: float | None = None
    search: dict[str, str] = Field(default={})
    method: str
    hparams: dict[str, Any]


class Tuned(Model):
    """What a tuned board says of itself: the budget, equal for all rows that had something to search."""

    trials: int = Field(ge=1)
    seed: Seed
    objective: str
    rows: dict[str, TunedRow]

    @property
    def note(self) -> str:
        """For the board's title: which rows were tuned and which were not."""
        searched = [label for label, row in self.rows.items() if row.search]
        plain = [label for label, row in self.rows.items() if not row.search]
        budget = f"{self.trials} trial{'s' if self.trials > 1 else ''}{' each' if len(searched) > 1 else ''}"
        left = f"; nothing to tune in {', '.join(plain)}" if plain else ""
        return f"(tuned on the noisy validation split, seed {self.seed}: {budget} for {', '.join(searched)}{left})"

    @model_validator(mode="after")
    def _equal_budgets(self) -> Tuned:
        for label, row in self.rows.items():
            if row.trials != (self.trials if row.search else 1):
                right = f"tuned.trials is {self.trials}" if row.search else "it searched nothing, so that it has 1"
                raise ValueError(f"rows: '{label}' has {row.trials} trials, but {right}")
        return self
