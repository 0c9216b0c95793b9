"""The life of an order: one table, and an order that only moves along it.

::

    INITIALIZED ─▶ SUBMITTED ─▶ ACCEPTED ─▶ (TRIGGERED) ─▶ PARTIALLY_FILLED ─▶ FILLED*
        │              │            ├─▶ PENDING_CANCEL ─▶ CANCELED*          EXPIRED*
        │              │            └─▶ PENDING_UPDATE ─▶ ACCEPTED
        ├─▶ DENIED*    ├─▶ REJECTED*  (only on a definitive refusal by the venue)
        └─▶ NOT_SENT*  └─▶ UNKNOWN ─▶ whatever the venue says ─▶ or ABSENT* after positive evidence

States marked * are terminal. Denied is a refusal by us, Rejected one by the venue. UNKNOWN is FIX's missing state:
the request may have been executed; its reservation stays until evidence. A fill may still arrive after CANCELED or
EXPIRED (a race at the venue); it is legal, it counts, and it alarms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Final

from trading.domain.approvals import ApprovedOrder, Effect
from trading.domain.errors import InvalidTransition
from trading.domain.fills import Fill
from trading.domain.identifiers import (
    AgentId,
    ApprovalId,
    Currency,
    OrderId,
    TradeId,
    VenueOrderId,
)
from trading.domain.money import ZERO, add, divide, subtract


class OrderStatus(StrEnum):
    """FIX OrdStatus 39 in nautilus_trader's words, with UNKNOWN, ABSENT and NOT_SENT added."""

    INITIALIZED = "initialized"
    DENIED = "denied"
    NOT_SENT = "not_sent"
    SUBMITTED = "submitted"
    UNKNOWN = "unknown"
    ABSENT = "absent"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    TRIGGERED = "triggered"
    PENDING_UPDATE = "pending_update"
    PENDING_CANCEL = "pending_cancel"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"


class OrderTrigger(StrEnum):
    """What can happen to an order."""

    DENY = "deny"
    WITHHOLD = "withhold"
    SUBMIT = "submit"
    LOSE = "lose"
    FIND_ABSENT = "find_absent"
    ACCEPT = "accept"
    REJECT = "reject"
    TRIGGER = "trigger"
    REQUEST_UPDATE = "request_update"
    UPDATE = "update"
    REFUSE_UPDATE = "refuse_update"
    REQUEST_CANCEL = "request_cancel"
    REFUSE_CANCEL = "refuse_cancel"
    CANCEL = "cancel"
    EXPIRE = "expire"
    FILL_PARTLY = "fill_partly"
    FILL = "fill"


S, T = OrderStatus, OrderTrigger

TERMINAL: Final = frozenset({S.DENIED, S.NOT_SENT, S.ABSENT, S.REJECTED, S.FILLED, S.CANCELED, S.EXPIRED})
#: Resting or about to rest at the venue, as far as we know.
WORKING: Final = frozenset({S.ACCEPTED, S.TRIGGERED, S.PENDING_UPDATE, S.PENDING_CANCEL, S.PARTIALLY_FILLED})
#: May be alive at the venue: everything sent that is not known to be over.
POSSIBLY_LIVE: Final = WORKING | {S.SUBMITTED, S.UNKNOWN}

