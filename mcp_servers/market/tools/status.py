"""The tool that says how the feeds are."""

from __future__ import annotations

from typing import Final

from mcp_servers.envelope import Meta, Page, Reply, fit, ok
from mcp_servers.hosting import Context, state
from mcp_servers.market.pipeline import BOOK_INTERVAL_MS
from mcp_servers.market.schemas import status as schemas
from mcp_servers.market.service import MarketService
from mcp_servers.market.tools.arguments import Register
from mcp_servers.market.venues import VenueHealth

CONFLATION: Final = (
    f"books: last value, at most every {BOOK_INTERVAL_MS} ms below the best levels; trades and candles: never conflated"
)
_FEEDS_MAX: Final = 100
_FEED_CHARS: Final = 6_000  # what the rest of a reply leaves
_MESSAGE_MAX: Final = 200


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Market status")
    async def market_get_status(ctx: Context[MarketService]) -> Reply[schemas.Status]:
        """Show whether prices can be traded on now, and why not: venues, failover, feeds, ages, gaps, skew.

        Ask it first, and when a price is stale or missing. It has no prices.
        """
        service = state(ctx)
        page = feed_rows(service)
        return ok(status_row(service, page.rows), Meta(venue=service.prices.venue, truncated=page.truncated))


def status_row(service: MarketService, feeds: list[schemas.FeedRow]) -> schemas.Status:
    """Return how venues and bus are, and whatever speaks against trading on these prices."""
    health, board = service.health(), service.prices.board
    counters = {**{f"source_{name}": count for name, count in health.status.counters.items()}, **health.counters}
    reasons = service.reasons_against()
    return schemas.Status(
        safe_to_trade=not reasons,
        reasons=reasons,
        role=health.role,
        source=health.source,
        bus_connected=health.bus_connected,
        failover=[f"{symbol}: {c.venue} answers. {c.reason}" for symbol, c in board.failovers().items()],
        venues=[venue_row(board.health(venue)) for venue in board.venues],
        feeds=feeds,
        conflation=CONFLATION,
        counters={name: count for name, count in counters.items() if count},
    )


def venue_row(health: VenueHealth) -> schemas.VenueRow:
    """Return how one venue is."""
    return schemas.VenueRow(
        venue=health.venue,
        state=health.state.value,
        code=health.code,
        message=health.message[:_MESSAGE_MAX],
        age_ms=health.age_ms,
        reconnects=health.reconnects,
        gaps=health.gaps,
        skew_ms=health.skew_ms,
    )


def feed_rows(service: MarketService) -> Page[schemas.FeedRow]:
    """Return the instruments, those of the desk's own venue first, as many as a reply may hold."""
    prices, books = service.prices, service.health().books
    order = {venue: index for index, venue in enumerate(prices.venues)}
    rows: list[schemas.FeedRow] = []
    for row in sorted(prices.feeds(), key=lambda row: order.get(row.instrument_id.venue, len(order))):
        judged = prices.judged(row.instrument_id)
        rows.append(
            schemas.FeedRow(
                symbol=row.instrument_id.symbol,
                venue=row.instrument_id.venue,
                feed=row.feed.value if row.feed else None,
                book_age_ms=row.book_age_ms if judged is None else judged.age_ms,
                trade_age_ms=row.trade_age_ms,
                sequence=row.sequence,
                usable=judged is not None and judged.usable,
                state=prices.book_state(row.instrument_id),
                marks=[mark.value for mark in judged.marks] if judged is not None else [],
                gaps=books[row.instrument_id][1]["gaps"] if row.instrument_id in books else 0,
            )
        )
    return fit(rows, cursor_of=lambda row: f"{row.venue}:{row.symbol}", limit=_FEEDS_MAX, max_chars=_FEED_CHARS)
