"""What the rows of several price tools have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mcp_servers.market.quality import Judged


class Times(NamedTuple):
    """When a value was true and where it is from; of several books the oldest times."""

    venue_ts_ms: int
    received_ts_ms: int
    age_ms: int
    source: str


def times_of(judged: Sequence[Judged]) -> Times:
    """Return the times of one book or the oldest of several (at least one); 0 when no venue gave a time."""
    books = [item.book for item in judged]
    return Times(
        min((book.venue_ts_ms for book in books if book.venue_ts_ms), default=0),
        min(book.received_ts_ms for book in books),
        max(item.age_ms for item in judged),
        "+".join(sorted({book.feed.value for book in books})),
    )
