"""What the market room knows of its own feeds, beside the ages of what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from mcp_servers.market.order_book import BookState
from mcp_servers.market.sources.base import SourceState, SourceStatus
from trading.domain.instruments import InstrumentId

BookStatus = Mapping[InstrumentId, tuple[BookState, dict[str, int]]]


class Events(Protocol):
    """Where market events go; publishing never waits."""

    def publish(self, event_type: str, payload: Mapping[str, object]) -> object:
        """Publish one event."""
        ...


def _no_books() -> BookStatus:
    return {}


@dataclass(frozen=True, slots=True)
class FeedHealth:
    """How one venue's feed is, on this machine.

    Attributes:
        heard_ts_ms: when the newest update arrived, on this machine's clock; None before the first and where others
            read the venue.
        reconnects: times its stream began anew.
        gaps: breaks in the sequence of a book.
    """

    status: SourceStatus
    heard_ts_ms: int | None = None
    reconnects: int = 0
    gaps: int = 0

    @classmethod
    def unknown(cls) -> Self:
        """Return the health of a feed of which nothing is known yet."""
        return cls(SourceStatus(SourceState.STARTING))


@dataclass(frozen=True, slots=True)
class Health:
    """What this process knows of its own feed, beside the ages.

    Attributes:
        role: ``publisher`` or ``follower``.
        source: ``live``, ``replay``, or ``streams`` in a follower.
        status: of the desk's own venue.
        books: state and counters of each book that is built here; empty in a follower.
        counters: of pipeline, publisher or view.
    """

    role: str
    source: str
    status: SourceStatus
    bus_connected: bool
    books: BookStatus = field(default_factory=_no_books)
    counters: Mapping[str, int] = field(default_factory=dict[str, int])
