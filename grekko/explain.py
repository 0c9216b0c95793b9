"""`grekko explain ID`: one page from trigger to fill, with every signature checked again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from grekko.ledgers import ROOMS, Ledgers, read_events
from grekko.proofs import Prover
from grekko.wording import clock_text, describe, number, order_text
from trading.adapters import codec
from trading.adapters.config import DeskHome
from trading.adapters.signing import Envelope
from trading.domain.approvals import Approval
from trading.domain.errors import InvalidValue
from trading.domain.events import (
    ApprovalEnded,
    DecisionCompleted,
    EventEnvelope,
    ExitSigned,
    OrderEvent,
    OrderFilled,
    OrderInitialized,
    ProposalDecided,
    ProposalOpened,
    ProposalRefused,
    ReservationReleased,
    RiskApproved,
    RiskDenied,
    VoteCast,
    VoteRefused,
)
from trading.domain.money import ZERO, add, divide
from trading.domain.proposals import TradeProposal


@dataclass(slots=True)
class Story:
    """All events of one trade, in the order of the walk, with the ids that tie them together."""

    ids: set[str] = field(default_factory=set[str])
    events: list[EventEnvelope] = field(default_factory=list[EventEnvelope])
    findings: list[str] = field(default_factory=list[str])


async def tell(home: DeskHome, ledgers: Ledgers, wanted: str) -> Story:
    """Collect the story of a proposal, decision, approval, order, client order or request id.

    Args:
        wanted: the id, or at least its first eight characters if they are unique on this desk.

    Raises:
        InvalidValue: (UNKNOWN_ID) nothing has it; (AMBIGUOUS_ID) several things do.
    """
    everything = [event for room in ROOMS async for event in read_events(ledgers.reader(room))]
    story = Story(ids={_resolve(everything, wanted)})
    _follow(everything, story)
    proofs = await Prover(home).run(ledgers)
    ours = {(event.source_service, event.seq) for event in story.events}
    story.findings = [f"{f.room}#{f.seq}: {f.what}" for f in proofs.findings if (f.room, f.seq) in ours]
    return story


def _resolve(events: Iterable[EventEnvelope], wanted: str) -> str:
    known = {identifier for event in events for identifier in _ids_of(event)}
    if wanted in known:
        return wanted
    found = [identifier for identifier in known if len(wanted) >= 8 and identifier.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidValue("several things start with that", code="AMBIGUOUS_ID", allowed=tuple(sorted(found)[:5]))
    raise InvalidValue(
        "nothing on this desk has that id", code="UNKNOWN_ID", suggestion="`grekko orders` lists order ids"
    )


def _follow(events: list[EventEnvelope], story: Story) -> None:
    """Grow the set of ids until it is closed: an event with one of them brings all of its own."""
    grew = True
    while grew:
        grew = False
        for event in events:
            ids = _ids_of(event)
            if ids & story.ids and not ids <= story.ids:
                story.ids |= ids
                grew = True
    story.events = [event for event in events if _ids_of(event) & story.ids]


def _ids_of(event: EventEnvelope) -> set[str]:
    match event.payload:
        case ProposalOpened() | ProposalRefused() | VoteCast() | VoteRefused() as e:
            return {e.proposal_id} if e.proposal_id else set()  # what did not verify has no id to go by
        case ProposalDecided() as e:
            return {e.proposal_id, e.decision_id}
        case DecisionCompleted() as e:
            return {e.proposal_id, e.decision_id, *e.approval_ids, *e.order_ids}
        case RiskApproved(approval=a):
            return {a.approval_id, a.request_id, a.order.client_order_id, *([a.decision_id] if a.decision_id else [])}
        case RiskDenied(denial=d):
            return {d.request_id, *([d.decision_id] if d.decision_id else [])}
        case ReservationReleased() | ApprovalEnded() as e:
            return {e.approval_id}
        case OrderInitialized() as e:
            used = [] if e.exit_slice is None else [e.exit_slice.exit_id]
            return {e.order_id, e.approval_id, e.terms.client_order_id, *used}
        case ExitSigned(exit=e):
            return {e.exit_id}
        case OrderFilled(fill=fill):
            return {fill.order_id}
        case _:
            return {event.payload.order_id} if isinstance(event.payload, OrderEvent) else set()


def page(story: Story) -> list[str]:
    """Return the story as lines of plain text."""
    lines: list[str] = []
    section = ""
    for event in story.events:
        heading = _SECTIONS.get(event.event_type.partition(".")[0], "events")
        if heading != section:
            lines += ["", heading.upper()]
            section = heading
        lines.append(f"  {clock_text(event.timestamp_ms)}  {describe(event.payload)}")
        lines += [f"                {detail}" for detail in _details(event)]
    lines += ["", "CHECKED AGAIN", *_verdict(story)]
    return lines[1:]


_SECTIONS = {
    "proposal": "proposal and vote",
    "vote": "proposal and vote",
    "decision": "outcome",
    "risk": "risk",
    "reservation": "reservation",
    "order": "order",
    "approval": "order",
}


def _details(event: EventEnvelope) -> list[str]:
    match event.payload:
        case ProposalOpened() as opened:
            proposal = codec.decode(TradeProposal, Envelope.from_json(opened.envelope).payload)
            return [f"proposal {opened.proposal_id}, signed bytes {opened.digest[:16]}, class {proposal.trade_class}"]
        case ProposalDecided() as decided:
            t = decided.tally
            needed = 3 * (t.eligible - t.abstain)
            return [
                f"5 x {t.yes} yes = {5 * t.yes} against 3 x {t.eligible - t.abstain} = {needed}; {t.missing} missing"
            ]
        case RiskApproved(approval=a):
            return _approval_details(a)
        case RiskDenied(denial=d):
            nearest = "none" if d.nearest_legal is None else order_text(d.nearest_legal)
            return [f"{f.rule}: limit {f.limit}, observed {f.observed}" for f in d.failures] + [
                f"nearest legal: {nearest}"
            ]
        case _:
            return []


def _approval_details(a: Approval) -> list[str]:
    return [
        f"approval {a.approval_id} by key {a.key_id}, epoch {a.epoch.generation}.{a.epoch.counter}",
        f"band {number(a.band_low)} to {number(a.band_high)}, at most {number(a.max_notional)} with fees",
        f"policy {a.policy_version} ({a.policy_digest[:8]}), risk score {number(a.risk_score)}",
        f"client order id {a.order.client_order_id}",
    ]


_SIGNED = (ProposalOpened, VoteCast, ProposalDecided, RiskApproved, ExitSigned)


def _verdict(story: Story) -> list[str]:
    fills = [event.payload.fill for event in story.events if isinstance(event.payload, OrderFilled)]
    lines: list[str] = []
    if fills:
        quantity = notional = ZERO
        for fill in fills:
            quantity, notional = add(quantity, fill.quantity), add(notional, fill.notional)
        lines.append(
            f"  filled {number(quantity)} at {number(divide(notional, quantity), places=2)} in {len(fills)} fills"
        )
    if story.findings:
        return [*lines, *(f"  NOT PROVEN {finding}" for finding in story.findings)]
    signed = sum(
        isinstance(e.payload, (ProposalOpened, VoteCast, ProposalDecided, RiskApproved, ExitSigned))
        for e in story.events
    )
    ordered = any(isinstance(event.payload, OrderInitialized) for event in story.events)
    what = "the order is the approved one" if ordered else "there is no order"
    return [*lines, f"  all {signed} signatures verify; {what}"]
