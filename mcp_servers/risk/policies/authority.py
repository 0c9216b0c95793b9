"""Who may ask, in which state of the desk, and is a reduce really one? Rules about truth: no exemption."""

from __future__ import annotations

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.proposals import Mode
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


def authority(c: OrderContext) -> RuleResult:
    """New risk beyond the operator's bound, or in live mode at all, needs a decision of the vote."""
    if c.reduces:
        return c.exempt(Rule.AUTHORITY)
    if c.decided:
        return c.agree(Rule.AUTHORITY, "", "decision", "a decision of the vote covers it")
    mode: Mode = c.frame.mode
    if mode not in c.limits.undecided_modes:
        return c.refuse(Rule.AUTHORITY, "a decision", mode.value, "orders in this mode need a decision of the vote")
    limit = c.limits.undecided_notional_max
    if c.notional is None:
        return c.missing(Rule.AUTHORITY, "cannot be judged: there is no price to value the order at", limit)
    return c.judge(
        Rule.AUTHORITY,
        c.notional <= limit,
        limit,
        c.notional,
        "largest order without a decision of the vote, quote",
        (limit, c.notional),
    )
