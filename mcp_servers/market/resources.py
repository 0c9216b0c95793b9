"""Prices as resources that a client can follow instead of polling, and what completes their addresses.

``market://ticker/{base}/{quote}`` is the desk's choice of venue, ``market://ticker/{base}/{quote}/{venue}`` a named
one; the same for ``market://book/…``. The desk's own symbols stand in the list of resources.

Cues are conflated: at most one each 250 ms and instrument, and only after its best levels changed. Whoever needs every
trade reads the trade stream on the bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from mcp.server.subscriptions import ResourceUpdated
from mcp.types import Resource

from mcp_servers.desk_resources import ResourceBus, readable
from mcp_servers.envelope import Meta, ok
from mcp_servers.hosting import Context, DeskServer, state
from mcp_servers.market.prices import Prices
from mcp_servers.market.service import MarketService
from mcp_servers.market.tools.gathering import gather
from mcp_servers.market.tools.prices import book_row, ticker_row
from trading.adapters.market_stream import Subscription
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook

CUE_INTERVAL_S: Final = 0.25
_KINDS: Final = ("ticker", "book")
_JSON: Final = "application/json"
_DEPTH: Final = 20


class HasPrices(Protocol):
    """What these resources need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...


def register(server: DeskServer[MarketService], symbols: Iterable[str]) -> None:
    """Add the resources.

    Args:
        server: the market server.
        symbols: those of the desk; shown in the list of resources.
    """

    @server.resource("market://ticker/{base}/{quote}", name="ticker", title="Ticker", mime_type=_JSON)
    @readable
    async def ticker(base: str, quote: str, ctx: Context[HasPrices]) -> str:
        """Best bid and ask, mid, last and volume of a symbol at the venue the desk prefers now."""
        return _ticker(state(ctx).prices, f"{base}/{quote}", None)

    @server.resource("market://ticker/{base}/{quote}/{venue}", name="ticker_of", title="Ticker", mime_type=_JSON)
    @readable
    async def ticker_of(base: str, quote: str, venue: str, ctx: Context[HasPrices]) -> str:
        """Best bid and ask, mid, last and volume of a symbol at one venue."""
        return _ticker(state(ctx).prices, f"{base}/{quote}", venue)

    @server.resource("market://book/{base}/{quote}", name="book", title="Order book", mime_type=_JSON)
    @readable
    async def book(base: str, quote: str, ctx: Context[HasPrices]) -> str:
        """The best 20 levels of a symbol's book at the venue the desk prefers now."""
        return _book(state(ctx).prices, f"{base}/{quote}", None)

    @server.resource("market://book/{base}/{quote}/{venue}", name="book_of", title="Order book", mime_type=_JSON)
    @readable
    async def book_of(base: str, quote: str, venue: str, ctx: Context[HasPrices]) -> str:
        """The best 20 levels of a symbol's book at one venue."""
        return _book(state(ctx).prices, f"{base}/{quote}", venue)

    for symbol in symbols:
        for kind in _KINDS:
            server.list_resource(
                Resource(
                    uri=f"market://{kind}/{symbol}",
                    name=f"{symbol} {kind}",
                    title=f"{symbol} {kind}",
                    description="Follow it to hear when the best prices change.",
                    mime_type=_JSON,
                )
            )


def may_follow(uri: str) -> bool:
    """Return whether an address is of the form of a changing resource here."""
    kind, _, rest = uri.removeprefix("market://").partition("/")
    return uri.startswith("market://") and kind in _KINDS and len(rest.split("/")) in (2, 3) and len(uri) <= 200


def addresses_of(instrument_id: InstrumentId) -> tuple[str, ...]:
    """Return the addresses that a change of an instrument's book concerns."""
    symbol, venue = instrument_id.symbol, instrument_id.venue
    return tuple(f"market://{kind}/{symbol}{end}" for kind in _KINDS for end in ("", f"/{venue}"))


@asynccontextmanager
async def cueing(
    books: Callable[[], Subscription[OrderBook]],
    bus: ResourceBus,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[None]:
    """Publish a cue for every instrument whose best levels changed, for the length of the block."""

    async def run() -> None:
        best: dict[InstrumentId, object] = {}
        with books() as stream:
            while True:
                await sleep(CUE_INTERVAL_S)
                newest = {book.instrument_id: book for book in stream.drain()}
                for instrument_id, book in newest.items():
                    levels = (book.best_bid, book.best_ask)
                    if best.get(instrument_id) != levels:
                        best[instrument_id] = levels
                        await _publish(bus, instrument_id)

    task = asyncio.create_task(run(), name="market-cues")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _publish(bus: ResourceBus, instrument_id: InstrumentId) -> None:
    if bus.has_listeners:
        for uri in addresses_of(instrument_id):
            await bus.publish(ResourceUpdated(uri=uri))


def _ticker(prices: Prices, symbol: str, venue: str | None) -> str:
    tick = prices.tick(symbol, venue)
    return ok(ticker_row(prices, tick), Meta(venue=tick.instrument.venue, age_ms=tick.age_ms)).model_dump_json()


def _book(prices: Prices, symbol: str, venue: str | None) -> str:
    found = gather(prices, symbol, venue)
    row = book_row(found, depth=_DEPTH, with_fees=False)
    return ok(row, Meta(venue=found.label, age_ms=row.age_ms, source=row.source)).model_dump_json()


def complete(room: Any, name: str, typed: str, chosen: dict[str, str]) -> Sequence[str]:
    """Return what may be meant by ``typed`` in the argument ``name`` of a resource or prompt, best first."""
    instruments = room.prices.search("")
    wanted = typed.strip().upper()
    match name:
        case "base":
            found = {item.base for item in instruments}
        case "quote":
            base = chosen.get("base", "").upper()
            found = {item.quote for item in instruments if not base or item.base == base}
        case "symbol" | "symbols" | "benchmark":
            found = {item.symbol for item in instruments}
            wanted = wanted.rpartition(",")[2].strip()
        case "venue":
            symbol = chosen.get("symbol") or f"{chosen.get('base', '')}/{chosen.get('quote', '')}"
            found = {i.venue for i in instruments if symbol == "/" or i.symbol == symbol.upper()}
        case "side":
            found = {"buy", "sell"}
        case "timeframe":
            found = {"1m", "5m", "15m", "1h", "4h", "1d"}
        case _:
            return ()
    near = [value for value in sorted(found) if wanted in value.upper()]
    return sorted(near, key=lambda value: not value.upper().startswith(wanted))
