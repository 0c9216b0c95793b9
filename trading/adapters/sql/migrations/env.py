"""Runs one room's revisions on the connection that the writer passes in."""

from __future__ import annotations

from alembic import context

from trading.adapters.sql.tables import metadata_for

connection = context.config.attributes["connection"]
room: str = context.config.attributes["room"]
context.configure(connection=connection, target_metadata=metadata_for(room), transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
