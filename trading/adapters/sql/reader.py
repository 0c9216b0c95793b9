"""Reads one room's ledger; every room may read every other, none may change what it reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from trading.adapters.sql import statements
from trading.adapters.sql.sqlite_store import connect
from trading.adapters.sql.stored import EventRow, decode_row
from trading.adapters.sql.tables import metadata_for, shape_of
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import EventEnvelope
from trading.ports.ledger import Row

T = TypeVar("T")


class RowSource(Protocol):
    """A database that can be asked."""

    postgres: bool

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT, none if the ledger does not exist yet; raises LedgerUnavailable."""
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...


class SqliteSource:
    """A SQLite file opened ``mode=ro``, when it is first asked after the file has come into being."""

    postgres = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"read-{path.stem}")
        self._connection: sqlite3.Connection | None = None

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._fetch, text, parameters)
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"{self._path.name}: {error}") from error

    def _fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            if not self._path.exists():
                return []
            self._connection = connect(self._path, read_only=True)
        try:
            return self._connection.execute(text, cast("Sequence[str | int | bytes | None]", parameters)).fetchall()
        except sqlite3.OperationalError as error:
            if str(error).startswith("no such table"):  # the writer is just about to make it
                return []
            raise

    async def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)


class SqlReader:
    """Implements ``trading.ports.ledger.LedgerReader``; made by ``open_reader``.

    An absent ledger reads as an empty one: rooms start in any order.
    """

    def __init__(self, room: str, source: RowSource) -> None:
        metadata_for(room)
        self._room = room
        self._source = source

    @property
    def room(self) -> str:
        """The room whose facts these are."""
        return self._room

    async def events_after(self, seq: int, *, limit: int = 1000) -> list[EventEnvelope]:
        """Return at most ``limit`` events with a greater sequence, in order.

        Raises:
            LedgerUnavailable: the database does not answer.
            InvalidValue: an event that this release does not know or cannot read.
        """
        return [decode_row(self._room, row) for row in await self.event_rows(seq, limit=limit)]

    async def event_rows(self, seq: int, *, limit: int) -> list[EventRow]:
        """Return stored rows as they are, for the audit; raises LedgerUnavailable."""
        bound = "$1 ORDER BY seq LIMIT $2" if self._source.postgres else "? ORDER BY seq LIMIT ?"
        rows = await self._source.fetch(statements.SELECT_EVENTS + bound, (seq, limit))
        return cast("list[EventRow]", rows)

    async def last_seq(self) -> int:
        """Return the sequence of the newest committed event, 0 for an empty ledger; raises LedgerUnavailable."""
        rows = await self._source.fetch("SELECT coalesce(max(seq), 0) FROM events", ())
        return int(rows[0][0]) if rows else 0

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return projection rows whose columns equal ``where``, by primary key; a list or tuple means IN.

        Raises:
            LedgerUnavailable: the database does not answer.
            InvalidValue: the room has no such table or column.
        """
        shape = shape_of(self._room, table)
        wanted = shape.condition(where or {})
        text, parameters = statements.select_rows(shape, wanted, limit, postgres=self._source.postgres)
        return [shape.row(tuple(row)) for row in await self._source.fetch(text, parameters)]

    async def count(self, table: str) -> int:
        """Return the number of rows of a projection table; raises LedgerUnavailable or InvalidValue."""
        text = f"SELECT count(*) FROM {shape_of(self._room, table).name}"  # noqa: S608 - a name of our own
        rows = await self._source.fetch(text, ())
        return int(rows[0][0]) if rows else 0

    async def close(self) -> None:
        """Let go of the database."""
        await self._source.close()
