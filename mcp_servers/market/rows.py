"""From domain values to the rows of ``schemas``."""

from __future__ import annotations

from collections.abc import Sequence

from mcp_servers.market import schemas
from mcp_servers.market.service import Estimate, MarketService, Tick
from trading.domain.instruments import Instrument
from trading.domain.market_data import Candle, Feed, OrderBook
from trading.domain.money import quantize_nearest, subtract


def ticker(tick: Tick) -> schemas.Ticker:
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


def rules(instrument: Instrument) -> schemas.Rules:
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


def fill_estimate(found: Estimate, side: str) -> schemas.FillEstimate:
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


def status(service: MarketService) -> schemas.Status:
    """Return ages, counters and whatever speaks against trading on these prices."""
    health = service.health()
    feeds: list[schemas.FeedRow] = []
    for row in service.feeds():
        state, counters = health.books.get(row.instrument_id, (None, dict[str, int]()))
        book = service.newest(row.instrument_id)
        feeds.append(
            schemas.FeedRow(
                symbol=row.instrument_id.symbol,
                venue=row.instrument_id.venue,
                feed=row.feed.value if row.feed else None,
                book_age_ms=row.book_age_ms,
                trade_age_ms=row.trade_age_ms,
                sequence=row.sequence,
                usable=row.usable,
                book_state=state.value if state else None,
                gaps=counters.get("gaps", 0),
                skew_ms=_skew(book),
            )
        )
    reasons = service.reasons_against()
    return schemas.Status(
        safe_to_trade=not reasons,
        reasons=reasons,
        role=health.role,
        source=health.source,
        source_state=health.status.state.value,
        source_code=health.status.code,
        source_message=health.status.message,
        bus_connected=health.bus_connected,
        feeds=feeds,
        counters={**health.status.counters, **health.counters},
    )


def _skew(book: OrderBook | None) -> int | None:
    if book is None or not book.venue_ts_ms or book.feed is Feed.SYNTHETIC:
        return None
    return book.received_ts_ms - book.venue_ts_ms
