"""An order as the paper venue holds it, and what one step of the venue did."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from trading.domain.approvals import ApprovedOrder
from trading.domain.identifiers import ClientOrderId, Currency, VenueOrderId
from trading.domain.money import ZERO, subtract
from trading.domain.proposals import OrderType
from trading.ports.venue import VenueOrderState, VenueReport, VenueTrade


class Refusal(StrEnum):
    """Why the venue refused or ended an order; stable codes, as ``NonRetryable.code`` and ``VenueReport.reason``."""

    UNKNOWN_SYMBOL = "UNKNOWN_SYMBOL"
    UNKNOWN_ACCOUNT = "UNKNOWN_ACCOUNT"
    INVALID_ORDER = "INVALID_ORDER"
    PRICE_TICK = "PRICE_TICK"
    QUANTITY_STEP = "QUANTITY_STEP"
    QUANTITY_MIN = "QUANTITY_MIN"
    QUANTITY_MAX = "QUANTITY_MAX"
    NOTIONAL_MIN = "NOTIONAL_MIN"
    NOTIONAL_MAX = "NOTIONAL_MAX"
    NO_MARKET = "NO_MARKET"
    POST_ONLY_WOULD_TAKE = "POST_ONLY_WOULD_TAKE"
    STOP_WOULD_TRIGGER = "STOP_WOULD_TRIGGER"
    REDUCE_ONLY_WOULD_INCREASE = "REDUCE_ONLY_WOULD_INCREASE"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    SELF_TRADE = "SELF_TRADE"
    IOC_REMAINDER = "IOC_REMAINDER"
    FOK_NOT_FILLABLE = "FOK_NOT_FILLABLE"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"


@dataclass(slots=True, kw_only=True, eq=False)
class PaperOrder:
    """One order inside the venue. Mutable, and touched by the matching core only.

    Attributes:
        arrival: rises with every order; earlier is ahead at the same price.
        locked: amount of ``lock_currency`` held for what may still fill.
        is_kept: whether it rests in a queue or waits among the stops.
        ahead: base that others have in front of us at our price; None while our level lies outside the depth we
            can see, which counts as infinitely much.
        credit, credit_ts_ms: queue already given by a book; a print not newer than that book uses it up first.
        met_ts_ms: venue time of the book it met on arrival; prints not newer than that are history to it.
    """

    terms: ApprovedOrder
    venue_order_id: VenueOrderId
    arrival: int
    lock_currency: Currency
    created_ms: int
    updated_ms: int
    state: VenueOrderState = VenueOrderState.OPEN
    filled: Decimal = ZERO
    triggered: bool = False
    reason: str = ""
    locked: Decimal = ZERO
    is_kept: bool = False
    ahead: Decimal | None = None
    credit: Decimal = ZERO
    credit_ts_ms: int = 0
    met_ts_ms: int = 0
    trades: list[VenueTrade] = field(default_factory=list[VenueTrade])

    @property
    def client_order_id(self) -> ClientOrderId:
        """The desk's id, unique for ever."""
        return self.terms.client_order_id

    @property
    def leaves(self) -> Decimal:
        """Base that may still fill."""
        return subtract(self.terms.quantity, self.filled)

    @property
    def waits_for_trigger(self) -> bool:
        """Whether it is a stop that has not been triggered."""
        return not self.triggered and self.terms.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)

    def report(self, trades_from: int = 0) -> VenueReport:
        """Return the order as it is now, with its trades from that index on."""
        return VenueReport(
            client_order_id=self.terms.client_order_id,
            venue_order_id=self.venue_order_id,
            instrument_id=self.terms.instrument_id,
            state=self.state,
            filled=self.filled,
            trades=tuple(self.trades[trades_from:]),
            triggered=self.triggered,
            reason=self.reason,
            venue_ts_ms=self.updated_ms,
        )


@dataclass(slots=True)
class Step:
    """Everything that one request, book or print changed: all of it is journaled together or not at all.

    Attributes:
        created: orders that became known, rejected ones included.
        trades: in the order in which they happened.
        changed: known orders whose state, trigger or fills changed.
    """

    at_ms: int
    created: list[PaperOrder] = field(default_factory=list[PaperOrder])
    trades: list[VenueTrade] = field(default_factory=list[VenueTrade])
    changed: list[PaperOrder] = field(default_factory=list[PaperOrder])

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.created or self.trades or self.changed)

    def touch(self, order: PaperOrder) -> None:
        """Note that an order changed, once."""
        if order not in self.created and order not in self.changed:
            self.changed.append(order)
