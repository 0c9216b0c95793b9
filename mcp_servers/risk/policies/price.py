"""Is there a price to trade against, and is the order's price sane? No fresh reference, no new risk."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

from mcp_servers.risk.context import OrderContext
from mcp_servers.risk.limits import SymbolLimits
from trading.domain.denials import Rule, RuleResult
from trading.domain.market_data import Side, is_worse
from trading.domain.money import ZERO, add, bps_of, multiply, total
from trading.domain.proposals import OrderType


def market_stale(c: OrderContext) -> RuleResult:
    """The book is fresh, two-sided and not crossed. A reduce may use the last good mid, however old."""
    limit = c.limits.market_max_age_ms
    if c.market.mid is None:
        return c.missing(Rule.MARKET_STALE, c.market.problem or "there is no price", limit)
    if c.reduces:
        return c.exempt(Rule.MARKET_STALE, limit)
    age = c.market.age_ms
    return c.judge(
        Rule.MARKET_STALE,
        not c.market.problem,
        limit,
        "" if age is None else age,
        c.market.problem or "age of the book in ms",
        "" if age is None else limit - age,
    )


def price_collar(c: OrderContext) -> RuleResult:
    """A limit lies inside the collar on its adverse side; a trigger on its own side of the mid and not absurdly far."""
    mid = c.market.mid
    if mid is None:
        return c.missing(Rule.PRICE_COLLAR, "there is no mid to compare with")
    if c.symbol_limits is None and not c.reduces:
        return c.missing(Rule.PRICE_COLLAR, "the symbol has no limits")
    if c.intent.order_type is OrderType.MARKET:
        return c.agree(Rule.PRICE_COLLAR, "", c.limit_price or "", "leaves as a limit at the edge of the band")
    limits = c.symbol_limits or SymbolLimits()
    if (trigger := c.intent.stop_price) is not None:
        low, high = _stop_band(c.intent.side, mid, limits.stop_band_bps)
        if not low < trigger < high:
            return c.refuse(
                Rule.PRICE_COLLAR,
                f"{low:f} to {high:f}",
                trigger,
                "a trigger must lie beyond the mid on the order's side and inside the stop band",
            )
    price, edge = c.intent.limit_price, collar_edge(c, trigger)
    if price is None or edge is None:
        return c.agree(Rule.PRICE_COLLAR, "", c.intent.stop_price or "", "the trigger is inside the stop band")
    return c.judge(
        Rule.PRICE_COLLAR,
        not is_worse(price, edge, c.intent.side),
        edge,
        price,
        "worst limit price, from the mid (or the trigger)",
        (edge, price) if c.intent.side is Side.BUY else (price, edge),
    )


def collar_edge(c: OrderContext, trigger: Decimal | None) -> Decimal | None:
    """Return the worst limit price the order may carry, quote per base; None without a mid.

    Args:
        trigger: the reference instead of the mid, for an order that waits for it.
    """
    reference = c.market.mid if trigger is None else trigger
    if reference is None:
        return None
    limits = c.symbol_limits or SymbolLimits()
    collar = max(limits.collar_bps, c.limits.band_bps_exit) if c.reduces else limits.collar_bps
    edge = _edge(c.intent.side, reference, collar)
    band = c.band_high if c.intent.side is Side.BUY else c.band_low
    if trigger is None and band is not None and is_worse(edge, band, c.intent.side):
        return band  # execution sends no limit beyond the signed band, however wide the collar is
    return edge


def market_depth(c: OrderContext) -> RuleResult:
    """The book can fill a market order inside its band without moving too far.

    Source: FIA, maximum market-order impact.
    """
    if c.intent.order_type is not OrderType.MARKET:
        return c.agree(Rule.MARKET_DEPTH, "", "", "not a market order")
    if c.reduces:
        return c.exempt(Rule.MARKET_DEPTH)
    if c.walked is None or c.market.mid is None or c.market.book is None or c.symbol_limits is None:
        return c.missing(Rule.MARKET_DEPTH, "there is no book to fill it from")
    if c.walked < c.quantity:
        return c.refuse(Rule.MARKET_DEPTH, c.quantity, c.walked, "base the book gives inside the band")
    edge = _edge(c.intent.side, c.market.mid, c.symbol_limits.impact_bps_max)
    inside = c.market.book.walk(c.intent.side, c.quantity, limit_price=edge).filled
    return c.judge(
        Rule.MARKET_DEPTH, inside >= c.quantity, c.quantity, inside, "base the book gives inside the impact limit"
    )


def spread_max(c: OrderContext) -> RuleResult:
    """The spread is not so wide that the mid means nothing.

    Source: practice after exchange limit up/limit down; FIA, price bands.
    """
    if c.reduces:
        return c.exempt(Rule.SPREAD_MAX)
    spread = None if c.market.unrest is None else c.market.unrest.spread_bps(c.market.book)
    if c.symbol_limits is None or spread is None:
        return c.missing(Rule.SPREAD_MAX, "there is no two-sided book to measure the spread of")
    limit = c.symbol_limits.spread_bps_max
    return c.judge(Rule.SPREAD_MAX, spread <= limit, limit, spread, "spread in bps of the mid", (limit, spread))


def volatility_max(c: OrderContext) -> RuleResult:
    """The mid has not run through too wide a range lately, wicks included.

    Source: exchange limit up/limit down, which halts a symbol that leaves a band within minutes.
    """
    if c.reduces:
        return c.exempt(Rule.VOLATILITY_MAX)
    unrest, window_ms = c.market.unrest, c.frame.limits.move_window_ms
    move = None if unrest is None else unrest.range.move_bps(c.frame.now_ms, window_ms)
    if c.symbol_limits is None or move is None:
        return c.missing(Rule.VOLATILITY_MAX, "no price was seen lately")
    limit = c.symbol_limits.move_bps_max
    return c.judge(
        Rule.VOLATILITY_MAX, move <= limit, limit, move, "bps between lowest and highest mid lately", (limit, move)
    )


def depth_inside_impact(c: OrderContext) -> Decimal:
    """Return all base that the book gives inside the impact limit and the band."""
    if c.market.book is None or c.market.mid is None or c.symbol_limits is None:
        return ZERO
    edge = _edge(c.intent.side, c.market.mid, c.symbol_limits.impact_bps_max)
    if c.limit_price is not None and is_worse(edge, c.limit_price, c.intent.side):
        edge = c.limit_price
    levels = c.market.book.asks if c.intent.side is Side.BUY else c.market.book.bids
    return total([level.quantity for level in levels if not is_worse(level.price, edge, c.intent.side)])


@lru_cache(maxsize=1024)
def _edge(side: Side, reference: Decimal, bps: Decimal) -> Decimal:
    return add(reference, multiply(bps_of(reference, bps), Decimal(side.sign)))


def _stop_band(side: Side, mid: Decimal, bps: Decimal) -> tuple[Decimal, Decimal]:
    far = _edge(side, mid, bps)
    return (mid, far) if side is Side.BUY else (far, mid)
