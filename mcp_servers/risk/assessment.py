"""Check, reserve, sign: one order at a time, with nothing waiting in between.

Rules kept here:

- From reading the frame to reserving there is no await, so no two orders can pass on the same headroom.
- What is signed is exact: the order as it will be sent, after rounding, with its band, cost and expiry.
- The signature is made here, one for all orders of one step, and leaves only after the commit (service.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from trading.adapters.signing import Envelope, seal_together
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval, ApprovedOrder
from trading.domain.denials import RiskDenial, RuleResult
from trading.domain.identifiers import AgentId, ApprovalId, DecisionId, RequestId, client_order_id_for
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import divide, multiply
from trading.domain.pending import PendingHuman
from trading.domain.proposals import OrderIntent
from trading.domain.standing_exits import ExitTerms
from trading.ports.clock import IdFactory
from trading.ports.signing import Signer

from .authority import Word
from .context import Frame, OrderContext
from .nearest import LegalSearch
from .payload import approval_payload
from .pending import PendingBook, Question, capped, may_wait
from .policies.pipeline import RULES, RuleBook, RuleFunction, Verdict
from .pricing import build_context, signed_terms
from .protection import exit_terms, tightest
from .rates import OrderPace, OrderRates, RecentOrders
from .reservations import Reservation, ReservationBook, resting_price
from .standing_exits import plan_for


@dataclass(frozen=True, slots=True)
class Approved:
    """An approval and its envelope; may not leave the process before its commit.

    Attributes:
        payload: the signed bytes inside the envelope.
        content: what a repetition is recognised by; empty when it was read back from the ledger.
        overridden: rules that failed and that the operator overrode.
    """

    approval: Approval
    envelope: str
    payload: bytes
    content: tuple[object, ...] = ()
    overridden: tuple[RuleResult, ...] = ()


Outcome = Approved | RiskDenial | PendingHuman


class _Passed(NamedTuple):
    """An order that was reserved for and not signed yet."""

    approval: Approval
    content: tuple[object, ...]
    overridden: tuple[RuleResult, ...]


class Wanted(NamedTuple):
    """One order to be judged.

    Attributes:
        reason: the agent's own words, shown to the operator if the order has to wait for one.
    """

    intent: OrderIntent
    agent_id: AgentId
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """On whose behalf orders are judged, and what stands behind them.

    Attributes:
        decision_id: the decision named, verified or not.
        problem: why it does not hold; empty when it does or none was named.
        expires_ms: the decision's own expiry; None without one.
        principal: who asks.
        word: the operator's, when it was given.
    """

    request_id: RequestId
    principal: str = ""
    word: Word | None = None
    decision_id: DecisionId | None = None
    problem: str = ""
    expires_ms: int | None = None

    @property
    def decided(self) -> bool:
        """Whether a verified decision stands behind the orders."""
        return self.decision_id is not None and not self.problem


class Assessor:
    """Judges orders against a frame and reserves for those that pass."""

    def __init__(
        self,
        signer: Signer,
        ids: IdFactory,
        rates: OrderRates,
        recent: RecentOrders,
        rules: Sequence[RuleFunction] = RULES,
        pending: PendingBook | None = None,
    ) -> None:
        self._signer = signer
        self._ids = ids
        self._rates = rates
        self._recent = recent
        self._rules = RuleBook(rules)
        self._pending = pending

    def follow(self, pace: OrderPace, duplicate_window_ms: int, now_ms: int) -> None:
        """Count under other limits from now on; what was counted stays counted."""
        self._rates.retune(pace, now_ms)
        self._recent.window_ms = duplicate_window_ms

    def assess(self, frame: Frame, orders: Iterable[Wanted], ask: Ask) -> list[Outcome]:
        """Judge orders in turn, reserve for those that pass, and sign these together; all of them or none."""
        judged: list[_Passed | RiskDenial | PendingHuman] = []
        try:
            for order in orders:
                judged.append(self._judge(frame, order, ask))  # noqa: PERF401  kept one by one, to be taken back
            return self._sign(judged)
        except BaseException:
            self.take_back(frame.reservations, judged)
            raise

    def _sign(self, judged: list[_Passed | RiskDenial | PendingHuman]) -> list[Outcome]:
        payloads = [approval_payload(item.approval) for item in judged if isinstance(item, _Passed)]
        envelopes = iter(seal_together(payloads, APPROVAL_PAYLOAD_TYPE, self._signer))
        return [_signed(item, next(envelopes)) if isinstance(item, _Passed) else item for item in judged]

    def _judge(self, frame: Frame, order: Wanted, ask: Ask) -> _Passed | RiskDenial | PendingHuman:
        intent, agent_id, reason = order
        content = _content(agent_id, intent)
        context = build_context(
            frame,
            intent,
            agent_id,
            decided=ask.decided,
            decision_problem=ask.problem,
            # On the operator's word it is judged again: it was counted when its agent asked.
            rate_ok=ask.word is not None
            or self._rates.take(agent_id, frame.now_ms, InstrumentId(intent.venue, intent.symbol)),
            duplicate_ms=self._recent.age_ms(content, frame.now_ms),
            word=ask.word,
        )
        overridden: tuple[RuleResult, ...] = ()
        if not self._rules.passes(context) and not (verdict := self._rules.evaluate(context)).passed:
            overridden = () if ask.word is None else verdict.failures
            if ask.word is None or not {result.rule for result in overridden} <= ask.word.overrides:
                return self._refuse(context, verdict, ask, reason)
        approval = self._approve(context, ask)
        frame.reservations.add(reservation_of(approval, context.unit_cost))
        self._recent.add(content, frame.now_ms)
        if context.notional is not None:
            window_ms = frame.limits.turnover_window_ms
            key = agent_id, context.instrument_id
            frame.activity.flow.add(key, intent.side, context.notional, frame.now_ms, window_ms)
        return _Passed(approval, content, overridden)

    def check(self, frame: Frame, intent: OrderIntent, agent_id: AgentId) -> tuple[OrderContext, Verdict]:
        """Judge one order in words, counting and reserving nothing."""
        context = build_context(
            frame,
            intent,
            agent_id,
            decided=False,
            rate_ok=self._rates.tokens(agent_id, frame.now_ms, InstrumentId(intent.venue, intent.symbol)) > 0,
            duplicate_ms=self._recent.age_ms(_content(agent_id, intent), frame.now_ms),
            explain=True,
        )
        return context, self._rules.evaluate(context)

    def orders_left(self, agent_id: AgentId, now_ms: int) -> int:
        """Return how many orders the agent may ask for right now."""
        return self._rates.tokens(agent_id, now_ms)

    def agents(self) -> list[AgentId]:
        """Return the agents that asked lately."""
        return self._rates.agents()

    def take_back(self, reservations: ReservationBook, outcomes: Sequence[Outcome | _Passed]) -> None:
        """Undo what was counted for outcomes that are certainly not in the ledger."""
        for item in outcomes:
            if isinstance(item, (Approved, _Passed)):
                reservations.remove(item.approval.approval_id)
                self._recent.forget(item.content)
            elif isinstance(item, PendingHuman) and self._pending is not None:
                self._pending.remove(item.pending_id)

    def largest(self, context: OrderContext) -> OrderIntent | None:
        """Return the same order at the largest size, and at a legal price, that passes every rule now, or None."""
        return self._search(context).largest()

    def nearest(self, context: OrderContext) -> OrderIntent | None:
        """Return the legal order nearest to the one asked for, None when neither price nor size would help."""
        return self._search(context).nearest()

    def _search(self, context: OrderContext) -> LegalSearch:
        return LegalSearch(context, self._again)

    def _again(self, c: OrderContext, intent: OrderIntent) -> tuple[OrderContext, bool]:
        """Return the same question for another price or size, and whether it passes."""
        context = build_context(
            c.frame,
            intent,
            c.agent_id,
            decided=c.decided,
            decision_problem=c.decision_problem,
            rate_ok=c.rate_ok,
            duplicate_ms=self._recent.age_ms(_content(c.agent_id, intent), c.frame.now_ms),
        )  # without the operator's word, even if there was one: an agent is told what it may do by itself
        return context, self._rules.passes(context)

    def _refuse(self, context: OrderContext, verdict: Verdict, ask: Ask, reason: str) -> RiskDenial | PendingHuman:
        """Deny an order, or put it to the operator when that alone is missing."""
        if self._pending is None or ask.word is not None or not may_wait(context, verdict):
            return self._deny(context, verdict, ask)
        if (full := self._pending.full(context)) is not None:
            return self._deny(context, capped(verdict, full), ask)
        context.explain = True  # the operator is shown every rule, not only what failed
        question = Question(ask.request_id, ask.principal, ask.decision_id, reason, ask.expires_ms)
        return self._pending.ask(context, verdict, self._rules.evaluate(context).results, question)

    def _deny(self, context: OrderContext, verdict: Verdict, ask: Ask) -> RiskDenial:
        return RiskDenial(
            request_id=ask.request_id,
            agent_id=context.agent_id,
            decision_id=ask.decision_id,
            order=context.intent,
            failures=verdict.failures,
            nearest_legal=None if ask.problem else self.nearest(context),
            denied_ms=context.frame.now_ms,
        )

    def _approve(self, c: OrderContext, ask: Ask) -> Approval:
        if c.band_low is None or c.band_high is None or c.cost is None:
            raise AssertionError("a passed order has a price")
        frame, limits = c.frame, c.limits
        approval_id = ApprovalId(self._ids.new_id())
        expires = frame.now_ms + (limits.ttl_ms_decided if ask.decided else limits.ttl_ms_interactive)
        if ask.word is not None:
            expires = frame.now_ms + limits.ttl_ms_human
        if ask.expires_ms is not None:
            expires = min(expires, ask.expires_ms)
        return Approval(
            approval_id=approval_id,
            request_id=ask.request_id,
            decision_id=ask.decision_id,
            agent_id=c.agent_id,
            mode=frame.mode,
            order=_terms(c, approval_id),
            effect=c.effect,
            band_low=c.band_low,
            band_high=c.band_high,
            max_notional=_most(c, c.cost, c.band_high),
            policy_version=frame.policy.version,
            policy_digest=frame.policy.digest,
            epoch=frame.epoch,
            risk_score=frame.scores.of(c.instrument_id, frame.now_ms).value,
            issued_ms=frame.now_ms,
            expires_ms=expires,
            key_id=self._signer.key_id,
            standing_exit=None if c.reduces else _exit(c),
        )


def _signed(item: _Passed, envelope: Envelope) -> Approved:
    return Approved(item.approval, envelope.to_json(), envelope.payload, item.content, item.overridden)


def reservation_of(approval: Approval, unit_cost: Decimal | None = None) -> Reservation:
    """Return what an approval reserves.

    Args:
        approval: the promise.
        unit_cost: quote per base with fees; from the approval's own maximum when it is read back after a restart.
    """
    order = approval.order
    return Reservation(
        approval_id=approval.approval_id,
        agent_id=approval.agent_id,
        instrument_id=order.instrument_id,
        side=order.side,
        effect=approval.effect,
        quantity=order.quantity,
        unit_cost=unit_cost if unit_cost is not None else divide(approval.max_notional, order.quantity),
        rests_at=resting_price(order),
    )


def _terms(c: OrderContext, approval_id: ApprovalId) -> ApprovedOrder:
    intent = c.intent
    order_type, time_in_force = signed_terms(intent)
    return ApprovedOrder(
        account_id=intent.account_id,
        venue=intent.venue,
        symbol=intent.symbol,
        side=intent.side,
        order_type=order_type,
        time_in_force=time_in_force,
        quantity=c.quantity,
        limit_price=c.limit_price,
        stop_price=intent.stop_price,
        post_only=intent.post_only,
        reduce_only=intent.reduce_only,
        client_order_id=client_order_id_for(approval_id, intent.venue),
    )


def _exit(c: OrderContext) -> ExitTerms:
    """Return the permission to close what this order opens."""
    mid, instrument = c.market.mid, c.instrument
    if mid is None or instrument is None:
        raise AssertionError("a passed order has a market")
    in_force, expires_ms = c.in_force, c.frame.now_ms + c.limits.exit_ttl_ms
    floor_bps = in_force.protection.floor_bps
    plan = in_force.plan
    if c.frame.limits.agents and c.instrument_id in c.frame.portfolio.holders:
        plan = tightest(plan, plan_for(c.frame, c.instrument_id))  # nobody's entry loosens the stop of another's
    return exit_terms(c.intent.side, mid, floor_bps, instrument.price_tick, plan, expires_ms)


def _most(c: OrderContext, cost: Decimal, band_high: Decimal) -> Decimal:
    """Return the most quote that may be spent or received: a sell may trade above its limit, up to the band."""
    if c.intent.side is Side.BUY or c.worst is None:
        return cost
    return multiply(c.quantity, max(c.worst, band_high))


def _content(agent_id: AgentId, intent: OrderIntent) -> tuple[object, ...]:
    return (
        agent_id,
        intent.venue,
        intent.symbol,
        intent.side,
        intent.order_type,
        intent.quantity,
        intent.limit_price,
        intent.stop_price,
    )
