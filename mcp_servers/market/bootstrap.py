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
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from redis.asyncio import Redis

from mcp_servers.hosting import stop_process
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.health import Events
from mcp_servers.market.history import History
from mcp_servers.market.pipeline import CandleSink, MarketPipeline, MarketSink
from mcp_servers.market.prices import Prices
from mcp_servers.market.quality import QualityJudge
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings, load_addresses
from mcp_servers.market.sources.base import MarketSource
from mcp_servers.market.sources.ccxt import CcxtLiveSource, open_exchange
from mcp_servers.market.sources.replay import ReplaySource, load_recording
from mcp_servers.market.standing import Standing
from mcp_servers.market.venue_feed import RefusedSource, VenueFeed, VenueFeeds
from mcp_servers.market.venues import VenueBoard
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.file_lock import FileLock
from trading.adapters.market_stream import (
    LocalMarketFeed,
    MarketFeed,
    MarketStreamPublisher,
    MarketStreamView,
    Subscription,
    create_feed_key,
)
from trading.domain.errors import ConfigurationError, TradingError, Unavailable
from trading.domain.identifiers import Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed, TradePrint
from trading.domain.proposals import Mode
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

_TAKE_OVER_S: Final = 0.5  # between two looks at whether the publisher is gone

#: Makes the source of a live venue.
SourceOpener = Callable[[Venue], MarketSource]


@dataclass(frozen=True)
class _Room:
    """What every part of the room is made of."""

    redis: Redis
    key: bytes
    desk: DeskSettings
    market: MarketSettings
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    on_failure: Callable[[], None]
    lock: FileLock
    open_source: SourceOpener
    judge: QualityJudge
    candles: CandleStore
    standing: Standing

    @property
    def feed(self) -> Feed:
        """What the data that this process publishes is."""
        return Feed.LIVE if self.market.source == "live" else Feed.REPLAY

    @property
    def venues(self) -> tuple[Venue, ...]:
        """The venues read here, the desk's own first; a recording has one."""
        others = self.market.venues if self.market.source == "live" else ()
        return tuple(dict.fromkeys((self.desk.market_venue, *map(Venue, others))))


class _BarsOnly:
    """Passes finished bars on; trades are counted where they are read from the streams."""

    def __init__(self, candles: CandleStore) -> None:
        self._candles = candles

    def add(self, instrument_id: InstrumentId, ts_ms: int, price: Decimal, quantity: Decimal) -> None:
        """Leave the trade to the reader of the streams."""

    def add_bar(self, bar: Candle) -> None:
        """Take in a finished bar: no stream carries it."""
        self._candles.add_bar(bar)

    def advance(self, instrument_id: InstrumentId, ts_ms: int) -> None:
        """Leave the time to the reader of the streams."""


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
            room = _Room(
                redis=redis,
                key=key,
                desk=desk,
                market=market,
                clock=found_clock,
                sleep=sleep,
                on_failure=on_failure,
                lock=lock,
                open_source=open_source or (lambda venue: _open_live(desk, venue, found_clock, sleep)),
                judge=QualityJudge(market.quality, found_clock, market.max_age_ms),
                candles=CandleStore(),
                standing=Standing(market.source),
            )
            async with _publish(room) if first else _follow(room) as service:
                yield service
    finally:
        lock.close()


@asynccontextmanager
async def _publish(room: _Room) -> AsyncGenerator[MarketService]:
    """Publish, and answer from this process's memory."""
    local = LocalMarketFeed(room.clock, feed=room.feed)
    async with _reading(room, room.candles, (local,)):
        service = _service(room, local)
        async with _watched((service.prices.board.run,), room.on_failure):
            yield service


@asynccontextmanager
async def _follow(room: _Room) -> AsyncGenerator[MarketService]:
    """Answer from the streams, and publish as soon as nobody else does."""
    _log.info("another process publishes market data for this desk; following it")
    accept = {Feed.LIVE} if room.desk.mode is not Mode.PAPER else set(Feed)
    async with MarketStreamView(room.redis, room.desk.desk, room.key, room.clock, accept) as view:
        room.standing.view = view
        trades = view.subscribe_trades()
        service = _service(room, view)
        jobs = (lambda: _count(trades, room.candles), lambda: _take_over(room), service.prices.board.run)
        async with _watched(jobs, room.on_failure):
            await view.ready()
            yield service


