"""The one writer of a room's ledger.

- One batcher: what arrives during a commit goes into the next. A commit costs one disk flush however many units it has.
- A unit is all or nothing, and its refusal never fails its neighbours: a batch is first tried whole; if a key was
  taken, the stored rows with those keys are read, the losers are taken out and the rest is written.
- The hash chain and the Merkle frontier move only when a commit is known to be durable.
- After a failure the head is read again before anything else is written. If it shows the failed batch, the batch was
  written after all, and its callers are told so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from trading.adapters.sql.plan import Waiting, Work, append_events, group_steps, sift, wanted_keys
from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.signing_heads import HeadSigner
from trading.adapters.sql.store import ConstraintBroken, Store
from trading.adapters.sql.stored import EventRow, genesis, wire_row
from trading.adapters.sql.tables import Shape, Values
from trading.domain.errors import LeaseLost, LedgerError, LedgerUnavailable
from trading.domain.events import EventEnvelope
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Row, Unit, WireEvent

_log = logging.getLogger(__name__)

_BATCH_MAX: Final = 512
_WAITING_MAX: Final = 20_000
_NEWEST_KEPT: Final = 1_024  # committed rows that the relay need not read again, some 4 MB


class SqlLedger:
    """Implements ``trading.ports.ledger.Ledger``; made by ``open_writer``.

    Args:
        room: the writing room.
        store: its database, with the lock held and the lease taken.
        reader: reads what was committed.
        generation: of the lease.
        heads: folds committed hashes and signs checkpoints.
        head: sequence and hash of the newest event.
        clock: stamps events.
        ids: names events.
    """

    def __init__(
        self,
        *,
        room: str,
        store: Store,
        reader: SqlReader,
        generation: int,
        heads: HeadSigner,
        head: tuple[int, bytes | None],
        clock: Clock,
        ids: IdFactory,
    ) -> None:
        self._room = room
        self._store = store
        self._reader = reader
        self._generation = generation
        self._heads = heads
        self._clock = clock
        self._ids = ids
        self._seq, self._hash = head[0], head[1] or genesis(room)
        self._waiting: list[Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._newest: deque[EventRow] = deque(maxlen=_NEWEST_KEPT)
        self._uncertain: list[EventRow] | None = None
        self._lost: LeaseLost | None = None
        self._closed = False

    @property
    def room(self) -> str:
        """The room whose facts these are."""
        return self._room

    @property
    def generation(self) -> int:
        """The fencing token of this writer's lease."""
        return self._generation

    @property
    def seq(self) -> int:
        """Sequence of the newest event known to be durable, without asking the database."""
        return self._seq

    async def commit(self, unit: Unit) -> Sequence[EventEnvelope]:
        """Return the committed events once they are durable; see ``trading.ports.ledger.Ledger.commit``.

        Raises:
            AlreadyClaimed: a claimed key was taken; nothing of the unit was written.
            LeaseLost: another process is the writer now; nothing was written.
            LedgerUnavailable: the database failed, or more than 20,000 units wait.
            InvalidValue: a table, column or value that cannot be stored.
        """
        if self._lost is not None:
            raise LeaseLost(str(self._lost))
        if self._closed:
            raise LedgerUnavailable(f"the {self._room} ledger is closed", code="LEDGER_CLOSED")
        if len(self._waiting) >= _WAITING_MAX:
            raise LedgerUnavailable(f"the {self._room} ledger cannot keep up", code="LEDGER_BUSY")
        done: asyncio.Future[Sequence[EventEnvelope]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting.prepare(self._room, unit, done))
        if self._pump is None:
            self._start()
        return await done

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            try:
                await self._commit_batch(batch)
            except asyncio.CancelledError:
                self._fail(batch, LedgerUnavailable("the process is stopping"))
                raise
            except LedgerError as error:
                self._fail([*batch, *self._take_waiting()], error)
            except Exception as error:  # noqa: BLE001 - task boundary: the callers must hear of it
                _log.exception("the %s ledger's writer failed", self._room)
                self._fail([*batch, *self._take_waiting()], LedgerUnavailable(f"the writer failed: {error!r}"))

    def _drained(self, pump: asyncio.Task[None]) -> None:
        # A callback and not a finally: a task that is cancelled before its first step runs no line of its own.
        self._pump = None
        if pump.cancelled():
            self._fail(self._take_waiting(), LedgerUnavailable("the process is stopping"))
        elif self._waiting:
            self._start()

    def _start(self) -> None:
        self._pump = asyncio.create_task(self._drain(), name=f"ledger-{self._room}")
        self._pump.add_done_callback(self._drained)

    def _take_waiting(self) -> list[Waiting]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _fail(self, units: Sequence[Waiting], error: LedgerError) -> None:
        if isinstance(error, LeaseLost):
            self._lost = error
        for waiting in units:
            if not waiting.done.done():
                # An exception object of their own each: tracebacks of several callers do not mix.
                waiting.done.set_exception(type(error)(str(error), code=error.code))

    async def _commit_batch(self, batch: list[Waiting]) -> None:
        if self._uncertain is not None:
            await self._settle()
        try:
            await self._write(batch)
        except ConstraintBroken:
            await self._commit_sifted(batch)

    async def _commit_sifted(self, batch: list[Waiting]) -> None:
        existing: dict[Shape, list[Values]] = {}
        for (shape, key), wanted in wanted_keys(batch).items():
            existing.setdefault(shape, []).extend(await self._store.lookup(shape, key, list(wanted)))
        accepted, refused = sift(batch, existing)
        for waiting, refusal in refused:
            if not waiting.done.done():
                waiting.done.set_exception(refusal)
        if not refused:  # some constraint that is no key: find whose it is
            await self._commit_singly(batch)
        elif accepted:
            try:
                await self._write(accepted)
            except ConstraintBroken:
                await self._commit_singly(accepted)

    async def _commit_singly(self, batch: list[Waiting]) -> None:
        for waiting in batch:
            try:
                await self._write([waiting])
            except ConstraintBroken as error:
                if not waiting.done.done():
                    waiting.done.set_exception(error)

    async def _write(self, batch: list[Waiting]) -> None:
        events = append_events(
            batch, room=self._room, head=self._seq, previous=self._hash, clock=self._clock, ids=self._ids
        )
        work = Work(self._generation, self._seq, events, group_steps(batch))
        try:
            await self._store.write(work)
        except (ConstraintBroken, LeaseLost):
            raise
        except BaseException:
            self._uncertain = events
            if not await self._was_written():
                raise
        else:
            self._advance(events)
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_result(waiting.envelopes)

    async def _was_written(self) -> bool:
        """Return whether a commit of unknown outcome is in the ledger; False also when that cannot be read now."""
        try:
            return await self._settle()
        except LeaseLost:
            raise
        except LedgerError as error:
            _log.warning("the %s ledger cannot be read after a failed commit: %s", self._room, error)
            return False

    async def _settle(self) -> bool:
        """Read the head again and go on from there; return whether the uncertain events are in it."""
        seq, newest = await self._store.head()
        events = self._uncertain or []
        if (seq, newest or genesis(self._room)) == (self._seq, self._hash):
            self._uncertain = None
            return False
        if events and (seq, newest) == (events[-1][0], events[-1][6]):
            self._uncertain = None
            self._advance(events)
            return True
        self._closed = True
        raise LeaseLost(f"the {self._room} ledger moved to {seq} without its writer, who knew {self._seq}")

    def _advance(self, events: list[EventRow]) -> None:
        if events:
            self._seq, self._hash = events[-1][0], events[-1][6]
            self._heads.extend([row[6] for row in events])
            self._newest.extend(events)

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        """Return at most ``limit`` events with a greater sequence, in order."""
        return await self._reader.events_after(seq, limit=limit)

    async def wire_after(self, seq: int, *, limit: int) -> list[WireEvent]:
        """Return at most ``limit`` events with a greater sequence, in order, in their wire form.

        What this writer has committed lately is given from memory: the relay is seldom further behind.
        """
        newest = self._newest
        if newest and newest[0][0] <= seq + 1 <= self._seq:
            first = seq + 1 - newest[0][0]
            return [wire_row(self._room, row) for row in islice(newest, first, first + limit)]
        return await self._reader.wire_after(seq, limit=limit)

    async def last_seq(self) -> int:
        """Return the sequence of the newest committed event, 0 for an empty ledger."""
        return await self._reader.last_seq()

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return projection rows whose columns equal ``where``, by primary key; a list or tuple means IN."""
        return await self._reader.rows(table, where, limit=limit)

    async def close(self) -> None:
        """Finish what waits, sign the head and give up the lock; no commit is accepted from now on."""
        self._closed = True
        while self._pump is not None:
            await asyncio.wait({self._pump})
        await self._heads.close()
        await self._reader.close()
        await self._store.close()
