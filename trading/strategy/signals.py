"""Evidence for a direction. The same for every mode; modes differ in how much of it they ask for.

The periods fit candles of 1 to 5 seconds. Strengths are in [0, 1]; the expected edge is an estimate in basis points of
how far price would go if the signal is right, and is compared with costs, never promised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trading.domain.market_data import Side
from trading.strategy import indicators
from trading.strategy.snapshot import MarketSnapshot

FAST: Final = 3  # candles
SLOW: Final = 8
BAND: Final = 10
RANGE: Final = 5
BOOK_LEVELS: Final = 5

#: Range assumed for the expected edge while the average true range is warming up; a floor on quiet seconds too.
_QUIET_RANGE_BPS: Final = 0.2
_TREND_FULL: Final = 1.0  # difference of the averages, in ranges, that counts as full strength
_STRETCH_FULL: Final = 2.5  # standard deviations that count as full strength
_BPS: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class Signal:
    """One piece of evidence.

    Attributes:
        kind: momentum, reversion or imbalance.
        strength: in [0, 1].
        edge_bps: expected move in the signal's direction, basis points, >= 0.
    """

    kind: str
    side: Side
    strength: float
    edge_bps: float


def volatility_bps(snapshot: MarketSnapshot) -> float | None:
    """Return the average true range of a candle in basis points; None during warm-up (5 candles)."""
    return indicators.atr_bps(snapshot.candles, RANGE)


def read(snapshot: MarketSnapshot) -> tuple[Signal, ...]:
    """Return every signal the snapshot gives, strongest first (then by kind, so that the order is total)."""
    found = [signal for signal in (_momentum(snapshot), _reversion(snapshot), _imbalance(snapshot)) if signal]
    return tuple(sorted(found, key=lambda signal: (-signal.strength, signal.kind)))


def _momentum(snapshot: MarketSnapshot) -> Signal | None:
    """A fast average above a slow one; needs 8 candles."""
    values = indicators.closes(snapshot.candles)
    fast, slow = indicators.ema(values, FAST), indicators.ema(values, SLOW)
    if fast is None or slow is None:
        return None
    gap_bps = (fast - slow) / slow * _BPS
    return _signal("momentum", gap_bps, strength=abs(gap_bps) / (_range(snapshot) * _TREND_FULL), edge=abs(gap_bps))


def _reversion(snapshot: MarketSnapshot) -> Signal | None:
    """A price stretched away from its average, leaning back; needs 10 candles."""
    values = indicators.closes(snapshot.candles)
    stretch, mean = indicators.z_score(values, BAND), indicators.ema(values, BAND)
    if stretch is None or mean is None:
        return None
    distance_bps = abs(values[-1] - mean) / mean * _BPS
    return _signal("reversion", -stretch, strength=abs(stretch) / _STRETCH_FULL, edge=distance_bps)


def _imbalance(snapshot: MarketSnapshot) -> Signal | None:
    """More resting quantity on one side of the book; needs no candles."""
    lean = indicators.imbalance(snapshot.book, BOOK_LEVELS)
    if lean is None:
        return None
    return _signal("imbalance", lean, strength=abs(lean), edge=abs(lean) * _range(snapshot))


def _range(snapshot: MarketSnapshot) -> float:
    return max(volatility_bps(snapshot) or 0.0, _QUIET_RANGE_BPS)


def _signal(kind: str, direction: float, *, strength: float, edge: float) -> Signal | None:
    if direction == 0:
        return None
    return Signal(kind, Side.BUY if direction > 0 else Side.SELL, min(1.0, strength), edge)
