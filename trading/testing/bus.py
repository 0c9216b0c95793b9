"""A bus in memory, with the faults of the real one on demand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal

from trading.adapters.codec import decode_envelope
from trading.domain.errors import Unavailable
from trading.domain.events import Category, EventEnvelope, category_of
from trading.ports.ledger import WireEvent


class InMemoryBus:
    """An ``EventPublisher`` and ``EventSubscriber`` for tests in one event loop.

    Args:
        start: ``$`` lets a subscriber hear only what is published after ``subscribe``, ``0`` also what is still held.
        maxlen: events held per category.

    Attributes:
        down: while True, publishing raises Unavailable.
        copies: how often each event is delivered; 2 makes every one a duplicate.
    """

    def __init__(self, *, start: Literal["$", "0"] = "$", maxlen: int = 10_000) -> None:
        self.down = False
        self.copies = 1
        self._start = start
        self._maxlen = maxlen
        self._streams: dict[Category, deque[EventEnvelope]] = {}
        self._queues: list[tuple[frozenset[Category], asyncio.Queue[EventEnvelope]]] = []

    def held(self, category: Category) -> list[EventEnvelope]:
        """Return what the stream of a category holds, oldest first."""
        return list(self._streams.get(category, ()))

    async def publish(self, events: list[EventEnvelope]) -> None:
        """Append events to the streams of their categories, in order.

        Raises:
            Unavailable: the test has switched the bus off.
        """
        if self.down:
            raise Unavailable("the bus is down")
        for event in events:
            category = category_of(event.event_type)
            stream = self._streams.setdefault(category, deque(maxlen=self._maxlen))
            for _ in range(self.copies):
                stream.append(event)
                for categories, queue in self._queues:
                    if category in categories:
                        queue.put_nowait(event)

    async def publish_wire(self, events: list[WireEvent]) -> None:
        """Append events in their wire form, read as a subscriber would.

        Raises:
            Unavailable: the test has switched the bus off.
            InvalidValue: one of them is no event's wire form.
        """
        await self.publish([decode_envelope(event.data) for event in events])

    def subscribe(self, categories: tuple[Category, ...]) -> AsyncIterator[EventEnvelope]:
        """Yield events as they are published, for ever."""
        queue: asyncio.Queue[EventEnvelope] = asyncio.Queue()
        if self._start == "0":
            for category in categories:
                for event in self.held(category):
                    queue.put_nowait(event)
        entry = (frozenset(categories), queue)
        self._queues.append(entry)
        return self._drain(entry)

    async def _drain(
        self, entry: tuple[frozenset[Category], asyncio.Queue[EventEnvelope]]
    ) -> AsyncIterator[EventEnvelope]:
        try:
            while True:
                yield await entry[1].get()
        finally:
            self._queues.remove(entry)


class MemoryCursor:
    """A relay's cursor in memory; a ``RelayCursor``.

    Attributes:
        seq: the last published sequence; set it back to act a bus that forgot.
        down: while True, reaching it raises Unavailable.
    """

    def __init__(self, seq: int = 0) -> None:
        self.seq = seq
        self.down = False

    async def load(self) -> int:
        """Return the last published sequence."""
        self._check()
        return self.seq

    async def save(self, seq: int) -> int:
        """Remember a sequence and return the one before."""
        self._check()
        previous, self.seq = self.seq, seq
        return previous

    def _check(self) -> None:
        if self.down:
            raise Unavailable("the cursor is down")
