"""Whether this process publishes the desk's market data or follows it, and how that goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mcp_servers.market.health import FeedHealth, Health
from mcp_servers.market.market_events import MarketEvents
from mcp_servers.market.sources.base import SourceState, SourceStatus
from mcp_servers.market.venue_feed import VenueFeeds
from trading.adapters.market_stream import MarketStreamPublisher, MarketStreamView
from trading.domain.identifiers import Venue


class Standing:
    """What this process is to its desk; a follower may become the publisher.

    Args:
        source: ``live`` or ``replay``.

    Attributes:
        view: what a follower reads, also after it has become the publisher; None in one that was it from the start.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._publisher: MarketStreamPublisher | None = None
        self._feeds: VenueFeeds | None = None
        self._events: MarketEvents | None = None
        self._counters: list[Callable[[], Mapping[str, int]]] = []
        self.view: MarketStreamView | None = None

    def counts(self, counters: Callable[[], Mapping[str, int]]) -> None:
        """Report these counters too, under the names they have."""
        self._counters.append(counters)

    def publishes(self, publisher: MarketStreamPublisher, feeds: VenueFeeds, events: MarketEvents) -> None:
        """Note that this process publishes from now on."""
        self._publisher, self._feeds, self._events = publisher, feeds, events

    def health(self) -> Health:
        """Return what to report."""
        view = self.view.status() if self.view is not None else None
        connected = view is None or view.connected
        counters = dict(view.counters) if view is not None else {}
        for more in self._counters:
            counters.update(more())
        if self._publisher is None or self._feeds is None or self._events is None:
            state = SourceState.RUNNING if connected else SourceState.RECONNECTING
            return Health("follower", "streams", SourceStatus(state), connected, counters=counters)
        feeds, publisher = self._feeds, self._publisher
        return Health(
            "publisher",
            self._source,
            feeds.primary.status(),
            connected and publisher.connected,
            feeds.books(),
            {
                **counters,
                **publisher.counters,
                **{f"events_{name}": count for name, count in self._events.counters.items()},
                **feeds.counters(),
            },
        )

    def health_of(self, venue: Venue) -> FeedHealth | None:
        """Return how a venue's feed is, None when this process does not know it."""
        if self._feeds is not None:
            return self._feeds.health(venue)
        if self.view is None:
            return None
        state = SourceState.RUNNING if self.view.connected else SourceState.RECONNECTING
        return FeedHealth(SourceStatus(state))
