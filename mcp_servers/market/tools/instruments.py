"""Tools that find instruments and show their rules."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from mcp_servers.envelope import Meta, Reply, fit, ok
from mcp_servers.hosting import Context, state
from mcp_servers.market.prices import Prices
from mcp_servers.market.schemas import instruments as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, VenueText
from trading.domain.instruments import Instrument

Limit = Annotated[int, Field(ge=1, le=20)]


class HasPrices(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Search instruments")
    async def market_search_instruments(
        ctx: Context[HasPrices], query: Annotated[str, Field(max_length=41)] = "", limit: Limit = 10
    ) -> Reply[schemas.Found]:
        """Find instruments by a part of their symbol; an empty query lists all. Example: query "BTC"."""
        prices = state(ctx).prices
        page = fit([rules_row(item) for item in prices.search(query)], cursor_of=lambda row: row.symbol, limit=limit)
        return ok(schemas.Found(instruments=page.rows), Meta(venue=prices.venue, truncated=page.truncated))

    @read(title="Get instrument rules")
    async def market_get_instrument(
        ctx: Context[HasPrices], symbol: SymbolText, venue: VenueText = None
    ) -> Reply[schemas.Rules]:
        """Get the venue's rules for a symbol: price tick, quantity step, minimums, maximums and fee rates."""
        prices = state(ctx).prices
        return ok(rules_row(prices.instrument(symbol, venue)), Meta(venue=prices.venue))


def rules_row(instrument: Instrument) -> schemas.Rules:
    """Return an instrument's rules."""
    return schemas.Rules(
        symbol=instrument.symbol,
        venue=instrument.venue,
        base=instrument.base,
        quote=instrument.quote,
        price_tick=instrument.price_tick,
        quantity_step=instrument.quantity_step,
        quantity_min=instrument.quantity_min,
        quantity_max=instrument.quantity_max,
        notional_min=instrument.notional_min,
        notional_max=instrument.notional_max,
        maker_fee=instrument.maker_fee,
        taker_fee=instrument.taker_fee,
    )
