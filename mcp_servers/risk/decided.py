"""Orders in the name of a decision, and their refusal when the decision was used by somebody else first."""

from __future__ import annotations

from dataclasses import replace

from trading.domain.denials import RiskDenial, Rule, RuleResult
from trading.domain.errors import TradingError
from trading.domain.proposals import OrderIntent

from .assessment import Approved, Outcome
from .decisions import VerifiedDecision
from .orders import OrderRequest, request_of


def decided_orders(orders: tuple[OrderRequest, ...], verified: VerifiedDecision | None) -> tuple[OrderRequest, ...]:
    """Return the child orders in the proposer's name; the proposal's own order when none were given."""
    if verified is None:
        if not orders:
            raise TradingError("the decision does not hold and no order was given", code="DECISION_INVALID")
        return orders
    agent_id = verified.proposal.agent_id
    if not orders:
        return (request_of(verified.proposal.order, agent_id, verified.proposal.reason),)
    return tuple([replace(order, agent_id=agent_id) for order in orders])


def used(item: Outcome, problem: str, now_ms: int) -> Outcome:
    """Return the refusal of an order whose decision has been used by another request."""
    if not isinstance(item, Approved):
        return item
    order = item.approval.order
    failure = RuleResult(
        rule=Rule.DECISION_INVALID, passed=False, limit="a decision used once", observed=problem, message=problem
    )
    return RiskDenial(
        request_id=item.approval.request_id,
        agent_id=item.approval.agent_id,
        decision_id=item.approval.decision_id,
        order=OrderIntent(
            account_id=order.account_id,
            venue=order.venue,
            symbol=order.symbol,
            side=order.side,
            order_type=order.order_type,
            quantity=order.quantity,
            limit_price=order.limit_price,
            stop_price=order.stop_price,
            time_in_force=order.time_in_force,
            post_only=order.post_only,
            reduce_only=order.reduce_only,
        ),
        failures=(failure,),
        nearest_legal=None,
        denied_ms=now_ms,
    )
