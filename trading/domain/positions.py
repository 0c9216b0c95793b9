"""What we hold because of our fills, and what it earned.

Average-cost accounting that conserves money to the last digit: at every moment::

    cash paid and received  ==  realized - cost        (fees apart, each in its own currency)

The cost of a partial close is the proportional share of the open cost, cut to 18 fractional digits; the rest of
the cost stays with the open quantity, so nothing is ever lost to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal

from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, Currency
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import (
    MAX_SCALE,
    ZERO,
    add,
    divide,
    multiply,
    quantize_nearest,
    subtract,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The net position of one account in one instrument.

    Attributes:
        quantity: base, signed; includes fees that were taken in base.
        cost: quote, signed like the quantity; what the open quantity cost, before fees.
        realized: quote; profit and loss of what was closed, before fees.
        fees: paid so far by currency; fees in base also reduced ``quantity``.
    """

    account_id: AccountId
    instrument_id: InstrumentId
    base: Currency
    quote: Currency
    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    realized: Decimal = ZERO
    fees: dict[Currency, Decimal] = field(default_factory=dict[Currency, Decimal])

    @property
    def average_price(self) -> Decimal | None:
        """Quote per base that the open quantity cost, to 34 digits; None when flat."""
        return divide(self.cost, self.quantity) if self.quantity else None

    def unrealized(self, mark: Decimal) -> Decimal:
        """Return profit and loss of the open quantity at ``mark`` (quote per base), before fees, exactly."""
        return subtract(multiply(self.quantity, mark), self.cost)

    def net(self, mark: Decimal) -> Decimal:
        """Return realized plus unrealized minus fees paid in quote."""
        return subtract(add(self.realized, self.unrealized(mark)), self.fees.get(self.quote, ZERO))

    def apply(self, fill: Fill) -> Position:
        """Return the position after a fill. The caller applies each trade id once."""
        signed = fill.quantity if fill.side is Side.BUY else -fill.quantity
        quantity, cost, realized, fees = self.quantity, self.cost, self.realized, self.fees
        closing = _closing(quantity, signed)
        if closing:
            share = self._share(closing)
            quantity = add(quantity, closing)
            cost = subtract(cost, share)
            realized = add(realized, subtract(multiply(-closing, fill.price), share))
        opening = subtract(signed, closing)
        if opening:
            quantity = add(quantity, opening)
            cost = add(cost, multiply(opening, fill.price))
        if fill.fee:
            fees = {**fees, fill.fee_currency: add(fees.get(fill.fee_currency, ZERO), fill.fee)}
            if fill.fee_currency == self.base:
                quantity = subtract(quantity, fill.fee)
        return replace(self, quantity=quantity, cost=cost, realized=realized, fees=fees)

    def _share(self, closing: Decimal) -> Decimal:
        """Return the cost of ``closing`` base (opposite in sign to the position, at most all of it)."""
        if -closing == self.quantity:
            return self.cost
        return quantize_nearest(divide(multiply(self.cost, -closing), self.quantity), MAX_SCALE)


def _closing(held: Decimal, signed: Decimal) -> Decimal:
    """Return the part of ``signed`` that brings ``held`` nearer to zero."""
    if held > 0 > signed:
        return max(signed, -held)
    if held < 0 < signed:
        return min(signed, -held)
    return ZERO
