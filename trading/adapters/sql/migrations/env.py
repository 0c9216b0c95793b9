"""Runs one room's revisions on the writer's connection, or writes down their statements."""

from __future__ import annotations

from alembic import context

from trading.adapters.sql.tables import metadata_for

room: str = context.config.attributes["room"]
if context.is_offline_mode():  # PostgreSQL: the statements are wanted, not their effect
    context.configure(dialect_name="postgresql", target_metadata=metadata_for(room), transactional_ddl=False)
else:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata_for(room), transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
