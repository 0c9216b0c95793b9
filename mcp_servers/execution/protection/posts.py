"""One instrument as the stop-loss manager watches it: its guard, and what of it lives in memory only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from decimal import Decimal

from mcp_servers.execution.protection.bars import TrueRange
from mcp_servers.execution.protection.guards import Guard
from mcp_servers.execution.protection.stops import AS_PLANNED, StopKind, deadline_ms, is_hit, nearest_stop
from trading.domain.identifiers import AccountId, OrderId
from trading.domain.instruments import Instrument
from trading.domain.market_data import Side
from trading.domain.positions import Position
from trading.domain.standing_exits import StandingExit, StopPlan


@dataclass(slots=True, eq=False)
class Post:
    """What is known of the protection of one instrument's position.

    Attributes:
        guard: None before the first position.
        saved, saved_ms: what the ledger holds, and since when.
        lock: held by whoever sends or withdraws protective orders here: never two at a time.
        resting: the protective order that is open at the venue as far as is known.
        ranges: built from all prices seen while an exit asks for it, position or not.
        fitted_ms: when the resting stop was placed last.
        refused_ms: until when nothing rests, since the venue refused it; 0 for no such time.
        tried_ms: when a close was last tried and did not get it closed; 0 for never.
        blind_ms: since when there is no price; None while there is one.
    """

    instrument: Instrument
    guard: Guard | None = None
    saved: Guard | None = None
    saved_ms: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    resting: OrderId | None = None
    ranges: TrueRange | None = None
    fitted_ms: int = 0
    refused_ms: int = 0
    tried_ms: int = 0
    blind_ms: int | None = None

    @property
    def open_guard(self) -> Guard | None:
        """The guard of a position that is open."""
        return self.guard if self.guard is not None and self.guard.is_open else None

    def follow(self, position: Position | None, account_id: AccountId, now_ms: int) -> Guard | None:
        """Bring the guard in line with the position: a closed one ends it, a new one starts anew."""
        quantity = Decimal(0) if position is None else position.quantity
        side = Side.SELL if quantity > 0 else Side.BUY
        guard = self.open_guard
        if guard is not None and (not quantity or guard.side is not side):
            self.guard = guard.ended()
            self.refused_ms = self.tried_ms = 0
            guard = None
        if guard is None and quantity:
            last = self.guard
            guard = self.guard = Guard(
                account_id=account_id,
                instrument_id=self.instrument.id,
                side=side,
                opened_ms=now_ms,
                exit_id=None if last is None else last.exit_id,
                number=0 if last is None else last.number,
            )
        return guard

    def measure(self, plan: StopPlan) -> None:
        """Begin to measure the range that a plan asks for, unless that is done already."""
        if plan.atr_multiple is None:
            return
        known = self.ranges
        if known is None or (known.bars, known.bar_ms) != (plan.atr_bars, plan.atr_bar_ms):
            self.ranges = TrueRange(plan.atr_bars, plan.atr_bar_ms)

    def restop(self, found: StandingExit, entry: Decimal) -> None:
        """Move the stop to where plan, range and best price put it now, if that is nearer."""
        guard = self.open_guard
        if guard is None or guard.side is not found.terms.side:
            return
        stop = nearest_stop(
            found.terms,
            entry=entry,
            best=entry if guard.best is None else guard.best,
            true_range=None if self.ranges is None else self.ranges.value,
            asked=guard.asked,
            tick=self.instrument.price_tick,
        )
        self.guard = guard.with_stop(stop)

    def hit_by(self, price: Decimal | None, found: StandingExit, now_ms: int) -> StopKind | None:
        """Return the stop that is hit, None while none is. The portfolio's is not known here."""
        guard = self.open_guard
        if guard is None:
            return None
        if guard.hit is not None:
            return guard.hit
        if price is not None and guard.stop is not None and is_hit(guard.side, guard.stop.price, price):
            return guard.stop.kind
        end = deadline_ms(guard.opened_ms, found.terms.plan.hold_max_ms, guard.asked)
        return StopKind.TIME if end is not None and now_ms >= end else None

    def is_agents_alone(self, found: StandingExit, entry: Decimal, price: Decimal, now_ms: int) -> bool:
        """Return whether what was hit is what an agent has asked for, and no stop of the plan is hit at ``price``."""
        guard, plan = self.open_guard, found.terms.plan
        if guard is None or guard.hit not in (StopKind.AGENT, StopKind.TIME):
            return False
        end = deadline_ms(guard.opened_ms, plan.hold_max_ms, AS_PLANNED)
        planned = nearest_stop(
            found.terms,
            entry=entry,
            best=entry if guard.best is None else guard.best,
            true_range=None if self.ranges is None else self.ranges.value,
            asked=AS_PLANNED,
            tick=self.instrument.price_tick,
        )
        return not is_hit(guard.side, planned.price, price) and (end is None or now_ms < end)

    def is_blind_for(self, limit_ms: int | None, now_ms: int) -> bool:
        """Return whether there has been no price for so long that the position is to be closed without one."""
        return limit_ms is not None and self.blind_ms is not None and now_ms - self.blind_ms >= limit_ms

    def mark_hit(self, kind: StopKind) -> None:
        """From now on the position is closed, whatever the price does."""
        guard = self.open_guard
        if guard is not None and guard.hit is None:
            self.guard = replace(guard, hit=kind)

    def sent(self, written: Guard) -> None:
        """Take over the slice that ``written``, as the ledger holds it now, has used; prices came in meanwhile."""
        self.saved = written
        if self.guard is not None:
            self.guard = replace(self.guard, exit_id=written.exit_id, number=written.number)

    def is_unsaved(self, now_ms: int, every_ms: int) -> bool:
        """Return whether the guard must be written down now: at once, but for a stop that only moves."""
        guard, saved = self.guard, self.saved
        if guard is None or guard == saved:
            return False
        if saved is None or now_ms - self.saved_ms >= every_ms:
            return True
        moved = replace(saved, best=guard.best, stop_price=guard.stop_price, kind=guard.kind)
        return moved != guard
