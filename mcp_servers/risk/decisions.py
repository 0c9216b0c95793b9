"""Is there really a decision of the vote, and does it cover this order?

Rules kept here:

- The courier is not trusted: everything is read from the coordinator's ledger and every signature is checked again.
- The fenced leader's signature on an approved decision is required; the recount is a second check, never a substitute:
  late genuine votes could re-assemble a rejected ballot (docs/model, small.py).
- Keys come from the operator's pinned files. A member whose key is not pinned cannot vote. Of one whose key was revoked
  since only a no counts: its yes would help, and its abstention would lower what is needed.
- Who is pinned is eligible, whatever the coordinator's roster says: leaving voters out never makes a majority.
- The leader's count must be what the votes say, each member once; a leader that was replaced decides nothing more.
- Risk's own quorum numbers are the floor, whatever the coordinator's are.
- The order may be smaller than the proposal and better priced, never larger, worse, or something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeVar

from trading.adapters import codec
from trading.adapters.signing import digest, key_id_of, open_envelope
from trading.domain.approvals import DECISION_PAYLOAD_TYPE, PROPOSAL_PAYLOAD_TYPE, VOTE_PAYLOAD_TYPE
from trading.domain.errors import InvalidValue, SignatureRefused, TradingError
from trading.domain.identifiers import AgentId, DecisionId
from trading.domain.market_data import is_worse
from trading.domain.money import add
from trading.domain.proposals import Mode, OrderIntent, TradeProposal
from trading.domain.voting import Choice, Decision, Outcome, QuorumPolicy, Role, Roster, RosterMember, Vote, tally
from trading.ports.ledger import LedgerReader, Row
from trading.ports.signing import Verifier

T = TypeVar("T")

_REIGNS_KEPT: Final = 64  # leaders remembered


class DecisionRefused(TradingError):
    """A decision does not hold; ``code`` says which check it failed."""

    code = "DECISION_REFUSED"


@dataclass(frozen=True, slots=True)
class VerifiedDecision:
    """A decision that passed every check, with the proposal it approves."""

    decision: Decision
    proposal: TradeProposal

    @property
    def expires_ms(self) -> int:
        """The earlier expiry of decision and proposal."""
        return min(self.decision.expires_ms, self.proposal.expires_ms)


@dataclass(frozen=True, slots=True)
class PinnedKeys:
    """The operator's public keys: the root of trust for votes.

    Attributes:
        agents: Ed25519 public key, 64 hexadecimal digits, by agent.
        voters: verifies any of them.
        leader: verifies the coordinator's leader key.
    """

    agents: Mapping[AgentId, str]
    voters: Verifier
    leader: Verifier


@dataclass(frozen=True, slots=True)
class _Electorate:
    """Who is asked.

    Attributes:
        listed: the roster's members: who may vote.
        eligible: these and everybody else who is pinned: whom the threshold is counted of.
        revoked: members whose key was revoked since.
    """

    listed: Roster
    eligible: Roster
    revoked: frozenset[AgentId]


class DecisionVerifier:
    """Reads a decision's bundle from the coordinator's ledger and checks all of it.

    Args:
        policy: risk's floor.
        consent_agents: the only members whose yes is the risk role's consent; empty: the roster's roles.
        clock_skew_ms: how far the decision may lie in our future.
    """

    def __init__(
        self,
        reader: LedgerReader,
        keys: PinnedKeys,
        policy: QuorumPolicy,
        mode: Mode,
        *,
        consent_agents: Sequence[AgentId] = (),
        clock_skew_ms: int = 1_000,
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._policy = policy
        self._mode = mode
        self._consent = frozenset(consent_agents)
        self._skew_ms = clock_skew_ms
        #: When each leader's first decision that we saw was made, by its fencing token.
        self._reigns: dict[int, int] = {}

    async def verify(self, decision_id: DecisionId, now_ms: int) -> VerifiedDecision:
        """Return the decision if everything about it holds.

        Raises:
            DecisionRefused: with the code of the first check that failed.
            LedgerError: the coordinator's ledger cannot be read.
        """
        row = await self._one("decisions", {"decision_id": decision_id}, "DECISION_UNKNOWN")
        decision = _decoded(
            Decision, self._open(str(row["envelope"]), self._keys.leader, DECISION_PAYLOAD_TYPE, "LEADER_SIGNATURE")
        )
        self._check_decision(decision, decision_id, now_ms)
        row = await self._one("proposals", {"proposal_id": decision.proposal_id}, "PROPOSAL_UNKNOWN")
        proposal = self._proposal(str(row["envelope"]), decision, now_ms)
        electorate = await self._electorate(proposal.roster_version)
        votes = await self._votes(decision, proposal, electorate)
        standing = [vote for vote in votes if vote.choice is Choice.NO or vote.agent_id not in electorate.revoked]
        recount = tally(self._policy, electorate.eligible, proposal.trade_class, standing)
        if not recount.approved:
            raise DecisionRefused(f"risk's own count rejects: {', '.join(recount.reasons)}", code="RECOUNT_REJECTS")
        self._check_count(decision, votes)
        self._check_reign(decision)
        return VerifiedDecision(decision, proposal)

    def _check_decision(self, decision: Decision, decision_id: DecisionId, now_ms: int) -> None:
        if decision.decision_id != decision_id:
            raise DecisionRefused("the envelope is of another decision", code="DECISION_MISMATCH")
        if decision.tally.outcome is not Outcome.APPROVED:
            raise DecisionRefused("the vote rejected the proposal", code="NOT_APPROVED")
        if decision.decided_ms > now_ms + self._skew_ms:
            raise DecisionRefused("the decision lies in the future", code="DECISION_FROM_FUTURE")
        if decision.expires_ms <= now_ms:
            raise DecisionRefused("the decision has expired", code="DECISION_EXPIRED")

    def _proposal(self, envelope: str, decision: Decision, now_ms: int) -> TradeProposal:
        payload = self._open(envelope, self._keys.voters, PROPOSAL_PAYLOAD_TYPE, "PROPOSER_SIGNATURE")
        if digest(payload) != decision.proposal_digest:
            raise DecisionRefused("the proposal is not the one that was decided", code="PROPOSAL_MISMATCH")
        proposal = _decoded(TradeProposal, payload)
        self._check_author(envelope, proposal.agent_id, "PROPOSER_SIGNATURE")
        if proposal.proposal_id != decision.proposal_id or proposal.roster_version != decision.roster_version:
            raise DecisionRefused("proposal and decision do not belong together", code="PROPOSAL_MISMATCH")
        if proposal.mode is not self._mode:
            raise DecisionRefused(f"the proposal is for {proposal.mode}", code="WRONG_MODE")
        if proposal.expires_ms <= now_ms:
            raise DecisionRefused("the proposal has expired", code="DECISION_EXPIRED")
        if not proposal.created_ms <= decision.decided_ms < proposal.expires_ms:
            raise DecisionRefused("it was not decided while the proposal stood", code="DECISION_OUT_OF_TIME")
        return proposal

    async def _electorate(self, version: int) -> _Electorate:
        """Return who could have voted at that version, and whose key was revoked at any time since."""
        members: list[RosterMember] = []
        revoked: set[AgentId] = set()
        for row in await self._reader.rows("roster"):
            left = row["revoked_version"]
            if _number(row["roster_version"]) > version or (left is not None and _number(left) <= version):
                continue
            member = _member(row)
            if self._consent:
                is_consent = member.agent_id in self._consent
                role = Role.RISK if is_consent else Role.TRADER
                member = RosterMember(
                    agent_id=member.agent_id,
                    role=role,
                    key_id=member.key_id,
                    public_key=member.public_key,
                    family=member.family,
                )
            members.append(member)
            if left is not None:
                revoked.add(member.agent_id)
        listed = Roster(version, tuple(members))
        missing = [_silent(name, key) for name, key in self._keys.agents.items() if listed.member(name) is None]
        return _Electorate(listed, Roster(version, (*listed.members, *missing)), frozenset(revoked))

    async def _votes(self, decision: Decision, proposal: TradeProposal, electorate: _Electorate) -> list[Vote]:
        """Return the counted votes; refuse a bundle that is not exactly what the leader signed."""
        wanted = set(decision.vote_digests)
        if len(wanted) != len(decision.vote_digests):
            raise DecisionRefused("a vote is listed twice", code="VOTE_TWICE")
        votes: dict[AgentId, Vote] = {}
        for row in await self._reader.rows("votes", {"proposal_id": decision.proposal_id}):
            envelope = str(row["envelope"])
            payload = self._open(envelope, self._keys.voters, VOTE_PAYLOAD_TYPE, "VOTE_SIGNATURE")
            if digest(payload) not in wanted:
                continue  # recorded, but the leader did not count it: late, or a second ballot
            wanted.discard(digest(payload))
            vote = _decoded(Vote, payload)
            self._check_vote(vote, row, decision, proposal)
            self._check_author(envelope, vote.agent_id, "VOTE_SIGNATURE")
            member = electorate.listed.member(vote.agent_id)
            if member is None or self._keys.agents.get(vote.agent_id) != member.public_key:
                raise DecisionRefused(f"{vote.agent_id} is no member with a pinned key", code="VOTER_UNKNOWN")
            if vote.agent_id in votes:
                raise DecisionRefused(f"{vote.agent_id} was counted twice", code="VOTE_TWICE")
            votes[vote.agent_id] = vote
        if wanted:
            raise DecisionRefused("votes that were counted are missing", code="VOTES_MISSING")
        return list(votes.values())

    @staticmethod
    def _check_vote(vote: Vote, row: Row, decision: Decision, proposal: TradeProposal) -> None:
        if vote.proposal_id != decision.proposal_id or vote.proposal_digest != decision.proposal_digest:
            raise DecisionRefused("a vote is on another proposal", code="VOTE_MISMATCH")
        if _number(row["received_ms"]) > min(proposal.deadline_ms, decision.decided_ms):
            raise DecisionRefused("a vote came after the deadline or the decision", code="VOTE_LATE")

    @staticmethod
    def _check_count(decision: Decision, votes: Sequence[Vote]) -> None:
        choices, count = [vote.choice for vote in votes], decision.tally
        if (count.yes, count.no, count.abstain) != tuple(choices.count(each) for each in Choice):
            raise DecisionRefused("the leader's count is not what the votes say", code="TALLY_MISMATCH")

    def _check_reign(self, decision: Decision) -> None:
        """Refuse what a leader decided after its successor did; what it decided before stays good."""
        if any(fence > decision.fence and first <= decision.decided_ms for fence, first in self._reigns.items()):
            raise DecisionRefused("another leader had taken over by then", code="LEADER_REPLACED")
        first = self._reigns.get(decision.fence, decision.decided_ms)
        self._reigns[decision.fence] = min(first, decision.decided_ms)
        while len(self._reigns) > _REIGNS_KEPT:
            del self._reigns[min(self._reigns)]

    def _check_author(self, envelope: str, agent_id: AgentId, code: str) -> None:
        """Refuse what one pinned member signed in another's name."""
        pinned = self._keys.agents.get(agent_id)
        if pinned is None or f'"keyid":"{key_id_of(pinned)}"' not in envelope:
            raise DecisionRefused(f"not signed by {agent_id}", code=code)

    @staticmethod
    def _open(envelope: str, verifier: Verifier, payload_type: str, code: str) -> bytes:
        try:
            return open_envelope(envelope, verifier, payload_type)
        except SignatureRefused as error:
            raise DecisionRefused("a signature does not verify", code=code) from error

    async def _one(self, table: str, where: Row, code: str) -> Row:
        found = await self._reader.rows(table, where, limit=1)
        if not found:
            raise DecisionRefused(f"nothing in {table} by that id", code=code)
        return found[0]


