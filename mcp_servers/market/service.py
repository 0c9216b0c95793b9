"""The market room's parts, as its tools reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcp_servers.market.chart.overlay import Overlay
from mcp_servers.market.health import Health
from mcp_servers.market.history import History
from mcp_servers.market.news.collection import News
from mcp_servers.market.onchain import OnChain
from mcp_servers.market.prices import Prices
from mcp_servers.market.reference import Reference
from mcp_servers.market.sources.base import SourceState
from trading.domain.instruments import InstrumentId


@dataclass(frozen=True, slots=True)
class MarketService:
    """What the server's lifespan yields.

    Attributes:
        prices: the newest books and trades, and questions about them.
        history: candles.
        health: what to report of source and bus.
        onchain: the configured pools.
        news: the configured feeds.
        overlay: the desk's own orders and fills.
        reference: asks the venues; None in a replay, which has no network.
    """

    prices: Prices
    history: History
    health: Callable[[], Health]
    onchain: OnChain
    news: News
    overlay: Overlay
    reference: Reference | None = None

    def reasons_against(self) -> list[str]:
        """Return why prices should not be traded on now; empty when nothing speaks against it."""
        board = self.prices.board
        reasons: list[str] = []
        if not self.health().bus_connected:
            reasons.append("the bus is not connected: other rooms do not get these prices")
        if not board.symbols:
            reasons.append("no instrument is known yet")
        for symbol in board.symbols:
            venue = board.choose(symbol).venue
            source = board.health(venue)
            if source.state is not SourceState.RUNNING:
                reason = source.message or f"the source of {venue} is {source.state.value}"
            elif why := board.why_not(InstrumentId(venue, symbol)):
                reason = f"{symbol} on {venue}: {why}"
            else:
                continue
            if reason not in reasons:
                reasons.append(reason)
        return reasons
