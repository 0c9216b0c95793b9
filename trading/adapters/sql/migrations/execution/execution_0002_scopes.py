"""Execution remembers which scopes risk had restricted, so that a restart still takes their orders back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "execution_0002"
down_revision = "execution_0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Change the tables; there is no way back: a ledger is never taken to an older release."""
    op.add_column("epochs", sa.Column("scopes", _TEXT, nullable=False, server_default=""))
