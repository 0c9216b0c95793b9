"""Read access to the three ledgers of a desk, for everything that looks and never writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from trading.adapters.config import DeskSettings
from trading.adapters.sql import LedgerLocation, open_reader
from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.stored import decode_row
from trading.domain.errors import InvalidValue
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


async def read_sound_events(
    reader: LedgerReader, *, until: int, unreadable: Callable[[int, InvalidValue], None] = lambda _seq, _error: None
) -> AsyncIterator[EventEnvelope]:
    """Yield the events of a ledger that may have been tampered with, and pass over those that cannot be read.

    Args:
        reader: of the room.
        until: the last sequence that is read.
        unreadable: hears of each event that is passed over.
    """
    after = 0
    if not isinstance(reader, SqlReader):  # one that keeps events, not text, has none that cannot be read
        async for event in read_events(reader):
            if event.seq <= until:
                yield event
        return
    while rows := await reader.event_rows(after, limit=_PAGE):
        for row in rows:
            after = row[0]
            if after > until:
                return
            try:
                event = decode_row(reader.room, row)
            except InvalidValue as error:
                unreadable(after, error)
                continue
            yield event
