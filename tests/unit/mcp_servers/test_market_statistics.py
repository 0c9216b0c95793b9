"""Statistics against formulas written out in plain Python, against known vectors, and against simulated markets."""

from __future__ import annotations

import math
import statistics as stdlib
from collections.abc import Sequence
from dataclasses import astuple, replace
from decimal import Decimal
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.statistics import EWMA_DECAY, RETURNS_MIN, YEAR_MS, compare, log_returns, measure
from tests.market_history_support import ETH, HOUR_MS, candles
from tests.market_support import BTC
from trading.domain.errors import InvalidValue
from trading.domain.market_data import Candle

BITCOIN, ETHER = candles(0), candles(1)
PER_YEAR = math.sqrt(365 * 24)


def bars(closes: Sequence[float], *, interval_ms: int = HOUR_MS, start: int = 0) -> list[Candle]:
    """Return candles that open at the close before and have no wicks."""
    found: list[Candle] = []
    before = closes[0]
    for index, close in enumerate(closes):
        first, last = Decimal(repr(before)), Decimal(repr(close))
        opened = start + index * interval_ms
        high, low = max(first, last), min(first, last)
        found.append(Candle(BTC, interval_ms, opened, first, high, low, last, Decimal(1), 1, closed=True))
        before = close
    return found


def from_returns(returns: Sequence[float]) -> list[Candle]:
    return bars([100 * math.exp(total) for total in np.concatenate(([0.0], np.cumsum(returns))).tolist()])


def adjacent(series: Sequence[Candle]) -> list[float]:
    return [math.log(float(b.close / a.close)) for a, b in pairwise(series) if b.open_ts_ms - a.open_ts_ms == HOUR_MS]


# ---- formulas, over recorded hours


def test_volatility_is_the_deviation_of_adjacent_returns_over_a_year_of_365_days() -> None:
    found, returns = measure(BITCOIN), adjacent(BITCOIN)
    assert YEAR_MS == 365 * 24 * HOUR_MS
    assert (found.returns, found.left_out) == (len(returns), 2)  # two outages
    assert found.volatility == pytest.approx(stdlib.stdev(returns) * PER_YEAR, rel=1e-12)
    assert 0.3 < found.volatility < 1.5
    assert found.total_return == pytest.approx(float(BITCOIN[-1].close / BITCOIN[0].close) - 1, rel=1e-12)


def test_range_volatilities_equal_their_published_formulas() -> None:
    found = measure(BITCOIN)
    ranges = [math.log(float(c.high / c.low)) for c in BITCOIN]
    bodies = [math.log(float(c.close / c.open)) for c in BITCOIN]
    parkinson = math.sqrt(math.fsum(r * r for r in ranges) / (4 * len(ranges) * math.log(2)))
    terms = [0.5 * r * r - (2 * math.log(2) - 1) * b * b for r, b in zip(ranges, bodies, strict=True)]
    assert found.parkinson == pytest.approx(parkinson * PER_YEAR, rel=1e-12)
    assert found.garman_klass == pytest.approx(math.sqrt(math.fsum(terms) / len(terms)) * PER_YEAR, rel=1e-12)
    assert found.garman_klass == pytest.approx(found.volatility, rel=0.3)


def test_weighted_volatility_equals_the_recursion_from_a_long_beginning() -> None:
    returns = adjacent(BITCOIN)
    variance = returns[0] ** 2
    for value in returns[1:]:
        variance = EWMA_DECAY * variance + (1 - EWMA_DECAY) * value * value
    assert measure(BITCOIN).ewma == pytest.approx(math.sqrt(variance) * PER_YEAR, rel=1e-9)


def test_drawdown_equals_the_worst_of_all_pairs() -> None:
    closes = [float(candle.close) for candle in BITCOIN]
    worst = max(1 - low / high for at, high in enumerate(closes) for low in closes[at:])
    assert measure(BITCOIN).max_drawdown == pytest.approx(worst, rel=1e-12)
    assert measure(bars([float(value) for value in range(1, 40)])).max_drawdown == 0
    assert measure(bars([*[100.0] * 15, 80, 90, 50, 120, *[119.0] * 15])).max_drawdown == pytest.approx(0.5)


def test_shape_equals_the_formulas_for_samples() -> None:
    returns = adjacent(BITCOIN)
    n, mean, deviation = len(returns), stdlib.fmean(returns), stdlib.stdev(returns)
    z = [(value - mean) / deviation for value in returns]
    skew = n / ((n - 1) * (n - 2)) * math.fsum(value**3 for value in z)
    kurtosis = n * (n + 1) / ((n - 1) * (n - 2) * (n - 3)) * math.fsum(value**4 for value in z)
    found = measure(BITCOIN)
    assert found.skew == pytest.approx(skew, rel=1e-9)
    assert found.excess_kurtosis == pytest.approx(kurtosis - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)), rel=1e-9)


