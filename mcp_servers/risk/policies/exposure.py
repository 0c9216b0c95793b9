"""How much we could end up holding at worst: every open buy fills and no sell does, and the other way round."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from mcp_servers.risk.context import Frame, OrderContext, Others
from mcp_servers.risk.reservations import Exposure
from trading.domain.denials import Rule, RuleResult
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, divide, multiply, subtract


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
    gross = worst_gross(c)
    if gross is None:
        return c.missing(Rule.EXPOSURE_GROSS_MAX, NO_PRICE, limit)
    return c.judge(
        Rule.EXPOSURE_GROSS_MAX,
        gross <= limit,
        limit,
        gross,
        "worst-case value over all instruments, quote",
        (limit, gross),
    )


def exposure_net_max(c: OrderContext) -> RuleResult:
    """Longs less shorts stay inside the limit, however the open orders fill.

    Source: no rule asks for it by name; it bounds what one move of the whole market can cost (betas taken as one).
    """
    limit = c.limits.net_exposure_max
    if c.reduces:
        return c.exempt(Rule.EXPOSURE_NET_MAX, limit)
    others, price = other_exposure(c), unit_value(c)
    if others is None or price is None:
        return c.missing(Rule.EXPOSURE_NET_MAX, NO_PRICE, limit)
    net = abs(add(others.long if c.intent.side is Side.BUY else others.short, multiply(c.after, price)))
    return c.judge(Rule.EXPOSURE_NET_MAX, net <= limit, limit, net, "worst-case longs less shorts, quote", (limit, net))


def concentration_max(c: OrderContext) -> RuleResult:
    """One asset is at most such a share of the account.

    Source: SGX Practice Note (b), concentration; unset unless the operator wants it.
    """
    limit = c.limits.concentration_pct_max
    if c.reduces or limit is None:
        return _unbounded(c, Rule.CONCENTRATION_MAX, limit)
    value, equity = own_value(c), c.frame.equity
    if value is None or equity is None or equity <= 0:
        return c.missing(Rule.CONCENTRATION_MAX, "cannot be judged: the account's worth is not known", limit)
    worth = multiply(value, _HUNDRED)
    passed = worth <= multiply(limit, equity)
    if passed and not c.explain:
        return c.agree(Rule.CONCENTRATION_MAX, limit, "", "")
    share = divide(worth, equity)
    return c.judge(
        Rule.CONCENTRATION_MAX,
        passed,
        limit,
        share,
        "worst-case share of one asset, percent of equity",
        (limit, share),
    )


def leverage_max(c: OrderContext) -> RuleResult:
    """The worst-case gross value is at most such a multiple of the account.

    Source: SEC 15c3-5(c)(1)(i), capital thresholds. Spot cannot borrow, so BALANCE_FREE bounds it as well.
    """
    limit = c.limits.leverage_max
    if c.reduces or limit is None:
        return _unbounded(c, Rule.LEVERAGE_MAX, limit)
    gross, equity = worst_gross(c), c.frame.equity
    if gross is None or equity is None or equity <= 0:
        return c.missing(Rule.LEVERAGE_MAX, "cannot be judged: the account's worth is not known", limit)
    passed = gross <= multiply(limit, equity)
    if passed and not c.explain:
        return c.agree(Rule.LEVERAGE_MAX, limit, "", "")
    multiple = divide(gross, equity)
    return c.judge(
        Rule.LEVERAGE_MAX,
        passed,
        limit,
        multiple,
        "worst-case gross value in multiples of equity",
        (limit, multiple),
    )


def open_orders_max(c: OrderContext) -> RuleResult:
    """So many promises may be open in the symbol, at the venue and on the desk; one that may still trade counts.

    Source: FIA, maximum number of live orders.
    """
    if c.reduces:
        return c.exempt(Rule.OPEN_ORDERS_MAX)
    if c.symbol_limits is None:
        return c.missing(Rule.OPEN_ORDERS_MAX, "the symbol has no limits")
    limits, reservations = c.limits, c.frame.reservations
    own, venue, desk = c.exposure.orders, reservations.at_venue(c.instrument_id.venue), len(reservations)
    most = c.symbol_limits.symbol_open_orders_max, limits.venue_open_orders_max, limits.desk_open_orders_max
    if not c.explain and own < most[0] and venue < most[1] and desk < most[2]:
        return c.agree(Rule.OPEN_ORDERS_MAX, "", "", "")
    counts = (
        (most[0], own + 1, "in the symbol"),
        (most[1], venue + 1, "at the venue"),
        (most[2], desk + 1, "on the desk"),
    )
    limit, count, where = min(counts, key=_left)
    return c.judge(
        Rule.OPEN_ORDERS_MAX, count <= limit, limit, count, f"approvals and orders open {where}", limit - count
    )


def _left(item: tuple[int, int, str]) -> int:
    return item[0] - item[1]


def _unbounded(c: OrderContext, rule: Rule, limit: Decimal | None) -> RuleResult:
    return (
        c.exempt(rule, "none" if limit is None else limit) if c.reduces else c.agree(rule, "none", "", "no bound set")
    )


def unit_value(c: OrderContext) -> Decimal | None:
    """Return what one base of the order's instrument counts for, quote: the dearer of its worst price and the mid."""
    return None if c.market.mid is None or c.worst is None else max(c.market.mid, c.worst)


