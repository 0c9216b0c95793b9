"""Ledgers to run one suite on: in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.postgres_support import scratch_database
from trading.adapters.clock import Uuid7Factory
from trading.adapters.sql import Checkpointing, LedgerLocation, open_reader, open_writer
from trading.adapters.sql.location import schema_of
from trading.ports.ledger import Ledger, LedgerReader
from trading.testing.clock import ManualClock
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger

ROOM = "execution"
SIGNER = make_test_signer("checkpoint")


class Desk(Protocol):
    """A place where the execution room's ledger is kept."""

    def writer(self, **options: Any) -> AbstractAsyncContextManager[Ledger]: ...
    def reader(self) -> AbstractAsyncContextManager[LedgerReader]: ...
    async def usurp(self) -> None:
        """Raise the generation as another writer would, behind the present one's back."""
        ...


class MemoryDesk:
    def __init__(self) -> None:
        self._ledger: InMemoryLedger | None = None

    @asynccontextmanager
    async def writer(self, **_: Any) -> AsyncGenerator[Ledger]:
        first = InMemoryLedger(ROOM, ManualClock(), Uuid7Factory())
        self._ledger = first if self._ledger is None else self._ledger.successor()
        yield self._ledger

    @asynccontextmanager
    async def reader(self) -> AsyncGenerator[LedgerReader]:
        yield self._ledger or InMemoryLedger(ROOM, ManualClock(), Uuid7Factory())

    async def usurp(self) -> None:
        assert self._ledger is not None
        self._ledger.successor()


class SqlDesk:
    """A durable ledger; subclasses say how to get at the database behind its back."""

    def __init__(self, location: LedgerLocation, directory: Path) -> None:
        self.location = location
        self.clock = ManualClock()
        self.checkpointing = Checkpointing(
            path=directory / "execution.note", signer=SIGNER, public_key=SIGNER.public_key, every_rows=10
        )

    def writer(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        return open_writer(ROOM, self.location, clock=self.clock, ids=Uuid7Factory(), **options)

    def reader(self) -> AbstractAsyncContextManager[Any]:
        return open_reader(ROOM, self.location)

    async def usurp(self) -> None:
        await self.tamper("UPDATE lease SET generation = generation + 1")

    async def as_writer(self, *statements: str) -> None:
        """Run statements with the rights that the writer has."""
        raise NotImplementedError

    async def tamper(self, *statements: str) -> None:
        """Run statements with every guard off, as the owner of the database can."""
        raise NotImplementedError


class SqliteDesk(SqlDesk):
    def __init__(self, directory: Path) -> None:
        super().__init__(LedgerLocation.sqlite(directory / "ledger"), directory)
        self.path = directory / "ledger" / f"{ROOM}.sqlite"

    async def as_writer(self, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    async def tamper(self, *statements: str) -> None:
        guards = ("events_no_update", "events_no_delete", "events_no_replace")
        await self.as_writer(*(f"DROP TRIGGER IF EXISTS {name}" for name in guards), *statements)


class PostgresDesk(SqlDesk):
    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(LedgerLocation.postgres(url), directory)
        self.url = url

    async def as_writer(self, *statements: str) -> None:
        await self._run(f"SET ROLE {schema_of(ROOM)}", *statements)

    async def tamper(self, *statements: str) -> None:
        await self._run("SET session_replication_role = replica", *statements)

    async def _run(self, *statements: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"SET search_path TO {schema_of(ROOM)}")
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def _postgres_desk(server: str, directory: Path) -> AsyncGenerator[PostgresDesk]:
    async with scratch_database(server) as url:
        yield PostgresDesk(url, directory)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Desk]:
    """An empty ledger of every kind."""
    if request.param == "memory":
        yield MemoryDesk()
    elif request.param == "sqlite":
        yield SqliteDesk(tmp_path)
    else:
        async with _postgres_desk(request.getfixturevalue("postgres_server"), tmp_path) as made:
            yield made


@pytest.fixture(params=["sqlite", "postgres"])
async def sql_desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[SqlDesk]:
    """An empty durable ledger of each kind."""
    if request.param == "sqlite":
        yield SqliteDesk(tmp_path)
    else:
        async with _postgres_desk(request.getfixturevalue("postgres_server"), tmp_path) as made:
            yield made


@pytest.fixture
def sqlite_desk(tmp_path: Path) -> SqliteDesk:
    """An empty SQLite ledger."""
    return SqliteDesk(tmp_path)


@pytest.fixture
async def postgres_desk(postgres_server: str, tmp_path: Path) -> AsyncGenerator[PostgresDesk]:
    """An empty PostgreSQL ledger."""
    async with _postgres_desk(postgres_server, tmp_path) as made:
        yield made
