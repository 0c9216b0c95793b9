"""Indicators against TA-Lib and against plain numpy, over recorded hours; their warm-up; what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.figures import figure
from mcp_servers.market.indicators import (
    DEFINITIONS,
    INDICATORS_MAX,
    Indicator,
    parse_indicator,
    parse_indicators,
)
from tests.market_history_support import candles
from trading.domain.errors import InvalidValue
from trading.strategy.series import Bars, Series, bars_of, true_ranges

Column = npt.NDArray[np.float64]

BARS = bars_of(candles(0))
OPEN = np.array([float(candle.open) for candle in candles(0)])
HIGH, LOW, CLOSE, VOLUME = (np.array(column) for column in (BARS.high, BARS.low, BARS.close, BARS.volume))
TYPICAL = (HIGH + LOW + CLOSE) / 3


def lines(text: str, bars: Bars = BARS) -> list[Series]:
    return list(parse_indicator(text).compute(bars).values())


def first(values: Series) -> int:
    """Return at which bar, from 1, the first value stands; after it none is missing."""
    at = next(index for index, value in enumerate(values) if value is not None)
    assert all(value is not None for value in values[at:])
    return at + 1


def assert_equal(ours: Series, theirs: Column | Sequence[float | None], *, skip: int = 0) -> None:
    """Compare to 1e-9 of the value, or of the lines' own scale where a line crosses zero."""
    expected = np.array([np.nan if value is None else value for value in theirs], dtype=float)
    found = np.array([np.nan if value is None else value for value in ours], dtype=float)
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found[skip:]), np.isnan(expected[skip:]))
    known = ~np.isnan(expected) & (np.arange(len(expected)) >= skip)
    assert known.sum() > 50
    scale = np.median(np.abs(expected[known])) * 1e-9
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-9, atol=scale)


#: Indicators of the same definition as TA-Lib's: equal from the first value to the last.
SAME: dict[str, Callable[[], Any]] = {
    "sma:20": lambda: talib.SMA(CLOSE, 20),
    "ema:20": lambda: talib.EMA(CLOSE, 20),
    "ema:200": lambda: talib.EMA(CLOSE, 200),
    "rsi:14": lambda: talib.RSI(CLOSE, 14),
    "rsi:2": lambda: talib.RSI(CLOSE, 2),
    "bollinger:20:2": lambda: talib.BBANDS(CLOSE, 20, 2, 2)[::-1],
    "bollinger:50:2.5": lambda: talib.BBANDS(CLOSE, 50, 2.5, 2.5)[::-1],
    "atr:14": lambda: talib.ATR(HIGH, LOW, CLOSE, 14),
    "stochastic:14:3:3": lambda: talib.STOCH(HIGH, LOW, CLOSE, 14, 3, slowd_period=3),
    "stochastic:5:1:3": lambda: talib.STOCHF(HIGH, LOW, CLOSE, 5, 3),
    "obv": lambda: talib.OBV(CLOSE, VOLUME),
    "roc:10": lambda: talib.ROC(CLOSE, 10),
    "cci:20": lambda: talib.CCI(HIGH, LOW, CLOSE, 20),
    "williams_r:14": lambda: talib.WILLR(HIGH, LOW, CLOSE, 14),
}


@pytest.mark.parametrize("text", SAME)
def test_the_same_definition_gives_what_ta_lib_gives(text: str) -> None:
    theirs = SAME[text]()
    columns: list[Column] = [theirs] if isinstance(theirs, np.ndarray) else list(theirs)
    ours = lines(text)
    assert len(ours) == len(columns)
    indicator = parse_indicator(text)
    # TA-Lib gives all lines of one indicator from the same bar on; ours start as soon as each is known.
    for mine, other in zip(ours, columns, strict=True):
        assert_equal(mine, other, skip=indicator.needed - 1)
        assert first([None if np.isnan(value) else value for value in other]) == indicator.needed


