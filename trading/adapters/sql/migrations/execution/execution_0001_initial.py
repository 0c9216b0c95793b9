"""First tables of the execution room."""

from __future__ import annotations

import sqlalchemy as sa

from trading.adapters.sql.migrations.first import create_events_and_lease, create_table, integer, key, text

revision = "execution_0001"
down_revision = None
branch_labels = None
depends_on = None

ROOM = "execution"


def upgrade() -> None:
    """Make the tables."""
    create_events_and_lease(ROOM)
    create_table(ROOM, "approval_fates", *key("approval_id"), *text("fate", "order_id?"), *integer("at_ms"))
    create_table(
        ROOM,
        "orders",
        *key("order_id"),
        *text("approval_id", "client_order_id", "venue", "symbol", "account_id", "agent_id", "side", "status"),
        *text("order_json"),
        *integer("created_ms", "updated_ms"),
        sa.UniqueConstraint("approval_id"),
    )
    create_table(
        ROOM,
        "fills",
        *key("venue"),
        *key("trade_id"),
        *text("order_id", "client_order_id", "symbol", "side", "quantity", "price", "fee", "fee_currency"),
        *text("liquidity"),
        *integer("venue_ts_ms"),
    )
    create_table(ROOM, "positions", *key("account_id"), *key("venue"), *key("symbol"), *text("position_json"))
    create_table(ROOM, "balances", *key("account_id"), *key("currency"), *text("total", "locked"))
    create_table(
        ROOM,
        "epochs",
        *key("account_id"),
        *integer("generation", "counter"),
        *text("state"),
        *integer("min_policy_version", "updated_ms"),
    )
