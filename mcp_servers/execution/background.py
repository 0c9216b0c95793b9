"""What runs beside the tools: following risk, the venue and the market, and the rounds that end and repair things.

Rules kept here:

- Every loop survives what it can wait out (a bus that is down, a venue that does not answer) and is logged once.
- What cannot be waited out (the ledger failed, the lease is lost, a fault of our own) ends all of it: the room stops.
- Redis carries hints: without it approvals still lapse and orders are still reconciled, only nothing new is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mcp_servers.execution.service import ExecutionService
from trading.adapters.config import DeskHome
from trading.adapters.redis_client import call
from trading.adapters.sql import newest_head
from trading.domain.errors import LedgerUnavailable, VenueError
from trading.domain.events import EventEnvelope
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook, TradePrint
from trading.ports.venue import VenueReport

log = logging.getLogger(__name__)

HEARTBEAT_EVERY_S: Final = 0.5
LAPSE_EVERY_S: Final = 0.1
RELEASE_EVERY_S: Final = 0.5
REPAIR_EVERY_S: Final = 0.25
WITNESS_EVERY_S: Final = 10.0
_HEARTBEATS_KEPT: Final = 64
_CALL_TIMEOUT_S: Final = 2.0
_BLOCK_MS: Final = 500
_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5)
_YIELD_EVERY: Final = 64


#: Something that runs beside the tools until it is cancelled.
Loop = Coroutine[Any, Any, None]


class WatchingVenue(Protocol):
    """A venue in this process that must be told what the market does."""

    def on_book(self, book: OrderBook) -> None:
        """Take in a public book."""
        ...

    def on_trade(self, trade: TradePrint) -> None:
        """Take in a public print."""
        ...


async def follow_approvals(service: ExecutionService, follower: AsyncIterator[Sequence[EventEnvelope]]) -> None:
    """Learn of every approval and exit that risk writes: one lapses here even if nobody ever brings it."""
    async for events in follower:
        for event in events:
            service.follow_risk(event)
            await service.stop_loss.follow(event)
        await asyncio.sleep(0)


async def hear_risk(service: ExecutionService, redis: Redis, stream: str) -> None:
    """Take risk's heartbeats from the bus as they come; the newest one that is held counts at the start."""
    cursor: bytes | str = "$"
    failures = 0
    first = True
    while True:
        try:
            if first:
                async with asyncio.timeout(_CALL_TIMEOUT_S):
                    held = await call(redis, "XREVRANGE", stream, "+", "-", "COUNT", 1)
                cursor, first = (held[0][0] if held else "0-0"), False
                batch = [(stream.encode(), held)] if held else []
            else:
                async with asyncio.timeout(_CALL_TIMEOUT_S):
                    batch = await call(redis, "XREAD", "COUNT", 64, "BLOCK", _BLOCK_MS, "STREAMS", stream, cursor)
            failures = 0
        except (RedisError, OSError, TimeoutError) as error:
            if failures == 0:
                log.warning("risk cannot be heard: %s", type(error).__name__)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            continue
        for _, entries in batch or ():
            for entry_id, fields in entries:
                cursor = entry_id
                service.learn(cast("dict[bytes, bytes]", fields).get(b"e", b"").decode("utf-8", "replace"))


async def act_on_news(service: ExecutionService) -> None:
    """Carry out what a heartbeat changed, apart from the loop that hears them: a slow venue must not deafen us."""
    while True:
        await service.news.wait()
        service.news.clear()
        try:
            await service.act_on_news()
        except (VenueError, LedgerUnavailable) as error:
            log.warning("a halt could not be carried out yet: %s", error.code)


async def tell_the_desk(service: ExecutionService, redis: Redis, stream: str) -> None:
    """Say twice a second that execution lives, how far its ledger is and whether it would trade."""
    failing = False
    while True:
        pulse = {
            "sent_ms": service.clock.now_ms(),
            "ledger_seq": await service.parts.ledger.last_seq(),
            "unresolved": len(service.reconciler.in_doubt()),
            "safe": not service.inquiries.unsafe_reasons(),
        }
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                await call(redis, "XADD", stream, "MAXLEN", "~", _HEARTBEATS_KEPT, "*", "d", orjson.dumps(pulse))
            failing = False
        except (RedisError, OSError, TimeoutError) as error:
            if not failing:
                log.warning("execution's heartbeat does not reach the bus: %s", type(error).__name__)
            failing = True
        await asyncio.sleep(HEARTBEAT_EVERY_S)


async def feed_venue(
    venue: WatchingVenue,
    updates: AsyncIterator[OrderBook | TradePrint],
    relabel: Callable[[OrderBook | TradePrint], OrderBook | TradePrint | None],
    watch: Callable[[OrderBook], None],
) -> None:
    """Show a venue of this process the market, under its own instrument names, and then ``watch`` each book."""
    count = 0
    async for update in updates:
        named = relabel(update)
        if isinstance(named, OrderBook):
            venue.on_book(named)
            watch(named)
        elif named is not None:
            venue.on_trade(named)
        count += 1
        if count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


async def take_reports(service: ExecutionService, reports: AsyncIterator[VenueReport]) -> None:
    """Apply what the venue reports unasked; what is queued together becomes durable together."""
    flushing: asyncio.Task[None] | None = None
    count = 0
    async for report in reports:
        await service.hear_venue(report)
        count += 1
        if count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        if flushing is None or flushing.done():
            if flushing is not None:
                flushing.result()
            flushing = asyncio.create_task(service.lifecycle.flush_all())
    if flushing is not None:
        await flushing


async def every(seconds: float, act: Callable[[], Awaitable[object]]) -> None:
    """Repeat ``act`` for ever; a venue or another room's ledger that does not answer is asked again next time."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except (VenueError, LedgerUnavailable) as error:
            log.warning("a background round was cut short: %s %s", error.code, error)


async def repair(service: ExecutionService, *, reconcile_every_ms: int) -> None:
    """Reconcile when something is in doubt or it is time, and sweep while a halt has left something working."""
    last = service.reconciler.last
    in_doubt = bool(service.lifecycle.gaps) or bool(service.reconciler.in_doubt()) or last is None or not last.complete
    due = last is None or service.clock.now_ms() - last.at_ms >= reconcile_every_ms
    if in_doubt or due:
        await service.reconciler.run()
    if service.has_halted_work():
        await service.sweep()


async def until_broken(service: ExecutionService) -> None:
    """Wait for the ledger to fail.

    Raises:
        LedgerUnavailable: it has; the room must stop.
    """
    await service.lifecycle.broken.wait()
    raise LedgerUnavailable("the execution ledger failed")


def relabeller(
    names: dict[InstrumentId, InstrumentId],
) -> Callable[[OrderBook | TradePrint], OrderBook | TradePrint | None]:
    """Return a function that gives market data the venue's instrument names, None for what is not traded here.

    Args:
        names: instrument in the market view -> instrument at the venue.
    """

    def relabel(update: OrderBook | TradePrint) -> OrderBook | TradePrint | None:
        name = names.get(update.instrument_id)
        return None if name is None else replace(update, instrument_id=name)

    return relabel


async def witness_risk(service: ExecutionService, home: DeskHome) -> None:
    """Embed the newest head that risk has signed in our own chain, if it is a new one."""
    head = await asyncio.to_thread(newest_head, home, "risk")
    if head is not None and head.size > service.witnessed_size:
        service.witnessed_size = head.size
        service.lifecycle.record(head)
        await service.lifecycle.flush()
