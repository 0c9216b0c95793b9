"""One contract for every bus, run on the one in memory and on the real server; then what only the real one can show."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.bus_support import (
    BUNDLED,
    DESK,
    commit,
    envelope,
    eventually,
    ledger,
    server_of,
    settings_for,
    short_home,
    take,
)
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis
from trading.adapters.ledger_follower import LedgerFollower
from trading.adapters.outbox import OutboxRelay, RedisCursor
from trading.adapters.redis_acl import read_password
from trading.adapters.redis_client import call, unix_client
from trading.adapters.redis_streams import RedisPublisher, RedisSubscriber, events_key
from trading.domain.errors import Unavailable
from trading.domain.events import AlarmRaised, Category
from trading.ports.event_bus import EventPublisher, EventSubscriber
from trading.testing.bus import InMemoryBus
from trading.testing.fault_proxy import FaultProxy

COORDINATION, SYSTEM, RISK = Category.COORDINATION, Category.SYSTEM, Category.RISK
ALARM = AlarmRaised(code="TEST", message="a test", subject="bus")


@dataclass
class Desk:
    """The real bus of a desk, reached through a proxy that can fail."""

    home: DeskHome
    redis: Redis
    proxied: Redis
    proxy: FaultProxy


@dataclass
class Bus:
    """What the contract is about."""

    publisher: EventPublisher
    subscriber: Callable[[Literal["$", "0"]], EventSubscriber]
    switch: Callable[[bool], None]


@asynccontextmanager
async def _desk() -> AsyncIterator[Desk]:
    with short_home() as home:
        async with open_redis(home, settings_for(home), "coordinator", bus=BUNDLED) as redis:
            listen = home.run / "proxy.sock"
            password = read_password(home.bus, "coordinator")
            async with (
                FaultProxy(server_of(home).socket, listen=listen) as proxy,
                unix_client(listen, user="coordinator", password=password) as proxied,
            ):
                yield Desk(home, redis, proxied, proxy)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with _desk() as made:
        yield made


@pytest.fixture(params=["memory", "redis"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        fakes = {start: InMemoryBus(start=start) for start in ("$", "0")}

        class Both:
            async def publish(self, events: list) -> None:
                for fake in fakes.values():
                    await fake.publish(events)

            async def publish_wire(self, events: list) -> None:
                for fake in fakes.values():
                    await fake.publish_wire(events)

        def down(value: bool) -> None:
            for fake in fakes.values():
                fake.down = value

        yield Bus(Both(), lambda start: fakes[start], down)
        return
    async with _desk() as desk:

        def cut(value: bool) -> None:
            desk.proxy.refuse = value
            desk.proxy.cut()

        yield Bus(
            RedisPublisher(desk.proxied, DESK),
            lambda start: RedisSubscriber(desk.proxied, DESK, start=start, block_ms=20),
            cut,
        )


async def _kill(desk: Desk) -> int:
    pid = server_of(desk.home).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def _until_heard(bus: Bus, events: AsyncIterator, number: int) -> None:
    """Publish a marker until the subscriber hears one: from then on it is known to listen."""
    heard = asyncio.ensure_future(anext(events))
    async with asyncio.timeout(10):
        while not heard.done():
            await bus.publisher.publish([envelope(number)])
            await asyncio.wait([heard], timeout=0.02)
    assert (await heard).event_id == f"event-{number}"


async def test_events_of_a_category_arrive_in_order_and_others_do_not(bus: Bus):
    events = bus.subscriber("0").subscribe((COORDINATION,))
    await bus.publisher.publish([envelope(1), envelope(2, ALARM), envelope(3)])
    await bus.publisher.publish([envelope(4)])
    assert await take(events, 3) == [envelope(1), envelope(3), envelope(4)]


async def test_several_categories_can_be_heard_at_once(bus: Bus):
    events = bus.subscriber("0").subscribe((COORDINATION, SYSTEM, RISK))
    await bus.publisher.publish([envelope(1), envelope(2, ALARM)])
    assert {event.seq for event in await take(events, 2)} == {1, 2}


async def test_new_subscriber_hears_only_what_comes_after_it(bus: Bus):
    await bus.publisher.publish([envelope(1)])
    events = bus.subscriber("$").subscribe((COORDINATION,))
    await _until_heard(bus, events, 2)
    await bus.publisher.publish([envelope(3)])
    async with asyncio.timeout(10):
        while (event := await anext(events)).seq == 2:  # copies of the marker
            pass
    assert event.seq == 3


async def test_every_subscriber_hears_everything(bus: Bus):
    first, second = (bus.subscriber("0").subscribe((COORDINATION,)) for _ in range(2))
    await bus.publisher.publish([envelope(1), envelope(2)])
    assert await take(first, 2) == await take(second, 2)


async def test_bus_that_is_down_raises_unavailable_and_works_again_afterwards(bus: Bus):
    await bus.publisher.publish([envelope(1)])
    bus.switch(True)
    with pytest.raises(Unavailable):
        await bus.publisher.publish([envelope(2)])
    bus.switch(False)
    await bus.publisher.publish([envelope(3)])
    events = bus.subscriber("0").subscribe((COORDINATION,))
    assert [event.seq for event in await take(events, 2)] == [1, 3]


async def test_streams_are_bounded(desk: Desk):
    publisher = RedisPublisher(desk.redis, DESK, maxlen=100)
    await publisher.publish([envelope(number) for number in range(1, 2001)])
    assert 100 <= await call(desk.redis, "XLEN", events_key(DESK, COORDINATION)) <= 300


async def test_unreadable_entry_is_skipped(desk: Desk):
    key = events_key(DESK, COORDINATION)
    await call(desk.redis, "XADD", key, "*", "e", "{nonsense")
    await call(desk.redis, "XADD", key, "*", "other", "field")
    await RedisPublisher(desk.redis, DESK).publish([envelope(1)])
    events = RedisSubscriber(desk.redis, DESK, start="0", block_ms=20).subscribe((COORDINATION,))
    assert await take(events, 1) == [envelope(1)]


async def test_subscriber_goes_on_after_the_server_was_killed_and_misses_nothing(desk: Desk):
    events = RedisSubscriber(desk.redis, DESK, start="0", block_ms=20).subscribe((COORDINATION,))
    publisher = RedisPublisher(desk.redis, DESK)
    await publisher.publish([envelope(1)])
    assert await take(events, 1) == [envelope(1)]
    waiting = asyncio.ensure_future(take(events, 1))
    await _kill(desk)
    async with asyncio.timeout(10):
        while True:
            try:
                await publisher.publish([envelope(2)])
                break
            except Unavailable:
                continue
    assert await waiting == [envelope(2)]


async def test_cut_connection_is_made_again_behind_the_callers_back(desk: Desk):
    publisher = RedisPublisher(desk.proxied, DESK)
    for number in range(1, 11):
        await publisher.publish([envelope(number)])
        desk.proxy.cut()
    events = RedisSubscriber(desk.redis, DESK, start="0", block_ms=20).subscribe((COORDINATION,))
    assert [event.seq for event in await take(events, 10)] == list(range(1, 11))


async def test_garbled_answer_is_an_error_and_never_a_value(desk: Desk):
    await call(desk.proxied, "SET", "grekko:{desk}:vote:x", "1")
    desk.proxy.garble(100)
    with pytest.raises(RedisError):
        async with asyncio.timeout(10):
            await call(desk.proxied, "GET", "grekko:{desk}:vote:x")
    desk.proxy.heal()
    assert await call(desk.proxied, "GET", "grekko:{desk}:vote:x") == b"1"


async def test_relay_resumes_after_the_bus_comes_back(desk: Desk):
    book = ledger()
    relay = OutboxRelay(
        book, RedisPublisher(desk.proxied, DESK), RedisCursor(desk.proxied, DESK, "coordinator"), poll_ms=5
    )
    task = asyncio.create_task(relay.run())
    await commit(book, 1, 3)
    await eventually(lambda: relay.seq == 3)
    desk.proxy.refuse = True
    desk.proxy.cut()
    await commit(book, 4, 6)
    await eventually(lambda: not relay.healthy)
    desk.proxy.heal()
    await eventually(lambda: relay.seq == 6)
    relay.stop()
    async with asyncio.timeout(10):
        await task
    events = RedisSubscriber(desk.redis, DESK, start="0", block_ms=20).subscribe((COORDINATION,))
    assert [event.seq for event in await take(events, 6)] == [1, 2, 3, 4, 5, 6]
    assert await call(desk.redis, "XLEN", events_key(DESK, COORDINATION)) == 6


async def test_cursor_returns_what_was_remembered_before(desk: Desk):
    cursor = RedisCursor(desk.redis, DESK, "coordinator")
    assert await cursor.load() == 0
    assert [await cursor.save(seq) for seq in (3, 9, 4)] == [0, 3, 9]
    assert await cursor.load() == 4
    desk.proxy.refuse = True
    desk.proxy.cut()
    with pytest.raises(Unavailable):
        await RedisCursor(desk.proxied, DESK, "coordinator").load()


async def test_relay_on_a_healthy_bus_publishes_each_event_once(desk: Desk):
    book = ledger()
    relay = OutboxRelay(book, RedisPublisher(desk.redis, DESK), RedisCursor(desk.redis, DESK, "coordinator"), batch=3)
    for turn in range(5):
        await commit(book, 4 * turn + 1, 4 * turn + 4)
        while await relay.relay_once():
            pass
    assert await call(desk.redis, "XLEN", events_key(DESK, COORDINATION)) == 20


async def test_killing_the_server_again_and_again_loses_no_ledger_fact(desk: Desk):
    book, rounds, each = ledger(), 4, 50
    relay = OutboxRelay(book, RedisPublisher(desk.redis, DESK), RedisCursor(desk.redis, DESK, "coordinator"), poll_ms=5)
    task = asyncio.create_task(relay.run())
    wakeups = RedisSubscriber(desk.redis, DESK, block_ms=20).subscribe((COORDINATION,))
    follower = LedgerFollower(book, wakeups=wakeups, poll_ms=5)
    followed: list[int] = []

    async def follow() -> None:
        async for events in follower:
            followed.extend(event.seq for event in events)

    following = asyncio.create_task(follow())
    for turn in range(rounds):
        first = turn * each + 1
        await commit(book, first, first + each // 2 - 1)
        relay.notify()
        killed = await _kill(desk)
        await commit(book, first + each // 2, first + each - 1)  # the ledger does not mind
        relay.notify()
        # Followers do not wait for the bus.
        await eventually(lambda last=first + each - 1: followed[-1:] == [last])
        await eventually(lambda old=killed: server_of(desk.home).pid() not in (None, old))
    total = rounds * each
    await eventually(lambda: relay.seq == total)
    relay.stop()
    async with asyncio.timeout(10):
        await task
    following.cancel()
    assert followed == list(range(1, total + 1))
    entries = RedisSubscriber(desk.redis, DESK, start="0", block_ms=20).subscribe((COORDINATION,))
    held = set()
    async with asyncio.timeout(10):
        while len(held) < total:
            held.add((await anext(entries)).seq)
    assert held == set(range(1, total + 1))


async def test_wakeups_count_what_came_even_if_it_cannot_be_read_and_survive_an_outage(desk: Desk):
    publisher = RedisPublisher(desk.redis, DESK)
    subscriber = RedisSubscriber(desk.proxied, DESK, start="0", block_ms=20)
    wakeups = subscriber.wakeups((COORDINATION,))
    await publisher.publish([envelope(1), envelope(2, ALARM), envelope(3)])
    assert await take(wakeups, 1) == [2]  # the alarm is of another category
    await call(desk.redis, "XADD", events_key(DESK, COORDINATION), "*", "e", "no event")
    assert await take(wakeups, 1) == [1]
    desk.proxy.cut()
    await publisher.publish([envelope(4)])
    assert await take(wakeups, 1) == [1]
