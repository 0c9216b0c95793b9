"""Read access to the three ledgers of a desk, for everything that looks and never writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trading.adapters.config import DeskSettings
from trading.adapters.sql import LedgerLocation, open_reader
from trading.domain.events import EventEnvelope
from trading.ports.ledger import LedgerReader

ROOMS = ("coordinator", "risk", "execution")
_PAGE = 2000


@dataclass(frozen=True, slots=True)
class Ledgers:
    """One reader for each writing room."""

    coordinator: LedgerReader
    risk: LedgerReader
    execution: LedgerReader

    def reader(self, room: str) -> LedgerReader:
        """Return the reader of one room."""
        return {"coordinator": self.coordinator, "risk": self.risk, "execution": self.execution}[room]


@asynccontextmanager
async def open_ledgers(settings: DeskSettings) -> AsyncGenerator[Ledgers]:
    """Open the ledgers read-only; a room that never wrote reads as empty."""
    location = LedgerLocation.of(settings)
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(open_reader(room, location)) for room in ROOMS]
        yield Ledgers(*readers)


async def read_events(reader: LedgerReader, *, after: int = 0) -> AsyncIterator[EventEnvelope]:
    """Yield every event with a greater sequence, page by page, up to the head at the time of the last page."""
    while page := await reader.events_after(after, limit=_PAGE):
        for event in page:
            yield event
        after = page[-1].seq
