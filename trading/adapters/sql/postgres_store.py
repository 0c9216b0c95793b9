"""One room's PostgreSQL schema, for its writer and for its readers.

- The writer's session holds an advisory lock; a session that was lost has to take it again before it may go on.
- The writer's role may only SELECT and INSERT events; readers may only SELECT.
- Rows go in as one array per column (``unnest``): one round trip for each table of a batch.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs] - it ships none

from trading.adapters.sql import selects, statements
from trading.adapters.sql.location import OWNER_ROLE, READER_ROLE, schema_of
from trading.adapters.sql.plan import Work
from trading.adapters.sql.store import ConstraintBroken
from trading.adapters.sql.stored import EVENT_COLUMNS
from trading.adapters.sql.tables import ARCHIVES, ROOMS, Shape, Value, Values
from trading.domain.errors import ConfigurationError, LeaseLost, LedgerError, LedgerUnavailable

_TIMEOUT_S: Final = 15.0
_LOCK_WAIT_MS: Final = 1500
_HASHES_AT_ONCE: Final = 20_000
_EVENT_KINDS: Final = (int, str, str, int, str, str, bytes)
_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
_NOT_THERE_YET: Final = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)

_Connection = Any  # asyncpg ships no types


def _not_provisioned(room: str) -> ConfigurationError:
    return ConfigurationError(
        f"the database has no schema or role for the {room} ledger",
        code="LEDGER_NOT_PROVISIONED",
        suggestion="run provision_postgres once as the database's administrator",
    )


async def _session(url: str) -> _Connection:
    return await cast("Any", asyncpg).connect(url, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)


async def _connect(url: str, schema: str, role: str) -> _Connection:
    connection = await _session(url)
    try:
        await connection.execute(f"SET search_path TO {schema}")
        await connection.execute(f"SET ROLE {role}")
    except BaseException:
        connection.terminate()
        raise
    return connection


def _lock_key(room: str) -> int:
    return int.from_bytes(hashlib.sha256(f"grekko ledger writer {room}".encode()).digest()[:8], "big", signed=True)


class PostgresStore:
    """See ``trading.adapters.sql.store.Store``. ``acquire`` has to be called first."""

    def __init__(self, room: str, url: str) -> None:
        self._room = room
        self._url = url
        self._connection: _Connection | None = None

    async def acquire(self) -> None:
        """Connect and take the writer's lock; wait a little for a session that is just ending.

        Raises:
            ConfigurationError: another process has the lock, or the database is not provisioned.
            LedgerUnavailable: the database does not answer.
        """
        schema = schema_of(self._room)
        try:
            connection = await _connect(self._url, schema, schema)
        except asyncpg.InvalidParameterValueError as error:  # SET ROLE to a role that does not exist
            raise _not_provisioned(self._room) from error
        except _FAILURES as error:
            raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error
        try:
            if await connection.fetchval("SELECT to_regnamespace($1)", schema) is None:
                raise _not_provisioned(self._room)
            await connection.execute(f"SET lock_timeout TO {_LOCK_WAIT_MS}")
            await connection.fetchval("SELECT pg_advisory_lock($1)", _lock_key(self._room))
        except asyncpg.LockNotAvailableError as error:
            connection.terminate()
            raise ConfigurationError(
                f"another process writes the {self._room} ledger",
                code="LEDGER_IN_USE",
                suggestion="stop the other process; one process writes a room's ledger",
            ) from error
        except _FAILURES as error:
            connection.terminate()
            raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection

    async def _live(self) -> _Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            try:
                await self.acquire()
            except ConfigurationError as error:
                raise LeaseLost(str(error)) from error
        return cast("_Connection", self._connection)

    async def take_lease(self, holder: str, now_ms: int) -> int:
        """Raise the generation by one and return it."""
        rows = await self._fetch(
            "INSERT INTO lease (room, generation, holder, acquired_ms) VALUES ($1, 1, $2, $3) ON CONFLICT (room) DO"
            " UPDATE SET generation = lease.generation + 1, holder = excluded.holder,"
            " acquired_ms = excluded.acquired_ms RETURNING generation",
            self._room,
            holder,
            now_ms,
        )
        return int(rows[0][0])

    async def _fetch(self, text: str, *parameters: object) -> list[Any]:
        connection = await self._live()
        try:
            return await connection.fetch(text, *parameters)
        except _FAILURES as error:
            raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error

    async def head(self) -> tuple[int, bytes | None]:
        """Return sequence and hash of the newest event."""
        query = selects.newest_event(self._room, postgres=True)
        rows = await self._fetch(query.text, *query.parameters({"limit": 1}))
        return (int(rows[0][0]), bytes(rows[0][1])) if rows else (0, None)

    async def write(self, work: Work) -> None:
        """Do one transaction and return when it is durable."""
        connection = await self._live()
        try:
            async with connection.transaction():
                await self._check(connection, work)
                if work.events:
                    await _insert(connection, "events", EVENT_COLUMNS, _EVENT_KINDS, (), work.events)
                for step in work.steps:
                    shape = step.shape
                    key = tuple(shape.columns[position] for position in shape.key) if step.replace else ()
                    await _insert(connection, shape.name, shape.columns, shape.kinds, key, step.rows)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConstraintBroken(str(error)) from error
        except LedgerError:
            raise
        except BaseException as error:
            self._end(connection)
            if isinstance(error, _FAILURES):
                raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error
            raise

    def _end(self, connection: _Connection) -> None:
        # A session cut off within a transaction would take the next one for a part of it and never commit. The lock of
        # its successor waits until this one has ended, so what the successor reads is final.
        connection.terminate()
        self._connection = None

    async def apply(self, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Do statements with their parameters in one transaction, for a room that keeps no events.

        Raises:
            LedgerUnavailable: it is unknown whether they were done. LeaseLost: another writer holds the lock now.
        """
        connection = await self._live()
        try:
            async with connection.transaction():
                for text, parameters in steps:
                    await connection.execute(text, *parameters)
        except BaseException as error:
            self._end(connection)
            if isinstance(error, _FAILURES):
                raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error
            raise

    async def _check(self, connection: _Connection, work: Work) -> None:
        # FOR SHARE: a new writer's lease waits until this transaction has ended, so no commit slips past a fence.
        found = await connection.fetchrow(
            "SELECT generation, (SELECT coalesce(max(seq), 0) FROM events) FROM lease WHERE room = $1 FOR SHARE",
            self._room,
        )
        if found is None or found[0] != work.generation:
            raise LeaseLost(f"another generation writes the {self._room} ledger now")
        if found[1] != work.head:
            raise LedgerUnavailable(f"the {self._room} ledger's head is {found[1]}, not {work.head}")

    async def lookup(self, shape: Shape, key: tuple[int, ...], wanted: Sequence[Values]) -> list[Values]:
        """Return the stored rows that hold one of the wanted keys."""
        arrays = [[values[index] for values in wanted] for index in range(len(key))]
        return [tuple(row) for row in await self._fetch(statements.postgres_lookup(shape, key), *arrays)]

    async def hashes(self) -> AsyncIterator[list[bytes]]:
        """Yield the hashes of all events in order."""
        last = 0
        query = selects.hashes_page(self._room, postgres=True)
        while rows := await self._fetch(query.text, *query.parameters({"after": last, "limit": _HASHES_AT_ONCE})):
            last = int(rows[-1][0])
            yield [bytes(row[1]) for row in rows]

    async def close(self) -> None:
        """End the session, which gives up the lock."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await connection.close(timeout=_TIMEOUT_S)


async def _insert(
    connection: _Connection,
    table: str,
    columns: tuple[str, ...],
    kinds: tuple[type, ...],
    key: tuple[str, ...],
    rows: Sequence[tuple[Value, ...]],
) -> None:
    text = statements.postgres_insert(table, columns, kinds, key)
    await connection.execute(text, *(list(column) for column in zip(*rows, strict=True)))


class PostgresSource:
    """A schema read with the readers' role; see ``trading.adapters.sql.reader.RowSource``."""

    postgres = True

    def __init__(self, room: str, url: str) -> None:
        self._room = room
        self._url = url
        self._connection: _Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        async with self._one_at_a_time:
            try:
                try:
                    return await self._fetch(text, parameters)
                except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, OSError):
                    await self.close()  # a session that the server ended: a read can simply be asked again
                    return await self._fetch(text, parameters)
            except _NOT_THERE_YET:
                return []
            except _FAILURES as error:
                raise LedgerUnavailable(f"the {self._room} ledger does not answer: {error}") from error

    async def _fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = await _connect(self._url, schema_of(self._room), READER_ROLE)
            self._connection = connection
        return [tuple(row) for row in await connection.fetch(text, *parameters)]

    async def close(self) -> None:
        """End the session."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await connection.close(timeout=_TIMEOUT_S)


async def provision_postgres(url: str, *, member: str | None = None) -> None:
    """Make the schemas and roles of a desk in a database; safe to run again.

    Roles have no login of their own: the desk's login role becomes a member of them. In production give each room's
    login role only its room's role and the readers' role, and the owner's role to whoever upgrades.

    Args:
        url: of the database, as a role that may create roles and schemas.
        member: login role to make a member of every role; the role of ``url`` if None.

    Raises:
        LedgerUnavailable: the database does not answer or refuses.
    """
    await run_in_transaction(url, None, lambda connection: _provision(connection, member))


async def run_in_transaction(url: str, schema: str | None, work: Callable[[Any], Awaitable[None]]) -> None:
    """Do ``work`` with a session of its own in one transaction; raises LedgerUnavailable."""
    try:
        connection = await _session(url)
        try:
            async with connection.transaction():
                if schema is not None:
                    await connection.execute(f"SET search_path TO {schema}")
                await work(connection)
        finally:
            await connection.close()
    except _FAILURES as error:
        raise LedgerUnavailable(f"the database cannot be prepared: {error}") from error


async def _provision(connection: _Connection, member: str | None) -> None:
    login = await connection.fetchval("SELECT quote_ident(coalesce($1, current_user))", member)
    for role in (OWNER_ROLE, READER_ROLE, *(schema_of(room) for room in (*ROOMS, *ARCHIVES))):
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
        await connection.execute(f"GRANT {role} TO {login}")
    for room in (*ROOMS, *ARCHIVES):
        schema = schema_of(room)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {OWNER_ROLE}")
        await connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}, {READER_ROLE}")
