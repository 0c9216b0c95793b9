"""The exit that risk signs with every entry, so that a position can be closed when nobody else is alive.

A standing exit is a permission to *close*, held by execution. It is bound to neither epoch nor heartbeat: with risk,
the bus, the coordinator and the feed gone, the stop-loss still acts. What it can do is bounded instead: one account,
one instrument, the closing side, never more than the position less what already reduces it, never beyond its floor.

Rules kept here:

- It is used in numbered slices. A slice names its order by a UUID that follows from exit and number, so that a slice
  makes at most one order, whatever crashes in between.
- It may only be tightened by those who hold it: the plan says how far a stop may lie at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid5

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, KeyId, Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode

STANDING_EXIT_PAYLOAD_TYPE: Final = "application/vnd.grekko.standing-exit+json;v=1"

#: The shortest life that risk may give an exit: half of it is well over the hour by which a renewal must outlive the
#: exit that execution holds before execution writes it down.
EXIT_LIFE_MIN_MS: Final = 4 * 3_600_000
#: The longest life of a standing exit; execution refuses one that claims more.
EXIT_LIFE_MAX_MS: Final = 7 * 86_400_000

_SLICES: Final = UUID("0d0f8a52-4a8e-5f0c-9a3b-5b1f2f0a7c61")

#: In whose name protective orders are written down. No agent may be called so.
PROTECTION: Final = AgentId("protection")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPlan:
    """How a position is protected; the nearest of all stops that are set counts. None means that there is no such stop.

    Attributes:
        stop_bps: fixed: at most so far beyond the average entry price on the losing side, basis points, > 0.
        trailing_bps: at most so far behind the best price since the entry, basis points.
        atr_multiple: at most so many average true ranges behind the best price since the entry.
        atr_bars, atr_bar_ms: over how many bars of which length the range is averaged.
        hold_max_ms: the longest time a position may be held.
        portfolio_loss_pct: every position is closed once equity lies so far below its level at 00:00 UTC, percent.
    """

    stop_bps: Decimal
    trailing_bps: Decimal | None = None
    atr_multiple: Decimal | None = None
    atr_bars: int = 14
    atr_bar_ms: int = 60_000
    hold_max_ms: int | None = None
    portfolio_loss_pct: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitTerms:
    """What an exit may do; signed inside the approval of the entry, or alone when it is renewed.

    Attributes:
        side: the closing side.
        floor: quote per base, the worst price of any of its orders: the lowest for a sale, the highest for a purchase.
        plan: how the position is protected.
        expires_ms: risk's clock, exclusive; renewed long before while the position is open.
    """

    side: Side
    floor: Decimal
    plan: StopPlan
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingExit:
    """A signed permission to close one position, whoever is alive.

    Attributes:
        exit_id: the approval it came with, or an id of its own when it was renewed.
        issued_ms: risk's clock.
    """

    exit_id: ApprovalId
    account_id: AccountId
    mode: Mode
    venue: Venue
    symbol: Symbol
    terms: ExitTerms
    policy_version: int
    issued_ms: int
    key_id: KeyId

    @property
    def instrument_id(self) -> InstrumentId:
        """Venue and symbol."""
        return InstrumentId(self.venue, self.symbol)

    def is_beyond(self, price: Decimal) -> bool:
        """Return whether a price is worse than the floor."""
        return price < self.terms.floor if self.terms.side is Side.SELL else price > self.terms.floor


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitSlice:
    """Which part of which exit an order uses up. ``number`` starts at 1 and is never used twice."""

    exit_id: ApprovalId
    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InvalidValue("slices are numbered from 1", code="INVALID_SLICE")

    @property
    def approval_id(self) -> ApprovalId:
        """The name of the slice where an approval's id is expected: fates, orders and client order ids."""
        return ApprovalId(str(uuid5(_SLICES, f"{self.exit_id}:{self.number}")))
