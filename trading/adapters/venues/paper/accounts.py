"""Who owns what at the paper venue, exact to the last digit.

Every movement is a double entry between three holders: the account, the venue's fee pot and the rest of the
market. Nothing is created or lost, so at every moment and for every currency::

    account + fees + market  ==  deposits

``market`` is negative where others gave us more than they got: it is what the world outside has paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from trading.domain.identifiers import Currency
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, multiply, subtract
from trading.domain.portfolio import Balance
from trading.ports.venue import VenueTrade

Purse = dict[Currency, Decimal]


class Accounts:
    """One trading account with locks, the fee pot and the market's side of every trade."""

    def __init__(self) -> None:
        self.account: Purse = {}
        self.locked: Purse = {}
        self.fees: Purse = {}
        self.market: Purse = {}
        self.deposits: Purse = {}

    def deposit(self, amounts: Mapping[Currency, Decimal]) -> None:
        """Add money from outside; amounts >= 0 by currency."""
        for currency, amount in amounts.items():
            _post(self.deposits, currency, amount)
            _post(self.account, currency, amount)

    def free(self, currency: Currency) -> Decimal:
        """Return what working orders do not hold."""
        return subtract(self.account.get(currency, ZERO), self.locked.get(currency, ZERO))

    def lock(self, currency: Currency, amount: Decimal) -> None:
        """Hold ``amount`` (>= 0) for an order; the caller has checked that it is free."""
        _post(self.locked, currency, amount)

    def unlock(self, currency: Currency, amount: Decimal) -> None:
        """Give back ``amount`` (>= 0) of what was held."""
        self.locked[currency] = subtract(self.locked[currency], amount)

    def settle(self, trade: VenueTrade, base: Currency, quote: Currency) -> None:
        """Exchange base for quote with the market and pay the fee (negative: receive a rebate)."""
        notional = multiply(trade.quantity, trade.price)
        bought = trade.side is Side.BUY
        base_in = trade.quantity if bought else trade.quantity.copy_negate()
        quote_in = notional.copy_negate() if bought else notional
        _post(self.account, base, base_in)
        _post(self.market, base, base_in.copy_negate())
        _post(self.account, quote, quote_in)
        _post(self.market, quote, quote_in.copy_negate())
        _post(self.account, trade.fee_currency, trade.fee.copy_negate())
        _post(self.fees, trade.fee_currency, trade.fee)

    def balances(self) -> dict[Currency, Balance]:
        """Return the account's balances, currencies that were ever held."""
        return {currency: Balance(held, self.locked.get(currency, ZERO)) for currency, held in self.account.items()}

    def imbalance(self) -> Purse:
        """Return by currency what the double entry lost (negative) or invented; empty when it conserves."""
        wrong: Purse = {}
        for currency in {*self.account, *self.fees, *self.market, *self.deposits}:
            inside = add(self.account.get(currency, ZERO), self.fees.get(currency, ZERO))
            held = add(inside, self.market.get(currency, ZERO))
            difference = subtract(held, self.deposits.get(currency, ZERO))
            if difference:
                wrong[currency] = difference
        return wrong


def _post(purse: Purse, currency: Currency, amount: Decimal) -> None:
    purse[currency] = add(purse.get(currency, ZERO), amount)
