"""The figures of the papers, each a function of finished runs or of a board's `Table`; `noisebench figure` makes them.

    from noisebench import figures
    from noisebench.finished import FinishedRun

    run = FinishedRun.load("noisebench-runs/runs/het_full-digits-...")
    made = figures.top_covariances(run)      # a notebook shows it
    made.figure, made.to_pandas()            # matplotlib's figure, and its numbers
    made.write(Path("pairs"))                # pairs.png, .pdf, .csv, .json

Of finished runs: `loss_curves`, `loss_histogram`, `features`, `learned_transition`, `inlier_detection`,
`noise_scores`, `top_covariances`, `covariance_ranks`, `examples`, `taylor`, `samples`, `temperatures`. Of a board:
`error_by_size`, `error_by_noise`, `grid`, `outlier_error`, `samples_of_rows`. `catalogue` has their names, and which
figure of which paper each is. All are `noisebench.finding.Finding`s; what cannot be drawn is a `UserError`.

Nothing heavy is imported before a function is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisebench.figures._boards import error_by_noise, error_by_size, outlier_error, samples_of_rows
    from noisebench.figures._covariances import covariance_ranks, examples, top_covariances
    from noisebench.figures._features import features
    from noisebench.figures._losses import loss_curves, loss_histogram
    from noisebench.figures._runs import inlier_detection, learned_transition, noise_scores, samples, temperatures
    from noisebench.figures._taylor import taylor
    from noisebench.grid_figure import grid

_HOMES = {
    "noisebench.figures._boards": ("error_by_noise", "error_by_size", "outlier_error", "samples_of_rows"),
    "noisebench.figures._covariances": ("covariance_ranks", "examples", "top_covariances"),
    "noisebench.figures._features": ("features",),
    "noisebench.figures._losses": ("loss_curves", "loss_histogram"),
    "noisebench.figures._runs": ("inlier_detection", "learned_transition", "noise_scores", "samples", "temperatures"),
    "noisebench.figures._taylor": ("taylor",),
    "noisebench.grid_figure": ("grid",),
}
__all__ = [
    "covariance_ranks",
    "error_by_noise",
    "error_by_size",
    "examples",
    "features",
    "grid",
    "inlier_detection",
    "learned_transition",
    "loss_curves",
    "loss_histogram",
    "noise_scores",
    "outlier_error",
    "samples",
    "samples_of_rows",
    "taylor",
    "temperatures",
    "top_covariances",
]


def __getattr__(name: str) -> Any:
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'noisebench.figures' has no attribute '{name}'")
