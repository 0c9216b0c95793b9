"""Exact decimal arithmetic for prices, quantities and amounts.

Rules kept here:

- ``Decimal`` only. A float never enters; text is parsed once, at the edge.
- Addition, subtraction and multiplication are exact or raise: nothing is silently rounded.
- Rounding is always explicit and names its direction.
- Bounds: a number has at most 18 fractional digits and an absolute value below 10**24, so products of two
  legal numbers stay exact within the working precision of 96 digits.
"""

from __future__ import annotations

from decimal import (
    ROUND_CEILING,
    ROUND_DOWN,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from typing import Final

from trading.domain.errors import InvalidValue

ZERO: Final = Decimal(0)
ONE: Final = Decimal(1)
BPS: Final = Decimal(10_000)

MAX_SCALE: Final = 18  # fractional digits
MAX_MAGNITUDE: Final = Decimal(10) ** 24
_MAX_TEXT: Final = 64  # characters

#: Exact or an exception.
EXACT: Final = Context(prec=96, traps=[Inexact, InvalidOperation, Overflow, DivisionByZero])
#: For ratios and averages that have no finite expansion; never used on money that must be conserved.
RATIO: Final = Context(
    prec=34,
    rounding=ROUND_HALF_EVEN,
    traps=[InvalidOperation, Overflow, DivisionByZero],
)
_LOOSE: Final = Context(prec=96, traps=[InvalidOperation, Overflow, DivisionByZero])


def parse_decimal(text: str, *, what: str = "value") -> Decimal:
    """Return the number that ``text`` spells.

    Args:
        text: plain or scientific decimal notation, at most 64 characters.
        what: the field's name, for the message.

    Raises:
        InvalidValue: not a number, NaN, infinite, more than 18 fractional digits, or 10**24 and more.
    """
    if len(text) > _MAX_TEXT or not text.isascii() or "_" in text or text != text.strip():
        raise InvalidValue(f"{what} is not a plain decimal number", code="INVALID_NUMBER")
    try:
        value = Decimal(text)
    except DecimalException as error:
        raise InvalidValue(f"{what} is not a decimal number", code="INVALID_NUMBER") from error
    return check_decimal(value, what=what)


def check_decimal(value: Decimal, *, what: str = "value") -> Decimal:
    """Return ``value`` unchanged if it is finite and within the bounds of this module.

    Raises:
        InvalidValue: NaN, infinite, too large or too finely divided.
    """
    if not value.is_finite():
        raise InvalidValue(f"{what} must be a finite number", code="INVALID_NUMBER")
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MAX_SCALE:
        raise InvalidValue(f"{what} has more than {MAX_SCALE} fractional digits", code="INVALID_NUMBER")
    if abs(value) >= MAX_MAGNITUDE:
        raise InvalidValue(f"{what} is out of range", code="INVALID_NUMBER")
    return value


def plain(value: Decimal) -> str:
    """Return the canonical text of a number: no exponent, no trailing zeros, ``0`` for any zero."""
    if not value:
        return "0"
    text = str(value)  # four times as fast as format; the exponent, which few numbers have, is what differs
    if "E" in text:
        text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


#: The exact sum, difference and product of two numbers. The context's own methods: a function around each of them took
#: as long again, and one order needs some forty.
add: Final = EXACT.add
subtract: Final = EXACT.subtract
multiply: Final = EXACT.multiply


def total(values: list[Decimal] | tuple[Decimal, ...]) -> Decimal:
    """Return the exact sum of any number of values."""
    result = ZERO
    for value in values:
        result = EXACT.add(result, value)
    return result


def divide(left: Decimal, right: Decimal) -> Decimal:
    """Return the quotient to 34 significant digits, half to even. For ratios and averages only."""
    return RATIO.divide(left, right)


def is_multiple(value: Decimal, step: Decimal) -> bool:
    """Return whether ``value`` is a whole multiple of ``step`` (> 0)."""
    return not _LOOSE.remainder(value, step)


def round_down(value: Decimal, step: Decimal) -> Decimal:
    """Return the largest multiple of ``step`` (> 0) that is not above ``value``.

    A quantity rounded this way never exceeds what was asked for; a negative value moves away from zero.
    """
    return _round_to(value, step, ROUND_FLOOR)


def round_up(value: Decimal, step: Decimal) -> Decimal:
    """Return the smallest multiple of ``step`` (> 0) that is not below ``value``."""
    return _round_to(value, step, ROUND_CEILING)


def _round_to(value: Decimal, step: Decimal, rounding: str) -> Decimal:
    steps = _LOOSE.divide(value, step).to_integral_value(rounding=rounding)
    return EXACT.multiply(steps, step)


def quantize_down(value: Decimal, scale: int) -> Decimal:
    """Return ``value`` cut to ``scale`` fractional digits, toward zero."""
    return value.quantize(Decimal(1).scaleb(-scale), rounding=ROUND_DOWN, context=_LOOSE)


def quantize_nearest(value: Decimal, scale: int) -> Decimal:
    """Return ``value`` rounded to ``scale`` fractional digits, half to even."""
    return value.quantize(Decimal(1).scaleb(-scale), rounding=ROUND_HALF_EVEN, context=_LOOSE)


def bps_of(value: Decimal, bps: Decimal) -> Decimal:
    """Return ``bps`` basis points of ``value``, exactly."""
    return EXACT.multiply(value, EXACT.multiply(bps, Decimal("0.0001")))


def difference_bps(value: Decimal, reference: Decimal) -> Decimal:
    """Return how far ``value`` lies above ``reference`` (> 0) in basis points; negative when below."""
    return RATIO.multiply(RATIO.divide(EXACT.subtract(value, reference), reference), BPS)
