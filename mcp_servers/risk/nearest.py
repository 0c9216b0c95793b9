"""The nearest legal order: the price moved as little as it must be, then the size.

Rules kept here:

- Only price and size are changed. A wrong side, type, venue or state is the caller's to change.
- A limit moves onto the tick, inside the collar and off our own resting orders, always toward the safe side.
- Sizes are found by division and put through every rule before they are named; when that estimate is wrong, by halving.
- What is named passes every rule at this moment; nothing is reserved, so another order may be quicker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Final

from trading.domain.instruments import Instrument
from trading.domain.market_data import Side, is_worse
from trading.domain.money import ZERO, add, divide, multiply, round_down, round_up, subtract
from trading.domain.proposals import OrderIntent, OrderType

from .context import OrderContext
from .policies import activity, exposure, portfolio, price, score, size

_HALVINGS: Final = 40
_HUNDRED: Final = Decimal(100)

Ask = Callable[[OrderContext, OrderIntent], tuple[OrderContext, bool]]


class LegalSearch:
    """Looks for legal orders near one that was asked for.

    Args:
        context: the order asked for.
        ask: judges the same order at another price or size.
    """

    def __init__(self, context: OrderContext, ask: Ask) -> None:
        self._asked = context
        self._ask = ask
        intent = _at_legal_price(context)
        self._moved = intent is not context.intent
        self._context = ask(context, intent)[0] if self._moved else context

    def largest(self) -> OrderIntent | None:
        """Return the order at the largest size that passes every rule, None when no size does."""
        c = self._context
        instrument = c.instrument
        quantity = largest_quantity(c)
        if quantity is None or instrument is None:
            return None
        for estimate in (quantity, subtract(quantity, instrument.quantity_step)):  # division may have rounded up
            if estimate > 0 and self._passes(estimate):
                return replace(c.intent, quantity=estimate)
        return self._halved(instrument, quantity)

    def nearest(self) -> OrderIntent | None:
        """Return the legal order nearest to the one asked for: its own size, else less, or the venue's smallest."""
        c = self._context
        instrument, at = c.instrument, c.limit_price or c.intent.stop_price
        if instrument is None or at is None or at <= 0:
            return None
        least = instrument.smallest_quantity(at)
        if c.quantity < least:
            return replace(c.intent, quantity=least) if self._passes(least) else None
        floored = instrument.quantity_floor(c.quantity)
        if (self._moved or floored != c.quantity) and self._passes(floored):
            return replace(c.intent, quantity=floored)
        largest = self.largest()
        return largest if largest is not None and largest.quantity < c.quantity else None

    def _passes(self, quantity: Decimal) -> bool:
        return self._ask(self._context, replace(self._context.intent, quantity=quantity))[1]

    def _halved(self, instrument: Instrument, most: Decimal) -> OrderIntent | None:
        """Return the order at the largest passing size below ``most``; None when the smallest does not pass."""
        c, step = self._context, instrument.quantity_step
        at = c.limit_price or c.intent.stop_price
        low = instrument.smallest_quantity(at) if at is not None and at > 0 else ZERO
        if low <= 0 or low >= most or not self._passes(low):
            return None
        high = most
        for _ in range(_HALVINGS):
            middle = round_down(divide(add(low, high), Decimal(2)), step)
            if middle <= low:
                break
            low, high = (middle, high) if self._passes(middle) else (low, middle)
        return replace(c.intent, quantity=low)


def _at_legal_price(c: OrderContext) -> OrderIntent:
    """Return the order with its limit moved to where price rules allow it; unchanged when it is there already."""
    instrument, limit, trigger = c.instrument, c.intent.limit_price, c.intent.stop_price
    if instrument is None or limit is None:
        return c.intent
    buys, tick = c.intent.side is Side.BUY, instrument.price_tick
    best = limit
    if trigger is not None and not instrument.is_price(trigger):
        trigger = round_down(trigger, tick) if buys else round_up(trigger, tick)
    edge = price.collar_edge(c, trigger)
    if edge is not None and is_worse(best, edge, c.intent.side):
        best = edge
    own = None if c.reduces else c.exposure.best_resting(c.intent.side.opposite)
    if own is not None and not (best < own if buys else best > own):
        best = subtract(own, tick) if buys else add(own, tick)
    best = round_down(best, tick) if buys else round_up(best, tick)
    if best <= 0 or (best == limit and trigger == c.intent.stop_price):
        return c.intent
    return replace(c.intent, limit_price=best, stop_price=trigger)


