"""Can the venue take this order at all? Rules about truth: they hold for reducing orders too, except restriction."""

from __future__ import annotations

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.proposals import OrderType

_NO_INSTRUMENT = "cannot be judged: the instrument is not known"


def instrument_known(c: OrderContext) -> RuleResult:
    """The instrument's rules were loaded from the venue, and lately enough."""
    limit = c.limits.instrument_max_age_ms
    if c.instrument is None or c.market.instrument_age_ms is None:
        return c.missing(Rule.INSTRUMENT_UNKNOWN, "no such instrument on this venue", c.intent.symbol)
    if c.reduces:
        return c.exempt(Rule.INSTRUMENT_UNKNOWN, limit)
    age = c.market.instrument_age_ms
    return c.judge(Rule.INSTRUMENT_UNKNOWN, age <= limit, limit, age, "age of the venue's rules in ms", limit - age)


def instrument_restricted(c: OrderContext) -> RuleResult:
    """Only symbols with limits of their own may be bought."""
    if c.reduces:
        return c.exempt(Rule.INSTRUMENT_RESTRICTED)
    only = c.in_force.symbols
    allowed = c.symbol_limits is not None and (only is None or c.intent.symbol in only)
    return c.judge(
        Rule.INSTRUMENT_RESTRICTED,
        allowed,
        ", ".join(c.limits.symbols if only is None else only) if not allowed or c.explain else "",
        c.intent.symbol,
        "symbols the operator allows",
    )


def venue_restricted(c: OrderContext) -> RuleResult:
    """The venue is one that the order's agent, mode and account may use.

    Source: SEC 15c3-5(c)(2), restricted products and venues.
    """
    if c.reduces:
        return c.exempt(Rule.VENUE_RESTRICTED)
    only = c.in_force.venues
    if only is None:
        return c.agree(Rule.VENUE_RESTRICTED, "", c.intent.venue, "no list of venues is set")
    passed = c.intent.venue in only
    shown = ", ".join(only) if not passed or c.explain else ""
    return c.judge(Rule.VENUE_RESTRICTED, passed, shown, c.intent.venue, "venues the operator allows")


def time_in_force(c: OrderContext) -> RuleResult:
    """The order may stay as long as it wants to.

    Source: SEC 15c3-5(c)(2), restricted order types.
    """
    if c.reduces:
        return c.exempt(Rule.TIME_IN_FORCE)
    passed = c.intent.time_in_force in c.limits.times_in_force
    return c.judge(
        Rule.TIME_IN_FORCE,
        passed,
        ", ".join(c.limits.times_in_force) if not passed or c.explain else "",
        c.intent.time_in_force.value,
        "times in force allowed",
    )


def order_type(c: OrderContext) -> RuleResult:
    """The type is allowed; a stop that becomes a market order at the venue may only reduce."""
    if c.intent.order_type not in c.limits.order_types:
        return c.refuse(
            Rule.ORDER_TYPE,
            ", ".join(c.limits.order_types),
            c.intent.order_type,
            "order types allowed",
        )
    passed = c.intent.order_type is not OrderType.STOP or c.reduces
    return c.judge(
        Rule.ORDER_TYPE,
        passed,
        "stop orders only to reduce; use stop_limit",
        c.intent.order_type,
        "a stop without a limit price has no worst price",
    )


def price_tick(c: OrderContext) -> RuleResult:
    """Every price is a multiple of the tick; nothing is rounded behind the caller's back."""
    if c.instrument is None:
        return c.missing(Rule.PRICE_TICK, _NO_INSTRUMENT)
    for price in (c.intent.limit_price, c.intent.stop_price):
        if price is not None and not c.instrument.is_price(price):
            return c.refuse(Rule.PRICE_TICK, c.instrument.price_tick, price, "prices are multiples of the tick")
    return c.agree(Rule.PRICE_TICK, c.instrument.price_tick, c.limit_price or "", "prices are on the tick")


def quantity_step(c: OrderContext) -> RuleResult:
    """The quantity is a multiple of the step."""
    if c.instrument is None:
        return c.missing(Rule.QUANTITY_STEP, _NO_INSTRUMENT)
    step = c.instrument.quantity_step
    return c.judge(
        Rule.QUANTITY_STEP,
        c.instrument.is_quantity(c.quantity),
        step,
        c.quantity,
        "quantities are multiples of the step",
    )


def quantity_range(c: OrderContext) -> RuleResult:
    """The venue takes this quantity."""
    if c.instrument is None:
        return c.missing(Rule.QUANTITY_RANGE, _NO_INSTRUMENT)
    low, high = c.instrument.quantity_min, c.instrument.quantity_max
    if c.quantity < low:
        return c.refuse(Rule.QUANTITY_RANGE, low, c.quantity, "the venue's smallest quantity, base")
    passed = high is None or c.quantity <= high
    return c.judge(
        Rule.QUANTITY_RANGE, passed, "none" if high is None else high, c.quantity, "the venue's largest quantity, base"
    )


def notional_range(c: OrderContext) -> RuleResult:
    """The venue takes this notional, also at the lowest price the order may trade at."""
    if c.instrument is None:
        return c.missing(Rule.NOTIONAL_RANGE, _NO_INSTRUMENT)
    price = c.limit_price or c.intent.stop_price
    if price is None or c.notional is None:
        return c.missing(Rule.NOTIONAL_RANGE, "cannot be judged: there is no price to value the order at")
    low, high = c.instrument.notional_min, c.instrument.notional_max
    least = c.instrument.notional(c.quantity, price)
    if least < low:
        return c.refuse(Rule.NOTIONAL_RANGE, low, least, "the venue's smallest order, quote")
    passed = high is None or c.notional <= high
    return c.judge(
        Rule.NOTIONAL_RANGE,
        passed,
        "none" if high is None else high,
        c.notional,
        "the venue's largest order, quote",
        "" if high is None else (high, c.notional),
    )
