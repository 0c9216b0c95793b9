"""The migrations make exactly the tables that the code works with."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint, create_engine
from sqlalchemy.pool import NullPool

from tests.contract.conftest import PostgresDesk
from trading.adapters.clock import Uuid7Factory
from trading.adapters.sql import ROOMS, migrate, open_writer
from trading.adapters.sql.location import schema_of
from trading.adapters.sql.tables import metadata_for
from trading.testing.clock import ManualClock


@pytest.mark.parametrize("room", ROOMS)
async def test_sqlite_tables_are_those_of_the_metadata(room: str, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    await migrate.migrate_sqlite(room, tmp_path / f"{room}.sqlite")
    with create_engine(f"sqlite:///{tmp_path / room}.sqlite", poolclass=NullPool).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata_for(room)) == []


@pytest.mark.parametrize("room", ROOMS)
async def test_postgres_tables_are_those_of_the_metadata(room: str, postgres_desk: PostgresDesk) -> None:
    import asyncpg

    async with open_writer(room, postgres_desk.location, clock=ManualClock(), ids=Uuid7Factory()):
        pass
    connection = await asyncpg.connect(postgres_desk.url)
    try:
        columns = await connection.fetch(
            "SELECT table_name, column_name, data_type, is_nullable, collation_name FROM information_schema.columns"
            " WHERE table_schema = $1 AND table_name <> 'alembic_version'",
            schema_of(room),
        )
        keys = await connection.fetch(
            "SELECT c.conrelid::regclass::text, c.contype, (SELECT array_agg(a.attname ORDER BY k.n)"
            " FROM unnest(c.conkey) WITH ORDINALITY k(attnum, n) JOIN pg_attribute a ON a.attnum = k.attnum"
            " AND a.attrelid = c.conrelid) FROM pg_constraint c WHERE c.connamespace = $1::regnamespace"
            " AND c.contype IN ('p', 'u') AND c.conrelid::regclass::text NOT LIKE '%alembic_version'",
            schema_of(room),
        )
    finally:
        await connection.close()
    names = {"TEXT": "text", "BIGINT": "bigint", "BLOB": "bytea"}
    expected = {
        (table.name, column.name, names[str(column.type)], "YES" if column.nullable else "NO")
        for table in metadata_for(room).sorted_tables
        for column in table.columns
    }
    assert {tuple(row)[:4] for row in columns} == expected
    assert {row[4] for row in columns if row[2] == "text"} == {"C"}
    assert {(row[0].rpartition(".")[2], bytes(row[1]), tuple(row[2])) for row in keys} == {
        (table.name, b"p" if constraint is table.primary_key else b"u", tuple(c.name for c in constraint.columns))
        for table in metadata_for(room).sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint))
    }


@pytest.mark.parametrize("room", ROOMS)
def test_the_named_heads_are_the_newest_revisions(room: str) -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(migrate._config(room, None)).get_heads() == [migrate.HEADS[room]]


async def test_a_migration_that_fails_leaves_nothing_half_done(tmp_path: Path, monkeypatch) -> None:
    from alembic import op

    path = tmp_path / "risk.sqlite"
    create, made = op.create_table, []

    def failing(name: str, *columns: object, **options: object) -> object:
        made.append(name)
        if len(made) == 4:
            raise sqlite3.OperationalError("power cut")
        return create(name, *columns, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(op, "create_table", failing)
    with pytest.raises(Exception, match="power cut"):
        await migrate.migrate_sqlite("risk", path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    monkeypatch.undo()
    await migrate.migrate_sqlite("risk", path)
