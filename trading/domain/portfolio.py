"""What risk looks at: balances, positions and working orders of one account at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from trading.domain.identifiers import AccountId, Currency
from trading.domain.instruments import InstrumentId
from trading.domain.money import ZERO, add, multiply, subtract
from trading.domain.orders import Order
from trading.domain.positions import Position


@dataclass(frozen=True, slots=True)
class Balance:
    """An amount of one currency at the venue.

    Attributes:
        total: everything that is ours.
        locked: the part that working orders hold.
    """

    total: Decimal
    locked: Decimal = ZERO

    @property
    def free(self) -> Decimal:
        """What can still be spent."""
        return subtract(self.total, self.locked)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortfolioSnapshot:
    """One account at one instant, as the execution ledger tells it.

    Attributes:
        as_of_ms: when it was read (desk clock); its age decides whether risk may use it.
        ledger_seq: the last execution event it contains.
        open_orders: every order that may be alive at the venue, UNKNOWN ones included.
    """

    account_id: AccountId
    as_of_ms: int
    ledger_seq: int
    balances: Mapping[Currency, Balance]
    positions: Mapping[InstrumentId, Position]
    open_orders: tuple[Order, ...]

    def equity(self, quote: Currency, marks: Mapping[Currency, Decimal]) -> Decimal | None:
        """Return the account's worth in ``quote``; None when a held currency has no mark.

        Args:
            quote: the currency to count in.
            marks: price of one unit of each other currency in ``quote``.
        """
        worth = ZERO
        for currency, balance in self.balances.items():
            if currency == quote:
                worth = add(worth, balance.total)
            elif balance.total:
                if currency not in marks:
                    return None
                worth = add(worth, multiply(balance.total, marks[currency]))
        return worth

    def age_ms(self, now_ms: int) -> int:
        """Return milliseconds since it was read; never negative."""
        return max(0, now_ms - self.as_of_ms)
