"""Orders that wait for the operator."""

from __future__ import annotations

from trading.adapters.sql.migrations.first import create_table, integer, key, text

revision = "risk_0003"
down_revision = "risk_0002"
branch_labels = None
depends_on = None

ROOM = "risk"


def upgrade() -> None:
    """Make the table."""
    create_table(
        ROOM,
        "pending",
        *key("pending_id"),
        *text("request_id", "agent_id", "state", "document", "approval_id?", "detail"),
        *integer("asked_ms", "expires_ms", "updated_ms"),
    )
