"""Candles of the past, as the tools ask for them."""

from __future__ import annotations

from mcp_servers.market.candles import CandleStore
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle


class History:
    """Candles built from the trades this process saw.

    Args:
        candles: fed by the pipeline.
    """

    def __init__(self, candles: CandleStore) -> None:
        self._candles = candles

    async def candles(self, instrument_id: InstrumentId, timeframe: str, lookback_ms: int) -> list[Candle]:
        """Return the candles of the last ``lookback_ms``, oldest first.

        Raises:
            InvalidValue: no such timeframe.
        """
        return self._candles.candles(instrument_id, timeframe, lookback_ms)

    def is_complete(self, candle: Candle) -> bool:
        """Return whether this process saw the candle from its beginning."""
        return candle.open_ts_ms >= self._candles.since_ms(candle.instrument_id)
