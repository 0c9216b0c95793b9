"""Wires the market room: one process of a desk publishes, any further one follows what it publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from mcp_servers.hosting import stop_process
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.health import Health
from mcp_servers.market.history import History
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.prices import Prices
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings, load_addresses
from mcp_servers.market.sources.base import MarketSource, SourceState, SourceStatus
from mcp_servers.market.sources.ccxt_live import CcxtLiveSource, open_exchange
from mcp_servers.market.sources.replay import ReplaySource, load_recording
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.file_lock import FileLock
from trading.adapters.market_stream import (
    LocalMarketFeed,
    MarketStreamPublisher,
    MarketStreamView,
    Subscription,
    create_feed_key,
)
from trading.domain.errors import ConfigurationError, Unavailable
from trading.domain.market_data import Feed, TradePrint
from trading.domain.proposals import Mode
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_market(
    desk: DeskSettings,
    market: MarketSettings,
    *,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_failure: Callable[[], None] = stop_process,
) -> AsyncGenerator[MarketService]:
    """Run the room for the length of an ``async with`` block and yield its service.

    Args:
        clock, sleep: the machine's unless a test says otherwise.
        on_failure: called, after the reason was logged, when the feed's task died of something unforeseen.

    Raises:
        ConfigurationError: the feed key or recording is unusable.
        Unavailable: there is no bus.
    """
    found_clock = clock or SystemClock()
    home = desk.desk_home.ensure()
    key = create_feed_key(home.keys("market") / "feed.hmac")
    lock = FileLock(home.run / "market.lock")
    first = lock.try_lock(shared=False)
    try:
        async with open_redis(home, desk, "market") as redis:
            opened = (
                _publish(redis, key, desk, market, found_clock, sleep, on_failure)
                if first
                else _follow(redis, key, desk, market, found_clock, on_failure)
            )
            async with opened as service:
                yield service
    finally:
        lock.close()


@asynccontextmanager
async def _publish(
    redis: Redis,
    key: bytes,
    desk: DeskSettings,
    market: MarketSettings,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]],
    on_failure: Callable[[], None],
) -> AsyncGenerator[MarketService]:
    feed = Feed.LIVE if market.source == "live" else Feed.REPLAY
    async with MarketStreamPublisher(redis, desk=desk.desk, key=key, clock=clock, feed=feed) as publisher:
        source = await _open_source(desk, market, clock, sleep, publisher)
        local, candles = LocalMarketFeed(clock, feed=feed), CandleStore()
        pipeline = MarketPipeline(source, (local, publisher), candles, clock, on_position=publisher.set_position)

        def health() -> Health:
            counters = {**publisher.counters, **{f"pipeline_{k}": v for k, v in pipeline.counters.items()}}
            return Health(
                "publisher", market.source, source.status(), publisher.connected, pipeline.book_status(), counters
            )

        async with _watched((pipeline.run, pipeline.run_timer), on_failure):
            yield _service(local, candles, clock, desk, market, health)
        if (position := source.fresh_start()) is not None:
            publisher.set_position(position)


@asynccontextmanager
async def _follow(
    redis: Redis,
    key: bytes,
    desk: DeskSettings,
    market: MarketSettings,
    clock: Clock,
    on_failure: Callable[[], None],
) -> AsyncGenerator[MarketService]:
    _log.info("another process publishes market data for this desk; following it")
    accept = {Feed.LIVE} if desk.mode is not Mode.PAPER else set(Feed)
    async with MarketStreamView(redis, desk.desk, key, clock, accept) as view:
        candles = CandleStore()
        trades = view.subscribe_trades()

        def health() -> Health:
            status = view.status()
            state = SourceState.RUNNING if status.connected else SourceState.RECONNECTING
            return Health("follower", "streams", SourceStatus(state), status.connected, counters=status.counters)

        async with _watched((lambda: _count(trades, candles),), on_failure):
            await view.ready()
            yield _service(view, candles, clock, desk, market, health)


async def _count(trades: Subscription[TradePrint], candles: CandleStore) -> None:
    async for trade in trades:
        candles.add(trade.instrument_id, trade.venue_ts_ms, trade.price, trade.quantity)


def _service(
    feed: LocalMarketFeed | MarketStreamView,
    candles: CandleStore,
    clock: Clock,
    desk: DeskSettings,
    market: MarketSettings,
    health: Callable[[], Health],
) -> MarketService:
    aliases = (desk.venue,) if desk.mode is Mode.PAPER else ()
    prices = Prices(
        feed,
        candles,
        clock,
        venue=desk.market_venue,
        aliases=aliases,
        max_age_ms=market.max_age_ms,
        source=lambda: health().status,
    )
    return MarketService(prices, History(candles), health)


async def _open_source(
    desk: DeskSettings,
    market: MarketSettings,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]],
    publisher: MarketStreamPublisher,
) -> MarketSource:
    if market.source == "live":
        addresses = load_addresses(desk.market_venue)
        return CcxtLiveSource(
            desk.market_venue,
            desk.symbols,
            clock,
            open_=lambda: open_exchange(desk.market_venue, rest_url=addresses.rest_url, ws_url=addresses.ws_url),
            sleep=sleep,
        )
    if len(desk.symbols) != 1:
        raise ConfigurationError("a recording holds one symbol", suggestion='set symbols = ["BTC/USDT"]')
    recording = load_recording(market.recording, symbol=desk.symbols[0], venue=desk.market_venue)
    try:
        resume = await publisher.load_position()
    except Unavailable:
        _log.warning("the bus does not answer; the recording starts from its beginning")
        resume = None
    return ReplaySource(recording, clock, speed=market.speed, loop=market.loop, resume=resume, sleep=sleep)


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
