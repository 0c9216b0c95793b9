"""SQLite tables without events: a file in the hands of its one writer, or memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import aiosqlite
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from trading.adapters.file_lock import FileLock
from trading.adapters.sql.tables import metadata_for
from trading.domain.errors import ConfigurationError, LedgerUnavailable

_BUSY_S: Final = 5.0
_STATEMENTS_KEPT: Final = 64


class SqliteTables:
    """A SQLite file written through aiosqlite; ``lock`` has to be called first.

    The file is in WAL mode and synchronised at checkpoints only: what a power cut takes can be fetched again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._connection: aiosqlite.Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    def lock(self) -> None:
        """Become the writer; raises ConfigurationError when another process is."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._lock.try_lock(shared=False):
            raise ConfigurationError(
                f"{self._path.name}: another process writes it",
                code="LEDGER_IN_USE",
                suggestion="stop the other process; one process writes a room's tables",
            )

    async def apply(self, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Do statements with their parameters in one transaction; raises LedgerUnavailable."""
        async with self._one_at_a_time:
            try:
                connection = self._connection or await self._open()
                await _in_transaction(connection, steps)
            except sqlite3.Error as error:
                raise LedgerUnavailable(f"{self._path.name}: {error}") from error

    async def _open(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(
            self._path, isolation_level=None, cached_statements=_STATEMENTS_KEPT, timeout=_BUSY_S
        )
        self._connection = connection
        await connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    async def close(self) -> None:
        """Close the file and give up the lock."""
        async with self._one_at_a_time:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()
            self._lock.close()


class MemoryTables:
    """The tables of a room in memory, both read and written.

    Args:
        room: whose tables.
        pages_max: of 4 KiB; when they are full everything is forgotten, which may be fetched again.
    """

    postgres = False

    def __init__(self, room: str, *, pages_max: int = 16_384) -> None:
        self._room = room
        self._pages_max = pages_max
        self._connection: aiosqlite.Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT; raises LedgerUnavailable."""
        async with self._one_at_a_time:
            try:
                connection = self._connection or await self._open()
                return cast("list[tuple[Any, ...]]", await connection.execute_fetchall(text, parameters))
            except sqlite3.Error as error:
                raise LedgerUnavailable(f"memory: {error}") from error

    async def apply(self, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Do statements with their parameters in one transaction; raises LedgerUnavailable."""
        async with self._one_at_a_time:
            try:
                try:
                    await _in_transaction(self._connection or await self._open(), steps)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    await self._forget()
                    await _in_transaction(await self._open(), steps)
            except sqlite3.Error as error:
                raise LedgerUnavailable(f"memory: {error}") from error

    async def _open(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(":memory:", isolation_level=None, cached_statements=_STATEMENTS_KEPT)
        self._connection = connection
        await connection.execute(f"PRAGMA max_page_count = {self._pages_max}")
        for table in metadata_for(self._room).sorted_tables:
            await connection.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
        return connection

    async def close(self) -> None:
        """Forget everything."""
        async with self._one_at_a_time:
            await self._forget()

    async def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _in_transaction(connection: aiosqlite.Connection, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
    try:
        await connection.execute("BEGIN IMMEDIATE")
        for text, parameters in steps:
            await connection.execute(text, parameters)
        await connection.execute("COMMIT")
    except BaseException:
        # A statement whose caller was cancelled is done all the same; the rollback comes after it in the same thread.
        await asyncio.shield(connection.rollback())
        raise
