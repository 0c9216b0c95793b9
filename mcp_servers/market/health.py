"""What the market room knows of its own feeds, beside the ages of what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mcp_servers.market.order_book import BookState
from mcp_servers.market.sources.base import SourceStatus
from trading.domain.instruments import InstrumentId


@dataclass(frozen=True, slots=True)
class Health:
    """What this process knows of its own feed, beside the ages.

    Attributes:
        role: ``publisher`` or ``follower``.
        books: state and counters of each book that is built here; empty in a follower.
        counters: of pipeline, publisher or view.
    """

    role: str
    source: str
    status: SourceStatus
    bus_connected: bool
    books: Mapping[InstrumentId, tuple[BookState, dict[str, int]]] = field(
        default_factory=dict[InstrumentId, tuple[BookState, dict[str, int]]]
    )
    counters: Mapping[str, int] = field(default_factory=dict[str, int])
