"""What the tests of the bus share."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import BusSettings, EmbeddedRedis
from trading.domain.events import EventEnvelope, EventMetadata, ProposalRefused
from trading.domain.identifiers import AgentId, ProposalId
from trading.ports.ledger import EventDraft, Unit
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.ledger import InMemoryLedger

BUNDLED = BusSettings(prefer_bundled=True, watch_ms=20)
DESK = "desk"

T = TypeVar("T")


@contextmanager
def short_home() -> Iterator[DeskHome]:
    """Yield a desk's home whose path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        yield DeskHome(Path(directory)).ensure()


def settings_for(home: DeskHome, *, redis_url: str | None = None) -> DeskSettings:
    return DeskSettings.model_validate({"home": home.path, "desk": DESK, "REDIS_URL": redis_url})


def server_of(home: DeskHome) -> EmbeddedRedis:
    return EmbeddedRedis(home, settings_for(home), BUNDLED)


def fact(number: int) -> ProposalRefused:
    """Return an event of the coordination category that says which one it is."""
    return ProposalRefused(proposal_id=ProposalId(f"p-{number}"), agent_id=AgentId("ann"), reason="TEST")


def envelope(number: int, payload: object = None) -> EventEnvelope:
    return EventEnvelope(
        event_id=f"event-{number}",
        seq=number,
        timestamp_ms=1_750_000_000_000,
        source_service="coordinator",
        payload=payload or fact(number),  # type: ignore[arg-type]
        metadata=EventMetadata(),
    )


def ledger() -> InMemoryLedger:
    return InMemoryLedger("coordinator", ManualClock(), SeededIds(7))


async def commit(book: InMemoryLedger, first: int, last: int) -> None:
    """Commit the facts ``first`` to ``last``, both included."""
    await book.commit(Unit(events=tuple(EventDraft(fact(number)) for number in range(first, last + 1))))


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
    """Return as soon as the condition holds; fail after the timeout."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def take(events: AsyncIterator[T], count: int, *, timeout_s: float = 10) -> list[T]:
    """Return the next ``count`` events, or whatever else it yields."""
    async with asyncio.timeout(timeout_s):
        return [await anext(events) for _ in range(count)]


@contextmanager
def running(*coroutines: asyncio.Task[None]) -> Iterator[None]:
    """Cancel tasks at the end; a task that failed fails the test."""
    try:
        yield
    finally:
        for task in coroutines:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error
            task.cancel()
