"""What a finished run has learned: the analyses of Collier et al., CVPR 2021, section 4.1, appendix D and Table 3.

Each is a function on a `FinishedRun`; `analyse` does all that apply, draws them and hands them to MLflow::

    run = FinishedRun.load("noisebench-runs/runs/het_full-digits-...")
    top_covariances(run)                                    # Table 4
    covariance_ranks(run, FinishedRun.load(".../ce-..."))   # Fig. 2
    accuracy_against(run, "eval_samples", (1, 10, 100))     # at evaluation alone

All of this looks at the test set. It tells about a run; it is no way to choose a setting, for which there is
``noisebench tune``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from noisebench.errors import UserError
from noisebench.finished import FinishedRun
from noisebench.metrics import score_of

__all__ = [
    "Analyses",
    "FinishedRun",
    "Pair",
    "Point",
    "accuracy_against",
    "analyse",
    "covariance_ranks",
    "mean_covariance",
    "rank_p_value",
    "top_covariances",
]

SAMPLES = (1, 10, 100, 1000)
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)


# ------------------------------------------------------------------------------------------------- the analyses


class Pair(NamedTuple):
    """Two classes and the covariance of their noise, averaged over the test set."""

    a: str
    b: str
    covariance: float


class Point(NamedTuple):
    """The test score (accuracy or gAP, in [0, 1]) and NLL under one value of a setting."""

    value: Any
    score: float
    nll: float


def mean_covariance(run: FinishedRun) -> Tensor:
    """The covariance of the latent noise, averaged over the test set: float64 [K, K].

    Raises:
        UserError: the method offers none, or noise that is independent from class to class.
    """
    total, count = None, 0
    for index, matrices in run.covariances():
        part = matrices.sum(0, dtype=torch.float64)
        total, count = part if total is None else total + part, count + len(index)
    assert total is not None  # a test set is never empty
    mean: Tensor = total.cpu() / count
    if not bool((mean - mean.diag().diag()).any()):
        raise UserError(f"{run.config['label']}: the noise is independent from class to class, so no pair has any")
    return mean


def top_covariances(run: FinishedRun, count: int = 10) -> list[Pair]:
    """The pairs of classes with the largest absolute covariance, averaged over the test set (Collier et al., Table 4).

    Raises:
        UserError: as `mean_covariance`.
    """
    return _top(mean_covariance(run), run.data.classes, count)


def _top(mean: Tensor, classes: Sequence[str], count: int) -> list[Pair]:
    above = torch.triu_indices(len(mean), len(mean), offset=1)
    values = mean[above[0], above[1]]
    best = values.abs().topk(min(count, len(values))).indices
    return [Pair(classes[int(above[0, i])], classes[int(above[1, i])], float(values[i])) for i in best]


def covariance_ranks(run: FinishedRun, reference: FinishedRun) -> Tensor:
    """Where a mistake that the run does not make stands among its covariances (Collier et al., Fig. 2).

    For the test images that `run` gets right and `reference` gets wrong, in their order: the rank of
    abs(Sigma[true, reference's prediction]) among abs(Sigma[true, j]) of all j other than the true class. 1 is the
    largest; of equal ones each has the best rank.

    Args:
        run: of a method that offers a covariance.
        reference: of any method, on the same data, noise and seed.

    Returns:
        int64 [n], in 1..K-1.

    Raises:
        UserError: another column or seed, several labels an image, no covariance, or no such image.
    """
    for key in ("dataset", "noise_label", "seed", "noise_sha256"):
        mine, other = run.config[key], reference.config[key]
        if mine != other:
            raise UserError(f"{reference.folder.name}: its {key} is {other}, and that of {run.folder.name} is {mine}")
    if run.data.multilabel:
        raise UserError(f"{run.config['dataset']}: ranks need one label an image, and it has several")
    truth = torch.from_numpy(np.array(run.data.test_labels))
    mine, theirs = (r.predict().argmax(1).cpu() for r in (run, reference))
    chosen = ((mine == truth) & (theirs != truth)).nonzero().flatten()
    if not len(chosen):
        raise UserError(f"no test image that {run.config['label']} gets right and {reference.config['label']} wrong")
    ranks = []
    for index, matrices in run.covariances(chosen):
        at = index.cpu()
        rows = matrices.cpu()[torch.arange(len(at)), truth[at]].abs()
        value = rows.gather(1, theirs[at, None])
        rows.scatter_(1, truth[at, None], -1.0)
        ranks.append(1 + (rows > value).sum(1))
    return torch.cat(ranks)


def rank_p_value(ranks: Tensor, num_classes: int) -> float:
    """P(a sum of ranks as small as this one), were every rank in 1..K-1 as likely as any other; one-sided.

    Exact for few ranks, else by the normal approximation with a continuity correction.
    """
    most, count, total = num_classes - 1, len(ranks), int(ranks.sum())
    if count * most <= 20_000:
        chances, one = np.ones(1), np.full(most, 1 / most)
        for _ in range(count):
            chances = np.convolve(chances, one)
        return min(1.0, float(chances[: total - count + 1].sum()))
    middle, sd = count * (most + 1) / 2, (count * (most**2 - 1) / 12) ** 0.5
    return float(norm.cdf((total + 0.5 - middle) / sd))


def accuracy_against(run: FinishedRun, setting: str, values: Sequence[Any]) -> list[Point]:
    """The test score with one setting changed **at evaluation alone**, the weights as they are.

    With ``eval_samples`` it is one half of appendix D: Table 9 varies the samples of training and of evaluation
    together, as a board does whose rows differ in both. With ``temperature`` likewise, Table 3's ablation trains under
    each.

    The score is that of the test set: it describes a run and must not choose a setting; ``noisebench tune`` does that
    on the noisy validation split.

    Raises:
        UserError: the method has no such setting, a value is wrong, the weights do not fit it, or the predictions do
            not depend on it.
    """
    if setting not in run.hparams:
        raise UserError(f"{run.config['method']} has no setting {setting}; it has {', '.join(run.hparams) or 'none'}")
    points = []
    for value in values:
        metrics = run.with_settings(**{setting: value}).metrics()
        points.append(Point(value, metrics[score_of(metrics)], metrics["nll"]))
    if len(set(map(repr, values))) > 1 and len({point[1:] for point in points}) == 1:
        raise UserError(f"{run.config['label']}: its predictions do not depend on {setting}")
    return points


# ------------------------------------------------------------------------------------------------ all at once


@dataclass
class Analyses:
    """What `analyse` found.

    Attributes:
        found: by name, what its JSON file holds.
        skipped: by name, why an analysis does not apply.
        files: what was written, PNG, CSV and JSON.
        tracked: what became of them in MLflow, in one line.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    tracked: str = ""


def analyse(
    run: FinishedRun,
    reference: FinishedRun | None = None,
    samples: Sequence[int] = SAMPLES,
    temperatures: Sequence[float] = TEMPERATURES,
    count: int = 10,
) -> Analyses:
    """All analyses that apply to a run: written into its folder's ``analysis/``, and logged to its MLflow run.

    Args:
        reference: for `covariance_ranks`; left out without one.
        samples, temperatures: for `accuracy_against` with ``eval_samples`` and ``temperature``.
        count: of `top_covariances`.
    """
    from noisebench import _analysis_figures as figures

    done = Analyses()

    def keep(name: str, made: figures.Finding) -> None:
        about = {key: run.config[key] for key in ("fingerprint", "method", "label", "dataset", "noise_label", "seed")}
        made.facts = {**about, "weights_sha256": run.result["weights_sha256"], **made.facts}
        done.files += made.write(run.folder / "analysis" / name)
        done.found[name] = made.as_json()

    def covariances() -> None:
        mean = mean_covariance(run)
        keep("top_covariances", figures.covariances(run, mean, _top(mean, run.data.classes, count)))

    def ranks(reference: FinishedRun) -> None:
        found = covariance_ranks(run, reference)
        p_value = rank_p_value(found, run.data.num_classes)
        keep(f"covariance_ranks_{figures.slug(reference)}", figures.ranks(run, reference, found, p_value))

    def against(setting: str, values: Sequence[Any]) -> None:
        keep(f"accuracy_{setting}", figures.against(run, setting, accuracy_against(run, setting, values)))

    work: list[tuple[str, Any, tuple[Any, ...]]] = [("top_covariances", covariances, ())]
    work += [("covariance_ranks", ranks, (reference,))] if reference is not None else []
    work += [("accuracy_eval_samples", against, ("eval_samples", samples))] if samples else []
    work += [("accuracy_temperature", against, ("temperature", temperatures))] if temperatures else []
    for name, act, arguments in work:
        try:
            act(*arguments)
        except UserError as error:
            done.skipped[name] = str(error)
    done.tracked = _track(run, done.files) if done.files else ""
    return done


def _track(run: FinishedRun, files: Sequence[Path]) -> str:
    """Log the files to the run's MLflow run; what became of it, in one line."""
    from noisebench import tracking
    from noisebench._outbox import RunFolder

    uri = tracking.store_uri(run.out)
    tags = {"fingerprint": run.config["fingerprint"], "began": str(RunFolder(run.folder).began)}
    try:
        runs = tracking.log_files(uri, files, "analysis", tags)
    except UserError as error:
        return f"{error}; the files are complete"
    if not runs:
        return "MLflow has no run of this folder (only boards are sent there); the files are complete"
    return f"MLflow: logged as analysis/ of {'its run' if runs == 1 else f'{runs} runs, one a board'}"
