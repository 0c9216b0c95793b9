"""The ledger on SQLite and PostgreSQL: one writer per room, everybody else reads."""
