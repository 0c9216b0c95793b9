"""How an agent behaves: rate, repetition, and how much it may have open. Guards increases only."""

from __future__ import annotations

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.market_data import Side
from trading.domain.money import add


def order_rate(c: OrderContext) -> RuleResult:
    """The agent, the symbol, the venue and the desk are within their rates; refused orders counted.

    Cancels never come here, and an order that reduces is counted but not stopped.
    Source: RTS 6 Art. 15(1)(d), maximum messages; FIA.
    """
    if c.reduces:
        return c.exempt(Rule.ORDER_RATE)
    return c.judge(
        Rule.ORDER_RATE,
        c.rate_ok,
        f"{c.limits.order_rate_per_s}/s, burst {c.limits.order_burst}" if c.explain or not c.rate_ok else "",
        "within" if c.rate_ok else "over",
        "orders of one agent, and of its symbol, its venue and the desk, a second",
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
    if c.cost is None:
        return c.missing(Rule.OPEN_APPROVALS_MAX, "cannot be judged: there is no price to value the order at")
    reserved = add(c.use.notional, c.cost)
    limit = c.limits.reserved_notional_max
    return c.judge(
        Rule.OPEN_APPROVALS_MAX,
        reserved <= limit,
        limit,
        reserved,
        "quote reserved for one agent, fees included",
        (limit, reserved),
    )


def self_trade(c: OrderContext) -> RuleResult:
    """The order would not meet an order of our own that may rest at the same venue.

    Stops that wait for their trigger do not rest; orders that trade at once or not at all never do.
    Source: FIA, self-match prevention.
    """
    if c.reduces:
        return c.exempt(Rule.SELF_TRADE)
    own = c.exposure.best_resting(c.intent.side.opposite)
    price = c.limit_price
    if own is None:
        return c.agree(Rule.SELF_TRADE, "", "", "nothing of our own rests on the other side")
    if price is None:
        return c.missing(Rule.SELF_TRADE, "cannot be judged: there is no limit price", own)
    passed = price < own if c.intent.side is Side.BUY else price > own
    return c.judge(Rule.SELF_TRADE, passed, own, price, "our own order's price on the other side; must not be reached")
