"""What the account was worth when the day began, and how much of it is lost: the portfolio stop's measure."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, cast

from trading.domain.identifiers import AccountId
from trading.domain.money import divide, multiply, parse_decimal, quantize_nearest, subtract
from trading.ports.ledger import Ledger, Unit, Upsert

_DAY_MS: Final = 86_400_000
_HUNDRED: Final = Decimal(100)


class EquityDay:
    """Keeps the level at 00:00 UTC, or at the first time of the day at which the account could be valued."""

    def __init__(self, account_id: AccountId, ledger: Ledger) -> None:
        self._account_id = account_id
        self._ledger = ledger
        self._day = -1
        self._level: Decimal | None = None
        #: Percent of the day's level that is lost, negative for a gain; None while it is not known.
        self.lost_pct: Decimal | None = None

    async def load(self) -> None:
        """Read back the level of the last day."""
        for row in await self._ledger.rows("equity_days", {"account_id": self._account_id}):
            self._day = cast("int", row["day"])
            self._level = parse_decimal(cast("str", row["equity"]))

    def is_over(self, now_ms: int) -> bool:
        """Return whether a new day has begun that has no level yet."""
        return now_ms // _DAY_MS > self._day

    async def observe(self, equity: Decimal | None, now_ms: int) -> None:
        """Take the account's worth in quote, None when it cannot be valued now: then nothing is known to be lost.

        Raises:
            LedgerError: the day's level could not be written down.
        """
        day = now_ms // _DAY_MS
        if equity is None:
            self.lost_pct = None
            return
        # A clock that is set back over midnight begins no new day: the loss of this one would be forgotten.
        if day > self._day or self._level is None:
            self._day, self._level = day, quantize_nearest(equity, 8)
            row = {"account_id": self._account_id, "day": day, "equity": self._level, "taken_ms": now_ms}
            await self._ledger.commit(Unit(writes=(Upsert("equity_days", row),)))
        level = self._level
        self.lost_pct = multiply(divide(subtract(level, equity), level), _HUNDRED) if level > 0 else None

    def is_lost(self, loss_pct: Decimal | None) -> bool:
        """Return whether at least ``loss_pct`` percent of the day's level is lost."""
        return loss_pct is not None and self.lost_pct is not None and self.lost_pct >= loss_pct
