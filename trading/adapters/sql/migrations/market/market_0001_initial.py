"""First tables of the market room."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from trading.adapters.sql.migrations.first import grant, integer, key, text

revision = "market_0001"
down_revision = None
branch_labels = None
depends_on = None

ROOM = "market"


def _number_key(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False) for name in names]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "candles",
        *key("feed", "venue", "symbol"),
        *_number_key("interval_ms", "open_ts_ms"),
        *text("open", "high", "low", "close", "volume"),
        *integer("trades", "complete"),
        *text("source"),
        *integer("written_ms"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "candle_spans",
        *key("feed", "venue", "symbol"),
        *_number_key("interval_ms"),
        *key("source"),
        *_number_key("from_ms"),
        *integer("until_ms", "written_ms"),
        sqlite_with_rowid=False,
    )
    for table in ("candles", "candle_spans"):
        grant(ROOM, table, "SELECT, INSERT, UPDATE, DELETE")
