"""Opens what answers beside the newest prices: history, the venues' rules, pools, news, the desk's own orders.

Rules kept here:

- None of it is needed for prices. A database, node or news feed that does not answer costs its own tools alone.
- Only the publishing process writes: closed candles to the ledger database, points to a time series database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mcp_servers.market.cache import AnswerCache
from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.chart.overlay import Overlay, ReplayPace, open_overlay
from mcp_servers.market.history_opening import HistoryParts, open_history
from mcp_servers.market.market_events import MarketEvents
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.news.collection import News, open_news
from mcp_servers.market.onchain import OnChain
from mcp_servers.market.pipeline import MarketSink
from mcp_servers.market.publishing import Room
from mcp_servers.market.reference import Reference
from mcp_servers.market.settings import ChainSettings, NewsSettings
from mcp_servers.market.spans import Watch
from mcp_servers.market.timeseries import TimeSeries
from trading.adapters.sql import LedgerLocation
from trading.domain.market_data import Candle, Feed
from trading.domain.money import plain

_NAMES: Final = {interval: name for name, interval in TIMEFRAMES.items()}


@dataclass(frozen=True, slots=True)
class Parts:
    """What was opened beside the prices.

    Attributes:
        reference: asks the venues; None in a replay, which has no network.
    """

    cache: AnswerCache
    time: MarketTime
    history: HistoryParts
    reference: Reference | None
    onchain: OnChain
    news: News
    overlay: Overlay

    def counters(self) -> dict[str, int]:
        """Return every counter by a name that says whose it is."""
        return {**self.history.counters(), **{f"cache_{name}": count for name, count in self.cache.counters.items()}}


@asynccontextmanager
async def open_parts(room: Room, *, publishing: bool) -> AsyncGenerator[Parts]:
    """Open them for the length of the block.

    Args:
        room: the process's room.
        publishing: whether this process publishes, and so writes the archive.

    Raises:
        ConfigurationError: an address in the settings is unusable.
    """
    market, clock = room.market, room.clock
    is_live = room.feed is Feed.LIVE
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(
            AnswerCache(market.cache, clock, redis=room.redis, desk=room.desk.desk, key=room.key)
        )
        reference = Reference(room.venues, clock, cache=cache, settings=market.cache) if is_live else None
        if reference is not None:
            stack.push_async_callback(reference.aclose)
        time = MarketTime(room.candles, clock=clock if is_live else None)
        history = await stack.enter_async_context(keeping(room, time, reference, publishing=publishing))
        # What a chain or a newspaper says today lies ahead of every recording.
        onchain = OnChain(market.chain if is_live else ChainSettings(), clock)
        news = open_news(market.news if is_live else NewsSettings(), market.cache, clock, cache=cache)
        stack.push_async_callback(news.close)
        stack.push_async_callback(onchain.close)
        pace = None if is_live else ReplayPace(market.speed, clock.now_ms())
        overlay = await stack.enter_async_context(open_overlay(room.desk, replay=pace))
        yield Parts(cache, time, history, reference, onchain, news, overlay)


@asynccontextmanager
async def keeping(
    room: Room, time: MarketTime, reference: Reference | None, *, publishing: bool, watch: Watch | None = None
) -> AsyncGenerator[HistoryParts]:
    """Open history alone; a follower that becomes the publisher opens it once more, to write, and watches on."""
    async with open_history(
        LedgerLocation.of(room.desk) if room.market.archive else None,
        room.candles,
        time,
        room.clock,
        feed=room.feed,
        publishing=publishing,
        venue=reference if room.market.backfill else None,
        watch=watch,
        skew_ms=room.judge.skew_ms,
    ) as history:
        yield history


@asynccontextmanager
async def writing(room: Room, history: HistoryParts) -> AsyncGenerator[tuple[MarketSink, ...]]:
    """Yield the sinks of a publishing process that keep what passes through it, for the length of the block."""
    influx = room.market.influx
    if influx.url is None:
        yield (history.watch,)
        return
    series = TimeSeries(influx, room.clock, sleep=room.sleep)
    if history.archive is not None:
        history.archive.on_candle_closed.append(series.on_candle_closed)
    room.standing.counts(lambda: {f"influx_{name}": count for name, count in series.counters.items()})
    task = asyncio.create_task(series.run(), name="time-series")
    try:
        yield (history.watch, series)
    finally:
        task.cancel()
        await asyncio.wait([task])


def introduce(events: MarketEvents, cache: AnswerCache, history: HistoryParts) -> None:
    """Let the cache forget what an event makes wrong, and let closed candles be events."""
    events.listen(cache.heed)
    if history.archive is not None:
        history.archive.on_candle_closed.append(lambda candle, complete: _tell(events, candle, complete=complete))


def _tell(events: MarketEvents, candle: Candle, *, complete: bool) -> None:
    venue, symbol = candle.instrument_id
    events.publish(
        "market.candle_closed",
        {
            "venue": venue,
            "symbol": symbol,
            "timeframe": _NAMES[candle.interval_ms],
            "open_ts_ms": candle.open_ts_ms,
            "close": plain(candle.close),
            "volume": plain(candle.volume),
            "complete": complete,
        },
    )
