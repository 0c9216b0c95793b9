"""Wires the market room: one process of a desk publishes, any further one follows what it publishes.

Rules kept here:

- Whoever holds the lock ``run/market.lock`` publishes. It reads every venue and answers from its own memory.
- The others follow the signed streams. When the publisher is gone, one of them gets the lock and publishes; it goes on
  answering from the streams, so nothing that a caller holds changes under it.
- Only the desk's own venue has to be configured well for the process to start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from mcp_servers.hosting import stop_process
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.history_opening import HistoryParts
from mcp_servers.market.market_events import MarketEvents
from mcp_servers.market.parts import Parts, introduce, keeping, open_parts, writing
from mcp_servers.market.prices import Prices
from mcp_servers.market.publishing import BarsOnly, Room, SourceOpener, open_live, publishing, watched
from mcp_servers.market.quality import QualityJudge
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings
from mcp_servers.market.spans import Watch
from mcp_servers.market.standing import Standing
from mcp_servers.market.venues import VenueBoard
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.file_lock import FileLock
from trading.adapters.market_stream import (
    LocalMarketFeed,
    MarketFeed,
    MarketStreamView,
    Subscription,
    create_feed_key,
)
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, TradePrint
from trading.domain.proposals import Mode
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

_TAKE_OVER_S: Final = 0.5  # between two looks at whether the publisher is gone


@asynccontextmanager
async def open_market(
    desk: DeskSettings,
    market: MarketSettings,
    *,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_failure: Callable[[], None] = stop_process,
    open_source: SourceOpener | None = None,
) -> AsyncGenerator[MarketService]:
    """Run the room for the length of an ``async with`` block and yield its service.

    Args:
        desk, market: the settings.
        clock, sleep: the machine's unless a test says otherwise.
        on_failure: called, after the reason was logged, when a task died of something unforeseen.
        open_source: makes live sources instead of ccxt.

    Raises:
        ConfigurationError: the feed key, the recording or the desk's own venue is unusable.
        Unavailable: there is no bus.
    """
    found_clock = clock or SystemClock()
    home = desk.desk_home.ensure()
    key = create_feed_key(home.keys("market") / "feed.hmac")
    lock = FileLock(home.run / "market.lock")
    first = lock.try_lock(shared=False)
    try:
        async with open_redis(home, desk, "market") as redis:
            room = Room(
                redis=redis,
                key=key,
                desk=desk,
                market=market,
                clock=found_clock,
                sleep=sleep,
                on_failure=on_failure,
                lock=lock,
                open_source=open_source or (lambda venue: open_live(desk, venue, found_clock, sleep)),
                judge=QualityJudge(market.quality, found_clock, market.max_age_ms),
                candles=CandleStore(),
                standing=Standing(market.source),
            )
            async with _publish(room) if first else _follow(room) as service:
                yield service
    finally:
        lock.close()


@asynccontextmanager
async def _publish(room: Room) -> AsyncGenerator[MarketService]:
    """Publish, and answer from this process's memory."""
    local = LocalMarketFeed(room.clock, feed=room.feed)
    async with open_parts(room, publishing=True) as parts, writing(room, parts.history) as sinks:
        service = _service(room, local, parts)
        board = service.prices.board
        async with (
            publishing(room, board, room.candles, (local, *sinks), partial(_introduce, parts, parts.history)),
            watched((board.run,), room.on_failure),
        ):
            yield service


@asynccontextmanager
async def _follow(room: Room) -> AsyncGenerator[MarketService]:
    """Answer from the streams, and publish as soon as nobody else does."""
    _log.info("another process publishes market data for this desk; following it")
    accept = {Feed.LIVE} if room.desk.mode is not Mode.PAPER else set(Feed)
    async with (
        MarketStreamView(room.redis, room.desk.desk, room.key, room.clock, accept) as view,
        open_parts(room, publishing=False) as parts,
    ):
        room.standing.view = view
        trades = view.subscribe_trades()
        service = _service(room, view, parts)
        board = service.prices.board
        watch = parts.history.watch
        jobs = (lambda: _count(view, trades, room.candles, watch), lambda: _take_over(room, board, parts), board.run)
        async with watched(jobs, room.on_failure):
            await view.ready()
            yield service


async def _take_over(room: Room, board: VenueBoard, parts: Parts) -> None:
    """Wait until the publisher is gone, then publish until cancelled."""
    while not room.lock.try_lock(shared=False):  # noqa: ASYNC110  another process holds it; there is no event
        await asyncio.sleep(_TAKE_OVER_S)
    _log.warning("the process that published market data is gone; publishing in its place")
    async with (
        keeping(room, parts.time, None, publishing=True, watch=parts.history.watch) as history,
        writing(room, history) as sinks,
        publishing(room, board, BarsOnly(room.candles), sinks, partial(_introduce, parts, history)),
    ):
        await asyncio.Event().wait()


def _introduce(parts: Parts, history: HistoryParts, events: MarketEvents) -> None:
    introduce(events, parts.cache, history)


async def _count(view: MarketStreamView, trades: Subscription[TradePrint], candles: CandleStore, watch: Watch) -> None:
    """Count the trades of the streams, and note where some may be missing."""
    counted: dict[InstrumentId, int] = {}
    losses = (view.reconnects, trades.overruns)
    async for trade in trades:
        key = trade.instrument_id
        if losses != (found := (view.reconnects, trades.overruns)):
            losses = found
            for each in counted:
                watch.interrupted(each)
        if key in counted and view.begun_anew(key, counted[key], trade.sequence):
            watch.interrupted(key)
        counted[key] = trade.sequence
        candles.add(key, trade.venue_ts_ms, trade.price, trade.quantity)
        watch.resumed(key, trade.venue_ts_ms)


def _service(room: Room, feed: MarketFeed, parts: Parts) -> MarketService:
    desk, market, standing = room.desk, room.market, room.standing
    board = VenueBoard(feed, room.venues, desk.symbols, judge=room.judge, clock=room.clock, health=standing.health_of)
    prices = Prices(
        feed,
        room.candles,
        room.clock,
        venue=desk.market_venue,
        aliases=(desk.venue,) if desk.mode is Mode.PAPER else (),
        max_age_ms=market.max_age_ms,
        source=lambda: standing.health().status,
        judge=room.judge,
        board=board,
    )
    standing.counts(parts.counters)
    return MarketService(
        prices=prices,
        history=parts.history.history,
        health=standing.health,
        onchain=parts.onchain,
        news=parts.news,
        overlay=parts.overlay,
        reference=parts.reference,
    )
