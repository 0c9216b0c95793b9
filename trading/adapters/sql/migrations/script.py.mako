"""${message}"""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables; there is no way back: a ledger is never taken to an older release."""
    ${upgrades if upgrades else "raise NotImplementedError"}
