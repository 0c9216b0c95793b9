"""An order as a caller asks for it, and how it becomes an intent sized in base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Final

from trading.adapters import codec
from trading.adapters.signing import digest
from trading.domain.errors import InvalidValue, StaleData, UnknownInstrument
from trading.domain.identifiers import AccountId, AgentId, DecisionId, Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import MAX_SCALE, add, bps_of, subtract
from trading.domain.proposals import REASON_MAX, OrderIntent, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit, to_quantity
from trading.domain.standing_exits import PROTECTION

from .context import Frame
from .pricing import NO_MARKET

#: Orders in one request.
ORDERS_MAX: Final = 256

_FINEST: Final = Decimal(1).scaleb(-MAX_SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRequest:
    """One order in a caller's words.

    Attributes:
        amount: > 0, in ``unit``.
        stop_price: the trigger of a stop; for ``risk_percent_to_stop`` also the price the size is measured to.
        reason: at most 280 characters, kept in the ledger, never acted on.
    """

    symbol: Symbol
    side: Side
    order_type: OrderType
    amount: Decimal
    unit: SizeUnit = SizeUnit.BASE
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    time_in_force: TimeInForce = TimeInForce.GTC
    post_only: bool = False
    reduce_only: bool = False
    venue: Venue
    account_id: AccountId
    agent_id: AgentId
    reason: str = ""

    def __post_init__(self) -> None:
        if len(self.reason) > REASON_MAX:
            raise InvalidValue(f"reason is longer than {REASON_MAX} characters", code="REASON_TOO_LONG")
        if self.agent_id == PROTECTION:
            raise InvalidValue(f"{PROTECTION} is the name under which stops act, no agent's", code="AGENT_RESERVED")


def request_digest(orders: tuple[OrderRequest, ...], decision_id: DecisionId | None) -> str:
    """Return SHA-256 of what is asked for; the same content asked again has the same digest."""
    return digest(codec.encode([decision_id, orders]))


def request_of(intent: OrderIntent, agent_id: AgentId, reason: str = "") -> OrderRequest:
    """Return the request that asks for exactly this intent (a decision's own order)."""
    return OrderRequest(
        symbol=intent.symbol,
        side=intent.side,
        order_type=intent.order_type,
        amount=intent.quantity,
        limit_price=intent.limit_price,
        stop_price=intent.stop_price,
        time_in_force=intent.time_in_force,
        post_only=intent.post_only,
        reduce_only=intent.reduce_only,
        venue=intent.venue,
        account_id=intent.account_id,
        agent_id=agent_id,
        reason=reason,
    )


def intent_of(frame: Frame, request: OrderRequest, *, decided: bool) -> OrderIntent:
    """Return the order sized in base, rounded down to the step.

    A size that rounds to nothing stays unrounded, so that the rules can name what is wrong with it.

    Raises:
        UnknownInstrument: the amount is not in base and the desk does not trade the symbol on that venue.
        InvalidValue: the order contradicts itself, or a figure that its unit needs is missing.
        StaleData: there is no price to convert the amount with.
    """
    market = frame.markets.get(InstrumentId(request.venue, request.symbol), NO_MARKET)
    stops = request.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)
    sizing_stop = request.stop_price if request.unit is SizeUnit.RISK_PERCENT_TO_STOP else None
    quantity = request.amount
    if request.unit is SizeUnit.BASE:
        if market.instrument is not None:
            quantity = market.instrument.quantity_floor(quantity) or quantity
    elif market.instrument is not None and request.amount > 0:
        price = _sizing_price(frame, request, market.mid, decided=decided)
        sized = partial(
            to_quantity, request.amount, request.unit, price=price, equity=frame.equity, stop_price=request.stop_price
        )
        # A size below one step stays as it is: the amount itself would be read as so many coins.
        quantity = sized(market.instrument) or sized(replace(market.instrument, quantity_step=_FINEST))
    else:
        known = [item.symbol for item in frame.markets if item.venue == request.venue]
        if request.symbol not in known:
            raise UnknownInstrument(
                f"{request.venue} has no {request.symbol} on this desk",
                suggestion="use a symbol and a venue of this desk; leave venue out",
                allowed=tuple(sorted({item.symbol for item in frame.markets})),
            )
        raise StaleData(f"{request.symbol} has no rules here, so an amount in {request.unit} cannot be converted")
    return OrderIntent(
        account_id=request.account_id,
        venue=request.venue,
        symbol=request.symbol,
        side=request.side,
        order_type=request.order_type,
        quantity=quantity,
        limit_price=request.limit_price,
        stop_price=request.stop_price if stops or sizing_stop is None else None,
        time_in_force=request.time_in_force,
        post_only=request.post_only,
        reduce_only=request.reduce_only,
    )


def _sizing_price(frame: Frame, request: OrderRequest, mid: Decimal | None, *, decided: bool) -> Decimal:
    """Return the price to convert at: for market orders the edge of the band, so that quote is never exceeded."""
    if request.limit_price is not None:
        return request.limit_price
    if request.order_type is OrderType.STOP and request.stop_price is not None:
        return request.stop_price
    if mid is None:
        raise StaleData("there is no price to convert the amount with", suggestion="give the amount in base")
    half = bps_of(mid, frame.limits.band_bps_decided if decided else frame.limits.band_bps_interactive)
    return add(mid, half) if request.side is Side.BUY else subtract(mid, half)
