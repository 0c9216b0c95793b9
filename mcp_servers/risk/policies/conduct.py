"""How an agent behaves: rate, repetition, and how much it may have open. Guards increases only."""

from __future__ import annotations

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.money import add, multiply


def order_rate(c: OrderContext) -> RuleResult:
    """The agent and the desk are within their rates; refused orders counted."""
    if c.reduces:
        return c.exempt(Rule.ORDER_RATE)
    return c.judge(
        Rule.ORDER_RATE,
        c.rate_ok,
        f"{c.limits.order_rate_per_s}/s, burst {c.limits.order_burst}" if c.explain or not c.rate_ok else "",
        "within" if c.rate_ok else "over",
        "orders of one agent, and of the desk, a second",
    )


def order_duplicate(c: OrderContext) -> RuleResult:
    """The same order was not approved a moment ago. A decision of the vote is its own proof of intent."""
    if c.reduces or c.decided:
        return c.exempt(Rule.ORDER_DUPLICATE) if c.reduces else c.agree(Rule.ORDER_DUPLICATE, "", "", "decided")
    age = c.duplicate_ms
    return c.judge(
        Rule.ORDER_DUPLICATE,
        age is None,
        c.limits.duplicate_window_ms,
        "none" if age is None else age,
        "ms since the same order of this agent was approved",
    )


def open_approvals_max(c: OrderContext) -> RuleResult:
    """The agent does not hoard approvals or reserved value."""
    if c.reduces:
        return c.exempt(Rule.OPEN_APPROVALS_MAX)
    count, most = c.use.unused + 1, c.limits.open_approvals_max
    if count > most:
        return c.refuse(Rule.OPEN_APPROVALS_MAX, most, count, "unused approvals of one agent")
    if c.unit_cost is None:
        return c.missing(Rule.OPEN_APPROVALS_MAX, "cannot be judged: there is no price to value the order at")
    reserved = add(c.use.notional, multiply(c.quantity, c.unit_cost))
    limit = c.limits.reserved_notional_max
    return c.judge(
        Rule.OPEN_APPROVALS_MAX,
        reserved <= limit,
        limit,
        reserved,
        "quote reserved for one agent, fees included",
        (limit, reserved),
    )
