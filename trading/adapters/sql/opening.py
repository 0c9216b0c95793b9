"""Opens ledgers: the writer with its lock, lease and migrations, and readers."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from trading.adapters.file_lock import FileLock
from trading.adapters.sql.checkpoints import Checkpoint, CheckpointFile, Checkpointing, origin_of, read_checkpoints
from trading.adapters.sql.location import LedgerLocation
from trading.adapters.sql.merkle import Frontier
from trading.adapters.sql.reader import RowSource, SqliteSource, SqlReader
from trading.adapters.sql.signing_heads import HeadSigner
from trading.adapters.sql.sqlite_store import SqliteStore
from trading.adapters.sql.store import Store
from trading.adapters.sql.writer import SqlLedger
from trading.domain.errors import ConfigurationError
from trading.domain.events import HeadWitnessed
from trading.ports.clock import Clock, IdFactory


@asynccontextmanager
async def open_writer(
    room: str,
    location: LedgerLocation,
    *,
    clock: Clock,
    ids: IdFactory,
    checkpoint: Checkpointing | None = None,
    witnesses: Sequence[HeadWitnessed] = (),
) -> AsyncGenerator[SqlLedger]:
    """Open a room's ledger for writing: lock, migrate, check the head, take the lease under a new generation.

    Args:
        room: "coordinator", "risk", "execution" or "wallet".
        location: where the desk's ledgers are.
        clock: stamps events, leases and checkpoints.
        ids: names events.
        checkpoint: how heads are signed; without it none are.
        witnesses: heads of this room that other rooms have seen; others are passed over.

    Raises:
        ConfigurationError: LEDGER_IN_USE (another process writes it), LEDGER_TOO_NEW (written by a later release),
            LEDGER_ROLLED_BACK or LEDGER_REWRITTEN (it does not continue a head that was signed or witnessed),
            CHECKPOINTS_UNREADABLE.
        LedgerUnavailable: the database does not answer.
    """
    store = await _open_store(room, location)
    try:
        reader = SqlReader(room, _source(room, location))
        heads = await _known_heads(room, store, checkpoint, witnesses, clock)
        generation = await store.take_lease(f"{socket.gethostname()}:{os.getpid()}", clock.now_ms())
        ledger = SqlLedger(
            room=room,
            store=store,
            reader=reader,
            generation=generation,
            heads=heads,
            head=await store.head(),
            clock=clock,
            ids=ids,
        )
    except BaseException:
        await store.close()
        raise
    try:
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def open_reader(room: str, location: LedgerLocation) -> AsyncGenerator[SqlReader]:
    """Open a room's ledger for reading. It need not exist yet; nothing is opened before the first question."""
    reader = SqlReader(room, _source(room, location))
    try:
        yield reader
    finally:
        await reader.close()


def _source(room: str, location: LedgerLocation) -> RowSource:
    if location.url is None:
        return SqliteSource(location.file(room))
    from trading.adapters.sql.postgres_store import PostgresSource  # asyncpg is an extra

    return PostgresSource(room, location.url)


async def _open_store(room: str, location: LedgerLocation) -> Store:
    from trading.adapters.sql.migrate import migrate_postgres, migrate_sqlite

    if location.url is not None:
        from trading.adapters.sql.postgres_store import PostgresStore

        store = PostgresStore(room, location.url)
        try:
            await store.acquire()
            await migrate_postgres(room, location.url)
        except BaseException:
            await store.close()
            raise
        return store
    path = location.file(room)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    if not lock.try_lock(shared=False):
        raise ConfigurationError(
            f"{path.name}: another process writes this ledger",
            code="LEDGER_IN_USE",
            suggestion="stop the other process; one process writes a room's ledger",
        )
    try:
        await migrate_sqlite(room, path)
    except BaseException:
        lock.release()
        raise
    return SqliteStore(path, lock)


async def _known_heads(
    room: str, store: Store, how: Checkpointing | None, witnesses: Sequence[HeadWitnessed], clock: Clock
) -> HeadSigner:
    """Fold the stored hashes and compare the fold with every head that is known from elsewhere."""
    known: dict[int, set[str]] = {}
    signed = 0
    if how is not None:
        for entry in _signed_heads(room, how):
            signed = max(signed, entry.size)
            known.setdefault(entry.size, set()).add(entry.root.hex())
    for witness in witnesses:
        if witness.service == room:
            known.setdefault(witness.size, set()).add(witness.root)
    frontier = Frontier()
    async for hashes in store.hashes():
        for value in hashes:
            frontier.append(value)
            if frontier.size in known and known[frontier.size] != {frontier.root().hex()}:
                raise ConfigurationError(
                    f"the {room} ledger up to event {frontier.size} is not what was signed or witnessed",
                    code="LEDGER_REWRITTEN",
                    suggestion="run the audit; do not trade on this ledger",
                )
    newest = max(known, default=0)
    if newest > frontier.size:
        raise ConfigurationError(
            f"the {room} ledger ends at event {frontier.size}, but event {newest} was signed or witnessed",
            code="LEDGER_ROLLED_BACK",
            suggestion="restore the newer database; after a restore, reconcile before trading",
        )
    return HeadSigner(room, frontier, how, signed, clock)


def _signed_heads(room: str, how: Checkpointing) -> list[Checkpoint]:
    try:
        CheckpointFile(how.path).mend()
        entries = list(read_checkpoints(how.path, how.origin or origin_of(room), how.public_key))
    except OSError as error:
        raise ConfigurationError(
            f"the checkpoints of the {room} ledger cannot be read: {error}", code="CHECKPOINTS_UNREADABLE"
        ) from error
    return [entry for entry in entries if isinstance(entry, Checkpoint)]
