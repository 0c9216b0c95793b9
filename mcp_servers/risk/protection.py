"""How positions are protected: what the limits ask for, and the terms of the exit that is signed with an entry.

Rules kept here:

- The exit closes what the entry opens: the other side, however the market moves, down to a floor far below it.
- The floor is rounded to the tick toward the market, so it never reaches further than the limits say.
- Plans are made once for each set of limits, terms once for each moment and price; orders of one batch share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Final, Self, TypeVar

from pydantic import Field, model_validator

from trading.adapters.config import SectionModel
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, bps_of, round_down, round_up, subtract
from trading.domain.standing_exits import ExitTerms, StopPlan

from .values import Amount, Bps, Millis, Whole

T = TypeVar("T", Decimal, int)

#: Bars an average true range may be taken over, and how long one of them may last.
_BARS: Final = Field(ge=2, le=1_000)
_BAR_MS: Final = Field(ge=1_000, le=86_400_000)


class ProtectionLimits(SectionModel):
    """How positions in one symbol are protected; of all stops that are set the nearest counts.

    Attributes:
        stop_bps: fixed stop, at most so far beyond the average entry price on the losing side.
        trailing_bps: at most so far behind the best price since the entry; None sets no such stop.
        atr_multiple: at most so many average true ranges behind the best price since the entry; None sets no such stop.
        atr_bars, atr_bar_ms: over how many bars of which length the range is averaged.
        hold_max_ms: the longest time a position may be held; None sets no bound.
        floor_bps: how far from the mid, on its losing side, an order by the exit may trade at worst.
    """

    stop_bps: Bps = Decimal(500)
    trailing_bps: Bps | None = None
    atr_multiple: Amount | None = None
    atr_bars: Annotated[Whole, _BARS] = 14
    atr_bar_ms: Annotated[Whole, _BAR_MS] = 60_000
    hold_max_ms: Millis | None = None
    floor_bps: Bps = Decimal(5_000)

    @model_validator(mode="after")
    def _stops_above_the_floor(self) -> Self:
        for name in ("stop_bps", "trailing_bps"):
            distance = getattr(self, name)
            if distance is not None and distance >= self.floor_bps:
                raise ValueError(f"{name} must be smaller than floor_bps: a stop below the floor could not sell")
        return self


def plan_of(protection: ProtectionLimits, portfolio_loss_pct: Decimal | None) -> StopPlan:
    """Return the plan that these limits ask for.

    Args:
        protection: limits of the symbol.
        portfolio_loss_pct: the desk's own, percent of equity; None closes nothing.
    """
    return StopPlan(
        stop_bps=protection.stop_bps,
        trailing_bps=protection.trailing_bps,
        atr_multiple=protection.atr_multiple,
        atr_bars=protection.atr_bars,
        atr_bar_ms=protection.atr_bar_ms,
        hold_max_ms=protection.hold_max_ms,
        portfolio_loss_pct=portfolio_loss_pct,
    )


@lru_cache(maxsize=1_024)
def floor_of(side: Side, mid: Decimal, floor_bps: Decimal, tick: Decimal) -> Decimal:
    """Return the worst price of an exit on ``side``, quote per base on the tick: a sale's lowest, a purchase's highest.

    Args:
        side: the closing side.
        mid: the market now.
        floor_bps: how far beyond it.
        tick: the instrument's.
    """
    reach = bps_of(mid, floor_bps)
    return round_up(subtract(mid, reach), tick) if side is Side.SELL else round_down(add(mid, reach), tick)


@lru_cache(maxsize=1_024)
def exit_terms(
    entry: Side, mid: Decimal, floor_bps: Decimal, tick: Decimal, plan: StopPlan, expires_ms: int
) -> ExitTerms:
    """Return the terms of the exit that goes with an entry.

    Args:
        entry: the side that opens the position; the exit has the other one.
        mid, floor_bps, tick: see :func:`floor_of`.
        plan: how the position is protected.
        expires_ms: risk's clock, exclusive.
    """
    side = entry.opposite
    return ExitTerms(side=side, floor=floor_of(side, mid, floor_bps, tick), plan=plan, expires_ms=expires_ms)


@lru_cache(maxsize=256)
def tightest(*plans: StopPlan) -> StopPlan:
    """Return the plan that is as tight as every one of ``plans`` (at least one)."""
    ranged = [plan for plan in plans if plan.atr_multiple is not None]
    base = min(ranged, key=lambda p: (p.atr_multiple or ZERO, p.atr_bars, p.atr_bar_ms)) if ranged else plans[0]
    return replace(
        base,
        stop_bps=min(plan.stop_bps for plan in plans),
        trailing_bps=_least([plan.trailing_bps for plan in plans]),
        hold_max_ms=_least([plan.hold_max_ms for plan in plans]),
        portfolio_loss_pct=_least([plan.portfolio_loss_pct for plan in plans]),
    )


def is_tighter(wanted: StopPlan, held: StopPlan) -> bool:
    """Return whether any stop of ``wanted`` acts sooner than that of ``held``, or is measured over other bars."""
    if wanted == held:
        return False
    both_ranged = wanted.atr_multiple is not None and held.atr_multiple is not None
    if both_ranged and (wanted.atr_bars, wanted.atr_bar_ms) != (held.atr_bars, held.atr_bar_ms):
        return True
    return any(
        _is_less(getattr(wanted, name), getattr(held, name))
        for name in ("stop_bps", "trailing_bps", "atr_multiple", "hold_max_ms", "portfolio_loss_pct")
    )


def _least(values: Sequence[T | None]) -> T | None:
    """Return the smallest that is set; None sets no bound."""
    return min([value for value in values if value is not None], default=None)


def _is_less(wanted: Decimal | int | None, held: Decimal | int | None) -> bool:
    return wanted is not None and (held is None or wanted < held)
