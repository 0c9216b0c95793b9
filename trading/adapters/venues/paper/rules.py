"""What the venue checks of an order before it looks at the market, and what an order costs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from trading.adapters.venues.paper.book import Plan
from trading.adapters.venues.paper.orders import Refusal
from trading.domain.approvals import ApprovedOrder
from trading.domain.fills import Liquidity
from trading.domain.identifiers import Currency
from trading.domain.instruments import Instrument
from trading.domain.market_data import Level, Side
from trading.domain.money import ONE, ZERO, add, divide, multiply, subtract
from trading.domain.proposals import OrderType, TimeInForce


@dataclass(frozen=True, slots=True)
class FeeSchedule:
    """How fees are taken.

    Attributes:
        in_base_on_buys: whether buys pay in base, as Binance does without BNB; sells always pay in quote.
    """

    in_base_on_buys: bool = False

    def fee(
        self, instrument: Instrument, side: Side, quantity: Decimal, price: Decimal, liquidity: Liquidity
    ) -> tuple[Decimal, Currency]:
        """Return the exact fee of one execution and its currency; negative is a rebate."""
        rate = instrument.maker_fee if liquidity is Liquidity.MAKER else instrument.taker_fee
        if self.in_base_on_buys and side is Side.BUY:
            return multiply(quantity, rate), instrument.base
        return multiply(multiply(quantity, price), rate), instrument.quote

    def cost_rate(self, instrument: Instrument) -> Decimal:
        """Return quote that a buy may cost per quote of notional, at the worse of both rates."""
        if self.in_base_on_buys:
            return ONE
        return add(ONE, max(ZERO, instrument.maker_fee, instrument.taker_fee))


FEES_IN_QUOTE: Final = FeeSchedule()


def check_form(order: ApprovedOrder, instrument: Instrument) -> Refusal | None:
    """Return the first rule that the order breaks by itself, None when it is well-formed."""
    if not _has_right_prices(order) or (order.post_only and not _may_post(order)):
        return Refusal.INVALID_ORDER
    for price in (order.limit_price, order.stop_price):
        if price is not None and not instrument.is_price(price):
            return Refusal.PRICE_TICK
    if not instrument.is_quantity(order.quantity):
        return Refusal.QUANTITY_STEP
    if order.quantity < instrument.quantity_min:
        return Refusal.QUANTITY_MIN
    if instrument.quantity_max is not None and order.quantity > instrument.quantity_max:
        return Refusal.QUANTITY_MAX
    return None


def check_notional(order: ApprovedOrder, instrument: Instrument, market_price: Decimal | None) -> Refusal | None:
    """Return whether price times quantity is too small or too large; the first price that exists counts.

    Args:
        order: limit price, else stop price, else ``market_price`` values it.
        instrument: the venue's bounds.
        market_price: best price on the other side, None when there is none.
    """
    price = order.limit_price or order.stop_price or market_price
    if price is None:
        return None
    notional = multiply(order.quantity, price)
    if notional < instrument.notional_min:
        return Refusal.NOTIONAL_MIN
    if instrument.notional_max is not None and notional > instrument.notional_max:
        return Refusal.NOTIONAL_MAX
    return None


def _has_right_prices(order: ApprovedOrder) -> bool:
    wants_limit = order.order_type in (OrderType.LIMIT, OrderType.STOP_LIMIT)
    wants_stop = order.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)
    return wants_limit == (order.limit_price is not None) and wants_stop == (order.stop_price is not None)


def _may_post(order: ApprovedOrder) -> bool:
    return order.limit_price is not None and order.time_in_force is TimeInForce.GTC


def plan_cost(plan: Plan, rate: Decimal) -> Decimal:
    """Return quote that buying a plan takes, fees included, at ``rate`` quote per quote of notional."""
    cost = ZERO
    for price, quantity in plan.fills:
        cost = add(cost, multiply(price, quantity))
    return multiply(cost, rate)


def affordable(plan: Plan, funds: Decimal, rate: Decimal, instrument: Instrument) -> Plan:
    """Return the first part of a buying plan that ``funds`` (quote) can pay, on the quantity step."""
    fills: list[Level] = []
    filled, left = ZERO, funds
    for price, quantity in plan.fills:
        unit = multiply(price, rate)
        part = quantity
        if multiply(unit, quantity) > left:
            part = instrument.quantity_floor(divide(left, unit))
            while part > 0 and multiply(unit, part) > left:  # the quotient was rounded to nearest
                part = subtract(part, instrument.quantity_step)
        if part > 0:
            fills.append(Level(price, part))
            filled = add(filled, part)
            left = subtract(left, multiply(unit, part))
        if part < quantity:
            break
    return Plan(fills, filled, meets_self=False)
