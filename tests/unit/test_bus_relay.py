from __future__ import annotations

import asyncio

import pytest

from tests.bus_support import commit, eventually, ledger, running
from trading.adapters.outbox import OutboxRelay
from trading.domain.errors import Unavailable
from trading.domain.events import Category
from trading.testing.bus import InMemoryBus, MemoryCursor

NEVER_MS = 3_600_000


def _published(bus: InMemoryBus) -> list[int]:
    return [event.seq for event in bus.held(Category.COORDINATION)]


async def test_committed_events_are_published_in_order_and_the_cursor_follows():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor()
    await commit(book, 1, 10)
    relay = OutboxRelay(book, bus, cursor, batch=4)
    assert [await relay.relay_once() for _ in range(4)] == [4, 4, 2, 0]
    assert _published(bus) == list(range(1, 11))
    assert cursor.seq == 10


async def test_new_relay_goes_on_from_the_stored_cursor():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor(6)
    await commit(book, 1, 8)
    await OutboxRelay(book, bus, cursor).relay_once()
    assert _published(bus) == [7, 8]


async def test_notify_publishes_before_the_poll():
    book, bus = ledger(), InMemoryBus()
    relay = OutboxRelay(book, bus, MemoryCursor(), poll_ms=NEVER_MS)
    with running(asyncio.create_task(relay.run())):
        await eventually(lambda: relay.seq == 0)
        await commit(book, 1, 3)
        relay.notify()
        await eventually(lambda: _published(bus) == [1, 2, 3])


async def test_unannounced_commit_is_found_by_polling():
    book, bus = ledger(), InMemoryBus()
    relay = OutboxRelay(book, bus, MemoryCursor(), poll_ms=1)
    with running(asyncio.create_task(relay.run())):
        await eventually(lambda: relay.seq == 0)
        await commit(book, 1, 2)
        await eventually(lambda: _published(bus) == [1, 2])


async def test_outage_is_waited_out_and_nothing_is_lost():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor()
    relay = OutboxRelay(book, bus, cursor, poll_ms=1)
    bus.down = True
    await commit(book, 1, 5)
    with running(asyncio.create_task(relay.run())):
        await eventually(lambda: not relay.healthy)
        assert cursor.seq == 0
        bus.down = False
        await eventually(lambda: relay.healthy and cursor.seq == 5)
    assert _published(bus) == [1, 2, 3, 4, 5]


async def test_failure_between_publication_and_cursor_publishes_twice_never_not_at_all():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor()
    relay = OutboxRelay(book, bus, cursor)
    assert await relay.relay_once() == 0
    await commit(book, 1, 2)
    cursor.down = True
    with pytest.raises(Unavailable):
        await relay.relay_once()
    cursor.down = False
    await relay.relay_once()
    assert _published(bus) == [1, 2, 1, 2]
    assert cursor.seq == 2


async def test_bus_that_forgot_its_newest_events_gets_them_again():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor()
    relay = OutboxRelay(book, bus, cursor)
    await commit(book, 1, 6)
    await relay.relay_once()
    cursor.seq = 3  # killed and back, without 4 to 6; no call failed
    await commit(book, 7, 7)
    while await relay.relay_once():
        pass
    assert _published(bus) == [1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert cursor.seq == 7


async def test_lost_cursor_replays_no_more_than_the_streams_would_keep():
    book, bus = ledger(), InMemoryBus()
    await commit(book, 1, 50)
    await OutboxRelay(book, bus, MemoryCursor(), replay_max=10).relay_once()
    assert _published(bus) == list(range(41, 51))


async def test_cursor_beyond_a_restored_ledger_does_not_hide_new_events():
    book, bus, cursor = ledger(), InMemoryBus(), MemoryCursor(99)
    await commit(book, 1, 3)
    relay = OutboxRelay(book, bus, cursor)
    assert await relay.relay_once() == 0
    await commit(book, 4, 4)
    await relay.relay_once()
    assert _published(bus) == [4]
    assert cursor.seq == 4


async def test_stop_publishes_what_is_there_and_returns():
    book, bus = ledger(), InMemoryBus()
    relay = OutboxRelay(book, bus, MemoryCursor(), poll_ms=NEVER_MS, batch=2)
    task = asyncio.create_task(relay.run())
    await eventually(lambda: relay.seq == 0)
    await commit(book, 1, 5)
    relay.stop()
    async with asyncio.timeout(5):
        await task
    assert _published(bus) == [1, 2, 3, 4, 5]


async def test_stop_during_an_outage_returns():
    book, bus = ledger(), InMemoryBus()
    bus.down = True
    await commit(book, 1, 1)
    relay = OutboxRelay(book, bus, MemoryCursor())
    task = asyncio.create_task(relay.run())
    await eventually(lambda: not relay.healthy)
    relay.stop()
    async with asyncio.timeout(5):
        await task
    assert _published(bus) == []
