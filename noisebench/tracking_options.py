"""What MLflow keeps of a board's models: what a benchmark says under ``tracking:``. None of it alters a result."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from noisebench._models import Model


class Tracking(Model):
    """Which models MLflow keeps.

    Attributes:
        models: "best" logs one for each method and column, of the seed with the best score on the noisy validation
            split (of the first seed, where there is no such split); "all" one for each cell; "none" none.
        register_as: a name in the model registry under which each of them becomes a version; None registers none.
    """

    models: Literal["none", "best", "all"] = "best"
    register_as: str | None = None

    @field_validator("register_as")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not (
            name.strip(" .") and name.isprintable() and len(name) <= 200 and not {*"/:"} & {*name}
        ):
            raise ValueError(f"{name!r}: give a name of at most 200 characters in one line, without / and :")
        return name
