"""First tables of the wallet room."""

from __future__ import annotations

from trading.adapters.sql.migrations.first import create_events_and_lease

revision = "wallet_0001"
down_revision = None
branch_labels = None
depends_on = None

ROOM = "wallet"


def upgrade() -> None:
    """Make the tables."""
    create_events_and_lease(ROOM)
