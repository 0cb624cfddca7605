"""Figures of one run, or of two, whose numbers are `noisebench.analysis`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from noisebench import _analysis_figures, _analysis_noise_figures, analysis
from noisebench.figures._shared import numbers
from noisebench.finding import Finding, drawn

if TYPE_CHECKING:
    from noisebench.finished import FinishedRun


@drawn
def learned_transition(run: FinishedRun) -> Finding:
    """T asked, realised and learned as heat maps (Sukhbaatar et al. 2014, Fig. 2c); see `analysis.transitions`.

    Returns:
        Mean absolute errors of the learned T and of the identity; the facts have the matrices of up to 100 classes.
    """
    return _analysis_noise_figures.transitions(run, analysis.transitions(run))


@drawn
def inlier_detection(run: FinishedRun, reference: FinishedRun | None = None) -> Finding:
    """Precision and recall of telling test images from outliers (Sukhbaatar et al. 2014, Fig. 4b).

    Args:
        run: under open-set noise.
        reference: another of the same data, noise and seed, drawn beside it.

    Returns:
        A row a run: areas under its curves, precision at three recalls; the facts have the curves.

    Raises:
        UserError: the noise is not open-set, or the runs are of different columns or seeds.
    """
    curves = [(run, *run.inlier_curve())]
    if reference is not None:
        analysis.check_column(run, reference)
        curves.append((reference, *reference.inlier_curve()))
    return _analysis_noise_figures.inliers(run, curves)


@drawn
def noise_scores(run: FinishedRun) -> Finding:
    """Scores of right and of wrong training labels and their calibration; see `analysis.noise_detection`."""
    return _analysis_noise_figures.scores(run, analysis.noise_detection(run))


@drawn
def samples(run: FinishedRun, *, values: Sequence[int] = analysis.SAMPLES) -> Finding:
    """Test score and NLL against ``eval_samples``, changed at evaluation alone; see `analysis.accuracy_against`.

    That is one half of Collier et al. 2021, Table 9; `samples_of_rows` of a board has both.
    """
    points = analysis.accuracy_against(run, "eval_samples", numbers("values", values, int))
    return _analysis_figures.against(run, "eval_samples", points)


@drawn
def temperatures(run: FinishedRun, *, values: Sequence[float] = analysis.TEMPERATURES) -> Finding:
    """Test score and NLL against ``temperature``, changed at evaluation alone; see `analysis.accuracy_against`."""
    points = analysis.accuracy_against(run, "temperature", numbers("values", values, float))
    return _analysis_figures.against(run, "temperature", points)
