"""How the feeds are: ages in milliseconds."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from mcp_servers.envelope import Row


class VenueRow(Row):
    """One venue, the desk's own first.

    Attributes:
        state: starting, running, reconnecting or ended.
        code, message: why it gives no data; empty while it does.
        age_ms: since anything arrived from it.
        skew_ms: receive time less venue time at best.
    """

    venue: str
    state: str
    code: str
    message: str
    age_ms: int | None
    reconnects: int
    gaps: int
    skew_ms: int | None


class FeedRow(Row):
    """One instrument at one venue.

    Attributes:
        feed: live, replay or synthetic.
        state: ok, or why the book is empty: resync, gap, crossed or outlier.
        marks: why no order may be priced from the book; empty when one may.
        gaps: breaks in the book's sequence; 0 in a process that does not build it.
    """

    symbol: str
    venue: str
    feed: str | None
    book_age_ms: int | None
    trade_age_ms: int | None
    sequence: int
    usable: bool
    state: str | None
    marks: list[str]
    gaps: int


#: Rows name their own fields; their schema would only repeat that.
_OBJECT = WithJsonSchema({"type": "object"})


class Status(Row):
    """Whether prices can be trusted now, and why not."""

    safe_to_trade: bool
    reasons: list[str]
    role: str  # publisher, or follower when another process publishes for this desk
    source: str  # live, replay, or streams in a follower
    bus_connected: bool
    failover: list[str]  # the venues that stand in for the desk's own now, and why
    venues: list[Annotated[VenueRow, _OBJECT]]
    feeds: list[Annotated[FeedRow, _OBJECT]]
    conflation: str  # what may be left out between two values
    counters: dict[str, int]  # those that are not zero
