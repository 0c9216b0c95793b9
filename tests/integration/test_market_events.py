"""Events of the market room over a real server: in order, signed, bounded, and through the server's death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mcp_servers.market.market_events import (
    EVENTS_KEPT,
    WAITING_MAX,
    MarketEvent,
    MarketEventReader,
    MarketEvents,
    events_stream,
)
from tests.bus_support import BUNDLED, DESK, eventually, server_of, settings_for, short_home
from tests.market_support import KEY
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_wire import mac
from trading.adapters.redis_client import unix_client
from trading.domain.errors import InvalidValue
from trading.testing.clock import ManualClock, SeededIds

STREAM = events_stream(DESK)


@pytest.fixture
def home() -> Iterator[DeskHome]:
    with short_home() as home:
        yield home


@pytest.fixture
async def redis(home: DeskHome) -> AsyncIterator[Redis]:
    async with open_redis(home, settings_for(home), "market", bus=BUNDLED) as client:
        yield client


@pytest.fixture
async def console(home: DeskHome, redis: Redis) -> AsyncIterator[Redis]:
    async with open_redis(home, settings_for(home), "console", bus=BUNDLED) as client:
        yield client


def nowhere() -> Redis:
    """Return a client of a server that does not exist."""
    return unix_client(Path("/nonexistent/socket"), user="market", password="", retries=0)


def publisher(redis: Redis, clock: ManualClock | None = None) -> MarketEvents:
    return MarketEvents(redis, desk=DESK, key=KEY, clock=clock or ManualClock(), ids=SeededIds())


@asynccontextmanager
async def hearing(
    redis: Redis, *, from_start: bool = True
) -> AsyncIterator[tuple[MarketEventReader, list[MarketEvent]]]:
    reader, heard = MarketEventReader(redis, desk=DESK, key=KEY, from_start=from_start), list[MarketEvent]()

    async def collect() -> None:
        async for event in reader.follow():
            heard.append(event)

    task = asyncio.create_task(collect())
    try:
        await reader.ready.wait()
        yield reader, heard
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_events_reach_another_room_in_order_and_in_the_envelope_of_the_desk(redis: Redis, console: Redis) -> None:
    clock = ManualClock()
    async with publisher(redis, clock) as events, hearing(console) as (_, heard):
        for number in range(300):
            events.publish("market.gap_detected", {"venue": "kraken", "symbol": "BTC/USD", "number": number})
        await eventually(lambda: len(heard) == 300)
        assert [event.payload["number"] for event in heard] == list(range(300))
        assert [event.seq for event in heard] == sorted({event.seq for event in heard})
        assert (heard[0].event_type, heard[0].timestamp_ms) == ("market.gap_detected", clock.now_ms())
        raw = orjson.loads((await any_redis(redis).xrange(STREAM, count=1))[0][1][b"d"])
        assert set(raw) == {"event_id", "event_type", "seq", "timestamp", "source_service", "payload", "metadata"}
        assert raw["metadata"] == {"correlation_id": "", "causation_id": "", "trace_id": "", "schema": 1}
        assert raw["source_service"] == "market"
        assert events.counters["sent"] == 300


def any_redis(redis: Redis) -> Any:
    return redis


async def test_a_new_reader_hears_what_comes_and_not_what_was(redis: Redis, console: Redis) -> None:
    async with publisher(redis) as events:
        events.publish("market.feed_lost", {"venue": "old"})
        await events.drained()
        async with hearing(console, from_start=False) as (_, heard):
            events.publish("market.feed_lost", {"venue": "new"})
            await eventually(lambda: bool(heard))
            assert [event.payload["venue"] for event in heard] == ["new"]


async def test_a_killed_server_loses_no_event_and_the_reader_goes_on(
    home: DeskHome, redis: Redis, console: Redis
) -> None:
    async with publisher(redis) as events, hearing(console) as (_, heard):
        events.publish("market.feed_lost", {"number": 0})
        await eventually(lambda: len(heard) == 1)
        pid = server_of(home).pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for number in range(1, 50):
            events.publish("market.feed_lost", {"number": number})
            await asyncio.sleep(0)
        await eventually(lambda: len(heard) == 50, timeout_s=15)
        assert [event.payload["number"] for event in heard] == list(range(50))


async def test_a_batch_that_is_sent_again_is_heard_once(redis: Redis, console: Redis) -> None:
    async with publisher(redis) as events, hearing(console) as (reader, heard):
        events.publish("market.feed_lost", {"number": 1})
        await events.drained()
        fields = (await any_redis(redis).xrange(STREAM))[0][1]
        await any_redis(redis).xadd(STREAM, fields)
        events.publish("market.feed_restored", {"number": 2})
        await eventually(lambda: len(heard) == 2)
        assert [event.payload["number"] for event in heard] == [1, 2]
        assert reader.counters["repeated"] == 1


FORGED = {
    "another key": lambda data: (data, mac(b"x" * 32, STREAM, data)),
    "another stream": lambda data: (data, mac(KEY, events_stream("other"), data)),
    "changed": lambda data: (data.replace(b"kraken", b"binance"), mac(KEY, STREAM, data)),
    "no event": lambda _: (b"[]", mac(KEY, STREAM, b"[]")),
    "no json": lambda _: (b"\xff", mac(KEY, STREAM, b"\xff")),
    "fields missing": lambda _: (b"{}", mac(KEY, STREAM, b"{}")),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_lie_in_the_stream_is_dropped_and_counted(name: str, redis: Redis, console: Redis) -> None:
    data = orjson.dumps(
        {
            "event_id": "e", "event_type": "market.feed_lost", "seq": 10**16, "timestamp": 1,
            "source_service": "market", "payload": {"venue": "kraken"}, "metadata": {},
        }
    )  # fmt: skip
    forged, tag = FORGED[name](data)
    async with publisher(redis) as events, hearing(console) as (reader, heard):
        await any_redis(redis).xadd(STREAM, {"d": forged, "h": tag})
        events.publish("market.feed_lost", {"venue": "honest"})
        await eventually(lambda: len(heard) == 1)
        assert heard[0].payload == {"venue": "honest"}
        assert reader.counters["refused"] == 1


async def test_only_the_market_room_can_write_events(console: Redis) -> None:
    with pytest.raises(RedisError):
        await any_redis(console).xadd(STREAM, {"d": b"{}", "h": b""})


async def test_sequences_rise_across_a_restart_with_a_clock_that_went_back(redis: Redis, console: Redis) -> None:
    clock = ManualClock()
    async with hearing(console) as (_, heard):
        async with publisher(redis, clock) as events:
            events.publish("market.feed_lost", {})
        async with publisher(redis, ManualClock(clock.now_ms() - 3_600_000)) as events:
            events.publish("market.feed_restored", {})
        await eventually(lambda: len(heard) == 2)
        assert heard[1].seq > heard[0].seq


async def test_the_stream_stays_bounded(redis: Redis) -> None:
    async with publisher(redis) as events:
        for _ in range(5):
            for _ in range(WAITING_MAX):
                events.publish("market.gap_detected", {})
            await events.drained()
        assert events.counters["sent"] == 5 * WAITING_MAX
        assert await any_redis(redis).xlen(STREAM) < EVENTS_KEPT + 500


async def test_while_redis_is_away_the_newest_events_wait_and_the_rest_is_counted() -> None:
    events = publisher(nowhere())
    for number in range(WAITING_MAX + 7):
        events.publish("market.gap_detected", {"number": number})
    assert events.counters["dropped"] == 7
    assert events.counters["published"] == WAITING_MAX + 7
    async with asyncio.timeout(5):
        async with events:
            await eventually(lambda: events.counters["failures"] > 0)
    assert events.counters["sent"] == 0


async def test_what_is_no_event_never_reaches_the_stream() -> None:
    events = publisher(nowhere())
    with pytest.raises(InvalidValue) as caught:
        events.publish("market.exploded", {})
    assert caught.value.code == "UNKNOWN_EVENT"
    for payload in ({"what": object()}, {"text": "x" * 5_000}):
        events.publish("market.feed_lost", payload)
    assert (events.counters["malformed"], events.counters["published"]) == (2, 0)


async def test_listeners_in_this_process_hear_at_once() -> None:
    heard: list[tuple[str, object]] = []
    events = publisher(nowhere())
    events.listen(lambda event_type, payload: heard.append((event_type, payload["venue"])))
    events.publish("market.feed_lost", {"venue": "kraken"})
    assert heard == [("market.feed_lost", "kraken")]
