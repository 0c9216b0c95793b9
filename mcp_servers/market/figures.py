"""Floats on their way out: decimals with a stated number of digits, and never a number that is none."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import Final

from trading.domain.money import MAX_MAGNITUDE, MAX_SCALE, quantize_nearest

#: Significant digits of every computed figure.
DIGITS: Final = 8


def figure(value: float | None) -> Decimal | None:
    """Return a figure with :data:`DIGITS` significant digits; None for None and for what is not finite or too large."""
    if value is None or not isfinite(value):
        return None
    found = Decimal(f"{value:.{DIGITS}g}")
    return quantize_nearest(found, MAX_SCALE) if abs(found) < MAX_MAGNITUDE else None
