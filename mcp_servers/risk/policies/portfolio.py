"""Do we know what we hold, can we pay for it, and are we still allowed to lose more today?"""

from __future__ import annotations

from decimal import Decimal

from mcp_servers.risk.context import OrderContext
from trading.domain.accounts import split_symbol
from trading.domain.denials import Rule, RuleResult
from trading.domain.market_data import Side
from trading.domain.money import ZERO, subtract


def portfolio_stale(c: OrderContext) -> RuleResult:
    """Execution's ledger was read to its end lately."""
    limit = c.limits.portfolio_max_age_ms
    if c.reduces:
        return c.exempt(Rule.PORTFOLIO_STALE, limit)
    age = c.frame.portfolio_age_ms
    if age is None:
        return c.missing(Rule.PORTFOLIO_STALE, "the portfolio was never read", limit)
    return c.judge(Rule.PORTFOLIO_STALE, age <= limit, limit, age, "age of the portfolio in ms", limit - age)


def execution_silent(c: OrderContext) -> RuleResult:
    """Execution gave a sign of life lately."""
    limit = c.limits.execution_max_age_ms
    if c.reduces:
        return c.exempt(Rule.EXECUTION_SILENT, limit)
    age = c.frame.execution_age_ms
    if age is None:
        return c.missing(Rule.EXECUTION_SILENT, "execution has not been heard of", limit)
    return c.judge(Rule.EXECUTION_SILENT, age <= limit, limit, age, "age of execution's heartbeat in ms", limit - age)


def balance_free(c: OrderContext) -> RuleResult:
    """The account can pay for it, fees included, on top of everything already promised."""
    if c.cost is None:
        return c.missing(Rule.BALANCE_FREE, "cannot be judged: there is no price to value the order at")
    need = c.cost if c.intent.side is Side.BUY else c.quantity
    free = free_balance(c)
    return c.judge(
        Rule.BALANCE_FREE,
        need <= free,
        free,
        need,
        "free of reservations, quote for a buy and base for a sell; fees included",
        (free, need),
    )


def free_balance(c: OrderContext) -> Decimal:
    """Return what the order may still spend: quote for a buy, base for a sell; reservations of every symbol count."""
    base, quote = split_symbol(c.instrument_id)
    currency = quote if c.intent.side is Side.BUY else base
    free = subtract(c.frame.portfolio.total(currency), c.frame.reservations.promised(currency))
    if c.intent.side is Side.SELL and not c.reduces:
        return subtract(free, c.exposure.protected)  # only what reduces the position takes the place of its stop
    return free


def daily_loss(c: OrderContext) -> RuleResult:
    """Trading has not lost the day's allowance."""
    limit = c.limits.daily_loss_max
    if c.reduces:
        return c.exempt(Rule.DAILY_LOSS, limit)
    result = c.frame.daily_result
    if result is None:
        return c.missing(Rule.DAILY_LOSS, "today's result cannot be known without marks", limit)
    return c.judge(
        Rule.DAILY_LOSS,
        result > -limit,
        limit,
        max(ZERO, -result),
        "quote lost by trading since 00:00 UTC",
        (result, -limit),
    )


def drawdown_max(c: OrderContext) -> RuleResult:
    """The account has not fallen too far below its best.

    Source: practice (freqtrade's MaxDrawdown); no regulator asks for it.
    """
    limit = c.limits.drawdown_pct_max
    if c.reduces:
        return c.exempt(Rule.DRAWDOWN_MAX, limit)
    drawdown = c.frame.drawdown_pct
    if drawdown is None:
        return c.missing(Rule.DRAWDOWN_MAX, "the account's worth cannot be known without marks", limit)
    return c.judge(
        Rule.DRAWDOWN_MAX, drawdown < limit, limit, drawdown, "percent of equity below its peak", (limit, drawdown)
    )


def unresolved_orders_max(c: OrderContext) -> RuleResult:
    """Execution knows what became of its orders, all but a few.

    Source: FIA, drop-copy reconciliation. The unknown orders themselves count as open in every other rule.
    """
    limit = c.limits.unresolved_orders_max
    if c.reduces:
        return c.exempt(Rule.UNRESOLVED_ORDERS_MAX, limit)
    count = c.frame.unresolved
    if count is None:
        return c.missing(Rule.UNRESOLVED_ORDERS_MAX, "execution has not been heard of", limit)
    return c.judge(
        Rule.UNRESOLVED_ORDERS_MAX, count <= limit, limit, count, "orders whose outcome is unknown", limit - count
    )
