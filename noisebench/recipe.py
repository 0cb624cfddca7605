"""How a network is trained: the recipe that all methods of a board share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from noisebench._models import Model

Epochs = Annotated[int, Field(ge=0, strict=True)] | Annotated[float, Field(ge=0, le=1, strict=True)]
"""A point in a run or a length of it: an `int` counts epochs, a `float` in [0, 1] is a share of the run's epochs."""


Share = Annotated[float, Field(ge=0, le=1)]

LATER = ("image_size", "crop_area", "skip_damaged", "test_size", "evaluate", "start", "ranks", "record_losses")
"""Settings of a recipe that finished runs may not have had."""


class Schedule(Model):
    """Learning rate by epoch: linear warm-up, then constant, multi-step or cosine."""

    kind: Literal["constant", "multistep", "cosine"] = "cosine"
    milestones: tuple[Epochs, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup: Epochs = 0

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if bool(self.milestones) != (self.kind == "multistep"):
            raise ValueError("milestones belong to kind multistep, which needs some, and to no other")
        return self


class Start(Model):
    """The finished run whose backbone's weights are those that a backbone begins with; see `starting`.

    Attributes:
        run: its folder, which may move: it does not count in a fingerprint.
        weights: its weights_sha256, as result.json has it.
    """

    run: str
    weights: str = Field(pattern="^[0-9a-f]{64}$")


class Recipe(Model):
    """How a network is trained: shared by every method of a board."""

    backbone: str = "small_cnn"
    backbone_options: dict[str, Any] = Field(default={})
    start: Start | None = None
    epochs: int = Field(default=60, ge=1, strict=True)
    batch_size: int = Field(default=128, ge=2, strict=True)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Schedule = Schedule()
    clip_norm: float | None = Field(default=None, gt=0)
    padding: int = Field(default=0, ge=0)
    flip: bool = False
    image_size: int = Field(default=224, ge=8, strict=True)  # side of the crops, where images are of any size
    crop_area: tuple[Share, Share] = (0.08, 1.0)  # of those: the crop's share of the image, ratio 3:4 to 4:3
    skip_damaged: bool = False  # a grey image in the place of one that does not decode
    validation: float = Field(default=0.1, ge=0, lt=1)
    test_size: int | None = Field(default=None, ge=1)  # at most so many images of a test set or validation split
    evaluate: tuple[str, ...] = ()  # further tests that the dataset offers, e.g. corrected labels
    train_size: int | None = Field(default=None, ge=2)  # only so many of the training images, validation included
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = True  # faster on CPUs too: 1.3x to 1.5x for small networks
    compile: bool = False
    loader: Literal["auto", "resident", "streaming"] = "auto"
    workers: int = Field(default=2, ge=0)
    threads: int = Field(default=1, ge=1)
    ranks: int = Field(default=1, ge=1, strict=True)  # processes that share every batch
    record_losses: bool = False  # quartiles of the training losses of right and of wrong labels, by epoch
    checkpoint_seconds: float = Field(default=20, ge=0)  # 0, or several ranks: never within an epoch

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.batch_size % self.ranks or self.batch_size < 2 * self.ranks:  # BatchNorm fails on one sample
            raise ValueError(
                f"ranks: {self.ranks} ranks cannot share a batch_size of {self.batch_size}, which all of them together "
                "have; give a multiple, two samples for each at least"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer sgd with a momentum above 0")
        if not 0 < self.crop_area[0] <= self.crop_area[1]:
            raise ValueError(f"crop_area: {list(self.crop_area)}; give two shares of the image, the smaller first")
        if len(set(self.evaluate)) < len(self.evaluate):
            raise ValueError("evaluate: a test is listed twice")
        return self

    def identity(self) -> dict[str, Any]:
        """What of it can change a result; settings that came later only where they are not as it was before them."""
        left_out: dict[str, Any] = {"loader": True, "workers": True, "checkpoint_seconds": True, "start": {"run"}}
        found = self.model_dump(mode="json", exclude=left_out)
        before = Recipe().model_dump(mode="json", include=set(LATER))
        found["evaluate"].sort()  # their order changes nothing
        return {key: value for key, value in found.items() if key not in LATER or value != before[key]}
