"""Reads the venues of a desk and publishes what they say, in whichever process does so.

Rules kept here:

- Every venue has a source and a pipeline of its own; all of them publish to the same streams.
- A recording has one venue. Further ones are read live only.
- A venue whose source cannot be made is left out and says so, except the desk's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal

from redis.asyncio import Redis

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.market_events import MarketEvents
from mcp_servers.market.pipeline import CandleSink, MarketPipeline, MarketSink
from mcp_servers.market.quality import QualityJudge
from mcp_servers.market.settings import MarketSettings, load_addresses
from mcp_servers.market.sources.base import MarketSource
from mcp_servers.market.sources.ccxt import CcxtLiveSource, open_exchange
from mcp_servers.market.sources.ohlcv import OhlcvSource
from mcp_servers.market.sources.ohlcv_files import is_ohlcv, load_ohlcv
from mcp_servers.market.sources.replay import ReplaySource, load_recording
from mcp_servers.market.standing import Standing
from mcp_servers.market.venue_feed import RefusedSource, VenueFeed, VenueFeeds
from mcp_servers.market.venues import VenueBoard
from trading.adapters.config import DeskSettings
from trading.adapters.file_lock import FileLock
from trading.adapters.market_stream import MarketStreamPublisher
from trading.domain.errors import ConfigurationError, TradingError, Unavailable
from trading.domain.identifiers import Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

#: Makes the source of a live venue.
SourceOpener = Callable[[Venue], MarketSource]


@dataclass(frozen=True)
class Room:
    """What every part of the room is made of.

    Attributes:
        lock: whoever holds it publishes.
        standing: what this process does now.
    """

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


@asynccontextmanager
async def publishing(
    room: Room,
    board: VenueBoard,
    candles: CandleSink,
    sinks: tuple[MarketSink, ...],
    introduce: Callable[[MarketEvents], None],
) -> AsyncGenerator[None]:
    """Read the venues and publish what they say and what happens to them, for the length of the block.

    Args:
        board: told of the events' stream.
        candles: fed with trades and finished bars.
        sinks: get what the streams get, before them.
        introduce: given the events' stream before anything happens.
    """
    redis, desk, key, clock = room.redis, room.desk.desk, room.key, room.clock
    async with (
        MarketEvents(redis, desk=desk, key=key, clock=clock) as events,
        MarketStreamPublisher(redis, desk=desk, key=key, clock=clock, feed=room.feed) as publisher,
    ):
        introduce(events)
        feeds = await _open_feeds(room, candles, sinks, publisher, events)
        room.standing.publishes(publisher, feeds, events)
        board.events = events
        async with watched((*feeds.jobs, publisher.watch), room.on_failure):
            yield
        if (position := feeds.primary.source.fresh_start()) is not None:
            publisher.set_position(position)


async def _open_feeds(
    room: Room,
    candles: CandleSink,
    sinks: tuple[MarketSink, ...],
    publisher: MarketStreamPublisher,
    events: MarketEvents,
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


async def _open_source(room: Room, venue: Venue, publisher: MarketStreamPublisher, *, is_primary: bool) -> MarketSource:
    if room.market.source != "live":
        return await _open_replay(room, publisher)
    try:
        return room.open_source(venue)
    except TradingError as error:
        if is_primary:
            raise
        _log.warning("%s is left out: %s", venue, error)
        return RefusedSource(venue, error)


def open_live(
    desk: DeskSettings, venue: Venue, clock: Clock, sleep: Callable[[float], Awaitable[None]]
) -> MarketSource:
    """Return the source of a venue's live public data, at the addresses of its section if it has any.

    Raises:
        ConfigurationError: an address may not be used.
    """
    addresses = load_addresses(venue)
    return CcxtLiveSource(
        venue,
        desk.symbols,
        clock,
        open_=lambda: open_exchange(venue, rest_url=addresses.rest_url, ws_url=addresses.ws_url),
        sleep=sleep,
    )


async def _open_replay(room: Room, publisher: MarketStreamPublisher) -> MarketSource:
    desk, market, clock = room.desk, room.market, room.clock
    try:
        resume = await publisher.load_position()
    except Unavailable:
        _log.warning("the bus does not answer; the recording starts from its beginning")
        resume = None
    if market.recording is not None and is_ohlcv(market.recording):
        bars = load_ohlcv(market.recording, symbols=desk.symbols, venue=desk.market_venue)
        return OhlcvSource(bars, clock, speed=market.speed, loop=market.loop, resume=resume, sleep=room.sleep)
    if len(desk.symbols) != 1:
        raise ConfigurationError("a recording holds one symbol", suggestion='set symbols = ["BTC/USDT"]')
    recording = load_recording(market.recording, symbol=desk.symbols[0], venue=desk.market_venue)
    return ReplaySource(recording, clock, speed=market.speed, loop=market.loop, resume=resume, sleep=room.sleep)


@asynccontextmanager
async def watched(
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


class BarsOnly:
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
