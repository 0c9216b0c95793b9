"""First tables of the coordinator room."""

from __future__ import annotations

import sqlalchemy as sa

from trading.adapters.sql.migrations.first import create_events_and_lease, create_table, integer, key, text

revision = "coordinator_0001"
down_revision = None
branch_labels = None
depends_on = None

ROOM = "coordinator"


def upgrade() -> None:
    """Make the tables."""
    create_events_and_lease(ROOM)
    create_table(
        ROOM,
        "roster",
        *key("agent_id"),
        *text("role", "family", "key_id", "public_key"),
        *integer("roster_version", "revoked_version?"),
    )
    create_table(
        ROOM,
        "proposals",
        *key("proposal_id"),
        *text("agent_id", "state", "envelope", "digest"),
        *integer("roster_version", "deadline_ms", "expires_ms"),
        *text("decision_id?"),
        *integer("updated_ms"),
    )
    create_table(
        ROOM, "votes", *key("proposal_id"), *key("agent_id"), *text("choice", "envelope"), *integer("received_ms")
    )
    create_table(
        ROOM,
        "decisions",
        *key("decision_id"),
        *text("proposal_id", "outcome", "envelope", "state", "detail"),
        *integer("updated_ms"),
        sa.UniqueConstraint("proposal_id"),
    )
