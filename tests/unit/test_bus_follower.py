from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.bus_support import commit, envelope, ledger
from trading.adapters.ledger_follower import LedgerFollower
from trading.domain.errors import LedgerError, LedgerUnavailable, Unavailable
from trading.domain.events import Category, EventEnvelope
from trading.ports.ledger import Row
from trading.testing.bus import InMemoryBus
from trading.testing.clock import ManualClock

NEVER_MS = 3_600_000


class ListReader:
    """A ledger whose holes and failures the test decides."""

    def __init__(self, events: list[EventEnvelope], *, failures: int = 0) -> None:
        self.events = events
        self.failures = failures
        self.reads = 0

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        self.reads += 1
        if self.failures:
            self.failures -= 1
            raise LedgerUnavailable("locked")
        return [event for event in self.events if event.seq > seq][:limit]

    async def last_seq(self) -> int:
        return self.events[-1].seq if self.events else 0

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        return []


async def _collect(follower: LedgerFollower, count: int) -> list[int]:
    seqs: list[int] = []
    async with asyncio.timeout(10):
        async for events in follower:
            seqs += [event.seq for event in events]
            if len(seqs) >= count:
                return seqs
    raise AssertionError("the follower ended")


async def test_every_event_comes_once_and_in_order_across_batches():
    book = ledger()
    await commit(book, 1, 25)
    assert await _collect(LedgerFollower(book, batch=4), 25) == list(range(1, 26))


async def test_follower_starts_after_what_was_applied():
    book = ledger()
    await commit(book, 1, 9)
    assert await _collect(LedgerFollower(book, from_seq=6), 3) == [7, 8, 9]


async def test_without_any_wakeup_polling_finds_new_events():
    book = ledger()
    follower = LedgerFollower(book, poll_ms=1)
    found = asyncio.create_task(_collect(follower, 3))
    for number in (1, 2, 3):
        await commit(book, number, number)
        await asyncio.sleep(0)
    assert await found == [1, 2, 3]


async def test_wakeup_from_the_bus_comes_before_the_poll():
    book, bus = ledger(), InMemoryBus()
    follower = LedgerFollower(book, poll_ms=NEVER_MS, wakeups=bus.subscribe((Category.COORDINATION,)))
    batches = aiter(follower)
    waiting = asyncio.ensure_future(anext(batches))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await commit(book, 1, 2)
    await bus.publish([envelope(2)])  # the first hint was lost; the second brings both events
    async with asyncio.timeout(5):
        assert [event.seq for event in await waiting] == [1, 2]
    await batches.aclose()


async def test_duplicate_hints_do_not_duplicate_events():
    book, bus = ledger(), InMemoryBus()
    bus.copies = 5
    follower = LedgerFollower(book, poll_ms=NEVER_MS, wakeups=bus.subscribe((Category.COORDINATION,)))
    found = asyncio.create_task(_collect(follower, 3))
    for number in (1, 2, 3):
        await commit(book, number, number)
        await bus.publish([envelope(number)])
    assert await found == [1, 2, 3]


async def test_notify_in_process_comes_before_the_poll():
    book = ledger()
    follower = LedgerFollower(book, poll_ms=NEVER_MS)
    found = asyncio.create_task(_collect(follower, 1))
    for _ in range(20):
        await asyncio.sleep(0)
    await commit(book, 1, 1)
    follower.notify()
    assert await found == [1]


async def test_wakeups_that_fail_leave_polling_alive():
    async def broken() -> AsyncIterator[object]:
        yield "one"
        raise Unavailable("gone")

    book = ledger()
    found = asyncio.create_task(_collect(LedgerFollower(book, poll_ms=1, wakeups=broken()), 2))
    await asyncio.sleep(0)
    await commit(book, 1, 2)
    assert await found == [1, 2]


async def test_unreadable_ledger_is_tried_again():
    reader = ListReader([envelope(1)], failures=3)
    assert await _collect(LedgerFollower(reader, poll_ms=1), 1) == [1]
    assert reader.reads == 4


async def test_gap_is_not_handed_out_and_is_read_again_once_it_closes():
    reader = ListReader([envelope(1), envelope(3)])
    follower = LedgerFollower(reader)
    assert [event.seq for event in await follower.read()] == [1]
    assert await follower.read() == []
    reader.events.insert(1, envelope(2))
    assert [event.seq for event in await follower.read()] == [2, 3]


async def test_gap_that_stays_is_an_error_and_not_skipped():
    follower = LedgerFollower(ListReader([envelope(2)]), poll_ms=1)
    with pytest.raises(LedgerError) as caught:
        await _collect(follower, 1)
    assert caught.value.code == "LEDGER_GAP"
    assert follower.seq == 0


async def test_freshness_is_the_start_of_a_read_that_saw_the_head():
    book, clock = ledger(), ManualClock()
    await commit(book, 1, 3)
    follower = LedgerFollower(book, clock=clock, batch=2)
    await follower.read()
    assert follower.checked_ns is None  # a full batch: there may be more
    clock.advance(5)
    await follower.read()
    assert follower.checked_ns == 5_000_000


async def test_cancelled_follower_leaves_no_task_behind():
    bus = InMemoryBus()
    before = asyncio.all_tasks()
    follower = LedgerFollower(ledger(), poll_ms=NEVER_MS, wakeups=bus.subscribe((Category.RISK,)))
    found = asyncio.create_task(_collect(follower, 1))
    for _ in range(20):
        await asyncio.sleep(0)
    found.cancel()
    with pytest.raises(asyncio.CancelledError):
        await found
    for _ in range(20):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