def own_value(c: OrderContext) -> Decimal | None:
    """Return the worst-case value of the order's instrument with this order, quote; None without a price."""
    if c.own_value is None and (price := unit_value(c)) is not None:  # several rules ask for it
        c.own_value = multiply(instrument_worst(c), price)
    return c.own_value


def worst_gross(c: OrderContext) -> Decimal | None:
    """Return the worst-case value over all instruments with this order, quote; None when one has no price."""
    others, own = other_exposure(c), own_value(c)
    return None if others is None or own is None else add(others.gross, own)


def worst_position(c: OrderContext) -> Decimal:
    """Return the size of the position (base, >= 0) if everything open on the order's side fills, this order too."""
    return abs(c.after)


def instrument_worst(c: OrderContext) -> Decimal:
    """Return the larger of both worst cases of the order's instrument, this order included, in base."""
    is_buy = c.intent.side is Side.BUY
    other = subtract(c.held, c.exposure.sell_open) if is_buy else add(c.held, c.exposure.buy_open)
    return max(abs(c.after), abs(other))


def worst_case(held: Decimal, exposure: Exposure) -> Decimal:
    """Return max(|held + all buys|, |held - all sells|) in base."""
    if not (exposure.buy_open or exposure.sell_open):
        return abs(held)
    return max(abs(add(held, exposure.buy_open)), abs(subtract(held, exposure.sell_open)))


def other_exposure(c: OrderContext) -> Others | None:
    """Return the worst-case values of every other instrument; None when one of them has no price.

    Within a frame prices stand still, so the sums are the same until a fill is applied or another instrument's promises
    change; the counters say whether either happened.
    """
    frame = c.frame
    version = frame.portfolio.applied_seq, frame.reservations.changes - c.exposure.changes
    known = frame.others.get(c.instrument_id)
    if known is None or known[0] != version:
        known = frame.others[c.instrument_id] = version, worst_values(frame, without=c.instrument_id)
    return known[1]


def gross_exposure(frame: Frame) -> Decimal | None:
    """Return the sum of worst-case values in quote; None when something that counts has no price now."""
    values = worst_values(frame)
    return None if values is None else values.gross


def worst_values(frame: Frame, *, without: InstrumentId | None = None) -> Others | None:
    """Return the sums over all instruments but one; None when something that counts has no price now."""
    gross = long = short = ZERO
    exposures, held_of = frame.reservations.exposures(), frame.portfolio.held
    for instrument_id in {**exposures, **frame.markets}:
        if instrument_id == without:
            continue
        held, exposure = held_of(instrument_id), exposures.get(instrument_id, _NONE)
        worst = worst_case(held, exposure)
        if not worst:
            continue
        market = frame.markets.get(instrument_id)
        if market is None or market.mid is None or market.problem:
            return None
        value = multiply(worst, market.mid)
        gross = add(gross, value)
        if exposure.buy_open or exposure.sell_open:
            long = add(long, multiply(add(held, exposure.buy_open), market.mid))
            short = add(short, multiply(subtract(held, exposure.sell_open), market.mid))
        else:
            signed = value if held > 0 else -value
            long, short = add(long, signed), add(short, signed)
    return Others(gross, long, short)


NO_PRICE: Final = "something held or promised has no price now"
_HUNDRED: Final = Decimal(100)
_NONE: Final = Exposure()