def test_macd_and_adx_which_begin_differently_come_together_with_ta_lib() -> None:
    """TA-Lib begins MACD's fast average later and sums ADX's first window over one bar less."""
    settled = 480  # what is left of the beginning is below 1e-9 here
    for mine, other in zip(lines("macd:12:26:9"), talib.MACD(CLOSE, 12, 26, 9), strict=True):
        assert_equal(mine, other, skip=settled)
    references = (
        talib.ADX(HIGH, LOW, CLOSE, 7),
        talib.PLUS_DI(HIGH, LOW, CLOSE, 7),
        talib.MINUS_DI(HIGH, LOW, CLOSE, 7),
    )
    for mine, other in zip(lines("adx:7"), references, strict=True):
        assert_equal(mine, other, skip=settled)


def smoothed(values: Column, weight: float, period: int) -> Column:
    """Return a recursive average begun with the simple mean, written out as one weighted sum per value."""
    found = np.full(len(values), np.nan)
    for end in range(period - 1, len(values)):
        since = end - period + 1
        weights = weight * (1 - weight) ** np.arange(since)[::-1]
        found[end] = (1 - weight) ** since * values[:period].mean() + (weights * values[period : end + 1]).sum()
    return found


def after(count: int, values: Column) -> Column:
    return np.concatenate((np.full(count, np.nan), values))


def test_macd_equals_its_definition_from_the_first_value_on() -> None:
    line = smoothed(CLOSE, 2 / 13, 12) - smoothed(CLOSE, 2 / 27, 26)
    signal = after(25, smoothed(line[25:], 2 / 10, 9))
    for mine, other in zip(lines("macd:12:26:9"), (line, signal, line - signal), strict=True):
        assert_equal(mine, other)


def test_adx_equals_its_definition_from_the_first_value_on() -> None:
    period = 14
    up, down = np.diff(HIGH), -np.diff(LOW)
    spread = np.maximum(HIGH[1:], CLOSE[:-1]) - np.minimum(LOW[1:], CLOSE[:-1])
    means = [
        smoothed(values, 1 / period, period)
        for values in (np.where((up > down) & (up > 0), up, 0), np.where((down > up) & (down > 0), down, 0), spread)
    ]
    plus, minus = 100 * means[0] / means[2], 100 * means[1] / means[2]
    dx = (100 * np.abs(plus - minus) / (plus + minus))[period - 1 :]
    strength = after(period, smoothed(dx, 1 / period, period))
    for mine, other in zip(lines("adx:14"), (strength, after(1, plus), after(1, minus)), strict=True):
        assert_equal(mine, other)
    assert np.allclose(true_ranges(BARS), spread)


def windows(values: Column, period: int) -> Column:
    return np.lib.stride_tricks.sliding_window_view(values, period)


def test_vwap_donchian_and_keltner_equal_their_definitions() -> None:
    worth, traded = windows(TYPICAL * VOLUME, 24).sum(axis=1), windows(VOLUME, 24).sum(axis=1)
    assert_equal(lines("vwap:24")[0], after(23, worth / traded))
    lowest, highest = after(19, windows(LOW, 20).min(axis=1)), after(19, windows(HIGH, 20).max(axis=1))
    for mine, other in zip(lines("donchian:20"), (lowest, (lowest + highest) / 2, highest), strict=True):
        assert_equal(mine, other)
    assert_equal(lines("donchian:20")[2], talib.MAX(HIGH, 20))
    middle, spread = talib.EMA(CLOSE, 20), talib.ATR(HIGH, LOW, CLOSE, 10)
    for mine, other in zip(lines("keltner:20:10:1.5"), (-1.5, 0, 1.5), strict=True):
        assert_equal(mine, middle + other * spread)


def test_supertrend_equals_its_definition() -> None:
    period, width = 10, 3.0
    spread = talib.ATR(HIGH, LOW, CLOSE, period)
    middle = (HIGH + LOW) / 2
    expected, trend = np.full(len(CLOSE), np.nan), np.full(len(CLOSE), np.nan)
    lower, upper = (middle - width * spread).copy(), (middle + width * spread).copy()
    for at in range(period, len(CLOSE)):
        if at > period:
            if not (lower[at] > lower[at - 1] or CLOSE[at - 1] < lower[at - 1]):
                lower[at] = lower[at - 1]
            if not (upper[at] < upper[at - 1] or CLOSE[at - 1] > upper[at - 1]):
                upper[at] = upper[at - 1]
            rising = trend[at - 1] == 1
            trend[at] = (-1 if CLOSE[at] < lower[at] else 1) if rising else (1 if CLOSE[at] > upper[at] else -1)
        else:
            trend[at] = 1 if CLOSE[at] >= middle[at] else -1
        expected[at] = lower[at] if trend[at] == 1 else upper[at]
    value, direction = lines("supertrend:10:3")
    assert_equal(value, expected)
    assert_equal(direction, trend)
    assert 1 < (np.diff(trend[period:]) != 0).sum() < 60  # it does turn, and not at every bar
    assert np.all((CLOSE - expected)[period:] * trend[period:] >= 0)  # the stop is on the side that it says


