"""The market room's archive of closed candles as risk reads it: read only."""

from __future__ import annotations

from mcp_servers.risk.score.live import PastBar
from trading.adapters.sql.candles import CandleTables, Series
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed


class ArchiveCloses:
    """Implements ``numbers.history.ClosesSource`` and ``score.live.BarsSource``."""

    def __init__(self, tables: CandleTables) -> None:
        self._tables = tables

    async def closes(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> list[tuple[int, float]]:
        """Return (open time, close) of the whole candles within [from_ms, until_ms); raises LedgerUnavailable."""
        read = await self._tables.read(Series(feed, instrument_id, interval_ms), from_ms, until_ms)
        return [(item.candle.open_ts_ms, float(item.candle.close)) for item in read if item.complete]

    async def bars(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> list[PastBar]:
        """Return the whole candles within [from_ms, until_ms) with all of their prices; raises LedgerUnavailable."""
        read = await self._tables.read(Series(feed, instrument_id, interval_ms), from_ms, until_ms)
        return [
            PastBar(each.open_ts_ms, float(each.close), float(each.low), float(each.high), float(each.volume))
            for each in [item.candle for item in read if item.complete]
        ]
