"""What is on a chart, before anybody decides how it looks.

Prices stay decimals up to the pixel: only the picture, the page and the averages drawn on them use floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from trading.domain.market_data import Candle, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderMark:
    """One order of the desk; times are on the chart's clock, in milliseconds.

    Attributes:
        price: the limit, or the stop of an order without one, in quote per base.
        quantity: base.
        status: as execution knows it; ``working`` where telling the end would tell the chart's future.
        until_ms: when it was over; None while it may still fill.
        reason: why it was refused or cancelled, in the venue's words; empty when nobody gave one.
    """

    side: Side
    price: Decimal
    quantity: Decimal
    status: str
    since_ms: int
    until_ms: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillMark:
    """One fill of the desk: base at quote per base; ``at_ms`` is on the chart's clock."""

    side: Side
    price: Decimal
    quantity: Decimal
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The desk's own doings on a symbol within a window, oldest first, and what to know about them."""

    orders: tuple[OrderMark, ...] = ()
    fills: tuple[FillMark, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One chart.

    Attributes:
        interval_ms: length of a candle.
        candles: oldest first; intervals without one are absent.
        since_ms, until_ms: left and right edge.
        decimals: of prices.
        last: the newest price, None when there is none.
        badges: a few short words that change how the chart is to be read, such as REPLAY.
        notes: sentences about what is missing.
        ema: per period one value for each candle, None where there is too little history.
    """

    symbol: str
    venue: str
    timeframe: str
    interval_ms: int
    candles: Sequence[Candle]
    since_ms: int
    until_ms: int
    decimals: int
    last: Decimal | None = None
    badges: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks: Marks = Marks()
    ema: Mapping[int, Sequence[float | None]] = field(default_factory=dict[int, Sequence[float | None]])


def moving_average(closes: Sequence[Decimal], period: int) -> list[float | None]:
    """Return the exponential moving average at each close, None for the first ``period - 1``; for the eye alone.

    It starts from the mean of the first ``period`` closes and weighs each later one with 2 / (period + 1), as TA-Lib.

    Args:
        closes: oldest first.
        period: closes, >= 1.
    """
    found: list[float | None] = [None] * min(period - 1, len(closes))
    if len(closes) < period:
        return found
    value, weight = sum(float(close) for close in closes[:period]) / period, 2 / (period + 1)
    found.append(value)
    for close in closes[period:]:
        value += (float(close) - value) * weight
        found.append(value)
    return found
