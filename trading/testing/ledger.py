"""A ledger in memory with exactly the behaviour of the durable one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trading.adapters.sql.tables import Shape, Values, metadata_for, shape_of
from trading.domain.errors import AlreadyClaimed, LeaseLost, LedgerError, LedgerUnavailable
from trading.domain.events import EventEnvelope
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Insert, Row, Unit, Upsert


class _Rows:
    """One table: its rows under each of its unique keys, and how to take changes back."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._by_key: dict[tuple[int, ...], dict[Values, Values]] = {key: {} for key in shape.keys}

    def insert(self, values: Values, undo: list[Callable[[], None]]) -> None:
        for key in self.shape.keys:
            existing = self._by_key[key].get(_pick(values, key))
            if existing is not None:
                raise AlreadyClaimed(self.shape.name, self.shape.row(existing))
        self._put(values)
        undo.append(lambda: self._remove(values))

    def upsert(self, values: Values, undo: list[Callable[[], None]]) -> None:
        old = self._by_key[self.shape.key].get(_pick(values, self.shape.key))
        if old is not None:
            self._remove(old)
            undo.append(lambda: self._put(old))
        self.insert(values, undo)

    def sorted(self) -> list[Values]:
        rows = self._by_key[self.shape.key]
        return [rows[key] for key in sorted(rows, key=lambda key: tuple((v is not None, v) for v in key))]

    def _put(self, values: Values) -> None:
        for key, rows in self._by_key.items():
            wanted = _pick(values, key)
            if None not in wanted:  # SQL: a NULL equals nothing, so it takes no key
                rows[wanted] = values

    def _remove(self, values: Values) -> None:
        for key, rows in self._by_key.items():
            rows.pop(_pick(values, key), None)


@dataclass(slots=True)
class _Store:
    """What survives a writer: the facts and the number of its last lease."""

    events: list[EventEnvelope] = field(default_factory=list[EventEnvelope])
    tables: dict[str, _Rows] = field(default_factory=dict[str, _Rows])
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
        claims = [self._prepare(claim) for claim in unit.claims]
        writes = [(self._prepare(write), isinstance(write, Upsert)) for write in unit.writes]
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None and not failure[1]:
            raise failure[0]
        if self._store.generation != self._generation:
            raise LeaseLost(f"generation {self._store.generation} writes the {self._room} ledger now")
        undo: list[Callable[[], None]] = []
        try:
            for shape, values in claims:
                self._rows(shape).insert(values, undo)
            for (shape, values), replace in writes:
                rows = self._rows(shape)
                (rows.upsert if replace else rows.insert)(values, undo)
        except AlreadyClaimed:
            for take_back in reversed(undo):
                take_back()
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

    def _rows(self, shape: Shape) -> _Rows:
        return self._store.tables.setdefault(shape.name, _Rows(shape))

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        """Return at most ``limit`` events with a greater sequence, in order."""
        start = max(seq, 0)
        return self._store.events[start : start + limit]

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


def _pick(values: Values, positions: tuple[int, ...]) -> Values:
    return tuple(values[position] for position in positions)
