"""Deep ensembles of any method (Lakshminarayanan et al., NeurIPS 2017; Collier et al. 2021, section 4.3)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from noisebench.assembly import make_hparams, method_class
from noisebench.method import Batch, Choice, Method, MethodName, Range, Task
from noisebench.training import Run


class Ensemble(Method):
    """Deep ensemble: independently initialised members of any method, probabilities averaged."""

    name = "ensemble"
    paper = "Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, NeurIPS 2017"
    multilabel = True

    members: nn.ModuleList

    @dataclass(frozen=True)
    class Hparams:
        """Settings.

        Attributes:
            member: the method of every member.
            size: how many; the paper sees most of the gain with 5, Collier et al. 2021 use 4.
            settings: the members' own settings.
        """

        member: MethodName = "ce"
        size: Annotated[int, Field(ge=1)] = 5
        settings: dict[str, Any] = field(default_factory=dict)

    hparams: Hparams

    @classmethod
    def needs_with(cls, hparams: Any) -> tuple[str, ...]:
        """What the members need."""
        member, settings = _member_of(hparams)
        return member.needs_with(settings)

    @classmethod
    def multilabel_with(cls, hparams: Any) -> bool:
        """Whether the members take several labels an image."""
        member, settings = _member_of(hparams)
        return member.multilabel_with(settings)

    @classmethod
    def coupled_with(cls, hparams: Any) -> str:
        """What couples the members' samples."""
        member, settings = _member_of(hparams)
        return member.coupled_with(settings)

    @classmethod
    def search_with(cls, hparams: Any) -> dict[str, Range | Choice]:
        """What is searched of the members, all of which get the same settings."""
        member, settings = _member_of(hparams)
        return {f"settings.{key}": values for key, values in member.search_with(settings).items()}

    def build(self, task: Task) -> None:
        """Members one after the other, so that each draws its own initial weights."""
        member, settings = _member_of(self.hparams)
        self.members = nn.ModuleList(member(settings) for _ in range(self.hparams.size))
        for each in self._members():
            each.build(task)

    def _members(self) -> list[Method]:
        return cast(list[Method], list(self.members))

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of every member."""
        return [group for member in self._members() for group in member.param_groups()]

    def epoch(self, run: Run) -> Iterator[Batch]:
        """An epoch of every member, each in an order of its own."""
        for i, member in enumerate(self._members()):
            self._active, self._view = i, _view(run, member)  # the position: a module here would enter state_dict
            yield from member.epoch(self._view)

    def step(self, batch: Batch, run: Run) -> None:
        """The step of the member whose epoch it is; only its parameters have gradients and move."""
        self._members()[self._active].step(batch, self._view)

    def after_step(self, batch: Batch, run: Run) -> None:
        """The member's."""
        self._members()[self._active].after_step(batch, self._view)

    def predict(self, x: Tensor) -> Tensor:
        """The mean of the members' probabilities."""
        return torch.stack([member.predict(x) for member in self._members()]).mean(dim=0)

    def noise_scores(self, run: Run) -> Tensor | None:
        """The mean of the members' scores, where they have any."""
        return _mean([member.noise_scores(run) for member in self._members()])

    def inlier_scores(self, x: Tensor) -> Tensor | None:
        """The mean of the members' scores, where they have any."""
        return _mean([member.inlier_scores(x) for member in self._members()])

    def transition(self) -> Tensor | None:
        """The mean of the members' T, where they have one."""
        return _mean([member.transition() for member in self._members()])

    def covariance(self, x: Tensor) -> Tensor | None:
        """The mean of the members' covariances, where they have one."""
        return _mean([member.covariance(x) for member in self._members()])


def _member_of(hparams: Any) -> tuple[type[Method], Any]:
    """The members' class and their settings, checked."""
    member = method_class(hparams.member)
    return member, make_hparams(member, hparams.settings, f"ensemble's member '{hparams.member}'")


def _mean(values: list[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.stack(present).mean(dim=0) if present else None


def _view(run: Run, member: Method) -> Run:
    """The run as a member sees it: a reset of the optimiser forgets this member's state alone."""
    return cast(Run, _MemberRun(run, member))


class _MemberRun:
    def __init__(self, run: Run, member: Method) -> None:
        self._run, self._member = run, member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def reset_optimizer(self, module: nn.Module | None = None) -> None:
        self._run.reset_optimizer(self._member if module is None else module)
