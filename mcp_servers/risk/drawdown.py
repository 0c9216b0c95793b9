"""How far the account lies below its best. The best is kept in the ledger, so that no restart forgives a loss."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from trading.domain.errors import InvalidValue
from trading.domain.money import ONE, add, divide, multiply, parse_decimal, plain, subtract
from trading.ports.ledger import Row, Upsert

SCOPE: Final = "peak"
_HUNDRED: Final = Decimal(100)


class Drawdown:
    """Measures trading against its best result so far; deposits and withdrawals move neither.

    Args:
        peak: the best trading result of earlier runs, quote; None for a new desk.
    """

    def __init__(self, peak: Decimal | None = None) -> None:
        self._peak = peak
        self._saved = peak

    def of(self, trading_result: Decimal | None, equity: Decimal | None) -> Decimal | None:
        """Return 1 - E / (E + what was lost since the best), in percent; None when it cannot be known.

        Args:
            trading_result: earned since the beginning, quote.
            equity: E, the account's worth now, quote.
        """
        if trading_result is None or equity is None:
            return None
        if self._peak is None or trading_result > self._peak:
            self._peak = trading_result
        lost = subtract(self._peak, trading_result)
        if not lost:
            return Decimal(0)
        best = add(equity, lost)
        if equity <= 0 or best <= 0:
            return _HUNDRED
        return multiply(subtract(ONE, divide(equity, best)), _HUNDRED)

    def unsaved(self, now_ms: int) -> Upsert | None:
        """Return the row that keeps a new best, None when it is kept already."""
        if self._peak is None or self._peak == self._saved:
            return None
        return Upsert(
            "desk_state",
            {
                "scope": SCOPE,
                "state": "",
                "generation": 0,
                "counter": 0,
                "reason": plain(self._peak),
                "updated_ms": now_ms,
            },
        )

    def saved(self, row: Upsert) -> None:
        """Note that this row is in the ledger."""
        self._saved = parse_decimal(str(row.row["reason"]))


def read_peak(row: Row | None) -> Decimal | None:
    """Return the best that ``unsaved`` wrote, None when there is none or it cannot be read."""
    if row is None:
        return None
    try:
        return parse_decimal(str(row["reason"]))
    except InvalidValue:
        return None
