"""Exact integers of contracts turned into decimals that a person reads."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction
from typing import Final

#: Significant digits of prices, each of them right; the last is rounded half to even.
PRICE_DIGITS: Final = 30

_CONTEXT: Final = Context(
    prec=PRICE_DIGITS, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, Overflow, DivisionByZero]
)


def decimal_of(value: Fraction) -> Decimal:
    """Return a fraction to ``PRICE_DIGITS`` significant digits; rounded once, from the exact value."""
    return _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))


def root_of(square: Fraction) -> Decimal:
    """Return the square root of a fraction >= 0 to ``PRICE_DIGITS`` significant digits."""
    wide = Context(prec=2 * PRICE_DIGITS)
    return _CONTEXT.plus(wide.sqrt(wide.divide(Decimal(square.numerator), Decimal(square.denominator))))


def power_of_ten(exponent: int) -> Fraction:
    """Return ten to a whole power, also a negative one."""
    return Fraction(10**exponent) if exponent >= 0 else Fraction(1, 10**-exponent)
