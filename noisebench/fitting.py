"""`fit`: one run from Python, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noisebench import dataset_names
from noisebench.assembly import Setup, make_hparams, method_class
from noisebench.cell import summarise, weights_sha256
from noisebench.config import Noise, Recipe, build
from noisebench.data import ImageData
from noisebench.errors import UserError
from noisebench.files import data_root_from
from noisebench.loading import load_dataset, load_source, make_noise
from noisebench.method import Method
from noisebench.metrics import RULES, score_of
from noisebench.noise import NoisyLabels
from noisebench.progress import EpochProgress, console_for
from noisebench.ranks import join
from noisebench.seats import seat_for

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(repr=False)
class Result:
    """A finished run; a notebook shows its numbers as a table.

    Attributes:
        metrics: {"last": {...}, "selected": {...}, "best": {...}}, each with accuracy, nll, ece, memorised, epoch;
            gap in place of accuracy where an image may have several labels.
        history: one entry an epoch: {"epoch": 1.., "metrics": {...}}.
        method: the trained method, for `predict`; noise: the labels it was trained on.
        weights_sha256: of all that it learned.
        damaged: the images that did not decode, by name, and why; a grey one stood in for each.
        title: what was trained, on what, under which noise and seed.
    """

    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    method: Method
    noise: NoisyLabels
    weights_sha256: str = ""
    damaged: dict[str, str] = field(default_factory=dict)
    title: str = "run"

    def __repr__(self) -> str:
        rules = [rule for rule in RULES if rule in self.metrics]
        score = score_of(self.metrics["last"])
        numbers = (f"{rule} {self.metrics[rule][score]:.2%}" for rule in rules)
        return f"<Result {self.title!r}: {', '.join(numbers)}; {len(self.history)} epochs>"

    def _repr_html_(self) -> str:
        """What Jupyter shows: the test metrics at the three epochs, what they are, and the noise."""
        from noisebench.shown import result_html

        return result_html(self)

    def to_pandas(self) -> pd.DataFrame:
        """One row an epoch: ``epoch`` (from 1) and the metrics by name, shares in [0, 1], NaN where there is none."""
        import pandas as pd

        return pd.DataFrame.from_records([{"epoch": line["epoch"], **line["metrics"]} for line in self.history])

    def plot(self) -> Figure:
        """The learning curves, in %: test, held-out noisy labels, and the memorised share of the wrong labels.

        `Figure.savefig` writes it; a cell of a notebook that ends with it shows it, with no pyplot.
        """
        from noisebench.plots import curves

        return curves(self)


class Memory:
    """A journal that keeps the history, and the states if asked."""

    def __init__(self, keep_states: bool = False, watcher: EpochProgress | None = None) -> None:
        self.history: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self._keep = keep_states
        self._watcher = watcher

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the line."""
        self.history.append({"epoch": epoch, "metrics": metrics})
        if self._watcher is not None:
            self._watcher.epoch(epoch, metrics)

    def due(self) -> bool:
        """Never: states after epochs are enough."""
        return False

    def checkpoint(self, state: dict[str, Any], last: bool) -> None:
        """Keep the state."""
        if self._keep:
            self.states.append(state)


def fit(
    method: str | type[Method],
    dataset: str | ImageData,
    noise: str = "none",
    rate: float | None = None,
    *,
    seed: int = 0,
    hparams: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    noise_options: dict[str, Any] | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> Result:
    """Train one method on one dataset under one noise, in memory.

    Args:
        method: a registered name or a `Method` class.
        dataset: a registered name, ``name@n`` for n of its training images, or an `ImageData`.
        noise: a kind of noisebench.noise.KINDS; rate: in [0, 1].
        seed: of the run and of the noise.
        hparams: the method's settings where they differ from the defaults.
        recipe: keys of a benchmark's recipe where they differ from the defaults, e.g. ``{"epochs": 10}``.
        noise_options: the kind's own options, e.g. ``{"include_true": True}`` or ``{"source": "cifar100"}``.
        data_root: torchvision's layout; NOISEBENCH_DATA by default.
        device: "auto", "cpu", "cuda".
        progress: whether to show how far it is; by default in a notebook, and on standard error if it is a terminal.

    With recipe.ranks above 1 it is started by torchrun or srun, and every rank gets the result.

    Raises:
        UserError: anything wrong in the arguments. TrainingFailed: the loss became NaN or infinite.
        Stopped: Ctrl-C, or the notebook's stop button; a KeyboardInterrupt that says so in one line.
    """
    cls = method_class(method) if isinstance(method, str) else method
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"method: expected a name or a Method class, got {method!r}")
    settings = make_hparams(cls, hparams or {}, f"method '{cls.name}'")
    data = load_dataset(dataset, data_root_from(data_root)) if isinstance(dataset, str) else dataset
    spec: Noise = build(Noise, {"kind": noise, "rate": rate, **(noise_options or {})}, "noise")
    called = dataset if isinstance(dataset, str) else "the dataset"
    source = load_source(spec, data, called, data_root_from(data_root))
    noisy = make_noise(spec, data, seed, source, called)
    title = f"{cls.name or cls.__name__} · {called} · {noisy.description} · seed {seed}"
    threads = torch.get_num_threads()
    try:
        size = dataset_names.sized(dataset)[1] if isinstance(dataset, str) else None
        plan: Recipe = build(Recipe, (recipe or {}) | ({} if size is None else {"train_size": size}), "recipe")
        seat = seat_for(plan.ranks)
        if seat is None:
            raise UserError(
                f"recipe.ranks: {plan.ranks}: fit trains in this process; start it with torchrun --nproc-per-node "
                f"{plan.ranks}, or use noisebench run"
            )
        group = join(plan, device, seat)
        setup = Setup(cls, settings, data, noisy.labels, plan, seed, noisy, device, source, group)
        damaged: dict[str, str] = {}
        setup.on_damaged(damaged.__setitem__)
        with EpochProgress(console_for(progress) if group.rank == 0 else None, title, plan.epochs) as watcher:
            journal = Memory(watcher=watcher)
            setup.train(journal)
        for others in group.all(damaged):
            damaged.update(others)
    finally:
        torch.set_num_threads(threads)
    sha256 = weights_sha256(setup.method)
    return Result(summarise(journal.history), journal.history, setup.method, noisy, sha256, damaged, title)