async def _take_over(room: _Room) -> None:
    """Wait until the publisher is gone, then publish until cancelled."""
    while not room.lock.try_lock(shared=False):  # noqa: ASYNC110  another process holds it; there is no event
        await asyncio.sleep(_TAKE_OVER_S)
    _log.warning("the process that published market data is gone; publishing in its place")
    async with _reading(room, _BarsOnly(room.candles), ()):
        await asyncio.Event().wait()


@asynccontextmanager
async def _reading(room: _Room, candles: CandleSink, sinks: tuple[MarketSink, ...]) -> AsyncGenerator[None]:
    """Read the venues and publish what they say, for the length of the block."""
    publisher = MarketStreamPublisher(room.redis, desk=room.desk.desk, key=room.key, clock=room.clock, feed=room.feed)
    async with publisher:
        feeds = await _open_feeds(room, candles, sinks, publisher, events=None)
        room.standing.publishes(publisher, feeds)
        async with _watched(feeds.jobs, room.on_failure):
            yield
        if (position := feeds.primary.source.fresh_start()) is not None:
            publisher.set_position(position)


async def _open_feeds(
    room: _Room,
    candles: CandleSink,
    sinks: tuple[MarketSink, ...],
    publisher: MarketStreamPublisher,
    *,
    events: Events | None,
) -> VenueFeeds:
    """Make a source and a pipeline for every venue."""
    feeds: list[VenueFeed] = []
    for venue in room.venues:
        is_primary = venue == room.desk.market_venue
        source = await _open_source(room, venue, publisher, is_primary=is_primary)
        pipeline = MarketPipeline(
            source,
            (*sinks, publisher),
            candles,
            room.clock,
            on_position=publisher.set_position if is_primary else None,
            judge=room.judge,
            events=events,
        )
        feeds.append(VenueFeed(source, pipeline, is_primary=is_primary))
    return VenueFeeds(feeds)


async def _open_source(
    room: _Room, venue: Venue, publisher: MarketStreamPublisher, *, is_primary: bool
) -> MarketSource:
    if room.market.source != "live":
        return await _open_replay(room, publisher)
    try:
        return room.open_source(venue)
    except TradingError as error:
        if is_primary:
            raise
        _log.warning("%s is left out: %s", venue, error)
        return RefusedSource(venue, error)


def _open_live(
    desk: DeskSettings, venue: Venue, clock: Clock, sleep: Callable[[float], Awaitable[None]]
) -> MarketSource:
    addresses = load_addresses(venue)
    return CcxtLiveSource(
        venue,
        desk.symbols,
        clock,
        open_=lambda: open_exchange(venue, rest_url=addresses.rest_url, ws_url=addresses.ws_url),
        sleep=sleep,
    )


async def _open_replay(room: _Room, publisher: MarketStreamPublisher) -> MarketSource:
    desk, market = room.desk, room.market
    if len(desk.symbols) != 1:
        raise ConfigurationError("a recording holds one symbol", suggestion='set symbols = ["BTC/USDT"]')
    recording = load_recording(market.recording, symbol=desk.symbols[0], venue=desk.market_venue)
    try:
        resume = await publisher.load_position()
    except Unavailable:
        _log.warning("the bus does not answer; the recording starts from its beginning")
        resume = None
    return ReplaySource(recording, room.clock, speed=market.speed, loop=market.loop, resume=resume, sleep=room.sleep)


async def _count(trades: Subscription[TradePrint], candles: CandleStore) -> None:
    async for trade in trades:
        candles.add(trade.instrument_id, trade.venue_ts_ms, trade.price, trade.quantity)


def _service(room: _Room, feed: MarketFeed) -> MarketService:
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
    return MarketService(prices, History(room.candles), standing.health)


@asynccontextmanager
async def _watched(
    jobs: tuple[Callable[[], Awaitable[None]], ...], on_failure: Callable[[], None]
) -> AsyncGenerator[None]:
    """Run jobs beside the block; one that fails is logged and stops the process, one that ends is fine."""

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except Exception:  # noqa: BLE001  the boundary of the feed's tasks: it logs and stops
            _log.critical("the market feed has failed; the server stops", exc_info=True)
            on_failure()

    tasks = [asyncio.create_task(run(job), name=f"market-{index}") for index, job in enumerate(jobs)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
