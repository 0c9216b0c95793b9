"""One approval on its way through a submit, and the two things that can come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from mcp_servers.execution.gate import GateCode
from mcp_servers.execution.rows import fate_row, order_row
from trading.domain.approvals import Approval, Fate
from trading.domain.errors import GateRefused, TradingError
from trading.domain.events import EventMetadata, OrderInitialized
from trading.domain.identifiers import ApprovalId
from trading.domain.orders import Order
from trading.ports.ledger import EventDraft, Insert, Unit
from trading.ports.venue import PreparedOrder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receipt:
    """The order that an approval became, as far as it is known."""

    approval_id: ApprovalId
    order: Order


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an approval became no order; nothing of it has reached a venue.

    Attributes:
        error: carries the stable code, the reason and the next step.
    """

    approval_id: ApprovalId
    error: TradingError

    @property
    def code(self) -> str:
        """The stable code."""
        return self.error.code


Outcome = Receipt | Refusal


@dataclass(slots=True)
class Walk:
    """What is known of one approval while its batch is under way.

    Attributes:
        held: whether its quantity counts against what may still be reduced.
        settled: whether its caller was answered; the same approval may be on another walk since.
    """

    approval_id: ApprovalId
    envelope: str = ""
    approval: Approval | None = None
    prepared: PreparedOrder | None = None
    order: Order | None = None
    held: bool = False
    settled: bool = False


def known(value: T | None) -> T:
    """Return what an earlier step of the walk must have set."""
    assert value is not None, "a step of the walk was skipped"
    return value


_FATE_WORDS: Final = {
    Fate.CONSUMED.value: "the approval was used already",
    Fate.LAPSED.value: "the approval expired unused",
    Fate.VOIDED.value: "the approval was given back, or a halt made it void",
}


def fate_written(fate: str) -> GateRefused:
    """Return the refusal of an approval whose fate is written."""
    return GateRefused(
        _FATE_WORDS.get(fate, f"the approval is {fate} already"),
        code=GateCode.FATE_WRITTEN.value,
        suggestion="ask risk for a new approval",
    )


def claim_of(order: Order) -> Unit:
    """Return what consumes the order's approval: fate, event and order."""
    event = OrderInitialized(
        order_id=order.order_id,
        approval_id=order.approval_id,
        agent_id=order.agent_id,
        effect=order.effect,
        terms=order.terms,
    )
    fate = fate_row(order.approval_id, Fate.CONSUMED.value, order.order_id, order.created_ms)
    return Unit(
        events=(EventDraft(event, EventMetadata(correlation_id=order.approval_id)),),
        claims=(Insert("approval_fates", fate),),
        writes=(Insert("orders", order_row(order)),),
    )