def test_shape_of_a_known_sample() -> None:
    """Spreadsheets document skewness 0.359543 and kurtosis -0.151800 for these; thrice the ten have their moments."""
    sample = [3, 4, 5, 2, 3, 4, 5, 6, 4, 7]
    moment_skew = 0.359543 * 8 / math.sqrt(10 * 9)
    moment_excess = (-0.151800 * 8 * 7 / 9 - 6) / 11
    found = measure(from_returns([value / 1_000 for value in sample * 3]))
    assert found.skew == pytest.approx(moment_skew * math.sqrt(30 * 29) / 28, abs=1e-5)
    assert found.excess_kurtosis == pytest.approx(29 / (28 * 27) * (31 * moment_excess + 6), abs=1e-5)


def test_beta_and_correlation_equal_ordinary_least_squares() -> None:
    x, y = adjacent(BITCOIN), adjacent(ETHER)
    found, n = compare(ETHER, BITCOIN), len(x)
    line = stdlib.linear_regression(x, y)
    rest = math.fsum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = math.fsum((a - stdlib.fmean(x)) ** 2 for a in x)
    r = stdlib.correlation(x, y)
    assert found.returns == n
    assert found.beta == pytest.approx(line.slope, rel=1e-9)
    assert found.beta_error == pytest.approx(math.sqrt(rest / (n - 2) / spread), rel=1e-9)
    assert found.correlation == pytest.approx(r, rel=1e-9)
    assert found.correlation_error == pytest.approx(math.sqrt((1 - r * r) / (n - 2)), rel=1e-9)
    assert 0.6 < r < 0.95


# ---- simulated markets whose truth is known


def garch(random: np.random.Generator, count: int, *, omega: float, alpha: float, beta: float) -> list[float]:
    """Return GARCH(1,1) returns, whose variance is omega / (1 - alpha - beta) in the long run."""
    variance, returns = omega / (1 - alpha - beta), list[float]()
    for shock in random.standard_normal(count).tolist():
        returns.append(math.sqrt(variance) * shock)
        variance = omega + alpha * returns[-1] ** 2 + beta * variance
    return returns


def test_the_volatility_of_a_simulated_market_is_found() -> None:
    deviation = 0.6 / PER_YEAR
    alpha, beta = 0.05, 0.9
    omega = deviation**2 * (1 - alpha - beta)
    found = measure(from_returns(garch(np.random.default_rng(7), 20_000, omega=omega, alpha=alpha, beta=beta)))
    assert found.volatility == pytest.approx(0.6, rel=0.03)
    assert found.excess_kurtosis is not None
    assert 0 < found.excess_kurtosis < 2  # clustered volatility has fat tails: 0.17 in the long run here


def test_the_standard_error_of_volatility_covers_the_truth_as_often_as_it_should() -> None:
    random, inside = np.random.default_rng(11), 0
    for _ in range(300):
        found = measure(from_returns((random.standard_t(8, 400) * 0.01).tolist()))
        assert found.volatility_error is not None
        truth = 0.01 * math.sqrt(8 / 6) * PER_YEAR
        inside += abs(found.volatility - truth) < 1.96 * found.volatility_error
    assert 0.90 <= inside / 300 <= 0.98


def walked(random: np.random.Generator, count: int, deviation: float, steps: int = 1_000) -> list[Candle]:
    """Return bars with the highs and lows of a random walk within each."""
    found: list[Candle] = []
    level = 0.0
    for index in range(count):
        path = level + np.concatenate(([0.0], np.cumsum(random.standard_normal(steps)))) * deviation / math.sqrt(steps)
        first, high, low, last = (
            Decimal(repr(math.exp(value))) for value in (path[0], path.max(), path.min(), path[-1])
        )
        found.append(Candle(BTC, HOUR_MS, index * HOUR_MS, first, high, low, last, Decimal(1), 1, closed=True))
        level = float(path[-1])
    return found


def test_range_volatilities_of_a_simulated_market_are_found_with_less_scatter() -> None:
    deviation = 0.8 / PER_YEAR
    found = measure(walked(np.random.default_rng(3), 1_500, deviation))
    # A path of 1,000 steps misses a little of the range of a continuous one.
    assert found.parkinson == pytest.approx(0.8, rel=0.05)
    assert found.garman_klass == pytest.approx(0.8, rel=0.06)


