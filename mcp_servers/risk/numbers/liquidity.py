"""What leaving every position at once would cost in the books as they are now.

Time is unknown: a book says what rests in it at this moment, not how fast it fills again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from trading.domain.market_data import OrderBook, Side


@dataclass(frozen=True, slots=True)
class Holding:
    """One holding and the book that it would be sold into.

    Attributes:
        held: base, either sign.  mid: quote per base.
        book: None when there is none that is fresh and two-sided.
    """

    held: Decimal
    mid: Decimal
    book: OrderBook | None


@dataclass(frozen=True, slots=True)
class Flattening:
    """What flattening costs.

    Attributes:
        cost: quote lost against mid on what the books take, fees not counted, >= 0.
        taken: quote at mid that the books take.  left: quote at mid that they do not.
        positions: holdings that were walked.
    """

    cost: float
    taken: float
    left: float
    positions: int


def flatten(holdings: Iterable[Holding]) -> Flattening:
    """Walk every holding through its book."""
    cost = taken = left = 0.0
    positions = 0
    for holding in holdings:
        size, mid = abs(holding.held), float(holding.mid)
        if not size:
            continue
        positions += 1
        if holding.book is None:
            left += float(size) * mid
            continue
        walked = holding.book.walk(Side.SELL if holding.held > 0 else Side.BUY, size)
        filled = float(walked.filled) * mid
        taken += filled
        left += float(size) * mid - filled
        cost += abs(filled - float(walked.notional))
    return Flattening(cost, taken, max(0.0, left), positions)
