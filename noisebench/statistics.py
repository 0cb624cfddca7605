"""The statistics of a leaderboard: mean and sd over seeds, tests against the best of a column, mean ranks.

Plain numbers in, plain numbers out. SciPy is imported only when a test or a rank is computed, so
that the command line can import this module for free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """One group of a column against the best group of that column.

    Attributes:
        p: two-tailed p-value of Welch's t-test; None for the best itself, and where no test is possible.
        p_holm: `p` after Holm's correction over the column; None where `p` is.
        significant: `p_holm` is below alpha. False where there was no test.
        best: the group has the best mean of the column (alone or in a tie).
    """

    p: float | None = None
    p_holm: float | None = None
    significant: bool = False
    best: bool = False


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof=1) of `values`; the sd of a single value is None.

    Both are the same to the last bit in whatever order the values come, and equal values give exactly that value and
    0.0. A value that is not finite makes the mean NaN, and the sd too.

    Raises:
        ValueError: `values` is empty.
    """
    n = len(values)
    if n == 0:
        raise ValueError("values: empty; a mean needs at least one value")
    if not all(map(math.isfinite, values)):
        return math.nan, None if n == 1 else math.nan
    # Rounding must not turn equal values into an sd of 1e-17, which a t-test would then divide by.
    if min(values) == max(values):
        return float(values[0]), None if n == 1 else 0.0
    mean = math.fsum(values) / n
    # hypot neither overflows nor underflows; sorted, because its last bit may depend on the order.
    return mean, math.hypot(*sorted(value - mean for value in values)) / math.sqrt(n - 1)


def compare_with_best(
    groups: Mapping[str, Sequence[float]], higher_is_better: bool = True, alpha: float = 0.05
) -> dict[str, Comparison]:
    """Test every group of a column against the group with the best mean.

    The test is the unpaired two-tailed t-test without the assumption of equal variances (Welch 1947), corrected over
    the tests of the column by Holm's step-down method (Holm 1979). Degenerate input is defined:

    - a group of one value, or a best of one value: no test (p None);
    - two groups without any spread: p is 1.0 for equal means, else 0.0;
    - a tie for the best mean: every tied group is best and has no p; the others are tested against the tied group
      with most values, then least spread, so that names and their order never decide;
    - a group that is empty or holds a value that is not finite: neither tested nor best.

    Args:
        groups: name -> one value a seed.
        higher_is_better: whether the best mean is the highest (accuracy) or the lowest (nll).
        alpha: a corrected p-value below it is significant.

    Returns:
        name -> `Comparison`, in the order of `groups`.
    """
    usable = {name: values for name, values in groups.items() if len(values) > 0 and all(map(math.isfinite, values))}
    results = dict.fromkeys(groups, Comparison())
    if not usable:
        return results
    moments = {name: mean_sd(values) for name, values in usable.items()}
    top = (max if higher_is_better else min)(mean for mean, _ in moments.values())
    tied = [name for name in usable if moments[name][0] == top]
    reference = min(tied, key=lambda name: (-len(usable[name]), moments[name][1] or 0.0))
    p_values: dict[str, float] = {}
    for name in usable:
        if name in tied:
            results[name] = Comparison(best=True)
        elif len(usable[name]) > 1 and len(usable[reference]) > 1:
            p_values[name] = _welch(usable[name], usable[reference])
    for name, p_holm in _holm(p_values).items():
        results[name] = Comparison(p_values[name], p_holm, p_holm < alpha)
    return results


def mean_ranks(
    table: Mapping[str, Mapping[str, float | None]], higher_is_better: bool = True
) -> dict[str, float | None]:
    """Mean rank of every method over the columns of a board; 1 is best, ties share their average rank.

    Ranks are comparable only when they come from the same columns and the same competitors. So a column in which no
    method has a number is left out, and a method that lacks a number in any remaining column is not ranked (None);
    all others are ranked among themselves in all of these columns. One method's failure therefore never drops a
    column for the others, and never improves its own rank.

    Args:
        table: column -> method -> mean. A method that is absent, None or not finite has no number there.
        higher_is_better: whether the highest mean of a column gets rank 1.

    Returns:
        method -> mean rank or None, methods in order of first appearance.
    """
    methods = list(dict.fromkeys(name for column in table.values() for name in column))
    numbers = [
        {name: mean for name, mean in column.items() if mean is not None and math.isfinite(mean)}
        for column in table.values()
    ]
    numbers = [column for column in numbers if column]
    ranked = [name for name in methods if numbers and all(name in column for column in numbers)]
    if not ranked:
        return dict.fromkeys(methods)

    from scipy.stats import rankdata

    sign = -1.0 if higher_is_better else 1.0
    ranks = rankdata([[sign * column[name] for name in ranked] for column in numbers], axis=1).mean(axis=0)
    return dict.fromkeys(methods) | dict(zip(ranked, map(float, ranks), strict=True))


def _welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-tailed p-value of Welch's t-test of two groups of at least two finite values each."""
    (mean_a, sd_a), (mean_b, sd_b) = mean_sd(a), mean_sd(b)
    spread = max(sd_a or 0.0, sd_b or 0.0)
    if spread == 0.0:
        return 1.0 if mean_a == mean_b else 0.0

    from scipy.stats import ttest_ind_from_stats

    # ttest_ind itself warns of cancellation where values hardly differ; the same test from the moments, which mean_sd
    # computes without cancelling, does not. Scaled to unit spread, squares neither overflow nor underflow.
    difference = max(-1e150, min(1e150, (mean_a - mean_b) / spread))
    moments_a, moments_b = (difference, (sd_a or 0.0) / spread, len(a)), (0.0, (sd_b or 0.0) / spread, len(b))
    return float(ttest_ind_from_stats(*moments_a, *moments_b, equal_var=False).pvalue)


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p-values, by name (Holm 1979).

    Not statsmodels': importing it takes a second, and each of its calls has the garbage collector go through the heap.
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, p * (len(p_values) - place)))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}
