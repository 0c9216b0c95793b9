"""One venue's source with its pipeline, and all of them together.

Rules kept here:

- Every venue has its own source, task and pipeline. One that ends, refuses or is configured wrongly says so in its
  status, its books are emptied at once, and the others go on.
- Only what nobody foresaw on the desk's own venue is raised, and stops the process.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from mcp_servers.market.health import BookStatus, FeedHealth
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import MarketSource, SourceState, SourceStatus, SourceUpdate
from trading.domain.errors import TradingError
from trading.domain.identifiers import Venue
from trading.domain.market_data import Feed

_log = logging.getLogger(__name__)


class RefusedSource:
    """Stands in for a venue whose source could not even be made: it gives nothing and says why.

    Args:
        venue: which one.
        error: the reason.
    """

    feed = Feed.LIVE
    catching_up = False

    def __init__(self, venue: Venue, error: TradingError) -> None:
        self.venue = venue
        self._status = refusal(error)

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield nothing."""
        for nothing in ():
            yield nothing

    def position(self) -> None:
        """Return None: there is nothing to resume."""
        return

    def fresh_start(self) -> None:
        """Return None: there is nothing to begin."""
        return

    def status(self) -> SourceStatus:
        """Return why there is no data."""
        return self._status


class VenueFeed:
    """Carries one venue's updates into its pipeline.

    Args:
        source, pipeline: of the same venue.
        is_primary: whether it is the desk's own venue, without which the process is of no use.
    """

    def __init__(self, source: MarketSource, pipeline: MarketPipeline, *, is_primary: bool) -> None:
        self.source = source
        self.pipeline = pipeline
        self._is_primary = is_primary
        self._failure: SourceStatus | None = None

    @property
    def venue(self) -> Venue:
        """Whose data it is."""
        return self.source.venue

    async def run(self) -> None:
        """Carry updates until the source ends.

        Raises:
            Exception: something unforeseen, of the desk's own venue only.
        """
        try:
            await self.pipeline.run()
        except TradingError as error:
            self._fail(refusal(error))
            _log.warning("%s gives no data any more: %s", self.venue, error)
        except Exception:
            self._fail(SourceStatus(SourceState.ENDED, "INTERNAL", f"the feed of {self.venue} failed; see the log"))
            if self._is_primary:
                raise
            _log.critical("the feed of %s has failed; the others go on", self.venue, exc_info=True)

    def status(self) -> SourceStatus:
        """Return how the source is."""
        return self._failure or self.source.status()

    def health(self) -> FeedHealth:
        """Return how the feed is."""
        status, counters = self.status(), self.pipeline.counters
        gaps = sum(counts["gaps"] for _, counts in self.pipeline.book_status().values())
        return FeedHealth(
            status, self.pipeline.heard_ts_ms, counters["restarts"], gaps + status.counters.get("gaps", 0)
        )

    def _fail(self, status: SourceStatus) -> None:
        self._failure = status
        self.pipeline.abandon()


class VenueFeeds:
    """The venues that this process reads itself, the desk's own first."""

    def __init__(self, feeds: Sequence[VenueFeed]) -> None:
        self._feeds = tuple(feeds)
        self._by_venue = {feed.venue: feed for feed in self._feeds}

    @property
    def primary(self) -> VenueFeed:
        """The desk's own venue."""
        return self._feeds[0]

    @property
    def jobs(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What has to run beside one another."""
        return tuple(job for feed in self._feeds for job in (feed.run, feed.pipeline.run_timer))

    def health(self, venue: Venue) -> FeedHealth | None:
        """Return how one venue's feed is, None when it is not read here."""
        feed = self._by_venue.get(venue)
        return None if feed is None else feed.health()

    def books(self) -> BookStatus:
        """Return the state and counters of every book."""
        return {key: value for feed in self._feeds for key, value in feed.pipeline.book_status().items()}

    def counters(self) -> dict[str, int]:
        """Return those of the desk's own source as ``source_*`` and, added up as ``pipeline_*``, all pipelines'."""
        added: dict[str, int] = {}
        for feed in self._feeds:
            for name, count in feed.pipeline.counters.items():
                added[f"pipeline_{name}"] = added.get(f"pipeline_{name}", 0) + count
        return {**{f"source_{name}": count for name, count in self.primary.status().counters.items()}, **added}


def refusal(error: TradingError) -> SourceStatus:
    """Return the status of a venue that gives no data because of ``error``."""
    message = f"{error}; {error.suggestion}" if error.suggestion else str(error)
    return SourceStatus(SourceState.ENDED, error.code, message)
