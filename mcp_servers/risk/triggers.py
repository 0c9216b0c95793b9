"""What trips the breaker: each trigger looks at one event and says at once whether that was one too many.

Rules kept here:

- A trigger fires with the event that reaches its limit, not with a later one and not on a timer; only silence is timed.
- What is counted begins anew when the operator resumes the scope, and at a start.
- A limit of None switches its trigger off.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from trading.domain.approvals import TradingState
from trading.domain.denials import RiskDenial, Rule
from trading.domain.events import OrderInitialized
from trading.domain.identifiers import AgentId, Symbol
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.money import ZERO, multiply, plain
from trading.domain.standing_exits import PROTECTION
from trading.domain.trading_states import AGENT, DESK, SYMBOL

from .breaker_limits import BreakerLimits
from .unrest import MidRange
from .windows import Counted, Keyed, Summed


class Trigger(StrEnum):
    """Why the breaker tripped by itself; the code of the alarm. Codes never change meaning."""

    DAILY_LOSS = "BREAKER_DAILY_LOSS"
    DRAWDOWN = "BREAKER_DRAWDOWN"
    LOSS_STREAK = "BREAKER_LOSS_STREAK"
    SPREAD = "BREAKER_SPREAD"
    RANGE = "BREAKER_RANGE"
    STALE_FEED = "BREAKER_STALE_FEED"
    REJECTIONS = "BREAKER_REJECTIONS"
    DENIALS = "BREAKER_DENIALS"
    ORDERS = "BREAKER_ORDERS"
    ORDER_CHILDREN = "BREAKER_ORDER_CHILDREN"
    ORDER_VALUE = "BREAKER_ORDER_VALUE"
    NO_APPROVAL = "BREAKER_ORDER_WITHOUT_APPROVAL"
    RECONCILIATION = "BREAKER_RECONCILIATION"


class Finding(NamedTuple):
    """A limit was reached, and what follows from it."""

    trigger: Trigger
    scope: str
    state: TradingState
    reason: str


def money(
    result: Decimal | None, drawdown_pct: Decimal | None, loss_max: Decimal, limits: BreakerLimits
) -> Finding | None:
    """Judge the day's result and the drawdown; the strictest finding counts.

    Args:
        result: quote earned since 00:00 UTC, None when unknown.
        drawdown_pct: percent below the peak, None when unknown.
        loss_max: quote that may be lost in a day.
    """
    if result is not None and limits.daily_loss_halt is not None and result <= -limits.daily_loss_halt:
        text = f"daily loss {plain(-result)} reached the hard limit {plain(limits.daily_loss_halt)}"
        return Finding(Trigger.DAILY_LOSS, DESK, TradingState.HALTED, text)
    if result is not None and result <= -loss_max:
        text = f"daily loss {plain(-result)} reached the limit {plain(loss_max)}"
        return Finding(Trigger.DAILY_LOSS, DESK, TradingState.REDUCING, text)
    if drawdown_pct is not None and limits.drawdown_pct is not None and drawdown_pct >= limits.drawdown_pct:
        text = f"drawdown {drawdown_pct:.4f} % reached the limit {plain(limits.drawdown_pct)} %"
        return Finding(Trigger.DRAWDOWN, DESK, TradingState.REDUCING, text)
    return None


class MarketTriggers:
    """Spread and range of one symbol, every update looked at, wicks and public prints included."""

    def __init__(self, symbol: Symbol) -> None:
        self._scope = f"{SYMBOL}:{symbol}"
        self._range = MidRange()

    def rearm(self) -> None:
        """Begin the range anew."""
        self._range = MidRange()

    def see(self, update: OrderBook | TradePrint, limits: BreakerLimits, now_ms: int) -> Finding | None:
        """Take one update."""
        if isinstance(update, TradePrint):
            return self._moved(update.price, limits, now_ms)
        mid = update.mid
        if mid is None:
            return None
        spread = update.spread_bps
        if limits.spread_bps is not None and spread is not None and spread >= limits.spread_bps:
            text = f"spread {spread:.2f} bps reached the limit {plain(limits.spread_bps)} bps"
            return self._found(Trigger.SPREAD, text)
        return self._moved(mid, limits, now_ms)

    def _moved(self, price: Decimal, limits: BreakerLimits, now_ms: int) -> Finding | None:
        if limits.range_bps is None:
            return None
        self._range.observe(price, now_ms, limits.range_window_ms)
        moved = self._range.move_bps(now_ms, limits.range_window_ms)
        if moved is None or moved < limits.range_bps:
            return None
        seconds = limits.range_window_ms / 1_000
        text = f"price ranged {moved:.2f} bps within {seconds:g} s, the limit is {plain(limits.range_bps)} bps"
        return self._found(Trigger.RANGE, text)

    def _found(self, trigger: Trigger, text: str) -> Finding:
        return Finding(trigger, self._scope, TradingState.REDUCING, text)


class OrderTriggers:
    """What execution opens and the venue refuses, and what risk denies: counted, whoever asked."""

    def __init__(self) -> None:
        self._orders = Counted()
        self._value = Summed()
        self._rejections = Counted()
        self._agents = Keyed(Counted)
        self._children = Keyed(Counted)
        self._denials = Keyed(Counted)
        self._foreign = 0

    def rearm(self, scope: str) -> None:
        """Begin anew what counts towards a scope."""
        kind, _, name = scope.partition(":")
        if kind == AGENT:
            self._agents.forget(name)
            self._denials.forget(name)
        elif scope == DESK:
            agents, denials = self._agents, self._denials
            self.__init__()
            self._agents, self._denials = agents, denials

    def opened(self, event: OrderInitialized, parent: str, limits: BreakerLimits, at_ms: int) -> list[Finding]:
        """Count an order that execution opened; of stops only the number, since what they send only closes.

        Args:
            parent: the decision or request that it belongs to; empty when there is none.
        """
        found: list[Finding] = []
        window = limits.window_ms
        seconds = f"{window / 1_000:g} s"
        if limits.orders is not None and self._orders.add(at_ms, limits.orders, window):
            found.append(_halt(Trigger.ORDERS, f"execution opened {limits.orders} orders within {seconds}"))
        children = limits.order_children if parent else None
        if children is not None and self._children[parent].add(at_ms, children, window):
            text = f"execution opened {children} orders of {parent[:64]} within {seconds}"
            found.append(_halt(Trigger.ORDER_CHILDREN, text))
        if event.agent_id == PROTECTION:
            return found  # a stop that follows the price is opened anew, each time for the whole of what it closes
        terms = event.terms
        value = multiply(terms.quantity, terms.limit_price or terms.stop_price or ZERO)
        if limits.order_value is not None and self._value.add(value, at_ms, limits.order_value, window):
            text = f"execution opened orders of {self._value.total:.2f} quote within {seconds}"
            found.append(_halt(Trigger.ORDER_VALUE, text))
        most = limits.agent_orders
        if most is not None and self._agents[event.agent_id].add(at_ms, most, window):
            text = f"execution opened {most} orders of {event.agent_id} within {seconds}"
            found.append(_halt(Trigger.ORDERS, text, f"{AGENT}:{event.agent_id}"))
        return found

    def unapproved(self, order_id: str, limits: BreakerLimits) -> Finding | None:
        """Count an order for which risk holds no approval."""
        self._foreign += 1
        if limits.orders_without_approval is None or self._foreign < limits.orders_without_approval:
            return None
        return _halt(Trigger.NO_APPROVAL, f"execution has the order {order_id[:64]} for which risk holds no approval")

    def rejected(self, limits: BreakerLimits, at_ms: int) -> Finding | None:
        """Count an order that the venue refused."""
        if limits.rejections is None or not self._rejections.add(at_ms, limits.rejections, limits.window_ms):
            return None
        text = f"the venue refused {limits.rejections} orders within {limits.window_ms / 1_000:g} s"
        return _halt(Trigger.REJECTIONS, text)

    def denied(self, denial: RiskDenial, agent_id: AgentId, limits: BreakerLimits, at_ms: int) -> Finding | None:
        """Count a denial; one because trading is restricted says nothing about the agent."""
        if limits.denials is None or any(failure.rule is Rule.TRADING_STATE for failure in denial.failures):
            return None
        if not self._denials[agent_id].add(at_ms, limits.denials, limits.window_ms):
            return None
        text = f"{limits.denials} orders of {agent_id} were denied within {limits.window_ms / 1_000:g} s"
        return _halt(Trigger.DENIALS, text, f"{AGENT}:{agent_id}")


def _halt(trigger: Trigger, text: str, scope: str = DESK) -> Finding:
    return Finding(trigger, scope, TradingState.HALTED, text)
