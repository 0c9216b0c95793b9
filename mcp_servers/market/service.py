"""The market room's parts, as its tools reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_servers.market.health import Health
from mcp_servers.market.history import History
from mcp_servers.market.prices import Prices
from mcp_servers.market.sources.base import SourceState


@dataclass(frozen=True, slots=True)
class MarketService:
    """What the server's lifespan yields.

    Attributes:
        prices: the newest books and trades, and questions about them.
        history: candles.
        health: what to report of source and bus.
    """

    prices: Prices
    history: History
    health: Callable[[], Health]

    def reasons_against(self) -> list[str]:
        """Return why prices should not be traded on now; empty when nothing speaks against it."""
        health, rows = self.health(), self.prices.feeds()
        reasons: list[str] = []
        if health.status.state is not SourceState.RUNNING:
            reasons.append(health.status.message or f"the source is {health.status.state.value}")
        if not health.bus_connected:
            reasons.append("the bus is not connected: other rooms do not get these prices")
        if not rows:
            reasons.append("no instrument is known yet")
        for row in rows:
            if row.book_age_ms is None or row.book_age_ms > self.prices.max_age_ms:
                reasons.append(f"{row.instrument_id.symbol}: the book is stale")
            elif not row.usable:
                reasons.append(f"{row.instrument_id.symbol}: the book is empty or crossed")
        return reasons
