"""Watches market, execution and denials, and trips the breaker with the first event that reaches a limit.

Rules kept here:

- Act first: the trip is in memory and announced before anything is written or anybody is told.
- Every update of the market is looked at, and every event of execution; other tasks get a turn every few updates, so a
  flood makes this late and never starves the sign-off.
- What was written while risk was away is looked at before the desk may trade again.
- It only ever restricts. Resuming is the operator's; what was counted towards the resumed scope begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from trading.domain.approvals import TradingState
from trading.domain.denials import RiskDenial
from trading.domain.events import (
    AlarmRaised,
    EventEnvelope,
    OrderInitialized,
    OrderRejected,
    ReconciliationCompleted,
)
from trading.domain.identifiers import AgentId, ApprovalId, Currency
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.trading_states import ACCOUNT, AGENT, SYMBOL
from trading.ports.clock import Clock

from .breaker import Breaker
from .context import Frame
from .limits import RiskLimits
from .memory import Memory
from .portfolio import Changes, Portfolio
from .triggers import Finding, MarketTriggers, OrderTriggers, Trigger, money

log = logging.getLogger("grekko.risk")

BY: Final = "policy"
UNAPPROVED: Final = "ORDER_WITHOUT_APPROVAL"
_YIELD_EVERY: Final = 16

MarketUpdate = OrderBook | TradePrint


class Surveillance:
    """Feeds the triggers and acts on what they find.

    Args:
        limits: gives the limits in force.
        instruments: what the desk trades.
        data_of: whose market data prices an instrument.
        parent_of: the decision or request that an approval belongs to, empty when it is not known.
    """

    def __init__(
        self,
        *,
        breaker: Breaker,
        portfolio: Portfolio,
        memory: Memory,
        clock: Clock,
        limits: Callable[[], RiskLimits],
        instruments: Sequence[InstrumentId],
        data_of: Callable[[InstrumentId], InstrumentId],
        parent_of: Callable[[ApprovalId], str],
    ) -> None:
        self._breaker = breaker
        self._portfolio = portfolio
        self._memory = memory
        self._clock = clock
        self._limits = limits
        self._parent_of = parent_of
        self._orders = OrderTriggers()
        self._markets = {each: MarketTriggers(each.symbol) for each in instruments}
        self._traded: dict[InstrumentId, list[InstrumentId]] = {}
        for each in instruments:
            self._traded.setdefault(data_of(each), []).append(each)
        self._marks: dict[Currency, Decimal] = {}
        self._usable_ms = dict.fromkeys(instruments, clock.now_ms())
        self._acts: set[asyncio.Task[None]] = set()

    # -- the market -------------------------------------------------------------------------------------------------

    async def run(self, updates: AsyncIterator[MarketUpdate]) -> None:
        """Take updates until they end."""
        count = 0
        async for update in updates:
            await self.take(update)
            count += 1
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def take(self, update: MarketUpdate) -> None:
        """Look at one update of a data instrument."""
        now_ms, limits = self._clock.now_ms(), self._limits()
        for instrument_id in self._traded.get(update.instrument_id, ()):
            found = self._markets[instrument_id].see(update, limits.breaker, now_ms)
            if found is not None:
                await self._act(found)
            if isinstance(update, OrderBook) and self._priced(instrument_id, update, limits, now_ms):
                await self._act_on_money(limits, now_ms)

    def _priced(self, instrument_id: InstrumentId, book: OrderBook, limits: RiskLimits, now_ms: int) -> bool:
        mid = book.mid
        base, _, quote = instrument_id.symbol.partition("/")
        if mid is None or quote != self._portfolio.quote or book.age_ms(now_ms) > limits.market_max_age_ms:
            return False
        self._marks[Currency(base)] = mid
        return True

    async def _act_on_money(self, limits: RiskLimits, now_ms: int) -> None:
        result = self._portfolio.trading_result(self._marks)
        down = None
        if limits.breaker.drawdown_pct is not None:
            down = self._memory.drawdown.of(result, self._portfolio.equity(self._marks))
        found = money(self._memory.daily.of(result, now_ms), down, limits.daily_loss_max, limits.breaker)
        if found is not None:
            await self._act(found)

    # -- execution --------------------------------------------------------------------------------------------------

    async def executed(self, events: Iterable[EventEnvelope], changes: Changes) -> None:
        """Look at execution events that the portfolio has taken in, and at the alarms they raised."""
        limits = self._limits()
        await self.alarmed(changes.alarms)
        for envelope in events:
            for found in self._of_event(envelope, limits):
                await self._act(found)
        for agent_id in self._portfolio.activity.take_losers():
            await self._act_on_streak(agent_id, limits)
        if self._marks:
            await self._act_on_money(limits, self._clock.now_ms())

    async def alarmed(self, alarms: Iterable[AlarmRaised]) -> None:
        """Look at alarms of orders for which there is no approval."""
        for alarm in alarms:
            if alarm.code == UNAPPROVED:
                found = self._orders.unapproved(alarm.subject, self._limits().breaker)
                if found is not None:
                    await self._act(found)

    def _of_event(self, envelope: EventEnvelope, limits: RiskLimits) -> list[Finding]:
        at_ms, bounds = envelope.timestamp_ms, limits.breaker
        match envelope.payload:
            case OrderInitialized() as event:
                slice_ = event.exit_slice
                parent = self._parent_of(event.approval_id) if slice_ is None else str(slice_.exit_id)
                return self._orders.opened(event, parent, bounds, at_ms)
            case OrderRejected():
                found = self._orders.rejected(bounds, at_ms)
                return [] if found is None else [found]
            case ReconciliationCompleted(differences=differences, account_id=account_id):
                if bounds.differences is None or len(differences) < bounds.differences:
                    return []
                text = f"ledger and venue differ in {len(differences)} points: {differences[0][:120]}"
                return [Finding(Trigger.RECONCILIATION, f"{ACCOUNT}:{account_id}", TradingState.REDUCING, text)]
            case _:
                return []

    async def _act_on_streak(self, agent_id: AgentId, limits: RiskLimits) -> None:
        most, now_ms = limits.breaker.loss_streak, self._clock.now_ms()
        losses = self._portfolio.activity.losses(agent_id, now_ms, limits.loss_window_ms)
        if most is not None and losses >= most:
            text = f"{agent_id} lost {losses} times in a row, the limit is {most}"
            await self._act(Finding(Trigger.LOSS_STREAK, f"{AGENT}:{agent_id}", TradingState.REDUCING, text))

    # -- sign-off and time ------------------------------------------------------------------------------------------

    def denied(self, denials: Iterable[RiskDenial]) -> None:
        """Count denials; acting on them does not hold up the answer."""
        bounds = self._limits().breaker
        for denial in denials:
            found = self._orders.denied(denial, denial.agent_id, bounds, denial.denied_ms)
            if found is not None:
                task = asyncio.create_task(self._act(found))
                self._acts.add(task)
                task.add_done_callback(self._acts.discard)

    async def look(self, frame: Frame) -> None:
        """Look at what only time shows, about twice a second: silence of the market, and the day's result."""
        self._marks = dict(frame.marks)
        await self._act_on_money(frame.limits, frame.now_ms)
        most = frame.limits.breaker.stale_ms
        for instrument_id, market in frame.markets.items():
            if not market.problem:
                self._usable_ms[instrument_id] = frame.now_ms
            silent_ms = frame.now_ms - self._usable_ms[instrument_id]
            if most is not None and silent_ms >= most and self._is_engaged(instrument_id):
                text = f"no usable book for {silent_ms} ms with a position or an open order: {market.problem}"
                scope = f"{SYMBOL}:{instrument_id.symbol}"
                await self._act(Finding(Trigger.STALE_FEED, scope, TradingState.REDUCING, text))

    def _is_engaged(self, instrument_id: InstrumentId) -> bool:
        exposure = self._portfolio.reservations.exposure(instrument_id)
        return bool(self._portfolio.held(instrument_id) or exposure.buy_open or exposure.sell_open)

    def rearm(self, scope: str) -> None:
        """Begin anew what counts towards a scope that the operator has resumed."""
        self._orders.rearm(scope)
        now_ms = self._clock.now_ms()
        for instrument_id, triggers in self._markets.items():
            if scope == f"{SYMBOL}:{instrument_id.symbol}":
                triggers.rearm()
                self._usable_ms[instrument_id] = now_ms

    async def settle(self) -> None:
        """Wait for what is being acted on."""
        if self._acts:
            await asyncio.wait(set(self._acts))

    async def _act(self, found: Finding) -> None:
        await self._breaker.trip(found.reason, BY, found.state, scope=found.scope, alarm=found.trigger.value)


def approvals_parent(rows: Mapping[str, Mapping[str, object]]) -> Callable[[ApprovalId], str]:
    """Return who tells an approval's decision, or its request where there is none."""

    def parent_of(approval_id: ApprovalId) -> str:
        row = rows.get(approval_id)
        return "" if row is None else str(row["decision_id"] or row["request_id"])

    return parent_of