# ---- warm-up


def part(start: int, end: int) -> Bars:
    return Bars(BARS.high[start:end], BARS.low[start:end], BARS.close[start:end], BARS.volume[start:end])


@st.composite
def any_indicator(draw: st.DrawFn) -> Indicator:
    definition = DEFINITIONS[draw(st.sampled_from(sorted(DEFINITIONS)))]
    texts = [
        str(draw(st.integers(int(kind.least), min(60, int(kind.most)))) if kind.step == 1 else Decimal("1.5"))
        for kind in definition.parameters
    ]
    if definition.name == "macd":
        texts[:2] = [str(min(map(int, texts[:2]))), str(max(map(int, texts[:2])) + 1)]
    return parse_indicator(":".join((definition.name, *texts)))


@settings(max_examples=60, deadline=None)
@given(any_indicator(), st.integers(0, 300))
def test_the_stated_warm_up_is_exact(indicator: Indicator, start: int) -> None:
    enough = indicator.compute(part(start, start + indicator.needed))
    assert all(len(line) == indicator.needed for line in enough.values())
    assert all(line[-1] is not None for line in enough.values())
    if indicator.needed > 1:
        assert indicator.needed == max(map(first, enough.values()))
        with pytest.raises(InvalidValue) as refused:
            indicator.compute(part(start, start + indicator.needed - 1))
        assert refused.value.code == "NOT_ENOUGH_HISTORY"
        assert f"{indicator.needed} closed bars" in str(refused.value)
        assert f"there are {indicator.needed - 1}" in str(refused.value)


@settings(max_examples=60, deadline=None)
@given(any_indicator(), st.integers(0, 300))
def test_a_value_never_changes_when_later_bars_come(indicator: Indicator, start: int) -> None:
    end = start + indicator.needed + 5
    for short, long in zip(
        indicator.compute(part(start, end)).values(), indicator.compute(part(start, 600)).values(), strict=True
    ):
        assert long[: len(short)] == short


@pytest.mark.parametrize("text", sorted(DEFINITIONS))
def test_once_settled_a_value_no_longer_depends_on_where_the_bars_begin(text: str) -> None:
    indicator = parse_indicator(text)
    if indicator.settled is None:
        assert text in ("obv", "supertrend")
        return
    assert indicator.needed <= indicator.settled <= 600
    whole = indicator.compute(BARS)
    late = indicator.compute(part(600 - indicator.settled, 600))
    for name, line in whole.items():
        full, short = line[-1], late[name][-1]
        assert full is not None
        assert short is not None
        spread = max(abs(value) for value in line if value is not None)
        assert abs(full - short) <= 2e-6 * spread


# ---- markets in which nothing happens


def flat(count: int, price: float = 60_000.01, volume: float = 0.0) -> Bars:
    return Bars((price,) * count, (price,) * count, (price,) * count, (volume,) * count)


@pytest.mark.parametrize("text", sorted(DEFINITIONS))
def test_a_market_without_any_movement_gives_no_number_that_is_none(text: str) -> None:
    indicator = parse_indicator(text)
    for line in indicator.compute(flat(120)).values():
        last = line[-1]
        if text in ("rsi", "stochastic", "williams_r", "cci", "vwap"):
            assert last is None  # nothing divided by nothing
        else:
            assert last is not None
            assert np.isfinite(last)
            assert abs(last) < 1e-6 or abs(last - 60_000.01) < 1e-6 or text == "supertrend"


