"""Everything that can happen on a desk: a closed union of facts.

Types are dotted and in the past tense. Each fact has one writing room: the coordinator writes ``agent``,
``proposal``, ``vote`` and ``decision`` events; risk writes ``risk``, ``reservation``, ``limits`` and ``breaker``;
execution writes ``order``, ``approval``, ``account`` and ``reconciliation``. Every room may write ``service``,
``audit`` and ``alarm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar, Final

from trading.domain.approvals import (
    Approval,
    ApprovedOrder,
    Effect,
    Epoch,
    Fate,
    TradingState,
)
from trading.domain.denials import RiskDenial
from trading.domain.fills import Fill
from trading.domain.identifiers import (
    AccountId,
    AgentId,
    ApprovalId,
    Currency,
    DecisionId,
    KeyId,
    OrderId,
    ProposalId,
    VenueOrderId,
)
from trading.domain.voting import Choice, Outcome, Role, Tally


class Category(StrEnum):
    """The stream that an event is published on."""

    TRADING = "trading"
    RISK = "risk"
    COORDINATION = "coordination"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRegistered:
    """A member joined the registry; the roster version rises by one."""

    TYPE: ClassVar[str] = "agent.registered"
    agent_id: AgentId
    role: Role
    family: str
    key_id: KeyId
    public_key: str
    roster_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRevoked:
    """A member's key no longer counts, from this roster version on."""

    TYPE: ClassVar[str] = "agent.revoked"
    agent_id: AgentId
    roster_version: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalOpened:
    """A verified proposal went to the vote. ``envelope`` is the proposer's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "proposal.opened"
    proposal_id: ProposalId
    agent_id: AgentId
    envelope: str
    digest: str
    roster_version: int
    deadline_ms: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRefused:
    """A proposal was not put to the vote; ``reason`` is a stable code."""

    TYPE: ClassVar[str] = "proposal.refused"
    proposal_id: ProposalId
    agent_id: AgentId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteCast:
    """A verified vote was counted. ``envelope`` is the voter's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "vote.cast"
    proposal_id: ProposalId
    agent_id: AgentId
    choice: Choice
    reason: str
    envelope: str
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRefused:
    """A vote was recorded but not counted; ``reason`` is LATE, BAD_SIGNATURE, UNREGISTERED, EQUIVOCATION and so on."""

    TYPE: ClassVar[str] = "vote.refused"
    proposal_id: ProposalId
    agent_id: AgentId
    reason: str
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalDecided:
    """The one decision on a proposal. ``envelope`` is the leader's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "proposal.decided"
    decision_id: DecisionId
    proposal_id: ProposalId
    outcome: Outcome
    tally: Tally
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCompleted:
    """The coordinator has taken an approved decision through risk and execution as far as it goes.

    Attributes:
        result: ``executed``, ``denied``, ``expired`` or ``failed``.
        detail: a stable code that says more, or empty.
    """

    TYPE: ClassVar[str] = "decision.completed"
    decision_id: DecisionId
    proposal_id: ProposalId
    result: str
    detail: str
    approval_ids: tuple[ApprovalId, ...]
    order_ids: tuple[OrderId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskApproved:
    """Risk reserved and signed. ``envelope`` is the DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "risk.approved"
    approval: Approval
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskDenied:
    """Risk refused, with every failed rule."""

    TYPE: ClassVar[str] = "risk.denied"
    denial: RiskDenial


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationReleased:
    """An approval no longer counts against the limits; ``evidence`` is its fate or its order's final state."""

    TYPE: ClassVar[str] = "reservation.released"
    approval_id: ApprovalId
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsLoaded:
    """A policy came into force."""

    TYPE: ClassVar[str] = "limits.loaded"
    version: int
    digest: str
    min_policy_version: int
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTripped:
    """Trading was restricted. ``scope`` is ``desk`` in this release."""

    TYPE: ClassVar[str] = "breaker.tripped"
    scope: str
    reason: str
    state: TradingState
    epoch: Epoch
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerReset:
    """Trading was allowed again, by a person or, in paper, by a policy that says so."""

    TYPE: ClassVar[str] = "breaker.reset"
    scope: str
    reason: str
    state: TradingState
    epoch: Epoch
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderInitialized:
    """An approval was consumed and its order journaled, before anything was sent."""

    TYPE: ClassVar[str] = "order.initialized"
    order_id: OrderId
    approval_id: ApprovalId
    agent_id: AgentId
    effect: Effect
    terms: ApprovedOrder


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStarted:
    """A room started writing under a new lease generation."""

    TYPE: ClassVar[str] = "service.started"
    generation: int
    mode: str
    release: str
    clean: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStopped:
    """A room stopped in good order."""

    TYPE: ClassVar[str] = "service.stopped"
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWitnessed:
    """Another room's audit head was seen, so it can no longer be rewritten unnoticed."""

    TYPE: ClassVar[str] = "audit.head_witnessed"
    service: str
    size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRaised:
    """Something a person should know; acting on it has already happened."""

    TYPE: ClassVar[str] = "alarm.raised"
    code: str
    message: str
    subject: str


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

