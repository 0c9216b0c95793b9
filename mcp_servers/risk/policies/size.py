"""Fat fingers: how large one order may be. These guard increases; a reduce is bounded by the position itself."""

from __future__ import annotations

from decimal import Decimal

from mcp_servers.risk.context import OrderContext
from mcp_servers.risk.unrest import SIZES_MIN
from trading.domain.denials import Rule, RuleResult
from trading.domain.money import multiply


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


def trade_size_multiple(c: OrderContext) -> RuleResult:
    """The order is not out of all proportion to what others trade: so many times the median public trade.

    Source: RTS 6 Art. 15(1)(c) and 15c3-5(c)(1)(ii), maximum volume and erroneous size; unset unless wanted.
    """
    limit = None if c.symbol_limits is None else c.symbol_limits.trade_size_multiple_max
    if c.reduces:
        return c.exempt(Rule.TRADE_SIZE_MULTIPLE)
    if limit is None:
        return c.agree(Rule.TRADE_SIZE_MULTIPLE, "none", "", "no bound set")
    usual = usual_size(c)
    if usual is None:
        return c.missing(Rule.TRADE_SIZE_MULTIPLE, f"fewer than {SIZES_MIN} public trades were seen", limit)
    most = multiply(usual, limit)
    return c.judge(
        Rule.TRADE_SIZE_MULTIPLE,
        c.quantity <= most,
        most,
        c.quantity,
        "largest order in proportion to the median public trade, base",
        (most, c.quantity),
    )


def usual_size(c: OrderContext) -> Decimal | None:
    """Return the median public trade in base; None when too few were seen."""
    return None if c.market.unrest is None else c.market.unrest.sizes.median()