def test_after_movement_a_standstill_gives_no_accidental_figures() -> None:
    moving, still = part(0, 100), flat(60, price=BARS.close[99])
    joined = Bars(
        moving.high + still.high, moving.low + still.low, moving.close + still.close, moving.volume + still.volume
    )
    assert lines("cci:20", joined)[0][-1] is None
    assert lines("stochastic:14:3:3", joined)[0][-1] is None
    assert lines("roc:10", joined)[0][-1] == 0
    assert lines("vwap:24", joined)[0][-1] is None
    assert figure(lines("atr:14", joined)[0][-1]) != 0  # Wilder's average never quite forgets


@settings(max_examples=60, deadline=None)
@given(any_indicator(), st.integers(0, 2**32), st.sampled_from([1e-12, 1e-3, 1.0, 1e12]))
def test_whatever_the_prices_every_figure_is_finite_or_absent(indicator: Indicator, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    close = scale * np.exp(random.normal(0, 3, 180).round(int(random.integers(0, 3))))  # coarse: many equal prices
    above, below = (np.where(random.random(180) < 0.5, 0, random.random(180)) for _ in range(2))
    volume = np.where(random.random(180) < 0.3, 0, 10 ** random.uniform(-18, 15, 180))
    columns = (close * (1 + above), close * (1 - below / 2), close, volume)
    bars = Bars(*(tuple(column.tolist()) for column in columns))
    for line in indicator.compute(bars).values():
        for value in map(figure, line):
            assert value is None or value.is_finite()


# ---- what callers write


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rsi", "rsi:14"),
        ("RSI:21", "rsi:21"),
        (" Rsi(21) ", "rsi:21"),
        ("macd(12, 26, 9)", "macd:12:26:9"),
        ("macd:5", "macd:5:26:9"),
        ("bb:20:2.50", "bollinger:20:2.5"),
        ("stoch", "stochastic:14:3:3"),
        ("willr:10", "williams_r:10"),
        ("obv", "obv"),
        ("rsi:014", "rsi:14"),
    ],
)
def test_names_and_customary_parameters_are_understood(text: str, name: str) -> None:
    assert parse_indicator(text).name == name


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ":", "rs", "rsl:14", "rsi:NaN", "rsi:-1", "rsi:0", "rsi:1", "rsi:401", "rsi:1e9", "rsi:14.5",
        "rsi:14:3", "rsi:Infinity", "rsi:", "rsi::", "rsi:99999999999999999999", "macd:26:12",
        "macd:12:12", "bb:20:0", "bb:20:11", "bb:20:0.001", "obv:3", "\u0440si:14",
        "RS\u0130:14", "rsi\uff1a14", "rsi:\uff11\uff14", "__class__", "rsi;drop", "x" * 10_000,
        "rsi:" + "9" * 10_000, "rsi\n:14", "\x00", "🚀:14",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_possible(text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_indicator(text)
    assert refused.value.code == "INVALID_INDICATOR"
    assert refused.value.allowed or refused.value.suggestion
    assert len(str(refused.value)) < 200


def test_a_misspelt_name_gets_the_nearest_one_and_a_strange_one_all() -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_indicator("bolinger:20")
    assert refused.value.suggestion == "did you mean bollinger?"
    with pytest.raises(InvalidValue) as refused:
        parse_indicator("qqqqqq")
    assert set(refused.value.allowed) == set(DEFINITIONS)


def test_indicators_are_counted_and_given_once() -> None:
    names = [found.name for found in parse_indicators(["rsi", "sma:5", "RSI:14"])]
    assert names == ["rsi:14", "sma:5"]
    for texts in ([], ["rsi"] * (INDICATORS_MAX + 1), ["sma"] * 1_000):
        with pytest.raises(InvalidValue) as refused:
            parse_indicators(texts)
        assert refused.value.code == "INVALID_INDICATOR"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), (float("nan"), None), (float("inf"), None), (1e24, None), (-1e30, None), (0.1 + 0.2, "0.3"),
        (23736.123456789, "23736.123"), (1e23, "1E+23"), (-0.0, "0"), (1.23456789123e-12, "0.000000000001234568"),
        (1e-30, "0"),
    ],
)  # fmt: skip
def test_figures_have_eight_digits_or_are_absent(value: float | None, expected: str | None) -> None:
    assert figure(value) == (None if expected is None else Decimal(expected))
