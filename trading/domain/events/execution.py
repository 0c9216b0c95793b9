"""What execution writes: the life of orders, the fate of approvals, money and reconciliation."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from trading.domain.approvals import ApprovedOrder, Effect, Fate
from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, Currency, OrderId, VenueOrderId
from trading.domain.standing_exits import ExitSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderInitialized:
    """An approval was consumed and its order journaled, before anything was sent.

    Attributes:
        exit_slice: the part of a standing exit that was consumed instead; ``approval_id`` then is its name.
    """

    TYPE: ClassVar[str] = "order.initialized"
    order_id: OrderId
    approval_id: ApprovalId
    agent_id: AgentId
    effect: Effect
    terms: ApprovedOrder
    exit_slice: ExitSlice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSubmitted:
    """The order was handed to the venue's transport."""

    TYPE: ClassVar[str] = "order.submitted"
    order_id: OrderId


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderNotSent:
    """The last check before the send failed; nothing left the desk. Terminal."""

    TYPE: ClassVar[str] = "order.not_sent"
    order_id: OrderId
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAccepted:
    """The venue has the order."""

    TYPE: ClassVar[str] = "order.accepted"
    order_id: OrderId
    venue_order_id: VenueOrderId


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRejected:
    """The venue refused the order for good. Terminal."""

    TYPE: ClassVar[str] = "order.rejected"
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTriggered:
    """A stop's trigger price was reached at the venue."""

    TYPE: ClassVar[str] = "order.triggered"
    order_id: OrderId


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFilled:
    """Part or all of the order was executed."""

    TYPE: ClassVar[str] = "order.filled"
    fill: Fill
    status: str
    filled: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCancelRequested:
    """Somebody asked for the order to be cancelled; it may still fill."""

    TYPE: ClassVar[str] = "order.cancel_requested"
    order_id: OrderId
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCancelRefused:
    """The venue did not cancel; the order works on."""

    TYPE: ClassVar[str] = "order.cancel_refused"
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCanceled:
    """The venue took the rest of the order out. Terminal, though a late fill may come."""

    TYPE: ClassVar[str] = "order.canceled"
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderExpired:
    """The venue let the order expire. Terminal."""

    TYPE: ClassVar[str] = "order.expired"
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderOutcomeUnknown:
    """The order may or may not be at the venue; its reservation stays until there is evidence."""

    TYPE: ClassVar[str] = "order.outcome_unknown"
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFoundAbsent:
    """Positive evidence that the venue never had the order. Terminal."""

    TYPE: ClassVar[str] = "order.found_absent"
    order_id: OrderId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalEnded:
    """An approval's fate without an order: it lapsed or was voided."""

    TYPE: ClassVar[str] = "approval.ended"
    approval_id: ApprovalId
    fate: Fate
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFunded:
    """Money came in from outside the desk (the paper account's opening balance)."""

    TYPE: ClassVar[str] = "account.funded"
    account_id: AccountId
    currency: Currency
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationCompleted:
    """Ledger and venue were compared. ``differences`` is empty when they agree."""

    TYPE: ClassVar[str] = "reconciliation.completed"
    account_id: AccountId
    orders_checked: int
    resolved: int
    unresolved: int
    differences: tuple[str, ...]


#: Everything that can happen to an order.
OrderEvent = (
    OrderInitialized
    | OrderSubmitted
    | OrderNotSent
    | OrderAccepted
    | OrderRejected
    | OrderTriggered
    | OrderFilled
    | OrderCancelRequested
    | OrderCancelRefused
    | OrderCanceled
    | OrderExpired
    | OrderOutcomeUnknown
    | OrderFoundAbsent
)
