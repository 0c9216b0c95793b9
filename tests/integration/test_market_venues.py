"""The market room with several venues: one fails and another answers; one process dies and another publishes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.hosting import build_server, call, call_reply, open_client
from mcp_servers.market.bootstrap import open_market
from mcp_servers.market.chart.app import chart_page
from mcp_servers.market.market_events import MarketEventReader
from mcp_servers.market.server import build, register
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings
from mcp_servers.market.tools.status import CONFLATION
from mcp_servers.market.venues import SETTLE_MS
from tests.bus_support import eventually
from tests.market_venue_support import BTC, FakeSource
from tests.mcp_harness import ROOT
from trading.adapters.clock import SystemClock
from trading.adapters.config import load_settings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import MarketStreamView, load_feed_key
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.testing.clock import ManualClock

MANY = MarketSettings(source="live", venues=("kraken", "coinbase"), archive=False, backfill=False)
BINANCE = InstrumentId(Venue("binance"), BTC)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mkv-") as directory:
        path = Path(directory) / "h"
        path.mkdir(mode=0o700)
        (path / "config.toml").write_text("[bus]\nprefer_bundled = true\n")
        monkeypatch.setenv("GREKKO_HOME", str(path))
        monkeypatch.delenv("GREKKO_CONFIG", raising=False)
        monkeypatch.delenv("REDIS_URL", raising=False)
        yield path


class Venues:
    """The room over three venues that the test plays."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.sources: dict[str, FakeSource] = {}
        self.refusing: set[str] = set()
        self.stopped = asyncio.Event()

    def open_source(self, venue: Venue) -> FakeSource:
        if venue in self.refusing:
            raise ConfigurationError(f"there is no venue {venue!r}", suggestion="use a ccxt exchange id")
        return self.sources.setdefault(venue, FakeSource(venue, self.clock))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MarketService]:
        async with open_market(
            load_settings(), MANY, clock=self.clock, on_failure=self.stopped.set, open_source=self.open_source
        ) as service:
            yield service

    @asynccontextmanager
    async def started(self) -> AsyncIterator[MarketService]:
        """Open the room and wait until every venue has a book."""
        async with self.open() as service:
            for source in self.sources.values():
                source.start()
            await eventually(lambda: all(service.prices.board.health(Venue(v)).usable for v in self.sources))
            await eventually(lambda: service.health().bus_connected)
            yield service


@pytest.fixture
def venues() -> Venues:
    return Venues()


def answering(service: MarketService) -> str:
    return service.prices.tick(BTC).instrument.venue


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_status_shows_every_venue_and_the_failover_in_force(era: str, venues: Venues) -> None:
    async with venues.started() as service:

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[MarketService]:
            yield service

        server = build_server(
            "grekko-market",
            title="Market",
            instructions="x",
            lifespan=lifespan,
            mode=Mode.PAPER,
            extensions=[chart_page()],
        )
        register(server)
        async with open_client(server, era) as client:
            status = await call(client, "market_get_status")
            assert (status["safe_to_trade"], status["reasons"], status["failover"]) == (True, [], [])
            assert [row["venue"] for row in status["venues"]] == ["binance", "kraken", "coinbase"]
            assert [row["venue"] for row in status["feeds"]] == ["binance", "kraken", "coinbase"]
            assert status["conflation"] == CONFLATION
            venues.sources["binance"].disconnect()
            await eventually(lambda: answering(service) == "kraken")
            venues.clock.advance(20)
            status = await call(client, "market_get_status")
            assert status["failover"] == ["BTC/USDT: kraken answers. binance: empty, gapped (NO_NETWORK)"]
            assert (status["safe_to_trade"], status["reasons"]) == (True, [])
            first = status["venues"][0]
            assert (first["state"], first["code"], first["reconnects"]) == ("reconnecting", "NO_NETWORK", 1)
            assert (first["age_ms"], first["message"]) == (20, "binance cannot be reached")
            row = status["feeds"][0]
            assert (row["usable"], row["state"], row["marks"]) == (False, "resync", ["empty", "gapped"])
            for source in venues.sources.values():
                source.disconnect()
            await eventually(lambda: answering(service) == "binance")
            reply = await call_reply(client, "market_get_status")
            assert reply["data"]["reasons"] == ["binance cannot be reached"]
            assert reply["data"]["safe_to_trade"] is False


