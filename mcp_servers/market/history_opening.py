"""Opens what history needs: the archive, its writer, and whoever asks the venue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mcp_servers.market.backfill import Backfill, VenueCandles
from mcp_servers.market.candle_archive import CandleArchive
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.history import History
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.spans import Watch
from trading.adapters.sql.candles import CandleTables, open_candles, open_candles_in_memory
from trading.adapters.sql.location import LedgerLocation
from trading.domain.errors import ConfigurationError, LedgerError
from trading.domain.market_data import Feed
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HistoryParts:
    """What was opened.

    Attributes:
        history: answers questions.
        watch: a sink for every pipeline of a publishing process.
        archive: writes closed candles; None in a follower.
        backfill: asks the venues; None when nobody may be asked.
        kept: whether candles outlive this process.
    """

    history: History
    watch: Watch
    archive: CandleArchive | None
    backfill: Backfill | None
    kept: bool

    def counters(self) -> dict[str, int]:
        """Return every counter by a name that says whose it is."""
        found = {"archive_kept": int(self.kept)}
        if self.archive is not None:
            found |= {f"archive_{name}": count for name, count in self.archive.counters.items()}
            found["archive_waiting"] = self.archive.waiting
        if self.backfill is not None:
            found |= {f"backfill_{name}": count for name, count in self.backfill.counters.items()}
        return found


@asynccontextmanager
async def open_history(
    location: LedgerLocation | None,
    candles: CandleStore,
    time: MarketTime,
    clock: Clock,
    *,
    feed: Feed,
    publishing: bool,
    venue: VenueCandles | None = None,
    watch: Watch | None = None,
    skew_ms: Callable[[str], int | None] = lambda _: None,
) -> AsyncGenerator[HistoryParts]:
    """Open history for the length of an ``async with`` block; the archive writes meanwhile.

    A database that cannot be opened is logged and done without: prices are worth more than old candles.

    Args:
        location: where the desk keeps its ledgers; None to keep candles in memory alone.
        candles: fed by this process's pipelines.
        time: the market's present.
        publishing: whether this process writes; a follower reads the archive and keeps what it fetches to itself.
        venue: asked for what nobody has seen; None in a replay, or when it must not be asked.
        watch: knows what this process missed so far; a new one unless given.
        skew_ms: how far receive time runs ahead of a venue's clock, None before a measurement.
    """
    async with AsyncExitStack() as stack:
        shared = await _open_shared(stack, location, write=publishing)
        own = shared
        if own is None or not own.writable:
            own = await stack.enter_async_context(open_candles_in_memory())
        watch = watch or Watch(candles)
        archive = CandleArchive(own, candles, watch, clock, feed=feed) if publishing else None
        backfill = Backfill(venue, own, clock, skew_ms=skew_ms) if venue is not None else None
        shelves = (own,) if shared is None or shared is own else (shared, own)
        history = History(candles, time=time, watch=watch, feed=feed, shelves=shelves, backfill=backfill)
        if archive is not None:
            stack.push_async_callback(_stop, asyncio.create_task(archive.run(), name="candle-archive"))
        if backfill is not None:
            stack.push_async_callback(backfill.close)
        yield HistoryParts(history, watch, archive, backfill, shared is not None)


async def _open_shared(stack: AsyncExitStack, location: LedgerLocation | None, *, write: bool) -> CandleTables | None:
    if location is None:
        return None
    try:
        return await stack.enter_async_context(open_candles(location, write=write))
    except (ConfigurationError, LedgerError) as error:
        _log.warning("candles are not kept beyond this process: %s (%s)", error, error.code)
        return None


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the candle archive had failed", exc_info=error)
