"""What the resources show beyond the tools' replies, and what completes their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from typing import Any, Final

from mcp_servers.envelope import Row, timestamp, untrusted
from mcp_servers.risk.journal import approved_of
from mcp_servers.risk.rows import approval_row, order_row, rule_row
from mcp_servers.risk.schemas import ApprovalRow, Figure, OrderRow, RuleRow
from mcp_servers.risk.service import RiskService
from trading.domain.errors import InvalidValue
from trading.domain.events import BreakerReset, BreakerTripped, EventEnvelope, HeadWitnessed, RiskDenied

#: Open approvals read for one page.
_PAGE: Final = 60
_REASON_MAX: Final = 280


class OpenApproval(Row):
    """One approval that still counts.

    ``leaves`` is base that may still trade; ``order_id`` names the order that stands for it, empty while unused.
    """

    approval: ApprovalRow
    agent_id: str
    state: str
    leaves: Figure
    order_id: str
    expired: bool


class OpenApprovals(Row):
    """Approvals that still count; ``open`` is how many there are altogether."""

    open: int
    approvals: list[OpenApproval]


class BreakerChange(Row):
    """One trip or reset; ``reason`` was written by whoever did it."""

    seq: int
    at: str
    event: str
    scope: str
    state: str
    reason: str
    by: str
    generation: int
    counter: int


class Restriction(Row):
    """A scope beside the desk that is restricted, and why."""

    scope: str
    state: str
    reason: str


class BreakerView(Row):
    """The desk's trading state, and scopes that are restricted more.

    ``history`` is newest first and complete from the event ``complete_from_seq`` on.
    """

    state: str
    reason: str
    generation: int
    counter: int
    scopes: list[Restriction]
    history: list[BreakerChange]
    complete_from_seq: int


class PastDenial(Row):
    """One refusal as it was answered."""

    at: str
    request_id: str
    agent_id: str
    decision_id: str | None
    order: OrderRow
    failures: list[RuleRow]
    nearest_legal: OrderRow | None


class Denials(Row):
    """Newest refusals first; complete from the event ``complete_from_seq`` on."""

    denials: list[PastDenial]
    complete_from_seq: int


class Head(Row):
    """A signed head of a room's audit chain: the first ``size`` events have this root."""

    room: str
    size: int
    root: str


class Audit(Row):
    """Risk's audit chain: ``events`` written so far; what lies after the signed head is proven by the next one.

    ``witnessed`` are heads of other rooms embedded since the start.
    """

    room: str
    generation: int
    events: int
    signed: Head | None
    witnessed: list[Head]


async def open_approvals(service: RiskService, cursor: str) -> list[OpenApproval]:
    """Return durable approvals that still count, newest first, after the one that ``cursor`` names.

    Raises:
        LedgerUnavailable: the ledger does not answer.
    """
    known = {item.approval_id: item for item in service.reservations if not item.foreign}
    ids = nlargest(_PAGE, (name for name in known if not cursor or name < cursor))
    # Asked of the ledger, not of memory: an approval is shown once its commit is through.
    stored = await service.parts.ledger.rows("approvals", {"approval_id": ids}) if ids else []
    now_ms = service.parts.clock.now_ms()
    found: list[OpenApproval] = []
    for row in sorted(stored, key=lambda each: str(each["approval_id"]), reverse=True):
        item = approved_of(row)
        reservation = known[item.approval.approval_id]
        found.append(
            OpenApproval(
                approval=approval_row(item),
                agent_id=item.approval.agent_id,
                state=str(row["state"]),
                leaves=reservation.leaves,
                order_id=reservation.order_id or "",
                expired=item.approval.expires_ms <= now_ms,
            )
        )
    return found


async def breaker_view(service: RiskService) -> BreakerView:
    """Return the trading state and its history; raises LedgerUnavailable."""
    await service.chronicle.catch_up()
    breaker = service.live.breaker
    return BreakerView(
        state=breaker.state.value,
        reason=untrusted(breaker.reason, max_chars=_REASON_MAX),
        generation=breaker.epoch.generation,
        counter=breaker.epoch.counter,
        scopes=[
            Restriction(
                scope=each.scope,
                state=each.state.value,
                reason=untrusted(breaker.reason_of(each.scope), max_chars=_REASON_MAX),
            )
            for each in breaker.scopes
        ],
        history=[_change(event) for event in reversed(service.chronicle.breaker)],
        complete_from_seq=service.chronicle.complete_after_seq + 1,
    )


