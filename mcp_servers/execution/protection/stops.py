"""Where a position's stop lies: pure functions of plan, entry, best price and range.

Rules kept here:

- Of all stops that are set the nearest to the market counts; the exit's floor is one of them, since a stop beyond it
  could not sell.
- A stop never moves away from the market while the position is open: ``tighter`` keeps the nearer of two.
- Levels lie on the tick, rounded towards the market.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from trading.domain.market_data import Side
from trading.domain.money import BPS, add, divide, multiply, round_down, round_up, subtract
from trading.domain.standing_exits import ExitTerms


class StopKind(StrEnum):
    """Which stop it is that counts, or that was hit."""

    FIXED = "fixed"
    TRAILING = "trailing"
    ATR = "atr"
    FLOOR = "floor"
    AGENT = "agent"
    TIME = "time"
    PORTFOLIO = "portfolio"
    BLIND = "blind"


class Stop(NamedTuple):
    """A stop at a price, quote per base."""

    price: Decimal
    kind: StopKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Tightening:
    """What an agent has asked for beyond the plan; each may only make a stop nearer.

    Attributes:
        stop_price: quote per base.
        trailing_bps: behind the best price since the entry, basis points.
        hold_until_ms: our clock.
    """

    stop_price: Decimal | None = None
    trailing_bps: Decimal | None = None
    hold_until_ms: int | None = None


#: Nothing asked for.
AS_PLANNED: Final = Tightening()


def is_nearer(side: Side, price: Decimal, other: Decimal) -> bool:
    """Return whether a stop at ``price`` is hit before one at ``other``; ``side`` is the closing side."""
    return price > other if side is Side.SELL else price < other


def is_hit(side: Side, stop: Decimal, price: Decimal) -> bool:
    """Return whether the market, at ``price``, has reached a stop of the closing ``side``."""
    return price <= stop if side is Side.SELL else price >= stop


def behind(side: Side, price: Decimal, distance: Decimal) -> Decimal:
    """Return the price that lies ``distance`` (quote, >= 0) on the losing side of ``price``."""
    return subtract(price, distance) if side is Side.SELL else add(price, distance)


def behind_bps(side: Side, price: Decimal, bps: Decimal) -> Decimal:
    """Return the price that lies ``bps`` on the losing side of ``price``."""
    return behind(side, price, divide(multiply(price, bps), BPS))


def on_tick(side: Side, price: Decimal, tick: Decimal) -> Decimal:
    """Return the tick at ``price`` or the next one towards the market."""
    return round_up(price, tick) if side is Side.SELL else round_down(price, tick)


def nearest_stop(
    terms: ExitTerms,
    *,
    entry: Decimal,
    best: Decimal,
    true_range: Decimal | None,
    asked: Tightening,
    tick: Decimal,
) -> Stop:
    """Return the stop that counts by plan, floor and what an agent has asked for, whatever held before.

    Args:
        terms: of the exit; ``terms.side`` closes.
        entry: average entry price, quote per base.
        best: the best price at which the position could have been closed since the entry.
        true_range: average true range in quote, None while it is warming up.
        asked: see :class:`Tightening`.
        tick: of the instrument.
    """
    side, plan = terms.side, terms.plan
    found = [
        Stop(behind_bps(side, entry, plan.stop_bps), StopKind.FIXED),
        Stop(terms.floor, StopKind.FLOOR),
    ]
    if plan.trailing_bps is not None:
        found.append(Stop(behind_bps(side, best, plan.trailing_bps), StopKind.TRAILING))
    if plan.atr_multiple is not None and true_range is not None:
        found.append(Stop(behind(side, best, multiply(true_range, plan.atr_multiple)), StopKind.ATR))
    if asked.stop_price is not None:
        found.append(Stop(asked.stop_price, StopKind.AGENT))
    if asked.trailing_bps is not None:
        found.append(Stop(behind_bps(side, best, asked.trailing_bps), StopKind.AGENT))
    nearest = found[0]
    for stop in found[1:]:
        if is_nearer(side, stop.price, nearest.price):
            nearest = stop
    return Stop(on_tick(side, nearest.price, tick), nearest.kind)


def tighter(side: Side, held: Stop | None, found: Stop) -> Stop:
    """Return the nearer of the stop that held so far and the one found now."""
    return found if held is None or is_nearer(side, found.price, held.price) else held


def deadline_ms(opened_ms: int, hold_max_ms: int | None, asked: Tightening) -> int | None:
    """Return when a position has been held for long enough, by our clock; None if no time was set."""
    ends = [opened_ms + hold_max_ms] if hold_max_ms is not None else []
    if asked.hold_until_ms is not None:
        ends.append(asked.hold_until_ms)
    return min(ends, default=None)
