"""Reads one room's ledger; every room may read every other, none may change what it reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import aiosqlite

from trading.adapters.sql import selects
from trading.adapters.sql.stored import EventRow, decode_row, wire_row
from trading.adapters.sql.tables import metadata_for, shape_of
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import EventEnvelope
from trading.ports.ledger import Row, WireEvent

_STATEMENTS_KEPT: Final = 512
_BUSY_S: Final = 5.0


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
    """A SQLite file opened ``mode=ro`` through aiosqlite, when it is first asked after the file has come into being.

    Outside of a transaction every SELECT sees what was committed last, and a page is one hop to the connection's
    thread however many rows it has.
    """

    postgres = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: aiosqlite.Connection | None = None
        self._changing = asyncio.Lock()
        self._closed = False

    async def fetch(self, text: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        try:
            connection = self._connection or await self._open()
            if connection is None:
                return []
            return cast("list[tuple[Any, ...]]", await connection.execute_fetchall(text, parameters))
        except sqlite3.Error as error:
            if str(error).startswith("no such table"):  # the writer is just about to make it
                return []
            raise LedgerUnavailable(f"{self._path.name}: {error}") from error

    async def _open(self) -> aiosqlite.Connection | None:
        async with self._changing:  # several may ask at once; a second connection would never be closed
            if self._closed:
                raise LedgerUnavailable(f"{self._path.name} is closed", code="LEDGER_CLOSED")
            if self._connection is None and self._path.exists():
                self._connection = await aiosqlite.connect(
                    f"{self._path.as_uri()}?mode=ro",
                    uri=True,
                    isolation_level=None,
                    cached_statements=_STATEMENTS_KEPT,
                    timeout=_BUSY_S,
                )
            return self._connection

    async def close(self) -> None:
        """Close the file and end the thread, after what was asked before has been answered."""
        async with self._changing:
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()


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

    async def wire_after(self, seq: int, *, limit: int) -> list[WireEvent]:
        """Return at most ``limit`` events with a greater sequence, in order, in their wire form.

        Raises:
            LedgerUnavailable: the database does not answer.
        """
        return [wire_row(self._room, row) for row in await self.event_rows(seq, limit=limit)]

    async def event_rows(self, seq: int, *, limit: int) -> list[EventRow]:
        """Return stored rows as they are, for the audit; raises LedgerUnavailable."""
        query = selects.events_page(self._room, postgres=self._source.postgres)
        rows = await self._source.fetch(query.text, query.parameters({"after": seq, "limit": limit}))
        return cast("list[EventRow]", rows)

    async def last_seq(self) -> int:
        """Return the sequence of the newest committed event, 0 for an empty ledger; raises LedgerUnavailable."""
        query = selects.newest_seq(self._room, postgres=self._source.postgres)
        rows = await self._source.fetch(query.text, query.parameters({}))
        return int(rows[0][0]) if rows else 0

    async def rows(self, table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        """Return projection rows whose columns equal ``where``, by primary key; a list or tuple means IN.

        Raises:
            LedgerUnavailable: the database does not answer.
            InvalidValue: the room has no such table or column.
        """
        shape = shape_of(self._room, table)
        wanted = shape.condition(where or {})
        text, parameters = selects.rows_where(shape, wanted, limit, postgres=self._source.postgres)
        return [shape.row(tuple(row)) for row in await self._source.fetch(text, parameters)]

    async def rows_between(
        self, table: str, column: str, low: int, high: int, where: Row | None = None, *, limit: int
    ) -> list[Row]:
        """Return the rows with the greatest ``column`` in [low, high] whose columns equal ``where``, greatest first.

        Args:
            table: a projection table.
            column: one of its columns of integers, such as a time in milliseconds.
            low, high: least and greatest value, both included.
            where: as for ``rows``.
            limit: largest number of rows.

        Raises:
            LedgerUnavailable: the database does not answer.
            InvalidValue: the room has no such table or column, or the column holds text.
        """
        shape = shape_of(self._room, table)
        ((position, _),) = shape.condition({column: low})
        wanted = shape.condition(where or {})
        text, parameters = selects.rows_between(
            shape, position, (low, high), wanted, limit, postgres=self._source.postgres
        )
        return [shape.row(tuple(row)) for row in await self._source.fetch(text, parameters)]

    async def count(self, table: str) -> int:
        """Return the number of rows of a projection table; raises LedgerUnavailable or InvalidValue."""
        query = selects.row_count(shape_of(self._room, table), postgres=self._source.postgres)
        rows = await self._source.fetch(query.text, query.parameters({}))
        return int(rows[0][0]) if rows else 0

    async def close(self) -> None:
        """Let go of the database."""
        await self._source.close()
