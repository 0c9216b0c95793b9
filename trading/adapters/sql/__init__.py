"""The ledger on SQLite and PostgreSQL: one writer per room, everybody else reads."""

from __future__ import annotations

from trading.adapters.sql.checkpoints import Checkpointing, latest_head
from trading.adapters.sql.location import LedgerLocation
from trading.adapters.sql.opening import open_reader, open_writer
from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.tables import ROOMS
from trading.adapters.sql.verify import AuditReport, Finding, verify_room
from trading.adapters.sql.witnesses import newest_head, recent_witnesses
from trading.adapters.sql.writer import SqlLedger

__all__ = [
    "ROOMS",
    "AuditReport",
    "Checkpointing",
    "Finding",
    "LedgerLocation",
    "SqlLedger",
    "SqlReader",
    "latest_head",
    "newest_head",
    "open_reader",
    "open_writer",
    "recent_witnesses",
    "verify_room",
]
