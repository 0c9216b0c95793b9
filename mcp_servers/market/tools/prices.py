"""Tools that show the newest prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Protocol

from pydantic import Field

from mcp_servers.envelope import Meta, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.consolidated import consolidate, levels_of, merge, spread_after_fees_bps
from mcp_servers.market.prices import Prices, Tick
from mcp_servers.market.reference import fee_rates
from mcp_servers.market.schemas import prices as schemas
from mcp_servers.market.tools import fills
from mcp_servers.market.tools.arguments import Register, SymbolText, SymbolTexts, VenueText
from mcp_servers.market.tools.gathering import ALL, Gathered, gather
from mcp_servers.market.tools.rows import times_of
from trading.domain.identifiers import Venue
from trading.domain.market_data import Side
from trading.domain.money import quantize_nearest, total

Depth = Annotated[int, Field(ge=1, le=50)]

_BPS_DIGITS: Final = 4


class HasPrices(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...


def register(read: Register) -> None:
    """Add the tools, that of the fills among them."""

    @read(title="Get tickers")
    async def market_get_tickers(
        ctx: Context[HasPrices], symbols: SymbolTexts, venue: VenueText = None
    ) -> Reply[schemas.Tickers]:
        """Get best bid and ask, mid, last price and volume of up to 20 symbols. Example: symbols ["BTC/USDT"].

        Without a venue another one stands in when the desk's own is not usable. Not for what an order would get: that
        is market_estimate_fill. For all venues at once: market_compare_venues.
        """
        prices = state(ctx).prices
        ticks = [prices.tick(symbol, venue) for symbol in symbols]
        age = max((tick.age_ms for tick in ticks if tick.age_ms is not None), default=None)
        data = schemas.Tickers(tickers=[ticker_row(prices, tick) for tick in ticks])
        venues = {tick.instrument.venue for tick in ticks}
        books = [tick.book for tick in ticks if tick.book is not None]
        meta = Meta(
            venue=",".join(sorted(venues)),
            as_of=timestamp(min(book.received_ts_ms for book in books)) if books else None,
            age_ms=age,
            source="+".join(sorted({book.feed.value for book in books})) or None,
        )
        return ok(data, meta)

    @read(title="Get order book")
    async def market_get_order_book(
        ctx: Context[HasPrices],
        symbol: SymbolText,
        depth: Depth = 20,
        venue: VenueText = None,
        with_fees: bool = False,
    ) -> Reply[schemas.Book]:
        """Get the best levels of a symbol's book, at most 50 a side; venue "all" merges every usable venue.

        `with_fees` puts taker fees into the prices. For the cost of an order use market_estimate_fill instead.
        """
        found = gather(state(ctx).prices, symbol, venue)
        data = book_row(found, depth=depth, with_fees=with_fees)
        as_of = timestamp(data.received_ts_ms)  # a recording's own time, as in every other answer
        return ok(data, Meta(venue=found.label, age_ms=data.age_ms, as_of=as_of, source=data.source))

    @read(title="Compare venues")
    async def market_compare_venues(ctx: Context[HasPrices], symbol: SymbolText) -> Reply[schemas.Comparison]:
        """Compare a symbol's price on every venue: best bid and ask, spread between venues, deviation, index, mark.

        One symbol exactly, such as "BTC/USDT"; BTC/USD is another one. A negative spread is no profit by
        itself: coins must already be where they are sold.
        """
        prices = state(ctx).prices
        found = gather(prices, symbol, ALL)
        times = times_of(found.judged)
        as_of = timestamp(times.received_ts_ms)
        meta = Meta(venue=ALL, as_of=as_of, age_ms=times.age_ms, source=times.source)
        return ok(comparison_row(prices, found), meta)

    fills.register(read)


def ticker_row(prices: Prices, tick: Tick) -> schemas.Ticker:
    """Return a ticker's row; prices of an empty or crossed book are left out."""
    newest, last = tick.book, tick.last
    book = newest if newest is not None and newest.is_two_sided else None
    return schemas.Ticker(
        symbol=tick.instrument.symbol,
        venue=tick.instrument.venue,
        bid=book.bids[0].price if book else None,
        ask=book.asks[0].price if book else None,
        mid=book.mid if book else None,
        last=last.price if last else tick.bar_close,
        last_age_ms=prices.trade_age_ms(last) if last else None,
        volume=tick.volume,
        venue_ts_ms=newest.venue_ts_ms if newest else None,
        received_ts_ms=newest.received_ts_ms if newest else None,
        age_ms=tick.age_ms,
        stale=tick.stale,
        marks=[mark.value for mark in tick.marks],
        source=newest.feed.value if newest else None,
        failed_over_from=tick.failed_over_from,
    )


