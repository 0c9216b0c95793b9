"""How the book moves: volatility, beta, concentration. Pure; nothing in here returns NaN or infinity."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np

from .tails import Column

#: These markets never close.
YEAR_HOURS: Final = 365 * 24
#: Fewer returns than this give no volatility and no beta.
RETURNS_MIN: Final = 20


@dataclass(frozen=True, slots=True)
class Beta:
    """Slope of the least-squares line of one series on another.

    Attributes:
        value: units of the series for each 100 % of the benchmark.
        error: its standard error, with n - 2 degrees of freedom; clustered volatility makes the true one larger.
        n: pairs that were used.
    """

    value: float
    error: float
    n: int


@dataclass(frozen=True, slots=True)
class Concentration:
    """How unequal the shares of a book are.

    Attributes:
        herfindahl: sum of squared shares, 1/n when all are equal and 1 for a single holding.
        largest: index of the largest holding; largest_share: its share of the gross.
    """

    herfindahl: float
    largest: int
    largest_share: float


def volatility(profits: Column, interval_hours: float) -> float | None:
    """Return the sample standard deviation of profits, annualised; None of fewer than ``RETURNS_MIN``."""
    if len(profits) < RETURNS_MIN:
        return None
    return float(profits.std(ddof=1)) * sqrt(YEAR_HOURS / interval_hours)


def beta(profits: Column, benchmark: Column) -> Beta | None:
    """Return the slope of profits on the benchmark's returns; None of too few, or when the benchmark stood still.

    Args:
        profits, benchmark: shape (n,), the same intervals.
    """
    n = len(profits)
    if n < RETURNS_MIN or len(benchmark) != n:
        return None
    x, y = benchmark - benchmark.mean(), profits - profits.mean()
    spread = float(x @ x)
    if spread <= n * 1e-26:
        return None
    slope = float(x @ y) / spread
    rest = y - slope * x
    return Beta(slope, sqrt(max(0.0, float(rest @ rest)) / (n - 2) / spread), n)


def concentration(values: Column) -> Concentration | None:
    """Return how concentrated holdings are; None when nothing is held.

    Args:
        values: shape (n,), quote, either sign.
    """
    sizes = np.abs(values)
    gross = float(sizes.sum())
    if gross <= 0:
        return None
    shares = sizes / gross
    largest = int(shares.argmax())
    return Concentration(float(shares @ shares), largest, float(shares[largest]))
