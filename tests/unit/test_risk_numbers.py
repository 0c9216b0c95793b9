"""VaR, ES, volatility, beta and the rest against independent formulas, two reference libraries and simulated truth."""

from __future__ import annotations

import json
from functools import lru_cache
from math import erfc, log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.risk.numbers.motion import beta, concentration, volatility
from mcp_servers.risk.numbers.tails import (
    AGE_DECAY,
    WARM_UP,
    Column,
    Method,
    ewma_variances,
    needed,
    normal_quantile,
    normal_tail,
    tails,
    weighted_tail,
)

DATA = Path(__file__).parents[1] / "data" / "risk_numbers" / "expected.json"
CONFIDENCES = (0.95, 0.99)


@lru_cache(maxsize=1)
def expected() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def returns() -> Column:
    return np.asarray(expected()["returns"])


# -- the reference libraries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_historical_var_and_es_are_those_of_empyrical(confidence: float) -> None:
    profits, theirs = returns(), expected()[f"historical_{confidence}"]
    (found,) = tails(profits, (confidence,), methods=(Method.HISTORICAL,))
    assert found.var == pytest.approx(theirs["var"], rel=1e-12)
    # They take the mean of whole observations; ours takes of the last one only what lies in the tail.
    tail = len(profits) * (1 - confidence)
    whole = theirs["mean_of_worst"] * theirs["worst"]
    assert found.es == pytest.approx((whole - (theirs["worst"] - tail) * theirs["var"]) / tail, rel=1e-12)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_ewma_and_filtered_figures_are_those_of_arch(confidence: float) -> None:
    profits = returns()
    assert sqrt(ewma_variances(profits)[-1]) == pytest.approx(expected()["ewma_deviation"], rel=1e-9)
    normal, filtered = tails(profits, (confidence,), methods=(Method.EWMA, Method.FILTERED))
    assert normal.var == pytest.approx(expected()[f"ewma_{confidence}"]["var"], rel=1e-9)
    # Their variance starts from another guess; its trace is still there in the first residuals.
    assert filtered.var == pytest.approx(expected()[f"filtered_{confidence}"], rel=0.01)
    assert filtered.n == len(profits) - WARM_UP


def test_volatility_and_beta_are_those_of_empyrical() -> None:
    assert volatility(returns(), 24) == pytest.approx(expected()["annual_volatility"], rel=1e-12)
    found = beta(returns(), np.asarray(expected()["market"]))
    assert found is not None
    assert found.value == pytest.approx(expected()["beta"], rel=1e-9)


# -- independent formulas ----------------------------------------------------------------------------------------------


@given(st.floats(0.0001, 0.9999))
def test_normal_quantile_is_that_of_the_standard_library(probability: float) -> None:
    assert normal_quantile(probability) == pytest.approx(NormalDist().inv_cdf(probability), abs=1e-9)


def test_normal_es_is_the_mean_beyond_the_var() -> None:
    var, es = normal_tail(2.0, 0.99)
    grid = (np.arange(200_000) + 0.5) / 200_000
    beyond = [2.0 * NormalDist().inv_cdf(0.99 + 0.01 * float(p)) for p in grid[::50]]
    assert var == pytest.approx(2.0 * NormalDist().inv_cdf(0.99))
    assert es == pytest.approx(float(np.mean(beyond)), rel=1e-3)


def test_ewma_variance_is_its_recursion_over_any_number_of_blocks() -> None:
    profits = np.random.default_rng(1).normal(0, 3, 3_217)
    level = float(np.mean(profits[:WARM_UP] ** 2))
    slow = [level]
    for profit in profits:
        level = 0.94 * level + 0.06 * profit**2
        slow.append(level)
    np.testing.assert_allclose(ewma_variances(profits), slow, rtol=1e-10)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
    st.sampled_from([0.9, 0.95, 0.975, 0.99]),
    st.booleans(),
)
def test_var_and_es_solve_their_definitions(profits: list[float], confidence: float, aged: bool) -> None:
    losses = -np.asarray(profits)
    weights = AGE_DECAY ** np.arange(len(losses) - 1, -1, -1.0) if aged else np.ones(len(losses))
    share = weights / weights.sum()
    var, es = weighted_tail(losses, weights if aged else None, confidence)
    mass = 1 - confidence
    assert es >= var >= 0
    assert share[losses > var].sum() <= mass * (1 + 1e-9)  # exceeded rarely enough
    if var > 0:
        assert share[losses >= var].sum() > mass * (1 - 1e-9)  # and nothing smaller would do
    # Rockafellar and Uryasev: ES is the least over t of t + E[(L - t)+] / mass, and a loss itself attains it.
    least = min(t + float(share @ np.maximum(losses - t, 0)) / mass for t in losses.tolist())
    assert es == pytest.approx(max(least, var, 0.0), rel=1e-9, abs=1e-6)


def test_age_counts_only_in_the_aged_method() -> None:
    calm = np.random.default_rng(2).normal(0, 1, 400)
    early, late = calm.copy(), calm.copy()
    early[:12], late[-12:] = -50.0, -50.0
    values = {
        (method, when): found.var
        for when, profits in (("early", early), ("late", late))
        for method in (Method.HISTORICAL, Method.AGED)
        for found in tails(profits, (0.95,), methods=(method,))
    }
    assert values[Method.HISTORICAL, "early"] == pytest.approx(values[Method.HISTORICAL, "late"], rel=0.2)
    early_var, late_var = values[Method.AGED, "early"], values[Method.AGED, "late"]
    assert early_var is not None
    assert late_var is not None
    assert late_var > 10 * early_var


