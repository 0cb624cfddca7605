"""What MLflow keeps of a board's models: what a benchmark says under ``tracking:``. None of it alters a result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from noisebench._models import Model


class Tracking(Model):
    """Which models MLflow keeps.

    Attributes:
        models: "best" logs one for each method and column, of the seed with the best score on the noisy validation
            split (of the first seed, where there is no such split); "all" one for each cell; "none" none.
        register_as: a name in the model registry under which each of them becomes a version; None registers none.
    """

    models: Literal["none", "best", "all"] = "best"
    register_as: Annotated[str, Field(pattern="^[^/:]{1,200}$")] | None = None
