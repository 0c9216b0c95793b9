from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.bus_support import BUNDLED, DESK, envelope, eventually, server_of, settings_for, short_home
from trading.adapters.embedded_redis import EmbeddedRedis, open_redis
from trading.adapters.redis_client import call
from trading.adapters.redis_consumer import StreamConsumer
from trading.adapters.redis_streams import RedisPublisher, events_key
from trading.domain.errors import Unavailable
from trading.domain.events import Category, EventEnvelope
from trading.testing.clock import ManualClock

STREAM = events_key(DESK, Category.COORDINATION)
Handler = Callable[[EventEnvelope], Awaitable[None]]


@dataclass
class Bus:
    """The coordinator's side of the real server."""

    redis: Redis
    server: EmbeddedRedis
    handled: list[int] = field(default_factory=list)

    async def publish(self, *numbers: int) -> None:
        await RedisPublisher(self.redis, DESK).publish([envelope(number) for number in numbers])

    async def handle(self, event: EventEnvelope) -> None:
        self.handled.append(event.seq)

    def worker(self, name: str, handler: Handler | None = None, **options: Any) -> StreamConsumer:
        return StreamConsumer(
            self.redis,
            DESK,
            service="coordinator",
            name=name,
            categories=(Category.COORDINATION,),
            handler=handler or self.handle,
            clock=ManualClock(),
            **{"block_ms": 10, "min_idle_ms": 1, **options},
        )

    async def pending(self) -> int:
        return (await call(self.redis, "XPENDING", STREAM, "coordinator"))["pending"]

    async def dead(self) -> list[dict[bytes, bytes]]:
        key = f"grekko:{{{DESK}}}:consumers:coordinator:dead"
        return [fields for _, fields in await call(self.redis, "XRANGE", key, "-", "+")]


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    with short_home() as home:
        async with open_redis(home, settings_for(home), "coordinator", bus=BUNDLED) as redis:
            yield Bus(redis, server_of(home))


