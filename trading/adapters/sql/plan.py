"""What a commit will do, worked out before the database is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trading.adapters import codec
from trading.adapters.sql.keyed_rows import KeyedRows, Undo, pick, take_back
from trading.adapters.sql.stored import EventRow, chain_hash, encode_metadata
from trading.adapters.sql.tables import Shape, Values, shape_of
from trading.domain.errors import AlreadyClaimed
from trading.domain.events import EventEnvelope
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Insert, Unit, Upsert


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of one table that go in with one statement."""

    shape: Shape
    replace: bool
    rows: list[Values]


@dataclass(frozen=True, slots=True)
class Work:
    """One transaction.

    Attributes:
        generation: the lease must still have this number.
        head: sequence of the newest event before it.
        events: the event rows to append.
        steps: the projection rows, grouped by table.
    """

    generation: int
    head: int
    events: list[EventRow]
    steps: list[Step]


@dataclass(slots=True, eq=False)
class Waiting:
    """A unit whose caller waits; everything that can fail on its own account has been done already."""

    unit: Unit
    done: asyncio.Future[Sequence[EventEnvelope]]
    payloads: list[str]
    operations: list[tuple[Shape, bool, Values]]
    envelopes: list[EventEnvelope] = field(default_factory=list[EventEnvelope])

    @classmethod
    def prepare(cls, room: str, unit: Unit, done: asyncio.Future[Sequence[EventEnvelope]]) -> Waiting:
        """Encode a unit; raises InvalidValue for a table, column or value that cannot be stored."""
        payloads = [draft.encoded or codec.encode(draft.payload).decode() for draft in unit.events]
        operations = [_operation(room, write) for write in (*unit.claims, *unit.writes)]
        return cls(unit, done, payloads, operations)


def _operation(room: str, write: Insert | Upsert) -> tuple[Shape, bool, Values]:
    shape = shape_of(room, write.table)
    return shape, isinstance(write, Upsert), shape.values(write.row)


def append_events(
    batch: Sequence[Waiting], *, room: str, head: int, previous: bytes, clock: Clock, ids: IdFactory
) -> list[EventRow]:
    """Give the events of a batch their sequence, id, time and hash, and return their rows.

    Args:
        batch: the units, in order; each gets its envelopes.
        room: the writing room.
        head: sequence of the newest event so far.
        previous: hash of that event.
        clock: stamps all events of the batch alike.
        ids: names events.
    """
    rows: list[EventRow] = []
    now_ms = clock.now_ms()
    seq = head
    for waiting in batch:
        waiting.envelopes = []
        known, metadata = None, ""  # the events of a unit usually share it
        for draft, payload in zip(waiting.unit.events, waiting.payloads, strict=True):
            seq += 1
            if draft.metadata is not known:
                known, metadata = draft.metadata, encode_metadata(draft.metadata)
            event_id, event_type = ids.new_id(), draft.payload.TYPE
            previous = chain_hash(previous, seq, event_id, event_type, now_ms, payload, metadata)
            rows.append((seq, event_id, event_type, now_ms, payload, metadata, previous))
            waiting.envelopes.append(
                EventEnvelope(
                    event_id=event_id,
                    seq=seq,
                    timestamp_ms=now_ms,
                    source_service=room,
                    payload=draft.payload,
                    metadata=draft.metadata,
                )
            )
    return rows


def group_steps(batch: Iterable[Waiting]) -> list[Step]:
    """Return the projection rows of a batch by table, in order of arrival within each table.

    A later replacement of the same row takes the place of an earlier one in the same step.
    """
    tables: dict[str, list[tuple[Shape, bool, dict[object, Values]]]] = {}
    for waiting in batch:
        for shape, replace, values in waiting.operations:
            runs = tables.setdefault(shape.name, [])
            if not runs or runs[-1][1] != replace:
                runs.append((shape, replace, {}))
            rows = runs[-1][2]
            if replace:
                key = pick(values, shape.key)
                rows.pop(key, None)
                rows[key] = values
            else:
                rows[len(rows)] = values
    return [Step(shape, replace, list(rows.values())) for runs in tables.values() for shape, replace, rows in runs]


def wanted_keys(batch: Iterable[Waiting]) -> dict[tuple[Shape, tuple[int, ...]], set[Values]]:
    """Return every unique key that the batch's rows would take, by table and key columns."""
    wanted: dict[tuple[Shape, tuple[int, ...]], set[Values]] = {}
    for waiting in batch:
        for shape, _, values in waiting.operations:
            for key in shape.keys:
                chosen = pick(values, key)
                if None not in chosen:
                    wanted.setdefault((shape, key), set()).add(chosen)
    return wanted


def sift(
    batch: Iterable[Waiting], existing: dict[Shape, list[Values]]
) -> tuple[list[Waiting], list[tuple[Waiting, AlreadyClaimed]]]:
    """Return the units that can be committed together and those that cannot, each with its refusal.

    Args:
        batch: the units, in order; an earlier one wins over a later one.
        existing: the stored rows that hold any key of ``wanted_keys``.
    """
    tables = {shape: KeyedRows(shape, rows) for shape, rows in existing.items()}
    accepted: list[Waiting] = []
    refused: list[tuple[Waiting, AlreadyClaimed]] = []
    for waiting in batch:
        undo: Undo = []
        try:
            for shape, replace, values in waiting.operations:
                rows = tables.setdefault(shape, KeyedRows(shape))
                (rows.upsert if replace else rows.insert)(values, undo)
        except AlreadyClaimed as refusal:
            take_back(undo)
            refused.append((waiting, refusal))
        else:
            accepted.append(waiting)
    return accepted, refused