#: The only legal moves. A pair that is not here raises InvalidTransition.
TRANSITIONS: Final[dict[tuple[OrderStatus, OrderTrigger], OrderStatus]] = {
    (S.INITIALIZED, T.DENY): S.DENIED,
    (S.INITIALIZED, T.WITHHOLD): S.NOT_SENT,  # the last check before the send failed
    (S.INITIALIZED, T.SUBMIT): S.SUBMITTED,
    (S.INITIALIZED, T.LOSE): S.UNKNOWN,  # found after a crash: it may have been sent
    (S.SUBMITTED, T.ACCEPT): S.ACCEPTED,
    (S.SUBMITTED, T.REJECT): S.REJECTED,
    (S.SUBMITTED, T.LOSE): S.UNKNOWN,
    (
        S.SUBMITTED,
        T.CANCEL,
    ): S.CANCELED,  # IOC and FOK remainders at venues that never say accepted
    (S.SUBMITTED, T.EXPIRE): S.EXPIRED,
    (S.SUBMITTED, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.SUBMITTED, T.FILL): S.FILLED,
    (S.UNKNOWN, T.ACCEPT): S.ACCEPTED,
    (S.UNKNOWN, T.REJECT): S.REJECTED,
    (S.UNKNOWN, T.FIND_ABSENT): S.ABSENT,
    (S.UNKNOWN, T.TRIGGER): S.TRIGGERED,
    (S.UNKNOWN, T.CANCEL): S.CANCELED,
    (S.UNKNOWN, T.EXPIRE): S.EXPIRED,
    (S.UNKNOWN, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.UNKNOWN, T.FILL): S.FILLED,
    (S.ACCEPTED, T.TRIGGER): S.TRIGGERED,
    (S.ACCEPTED, T.REQUEST_UPDATE): S.PENDING_UPDATE,
    (S.ACCEPTED, T.REQUEST_CANCEL): S.PENDING_CANCEL,
    (S.ACCEPTED, T.CANCEL): S.CANCELED,
    (S.ACCEPTED, T.EXPIRE): S.EXPIRED,
    (S.ACCEPTED, T.REJECT): S.REJECTED,  # Real world: some venues accept, then reject
    (S.ACCEPTED, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.ACCEPTED, T.FILL): S.FILLED,
    (S.TRIGGERED, T.REQUEST_CANCEL): S.PENDING_CANCEL,
    (S.TRIGGERED, T.CANCEL): S.CANCELED,
    (S.TRIGGERED, T.EXPIRE): S.EXPIRED,
    (S.TRIGGERED, T.REJECT): S.REJECTED,
    (S.TRIGGERED, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.TRIGGERED, T.FILL): S.FILLED,
    (S.PENDING_UPDATE, T.UPDATE): S.ACCEPTED,
    (S.PENDING_UPDATE, T.REFUSE_UPDATE): S.ACCEPTED,
    (S.PENDING_UPDATE, T.REQUEST_CANCEL): S.PENDING_CANCEL,
    (S.PENDING_UPDATE, T.CANCEL): S.CANCELED,
    (S.PENDING_UPDATE, T.EXPIRE): S.EXPIRED,
    (S.PENDING_UPDATE, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.PENDING_UPDATE, T.FILL): S.FILLED,
    (S.PENDING_CANCEL, T.REFUSE_CANCEL): S.ACCEPTED,
    (S.PENDING_CANCEL, T.CANCEL): S.CANCELED,
    (S.PENDING_CANCEL, T.EXPIRE): S.EXPIRED,
    (
        S.PENDING_CANCEL,
        T.FILL_PARTLY,
    ): S.PENDING_CANCEL,  # the cancel is still on its way
    (S.PENDING_CANCEL, T.FILL): S.FILLED,
    (S.PARTIALLY_FILLED, T.TRIGGER): S.PARTIALLY_FILLED,
    (S.PARTIALLY_FILLED, T.REQUEST_UPDATE): S.PENDING_UPDATE,
    (S.PARTIALLY_FILLED, T.REQUEST_CANCEL): S.PENDING_CANCEL,
    (S.PARTIALLY_FILLED, T.CANCEL): S.CANCELED,
    (S.PARTIALLY_FILLED, T.EXPIRE): S.EXPIRED,
    (S.PARTIALLY_FILLED, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.PARTIALLY_FILLED, T.FILL): S.FILLED,
    # Real world: a fill can arrive after the order was over. It counts and alarms.
    (S.CANCELED, T.FILL_PARTLY): S.CANCELED,
    (S.CANCELED, T.FILL): S.FILLED,
    (S.EXPIRED, T.FILL_PARTLY): S.EXPIRED,
    (S.EXPIRED, T.FILL): S.FILLED,
    (S.FILLED, T.FILL): S.FILLED,  # overfill: recorded, alarms, never dropped
    # A found order contradicts the finding that it was absent: believe the venue and alarm.
    (S.ABSENT, T.ACCEPT): S.ACCEPTED,
    (S.ABSENT, T.FILL_PARTLY): S.PARTIALLY_FILLED,
    (S.ABSENT, T.FILL): S.FILLED,
}


