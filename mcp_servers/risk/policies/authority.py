"""Who may ask, in which state of the desk, and is a reduce really one? Rules about truth: no exemption."""

from __future__ import annotations

from typing import Final

from mcp_servers.risk.authority import Needs, strictest
from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.trading_states import DESK


def trading_state(c: OrderContext) -> RuleResult:
    """The breaker lets orders of this effect through, in every scope that covers the order."""
    scope, state = DESK, c.frame.state
    if c.frame.scopes:
        found = c.frame.state_for(c.agent_id, c.instrument_id.symbol)
        scope, state = found.scope, found.state
    permitted = state.permits(c.effect)
    if permitted and not c.explain:
        return c.agree(Rule.TRADING_STATE, "", "", "")
    return c.judge(
        Rule.TRADING_STATE,
        permitted,
        "active",
        state.value if scope == DESK else f"{state.value} ({scope})",
        f"trading state for an order that {c.effect}s",
    )


def reduce_only(c: OrderContext) -> RuleResult:
    """A reduce-only order is covered by the position less everything already on its way out; it never flips."""
    if not c.intent.reduce_only:
        return c.agree(Rule.REDUCE_ONLY, "", "", "not asked to be reduce-only")
    return c.judge(
        Rule.REDUCE_ONLY,
        c.quantity <= c.closable,
        c.closable,
        c.quantity,
        "base that can still be closed on this side",
        (c.closable, c.quantity),
    )


def decision_valid(c: OrderContext) -> RuleResult:
    """A decision that is named must hold, for exactly this order."""
    problem = c.decision_problem
    return c.judge(Rule.DECISION_INVALID, not problem, "a verified decision", problem or "valid or none", problem)


def needed(c: OrderContext) -> Needs:
    """Return who must agree to this much new risk: the strictest of what scopes, symbol, mode and both bounds say."""
    limits, needs, notional = c.limits, c.in_force.needs, c.notional
    if notional is None:
        return needs
    if notional > limits.undecided_notional_max:
        needs = strictest(needs, Needs.VOTE)
    if limits.unattended_notional_max is not None and notional > limits.unattended_notional_max:
        needs = strictest(needs, Needs.HUMAN)
    return needs


def lacks_only_a_person(c: OrderContext) -> bool:
    """Return whether the operator's word, and nothing else, would meet what this order needs."""
    needs = needed(c)
    return not needs.met_by(decided=c.decided, human=False) and needs.met_by(decided=c.decided, human=True)


def authority(c: OrderContext) -> RuleResult:
    """Somebody has agreed to this much new risk: the vote or the operator, as the limits ask for it."""
    if c.reduces:
        return c.exempt(Rule.AUTHORITY)
    limits = c.limits
    needs = needed(c)
    if needs is Needs.NONE and c.notional is not None and not c.explain:
        return c.agree(Rule.AUTHORITY, "", "", "")  # what nearly every order of a desk without a vote is
    if not needs.met_by(decided=c.decided, human=c.human):
        return _lacking(c, needs)
    if c.human:
        return c.agree(Rule.AUTHORITY, needs.value, "operator", "the operator has agreed")
    bounds = [limits.unattended_notional_max] if c.decided else [limits.undecided_notional_max]
    if not c.decided and limits.unattended_notional_max is not None:
        bounds.append(limits.unattended_notional_max)
    limit = min((bound for bound in bounds if bound is not None), default=None)
    if limit is None:
        return c.agree(Rule.AUTHORITY, "", "decision", "a decision of the vote covers it")
    if c.notional is None:
        return c.missing(Rule.AUTHORITY, "cannot be judged: there is no price to value the order at", limit)
    who = "without the operator" if c.decided else "without a decision of the vote or the operator"
    message = f"largest order {who}, quote" if c.explain else ""
    return c.judge(Rule.AUTHORITY, c.notional <= limit, limit, c.notional, message, (limit, c.notional))


_WHO: Final = {
    Needs.VOTE: "needs a decision of the vote (decision_id), or the operator's word",
    Needs.HUMAN: "needs the operator's word; a vote is not enough",
    Needs.VOTE_AND_HUMAN: "needs a decision of the vote (decision_id) and then the operator's word",
    Needs.DENIED: "the limits allow no new risk here; nobody can approve it",
}


def _lacking(c: OrderContext, needs: Needs) -> RuleResult:
    limits, notional = c.limits, c.notional
    if needs is Needs.VOTE and c.frame.mode in limits.undecided_modes and limits.authority is Needs.NONE:
        limit = limits.undecided_notional_max
    elif needs is Needs.HUMAN and limits.unattended_notional_max is not None:
        limit = limits.unattended_notional_max
    else:
        limit = None
    # A check says no where a request would wait: it must say so, or nobody would ask the person.
    waits = "; asked for, it waits for the operator" if c.explain and lacks_only_a_person(c) else ""
    if limit is not None and notional is not None and notional > limit:
        return c.refuse(Rule.AUTHORITY, limit, notional, f"above this much quote it {_WHO[needs]}{waits}")
    return c.refuse(Rule.AUTHORITY, needs.value, "a decision" if c.decided else "neither", _WHO[needs] + waits)