def test_filtered_var_follows_the_present_deviation_and_the_historical_one_does_not() -> None:
    shocks = np.random.default_rng(3).normal(0, 1, 600)
    stormy = np.where(np.arange(600) >= 560, 5.0, 1.0) * shocks
    calm, storm = (tails(p, (0.99,), methods=(Method.HISTORICAL, Method.FILTERED)) for p in (shocks, stormy))
    assert storm[1].var is not None
    assert calm[1].var is not None
    assert storm[1].var > 2.5 * calm[1].var


def test_beta_and_its_error_are_those_of_the_normal_equations() -> None:
    random = np.random.default_rng(4)
    x = random.normal(0, 0.02, 300)
    y = 1_000 * (0.7 * x + random.normal(0, 0.01, 300))
    found = beta(y, x)
    assert found is not None
    design = np.column_stack((np.ones(300), x))
    solution, rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = float(rest[0]) / 298 * np.linalg.inv(design.T @ design)
    assert found.value == pytest.approx(float(solution[1]), rel=1e-9)
    assert found.error == pytest.approx(sqrt(covariance[1, 1]), rel=1e-9)
    assert abs(found.value - 700) < 3 * found.error


def test_concentration_of_equal_and_of_single_holdings() -> None:
    equal, single = concentration(np.full(4, -25.0)), concentration(np.asarray([0.0, 9.0]))
    assert equal is not None
    assert single is not None
    assert (equal.herfindahl, equal.largest_share) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (single.herfindahl, single.largest, single.largest_share) == (1.0, 1, 1.0)
    assert concentration(np.zeros(3)) is None


# -- what there is not enough of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_one_return_too_few_gives_no_number_and_says_how_many_are_needed(method: Method, confidence: float) -> None:
    need = needed(method, confidence)
    profits = np.random.default_rng(5).normal(0, 1, need)
    (short,) = tails(profits[1:], (confidence,), methods=(method,))
    assert (short.var, short.es, short.n) == (None, None, need - 1)
    assert short.problem == f"not enough history: has {need - 1} returns, needs {need}"
    (enough,) = tails(profits, (confidence,), methods=(method,))
    assert enough.var is not None
    assert enough.es is not None
    assert 0 < enough.var <= enough.es
    assert enough.problem == ""


def test_no_history_and_no_movement_are_never_nan() -> None:
    for profits in (np.empty(0), np.zeros(1), np.zeros(500)):
        for found in tails(profits):
            assert found.var in (None, 0.0)
            assert found.es in (None, 0.0)
    assert volatility(np.zeros(3), 1) is None
    assert volatility(np.zeros(30), 1) == 0.0
    assert beta(np.zeros(30), np.zeros(30)) is None
    assert beta(np.zeros(30), np.ones(29)) is None


@pytest.mark.parametrize("bad", [np.asarray([1.0, np.nan]), np.asarray([np.inf]), np.ones((2, 2))])
def test_profits_that_are_no_numbers_are_refused(bad: Column) -> None:
    with pytest.raises(ValueError, match="finite"):
        tails(bad)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 1.5, -0.1])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        tails(np.ones(5), (confidence,))


# -- coverage on simulated markets whose truth is known ----------------------------------------------------------------


def garch(seed: int, n: int) -> Column:
    """GARCH(1,1) with Student t innovations of four degrees of freedom: volatility clusters and the tails are fat."""
    shocks = np.random.default_rng(seed).standard_t(4, n) / sqrt(2)
    level, found = 4e-4, np.empty(n)
    for index, shock in enumerate(shocks.tolist()):
        found[index] = sqrt(level) * shock
        level = 1e-5 + 0.1 * found[index] ** 2 + 0.87 * level
    return found


def kupiec(violations: int, n: int, rate: float) -> float:
    """Return the p-value of the proportion-of-failures test: how well so many violations fit the stated rate."""
    seen = violations / n

    def likelihood(p: float) -> float:
        return violations * log(p) + (n - violations) * log(1 - p)

    ratio = 2 * (likelihood(seen) - likelihood(rate))
    return erfc(sqrt(max(0.0, ratio) / 2))  # chi-square with one degree of freedom


def violations_of(method: Method, profits: Column, window: int) -> int:
    hits = 0
    for end in range(window, len(profits)):
        (found,) = tails(profits[end - window : end], (0.99,), methods=(method,))
        assert found.var is not None
        hits += int(profits[end] < -found.var)
    return hits


@lru_cache(maxsize=4)
def covered(method: Method, window: int) -> tuple[int, int]:
    """Return (violations, forecasts) over several simulated markets."""
    paths = [garch(seed, window + 1_500) for seed in range(4)]
    return sum(violations_of(method, path, window) for path in paths), 4 * 1_500


def test_filtered_var_is_violated_about_as_often_as_it_says() -> None:
    hits, n = covered(Method.FILTERED, 500)
    assert kupiec(hits, n, 0.01) > 0.01, f"{hits} of {n}"
    assert 0.007 < hits / n < 0.0135


def test_plain_historical_var_is_violated_too_often_when_volatility_clusters() -> None:
    hits, n = covered(Method.HISTORICAL, 250)
    assert kupiec(hits, n, 0.01) < 0.01
    assert hits / n > 0.0125


def test_normal_ewma_var_is_violated_far_too_often_in_fat_tails() -> None:
    hits, n = covered(Method.EWMA, 500)
    assert kupiec(hits, n, 0.01) < 1e-6
    assert hits / n > 0.015


def test_kupiec_knows_a_right_rate_from_a_wrong_one() -> None:
    assert kupiec(10, 1_000, 0.01) == pytest.approx(1.0)
    assert kupiec(16, 1_000, 0.01) > 0.05 > kupiec(17, 1_000, 0.01)  # Kupiec 1995: 4 < x < 17 of 1,000 at 5 %
    assert kupiec(5, 1_000, 0.01) > 0.05 > kupiec(4, 1_000, 0.01)
