"""The tool that says how the feeds are."""

from __future__ import annotations

from mcp_servers.envelope import Meta, Reply, ok
from mcp_servers.hosting import Context, state
from mcp_servers.market.schemas import status as schemas
from mcp_servers.market.service import MarketService
from mcp_servers.market.tools.arguments import Register
from trading.domain.market_data import Feed, OrderBook


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Market status")
    async def market_get_status(ctx: Context[MarketService]) -> Reply[schemas.Status]:
        """Show whether prices can be traded on now, and why not: source, feeds, ages, gaps, clock skew."""
        service = state(ctx)
        return ok(status_row(service), Meta(venue=service.prices.venue))


def status_row(service: MarketService) -> schemas.Status:
    """Return ages, counters and whatever speaks against trading on these prices."""
    health = service.health()
    feeds: list[schemas.FeedRow] = []
    for row in service.prices.feeds():
        state, counters = health.books.get(row.instrument_id, (None, dict[str, int]()))
        book = service.prices.newest(row.instrument_id)
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
