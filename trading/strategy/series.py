"""Indicators as series: one value for each bar, None until there are enough bars and where the value is undefined.

Rules kept here:

- Closed bars only, so no value is ever repainted.
- The recursive smoothings (EMA, Wilder's) start with the simple mean of their first ``period`` values.
- A ratio of nothing to nothing (a range without any movement) is None, never a number that looks like one.
- Floats are used inside and never become a price or a size. Moving averages, Bollinger bands, MACD, OBV and ROC are
  talipp's; what divides by a range or starts differently there is put together here from its moving averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import Any, NamedTuple, cast

from talipp.indicators import BB, EMA, MACD, OBV, ROC, SMA, SMMA  # pyright: ignore[reportMissingTypeStubs]  ships none
from talipp.ohlcv import OHLCV  # pyright: ignore[reportMissingTypeStubs]

from trading.domain.errors import InvalidValue
from trading.domain.market_data import Candle

Series = list[float | None]


@dataclass(frozen=True, slots=True)
class Bars:
    """Closed bars as columns of equal length, oldest first; prices in quote per base, volume in base."""

    high: tuple[float, ...]
    low: tuple[float, ...]
    close: tuple[float, ...]
    volume: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.close)

    @property
    def typical(self) -> list[float]:
        """A third of high plus low plus close."""
        return [(high + low + close) / 3.0 for high, low, close in zip(self.high, self.low, self.close, strict=True)]


def bars_of(candles: Sequence[Candle]) -> Bars:
    """Return candles as columns.

    Raises:
        InvalidValue: code CANDLE_OPEN: one is still open.
    """
    if any(not candle.closed for candle in candles):
        raise InvalidValue("indicators take closed candles only", code="CANDLE_OPEN")
    return Bars(
        tuple(float(candle.high) for candle in candles),
        tuple(float(candle.low) for candle in candles),
        tuple(float(candle.close) for candle in candles),
        tuple(float(candle.volume) for candle in candles),
    )


def sma(values: Sequence[float], period: int) -> Series:
    """Return the simple moving average; the first value is that of bar ``period``."""
    return _talipp(SMA(period, input_values=list(values)))


def ema(values: Sequence[float], period: int) -> Series:
    """Return the exponential moving average with weight 2 / (period + 1); first at bar ``period``."""
    return _talipp(EMA(period, input_values=list(values)))


def wilder(values: Sequence[float], period: int) -> Series:
    """Return Wilder's moving average, which has the weight 1 / period; first at bar ``period``."""
    return _talipp(SMMA(period, input_values=list(values)))


def rsi(values: Sequence[float], period: int) -> Series:
    """Return Wilder's relative strength index in [0, 100]; first at bar ``period + 1``."""
    changes = [later - earlier for earlier, later in pairwise(values)]
    up = wilder([max(change, 0.0) for change in changes], period)
    down = wilder([max(-change, 0.0) for change in changes], period)
    return _shifted(1, [_ratio(100.0, gain, _sum(gain, loss)) for gain, loss in zip(up, down, strict=True)], values)


def roc(values: Sequence[float], period: int) -> Series:
    """Return the change over ``period`` bars in percent; first at bar ``period + 1``."""
    return _talipp(ROC(period, input_values=list(values)))


class Macd(NamedTuple):
    """Difference of two EMAs, its own EMA, and the difference of the two."""

    macd: Series
    signal: Series
    histogram: Series


def macd(values: Sequence[float], fast: int, slow: int, signal: int) -> Macd:
    """Return the MACD; the first line starts at bar ``slow``, the others at bar ``slow + signal - 1``."""
    found = _members(MACD(fast, slow, signal, input_values=list(values)), ("macd", "signal", "histogram"))
    return Macd(*found)


class Channel(NamedTuple):
    """A band around a middle line."""

    lower: Series
    middle: Series
    upper: Series


def bollinger(values: Sequence[float], period: int, width: float) -> Channel:
    """Return the simple mean and ``width`` population standard deviations around it; first at bar ``period``."""
    return Channel(*_members(BB(period, width, input_values=list(values)), ("lb", "cb", "ub")))