async def _work(worker: StreamConsumer, until: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not until():
            await worker.step()


async def _step(worker: StreamConsumer, times: int) -> None:
    async with asyncio.timeout(10):
        for _ in range(times):
            await worker.step()


async def test_every_event_is_handled_once_in_order_and_acknowledged(bus: Bus):
    await bus.publish(*range(1, 31))  # before the group exists
    await _work(bus.worker("one", batch=7), lambda: len(bus.handled) >= 30)
    assert bus.handled == list(range(1, 31))
    assert await bus.pending() == 0


async def test_two_workers_share_the_work(bus: Bus):
    by: dict[str, list[int]] = {"one": [], "two": []}

    def handler(name: str) -> Handler:
        async def handle(event: EventEnvelope) -> None:
            by[name].append(event.seq)

        return handle

    workers = [bus.worker(name, handler(name), batch=5, min_idle_ms=60_000) for name in by]
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    await bus.publish(*range(1, 101))
    await eventually(lambda: sum(map(len, by.values())) >= 100)
    for worker in workers:
        worker.stop()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert sorted(by["one"] + by["two"]) == list(range(1, 101))
    assert await bus.pending() == 0


async def test_duplicates_are_handled_once_within_a_batch_across_batches_and_across_workers(bus: Bus):
    await bus.publish(1, 1, 2)
    await _work(bus.worker("one"), lambda: len(bus.handled) >= 2)
    await bus.publish(2, 1, 3)
    await _work(bus.worker("two"), lambda: 3 in bus.handled)
    assert bus.handled == [1, 2, 3]
    assert await bus.pending() == 0


async def test_work_of_a_dead_worker_is_taken_over(bus: Bus):
    reached = asyncio.Event()

    async def hang(event: EventEnvelope) -> None:
        reached.set()
        await asyncio.Event().wait()

    await bus.publish(1, 2, 3)
    dying = asyncio.create_task(bus.worker("one", hang).run())
    async with asyncio.timeout(10):
        await reached.wait()
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    assert await bus.pending() == 3
    await _work(bus.worker("two"), lambda: len(bus.handled) >= 3)
    assert bus.handled == [1, 2, 3]
    assert await bus.pending() == 0


async def test_work_that_is_still_under_way_is_not_taken_over(bus: Bus):
    await bus.publish(1)
    await call(bus.redis, "XGROUP", "CREATE", STREAM, "coordinator", "0")
    await call(bus.redis, "XREADGROUP", "GROUP", "coordinator", "busy", "STREAMS", STREAM, ">")
    await _step(bus.worker("two", min_idle_ms=60_000), 3)
    assert bus.handled == []
    assert await bus.pending() == 1


async def test_handler_that_fails_sees_the_event_again(bus: Bus):
    attempts: list[int] = []

    async def flaky(event: EventEnvelope) -> None:
        attempts.append(event.seq)
        if attempts.count(1) < 3 and event.seq == 1:
            raise Unavailable("not now")

    await bus.publish(1, 2)
    await _work(bus.worker("one", flaky), lambda: attempts.count(1) >= 3)
    assert attempts == [1, 2, 1, 1]
    assert await bus.pending() == 0
    assert await bus.dead() == []


async def test_poison_goes_to_the_dead_letters_with_its_reason_and_the_rest_goes_on(bus: Bus):
    attempts: list[int] = []

    async def poisoned(event: EventEnvelope) -> None:
        attempts.append(event.seq)
        if event.seq == 1:
            raise Unavailable("never works")

    await bus.publish(1, 2)
    await _work(bus.worker("one", poisoned, max_deliveries=3), lambda: attempts.count(1) >= 3)
    (letter,) = await bus.dead()
    assert letter[b"reason"] == b"UNAVAILABLE: never works"
    assert letter[b"deliveries"] == b"3"
    assert letter[b"stream"].decode() == STREAM
    assert b'"event-1"' in letter[b"e"]
    assert attempts == [1, 2, 1, 1]
    assert await bus.pending() == 0


async def test_event_that_kills_its_workers_ends_as_a_dead_letter(bus: Bus):
    async def bug(event: EventEnvelope) -> None:
        raise ZeroDivisionError

    await bus.publish(1, 2)
    for turn in range(2):
        with pytest.raises(ZeroDivisionError):
            await _step(bus.worker(f"w{turn}", bug, max_deliveries=2), 5)
    worker = bus.worker("last", max_deliveries=2)
    async with asyncio.timeout(10):
        while await bus.pending():
            await worker.step()
    letters = await bus.dead()
    assert [letter[b"reason"] for letter in letters] == [b"delivered too often and never acknowledged"] * len(letters)
    assert len(letters) + len(bus.handled) == 2
    assert letters


async def test_unreadable_entry_is_a_dead_letter_at_once(bus: Bus):
    await call(bus.redis, "XADD", STREAM, "*", "e", "{nonsense")
    await call(bus.redis, "XADD", STREAM, "*", "other", "field")
    await bus.publish(1)
    await _work(bus.worker("one"), lambda: bus.handled == [1])
    assert [letter[b"e"] for letter in await bus.dead()] == [b"{nonsense", b""]
    assert await bus.pending() == 0


async def test_worker_starts_over_when_the_bus_has_lost_its_data(bus: Bus):
    worker = bus.worker("one")
    await bus.publish(1)
    await _work(worker, lambda: bus.handled == [1])
    await bus.server.admin("FLUSHALL")
    task = asyncio.create_task(worker.run())
    await eventually(lambda: not task.done())
    await bus.publish(2)
    await eventually(lambda: bus.handled == [1, 2])
    worker.stop()
    async with asyncio.timeout(10):
        await task


async def test_busy_workers_stop_when_cancelled(bus: Bus):
    """redis-py swallowed cancellations of busy consumers when a read timeout was set."""
    workers = [bus.worker(f"w{number}", block_ms=500) for number in range(30)]
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    await bus.publish(*range(1, 301))
    await eventually(lambda: len(bus.handled) >= 50)
    for task in tasks:
        task.cancel()
    done, running = await asyncio.wait(tasks, timeout=5)
    assert not running
    assert all(task.cancelled() for task in done)


async def test_stop_ends_an_idle_worker_within_one_wait(bus: Bus):
    worker = bus.worker("one", block_ms=20)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: not task.done())
    worker.stop()
    async with asyncio.timeout(5):
        await task
