"""The statistics, checked against formulas written out a second way, by brute force and by their invariances."""

from __future__ import annotations

import gc
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from noisebench.statistics import Comparison, compare_with_best, mean_ranks, mean_sd

pytestmark = pytest.mark.filterwarnings("error")

# Multiples of 1/64 keep sums and differences exact, so that invariances hold to the bit, ties included.
exact = st.integers(-6400, 6400).map(lambda k: k / 64)
columns = st.dictionaries(st.sampled_from("abcdef"), st.lists(exact, min_size=1, max_size=5), min_size=1)


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections() -> Iterator[None]:
    """multipletests collects garbage at every call, which takes 50 ms a call once SciPy is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-tailed p by t, the Welch-Satterthwaite df and the incomplete beta function."""
    (mean_a, var_a), (mean_b, var_b) = ((sum(x) / len(x), variance(x)) for x in (a, b))
    se_a, se_b = var_a / len(a), var_b / len(b)
    t = (mean_a - mean_b) / math.sqrt(se_a + se_b)
    df = (se_a + se_b) ** 2 / (se_a**2 / (len(a) - 1) + se_b**2 / (len(b) - 1))
    return float(betainc(df / 2, 0.5, df / (df + t * t)))


def variance(x: Sequence[float]) -> float:
    return sum((v - sum(x) / len(x)) ** 2 for v in x) / (len(x) - 1)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of i: the largest of (m - rank of j) p_j over all j up to i in increasing order, at most 1."""
    m = len(p)
    order = sorted(range(m), key=lambda i: p[i])
    place = {i: k for k, i in enumerate(order)}
    return [min(1.0, max((m - place[j]) * p[j] for j in order[: place[i] + 1])) for i in range(m)]


def test_mean_and_sd_by_hand() -> None:
    mean, sd = mean_sd([0.90, 0.92, 0.97])
    assert mean == pytest.approx(0.93)
    assert sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([0.1] * 7) == (0.1, 0.0)
    with pytest.raises(ValueError, match="empty"):
        mean_sd([])


def test_a_value_that_is_not_finite_is_never_averaged_away() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        mean, sd = mean_sd([1.0, bad, 2.0])
        assert math.isnan(mean)
        assert sd is not None
        assert math.isnan(sd)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.randoms())
def test_mean_and_sd_agree_with_exact_fractions_in_any_order(values: list[float], random: object) -> None:
    exact_values = [Fraction(v) for v in values]
    mean = sum(exact_values) / len(values)
    var = sum((v - mean) ** 2 for v in exact_values) / (len(values) - 1)
    assert mean_sd(values) == pytest.approx((float(mean), math.sqrt(var)), rel=1e-6, abs=1e-9)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_sd(shuffled) == mean_sd(values)


def test_against_the_formulas_written_out() -> None:
    groups = {
        "elr": [0.9120, 0.9133, 0.9108, 0.9127, 0.9119],
        "gce": [0.9071, 0.9102, 0.9066, 0.9123],
        "ce": [0.8321, 0.8290, 0.8377],
        "mixup": [0.9105, 0.9125],
    }
    results = compare_with_best(groups)
    assert results["elr"] == Comparison(best=True)
    others = ["gce", "ce", "mixup"]
    expected = [welch(groups[name], groups["elr"]) for name in others]
    for name, p, p_holm in zip(others, expected, holm(expected), strict=True):
        assert results[name].p == pytest.approx(p, rel=1e-10)
        assert results[name].p_holm == pytest.approx(p_holm, rel=1e-10)
        assert results[name].significant == (p_holm < 0.05)
    assert results["ce"].significant
    assert not results["mixup"].significant


def test_holm_changes_a_verdict() -> None:
    """Two tests at p = 0.03 are each significant alone, not together."""
    best = [1.0, 2.0, 3.0, 4.0]
    other = [-1.5, -0.5, 0.5, 1.5]
    alone = compare_with_best({"best": best, "a": other})["a"]
    both = compare_with_best({"best": best, "a": other, "b": other})["a"]
    assert alone.p == both.p
    assert alone.p is not None
    assert 0.025 < alone.p < 0.05
    assert alone.significant
    assert not both.significant
    assert both.p_holm == pytest.approx(2 * alone.p)


def test_alpha_and_direction() -> None:
    nll = {"a": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.43]}
    results = compare_with_best(nll, higher_is_better=False)
    assert results["a"].best
    assert results["b"].significant
    assert not compare_with_best(nll, higher_is_better=False, alpha=1e-6)["b"].significant
    assert compare_with_best(nll)["b"].best


def test_degenerate_groups_are_defined() -> None:
    one_value = compare_with_best({"best": [0.9, 0.91, 0.92], "single": [0.5], "gone": [], "nan": [math.nan, 0.99]})
    assert one_value == {"best": Comparison(best=True)} | dict.fromkeys(("single", "gone", "nan"), Comparison())
    assert compare_with_best({"best": [0.9], "a": [0.5, 0.6]})["a"] == Comparison()
    assert compare_with_best({"best": [0.9, 0.9], "a": [0.5, 0.5]})["a"] == Comparison(0.0, 0.0, True)
    assert compare_with_best({"a": [0.1] * 3, "b": [0.1] * 7}) == dict.fromkeys("ab", Comparison(best=True))
    assert compare_with_best({"nan": [math.nan]}) == {"nan": Comparison()}
    assert compare_with_best({}) == {}


def test_one_group_without_spread_is_a_one_sample_test() -> None:
    results = compare_with_best({"best": [0.9, 0.9, 0.9], "a": [0.5, 0.6, 0.8]})
    t = (0.9 - 1.9 / 3) / math.sqrt(variance([0.5, 0.6, 0.8]) / 3)
    assert results["a"].p == pytest.approx(betainc(1.0, 0.5, 2 / (2 + t * t)))


def test_a_tie_for_best_is_settled_by_the_values_alone() -> None:
    groups = {"wide": [0.8, 1.0], "narrow": [0.875, 0.925], "more": [0.8, 0.9, 1.0], "other": [0.7, 0.71, 0.72]}
    for order in itertools.permutations(groups):
        results = compare_with_best({name: groups[name] for name in order})
        assert {name for name in groups if results[name].best} == {"wide", "narrow", "more"}
        assert results["other"].p == pytest.approx(welch(groups["other"], groups["more"]))
    del groups["more"]
    assert compare_with_best(groups)["other"].p == pytest.approx(welch(groups["other"], groups["narrow"]))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-9, 1.0, 1e9, 1e160, 1e300])
def test_hardly_any_spread_and_extreme_sizes_raise_no_warning(scale: float) -> None:
    groups = {"best": [3 * scale, 3 * scale, 3.0000001 * scale], "a": [scale, scale, scale], "b": [scale, 2 * scale]}
    results = compare_with_best(groups)
    assert results["best"].best
    assert results["a"].significant
    assert results["b"].p == pytest.approx(welch([1.0, 2.0], [3.0, 3.0, 3.0000001]), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(columns, exact, st.sampled_from([0.25, 1.0, 8.0]), st.booleans())
def test_shift_scale_sign_and_order_change_no_verdict(
    groups: dict[str, list[float]], shift: float, scale: float, higher: bool
) -> None:
    results = compare_with_best(groups, higher)
    moved = {name: [v * scale + shift for v in reversed(groups[name])] for name in sorted(groups, reverse=True)}
    flipped = {name: [-v for v in values] for name, values in groups.items()}
    for again in (compare_with_best(moved, higher), compare_with_best(flipped, not higher)):
        for name, result in results.items():
            assert again[name].best == result.best
            assert (again[name].p is None) == (result.p is None)
            assert (again[name].p or 0.0) == pytest.approx(result.p or 0.0, rel=1e-6, abs=1e-12)
            assert (again[name].p_holm or 0.0) == pytest.approx(result.p_holm or 0.0, rel=1e-6, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(columns)
def test_every_verdict_is_sound(groups: dict[str, list[float]]) -> None:
    results = compare_with_best(groups)
    assert list(results) == list(groups)
    assert any(result.best for result in results.values())
    tested = [result for result in results.values() if result.p is not None]
    assert [result.p_holm for result in tested] == pytest.approx(holm([result.p or 0.0 for result in tested]))
    for result in results.values():
        assert result.significant == (result.p_holm is not None and result.p_holm < 0.05)
        assert not (result.best and result.p is not None)


def test_mean_ranks_by_hand() -> None:
    table = {"10%": {"a": 0.9, "b": 0.9, "c": 0.7}, "20%": {"a": 0.8, "b": 0.6, "c": 0.7}}
    assert mean_ranks(table) == {"a": 1.25, "b": 2.25, "c": 2.5}
    assert mean_ranks(table, higher_is_better=False) == {"a": 2.75, "b": 1.75, "c": 1.5}


def test_an_incomplete_method_is_not_ranked_and_changes_nobodys_columns() -> None:
    table: dict[str, dict[str, float | None]]
    table = {"10%": {"a": 0.9, "b": 0.8, "c": 0.99}, "20%": {"a": 0.5, "b": 0.6, "c": None}, "30%": {"a": math.nan}}
    assert mean_ranks(table) == {"a": 1.5, "b": 1.5, "c": None}
    assert mean_ranks({"10%": {"a": None}, "20%": {"a": math.inf}}) == {"a": None}
    assert mean_ranks({}) == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(exact, min_size=3, max_size=3), min_size=1, max_size=4), st.permutations("abc"))
def test_mean_ranks_by_counting_who_is_better(rows: list[list[float]], names: list[str]) -> None:
    """A rank is 1 + the number of better methods + half the number of the equal others."""
    table = {str(i): dict(zip(names, row, strict=True)) for i, row in enumerate(rows)}
    for j, name in enumerate(names):
        counted = [sum(v > row[j] for v in row) + (sum(v == row[j] for v in row) + 1) / 2 for row in rows]
        assert mean_ranks(table)[name] == pytest.approx(sum(counted) / len(rows))


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'mlflow', 'scipy', 'statsmodels', 'pandas', 'numpy'}"
    code = f"import sys, noisebench.statistics; sys.exit(str({heavy} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
