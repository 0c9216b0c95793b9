"""Re-checks, offline and from the ledgers alone, that every order was allowed.

The hash chains prove that the ledgers were not changed; this proves that what they say is legitimate: every signature
is verified again against the pinned public keys, every decision is counted again, and every order is traced back to
exactly one approval with the same terms. Nothing that a room concluded is believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TypeVar

from grekko.exit_proofs import ExitProofs, require
from grekko.ledgers import ROOMS, Ledgers, read_sound_events
from grekko.limit_proofs import LimitProofs
from trading.adapters import codec
from trading.adapters.config import DeskHome
from trading.adapters.signing import Ed25519Verifier, digest, load_public_key, open_envelope
from trading.domain.approvals import (
    APPROVAL_PAYLOAD_TYPE,
    DECISION_PAYLOAD_TYPE,
    PROPOSAL_PAYLOAD_TYPE,
    VOTE_PAYLOAD_TYPE,
    Approval,
)
from trading.domain.errors import InvalidValue, TradingError
from trading.domain.events import (
    AgentRegistered,
    AgentRevoked,
    EventEnvelope,
    ExitSigned,
    LimitsLoaded,
    OrderFilled,
    OrderInitialized,
    ProposalDecided,
    ProposalOpened,
    RiskApproved,
    VoteCast,
)
from trading.domain.identifiers import AgentId, ApprovalId, ClientOrderId, DecisionId, ProposalId
from trading.domain.money import ZERO, add
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Decision, Outcome, QuorumPolicy, Roster, RosterMember, Vote, tally

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold: in which ledger, at which event, and what."""

    room: str
    seq: int
    what: str


