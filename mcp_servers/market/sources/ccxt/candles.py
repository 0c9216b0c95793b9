"""Past candles of a venue, page by page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from mcp_servers.market.sources.ccxt.exchange import RestExchange
from mcp_servers.market.sources.ccxt.instruments import decimal_of
from trading.domain.errors import InvalidValue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle

MAX_CANDLES: Final = 20_000
_PAGE: Final = 300  # what every large venue gives; used where ccxt does not know the limit
#: Weeks and months are left out: venues do not agree on when they begin.
_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TIMEFRAME: Final = re.compile(r"([1-9][0-9]{0,2})([smhd])")


class CandlePages:
    """Collects the candles that open within [since_ms, until_ms).

    Each page asks for what follows the newest candle there is. A venue that has nothing in the stretch of a page,
    because nobody traded or because it does not reach back so far, is asked for the next stretch.

    Attributes:
        candles: oldest first, without repetition.
        garbage: malformed rows, left out.
        count: how many candles the time holds.

    Raises:
        InvalidValue: INVALID_TIMEFRAME.
    """

    def __init__(
        self, instrument_id: InstrumentId, timeframe: str, since_ms: int, until_ms: int, *, now_ms: int
    ) -> None:
        self._id = instrument_id
        self._timeframe = timeframe
        self._interval_ms = interval_ms(timeframe)
        self._next_ms = -(-since_ms // self._interval_ms) * self._interval_ms
        self._until_ms = min(until_ms, now_ms)
        self._now_ms = now_ms
        self.candles: list[Candle] = []
        self.garbage = 0
        self.count = max(0, -(-(self._until_ms - self._next_ms) // self._interval_ms))

    async def take(self, exchange: RestExchange) -> bool:
        """Ask for the next page; return whether there is more to ask for.

        Raises:
            InvalidValue: INVALID_TIMEFRAME: the venue has no such candles. Otherwise what ccxt raises.
        """
        if self._timeframe not in (exchange.timeframes or {}):
            raise InvalidValue(
                f"{self._id.venue} has no candles of {self._timeframe}",
                code="INVALID_TIMEFRAME",
                allowed=tuple(exchange.timeframes or ()),
            )
        if self._next_ms >= self._until_ms:
            return False
        left = -(-(self._until_ms - self._next_ms) // self._interval_ms)
        limit = min(left, _page_size(exchange))
        rows = await exchange.fetch_ohlcv(self._id.symbol, self._timeframe, self._next_ms, limit)
        end_ms = self._next_ms + limit * self._interval_ms
        self._collect(rows)
        newest_ms = self.candles[-1].open_ts_ms if self.candles else 0
        self._next_ms = max(end_ms, newest_ms + self._interval_ms)
        return self._next_ms < self._until_ms

    def _collect(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add the rows that make sense, lie in the time asked for and are newer than what there is."""
        found: dict[int, Candle] = {}
        for row in rows:
            try:
                candle = self._candle(row)
            except (InvalidValue, TypeError, ValueError, LookupError):
                self.garbage += 1
                continue
            found[candle.open_ts_ms] = candle
        for open_ts_ms in sorted(found):
            after = self.candles[-1].open_ts_ms if self.candles else -1
            if max(self._next_ms, after + 1) <= open_ts_ms < self._until_ms:
                self.candles.append(found[open_ts_ms])

    def _candle(self, row: Sequence[Any]) -> Candle:
        open_ts_ms = int(row[0])
        opened, high, low, close, volume = (decimal_of(value) for value in row[1:6])
        if open_ts_ms % self._interval_ms or low <= 0 or volume < 0:
            raise InvalidValue("a candle makes no sense", code="MALFORMED")
        if not low <= min(opened, close) <= max(opened, close) <= high:
            raise InvalidValue("a candle's prices contradict each other", code="MALFORMED")
        closed = open_ts_ms + self._interval_ms <= self._now_ms
        return Candle(self._id, self._interval_ms, open_ts_ms, opened, high, low, close, volume, 0, closed)


def interval_ms(timeframe: str) -> int:
    """Return the length of a timeframe such as ``15m`` in milliseconds.

    Raises:
        InvalidValue: INVALID_TIMEFRAME.
    """
    found = _TIMEFRAME.fullmatch(timeframe)
    if found is None:
        raise InvalidValue(
            f"{timeframe[:8]!r} is no timeframe", code="INVALID_TIMEFRAME", suggestion="such as 1m or 1h"
        )
    return int(found[1]) * _UNITS_MS[found[2]]


def _page_size(exchange: RestExchange) -> int:
    known = exchange.feature_value_by_type("spot", None, "fetchOHLCV", "limit")
    return int(known) if isinstance(known, int) and known > 0 else _PAGE
