"""Fat fingers: how large one order may be. These guard increases; a reduce is bounded by the position itself."""

from __future__ import annotations

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult


def order_quantity_max(c: OrderContext) -> RuleResult:
    """One order buys or sells at most so much base."""
    if c.reduces:
        return c.exempt(Rule.ORDER_QUANTITY_MAX)
    if c.symbol_limits is None:
        return c.missing(Rule.ORDER_QUANTITY_MAX, "the symbol has no limits")
    limit = c.symbol_limits.order_quantity_max
    return c.judge(
        Rule.ORDER_QUANTITY_MAX,
        c.quantity <= limit,
        limit,
        c.quantity,
        "largest quantity of one order, base",
        (limit, c.quantity),
    )


def order_notional_max(c: OrderContext) -> RuleResult:
    """One order is worth at most so much at its worst price."""
    if c.reduces:
        return c.exempt(Rule.ORDER_NOTIONAL_MAX)
    if c.symbol_limits is None or c.notional is None:
        return c.missing(Rule.ORDER_NOTIONAL_MAX, "cannot be judged without limits and a price")
    limit = c.symbol_limits.order_notional_max
    return c.judge(
        Rule.ORDER_NOTIONAL_MAX,
        c.notional <= limit,
        limit,
        c.notional,
        "largest value of one order at its worst price, quote",
        (limit, c.notional),
    )
