"""First tables of the risk room."""

from __future__ import annotations

import sqlalchemy as sa

from trading.adapters.sql.migrations.first import create_events_and_lease, create_table, integer, key, text

revision = "risk_0001"
down_revision = None
branch_labels = None
depends_on = None

ROOM = "risk"


def upgrade() -> None:
    """Make the tables."""
    create_events_and_lease(ROOM)
    create_table(
        ROOM, "requests", *key("principal"), *key("request_id"), *text("digest", "answer"), *integer("created_ms")
    )
    create_table(
        ROOM,
        "approvals",
        *key("approval_id"),
        *text("request_id", "principal", "decision_id?", "agent_id", "client_order_id", "state"),
        *integer("expires_ms"),
        *text("envelope"),
        *integer("created_ms"),
        sa.UniqueConstraint("client_order_id"),
    )
    create_table(ROOM, "decisions_used", *key("proposal_id"), *text("decision_id", "request_id"))
    create_table(
        ROOM,
        "desk_state",
        *key("scope"),
        *text("state"),
        *integer("generation", "counter"),
        *text("reason"),
        *integer("updated_ms"),
    )
    create_table(
        ROOM,
        "policies",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        *text("digest", "document"),
        *integer("loaded_ms"),
    )