def _decoded(kind: type[T], payload: bytes) -> T:
    """Return what a member or the leader signed; signing nonsense is no way to make a request fail otherwise."""
    try:
        return codec.decode(kind, payload)
    except InvalidValue as error:
        raise DecisionRefused(f"what was signed is no {kind.__name__.lower()}", code="MALFORMED") from error


def _silent(agent_id: AgentId, public_key: str) -> RosterMember:
    """Return a pinned agent that the roster does not list: eligible, and nobody's vote."""
    return RosterMember(
        agent_id=agent_id, role=Role.TRADER, key_id=key_id_of(public_key), public_key=public_key, family=""
    )


def uncovered(proposal: TradeProposal, orders: Sequence[OrderIntent]) -> str:
    """Return why the proposal does not cover these child orders together; empty when it does."""
    wanted = proposal.order
    total = Decimal(0)
    for order in orders:
        total = add(total, order.quantity)
        problem = _differs(wanted, order)
        if problem:
            return problem
    if total > wanted.quantity:
        return f"the orders together ({total:f}) exceed the proposal ({wanted.quantity:f})"
    return ""


def _differs(wanted: OrderIntent, order: OrderIntent) -> str:
    for name in ("account_id", "symbol", "side", "order_type", "time_in_force", "stop_price", "post_only"):
        if getattr(wanted, name) != getattr(order, name):
            return f"{name} differs from the proposal"
    if wanted.reduce_only and not order.reduce_only:
        return "the proposal only reduces"
    limit, least = order.limit_price, wanted.limit_price
    if limit is not None and least is not None and is_worse(limit, least, wanted.side):
        return "the limit price is worse than the proposal's"
    return ""


def _member(row: Row) -> RosterMember:
    return codec.decode_data(
        RosterMember,
        {name: row[name] for name in ("agent_id", "role", "key_id", "public_key", "family")},
    )


def _number(value: object) -> int:
    return int(str(value))
