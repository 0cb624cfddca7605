"""Optuna: studies in an SQLite file that any kill leaves whole, and that go on as if there had been none.

The only module that imports Optuna.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from noisebench.errors import UserError
from noisebench.files import make_once
from noisebench.search import Choice, Range, Space

STARTUP = 10
"""So many first trials are drawn at random, and so may run at once; each later one follows from all before it."""


def open_store(file: Path) -> RDBStorage:
    """The studies of a file, which is made if it is missing.

    Optuna's own set-up is many transactions, so it runs on a file aside.

    Raises:
        UserError: it is no such file.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_once(file, lambda aside: _connect(aside).engine.dispose())
    try:
        return _connect(file)
    except (SQLAlchemyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} cannot be used ({reason}); remove it to begin its studies anew") from None


def _connect(file: Path) -> RDBStorage:
    # A creator instead of an address: a path may hold what an address reads otherwise (? and {}).
    return RDBStorage("sqlite://", {"creator": lambda: sqlite3.connect(file, timeout=60)})


@dataclass(frozen=True)
class Trial:
    """One setting that is tried.

    Attributes:
        number: 0 is the row as it stands.
        settings: what differs from the row as it stands; nothing in trial 0.
        score: larger is better; None if it failed or has not ended.
        reason: why it failed.
    """

    number: int
    settings: Mapping[str, Any]
    score: float | None = None
    reason: str = ""


@dataclass
class Study:
    """The trials of a row.

    Args:
        store: from `open_store`.
        name: tells this study from every other in the store.
        space: what is searched.
        own: the row's own values, as far as they are known; trial 0.
        budget: how many trials count, and are opened; a store may hold more.
        draw: the random seed of (trial number, setting or nothing).
    """

    store: RDBStorage
    name: str
    space: Space
    own: Mapping[str, Any]
    budget: int
    draw: Callable[..., int]
    _open: dict[int, optuna.Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._study = optuna.create_study(
            study_name=self.name, storage=self.store, direction="maximize", load_if_exists=True
        )
        stored = self._study.get_trials(deepcopy=False)
        if not stored:
            self._study.enqueue_trial({k: v for k, v in self.own.items() if v in self.space[k]})
        self._ended = {found.number: _ended(found) for found in stored if found.state.is_finished()}
        # Those that failed too: `end` leaves them open, so that they are handed out again with their own settings.
        self._left_open = {found.number: found._trial_id for found in stored if found.state == TrialState.RUNNING}

    @property
    def ended(self) -> list[Trial]:
        """The trials that ended, of those that count."""
        return [self._ended[number] for number in sorted(self._ended) if number < self.budget]

    def due(self) -> list[Trial]:
        """Trials to run now, each given out once: left open by a kill or a failure, or new and waiting for no other."""
        found: list[Trial] = []
        for number in range(self.budget):
            if number in self._ended:
                continue
            if number >= STARTUP and (found or self._open):
                break
            if number not in self._open:
                found.append(self._take(number))
        return found

    def _take(self, number: int) -> Trial:
        self._seed(number)
        left_open = self._left_open.pop(number, None)
        trial = self._study.ask() if left_open is None else optuna.Trial(self._study, left_open)
        self._open[number] = trial
        trial.relative_params  # noqa: B018  # drawn here, under the trial's own seed, also when it is taken up again
        settings = {}
        for name, values in self.space.items():
            if number > 0 or (name in self.own and self.own[name] in values):
                self._seed(number, name)  # a seed each: a kill between two must not shift the second
                settings[name] = _suggest(trial, name, values)
        return Trial(number, settings if number else {})

    def _seed(self, *key: int | str) -> None:
        # RUNNING trials must not count: which ones run depends on the jobs.
        seed = self.draw(*key) % 2**32
        self._study.sampler = TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=False)

    def end(self, number: int, score: float | None, reason: str = "", **facts: Any) -> Trial:
        """Note how a trial that was given out ended; without a score it failed.

        A failure may have passing reasons (a full disk): it is an end for this object, and open again for the next one.
        """
        trial = self._open.pop(number)
        for key, value in facts.items():
            trial.set_user_attr(key, value)
        if score is None:
            self._ended[number] = Trial(number, dict(trial.params) if number else {}, reason=reason)
        else:
            self._ended[number] = _ended(self._study.tell(trial, score))
        return self._ended[number]


def _ended(found: FrozenTrial) -> Trial:
    return Trial(found.number, dict(found.params) if found.number else {}, found.value)


def _suggest(trial: optuna.Trial, name: str, values: Range | Choice) -> Any:
    if isinstance(values, Choice):
        return trial.suggest_categorical(name, values.values)
    if values.whole:
        return int(trial.suggest_int(name, int(values.low), int(values.high), log=values.log))
    return float(trial.suggest_float(name, values.low, values.high, log=values.log))
