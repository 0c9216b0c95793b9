"""One approval on its way through a submit, and the two things that can come of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, TypeVar

from mcp_servers.execution.gate import GateCode, refuse
from mcp_servers.execution.protection.exits import KeptExit
from mcp_servers.execution.protection.permits import ExitPermit
from mcp_servers.execution.rows import fate_row, order_row
from trading.domain.approvals import Approval, ApprovedOrder, Fate
from trading.domain.errors import AlreadyClaimed, GateRefused, LedgerError, TradingError
from trading.domain.events import EventMetadata, OrderInitialized
from trading.domain.identifiers import ApprovalId
from trading.domain.orders import Order
from trading.domain.standing_exits import ExitSlice
from trading.ports.ledger import EventDraft, Insert, Ledger, Unit, Upsert
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
        permit: for a protective order, the slice of the standing exit that takes the approval's place.
        offered: the standing exit that came with the approval and is written down with the claim.
        held: whether its quantity counts against what may still be reduced.
        settled: whether its caller was answered; the same approval may be on another walk since.
    """

    approval_id: ApprovalId
    envelope: str = ""
    approval: Approval | None = None
    prepared: PreparedOrder | None = None
    order: Order | None = None
    permit: ExitPermit | None = None
    offered: KeptExit | None = None
    held: bool = False
    settled: bool = False


def known(value: T | None) -> T:
    """Return what an earlier step of the walk must have set."""
    assert value is not None, "a step of the walk was skipped"
    return value


def check_wire(prepared: PreparedOrder, order: ApprovedOrder) -> None:
    """Refuse a request whose bytes say something else than what was approved.

    Raises:
        GateRefused: ORDER_MISMATCH.
    """
    same = prepared.wire_quantity == order.quantity and prepared.wire_price == order.limit_price
    if not same or (prepared.order is not order and prepared.order != order):
        refuse(GateCode.ORDER_MISMATCH, "the request for the venue differs from the approved order")


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


def no_room() -> GateRefused:
    """Return the refusal of an order whose quantity the position's own stop did not give up."""
    return GateRefused(
        "the position's stop did not give way in time, or is closing it already",
        code=GateCode.REDUCE_ONLY.value,
        suggestion="read execution_get_account, then ask again for what is left",
    )


async def commit_claims(ledger: Ledger, units: list[Unit]) -> list[object]:
    """Commit all claims as one unit; if one of them is taken nothing was written, and each stands for itself.

    Returns:
        For each unit what its commit returned or raised.
    """
    if not units:
        return []
    together = Unit(
        events=tuple(event for unit in units for event in unit.events),
        claims=tuple(claim for unit in units for claim in unit.claims),
        writes=tuple(write for unit in units for write in unit.writes),
    )
    try:
        committed = await ledger.commit(together)
    except AlreadyClaimed:
        single = (ledger.commit(unit) for unit in units)
        return list(await asyncio.gather(*single, return_exceptions=True))
    except LedgerError as error:
        return [error] * len(units)
    return list(committed)


def claim_of(order: Order, *, exit_slice: ExitSlice | None = None, writes: tuple[Upsert, ...] = ()) -> Unit:
    """Return what consumes the order's approval, or its slice of a standing exit: fate, event and order.

    Args:
        order: as it was made.
        exit_slice: for a protective order, the slice that it uses.
        writes: what must become durable with it.
    """
    event = OrderInitialized(
        order_id=order.order_id,
        approval_id=order.approval_id,
        agent_id=order.agent_id,
        effect=order.effect,
        terms=order.terms,
        exit_slice=exit_slice,
    )
    fate = fate_row(order.approval_id, Fate.CONSUMED.value, order.order_id, order.created_ms)
    return Unit(
        events=(EventDraft(event, EventMetadata(correlation_id=order.approval_id)),),
        claims=(Insert("approval_fates", fate),),
        writes=(Insert("orders", order_row(order)), *writes),
    )
