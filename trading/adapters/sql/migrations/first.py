"""What the first revisions of all rooms have in common. Frozen: a later change gets a revision of its own."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

_SQLITE_GUARDS = (
    "CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    # INSERT OR REPLACE deletes without firing delete triggers, so an insert onto an existing row is stopped as well.
    """CREATE TRIGGER events_no_replace BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'append-only'); END""",
)

_POSTGRES_GUARDS = (
    """CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    """CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION events_append_only()""",
    """CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()""",
)


def key(*names: str) -> list[sa.Column[Any]]:
    """Return text columns of the primary key."""
    return [sa.Column(name, _TEXT, primary_key=True, nullable=False) for name in names]


def text(*names: str) -> list[sa.Column[Any]]:
    """Return text columns; a question mark after the name allows NULL."""
    return [sa.Column(name.rstrip("?"), _TEXT, nullable=name.endswith("?")) for name in names]


def integer(*names: str) -> list[sa.Column[Any]]:
    """Return 64-bit columns; a question mark after the name allows NULL."""
    return [sa.Column(name.rstrip("?"), sa.BigInteger, nullable=name.endswith("?")) for name in names]


def create_events_and_lease(room: str) -> None:
    """Make the two tables that every room has, and the guards of the first."""
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        *text("event_id", "event_type"),
        *integer("timestamp_ms"),
        *text("payload", "metadata"),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table("lease", *key("room"), *integer("generation"), *text("holder"), *integer("acquired_ms"))
    postgres = op.get_context().dialect.name == "postgresql"
    for guard in _POSTGRES_GUARDS if postgres else _SQLITE_GUARDS:
        op.execute(guard)
    grant(room, "events", "SELECT, INSERT")
    grant(room, "lease", "SELECT, INSERT, UPDATE")


def grant(room: str, table: str, rights: str = "SELECT, INSERT, UPDATE") -> None:
    """Let the room's role write a table and the readers' role read it; PostgreSQL only."""
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"GRANT {rights} ON {table} TO grekko_{room}")
        op.execute(f"GRANT SELECT ON {table} TO grekko_reader")


def create_table(room: str, name: str, *columns: sa.Column[Any] | sa.UniqueConstraint) -> None:
    """Make a projection table."""
    op.create_table(name, *columns)
    grant(room, name)
