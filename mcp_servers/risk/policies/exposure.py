"""How much we could end up holding at worst: every open buy fills and no sell does, and the other way round."""

from __future__ import annotations

from decimal import Decimal

from mcp_servers.risk.context import Frame, OrderContext
from mcp_servers.risk.reservations import Exposure
from trading.domain.denials import Rule, RuleResult
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, multiply, subtract


def position_max(c: OrderContext) -> RuleResult:
    """The worst-case position of the symbol stays inside its limit."""
    if c.reduces:
        return c.exempt(Rule.POSITION_MAX)
    if c.symbol_limits is None:
        return c.missing(Rule.POSITION_MAX, "the symbol has no limits")
    limit = c.symbol_limits.position_quantity_max
    worst = worst_position(c)
    return c.judge(
        Rule.POSITION_MAX,
        worst <= limit,
        limit,
        worst,
        "worst-case position if every open order on this side fills, base",
        (limit, worst),
    )


def exposure_gross_max(c: OrderContext) -> RuleResult:
    """The sum of every instrument's worst case stays inside the desk's limit."""
    limit = c.limits.gross_exposure_max
    if c.reduces:
        return c.exempt(Rule.EXPOSURE_GROSS_MAX, limit)
    others = other_exposure(c)
    mid = c.market.mid
    if others is None or mid is None or c.worst is None:
        return c.missing(Rule.EXPOSURE_GROSS_MAX, "something held or promised has no price now", limit)
    gross = add(others, multiply(instrument_worst(c), max(mid, c.worst)))
    return c.judge(
        Rule.EXPOSURE_GROSS_MAX,
        gross <= limit,
        limit,
        gross,
        "worst-case value over all instruments, quote",
        (limit, gross),
    )


def worst_position(c: OrderContext) -> Decimal:
    """Return the size of the position (base, >= 0) if everything open on the order's side fills, this order too."""
    if c.intent.side is Side.BUY:
        return abs(add(c.held, add(c.exposure.buy_open, c.quantity)))
    return abs(subtract(c.held, add(c.exposure.sell_open, c.quantity)))


def instrument_worst(c: OrderContext) -> Decimal:
    """Return the larger of both worst cases of the order's instrument, this order included, in base."""
    buy = c.quantity if c.intent.side is Side.BUY else ZERO
    return worst_case(c.held, c.exposure, buy=buy, sell=ZERO if buy else c.quantity)


def worst_case(held: Decimal, exposure: Exposure, *, buy: Decimal = ZERO, sell: Decimal = ZERO) -> Decimal:
    """Return max(|held + all buys|, |held - all sells|) in base."""
    if not (buy or sell or exposure.buy_open or exposure.sell_open):
        return abs(held)
    long = add(held, add(exposure.buy_open, buy))
    short = subtract(held, add(exposure.sell_open, sell))
    return max(abs(long), abs(short))


def other_exposure(c: OrderContext) -> Decimal | None:
    """Return the worst-case value of every other instrument in quote; None when one of them has no price.

    Within a frame prices stand still, so the sum is the same until a fill is applied or another instrument's promises
    change; the counters say whether either happened.
    """
    frame = c.frame
    version = frame.portfolio.applied_seq, frame.reservations.changes - c.exposure.changes
    known = frame.others.get(c.instrument_id)
    if known is None or known[0] != version:
        known = frame.others[c.instrument_id] = version, gross_exposure(frame, without=c.instrument_id)
    return known[1]


def gross_exposure(frame: Frame, *, without: InstrumentId | None = None) -> Decimal | None:
    """Return the sum of worst-case values in quote; None when something that counts has no price now."""
    total = ZERO
    exposures, held = frame.reservations.exposures(), frame.portfolio.held
    for instrument_id in {**exposures, **frame.markets}:
        if instrument_id == without:
            continue
        worst = worst_case(held(instrument_id), exposures.get(instrument_id, _NONE))
        if not worst:
            continue
        market = frame.markets.get(instrument_id)
        if market is None or market.mid is None or market.problem:
            return None
        total = add(total, multiply(worst, market.mid))
    return total


_NONE = Exposure()
