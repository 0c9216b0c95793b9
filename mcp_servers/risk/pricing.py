"""Turn an order as it is wanted into the order that would be signed, and work out what it may cost.

Rules kept here:

- Market orders become immediate-or-cancel limits at the edge of the band: nothing trades at a price nobody set.
- Prices are rounded toward the safe side (a buy's edge down, a sell's up); quantities are never changed here.
- A buy may cost its limit; a sell may bring more than its limit, so it is valued at the better of limit and mid.
- A reduce is decided on the position less everything already on its way out.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Final

from trading.domain.approvals import Effect
from trading.domain.identifiers import AgentId
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Side, is_worse
from trading.domain.money import ONE, ZERO, add, bps_of, multiply, round_down, round_up, subtract
from trading.domain.proposals import OrderIntent, OrderType, TimeInForce

from .authority import Word
from .context import Frame, MarketFrame, OrderContext

NO_MARKET: Final = MarketFrame(
    instrument=None, instrument_age_ms=None, book=None, mid=None, age_ms=None, problem="there is no market data"
)


def build_context(
    frame: Frame,
    intent: OrderIntent,
    agent_id: AgentId,
    *,
    decided: bool,
    decision_problem: str = "",
    rate_ok: bool = True,
    duplicate_ms: int | None = None,
    word: Word | None = None,
    explain: bool = False,
) -> OrderContext:
    """Return the order with everything the rules need, computed once.

    Args:
        frame: the moment.
        intent: the order, sized in base.
        agent_id: on whose behalf.
        decided: a verified decision of the vote covers it.
        decision_problem: why a decision that was named does not hold.
        rate_ok, duplicate_ms: what the counters said when the order was counted.
        word: the operator's; a market order is then never priced beyond what the operator was shown.
        explain: make rules that pass say so in words.
    """
    in_force = frame.policy.scopes.of(intent.account_id, frame.mode, intent.venue, agent_id, intent.symbol)
    instrument_id = InstrumentId(intent.venue, intent.symbol)
    market = frame.markets.get(instrument_id, NO_MARKET)
    instrument = market.instrument
    reservations = frame.reservations

    c = OrderContext()
    c.frame, c.intent, c.agent_id, c.explain = frame, intent, agent_id, explain
    c.in_force, c.limits, c.symbol_limits = in_force, in_force.limits, in_force.symbol
    c.market, c.instrument = market, instrument
    c.quantity = intent.quantity
    c.instrument_id, c.held = instrument_id, frame.portfolio.held(instrument_id)
    c.closable = frame.portfolio.closable(instrument_id, intent.side)
    c.reduces = ZERO < c.quantity <= c.closable
    c.effect = Effect.REDUCE if c.reduces else Effect.INCREASE
    c.exposure = exposure = reservations.exposure(instrument_id)
    if intent.side is Side.BUY:
        c.after = add(c.held, add(exposure.buy_open, c.quantity))
    else:
        c.after = subtract(c.held, add(exposure.sell_open, c.quantity))
    c.use = reservations.agent(agent_id)
    c.rate_ok, c.duplicate_ms = rate_ok, duplicate_ms
    c.decided, c.decision_problem, c.human = decided, decision_problem, word is not None
    c.band_low = c.band_high = c.limit_price = c.worst = c.notional = c.unit_cost = c.cost = None
    c.walked = c.own_value = None
    c.fee_rate = ZERO
    if instrument is not None:
        _price(c, instrument, None if word is None else word.price_limit)
    return c


def _price(c: OrderContext, instrument: Instrument, shown: Decimal | None) -> None:
    intent, mid = c.intent, c.market.mid
    c.fee_rate = max(instrument.taker_fee, instrument.maker_fee, ZERO)
    if mid is not None:
        c.band_low, c.band_high = _band(mid, _band_bps(c), instrument.price_tick)
    if intent.order_type is OrderType.MARKET:
        c.limit_price = c.band_high if intent.side is Side.BUY else c.band_low
        if shown is not None and c.limit_price is not None and is_worse(c.limit_price, shown, intent.side):
            c.limit_price = shown
        if c.market.book is not None and c.limit_price is not None and c.limit_price > 0:
            c.walked = c.market.book.walk(intent.side, c.quantity, limit_price=c.limit_price).filled
    else:
        c.limit_price = intent.limit_price
    c.worst = _worst(intent.side, c.limit_price or intent.stop_price, mid)
    if c.worst is not None:
        c.notional = multiply(c.quantity, c.worst)
        c.unit_cost = multiply(c.worst, add(ONE, c.fee_rate))
        c.cost = multiply(c.quantity, c.unit_cost)


@lru_cache(maxsize=1024)
def _band(mid: Decimal, bps: Decimal, tick: Decimal) -> tuple[Decimal, Decimal]:
    """Return the band around the mid, on the tick and rounded inward; orders of one moment share it."""
    half = bps_of(mid, bps)
    return round_up(subtract(mid, half), tick), round_down(add(mid, half), tick)


def _band_bps(c: OrderContext) -> Decimal:
    normal = c.limits.band_bps_decided if c.decided else c.limits.band_bps_interactive
    return max(normal, c.limits.band_bps_exit) if c.reduces else normal


def _worst(side: Side, price: Decimal | None, mid: Decimal | None) -> Decimal | None:
    if price is None:
        return None
    if side is Side.SELL and mid is not None:
        return max(price, mid)
    return price


def signed_terms(intent: OrderIntent) -> tuple[OrderType, TimeInForce]:
    """Return the type and time in force that would be signed for this order."""
    if intent.order_type is OrderType.MARKET:
        return OrderType.LIMIT, TimeInForce.IOC
    return intent.order_type, intent.time_in_force
