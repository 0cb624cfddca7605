"""What a finished run has learned.

The analyses of Collier et al., CVPR 2021, section 4.1, appendix D and Table 3; T learned beside the true one and the
detection of inliers, Sukhbaatar et al. 2014, Fig. 2c and 4b; scores of right and of wrong labels, after Arazo et al.
2019, Fig. 2.

Each is a function on a `FinishedRun` that gives numbers; `noisebench.figures` draws them, and `analyse` draws all that
apply to a run and hands them to MLflow::

    run = FinishedRun.load("noisebench-runs/runs/het_full-digits-...")
    top_covariances(run)                                    # Table 4
    covariance_ranks(run, FinishedRun.load(".../ce-..."))   # Fig. 2
    accuracy_against(run, "eval_samples", (1, 10, 100))     # at evaluation alone
    transitions(run).learned                                # Sukhbaatar et al., Fig. 2c

All of this looks at the test set. It tells about a run; it is no way to choose a setting, for which there is
``noisebench tune``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from noisebench.config import slugify
from noisebench.errors import UserError
from noisebench.finished import FinishedRun
from noisebench.metrics import score_of
from noisebench.scoring import calibration_error

if TYPE_CHECKING:
    from noisebench.figures.catalogue import Entry

__all__ = [
    "Analyses",
    "Confusions",
    "Detection",
    "FinishedRun",
    "Pair",
    "Point",
    "Transitions",
    "accuracy_against",
    "analyse",
    "confusions",
    "covariance_ranks",
    "mean_covariance",
    "noise_detection",
    "rank_p_value",
    "top_covariances",
    "transitions",
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


class Transitions(NamedTuple):
    """T of the noise and of the method: float64 [K, K], T[i, j] = P(noisy j | true i).

    [2, 2] where an image has several labels; [K + 1, K + 1] under open-set noise. `realised` is counted in the run's
    training split; a class without samples there has NaN.
    """

    asked: NDArray[np.float64]
    realised: NDArray[np.float64]
    learned: NDArray[np.float64]

    @staticmethod
    def error(matrix: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        """The mean absolute difference, over the cells where `truth` is known."""
        return float(np.nanmean(np.abs(matrix - truth)))


class Detection(NamedTuple):
    """How well a method's scores, float64 [N], tell which of its training labels are wrong, bool [N].

    `auc` is the area under the ROC curve, `ece` the expected calibration error in 15 equal-width bins, or None where a
    score is outside [0, 1].
    """

    scores: Tensor
    wrong: Tensor
    auc: float
    ece: float | None


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
    return pairs_of(mean_covariance(run), run.data.classes, count)


def pairs_of(mean: Tensor, classes: Sequence[str], count: int) -> list[Pair]:
    """The `count` pairs with the largest absolute entries of a mean covariance [K, K]."""
    return [Pair(classes[i], classes[j], float(mean[i, j])) for i, j in pairs_at(mean, count)]


def pairs_at(mean: Tensor, count: int) -> list[tuple[int, int]]:
    """Where the `count` largest absolute entries of a mean covariance [K, K] are, above its diagonal."""
    above = torch.triu_indices(len(mean), len(mean), offset=1)
    best = mean[above[0], above[1]].abs()
    best = best.topk(min(count, len(best))).indices
    return [(int(i), int(j)) for i, j in above[:, best].T]


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
    return confusions(run, reference).rank


class Confusions(NamedTuple):
    """Test images that one run gets right and another wrong, and what the covariance of the first says of them.

    at: positions in the test set, int64 [n]; truth, theirs: the true class and the other run's prediction, int64
    [n]; covariance: Sigma[true, theirs], float32 [n]; rank: of its size among those of the true class, int64 [n].
    """

    at: Tensor
    truth: Tensor
    theirs: Tensor
    covariance: Tensor
    rank: Tensor


def confusions(run: FinishedRun, reference: FinishedRun) -> Confusions:
    """What `covariance_ranks` and Table 5 of Collier et al. look at, in the order of the test set.

    Raises:
        UserError: as `covariance_ranks`.
    """
    check_column(run, reference)
    if run.data.multilabel:
        raise UserError(f"{run.config['dataset']}: ranks need one label an image, and it has several")
    truth = run.test_labels
    mine, theirs = (r.predict().argmax(1).cpu() for r in (run, reference))
    chosen = ((mine == truth) & (theirs != truth)).nonzero().flatten()
    if not len(chosen):
        raise UserError(f"no test image that {run.config['label']} gets right and {reference.config['label']} wrong")
    values, ranks = [], []
    for index, matrices in run.covariances(chosen):
        at = index.cpu()
        rows = matrices.cpu()[torch.arange(len(at)), truth[at]]
        values.append(rows.gather(1, theirs[at, None]).flatten())
        sizes = rows.abs()
        sizes.scatter_(1, truth[at, None], -1.0)
        ranks.append(1 + (sizes > values[-1].abs()[:, None]).sum(1))
    return Confusions(chosen, truth[chosen], theirs[chosen], torch.cat(values), torch.cat(ranks))


def check_column(run: FinishedRun, reference: FinishedRun) -> None:
    """Refuse two runs of different columns or seeds."""
    for key in ("dataset", "noise_label", "seed", "noise_sha256"):
        mine, other = run.config[key], reference.config[key]
        if mine != other:
            raise UserError(f"{reference.folder.name}: its {key} is {other}, and that of {run.folder.name} is {mine}")


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


def transitions(run: FinishedRun) -> Transitions:
    """T asked, T realised and T learned (Sukhbaatar et al., Fig. 2c).

    Raises:
        UserError: the method offers no T, the noise keeps none, or they have different shapes.
    """
    estimate = run.method.transition()
    if estimate is None:
        raise UserError(f"{run.config['method']} offers no T (Method.transition)")
    learned, asked = estimate.detach().double().cpu().numpy(), run.noisy.transition
    if learned.shape != asked.shape:
        shapes = f"{list(learned.shape)}, that of the noise {list(asked.shape)}"
        raise UserError(f"{run.config['label']}: the T of the method is {shapes}")
    return Transitions(asked, run.noisy.realised_transition(run.true_labels), learned)


def noise_detection(run: FinishedRun) -> Detection:
    """The method's scores of its training labels against which of them are wrong (Arazo et al., Fig. 2).

    Raises:
        UserError: the method offers no scores, or all labels are right or all wrong.
    """
    scores, wrong = run.noise_scores()
    bad = int(wrong.sum())
    if bad in (0, len(wrong)):
        raise UserError(f"no training label is {'right' if bad else 'wrong'}: there is nothing to tell apart")
    above = float(rankdata(scores.numpy())[wrong.numpy()].sum()) - bad * (bad + 1) / 2
    probable = bool(((scores >= 0) & (scores <= 1)).all())
    ece = calibration_error(scores, wrong) if probable else None
    return Detection(scores, wrong, above / (bad * (len(wrong) - bad)), ece)


# ------------------------------------------------------------------------------------------------ all at once


@dataclass
class Analyses:
    """What `analyse` found.

    Attributes:
        found: by name, what its JSON file holds.
        skipped: by name, why an analysis does not apply.
        files: what was written, PNG, PDF, CSV and JSON.
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
    """All figures that apply to a run and cost little: into its folder's ``analysis/``, and to its MLflow run.

    Args:
        reference: another run of the same data, noise and seed. Figures of two runs are left out without one.
        samples, temperatures: for `accuracy_against` with ``eval_samples`` and ``temperature``.
        count: of `top_covariances`.
    """
    from noisebench.figures import catalogue

    done = Analyses()
    options: dict[str, dict[str, Any]] = {
        "samples": {"values": samples},
        "temperatures": {"values": temperatures},
        "top-covariances": {"count": count},
    }
    for entry in catalogue.ENTRIES:
        given = options.get(entry.name, {})
        least, most = entry.runs
        beside = [reference] if reference is not None and most == 2 else []
        if not entry.cheap or least > 1 + len(beside) or given.get("values") == ():
            continue
        try:
            made = catalogue.of_runs(entry, run, *beside, **given)
            name = file_stem(entry, run, *beside)
            done.files += made.write(run.folder / "analysis" / name)
            done.found[name] = made.as_json()
        except UserError as error:
            done.skipped[entry.file_stem] = str(error)
    done.tracked = track(run, done.files) if done.files else ""
    return done


