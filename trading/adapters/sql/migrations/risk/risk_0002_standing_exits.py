"""Exits that were signed alone, for positions that outlive the exit they were entered with."""

from __future__ import annotations

from trading.adapters.sql.migrations.first import create_table, integer, key, text

revision = "risk_0002"
down_revision = "risk_0001"
branch_labels = None
depends_on = None

ROOM = "risk"


def upgrade() -> None:
    """Make the table."""
    create_table(
        ROOM,
        "standing_exits",
        *key("exit_id"),
        *text("venue", "symbol", "state", "envelope"),
        *integer("issued_ms", "expires_ms"),
    )