def _change(event: EventEnvelope) -> BreakerChange:
    payload = event.payload
    assert isinstance(payload, (BreakerTripped, BreakerReset))
    return BreakerChange(
        seq=event.seq,
        at=timestamp(event.timestamp_ms),
        event="tripped" if isinstance(payload, BreakerTripped) else "reset",
        scope=payload.scope,
        state=payload.state.value,
        reason=untrusted(payload.reason, max_chars=_REASON_MAX),
        by=payload.by,
        generation=payload.epoch.generation,
        counter=payload.epoch.counter,
    )


async def denials_view(service: RiskService, agent: str) -> Denials:
    """Return the newest refusals, of one agent if named; raises LedgerUnavailable."""
    await service.chronicle.catch_up()
    rows = [_denial(event) for event in reversed(service.chronicle.denials)]
    return Denials(
        denials=[row for row in rows if agent in ("", row.agent_id)],
        complete_from_seq=service.chronicle.complete_after_seq + 1,
    )


def _denial(event: EventEnvelope) -> PastDenial:
    payload = event.payload
    assert isinstance(payload, RiskDenied)
    denial = payload.denial
    return PastDenial(
        at=timestamp(denial.denied_ms),
        request_id=denial.request_id,
        agent_id=denial.agent_id,
        decision_id=denial.decision_id,
        order=order_row(denial.order),
        failures=[rule_row(failure) for failure in denial.failures],
        nearest_legal=None if denial.nearest_legal is None else order_row(denial.nearest_legal),
    )


async def audit_view(service: RiskService, room: str) -> Audit:
    """Return risk's head and those of other rooms it embedded, of one room if named.

    Raises:
        InvalidValue: no head of that room is known.
        LedgerUnavailable: the ledger does not answer.
    """
    parts, witnessed = service.parts, service.live.witnessed
    rooms = ("risk", *sorted(witnessed))
    if room and room not in rooms:
        raise InvalidValue("no head of that room is known", code="UNKNOWN_ROOM", allowed=rooms)
    own = parts.own_head() if parts.own_head is not None else None
    return Audit(
        room="risk",
        generation=parts.ledger.generation,
        events=await parts.ledger.last_seq(),
        signed=None if own is None else _head(own),
        witnessed=[_head(head) for name, head in sorted(witnessed.items()) if room in ("", name)],
    )


def _head(head: HeadWitnessed) -> Head:
    return Head(room=head.service, size=head.size, root=head.root)


def complete(service: Any, name: str, typed: str, chosen: dict[str, str]) -> Sequence[str]:
    """Return what may be meant by ``typed`` in the argument ``name`` of a resource or prompt, best first."""
    found = _candidates(service, name, chosen)
    wanted = typed.strip().upper()
    near = [value for value in found if wanted in value.upper()]
    return sorted(near, key=lambda value: not value.upper().startswith(wanted))


def _candidates(service: RiskService, name: str, chosen: dict[str, str]) -> Sequence[str]:
    symbols = sorted(service.parts.symbols)
    match name:
        case "symbol":
            return symbols
        case "base":
            return sorted({symbol.partition("/")[0] for symbol in symbols})
        case "quote":
            base = chosen.get("base", "").upper()
            return sorted(
                {symbol.partition("/")[2] for symbol in symbols if symbol.partition("/")[0] == base or not base}
            )
        case "agent" | "agent_id":
            return _agents(service)
        case "scope":
            return ("desk", *symbols)
        case "approval_id":
            return _newest_ids(service)
        case "subject":
            return tuple(dict.fromkeys(("halt", *_denied_requests(service), *_newest_ids(service))))
        case "side":
            return ("buy", "sell")
        case "room":
            return ("risk", *sorted(service.live.witnessed))
        case _:
            return ()


def _agents(service: RiskService) -> list[str]:
    keys, policy = service.parts.keys, service.live.frames.policy
    pinned = set[str]() if keys is None else {str(name) for name in keys.agents}
    bounded = {str(name) for name in policy.limits.agents}
    active = {str(name) for name, use in service.reservations.agents().items() if use.notional}
    return sorted(pinned | bounded | active)


def _newest_ids(service: RiskService) -> list[str]:
    ids = [item.approval_id for item in service.reservations if not item.foreign and not item.uncertain]
    return [str(item) for item in nlargest(_PAGE, ids)]


def _denied_requests(service: RiskService) -> list[str]:
    payloads = [event.payload for event in reversed(service.chronicle.denials)]
    return [str(payload.denial.request_id) for payload in payloads if isinstance(payload, RiskDenied)]