@dataclass(slots=True)
class Proofs:
    """What was checked and what failed.

    Attributes:
        approvals: the approvals whose signature and content verified, by id.
        orders: the approval of each order, or the slice of an exit that it used, by client order id.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    approvals: dict[ApprovalId, Approval] = field(default_factory=dict[ApprovalId, Approval])
    orders: dict[ClientOrderId, ApprovalId] = field(default_factory=dict[ClientOrderId, ApprovalId])
    checked: Counter[str] = field(default_factory=Counter[str])


class Prover:
    """Walks the three ledgers of a desk in the order of a trade.

    Args:
        home: where the pinned public keys are; they, not the ledgers, are the root of trust.
    """

    def __init__(self, home: DeskHome) -> None:
        self._keys = home.public_keys
        self._proofs = Proofs()
        self._members: dict[AgentId, tuple[RosterMember, int, int | None]] = {}
        self._proposals: dict[ProposalId, tuple[TradeProposal, str]] = {}
        self._votes: dict[ProposalId, dict[AgentId, tuple[Vote, str]]] = {}
        self._decided: set[ProposalId] = set()
        self._approved: dict[DecisionId, TradeProposal] = {}
        self._granted: dict[DecisionId, Decimal] = {}
        self._exits = ExitProofs()
        self._limits = LimitProofs(home.public_keys)

    async def run(self, ledgers: Ledgers) -> Proofs:
        """Check everything in the ledgers and return what was found.

        On a running desk the heads are taken against the walk of a trade: then whatever the last room did is already
        in the ledgers of the rooms that allowed it.
        """
        heads = {room: await ledgers.reader(room).last_seq() for room in reversed(ROOMS)}
        for room, check in zip(ROOMS, (self._coordination, self._risk, self._execution), strict=True):
            refuse = partial(self._unreadable, room)
            async for event in read_sound_events(ledgers.reader(room), until=heads[room], unreadable=refuse):
                self._attempt(room, event, check)
        return self._proofs

    def _unreadable(self, room: str, seq: int, error: InvalidValue) -> None:
        self._proofs.findings.append(Finding(room, seq, f"cannot be read: {error.code}: {error}"))

    def _attempt(self, room: str, event: EventEnvelope, check: Callable[[EventEnvelope], None]) -> None:
        try:
            check(event)
        except TradingError as error:
            self._proofs.findings.append(Finding(room, event.seq, f"{event.event_type}: {error.code}: {error}"))

    def _coordination(self, event: EventEnvelope) -> None:
        match event.payload:
            case AgentRegistered() as member:
                self._register(member)
            case AgentRevoked() as gone:
                known, since, _ = _find(self._members, gone.agent_id, f"{gone.agent_id} is not a member")
                self._members[gone.agent_id] = (known, since, gone.roster_version)
            case ProposalOpened() as opened:
                payload = open_envelope(opened.envelope, self._member_key(opened.agent_id), PROPOSAL_PAYLOAD_TYPE)
                proposal = codec.decode(TradeProposal, payload)
                require(proposal.agent_id == opened.agent_id, "the proposal names another agent")
                require(digest(payload) == opened.digest, "the digest is of another proposal")
                self._proposals[proposal.proposal_id] = (proposal, opened.digest)
                self._proofs.checked["proposals"] += 1
            case VoteCast() as cast:
                self._vote(cast)
            case ProposalDecided() as decided:
                self._decision(decided)
            case _:
                pass

    def _register(self, member: AgentRegistered) -> None:
        pinned = load_public_key(self._keys / f"agent-{member.agent_id}.pub")
        require(pinned == member.public_key, "the registered key is not the pinned one")
        self._members[member.agent_id] = (
            RosterMember(
                agent_id=member.agent_id,
                role=member.role,
                key_id=member.key_id,
                public_key=member.public_key,
                family=member.family,
            ),
            member.roster_version,
            None,
        )

    def _member_key(self, agent_id: AgentId) -> Ed25519Verifier:
        return Ed25519Verifier.of(_find(self._members, agent_id, f"{agent_id} is not a member")[0].public_key)

    def _roster(self, version: int) -> Roster:
        return Roster(
            version,
            tuple(
                m for m, since, until in self._members.values() if since <= version and not (until and until <= version)
            ),
        )

    def _vote(self, cast: VoteCast) -> None:
        payload = open_envelope(cast.envelope, self._member_key(cast.agent_id), VOTE_PAYLOAD_TYPE)
        vote = codec.decode(Vote, payload)
        require(vote.agent_id == cast.agent_id, "the vote names another agent")
        require(vote.choice is cast.choice, "the recorded choice is not the signed one")
        _, proposal_digest = _find(self._proposals, cast.proposal_id, "a vote on an unknown proposal")
        require(vote.proposal_digest == proposal_digest, "the vote is on other bytes")
        votes = self._votes.setdefault(cast.proposal_id, {})
        require(vote.agent_id not in votes, "a second vote of the same agent")
        votes[vote.agent_id] = (vote, digest(payload))
        self._proofs.checked["votes"] += 1

    def _decision(self, decided: ProposalDecided) -> None:
        leader = Ed25519Verifier.of(load_public_key(self._keys / "leader.pub"))
        decision = codec.decode(Decision, open_envelope(decided.envelope, leader, DECISION_PAYLOAD_TYPE))
        proposal, proposal_digest = _find(self._proposals, decided.proposal_id, "a decision on an unknown proposal")
        votes = self._votes.pop(decided.proposal_id, {})
        counted = [vote for vote, key in votes.values() if key in decision.vote_digests]
        recorded = (decided.proposal_id, decided.decision_id, decided.outcome, decided.tally)
        signed = (decision.proposal_id, decision.decision_id, decision.tally.outcome, decision.tally)
        require(recorded == signed, "the recorded decision is not the signed one")
        require(decided.proposal_id not in self._decided, "a second decision on one proposal")
        self._decided.add(decided.proposal_id)
        require(decision.proposal_digest == proposal_digest, "the decision is on other bytes")
        require(len(counted) == len(decision.vote_digests), "a counted vote is not in the ledger")
        again = tally(QuorumPolicy(), self._roster(proposal.roster_version), proposal.trade_class, counted)
        if decision.tally.outcome is Outcome.APPROVED:
            require(again.approved, f"counted again it is rejected: {', '.join(again.reasons)}")
            self._approved[decision.decision_id] = proposal
        self._proofs.checked["decisions"] += 1

    def _risk(self, event: EventEnvelope) -> None:
        if isinstance(event.payload, LimitsLoaded):
            self._limits.loaded(event.payload)
            self._proofs.checked["limits"] += 1
        if not isinstance(event.payload, (RiskApproved, ExitSigned)):
            return
        risk = Ed25519Verifier.of(load_public_key(self._keys / "risk-approval.pub"))
        if isinstance(event.payload, ExitSigned):
            self._exits.signed(event.payload, risk)
            self._proofs.checked["exits"] += 1
            return
        payload = open_envelope(event.payload.envelope, risk, APPROVAL_PAYLOAD_TYPE)
        approval = event.payload.approval
        require(payload == codec.canonical(approval), "the recorded approval is not the signed one")
        if approval.decision_id is not None:
            self._check_decided(approval, approval.decision_id)
        require(approval.approval_id not in self._proofs.approvals, "the approval was issued twice")
        self._proofs.approvals[approval.approval_id] = approval
        self._proofs.checked["approvals"] += 1
        self._exits.approved(approval)
        self._limits.approved(approval)

    def _check_decided(self, approval: Approval, decision_id: DecisionId) -> None:
        """Require that the vote was on this trade, and that all its approvals together stay within it."""
        proposal = _find(self._approved, decision_id, "approved on a decision that did not approve")
        order, wanted = approval.order, proposal.order
        require(
            (approval.agent_id, order.account_id, order.symbol, order.side)
            == (proposal.agent_id, wanted.account_id, wanted.symbol, wanted.side),
            "approved another trade than the one decided on",
        )
        granted = add(self._granted.get(decision_id, ZERO), order.quantity)
        require(granted <= wanted.quantity, "approved more than was decided on")
        self._granted[decision_id] = granted

    def _execution(self, event: EventEnvelope) -> None:
        if isinstance(event.payload, OrderFilled):
            self._exits.filled(event.payload)
        if not isinstance(event.payload, OrderInitialized):
            return
        order = event.payload
        if order.exit_slice is not None:
            self._exits.ordered(order, event.timestamp_ms)
        else:
            approval = _find(self._proofs.approvals, order.approval_id, "no verified approval")
            require(order.terms == approval.order, "the order is not the approved one")
            require(event.timestamp_ms <= approval.expires_ms, "the approval had expired")
        client_order_id = order.terms.client_order_id
        require(client_order_id not in self._proofs.orders, "a second order on one approval")
        self._proofs.orders[client_order_id] = order.approval_id
        self._proofs.checked["orders"] += 1


def _find(known: Mapping[K, V], key: K, otherwise: str) -> V:
    try:
        return known[key]
    except KeyError:
        raise TradingError(otherwise, code="NOT_PROVEN") from None
