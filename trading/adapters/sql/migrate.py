"""Brings a room's database to the shape that this release writes."""

from __future__ import annotations

import asyncio
import sqlite3
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from trading.adapters.sql.location import OWNER_ROLE, schema_of
from trading.domain.errors import ConfigurationError, LedgerUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision of each room; a test compares them with the revision files.
HEADS: Final = {
    "coordinator": "coordinator_0001",
    "risk": "risk_0003",
    "execution": "execution_0003",
    "wallet": "wallet_0001",
    "market": "market_0001",
}

_DIRECTORY: Final = Path(__file__).parent / "migrations"


async def migrate_sqlite(room: str, path: Path) -> None:
    """Bring a SQLite file up to date; the caller holds the writer's lock.

    Raises:
        ConfigurationError: LEDGER_TOO_NEW, it was written by a later release.
        LedgerUnavailable: it cannot be opened or changed.
    """
    try:
        await asyncio.to_thread(_migrate_sqlite, room, path)
    except (DBAPIError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"{path.name} cannot be opened: {error}") from error


def _migrate_sqlite(room: str, path: Path) -> None:
    path.touch(mode=0o600, exist_ok=True)
    with sqlite3.connect(path, isolation_level=None) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
    raw.close()
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    # The driver would commit before each CREATE; with its own transactions off, a migration is all or nothing.
    event.listen(engine, "connect", _no_driver_transactions)
    event.listen(engine, "begin", _begin_immediate)
    with engine.begin() as connection:
        _upgrade(connection, room)


def _no_driver_transactions(connection: Any, _record: object) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


async def migrate_postgres(room: str, url: str) -> None:
    """Bring a PostgreSQL schema up to date in one transaction; the caller holds the writer's lock.

    Alembic writes the statements and asyncpg runs them: SQLAlchemy's own way to asyncpg would need greenlet.

    Raises:
        ConfigurationError: LEDGER_TOO_NEW, it was written by a later release.
        LedgerUnavailable: the database does not answer or refuses the role.
    """
    from trading.adapters.sql.postgres_store import run_in_transaction  # asyncpg is an extra

    async def upgrade(connection: Any) -> None:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            current = None
        else:
            current = await connection.fetchval("SELECT version_num FROM alembic_version")
        if current != HEADS[room]:
            await connection.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
            await connection.execute(_statements(room, current))

    await run_in_transaction(url, schema_of(room), upgrade)


def _statements(room: str, current: str | None) -> str:
    from alembic import command

    config = _config(room, current)
    config.output_buffer = StringIO()
    command.upgrade(config, f"{current or 'base'}:head", sql=True)
    return config.output_buffer.getvalue()


def _upgrade(connection: Connection, room: str) -> None:
    current = _current(connection)
    if current == HEADS[room]:
        return
    from alembic import command

    config = _config(room, current)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config(room: str, current: str | None) -> Config:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY).replace("%", "%%"))
    config.set_main_option("version_locations", str(_DIRECTORY / room).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["room"] = room
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the {room} ledger has revision {current}, which this release does not know",
            code="LEDGER_TOO_NEW",
            suggestion="use the release that wrote it, or a later one",
        )
    return config


def _current(connection: Connection) -> str | None:
    """Return the revision in the database without loading Alembic, which takes a quarter of a second."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
