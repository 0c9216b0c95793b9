"""From the size a caller names to the quantity a venue takes: always converted once, always rounded down."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from trading.domain.errors import InvalidValue
from trading.domain.instruments import Instrument
from trading.domain.money import ZERO, divide, multiply, subtract


class SizeUnit(StrEnum):
    """What the amount of an order counts."""

    BASE = "base"
    QUOTE = "quote"
    PERCENT_EQUITY = "percent_equity"
    RISK_PERCENT_TO_STOP = "risk_percent_to_stop"


def to_quantity(
    amount: Decimal,
    unit: SizeUnit,
    instrument: Instrument,
    *,
    price: Decimal,
    equity: Decimal | None = None,
    stop_price: Decimal | None = None,
) -> Decimal:
    """Return the quantity in base, rounded down to the instrument's step; may be 0 when too small.

    Args:
        amount: > 0, in ``unit``.
        price: quote per base at which the order is expected to trade, > 0.
        equity: the account's worth in quote; needed for the two percentage units.
        stop_price: quote per base; needed for ``risk_percent_to_stop``, which sizes the order so that a move from
            ``price`` to ``stop_price`` loses ``amount`` percent of equity, before fees.

    Raises:
        InvalidValue: amount or price not positive, or a needed figure missing.
    """
    if amount <= 0:
        raise InvalidValue("amount must be greater than zero", code="INVALID_QUANTITY")
    if price <= 0:
        raise InvalidValue("price must be greater than zero", code="INVALID_PRICE")
    match unit:
        case SizeUnit.BASE:
            return instrument.quantity_floor(amount)
        case SizeUnit.QUOTE:
            return instrument.quantity_floor(divide(amount, price))
        case SizeUnit.PERCENT_EQUITY:
            return instrument.quantity_floor(divide(_share(amount, equity), price))
        case SizeUnit.RISK_PERCENT_TO_STOP:
            if stop_price is None or stop_price == price:
                raise InvalidValue(
                    "risk_percent_to_stop needs a stop_price that differs from the price",
                    code="STOP_PRICE_NEEDED",
                )
            return instrument.quantity_floor(divide(_share(amount, equity), abs(subtract(price, stop_price))))


def _share(percent: Decimal, equity: Decimal | None) -> Decimal:
    if equity is None:
        raise InvalidValue(
            "the account's equity is not known now, so percentages cannot be sized",
            code="EQUITY_UNKNOWN",
            suggestion="give the amount in base or quote",
        )
    return max(ZERO, multiply(equity, multiply(percent, Decimal("0.01"))))
