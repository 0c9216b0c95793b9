"""What an agent did lately: how much, in which direction, how often again, and how badly. Guards increases only."""

from __future__ import annotations

from decimal import Decimal

from mcp_servers.risk.activity import Flow
from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, subtract


def turnover_max(c: OrderContext) -> RuleResult:
    """Quote approved lately, this order included, stays inside the limits of agent, symbol and desk.

    Source: RTS 6 Art. 15(1)(a) and 15c3-5(c)(1), orders that exceed limits "over a short period of time".
    """
    if c.reduces:
        return c.exempt(Rule.TURNOVER_MAX)
    if c.symbol_limits is None or c.notional is None:
        return c.missing(Rule.TURNOVER_MAX, "cannot be judged without limits and a price")
    flow, notional = c.frame.activity.flow, c.notional
    if (
        not c.explain
        and add(flow.agent(c.agent_id).turnover, notional) <= c.limits.turnover_max
        and add(flow.instrument(c.instrument_id).turnover, notional) <= c.symbol_limits.symbol_turnover_max
        and add(flow.desk.turnover, notional) <= c.limits.desk_turnover_max
    ):
        return c.agree(Rule.TURNOVER_MAX, "", "", "")
    limit, before = tightest_turnover(c)
    used = add(before, c.notional)
    return c.judge(
        Rule.TURNOVER_MAX,
        used <= limit,
        limit,
        used,
        f"quote approved within {c.limits.turnover_window_ms} ms (agent, symbol and desk: the nearest limit)",
        (limit, used),
    )


def drift_max(c: OrderContext) -> RuleResult:
    """Buys less sells approved lately in the symbol stay inside the limit, either way.

    Source: RTS 6 Art. 15(1)(a) and 15c3-5(c)(1), as above, for orders that all go one way (Knight Capital 2012).
    """
    if c.reduces:
        return c.exempt(Rule.DRIFT_MAX)
    if c.symbol_limits is None or c.notional is None:
        return c.missing(Rule.DRIFT_MAX, "cannot be judged without limits and a price")
    limit = c.symbol_limits.symbol_drift_max
    used = add(drift_before(c), c.notional)
    return c.judge(
        Rule.DRIFT_MAX,
        used <= limit,
        limit,
        max(ZERO, used),
        "quote approved lately in the symbol on this side less the other",
        (limit, max(ZERO, used)),
    )


def repeated_execution(c: OrderContext) -> RuleResult:
    """An agent that entered a symbol too often in a short time is stopped until a person lets it go on.

    Source: RTS 6 Art. 15(3), repeated automated execution throttle.
    """
    if c.reduces:
        return c.exempt(Rule.REPEATED_EXECUTION)
    activity, key, limit = c.frame.activity, (c.agent_id, c.instrument_id), c.limits.entries_max
    if key in activity.stopped:
        return c.refuse(
            Rule.REPEATED_EXECUTION, limit, limit + 1, "entered too often; stopped until the operator resumes"
        )
    count = activity.entries(key, c.frame.now_ms, c.limits.entries_window_ms)
    return c.judge(
        Rule.REPEATED_EXECUTION, count <= limit, limit, count, "filled entries of the agent lately", limit - count
    )


def loss_streak(c: OrderContext) -> RuleResult:
    """An agent that lost so many times in a row adds no risk until it wins, time passes or a person resumes it.

    Source: practice (freqtrade's StoplossGuard and LowProfitPairs); no regulator asks for it.
    """
    if c.reduces:
        return c.exempt(Rule.LOSS_STREAK)
    limit = c.limits.loss_streak_max
    count = c.frame.activity.losses(c.agent_id, c.frame.now_ms, c.limits.loss_window_ms)
    return c.judge(Rule.LOSS_STREAK, count < limit, limit, count, "losing orders of the agent in a row", limit - count)


def tightest_turnover(c: OrderContext) -> tuple[Decimal, Decimal]:
    """Return (limit, approved so far) of whichever of agent, symbol and desk leaves least."""
    flow = c.frame.activity.flow
    best = c.limits.turnover_max, flow.agent(c.agent_id).turnover
    if c.symbol_limits is not None:
        best = _tighter(best, c.symbol_limits.symbol_turnover_max, flow.instrument(c.instrument_id))
    return _tighter(best, c.limits.desk_turnover_max, flow.desk)


def _tighter(best: tuple[Decimal, Decimal], limit: Decimal, flow: Flow) -> tuple[Decimal, Decimal]:
    return (limit, flow.turnover) if subtract(limit, flow.turnover) < subtract(*best) else best


def drift_before(c: OrderContext) -> Decimal:
    """Return quote approved lately on the order's side of the symbol less the other side; may be negative."""
    drift = c.frame.activity.flow.instrument(c.instrument_id).drift
    return drift if c.intent.side is Side.BUY else -drift
