"""Replay of past falls on the present book: what it would lose if the worst hour, day or week of a month began now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import numpy as np

from .bundled import Closes, bundled
from .tails import Column

#: Name, first day and the day after the last one.
SCENARIOS: Final = {
    "march_2020": ((2020, 3, 1), (2020, 4, 1)),
    "may_2021": ((2021, 5, 1), (2021, 6, 1)),
}
HORIZONS: Final = {"1h": 1, "1d": 24, "7d": 168}


@dataclass(frozen=True, slots=True)
class Loss:
    """The worst that a scenario would do within a horizon.

    Attributes:
        scenario, horizon: keys of ``SCENARIOS`` and ``HORIZONS``.
        amount: quote lost, >= 0, the book being left as it is.
        n: starting hours that were tried.
    """

    scenario: str
    horizon: str
    amount: float
    n: int


def replay(values: Column, others_long: float = 0.0, others_short: float = 0.0) -> list[Loss]:
    """Return the worst losses of every scenario and horizon.

    Args:
        values: shape (assets,), quote held of each bundled asset, in their order.
        others_long: quote held of anything else, >= 0; from every hour it falls as the bundled asset that does worst.
        others_short: quote owed of anything else, <= 0; it rises as the one that does best.
    """
    losses: list[Loss] = []
    for (scenario, horizon), (moves, worst, best) in _moves().items():
        profits = moves @ values + worst * others_long + best * others_short
        losses.append(Loss(scenario, horizon, max(0.0, -float(profits.min())), len(profits)))
    return losses


@lru_cache(maxsize=1)
def _moves() -> dict[tuple[str, str], tuple[Column, Column, Column]]:
    """Return every start's moves of every asset, and the lowest and highest among them."""
    found: dict[tuple[str, str], tuple[Column, Column, Column]] = {}
    for scenario, (first, until) in SCENARIOS.items():
        month: Closes = bundled().between(_hour(first), _hour(until))
        for horizon, hours in HORIZONS.items():
            moves = month.rolling(hours)
            found[scenario, horizon] = moves, np.asarray(moves.min(axis=1)), np.asarray(moves.max(axis=1))
    return found


def _hour(day: tuple[int, int, int]) -> int:
    return int(datetime(*day, tzinfo=UTC).timestamp()) // 3_600
