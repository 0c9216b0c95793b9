"""The ledger of one room: append-only events and the projections made of them, written in one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from trading.domain.events import DomainEvent, EventEnvelope, EventMetadata

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Insert:
    """Add a row to a projection table."""

    table: str
    row: Row


@dataclass(frozen=True, slots=True)
class Upsert:
    """Replace the projection row with the same primary key, or add it."""

    table: str
    row: Row


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event that is about to be committed; ledger assigns id, sequence and time.

    Attributes:
        encoded: the payload's JSON where the caller has it already; must decode to exactly ``payload``.
    """

    payload: DomainEvent
    metadata: EventMetadata = field(default_factory=EventMetadata)
    encoded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What must become true together, or not at all.

    Attributes:
        events: appended in order, each with the next sequence.
        claims: rows whose primary or unique key must be free; if one is taken the whole unit is refused
            (and only this unit: its neighbours in the same commit are not touched).
        writes: projection rows that follow from the events.
    """

    events: tuple[EventDraft, ...] = ()
    claims: tuple[Insert, ...] = ()
    writes: tuple[Insert | Upsert, ...] = ()


class LedgerReader(Protocol):
    """Reads one room's ledger; every room may read every other."""

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        """Return at most ``limit`` events with a greater sequence, in order."""
        ...

    async def last_seq(self) -> int:
        """Return the sequence of the newest committed event, 0 for an empty ledger."""
        ...

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return projection rows whose columns equal ``where``.

        A list or tuple value means IN. Order is by primary key.
        """
        ...


class WireEvent(NamedTuple):
    """A committed event as the bus carries it.

    Attributes:
        seq: its sequence in its room's ledger.
        event_type: its dotted type, which decides the stream.
        data: its wire form, see ``trading.adapters.codec.encode_envelope``.
    """

    seq: int
    event_type: str
    data: bytes


class Outbox(Protocol):
    """What a relay publishes: a ledger's committed events as they are stored."""

    async def wire_after(self, seq: int, *, limit: int) -> list[WireEvent]:
        """Return at most ``limit`` events with a greater sequence, in order, in their wire form."""
        ...

    async def last_seq(self) -> int:
        """Return the sequence of the newest committed event, 0 for an empty ledger."""
        ...


class Ledger(LedgerReader, Outbox, Protocol):
    """Writes one room's ledger. There is exactly one writer, fenced by a lease."""

    @property
    def generation(self) -> int:
        """The fencing token of this writer's lease; greater than that of every earlier writer."""
        ...

    async def commit(self, unit: Unit) -> Sequence[EventEnvelope]:
        """Return the committed events once they are durable.

        Units that arrive while a commit is under way are committed together in the next one. Cancelling the
        caller does not cancel the commit.

        Raises:
            AlreadyClaimed: a claimed key was taken; nothing of the unit was written.
            LeaseLost: another process is the writer now; nothing was written.
            LedgerUnavailable: the database failed; the unit may be assumed not written only after a re-read.
        """
        ...