def donchian(bars: Bars, period: int) -> Channel:
    """Return lowest low, highest high and the middle between them; first at bar ``period``."""
    lower, upper = _windows(bars.low, period, min), _windows(bars.high, period, max)
    middle: Series = [None if a is None or b is None else (a + b) / 2.0 for a, b in zip(lower, upper, strict=True)]
    return Channel(lower, middle, upper)


def keltner(bars: Bars, period: int, atr_period: int, width: float) -> Channel:
    """Return the EMA of the close and ``width`` average true ranges around it."""
    middle = ema(bars.close, period)
    around = [(m, a) if m is not None and a is not None else None for m, a in _zip(middle, atr(bars, atr_period))]
    return Channel(
        [None if pair is None else pair[0] - width * pair[1] for pair in around],
        [None if pair is None else pair[0] for pair in around],
        [None if pair is None else pair[0] + width * pair[1] for pair in around],
    )


def true_ranges(bars: Bars) -> list[float]:
    """Return the true ranges from the second bar on: the first has no close before it."""
    return [
        max(high, before) - min(low, before)
        for high, low, before in zip(bars.high[1:], bars.low[1:], bars.close[:-1], strict=True)
    ]


def atr(bars: Bars, period: int) -> Series:
    """Return Wilder's average true range; first at bar ``period + 1``."""
    return _shifted(1, wilder(true_ranges(bars), period), bars.close)


class Direction(NamedTuple):
    """Wilder's directional movement, each line in [0, 100]."""

    adx: Series
    plus: Series
    minus: Series


def adx(bars: Bars, period: int) -> Direction:
    """Return ADX (first at bar ``2 * period``) and the directional indicators (first at bar ``period + 1``).

    Without any movement all three are 0.
    """
    ups = [later - earlier for earlier, later in pairwise(bars.high)]
    downs = [earlier - later for earlier, later in pairwise(bars.low)]
    moves = list(zip(ups, downs, strict=True))
    spread = wilder(true_ranges(bars), period)
    plus = wilder([up if up > down and up > 0.0 else 0.0 for up, down in moves], period)
    minus = wilder([down if down > up and down > 0.0 else 0.0 for up, down in moves], period)
    plus_di = [_ratio(100.0, part, whole, 0.0) for part, whole in _zip(plus, spread)]
    minus_di = [_ratio(100.0, part, whole, 0.0) for part, whole in _zip(minus, spread)]
    dx = [abs(p - m) / (p + m) * 100.0 if p + m > 0.0 else 0.0 for p, m in _known(plus_di, minus_di)]
    strength = _shifted(len(plus_di) - len(dx), wilder(dx, period), plus_di)
    return Direction(*(_shifted(1, line, bars.close) for line in (strength, plus_di, minus_di)))


class Stochastic(NamedTuple):
    """Where the close lies in the range of the last bars, in percent, and its mean."""

    k: Series
    d: Series


def stochastic(bars: Bars, period: int, smooth: int, signal: int) -> Stochastic:
    """Return the stochastic: %K smoothed over ``smooth`` bars (1 is the fast one), %D its mean over ``signal``."""
    raw = [_ratio(100.0, part, whole) for part, whole in _within(bars, period)]
    k = _means(raw, smooth)
    return Stochastic(k, _means(k, signal))


def williams_r(bars: Bars, period: int) -> Series:
    """Return Williams %R in [-100, 0]; first at bar ``period``."""
    return [
        None if found is None else found - 100.0
        for found in (_ratio(100.0, part, whole) for part, whole in _within(bars, period))
    ]


def cci(bars: Bars, period: int) -> Series:
    """Return the commodity channel index of the typical price; first at bar ``period``."""

    def index(window: Sequence[float]) -> float | None:
        mean = fsum(window) / period
        deviation = fsum(abs(value - mean) for value in window) / period
        return (window[-1] - mean) / (0.015 * deviation) if deviation > 1e-12 * mean else None

    return _windows(bars.typical, period, index)