def file_stem(entry: Entry, *runs: FinishedRun) -> str:
    """What the files of a figure of some runs are called: of further ones it has the labels, and seeds that differ."""
    named = [entry.file_stem]
    for other in runs[1:]:
        seed = other.config["seed"]
        named.append(slugify(other.config["label"]) + (f"-s{seed}" if seed != runs[0].config["seed"] else ""))
    return "_".join(named)


def track(run: FinishedRun, files: Sequence[Path]) -> str:
    """Log the files to the run's MLflow run; what became of it, in one line."""
    from noisebench import tracking
    from noisebench._run_folder import RunFolder

    uri = tracking.store_uri(run.out)
    try:
        began = RunFolder(run.folder).began
    except (KeyError, TypeError, ValueError):
        return f"MLflow: {run.folder.name}/metrics.jsonl is damaged, so its run is not found; the files are complete"
    tags = {"fingerprint": run.config["fingerprint"], "began": str(began)}
    try:
        runs = tracking.log_files(uri, files, "analysis", tags)
    except UserError as error:
        return f"{error}; the files are complete"
    if not runs:
        return "MLflow has no run of this folder (only boards are sent there); the files are complete"
    return f"MLflow: logged as analysis/ of {'its run' if runs == 1 else f'{runs} runs, one a board'}"