def test_the_beta_of_a_simulated_market_is_found_with_an_honest_error() -> None:
    random, inside = np.random.default_rng(5), 0
    for _ in range(300):
        x = random.normal(0, 0.01, 200)
        y = 1.5 * x + random.normal(0.0001, 0.005, 200)
        found = compare(from_returns(y.tolist()), from_returns(x.tolist()))
        assert found.beta is not None
        assert found.beta_error is not None
        inside += abs(found.beta - 1.5) < 1.96 * found.beta_error
    assert 0.91 <= inside / 300 <= 0.98


# ---- gaps, lengths, standstills


def test_only_returns_that_both_have_are_compared() -> None:
    holes = [candle for index, candle in enumerate(ETHER) if index % 10 != 3]  # every hole costs two returns
    found = compare(holes, BITCOIN[100:])
    common = log_returns(holes).keys() & log_returns(BITCOIN[100:]).keys()
    assert found.returns == len(common)
    assert 380 < len(common) < 410
    assert compare(ETHER, BITCOIN).returns == len(adjacent(BITCOIN))
    # What is shifted by one bar is another hour: nothing is matched by position.
    late = [replace(candle, open_ts_ms=candle.open_ts_ms + HOUR_MS) for candle in BITCOIN]
    shifted = compare(late, BITCOIN)
    assert shifted.correlation is not None
    assert abs(shifted.correlation) < 0.3


def test_a_market_compared_with_itself() -> None:
    found = compare(BITCOIN, BITCOIN)
    assert found.correlation == pytest.approx(1, abs=1e-12)
    assert found.beta == pytest.approx(1, abs=1e-12)
    assert found.beta_error == pytest.approx(0, abs=1e-9)


def test_too_little_is_refused_with_both_numbers() -> None:
    for call in (
        lambda: measure(BITCOIN[:RETURNS_MIN]),
        lambda: compare(ETHER[:300], BITCOIN[300 - RETURNS_MIN :]),
        lambda: compare(ETHER[:50], BITCOIN[100:]),
        lambda: measure([]),
        lambda: measure(BITCOIN[::2]),
    ):
        with pytest.raises(InvalidValue) as refused:
            call()
        assert refused.value.code == "NOT_ENOUGH_HISTORY"
        assert str(RETURNS_MIN) in str(refused.value)
    assert measure(BITCOIN[: RETURNS_MIN + 1]).returns == RETURNS_MIN


def test_open_and_impossible_candles_are_refused() -> None:
    with pytest.raises(InvalidValue) as refused:
        measure([*BITCOIN[:-1], replace(BITCOIN[-1], closed=False)])
    assert refused.value.code == "CANDLE_OPEN"
    with pytest.raises(InvalidValue) as refused:
        compare(ETHER, [*BITCOIN[:-1], replace(BITCOIN[-1], low=Decimal(0), close=Decimal(0))])
    assert refused.value.code == "GARBAGE"


def test_a_market_that_stands_still_has_no_shape_and_leads_nobody() -> None:
    still = bars([60_000.01] * 601, start=BITCOIN[0].open_ts_ms)
    found = measure(still)
    assert (found.volatility, found.volatility_error, found.ewma) == (0, None, 0)
    assert (found.parkinson, found.garman_klass, found.max_drawdown) == (0, 0, 0)
    assert (found.skew, found.excess_kurtosis) == (None, None)
    assert astuple(compare(BITCOIN, still))[1:] == (None, None, None, None)
    led = compare(still, BITCOIN)
    assert (led.correlation, led.beta, led.beta_error) == (None, 0, 0)
    steady = measure(from_returns([0.01] * 50))  # always the same return: the deviation is rounding only
    assert (steady.volatility, steady.skew) == (0, None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-12, 1.0, 1e12]), st.integers(0, 2), st.floats(0, 0.9))
def test_whatever_the_prices_no_figure_is_nan(seed: int, scale: float, places: int, holes: float) -> None:
    random = np.random.default_rng(seed)

    def market() -> list[Candle]:
        closes: npt.NDArray[np.float64] = scale * np.exp(random.normal(0, 2, 200).round(places))
        return [candle for candle in bars(closes.tolist()) if random.random() >= holes]

    mine, theirs = market(), market()
    questions = (
        (lambda: measure(mine), len(log_returns(mine))),
        (
            lambda: compare(mine, theirs),
            len(log_returns(mine).keys() & log_returns(theirs).keys()),
        ),
    )
    for ask, count in questions:
        if count < RETURNS_MIN:
            with pytest.raises(InvalidValue, match="are needed"):
                ask()
        else:
            assert all(value is None or math.isfinite(value) for value in astuple(ask()))


def test_the_recorded_files_are_of_the_same_hours() -> None:
    assert [candle.open_ts_ms for candle in BITCOIN] == [candle.open_ts_ms for candle in ETHER]
    assert ETHER[0].instrument_id == ETH
