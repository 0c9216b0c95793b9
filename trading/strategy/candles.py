"""Candles of a fixed interval made from public trades, on the venue's clock."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from decimal import Decimal

from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, TradePrint
from trading.domain.money import ZERO, add


class CandleBuilder:
    """Keeps the last closed candles of one instrument and the one that is still open.

    An interval without trades becomes a flat candle at the last close, so that indicators see time pass; at most
    ``kept`` of them are made for one gap. Trades older than the open candle are ignored.

    Args:
        interval_ms: length of a candle, > 0.
        kept: how many closed candles are remembered, >= 1.
    """

    def __init__(self, instrument_id: InstrumentId, *, interval_ms: int, kept: int) -> None:
        self._instrument_id = instrument_id
        self._interval_ms = interval_ms
        self._closed: deque[Candle] = deque(maxlen=kept)
        self._open: Candle | None = None

    @property
    def closed(self) -> tuple[Candle, ...]:
        """The closed candles, oldest first, at most ``kept``."""
        return tuple(self._closed)

    def add(self, trade: TradePrint) -> None:
        """Count a trade of this instrument; its venue time also closes candles that ended before it."""
        start = self._start(trade.venue_ts_ms)
        self.advance(trade.venue_ts_ms)
        candle = self._open
        if candle is None:
            self._open = self._flat(start, trade.price, trades=1, volume=trade.quantity)
        elif start == candle.open_ts_ms:
            self._open = replace(
                candle,
                open=candle.open if candle.trades else trade.price,
                high=max(candle.high, trade.price) if candle.trades else trade.price,
                low=min(candle.low, trade.price) if candle.trades else trade.price,
                close=trade.price,
                volume=add(candle.volume, trade.quantity),
                trades=candle.trades + 1,
            )

    def advance(self, venue_ts_ms: int) -> None:
        """Close every candle that had ended at that venue time (milliseconds since the epoch)."""
        start = self._start(venue_ts_ms)
        candle = self._open
        if candle is None or start <= candle.open_ts_ms:
            return
        self._closed.append(replace(candle, closed=True))
        missing = (start - candle.open_ts_ms) // self._interval_ms - 1
        for back in range(min(missing, self._closed.maxlen or missing), 0, -1):
            flat = self._flat(start - back * self._interval_ms, candle.close)
            self._closed.append(replace(flat, closed=True))
        self._open = self._flat(start, candle.close)

    def _start(self, venue_ts_ms: int) -> int:
        return venue_ts_ms - venue_ts_ms % self._interval_ms

    def _flat(self, start: int, price: Decimal, *, trades: int = 0, volume: Decimal = ZERO) -> Candle:
        return Candle(
            instrument_id=self._instrument_id,
            interval_ms=self._interval_ms,
            open_ts_ms=start,
            open=price,
            high=price,
            low=price,
            close=price,
            volume=volume,
            trades=trades,
            closed=False,
        )