def book_row(found: Gathered, *, depth: int, with_fees: bool) -> schemas.Book:
    """Return the best ``depth`` levels of a venue's book, however old, or of all usable ones."""
    merged, first = found.label == ALL, found.books[0]
    rates = taker_rates(found) if with_fees else None
    if merged:
        bids, asks = merge(found.judged, Side.SELL, rates), merge(found.judged, Side.BUY, rates)
    else:  # shown even if it is not usable, with its marks
        rate = rates[first.instrument.venue] if rates is not None else None
        bids, asks = levels_of(first.book, Side.SELL, rate), levels_of(first.book, Side.BUY, rate)
    bids, asks = bids[:depth], asks[:depth]
    times = times_of([item.judged for item in found.usable or found.books])
    return schemas.Book(
        symbol=first.instrument.symbol,
        venue=found.label,
        bids=[(level.price, level.quantity) for level in bids],
        asks=[(level.price, level.quantity) for level in asks],
        bid_venues=[level.venue for level in bids] if merged else [],
        ask_venues=[level.venue for level in asks] if merged else [],
        sequence=max(item.book.sequence for item in found.books),
        venue_ts_ms=times.venue_ts_ms,
        received_ts_ms=times.received_ts_ms,
        age_ms=times.age_ms,
        stale=not found.usable,
        marks=[] if merged else [mark.value for mark in first.judged.marks],
        source=times.source,
        left_out=dict(found.left_out),
    )


def comparison_row(prices: Prices, found: Gathered) -> schemas.Comparison:
    """Return every venue of a symbol beside the others."""
    both = consolidate(found.judged)
    volumes = [prices.tick(item.instrument.symbol, item.instrument.venue).volume for item in found.books]
    return schemas.Comparison(
        symbol=found.books[0].instrument.symbol,
        bid=both.bid.price if both.bid else None,
        bid_venue=both.bid.venue if both.bid else None,
        ask=both.ask.price if both.ask else None,
        ask_venue=both.ask.venue if both.ask else None,
        spread_bps=_bps(both.spread_bps),
        spread_after_fees_bps=_bps(spread_after_fees_bps(found.judged, taker_rates(found))),
        mid=both.mid,
        index=both.index,
        mark=both.mark,
        volume=total(volumes),
        venues=[
            schemas.VenuePrice(
                venue=row.venue,
                bid=row.judged.book.bids[0].price if row.judged.book.bids else None,
                ask=row.judged.book.asks[0].price if row.judged.book.asks else None,
                mid=row.mid,
                deviation_bps=_bps(row.deviation_bps),
                volume=volume,
                venue_ts_ms=row.judged.book.venue_ts_ms,
                received_ts_ms=row.judged.book.received_ts_ms,
                age_ms=row.judged.age_ms,
                skew_ms=row.judged.skew_ms,
                source=row.judged.book.feed.value,
                marks=[mark.value for mark in row.judged.marks],
            )
            for row, volume in zip(both.rows, volumes, strict=True)
        ],
        left_out=dict(found.left_out),
    )


def taker_rates(found: Gathered) -> dict[Venue, Decimal]:
    """Return the taker rate of each venue, as far as it is known without an account."""
    return {item.instrument.venue: fee_rates(item.instrument, None).taker for item in found.books}


def _bps(value: Decimal | None) -> Decimal | None:
    return None if value is None else quantize_nearest(value, _BPS_DIGITS)
