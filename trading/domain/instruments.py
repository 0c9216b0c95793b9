"""What can be traded, and the venue's rules for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Currency, Symbol, Venue
from trading.domain.money import ZERO, is_multiple, multiply, round_down, round_up


class InstrumentId(NamedTuple):
    """A symbol on a venue. Two venues never share an instrument."""

    venue: Venue
    symbol: Symbol

    def __str__(self) -> str:
        return f"{self.symbol}@{self.venue}"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A spot instrument with its venue's rules.

    Attributes:
        price_tick: quote per base; every price is a multiple of it. > 0.
        quantity_step: base; every quantity is a multiple of it. > 0.
        quantity_min: base, >= 0.
        quantity_max: base, None when the venue sets no bound.
        notional_min: quote, >= 0; price times quantity must reach it.
        notional_max: quote, None when the venue sets no bound.
        maker_fee: rate of notional (0.001 is 10 bps); may be negative for a rebate.
        taker_fee: rate of notional, >= 0.
    """

    id: InstrumentId
    base: Currency
    quote: Currency
    price_tick: Decimal
    quantity_step: Decimal
    quantity_min: Decimal
    notional_min: Decimal
    maker_fee: Decimal
    taker_fee: Decimal
    quantity_max: Decimal | None = None
    notional_max: Decimal | None = None

    def __post_init__(self) -> None:
        if self.price_tick <= 0 or self.quantity_step <= 0:
            raise InvalidValue(f"{self.id}: tick and step must be positive", code="INVALID_INSTRUMENT")

    @property
    def symbol(self) -> Symbol:
        """The unified symbol, ``BASE/QUOTE``."""
        return self.id.symbol

    @property
    def venue(self) -> Venue:
        """The venue's name."""
        return self.id.venue

    def is_price(self, price: Decimal) -> bool:
        """Return whether the venue would take this price: positive and on the tick."""
        return price > 0 and is_multiple(price, self.price_tick)

    def is_quantity(self, quantity: Decimal) -> bool:
        """Return whether the quantity is positive and on the step (bounds are separate rules)."""
        return quantity > 0 and is_multiple(quantity, self.quantity_step)

    def quantity_floor(self, quantity: Decimal) -> Decimal:
        """Return the largest legal step not above ``quantity`` (base, >= 0)."""
        return round_down(quantity, self.quantity_step) if quantity > 0 else ZERO

    def price_floor(self, price: Decimal) -> Decimal:
        """Return the nearest tick not above ``price``."""
        return round_down(price, self.price_tick)

    def price_ceiling(self, price: Decimal) -> Decimal:
        """Return the nearest tick not below ``price``."""
        return round_up(price, self.price_tick)

    def smallest_quantity(self, price: Decimal) -> Decimal:
        """Return the least quantity (base) the venue takes at ``price``: step, minimum and minimum notional."""
        least = max(self.quantity_min, self.quantity_step)
        if self.notional_min > 0:
            least = max(least, round_up_ratio(self.notional_min, price, self.quantity_step))
        return round_up(least, self.quantity_step)

    def notional(self, quantity: Decimal, price: Decimal) -> Decimal:
        """Return quantity times price in quote, exactly."""
        return multiply(quantity, price)


def round_up_ratio(amount: Decimal, price: Decimal, step: Decimal) -> Decimal:
    """Return the least multiple of ``step`` whose value at ``price`` reaches ``amount``.

    Division is inexact, so the candidate is corrected against the exact product.
    """
    candidate = round_down(amount / price, step)
    while multiply(candidate, price) < amount:
        candidate += step
    return candidate
