"""A ledger in memory with exactly the behaviour of the durable one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trading.adapters import codec
from trading.adapters.sql.keyed_rows import KeyedRows, Undo, take_back
from trading.adapters.sql.tables import Shape, Values, metadata_for, shape_of
from trading.domain.errors import AlreadyClaimed, LeaseLost, LedgerError, LedgerUnavailable
from trading.domain.events import EventEnvelope
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Insert, Row, Unit, Upsert, WireEvent


@dataclass(slots=True)
class _Store:
    """What survives a writer: the facts and the number of its last lease."""

    events: list[EventEnvelope] = field(default_factory=list[EventEnvelope])
    tables: dict[str, KeyedRows] = field(default_factory=dict[str, KeyedRows])
    generation: int = 0


class InMemoryLedger:
    """Writes and reads one room's ledger without a database.

    Args:
        room: decides which projection tables exist; they are the durable ledger's tables.
        clock: stamps events.
        ids: names events.
    """

    def __init__(self, room: str, clock: Clock, ids: IdFactory) -> None:
        metadata_for(room)  # refuses a room without a ledger
        self._room = room
        self._clock = clock
        self._ids = ids
        self._failures: list[tuple[LedgerError, bool]] = []
        self._take(_Store())

    def _take(self, store: _Store) -> None:
        store.generation += 1
        self._store = store
        self._generation = store.generation

    @property
    def generation(self) -> int:
        """The fencing token of this writer's lease."""
        return self._generation

    @property
    def room(self) -> str:
        """The room whose facts these are."""
        return self._room

    @property
    def events(self) -> tuple[EventEnvelope, ...]:
        """Every committed event, in order."""
        return tuple(self._store.events)

    def successor(self) -> InMemoryLedger:
        """Return the next writer on the same facts, as after a restart; this one has lost its lease."""
        heir = InMemoryLedger(self._room, self._clock, self._ids)
        heir._take(self._store)
        return heir

    def fail_next_commit(self, error: LedgerError | None = None, *, written: bool = False) -> None:
        """Make the next commit raise; calls add up.

        Args:
            error: what to raise, ``LedgerUnavailable`` if not given.
            written: whether the unit is written all the same, as when the answer of a database is lost.
        """
        self._failures.append((error or LedgerUnavailable("the database failed (injected)"), written))

    async def commit(self, unit: Unit) -> Sequence[EventEnvelope]:
        """Return the committed events; see ``trading.ports.ledger.Ledger.commit``."""
        for draft in unit.events:
            if draft.encoded is not None and codec.decode_event(draft.payload.TYPE, draft.encoded) != draft.payload:
                raise AssertionError(f"{draft.payload.TYPE}: the encoded form is of another event")
        claims = [self._prepare(claim) for claim in unit.claims]
        writes = [(self._prepare(write), isinstance(write, Upsert)) for write in unit.writes]
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None and not failure[1]:
            raise failure[0]
        if self._store.generation != self._generation:
            raise LeaseLost(f"generation {self._store.generation} writes the {self._room} ledger now")
        undo: Undo = []
        try:
            for shape, values in claims:
                self._rows(shape).insert(values, undo)
            for (shape, values), replace in writes:
                rows = self._rows(shape)
                (rows.upsert if replace else rows.insert)(values, undo)
        except AlreadyClaimed:
            take_back(undo)
            raise
        committed = self._append(unit)
        if failure is not None:
            raise failure[0]
        return committed

    def _append(self, unit: Unit) -> list[EventEnvelope]:
        start = len(self._store.events) + 1
        committed = [
            EventEnvelope(
                event_id=self._ids.new_id(),
                seq=start + offset,
                timestamp_ms=self._clock.now_ms(),
                source_service=self._room,
                payload=draft.payload,
                metadata=draft.metadata,
            )
            for offset, draft in enumerate(unit.events)
        ]
        self._store.events.extend(committed)
        return committed

    def _prepare(self, write: Insert | Upsert) -> tuple[Shape, Values]:
        shape = shape_of(self._room, write.table)
        return shape, shape.values(write.row)

    def _rows(self, shape: Shape) -> KeyedRows:
        return self._store.tables.setdefault(shape.name, KeyedRows(shape))

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        """Return at most ``limit`` events with a greater sequence, in order."""
        start = max(seq, 0)
        return self._store.events[start : start + limit]

    async def wire_after(self, seq: int, *, limit: int) -> list[WireEvent]:
        """Return at most ``limit`` events with a greater sequence, in order, in their wire form."""
        events = await self.events_after(seq, limit=limit)
        return [WireEvent(event.seq, event.event_type, codec.encode_envelope(event)) for event in events]

    async def last_seq(self) -> int:
        """Return the sequence of the newest event, 0 for an empty ledger."""
        return len(self._store.events)

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return projection rows whose columns equal ``where``, by primary key; a list or tuple means IN."""
        shape = shape_of(self._room, table)
        wanted = shape.condition(where or {})
        matching = [
            shape.row(values)
            for values in self._rows(shape).sorted()
            if all(values[position] in allowed for position, allowed in wanted)
        ]
        return list(matching[:limit])