class OrderAlarm(StrEnum):
    """Legal but wrong-looking; a person should hear of it."""

    FILL_AFTER_END = "FILL_AFTER_END"
    OVERFILL = "OVERFILL"
    FOUND_AFTER_ABSENT = "FOUND_AFTER_ABSENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order and all that is known of it. Immutable: every change returns a new one.

    Attributes:
        terms: the exact order that risk approved.
        filled: base, sum over unique trade ids.
        filled_notional: quote, exact.
        fees: sum by currency.
        reason: the last refusal or cancel reason, as the venue or we gave it.
        created_ms, updated_ms: execution's clock.
    """

    order_id: OrderId
    approval_id: ApprovalId
    agent_id: AgentId
    effect: Effect
    terms: ApprovedOrder
    status: OrderStatus = OrderStatus.INITIALIZED
    venue_order_id: VenueOrderId | None = None
    filled: Decimal = ZERO
    filled_notional: Decimal = ZERO
    fees: dict[Currency, Decimal] = field(default_factory=dict[Currency, Decimal])
    trade_ids: frozenset[TradeId] = frozenset()
    reason: str = ""
    created_ms: int
    updated_ms: int

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more is expected (a late fill may still come)."""
        return self.status in TERMINAL

    @property
    def leaves(self) -> Decimal:
        """Base that may still fill: 0 once the order is over."""
        if self.is_terminal:
            return ZERO
        return max(ZERO, subtract(self.terms.quantity, self.filled))

    @property
    def average_price(self) -> Decimal | None:
        """Quote per base over all fills to 34 digits; None before the first."""
        return divide(self.filled_notional, self.filled) if self.filled else None

    def move(
        self,
        trigger: OrderTrigger,
        *,
        now_ms: int,
        venue_order_id: VenueOrderId | None = None,
        reason: str = "",
    ) -> Order:
        """Return the order after a trigger other than a fill.

        Raises:
            InvalidTransition: the table has no such move; the order is unchanged.
        """
        return Order(  # spelled out, which takes two thirds of the time of dataclasses.replace
            order_id=self.order_id,
            approval_id=self.approval_id,
            agent_id=self.agent_id,
            effect=self.effect,
            terms=self.terms,
            status=next_status(self.status, trigger),
            venue_order_id=venue_order_id or self.venue_order_id,
            filled=self.filled,
            filled_notional=self.filled_notional,
            fees=self.fees,
            trade_ids=self.trade_ids,
            reason=reason or self.reason,
            created_ms=self.created_ms,
            updated_ms=now_ms,
        )

    def fill(self, fill: Fill, *, now_ms: int) -> tuple[Order, OrderAlarm | None]:
        """Return the order after a fill, and an alarm if the fill should not have come.

        A trade id that was already applied changes nothing.

        Raises:
            InvalidTransition: the order was never sent.
        """
        if fill.trade_id in self.trade_ids:
            return self, None
        filled = add(self.filled, fill.quantity)
        complete = filled >= self.terms.quantity
        status = next_status(self.status, OrderTrigger.FILL if complete else OrderTrigger.FILL_PARTLY)
        alarm = None
        if filled > self.terms.quantity:
            alarm = OrderAlarm.OVERFILL
        elif self.status is OrderStatus.ABSENT:
            alarm = OrderAlarm.FOUND_AFTER_ABSENT
        elif self.is_terminal:
            alarm = OrderAlarm.FILL_AFTER_END
        fees = dict(self.fees)
        fees[fill.fee_currency] = add(fees.get(fill.fee_currency, ZERO), fill.fee)
        moved = Order(
            order_id=self.order_id,
            approval_id=self.approval_id,
            agent_id=self.agent_id,
            effect=self.effect,
            terms=self.terms,
            status=status,
            venue_order_id=self.venue_order_id,
            filled=filled,
            filled_notional=add(self.filled_notional, fill.notional),
            fees=fees,
            trade_ids=self.trade_ids | {fill.trade_id},
            reason=self.reason,
            created_ms=self.created_ms,
            updated_ms=now_ms,
        )
        return moved, alarm


def next_status(status: OrderStatus, trigger: OrderTrigger) -> OrderStatus:
    """Return where a trigger leads.

    Raises:
        InvalidTransition: the table has no such move.
    """
    try:
        return TRANSITIONS[status, trigger]
    except KeyError:
        raise InvalidTransition(f"an order that is {status} cannot {trigger}") from None
