"""What the models of `config` have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Model(BaseModel):
    """Immutable, and no key beyond its own, no NaN and no infinity is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
