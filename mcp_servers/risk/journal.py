"""What risk writes: which events and rows belong in one commit, and how they are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import orjson

from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.approvals import Approval
from trading.domain.denials import RiskDenial
from trading.domain.events import (
    AlarmRaised,
    EventMetadata,
    HumanAsked,
    LimitsLoaded,
    ReservationReleased,
    RiskApproved,
    RiskDenied,
)
from trading.domain.identifiers import ProposalId, RequestId
from trading.domain.pending import PendingHuman, PendingState
from trading.ports.ledger import EventDraft, Insert, LedgerReader, Row, Unit, Upsert

from .assessment import Approved, Outcome
from .limits import Policy
from .pending import pending_of, pending_row

OPEN: Final = "open"
RELEASE_ASKED: Final = "release_requested"
RELEASED: Final = "released"
#: The stored answer of a request whose commit failed and was then made impossible.
VOID: Final = '{"void":true}'


def approval_row(item: Approved, principal: str) -> Row:
    """Return the ``approvals`` row of a fresh approval."""
    approval = item.approval
    return {
        "approval_id": approval.approval_id,
        "request_id": approval.request_id,
        "principal": principal,
        "decision_id": approval.decision_id,
        "agent_id": approval.agent_id,
        "client_order_id": approval.order.client_order_id,
        "state": OPEN,
        "expires_ms": approval.expires_ms,
        "envelope": item.envelope,
        "created_ms": approval.issued_ms,
    }


def request_claim(principal: str, request_id: RequestId, digest: str, answer: str, now_ms: int) -> Insert:
    """Return the row that makes a request unique."""
    row = {
        "principal": principal,
        "request_id": request_id,
        "digest": digest,
        "answer": answer,
        "created_ms": now_ms,
    }
    return Insert("requests", row)


def request_unit(
    *,
    principal: str,
    request_id: RequestId,
    digest: str,
    outcomes: Sequence[Outcome],
    rows: Sequence[Row],
    now_ms: int,
    proposal_id: ProposalId | None = None,
) -> Unit:
    """Return one request's commit: its claim, its approvals and denials, and the decision it uses up."""
    metadata = EventMetadata(correlation_id=proposal_id or request_id, causation_id=request_id)
    claims = [request_claim(principal, request_id, digest, encode_answer(outcomes), now_ms)]
    if proposal_id is not None and rows:
        decision_id = rows[0]["decision_id"]
        row = {"proposal_id": proposal_id, "decision_id": decision_id, "request_id": request_id}
        claims.append(Insert("decisions_used", row))
    return Unit(
        events=tuple([_draft(outcome, metadata) for outcome in outcomes]),
        claims=tuple(claims),
        writes=(
            *[Insert("approvals", row) for row in rows],
            *[
                Insert("pending", pending_row(item, PendingState.PENDING, now_ms))
                for item in outcomes
                if isinstance(item, PendingHuman)
            ],
        ),
    )


def _draft(outcome: Outcome, metadata: EventMetadata) -> EventDraft:
    if isinstance(outcome, RiskDenial):
        return EventDraft(RiskDenied(denial=outcome), metadata)
    if isinstance(outcome, PendingHuman):
        return EventDraft(HumanAsked(pending=outcome), metadata)
    # The signed bytes are the approval's JSON already; encoding it a second time took as long as five rules.
    encoded = orjson.dumps({"approval": orjson.Fragment(outcome.payload), "envelope": outcome.envelope}).decode()
    return EventDraft(RiskApproved(approval=outcome.approval, envelope=outcome.envelope), metadata, encoded)


def encode_answer(outcomes: Sequence[Outcome]) -> str:
    """Return the stored answer: what has a row by its id, denials in full."""
    return codec.encode({"items": [_stored(item) for item in outcomes]}).decode()


def _stored(item: Outcome) -> dict[str, object]:
    if isinstance(item, RiskDenial):
        return {"denial": item}
    return (
        {"pending_id": item.pending_id}
        if isinstance(item, PendingHuman)
        else {"approval_id": item.approval.approval_id}
    )


async def read_answer(reader: LedgerReader, answer: str) -> tuple[Outcome, ...] | None:
    """Return what ``encode_answer`` wrote, None when the request was made void."""
    data = cast("dict[str, Any]", orjson.loads(answer))
    if data.get("void"):
        return None
    items = cast("list[dict[str, Any]]", data["items"])
    known: dict[str, Outcome] = {}
    for table, key, read in (("approvals", "approval_id", approved_of), ("pending", "pending_id", pending_of)):
        ids = [str(item[key]) for item in items if key in item]
        for row in await reader.rows(table, {key: ids}) if ids else []:
            known[str(row[key])] = read(row)
    return tuple(
        codec.decode_data(RiskDenial, item["denial"])
        if "denial" in item
        else known[item.get("approval_id") or item["pending_id"]]
        for item in items
    )


def approved_of(row: Row) -> Approved:
    """Return an approval from its row."""
    envelope = str(row["envelope"])
    payload = Envelope.from_json(envelope).payload
    return Approved(codec.decode(Approval, payload), envelope, payload)


def release_unit(
    released: Sequence[ReservationReleased], alarms: Sequence[AlarmRaised], rows: Mapping[str, Row]
) -> Unit:
    """Return the commit that ends reservations; an approval without a row (another desk's) only leaves its event."""
    return Unit(
        events=tuple([EventDraft(event) for event in (*released, *alarms)]),
        writes=tuple(
            Upsert("approvals", {**rows[event.approval_id], "state": RELEASED})
            for event in released
            if event.approval_id in rows
        ),
    )


def policy_unit(policy: Policy, *, is_new: bool, now_ms: int, by: str, reason: str = "", envelope: str = "") -> Unit:
    """Return the commit that puts limits in force; ``by``, ``reason`` and ``envelope`` as in ``LimitsLoaded``."""
    event = LimitsLoaded(
        version=policy.version,
        digest=policy.digest,
        min_policy_version=policy.min_version,
        document=policy.document,
        by=by,
        reason=reason,
        envelope=envelope,
    )
    row = {"version": policy.version, "digest": policy.digest, "document": policy.document, "loaded_ms": now_ms}
    return Unit(events=(EventDraft(event),), writes=(Insert("policies", row),) if is_new else ())