def obv(bars: Bars) -> Series:
    """Return on-balance volume in base, counted from the first bar."""
    rows = [OHLCV(c, h, low, c, v) for h, low, c, v in zip(bars.high, bars.low, bars.close, bars.volume, strict=True)]
    return _talipp(OBV(input_values=rows))


def vwap(bars: Bars, period: int) -> Series:
    """Return the volume-weighted mean of the typical price over ``period`` bars; None when nothing was traded."""
    worth = [price * volume for price, volume in zip(bars.typical, bars.volume, strict=True)]
    sums = _zip(_windows(worth, period, fsum), _windows(bars.volume, period, fsum))
    return [_ratio(1.0, part, whole) for part, whole in sums]


class Trend(NamedTuple):
    """A trailing stop, and whether it lies below (1) or above (-1) the close."""

    value: Series
    direction: Series


def supertrend(bars: Bars, period: int, width: float) -> Trend:
    """Return the supertrend; first at bar ``period + 1``, with the trend up if that bar closed in its upper half.

    The bands lie ``width`` average true ranges around the middle of a bar and only ever tighten, until a close crosses
    them.
    """
    values: Series = []
    directions: Series = []
    lower, upper, up = 0.0, 0.0, True
    for at, spread in enumerate(atr(bars, period)):
        if spread is None:
            values.append(None)
            directions.append(None)
            continue
        middle, close = (bars.high[at] + bars.low[at]) / 2.0, bars.close[at]
        basic_lower, basic_upper = middle - width * spread, middle + width * spread
        if not values or values[-1] is None:
            lower, upper, up = basic_lower, basic_upper, close >= middle
        else:
            before = bars.close[at - 1]
            lower = basic_lower if basic_lower > lower or before < lower else lower
            upper = basic_upper if basic_upper < upper or before > upper else upper
            up = close >= lower if up else close > upper
        values.append(lower if up else upper)
        directions.append(1.0 if up else -1.0)
    return Trend(values, directions)


def _within(bars: Bars, period: int) -> list[tuple[float | None, float | None]]:
    """Return how far the close lies above the lowest low, and the range, of each window."""
    lows, highs = _windows(bars.low, period, min), _windows(bars.high, period, max)
    return [
        (None, None) if low is None or high is None else (close - low, high - low)
        for close, low, high in zip(bars.close, lows, highs, strict=True)
    ]


def _windows(values: Sequence[float], period: int, of: Callable[[Sequence[float]], float | None]) -> Series:
    """Return a function of the last ``period`` values, for each bar."""
    return [of(values[end - period : end]) if end >= period else None for end in range(1, len(values) + 1)]


def _means(values: Series, period: int) -> Series:
    """Return the mean of the last ``period`` values where all of them exist."""
    means: Series = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - period) : end] if value is not None]
        means.append(fsum(window) / period if len(window) == period else None)
    return means


def _ratio(scale: float, part: float | None, whole: float | None, nothing: float | None = None) -> float | None:
    """Return the scaled ratio, ``nothing`` when the whole is zero, None when either is not known."""
    if part is None or whole is None:
        return None
    return scale * part / whole if whole else nothing


def _sum(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def _zip(left: Series, right: Series) -> list[tuple[float | None, float | None]]:
    return list(zip(left, right, strict=True))


def _known(left: Series, right: Series) -> list[tuple[float, float]]:
    return [(a, b) for a, b in _zip(left, right) if a is not None and b is not None]


def _shifted(count: int, series: Series, like: Sequence[object]) -> Series:
    """Return ``series`` after ``count`` missing values, as long as ``like``."""
    return [*[None] * count, *series][: len(like)]


def _talipp(indicator: object) -> Series:
    """Return the values of one of talipp's untyped indicators: sequences with one entry for each input."""
    return [None if value is None else float(value) for value in cast("Sequence[Any]", indicator)]


def _members(indicator: object, names: Sequence[str]) -> list[Series]:
    """Return the named lines of one of talipp's composite indicators."""
    rows = cast("Sequence[Any]", indicator)
    return [[None if row is None else getattr(row, name) for row in rows] for name in names]