DomainEvent = (
    AgentRegistered
    | AgentRevoked
    | ProposalOpened
    | ProposalRefused
    | VoteCast
    | VoteRefused
    | ProposalDecided
    | DecisionCompleted
    | RiskApproved
    | RiskDenied
    | ReservationReleased
    | LimitsLoaded
    | BreakerTripped
    | BreakerReset
    | OrderEvent
    | ApprovalEnded
    | AccountFunded
    | ReconciliationCompleted
    | ServiceStarted
    | ServiceStopped
    | HeadWitnessed
    | AlarmRaised
)

#: Every event class by its type; the codec and the schema documentation are driven by it.
EVENT_TYPES: Final[dict[str, type[DomainEvent]]] = {
    cls.TYPE: cls
    for cls in (
        AgentRegistered,
        AgentRevoked,
        ProposalOpened,
        ProposalRefused,
        VoteCast,
        VoteRefused,
        ProposalDecided,
        DecisionCompleted,
        RiskApproved,
        RiskDenied,
        ReservationReleased,
        LimitsLoaded,
        BreakerTripped,
        BreakerReset,
        OrderInitialized,
        OrderSubmitted,
        OrderNotSent,
        OrderAccepted,
        OrderRejected,
        OrderTriggered,
        OrderFilled,
        OrderCancelRequested,
        OrderCancelRefused,
        OrderCanceled,
        OrderExpired,
        OrderOutcomeUnknown,
        OrderFoundAbsent,
        ApprovalEnded,
        AccountFunded,
        ReconciliationCompleted,
        ServiceStarted,
        ServiceStopped,
        HeadWitnessed,
        AlarmRaised,
    )
}

_CATEGORY: Final = {
    "agent": Category.COORDINATION,
    "proposal": Category.COORDINATION,
    "vote": Category.COORDINATION,
    "decision": Category.COORDINATION,
    "risk": Category.RISK,
    "reservation": Category.RISK,
    "limits": Category.RISK,
    "breaker": Category.RISK,
    "order": Category.TRADING,
    "approval": Category.TRADING,
    "account": Category.TRADING,
    "reconciliation": Category.TRADING,
}


def category_of(event_type: str) -> Category:
    """Return the category whose stream carries events of that dotted type."""
    return _CATEGORY.get(event_type.partition(".")[0], Category.SYSTEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMetadata:
    """How an event hangs together with others.

    Attributes:
        correlation_id: the walk it belongs to, usually the proposal or request id.
        causation_id: the event or request that caused it, or empty.
        trace_id: W3C trace id, 32 hexadecimal digits, or empty.
        schema: version of the payload's shape.
    """

    correlation_id: str = ""
    causation_id: str = ""
    trace_id: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EventEnvelope:
    """An event as it was committed.

    Attributes:
        seq: position in its service's ledger, from 1 without gaps; the only cursor to read by.
        timestamp_ms: the writer's clock.
    """

    event_id: str
    seq: int
    timestamp_ms: int
    source_service: str
    payload: DomainEvent
    metadata: EventMetadata

    @property
    def event_type(self) -> str:
        """Dotted past-tense type."""
        return self.payload.TYPE
