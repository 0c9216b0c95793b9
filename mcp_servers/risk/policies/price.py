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
    collar = max(limits.collar_bps, c.limits.band_bps_exit) if c.reduces else limits.collar_bps
    reference = mid
    if (trigger := c.intent.stop_price) is not None:
        low, high = _stop_band(c.intent.side, mid, limits.stop_band_bps)
        if not low < trigger < high:
            return c.refuse(
                Rule.PRICE_COLLAR,
                f"{low:f} to {high:f}",
                trigger,
                "a trigger must lie beyond the mid on the order's side and inside the stop band",
            )
        reference = trigger
    price = c.intent.limit_price
    if price is None:
        return c.agree(Rule.PRICE_COLLAR, "", c.intent.stop_price or "", "the trigger is inside the stop band")
    edge = _edge(c.intent.side, reference, collar)
    band = c.band_high if c.intent.side is Side.BUY else c.band_low
    if trigger is None and band is not None and is_worse(edge, band, c.intent.side):
        edge = band  # execution sends no limit beyond the signed band, however wide the collar is
    return c.judge(
        Rule.PRICE_COLLAR,
        not is_worse(price, edge, c.intent.side),
        edge,
        price,
        "worst limit price, from the mid (or the trigger)",
        (edge, price) if c.intent.side is Side.BUY else (price, edge),
    )


def market_depth(c: OrderContext) -> RuleResult:
    """The book can fill a market order inside its band without moving too far."""
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