def largest_quantity(c: OrderContext) -> Decimal | None:
    """Return the most base that the size rules would allow now, on the step; None when something essential is missing.

    An estimate by division: the caller puts it through the rules before believing it.
    """
    instrument = c.instrument
    if instrument is None or c.worst is None or c.unit_cost is None or c.market.mid is None:
        return None
    if c.intent.side is Side.SELL and c.closable > 0:
        best = instrument.quantity_floor(c.closable)
        if best >= instrument.smallest_quantity(c.worst):
            return best if instrument.quantity_max is None else min(best, instrument.quantity_max)
    if c.intent.reduce_only:
        return instrument.quantity_floor(c.closable)
    caps = _increase_caps(c, instrument)
    return None if caps is None else instrument.quantity_floor(max(ZERO, min(caps)))


def _increase_caps(c: OrderContext, instrument: Instrument) -> list[Decimal] | None:
    limits, symbol = c.limits, c.symbol_limits
    others, value = exposure.other_exposure(c), exposure.unit_value(c)
    if symbol is None or others is None or not c.worst or not c.unit_cost or not value:
        return None
    buys = c.intent.side is Side.BUY
    open_side = c.exposure.buy_open if buys else c.exposure.sell_open
    already = subtract(exposure.worst_position(c), c.quantity)
    counted = max(already, open_side)
    free = portfolio.free_balance(c)
    net = others.long if buys else -others.short
    turnover, approved = activity.tightest_turnover(c)
    caps = [
        symbol.order_quantity_max,
        divide(symbol.order_notional_max, c.worst),
        subtract(symbol.position_quantity_max, already),
        subtract(divide(subtract(limits.gross_exposure_max, others.gross), value), counted),
        subtract(divide(subtract(limits.net_exposure_max, net), value), already),
        divide(free, c.unit_cost) if buys else free,
        divide(subtract(limits.reserved_notional_max, c.use.notional), c.unit_cost),
        divide(subtract(turnover, approved), c.worst),
        divide(subtract(symbol.symbol_drift_max, activity.drift_before(c)), c.worst),
    ]
    caps += _caps_of_equity(c, others.gross, value, counted)
    if instrument.quantity_max is not None:
        caps.append(instrument.quantity_max)
    if instrument.notional_max is not None:
        caps.append(divide(instrument.notional_max, c.worst))
    if not c.decided:
        caps.append(divide(limits.undecided_notional_max, c.worst))
    if limits.unattended_notional_max is not None:
        caps.append(divide(limits.unattended_notional_max, c.worst))
    if (most := score.score_notional(c)) is not None:
        caps.append(divide(most, c.worst))
    if symbol.trade_size_multiple_max is not None and (usual := size.usual_size(c)) is not None:
        caps.append(multiply(usual, symbol.trade_size_multiple_max))
    if c.intent.order_type is OrderType.MARKET and c.market.book is not None:
        caps.append(price.depth_inside_impact(c))
    return caps


def _caps_of_equity(c: OrderContext, others: Decimal, value: Decimal, counted: Decimal) -> list[Decimal]:
    limits, equity = c.limits, c.frame.equity
    if equity is None:
        return []
    caps: list[Decimal] = []
    if limits.concentration_pct_max is not None:
        caps.append(
            subtract(divide(multiply(equity, limits.concentration_pct_max), multiply(value, _HUNDRED)), counted)
        )
    if limits.leverage_max is not None:
        caps.append(subtract(divide(subtract(multiply(equity, limits.leverage_max), others), value), counted))
    return caps
