"""The figures by name: what each shows, which paper's it is, what it takes. Data alone; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from noisebench.errors import UserError, unknown

if TYPE_CHECKING:
    from noisebench.finding import Finding
    from noisebench.finished import FinishedRun
    from noisebench.table import Table

ARAZO, COLLIER, SUKHBAATAR = "Arazo et al. 2019", "Collier et al. 2021", "Sukhbaatar et al. 2014"
COUNTS = {
    (0, 1): "nothing, or a run",
    (1, 1): "a run",
    (1, 2): "a run, and another beside it (--against)",
    (2, 2): "a run and another (--against)",
    (1, None): "one or several runs",
}


class Entry(NamedTuple):
    """A figure.

    Attributes:
        name: what users write; shows: what it shows, in a line; paper: whose figure or table it is.
        aliases: other names of it: the paper's.
        of_runs: the function of `noisebench.figures` that makes it of runs, "" where it is not made of them.
        runs: how many it takes, at least and at most; None: any number.
        of_board: the function that makes it of a board's table, "" where it is not.
        settings: whether that function is told the settings of the board's rows.
        options: keyword arguments of the function, with what each is.
        stem: what its files are called; the name by default.
        cheap: whether ``noisebench analyse`` makes it.
    """

    name: str
    shows: str
    paper: str
    aliases: tuple[str, ...] = ()
    of_runs: str = ""
    runs: tuple[int, int | None] = (1, 1)
    of_board: str = ""
    settings: bool = False
    options: Mapping[str, str] = MappingProxyType({})
    stem: str = ""
    cheap: bool = False

    @property
    def takes(self) -> str:
        """What it takes, e.g. ``a run or a board``."""
        return " or ".join([COUNTS[self.runs]] * bool(self.of_runs) + ["a board"] * bool(self.of_board))

    @property
    def file_stem(self) -> str:
        """What its files are called."""
        return self.stem or self.name.replace("-", "_")


ENTRIES = (
    Entry(
        "loss-curves",
        "losses of rightly and of wrongly labelled training images over the epochs: medians and quartiles",
        f"{ARAZO}, Fig. 1",
        ("arazo2019-fig1",),
        "loss_curves",
        (1, None),
        cheap=True,
    ),
    Entry(
        "loss-histogram",
        "losses of right and of wrong labels with the fitted beta and Gaussian mixtures",
        f"{ARAZO}, Fig. 2",
        ("arazo2019-fig2",),
        "loss_histogram",
        options={"bins": "bars of the histogram"},
        cheap=True,
    ),
    Entry(
        "features",
        "UMAP of the features before the head, training and test images by their true class; needs noisebench[umap]",
        f"{ARAZO}, Fig. 3",
        ("arazo2019-fig3", "umap"),
        "features",
        (1, None),
        options={
            "most": "at most so many images of each part",
            "neighbours": "UMAP's n_neighbors",
            "epochs": "UMAP's n_epochs",
            "seed": "of the choice of images and of UMAP",
        },
    ),
    Entry(
        "error-by-size",
        "test error against the number of training images, a line a method with its sd",
        f"{SUKHBAATAR}, Fig. 2a",
        ("sukhbaatar2014-fig2a",),
        of_board="error_by_size",
    ),
    Entry(
        "error-by-noise",
        "test error against the noise level, a line a method with its sd",
        f"{SUKHBAATAR}, Fig. 2b",
        ("sukhbaatar2014-fig2b",),
        of_board="error_by_noise",
    ),
    Entry(
        "learned-transition",
        "T as asked, as realised and as learned",
        f"{SUKHBAATAR}, Fig. 2c",
        ("sukhbaatar2014-fig2c",),
        "learned_transition",
        cheap=True,
    ),
    Entry(
        "grid",
        "test error by noise level and number of training images, a heat map a method",
        f"{SUKHBAATAR}, Fig. 3",
        ("sukhbaatar2014-fig3",),
        of_board="grid",
    ),
    Entry(
        "outlier-error",
        "test error against the share of outliers in the training set, a line a method with its sd",
        f"{SUKHBAATAR}, Fig. 4a and 4c",
        ("sukhbaatar2014-fig4a", "sukhbaatar2014-fig4c"),
        of_board="outlier_error",
    ),
    Entry(
        "inlier-detection",
        "precision and recall of telling test images from outliers",
        f"{SUKHBAATAR}, Fig. 4b",
        ("sukhbaatar2014-fig4b",),
        "inlier_detection",
        (1, 2),
        cheap=True,
    ),
    Entry(
        "noise-scores",
        "scores of right and of wrong training labels, and how well they are calibrated",
        f"after {ARAZO}, Fig. 2",
        (),
        "noise_scores",
        cheap=True,
    ),
    Entry(
        "covariance-ranks",
        "where mistakes that only the other run makes stand among the covariances of the true class",
        f"{COLLIER}, Fig. 2",
        ("collier2021-fig2",),
        "covariance_ranks",
        (2, 2),
        cheap=True,
    ),
    Entry(
        "taylor",
        "coefficients of the covariance in the log-likelihood to second order; of a run, where its predictions lie",
        f"{COLLIER}, Fig. 3 and 4",
        ("collier2021-fig3", "collier2021-fig4"),
        "taylor",
        (0, 1),
        cheap=True,
    ),
    Entry(
        "top-covariances",
        "pairs of classes whose noise goes together, with an image of each",
        f"{COLLIER}, Table 4",
        ("collier2021-table4",),
        "top_covariances",
        options={"count": "so many pairs"},
        cheap=True,
    ),
    Entry(
        "examples",
        "test images that only the other run gets wrong, as the largest covariance has it",
        f"{COLLIER}, Table 5",
        ("collier2021-table5",),
        "examples",
        (2, 2),
        options={"count": "so many images"},
        cheap=True,
    ),
    Entry(
        "samples",
        "test score against Monte-Carlo samples: of rows of a board, or of one run at evaluation alone",
        f"{COLLIER}, Table 9",
        ("collier2021-table9",),
        "samples",
        of_board="samples_of_rows",
        settings=True,
        options={"values": "numbers of samples, of a run alone, e.g. [1, 10, 100]"},
        stem="accuracy_eval_samples",
        cheap=True,
    ),
    Entry(
        "temperatures",
        "test score against the temperature, changed at evaluation alone",
        f"after {COLLIER}, Table 3",
        (),
        "temperatures",
        options={"values": "temperatures, e.g. [0.3, 1, 3]"},
        stem="accuracy_temperature",
        cheap=True,
    ),
)
NAMES = {name: entry for entry in ENTRIES for name in (entry.name, *entry.aliases)}


def find(name: str) -> Entry:
    """The figure of that name or alias.

    Raises:
        UserError: there is none; with the nearest names.
    """
    if name not in NAMES:
        near = unknown("figure", name, NAMES)
        if "known:" in str(near):  # two dozen names and aliases are no hint
            raise UserError(f"figure '{name}' is unknown; known: {', '.join(entry.name for entry in ENTRIES)}")
        raise near
    return NAMES[name]


def of_runs(entry: Entry, *runs: FinishedRun, **options: Any) -> Finding:
    """The figure of some runs, with what they are among its facts.

    Raises:
        UserError: not made of so many runs, an option that it does not have, or as its function does.
    """
    from noisebench import figures

    least, most = entry.runs
    if not entry.of_runs or len(runs) < least or (most is not None and len(runs) > most):
        given = f"{len(runs)} run{'s' * (len(runs) != 1)}"
        raise UserError(f"figure {entry.name} takes {entry.takes}; {given} {'was' if len(runs) == 1 else 'were'} given")
    check_options(entry, options)
    made: Finding = getattr(figures, entry.of_runs)(*runs, **options)
    told = [about(run) for run in runs]
    more = {"runs": told} if len(told) > 1 else {}
    made.facts = {"figure": entry.name, "paper": entry.paper, **(told[0] if told else {}), **more, **made.facts}
    return made


def of_board(entry: Entry, table: Table, settings: Mapping[str, Mapping[str, Any]], **options: Any) -> Finding:
    """The figure of a board's table.

    Args:
        settings: row -> its settings, defaults included.

    Raises:
        UserError: not made of a board, an option that it does not have, or as its function does.
    """
    from noisebench import figures

    if not entry.of_board:
        raise UserError(f"figure {entry.name} takes {entry.takes}; a board was given")
    check_options(entry, options)
    if entry.of_runs and options:
        raise UserError(f"--option {next(iter(options))}: figure {entry.name} has it for a run, not for a board")
    more = {"settings": settings} if entry.settings else {}
    made: Finding = getattr(figures, entry.of_board)(table, **more, **options)
    made.facts = {"figure": entry.name, "paper": entry.paper, "board": table.title, **made.facts}
    return made


def check_options(entry: Entry, options: Mapping[str, Any]) -> None:
    """Refuse an option that a figure does not have."""
    for key in options:
        if key not in entry.options:
            if not entry.options:
                raise UserError(f"--option {key}: figure {entry.name} has no options")
            raise unknown(f"--option: figure {entry.name}: option", key, entry.options)


def about(run: FinishedRun) -> dict[str, Any]:
    """What a run is, for the facts of a figure."""
    keys = ("fingerprint", "method", "label", "dataset", "noise_label", "seed")
    return {**{key: run.config[key] for key in keys}, "weights_sha256": run.result["weights_sha256"]}
