"""The day's result: what trading earned since 00:00 UTC. The opening figure is kept in the ledger, so that neither a
restart nor a crash gives the desk a new allowance.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from trading.domain.errors import InvalidValue
from trading.domain.money import parse_decimal, plain, subtract
from trading.ports.ledger import Row, Upsert

DAY_MS: Final = 86_400_000
SCOPE: Final = "day_open"


@dataclass(frozen=True, slots=True)
class DayOpen:
    """The trading result at the first moment of a UTC day at which it was known.

    Attributes:
        day: days since the epoch.
        result: quote.
    """

    day: int
    result: Decimal


class DailyResult:
    """Measures today against its opening."""

    def __init__(self, opened: DayOpen | None = None) -> None:
        self._opened = opened
        self._saved = opened is not None

    def of(self, trading_result: Decimal | None, now_ms: int) -> Decimal | None:
        """Return today's result in quote, negative for a loss; None when it cannot be known.

        Args:
            trading_result: earned since the beginning, None when something held has no price.
            now_ms: decides which day it is.
        """
        if trading_result is None:
            return None
        day = now_ms // DAY_MS
        if self._opened is None or self._opened.day < day:
            self._opened, self._saved = DayOpen(day, trading_result), False
        return subtract(trading_result, self._opened.result)

    def unsaved(self, now_ms: int) -> Upsert | None:
        """Return the row that keeps a new opening, None when it is kept already."""
        if self._opened is None or self._saved:
            return None
        return Upsert(
            "desk_state",
            {
                "scope": SCOPE,
                "state": str(self._opened.day),
                "generation": 0,
                "counter": 0,
                "reason": plain(self._opened.result),
                "updated_ms": now_ms,
            },
        )

    def saved(self) -> None:
        """Note that the opening is in the ledger."""
        self._saved = True


def read_day_open(row: Row | None) -> DayOpen | None:
    """Return the opening that ``unsaved`` wrote, None when there is none or it cannot be read."""
    if row is None:
        return None
    try:
        return DayOpen(int(str(row["state"])), parse_decimal(str(row["reason"])))
    except (ValueError, InvalidValue):
        return None
