"""What the tests of past candles share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal

from mcp_servers.market.candles import MINUTE_MS, CandleStore
from tests.market_support import BTC
from trading.adapters.sql.candles import Series
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed

HOUR = 60 * MINUTE_MS
DAY = 24 * HOUR
#: A midnight, 2025-06-15; the tests count in minutes from here.
START = 1_749_945_600_000
MINUTES = Series(Feed.LIVE, BTC, MINUTE_MS)


def at(minute: float) -> int:
    """Return the moment so many minutes after START."""
    return START + int(minute * MINUTE_MS)


def bar(minute: int, price: float = 100, *, interval: int = MINUTE_MS, volume: str = "1", trades: int = 1) -> Candle:
    """Return a closed bar that opens so many minutes after START and goes one up and one down."""
    low, mid, high = (Decimal(str(price + step)) for step in (-1, 0, 1))
    return Candle(BTC, interval, at(minute), mid, high, low, mid, Decimal(volume), trades, closed=True)


def trade(store: CandleStore, minute: float, price: float = 100, quantity: str = "1") -> None:
    """Count a trade so many minutes after START."""
    store.add(BTC, at(minute), Decimal(str(price)), Decimal(quantity))


def opens(candles: Sequence[Candle]) -> list[int]:
    """Return the opening times in minutes after START."""
    return [(candle.open_ts_ms - START) // MINUTE_MS for candle in candles]


class Venue:
    """Gives candles of its own, as the reference data of a venue does.

    Attributes:
        bars: what it has, of any length.
        asked: every question, (timeframe, first minute, last minute).
        error: raised instead of an answer.
        per_call: bars given at most, the oldest first.
        gate: cleared while it does not answer.
    """

    def __init__(self, bars: Sequence[Candle] = ()) -> None:
        self.bars = list(bars)
        self.asked: list[tuple[str, int, int]] = []
        self.error: Callable[[], Exception] | None = None
        self.per_call = 1_000
        self.gate = asyncio.Event()
        self.gate.set()

    async def candles(self, instrument_id: InstrumentId, timeframe: str, since_ms: int, until_ms: int) -> list[Candle]:
        self.asked.append((timeframe, (since_ms - START) // MINUTE_MS, (until_ms - START) // MINUTE_MS))
        await self.gate.wait()
        if self.error is not None:
            raise self.error()
        interval = {"1m": MINUTE_MS, "1h": HOUR, "1d": DAY}[timeframe]
        found = [item for item in self.bars if item.interval_ms == interval and since_ms <= item.open_ts_ms < until_ms]
        return found[: self.per_call]
