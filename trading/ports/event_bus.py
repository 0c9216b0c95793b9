"""The bus: a hint that may be late, doubled or lost. The ledger is the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from trading.domain.events import Category, EventEnvelope
from trading.ports.ledger import WireEvent


class EventPublisher(Protocol):
    """Publishes committed events."""

    async def publish(self, events: list[EventEnvelope]) -> None:
        """Append events to the streams of their categories, in order.

        Raises:
            Unavailable: the bus is down; the events are safe in the ledger and are published later.
        """
        ...

    async def publish_wire(self, events: list[WireEvent]) -> None:
        """Append events that are in their wire form already; as ``publish`` otherwise."""
        ...


class EventSubscriber(Protocol):
    """Hears of committed events, at least once and possibly out of order after a reconnect."""

    def subscribe(self, categories: tuple[Category, ...]) -> AsyncIterator[EventEnvelope]:
        """Yield events as they are published; a gap in ``seq`` per service must be refilled from the ledger."""
        ...
