"""Do the mean ranks of a board tell methods apart? Friedman's test and Nemenyi's, after Demšar, JMLR 7, 2006."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noisebench.metrics import METRICS
from noisebench.table import Table
from noisebench.table_cells import ALPHA

if TYPE_CHECKING:
    import pandas as pd

FEW_COLUMNS = 10
"""Below so many blocks the distribution that Friedman's test assumes is a rough one (Demšar 2006, section 3.2.2)."""


@dataclass(frozen=True)
class Separation:
    """What the columns, as blocks, say of the mean ranks.

    Attributes:
        ranks: mean rank of each method that is ranked.
        columns: how many blocks.
        friedman_p: p of Friedman's test; NaN where all methods tie everywhere.
        critical: the difference of mean ranks from which Nemenyi's test tells two methods apart.
        p_values: Nemenyi's, methods by methods; all 1 where Friedman's test does not reject.
        pairs: how many pairs it tells apart.
    """

    ranks: dict[str, float]
    columns: int
    friedman_p: float
    critical: float
    p_values: pd.DataFrame
    pairs: int

    @property
    def notes(self) -> list[str]:
        """The caption: the test by name, and what it can and cannot say."""
        k, n = len(self.ranks), self.columns
        said = "is not defined (all tie)" if math.isnan(self.friedman_p) else f"gives p = {self.friedman_p:.2g}"
        lines = [
            f"Friedman's test over {n} columns as blocks and {k} methods {said}; Nemenyi's test: mean ranks that "
            f"differ by less than {self.critical:.2f} are not told apart at {ALPHA}, and a bar joins them "
            "(Demšar 2006)."
        ]
        if self.critical >= k - 1:
            needed = math.floor(n * (self.critical / (k - 1)) ** 2) + 1
            lines.append(
                f"With {n} columns this test cannot tell any two of {k} methods apart, whatever the numbers: mean "
                f"ranks differ by {k - 1} at most. It would take {needed} columns or more."
            )
        elif not self.friedman_p < ALPHA:
            lines.append("Friedman's test does not reject that all methods are alike, so no pair is tested.")
        elif not self.pairs:
            lines.append("No two methods are told apart.")
        if n < FEW_COLUMNS:
            lines.append(f"Under about {FEW_COLUMNS} columns the p-value is a rough one.")
        lines.append(
            "The test takes columns as independent; those of one dataset share its images, so that it says more than "
            "it should."
        )
        return lines


def separation(table: Table) -> Separation | str:
    """The tests of the mean ranks, or in words why there are none."""
    ranked = {method: rank for method, rank in table.ranks.items() if rank is not None}
    kinds = {column: table.ranking_of(column) for column in table.columns}
    blocks = [c for c in table.columns if ranked and all(table.cells[m, c, kinds[c]].complete for m in ranked)]
    if len(ranked) < 3:
        return (
            "No critical-difference diagram: Friedman's test compares 3 or more methods that are complete in all "
            f"columns, and {_are(len(ranked))}."
        )
    if len(blocks) < 2:
        return (
            "No critical-difference diagram: it compares mean ranks over columns, and there is one column. The table's "
            "marks are tests over its seeds."
        )
    import numpy as np
    import pandas as pd
    from scipy.stats import friedmanchisquare, studentized_range

    sign = -1.0 if METRICS[table.ranking.metric].higher_is_better else 1.0
    numbers = pd.DataFrame([[sign * (table.cells[m, c, kinds[c]].mean or 0.0) for m in ranked] for c in blocks])
    k, n = len(ranked), len(blocks)
    tied = bool((numbers.nunique(axis=1) == 1).all())
    p = math.nan if tied else float(friedmanchisquare(*(numbers[i] for i in numbers)).pvalue)
    q = float(studentized_range.ppf(1 - ALPHA, k, np.inf)) / math.sqrt(2)
    names = list(ranked)
    p_values = pd.DataFrame(np.ones((k, k)), index=names, columns=names)
    if p < ALPHA:
        from scikit_posthocs import posthoc_nemenyi_friedman

        p_values.loc[:, :] = np.asarray(posthoc_nemenyi_friedman(numbers), dtype=float)
    pairs = int((p_values.to_numpy() < ALPHA).sum()) // 2
    return Separation(ranked, n, p, q * math.sqrt(k * (k + 1) / (6 * n)), p_values, pairs)


def _are(count: int) -> str:
    return "there is none here" if count == 0 else f"here {'is' if count == 1 else 'are'} {count}"
