"""Standing exits, the state of each position's stops, and the equity that a day began with."""

from __future__ import annotations

from trading.adapters.sql.migrations.first import create_table, integer, key, text

revision = "execution_0003"
down_revision = "execution_0002"
branch_labels = None
depends_on = None

ROOM = "execution"


def upgrade() -> None:
    """Make the tables."""
    create_table(
        ROOM,
        "standing_exits",
        *key("account_id", "venue", "symbol", "side"),
        *text("exit_id", "envelope"),
        *integer("expires_ms", "adopted_ms"),
    )
    create_table(ROOM, "protections", *key("account_id", "venue", "symbol"), *text("guard_json"))
    create_table(ROOM, "equity_days", *key("account_id"), *integer("day"), *text("equity"), *integer("taken_ms"))