async def test_the_desk_falls_back_and_returns_when_its_own_venue_stayed_good(venues: Venues) -> None:
    async with venues.started() as service:
        own = venues.sources["binance"]
        own.disconnect()
        await eventually(lambda: answering(service) == "kraken")
        assert service.prices.tick(BTC).failed_over_from == "binance"
        own.book()
        await eventually(lambda: bool(service.prices.board.health(Venue("binance")).usable))
        for _ in range(SETTLE_MS // 1_000):
            assert answering(service) == "kraken"
            venues.clock.advance(1_000)
            for source in venues.sources.values():
                source.book()
            await eventually(lambda: all(service.prices.tick(BTC, v).age_ms == 0 for v in venues.sources))
        assert answering(service) == "binance"


async def test_a_reconnecting_venue_is_empty_for_every_other_room_at_once(venues: Venues, home: Path) -> None:
    desk = load_settings()
    async with venues.started():
        key = load_feed_key(desk.desk_home.keys("market") / "feed.hmac")
        async with (
            open_redis(desk.desk_home, desk, "risk") as redis,
            MarketStreamView(redis, desk.desk, key, venues.clock, {Feed.LIVE}) as view,
        ):
            assert await view.ready()
            await eventually(lambda: (book := view.book(BINANCE)) is not None and book.is_two_sided)
            assert {item.venue for item in view.instruments()} == {"binance", "kraken", "coinbase"}
            venues.sources["binance"].disconnect()
            await eventually(lambda: (book := view.book(BINANCE)) is not None and not book.bids)
            assert view.book_state(BINANCE) == "resync"


async def test_other_rooms_hear_of_a_failover_and_of_the_lost_feed(venues: Venues) -> None:
    desk = load_settings()
    async with venues.started() as service:
        key = load_feed_key(desk.desk_home.keys("market") / "feed.hmac")
        async with open_redis(desk.desk_home, desk, "risk") as redis:
            reader = MarketEventReader(redis, desk=desk.desk, key=key, from_start=True)
            venues.sources["binance"].disconnect()
            heard: dict[str, dict[str, Any]] = {}
            async with asyncio.timeout(10):
                async for event in reader.follow():
                    if "NO_NETWORK" in str(event.payload.get("reason")):  # not those of the start
                        heard[event.event_type] = dict(event.payload)
                    if {"market.venue_failed_over", "market.feed_lost"} <= heard.keys():
                        break
        reason = "empty, gapped (NO_NETWORK)"
        assert heard["market.venue_failed_over"] == {
            "symbol": BTC, "before": "binance", "venue": "kraken", "reason": reason,
        }  # fmt: skip
        assert heard["market.feed_lost"] == {"venue": "binance", "code": "NO_NETWORK", "reason": f"{BTC}: {reason}"}
        assert service.health().counters["events_sent"] >= 2


async def test_a_venue_that_refuses_or_fails_takes_no_other_one_down(
    venues: Venues, caplog: pytest.LogCaptureFixture
) -> None:
    venues.refusing = {"coinbase"}
    async with venues.started() as service:
        board = service.prices.board
        left_out = board.health(Venue("coinbase"))
        assert (left_out.state, left_out.code) == ("ended", "CONFIGURATION_ERROR")
        assert "use a ccxt exchange id" in left_out.message
        venues.sources["kraken"].put(RuntimeError("a defect"))
        await eventually(lambda: board.health(Venue("kraken")).code == "INTERNAL")
        assert board.health(Venue("kraken")).usable == ()
        assert "a defect" in caplog.text
        assert answering(service) == "binance"
        venues.sources["binance"].put(ConfigurationError("BTC/USDT is gone"))  # the own venue refuses: no reason to die
        await eventually(lambda: board.health(Venue("binance")).code == "CONFIGURATION_ERROR")
        assert service.reasons_against() == ["BTC/USDT is gone"]
        assert not venues.stopped.is_set()


async def test_only_a_defect_of_the_own_venue_stops_the_process(venues: Venues) -> None:
    async with venues.started() as service:
        venues.sources["binance"].put(RuntimeError("a defect"))
        async with asyncio.timeout(10):
            await venues.stopped.wait()
        assert answering(service) == "kraken"


async def test_a_badly_configured_own_venue_refuses_to_start(venues: Venues) -> None:
    venues.refusing = {"binance"}
    with pytest.raises(ConfigurationError):
        async with venues.open():
            pass


async def test_an_outlier_is_refused_against_the_other_venues(venues: Venues) -> None:
    async with venues.started() as service:
        venues.sources["binance"].book(200)
        await eventually(lambda: answering(service) == "kraken")
        board = service.prices.board
        assert board.choose(BTC).reason == "binance: empty, outlier"
        assert service.prices.book_state(BINANCE) == "outlier"


async def test_a_follower_lists_every_venue_and_publishes_when_the_publisher_has_gone(venues: Venues) -> None:
    async with AsyncExitStack() as stack, AsyncExitStack() as first_process:
        await first_process.enter_async_context(venues.started())
        second = Venues()
        second.clock = venues.clock
        service = await stack.enter_async_context(second.open())
        assert service.health().role == "follower"
        await eventually(lambda: len(service.prices.feeds()) == 3 and not service.reasons_against())
        assert service.prices.venues == ("binance", "kraken", "coinbase")
        assert second.sources == {}
        venues.sources["binance"].trade(quantity="2")
        await eventually(lambda: service.prices.tick(BTC).volume == 2)
        await first_process.aclose()
        await eventually(lambda: service.health().role == "publisher")
        for source in second.sources.values():
            source.start(101)
        second.sources["binance"].trade(quantity="3")
        await eventually(lambda: (book := service.prices.tick(BTC).book) is not None and book.bids[0].price == 100)
        await eventually(lambda: service.prices.tick(BTC).volume == 5)  # counted once, by the reader of the streams
        assert service.reasons_against() == []
        third = Venues()
        third.clock = venues.clock
        async with third.open() as late:
            assert late.health().role == "follower"


async def test_candles_around_a_takeover_count_each_trade_once_and_are_not_called_whole(venues: Venues) -> None:
    async with AsyncExitStack() as stack, AsyncExitStack() as first_process:
        await first_process.enter_async_context(venues.started())
        clock, first = venues.clock, venues.sources["binance"]
        clock.advance(60_000 - clock.now_ms() % 60_000)
        second = Venues()
        second.clock = clock
        service = await stack.enter_async_context(second.open())
        await eventually(lambda: len(service.prices.feeds()) == 3)

        async def show(source: FakeSource, volume: int) -> None:
            source.trade(trade_id=str(volume))
            await eventually(lambda: service.prices.tick(BTC).volume == volume)

        async def minutes() -> dict[int, tuple[int, bool]]:
            found = await service.history.candles(BINANCE, "1m", lookback_ms=600_000)
            began = found.candles[0].open_ts_ms
            rows = zip(found.candles, found.complete, strict=True)
            return {(candle.open_ts_ms - began) // 60_000: (candle.trades, whole) for candle, whole in rows}

        await show(first, 1)
        clock.advance(60_000)
        await show(first, 2)
        await first_process.aclose()
        await eventually(lambda: service.health().role == "publisher")
        source = second.sources["binance"]
        source.start()
        source.trade(trade_id="2")  # a venue repeats its last trades when somebody connects
        clock.advance(10_000)
        await show(source, 3)
        clock.advance(50_000)
        await show(source, 4)
        clock.advance(60_000)
        await show(source, 5)
        assert await minutes() == {0: (1, True), 1: (2, False), 2: (1, True), 3: (1, True)}
        source.disconnect()
        await eventually(lambda: service.prices.book_state(BINANCE) == "resync")
        clock.advance(5_000)
        assert (await minutes())[3] == (1, False)
        source.book()
        await show(source, 6)
        clock.advance(60_000)
        await show(source, 7)
        assert await minutes() == {0: (1, True), 1: (2, False), 2: (1, True), 3: (2, False), 4: (1, True)}


async def test_a_follower_goes_on_where_a_killed_publisher_was(home: Path) -> None:
    desk = load_settings()
    async with open_redis(desk.desk_home, desk, "execution") as redis:  # keeps the bus alive as other rooms do
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mcp_servers.market", "--speed", "20", stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=ROOT, env={**os.environ},
        )  # fmt: skip
        path = desk.desk_home.keys("market") / "feed.hmac"
        await eventually(lambda: path.exists() and path.stat().st_size > 60, timeout_s=20)
        key = load_feed_key(path)
        async with MarketStreamView(redis, desk.desk, key, SystemClock(), {Feed.REPLAY}) as view:
            trades = view.subscribe_trades()
            async with asyncio.timeout(20):
                before = [await anext(trades) for _ in range(50)]
            async with open_client(build(MarketSettings(speed=20))) as client:
                assert await role(client) == "follower"
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
                before += trades.drain()
                async with asyncio.timeout(20):
                    after = [await anext(trades) for _ in range(100)]
                assert await role(client) == "publisher"
            ids = [int(trade.trade_id) for trade in (*before, *after)]
            assert ids == list(range(ids[0], ids[0] + len(ids)))  # none lost, none twice


async def role(client: Any) -> str:
    return str((await call(client, "market_get_status"))["role"])
