"""The tool that shows candles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mcp_servers.envelope import LookbackMs, Meta, Reply, ok
from mcp_servers.hosting import Context, state
from mcp_servers.market.history import History
from mcp_servers.market.prices import Prices
from mcp_servers.market.schemas import candles as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, Timeframe, VenueText
from trading.domain.market_data import Candle

_CANDLES_MAX: Final = 100


class HasHistory(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...

    @property
    def history(self) -> History:
        """Candles."""
        ...


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Get candles")
    async def market_get_candles(
        ctx: Context[HasHistory],
        symbol: SymbolText,
        timeframe: Timeframe,
        lookback: LookbackMs,
        venue: VenueText = None,
    ) -> Reply[schemas.Candles]:
        """Get candles built from the trades this server saw, as columns, oldest first, the newest 100 at most.

        It knows nothing from before its start. Times are the venue's. Example: timeframe "1m", lookback "30m".
        """
        service = state(ctx)
        instrument = service.prices.instrument(symbol, venue)
        found = await service.history.candles(instrument.id, timeframe, lookback)
        shown = found[-_CANDLES_MAX:]
        complete = bool(shown) and service.history.is_complete(shown[0])
        data = columns(shown, symbol=symbol, venue=instrument.venue, timeframe=timeframe, complete=complete)
        return ok(data, Meta(venue=instrument.venue, truncated=len(shown) < len(found)))


def columns(candles: Sequence[Candle], *, symbol: str, venue: str, timeframe: str, complete: bool) -> schemas.Candles:
    """Return candles as columns."""
    return schemas.Candles(
        symbol=symbol,
        venue=venue,
        timeframe=timeframe,
        open_ts_ms=[candle.open_ts_ms for candle in candles],
        open=[candle.open for candle in candles],
        high=[candle.high for candle in candles],
        low=[candle.low for candle in candles],
        close=[candle.close for candle in candles],
        volume=[candle.volume for candle in candles],
        last_closed=bool(candles) and candles[-1].closed,
        first_complete=complete,
    )
