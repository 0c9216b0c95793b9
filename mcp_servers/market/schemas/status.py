"""How the feeds are."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import Row


class FeedRow(Row):
    """One instrument's feed."""

    symbol: str
    venue: str
    feed: str | None
    book_age_ms: int | None
    trade_age_ms: int | None
    sequence: int
    usable: bool
    book_state: str | None
    gaps: int
    skew_ms: int | None = Field(description="Receive time less venue time of the newest book")


class Status(Row):
    """Whether prices can be trusted now, and why not."""

    safe_to_trade: bool
    reasons: list[str]
    role: str = Field(description="publisher, or follower when another process publishes for this desk")
    source: str
    source_state: str
    source_code: str
    source_message: str
    bus_connected: bool
    feeds: list[FeedRow]
    counters: dict[str, int]
