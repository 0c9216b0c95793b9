"""Everything that can happen on a desk: a closed union of facts.

Types are dotted and in the past tense. Each fact has one writing room: the coordinator writes ``agent``,
``proposal``, ``vote`` and ``decision`` events; risk writes ``risk``, ``reservation``, ``limits`` and ``breaker``;
execution writes ``order``, ``approval``, ``account`` and ``reconciliation``. Every room may write ``service``,
``audit`` and ``alarm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, cast, get_args

from trading.domain.events.coordination import (
    AgentRegistered,
    AgentRevoked,
    DecisionCompleted,
    ProposalDecided,
    ProposalOpened,
    ProposalRefused,
    VoteCast,
    VoteRefused,
)
from trading.domain.events.execution import (
    AccountFunded,
    ApprovalEnded,
    OrderAccepted,
    OrderCanceled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderEvent,
    OrderExpired,
    OrderFilled,
    OrderFoundAbsent,
    OrderInitialized,
    OrderNotSent,
    OrderOutcomeUnknown,
    OrderRejected,
    OrderSubmitted,
    OrderTriggered,
    ReconciliationCompleted,
)
from trading.domain.events.risk import (
    BreakerReset,
    BreakerTripped,
    ExitSigned,
    HumanAnswered,
    HumanAsked,
    LimitsLoaded,
    ReservationReleased,
    RiskApproved,
    RiskDenied,
)
from trading.domain.events.system import AlarmRaised, HeadWitnessed, ServiceStarted, ServiceStopped

__all__ = [
    "EVENT_TYPES",
    "AccountFunded",
    "AgentRegistered",
    "AgentRevoked",
    "AlarmRaised",
    "ApprovalEnded",
    "BreakerReset",
    "BreakerTripped",
    "Category",
    "DecisionCompleted",
    "DomainEvent",
    "EventEnvelope",
    "EventMetadata",
    "ExitSigned",
    "HeadWitnessed",
    "HumanAnswered",
    "HumanAsked",
    "LimitsLoaded",
    "OrderAccepted",
    "OrderCancelRefused",
    "OrderCancelRequested",
    "OrderCanceled",
    "OrderEvent",
    "OrderExpired",
    "OrderFilled",
    "OrderFoundAbsent",
    "OrderInitialized",
    "OrderNotSent",
    "OrderOutcomeUnknown",
    "OrderRejected",
    "OrderSubmitted",
    "OrderTriggered",
    "ProposalDecided",
    "ProposalOpened",
    "ProposalRefused",
    "ReconciliationCompleted",
    "ReservationReleased",
    "RiskApproved",
    "RiskDenied",
    "ServiceStarted",
    "ServiceStopped",
    "VoteCast",
    "VoteRefused",
    "category_of",
]


class Category(StrEnum):
    """The stream that an event is published on."""

    TRADING = "trading"
    RISK = "risk"
    COORDINATION = "coordination"
    SYSTEM = "system"


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
    | ExitSigned
    | HumanAsked
    | HumanAnswered
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

#: Every event class by its type; the codec is driven by it.
EVENT_TYPES: Final[dict[str, type[DomainEvent]]] = {
    kind.TYPE: kind for kind in cast("tuple[type[DomainEvent], ...]", get_args(DomainEvent))
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
