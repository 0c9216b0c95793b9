"""The tool that shows candles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Protocol

from pydantic import Field

from mcp_servers.envelope import MAX_CHARS, LookbackMs, Meta, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.history import CandleSeries, History
from mcp_servers.market.market_time import parse_as_of
from mcp_servers.market.prices import Prices
from mcp_servers.market.schemas import candles as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, Timeframe, VenueText
from trading.domain.market_data import Candle
from trading.domain.money import plain

#: Characters of a reply that are not columns: envelope, meta, names and notes.
_FRAME_CHARS: Final = 1_500
#: Quotes and commas around the seven values of one candle.
_MARKS_PER_CANDLE: Final = 17

Limit = Annotated[int, Field(ge=1, le=500)]


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
        limit: Limit = 100,
        as_of: Annotated[str, Field(max_length=40)] = "",
        venue: VenueText = None,
    ) -> Reply[schemas.Candles]:
        """Get candles as columns, oldest first, the newest that fit; venue's time. Example: "1m", lookback "30m".

        `as_of` (RFC 3339): as they stood then. An open last candle may still change. For averages and the like use
        market_get_indicators, for volatility market_get_statistics: they compute exactly.
        """
        service = state(ctx)
        instrument = service.prices.instrument(symbol, venue)
        moment = parse_as_of(as_of) if as_of else None
        found = await service.history.candles(
            instrument.id, timeframe, lookback_ms=lookback, as_of_ms=moment, limit=limit
        )
        shown = found.newest(how_many_fit(found.candles))
        meta = Meta(
            venue=instrument.venue,
            as_of=timestamp(found.until_ms) if as_of else None,
            truncated=shown.truncated,
        )
        return ok(columns(shown), meta)


def how_many_fit(candles: Sequence[Candle], *, max_chars: int = MAX_CHARS - _FRAME_CHARS) -> int:
    """Return how many of the newest candles a reply may hold, at least one if there is one."""
    used = 0
    for count, candle in enumerate(reversed(candles)):
        values = (candle.open, candle.high, candle.low, candle.close, candle.volume)
        used += len(str(candle.open_ts_ms)) + sum(len(plain(value)) for value in values) + _MARKS_PER_CANDLE
        if count and used > max_chars:
            return count
    return len(candles)


def columns(found: CandleSeries) -> schemas.Candles:
    """Return a series as columns."""
    return schemas.Candles(
        symbol=found.instrument_id.symbol,
        venue=found.instrument_id.venue,
        timeframe=found.timeframe,
        open_ts_ms=[candle.open_ts_ms for candle in found.candles],
        open=[candle.open for candle in found.candles],
        high=[candle.high for candle in found.candles],
        low=[candle.low for candle in found.candles],
        close=[candle.close for candle in found.candles],
        volume=[candle.volume for candle in found.candles],
        last_closed=found.last_closed,
        first_complete=found.first_complete,
        sources=list(found.sources),
        gaps=found.gaps,
        notes=[*found.notes, *([] if found.candles or found.notes else ["no candles are known of this time"])],
    )
