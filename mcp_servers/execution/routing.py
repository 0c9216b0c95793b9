"""From an order as a caller asks for it to child orders, each with its venue, before anything is signed.

One venue is connected in this release, so an order has one child. The child is sized in base and rounded down to the
step; what it would cost is read from the book as it is now and promises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from trading.domain.errors import InvalidValue, StaleData
from trading.domain.identifiers import AccountId
from trading.domain.instruments import Instrument
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import ZERO, difference_bps, is_multiple, multiply, plain, quantize_nearest
from trading.domain.proposals import OrderIntent, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit, to_quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What is wanted, sized in any unit.

    Attributes:
        amount: > 0, in ``unit``.
        stop_price: trigger of a stop; for ``risk_percent_to_stop`` also the price the size is measured to.
    """

    order_type: OrderType
    side: Side
    amount: Decimal
    unit: SizeUnit
    limit_price: Decimal | None
    stop_price: Decimal | None
    time_in_force: TimeInForce
    post_only: bool
    reduce_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the child would do if it were sent now.

    Attributes:
        expected_price: quote per base, volume-weighted, for what fills at once; else the price it waits at.
        worst_price: the last level touched, None if nothing fills at once.
        notional: quote, quantity times expected price.
        fee: quote, at the rate that applies.
        fee_rate: maker for what can only rest, else taker.
        slippage_bps: expected price against the mid, positive when worse than it.
        fills_now: base that the book can give within the limit.
    """

    expected_price: Decimal
    worst_price: Decimal | None
    notional: Decimal
    fee: Decimal
    fee_rate: Decimal
    slippage_bps: Decimal
    fills_now: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One order for one venue, ready to be put to risk."""

    intent: OrderIntent
    estimate: Estimate


def plan_child(
    request: RouteRequest,
    instrument: Instrument,
    book: OrderBook,
    *,
    account_id: AccountId,
    equity: Decimal | None,
) -> Child:
    """Return the child order for one venue.

    Args:
        request: what is wanted.
        instrument: the venue's rules.
        book: the newest book, fresh enough to price with.
        account_id: whose order it will be.
        equity: the account's worth in quote, None when it is not known.

    Raises:
        InvalidValue: contradictory prices, off the tick, or below the venue's minimum; ``allowed`` is the nearest size.
        StaleData: the book has no side to price with.
    """
    _check_prices(request, instrument)
    price = _sizing_price(request, book)
    quantity = to_quantity(
        request.amount, request.unit, instrument, price=price, equity=equity, stop_price=request.stop_price
    )
    _check_size(quantity, price, instrument)
    is_stop = request.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)
    intent = OrderIntent(
        account_id=account_id,
        venue=instrument.venue,
        symbol=instrument.symbol,
        side=request.side,
        order_type=request.order_type,
        quantity=quantity,
        limit_price=request.limit_price,
        stop_price=request.stop_price if is_stop else None,
        time_in_force=request.time_in_force,
        post_only=request.post_only,
        reduce_only=request.reduce_only,
    )
    return Child(intent=intent, estimate=_estimate(intent, instrument, book, price))


def _check_prices(request: RouteRequest, instrument: Instrument) -> None:
    for name, price in (("limit_price", request.limit_price), ("stop_price", request.stop_price)):
        if price is not None and not is_multiple(price, instrument.price_tick):
            near = (instrument.price_floor(price), instrument.price_ceiling(price))
            raise InvalidValue(
                f"{name} is not on the tick of {plain(instrument.price_tick)}",
                code="PRICE_TICK",
                suggestion="use one of the allowed prices",
                allowed=tuple(plain(each) for each in near),
            )


def _sizing_price(request: RouteRequest, book: OrderBook) -> Decimal:
    """Return the price at which the order is expected to trade."""
    if request.limit_price is not None:
        return request.limit_price
    if request.order_type is OrderType.STOP and request.stop_price is not None:
        return request.stop_price
    touch = book.best_ask if request.side is Side.BUY else book.best_bid
    if touch is None:
        raise StaleData("the book has no side to price this order with")
    return touch.price


def _check_size(quantity: Decimal, price: Decimal, instrument: Instrument) -> None:
    least = instrument.smallest_quantity(price)
    if quantity < least:
        raise InvalidValue(
            f"the order is {plain(quantity)} {instrument.base}, below the venue's minimum",
            code="BELOW_MINIMUM",
            suggestion="ask for at least the allowed amount, in base",
            allowed=(plain(least),),
        )
    if instrument.quantity_max is not None and quantity > instrument.quantity_max:
        raise InvalidValue(
            f"the order is {plain(quantity)} {instrument.base}, above the venue's maximum",
            code="ABOVE_MAXIMUM",
            suggestion="split it",
            allowed=(plain(instrument.quantity_max),),
        )


def _estimate(intent: OrderIntent, instrument: Instrument, book: OrderBook, price: Decimal) -> Estimate:
    waits = intent.post_only or intent.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)
    walked = book.walk(intent.side, intent.quantity, limit_price=intent.limit_price)
    now = ZERO if waits else walked.filled
    average = walked.average_price if now else None
    expected = price if average is None else quantize_nearest(average, 8)
    rests = intent.post_only or (not now and intent.order_type is OrderType.LIMIT)
    rate = instrument.maker_fee if rests else instrument.taker_fee
    notional = quantize_nearest(multiply(intent.quantity, expected), 8)
    mid = book.mid
    slippage = ZERO if mid is None else difference_bps(expected, mid) * intent.side.sign
    return Estimate(
        expected_price=expected,
        worst_price=walked.worst_price if now else None,
        notional=notional,
        fee=quantize_nearest(multiply(notional, rate), 8),
        fee_rate=rate,
        slippage_bps=quantize_nearest(slippage, 2),
        fills_now=now,
    )
