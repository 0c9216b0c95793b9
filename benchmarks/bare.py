"""Limit loops: the least work that gives the same durable result, with the bare libraries and nothing around them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

Rows = Sequence[tuple[str, ...]]
_CHUNK = 256  # rows in one statement; see trading.adapters.sql.statements


class BareLedger:
    """SQLite by its driver alone: WAL, FULL, one table per kind of row, and group commit by the same rule.

    What arrives during a commit goes into the next. No hash chain, no lease, no events: rows only.

    Args:
        path: of the database file.
        tables: number of columns (all text, the first one the key) by table name.
    """

    def __init__(self, path: Path, tables: dict[str, int]) -> None:
        self._tables = tables
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[dict[str, Rows], asyncio.Future[None]]] = []
        self._pump: asyncio.Task[None] | None = None
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        for name, columns in tables.items():
            rest = "".join(f", c{number} TEXT" for number in range(1, columns))
            self._connection.execute(f"CREATE TABLE {name} (c0 TEXT PRIMARY KEY{rest}) WITHOUT ROWID")

    async def commit(self, rows: dict[str, Rows]) -> None:
        """Return when these rows are durable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, done))
        if self._pump is None:
            self._pump = asyncio.create_task(self._drain())
        await done

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:512], self._waiting[512:]
            await loop.run_in_executor(self._thread, self._write, [rows for rows, _ in batch])
            for _, done in batch:
                done.set_result(None)
        self._pump = None

    def _write(self, batch: list[dict[str, Rows]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for name, columns in self._tables.items():
            rows = [row for each in batch for row in each.get(name, ())]
            one = f"({', '.join('?' * columns)})"
            start = 0
            while start < len(rows):  # powers of two, so that few statements are compiled
                size = min(_CHUNK, 1 << (len(rows) - start).bit_length() - 1)
                part = list(chain.from_iterable(rows[start : start + size]))
                self._connection.execute(f"INSERT INTO {name} VALUES {', '.join([one] * size)}", part)
                start += size
        self._connection.execute("COMMIT")

    async def close(self) -> None:
        """Close the database."""
        while self._pump is not None:
            await asyncio.wait({self._pump})
        self._connection.close()
        self._thread.shutdown()


@asynccontextmanager
async def open_bare_ledger(path: Path, tables: dict[str, int]) -> AsyncGenerator[BareLedger]:
    """Open a fresh bare ledger for the length of the block."""
    ledger = BareLedger(path, tables)
    try:
        yield ledger
    finally:
        await ledger.close()
