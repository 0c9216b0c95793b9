"""Alembic migrations, a line of revisions per room; run by the writer under its lock."""
