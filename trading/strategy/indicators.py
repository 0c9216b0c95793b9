"""Indicators on closed candles, computed by talipp.

Rules kept here:

- Closed candles only: an open candle is refused, so no value is ever repainted.
- Until the stated warm-up is complete the answer is None, never a guess.
- Floats are used inside and never become a price or a size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from talipp.indicators import ATR, BB  # pyright: ignore[reportMissingTypeStubs]  talipp ships none
from talipp.ohlcv import OHLCV  # pyright: ignore[reportMissingTypeStubs]

from trading.domain.errors import InvalidValue
from trading.domain.market_data import Candle, OrderBook
from trading.strategy import series

#: Candles that every indicator of this module needs at most with the default periods.
WARM_UP: Final = 10

_BPS: Final = 10_000.0


def closes(candles: Sequence[Candle]) -> list[float]:
    """Return closing prices, oldest first.

    Raises:
        InvalidValue: a candle is still open.
    """
    _require_closed(candles)
    return [float(candle.close) for candle in candles]


def ema(values: Sequence[float], period: int) -> float | None:
    """Return the exponential moving average; None with fewer than ``period`` values."""
    return series.ema(values, period)[-1] if len(values) >= period else None


def rsi(values: Sequence[float], period: int) -> float | None:
    """Return Wilder's relative strength index in [0, 100].

    None with fewer than ``period + 1`` values, and when none of them differ.
    """
    return series.rsi(values, period)[-1] if len(values) > period else None


def z_score(values: Sequence[float], period: int) -> float | None:
    """Return how many standard deviations the last value lies above its moving average.

    None with fewer than ``period`` values; 0 when all of them are equal.
    """
    bands = _last(_unit_bands, period, values)
    if bands is None:
        return None
    window = values[-period:]
    if min(window) == max(window):  # their mean may differ from them in its last digit, and the deviation from zero
        return 0.0
    width = float(bands.ub) - float(bands.cb)
    return (values[-1] - float(bands.cb)) / width if width > 0 else 0.0


def atr_bps(candles: Sequence[Candle], period: int) -> float | None:
    """Return the average true range in basis points of the last close; None with fewer than ``period`` candles."""
    _require_closed(candles)
    bars = [OHLCV(float(c.open), float(c.high), float(c.low), float(c.close), float(c.volume)) for c in candles]
    value = _last(ATR, period, bars)
    return None if value is None else float(value) / float(candles[-1].close) * _BPS


def imbalance(book: OrderBook, levels: int) -> float | None:
    """Return (bids - asks) / (bids + asks) of the quantity in the best levels, in [-1, 1].

    None unless the book is two-sided.
    """
    if not book.is_two_sided:
        return None
    bids = float(sum(level.quantity for level in book.bids[:levels]))
    asks = float(sum(level.quantity for level in book.asks[:levels]))
    return (bids - asks) / (bids + asks) if bids + asks > 0 else None


def _require_closed(candles: Sequence[Candle]) -> None:
    if any(not candle.closed for candle in candles):
        raise InvalidValue("indicators take closed candles only", code="CANDLE_OPEN")


def _unit_bands(period: int, input_values: list[float]) -> Any:
    return BB(period, 1.0, input_values)


def _last(kind: Callable[..., Any], period: int, values: Sequence[Any]) -> Any:
    if len(values) < period:
        return None
    # talipp is untyped: its indicators are sequences with one entry for each input, None while warming up.
    outputs = cast("Sequence[Any]", kind(period, input_values=list(values)))
    return outputs[-1]
