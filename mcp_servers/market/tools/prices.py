"""Tools that show the newest prices."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from mcp_servers.envelope import Meta, PositiveDecimalText, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.prices import Estimate, Prices, Tick
from mcp_servers.market.schemas import prices as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, SymbolTexts, VenueText
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import quantize_nearest, subtract

Depth = Annotated[int, Field(ge=1, le=50)]


class HasPrices(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Get tickers")
    async def market_get_tickers(
        ctx: Context[HasPrices], symbols: SymbolTexts, venue: VenueText = None
    ) -> Reply[schemas.Tickers]:
        """Get best bid and ask, mid, last price and volume of up to 20 symbols. Example: symbols ["BTC/USDT"]."""
        prices = state(ctx).prices
        ticks = [prices.tick(symbol, venue) for symbol in symbols]
        age = max((tick.age_ms for tick in ticks if tick.age_ms is not None), default=None)
        data = schemas.Tickers(tickers=[ticker_row(tick) for tick in ticks])
        return ok(data, Meta(venue=prices.venue, age_ms=age))

    @read(title="Get order book")
    async def market_get_order_book(
        ctx: Context[HasPrices], symbol: SymbolText, depth: Depth = 20, venue: VenueText = None
    ) -> Reply[schemas.Book]:
        """Get the best levels of a symbol's book, at most 50 a side.

        For the cost of an order of a given size use market_estimate_fill instead.
        """
        prices = state(ctx).prices
        book = prices.book(symbol, venue)
        age = prices.age_ms(book)
        data = book_row(book, depth=depth, age_ms=age, stale=prices.is_stale(book))
        meta = Meta(venue=prices.venue, age_ms=age, as_of=timestamp(book.published_ts_ms), source=book.feed.value)
        return ok(data, meta)

    @read(title="Estimate a fill")
    async def market_estimate_fill(
        ctx: Context[HasPrices],
        symbol: SymbolText,
        side: Literal["buy", "sell"],
        amount: PositiveDecimalText,
        unit: Literal["base", "quote"] = "base",
        venue: VenueText = None,
    ) -> Reply[schemas.FillEstimate]:
        """Estimate what a market order would get now: average price, impact, fee and what stays unfilled.

        Nothing is reserved and the price may move. A stale book is refused. Example: side "buy", amount "0.5".
        """
        prices = state(ctx).prices
        found = prices.estimate(symbol, Side(side), amount, unit, venue)
        return ok(estimate_row(found, side), Meta(venue=prices.venue, age_ms=found.age_ms))


def ticker_row(tick: Tick) -> schemas.Ticker:
    """Return a ticker's row; prices of an empty or crossed book are left out."""
    book = tick.book if tick.book is not None and tick.book.is_two_sided else None
    return schemas.Ticker(
        symbol=tick.instrument.symbol,
        venue=tick.instrument.venue,
        bid=book.bids[0].price if book else None,
        ask=book.asks[0].price if book else None,
        mid=book.mid if book else None,
        last=tick.last.price if tick.last else None,
        volume=tick.volume,
        age_ms=tick.age_ms,
        stale=tick.stale,
        source=tick.book.feed.value if tick.book else None,
    )


def book_row(book: OrderBook, *, depth: int, age_ms: int, stale: bool) -> schemas.Book:
    """Return the best ``depth`` levels of a book."""
    return schemas.Book(
        symbol=book.instrument_id.symbol,
        venue=book.instrument_id.venue,
        bids=[(level.price, level.quantity) for level in book.bids[:depth]],
        asks=[(level.price, level.quantity) for level in book.asks[:depth]],
        sequence=book.sequence,
        venue_ts_ms=book.venue_ts_ms,
        age_ms=age_ms,
        stale=stale,
        source=book.feed.value,
    )


def estimate_row(found: Estimate, side: str) -> schemas.FillEstimate:
    """Return an estimate's row."""
    vwap = found.walked.average_price
    return schemas.FillEstimate(
        symbol=found.instrument.symbol,
        venue=found.instrument.venue,
        side=side,
        requested=found.requested,
        filled=found.walked.filled,
        unfilled=subtract(found.requested, found.walked.filled),
        vwap=None if vwap is None else quantize_nearest(vwap, 8),
        worst_price=found.walked.worst_price,
        notional=found.walked.notional,
        fee=found.fee,
        impact_bps=found.impact_bps,
        age_ms=found.age_ms,
    )
