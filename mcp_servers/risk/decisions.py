"""Is there really a decision of the vote, and does it cover this order?

Rules kept here:

- The courier is not trusted: everything is read from the coordinator's ledger and every signature is checked again.
- The fenced leader's signature on an approved decision is required; the recount is a second check, never a substitute:
  late genuine votes could re-assemble a rejected ballot (docs/model, small.py).
- Keys come from the operator's pinned files. A member whose key is not pinned, or was revoked since, cannot say yes;
  it still counts as eligible, so leaving voters out never makes a majority.
- Risk's own quorum numbers are the floor, whatever the coordinator's are.
- The order may be smaller than the proposal and better priced, never larger, worse, or something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from trading.adapters import codec
from trading.adapters.signing import digest, key_id_of, open_envelope
from trading.domain.approvals import DECISION_PAYLOAD_TYPE, PROPOSAL_PAYLOAD_TYPE, VOTE_PAYLOAD_TYPE
from trading.domain.errors import SignatureRefused, TradingError
from trading.domain.identifiers import AgentId, DecisionId
from trading.domain.market_data import is_worse
from trading.domain.money import add
from trading.domain.proposals import Mode, OrderIntent, TradeProposal
from trading.domain.voting import Choice, Decision, Outcome, QuorumPolicy, Role, Roster, RosterMember, Vote, tally
from trading.ports.ledger import LedgerReader, Row
from trading.ports.signing import Verifier


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

    async def verify(self, decision_id: DecisionId, now_ms: int) -> VerifiedDecision:
        """Return the decision if everything about it holds.

        Raises:
            DecisionRefused: with the code of the first check that failed.
            LedgerError: the coordinator's ledger cannot be read.
        """
        row = await self._one("decisions", {"decision_id": decision_id}, "DECISION_UNKNOWN")
        decision = codec.decode(
            Decision, self._open(str(row["envelope"]), self._keys.leader, DECISION_PAYLOAD_TYPE, "LEADER_SIGNATURE")
        )
        self._check_decision(decision, decision_id, now_ms)
        row = await self._one("proposals", {"proposal_id": decision.proposal_id}, "PROPOSAL_UNKNOWN")
        proposal = self._proposal(str(row["envelope"]), decision, now_ms)
        roster, revoked = await self._roster(proposal.roster_version)
        votes = await self._votes(decision, proposal, roster, revoked)
        recount = tally(self._policy, roster, proposal.trade_class, votes)
        if not recount.approved:
            raise DecisionRefused(f"risk's own count rejects: {', '.join(recount.reasons)}", code="RECOUNT_REJECTS")
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
        proposal = codec.decode(TradeProposal, payload)
        self._check_author(envelope, proposal.agent_id, "PROPOSER_SIGNATURE")
        if proposal.proposal_id != decision.proposal_id or proposal.roster_version != decision.roster_version:
            raise DecisionRefused("proposal and decision do not belong together", code="PROPOSAL_MISMATCH")
        if proposal.mode is not self._mode:
            raise DecisionRefused(f"the proposal is for {proposal.mode}", code="WRONG_MODE")
        if proposal.expires_ms <= now_ms:
            raise DecisionRefused("the proposal has expired", code="DECISION_EXPIRED")
        return proposal

    async def _roster(self, version: int) -> tuple[Roster, frozenset[AgentId]]:
        """Return the members at that version, and those whose key was revoked at any time since."""
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
        return Roster(version, tuple(members)), frozenset(revoked)

    async def _votes(
        self, decision: Decision, proposal: TradeProposal, roster: Roster, revoked: frozenset[AgentId]
    ) -> list[Vote]:
        """Return the counted votes that verify; refuse a bundle that is not exactly what the leader signed."""
        wanted = set(decision.vote_digests)
        votes: list[Vote] = []
        for row in await self._reader.rows("votes", {"proposal_id": decision.proposal_id}):
            envelope = str(row["envelope"])
            payload = self._open(envelope, self._keys.voters, VOTE_PAYLOAD_TYPE, "VOTE_SIGNATURE")
            if digest(payload) not in wanted:
                continue  # recorded, but the leader did not count it: late, or a second ballot
            wanted.discard(digest(payload))
            vote = codec.decode(Vote, payload)
            self._check_vote(vote, row, decision, proposal)
            self._check_author(envelope, vote.agent_id, "VOTE_SIGNATURE")
            member = roster.member(vote.agent_id)
            if member is None or self._keys.agents.get(vote.agent_id) != member.public_key:
                raise DecisionRefused(f"{vote.agent_id} is no member with a pinned key", code="VOTER_UNKNOWN")
            if vote.agent_id in revoked and vote.choice is Choice.YES:
                continue
            votes.append(vote)
        if wanted:
            raise DecisionRefused("votes that were counted are missing", code="VOTES_MISSING")
        return votes

    @staticmethod
    def _check_vote(vote: Vote, row: Row, decision: Decision, proposal: TradeProposal) -> None:
        if vote.proposal_id != decision.proposal_id or vote.proposal_digest != decision.proposal_digest:
            raise DecisionRefused("a vote is on another proposal", code="VOTE_MISMATCH")
        if _number(row["received_ms"]) > proposal.deadline_ms:
            raise DecisionRefused("a vote came after the deadline", code="VOTE_LATE")

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
    for name in ("account_id", "symbol", "side", "order_type", "stop_price", "post_only"):
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
