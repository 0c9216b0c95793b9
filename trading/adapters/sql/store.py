"""What the writer asks of a database; SQLite and PostgreSQL each answer in their own way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from trading.adapters.sql.plan import Work
from trading.adapters.sql.tables import Shape, Values
from trading.domain.errors import LedgerError


class ConstraintBroken(LedgerError):
    """A row of the transaction broke a constraint; nothing was written."""

    code = "CONSTRAINT_BROKEN"


class Store(Protocol):
    """One room's database, opened by its writer."""

    async def take_lease(self, holder: str, now_ms: int) -> int:
        """Raise the generation by one and return it. Only the holder of the lock may call this."""
        ...

    async def head(self) -> tuple[int, bytes | None]:
        """Return sequence and hash of the newest event, 0 and None if there is none; reconnects if need be.

        Raises:
            LedgerUnavailable: the database does not answer.
            LeaseLost: another writer holds the lock now.
        """
        ...

    async def write(self, work: Work) -> None:
        """Do one transaction and return when it is durable.

        Raises:
            ConstraintBroken: a key was taken; nothing was written.
            LeaseLost: the generation in the database is another; nothing was written.
            LedgerUnavailable: anything else; it is unknown whether it was written.
        """
        ...

    async def lookup(self, shape: Shape, key: tuple[int, ...], wanted: Sequence[Values]) -> list[Values]:
        """Return the stored rows that hold one of the wanted keys; raises LedgerUnavailable."""
        ...

    def hashes(self) -> AsyncIterator[list[bytes]]:
        """Yield the hashes of all events in order, some thousands at a time; raises LedgerUnavailable."""
        ...

    async def close(self) -> None:
        """Close the database and give up the lock."""
        ...
