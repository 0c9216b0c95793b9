"""Votes and the one rule that turns them into a decision.

The rule, in integers so that it is exact::

    approved  iff  den*yes >= num*(eligible - explicit abstentions)      (60 %: num 3, den 5)
              and  yes >= min_yes                                        (2; 3 for the large class)
              and  yes + no >= quorum
              and  a member with the risk role voted yes

A missing vote counts as not-yes, so no censor can turn a rejection into an approval by dropping votes; the naive
rule ``yes / (yes + no)`` allows exactly that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AgentId, DecisionId, KeyId, ProposalId
from trading.domain.proposals import TradeClass


class Role(StrEnum):
    """What a roster member is there for."""

    TRADER = "trader"
    RISK = "risk"


class Choice(StrEnum):
    """A ballot. Abstaining is explicit; silence is not an abstention."""

    YES = "yes"
    NO = "no"
    ABSTAIN = "abstain"


class Outcome(StrEnum):
    """What a vote decided."""

    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterMember:
    """A member who may vote, with the key that speaks for it.

    Attributes:
        public_key: Ed25519 public key, 64 hexadecimal digits.
        family: what the member thinks with (``rules`` or a model family); members of a family err together.
    """

    agent_id: AgentId
    role: Role
    key_id: KeyId
    public_key: str
    family: str


@dataclass(frozen=True, slots=True)
class Roster:
    """The members at one version of the registry; frozen into each proposal when it opens."""

    version: int
    members: tuple[RosterMember, ...]

    def __post_init__(self) -> None:
        if len({member.agent_id for member in self.members}) != len(self.members):
            raise InvalidValue("an agent is listed twice in the roster", code="INVALID_ROSTER")

    def member(self, agent_id: AgentId) -> RosterMember | None:
        """Return the member with that id, or None."""
        return next((member for member in self.members if member.agent_id == agent_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One member's ballot on the exact bytes of one proposal.

    Attributes:
        proposal_digest: SHA-256 of the proposal's signed payload, 64 hexadecimal digits.
        stance_age_ms: how old the market view behind the ballot was, for people to judge.
        reason: at most 280 characters; never shown to other agents.
    """

    proposal_id: ProposalId
    proposal_digest: str
    agent_id: AgentId
    choice: Choice
    reason: str = ""
    stance_age_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumPolicy:
    """The numbers of the rule above; risk's own copy is the floor for everybody else's."""

    threshold_numerator: int = 3
    threshold_denominator: int = 5
    min_yes: int = 2
    min_yes_large: int = 3
    quorum: int = 2
    require_risk_consent: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold_numerator <= self.threshold_denominator or self.min_yes < 1 or self.quorum < 1:
            raise InvalidValue("the voting threshold must lie in (0, 1]", code="INVALID_QUORUM_POLICY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The count and what follows from it.

    Attributes:
        reasons: why it was rejected, one code per unmet condition; empty when approved.
    """

    outcome: Outcome
    eligible: int
    yes: int
    no: int
    abstain: int
    missing: int
    reasons: tuple[str, ...]

    @property
    def approved(self) -> bool:
        """Whether the proposal passed."""
        return self.outcome is Outcome.APPROVED


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the fenced leader signs: exactly one exists for a proposal.

    Attributes:
        proposal_digest: SHA-256 of the proposal's signed payload.
        vote_digests: SHA-256 of each counted vote's signed payload, sorted.
        fence: the leader's fencing token.
        decided_ms: Redis time of the decision.
        expires_ms: no approval may be given after it; the proposal's own expiry.
    """

    decision_id: DecisionId
    proposal_id: ProposalId
    proposal_digest: str
    tally: Tally
    vote_digests: tuple[str, ...]
    roster_version: int
    fence: int
    decided_ms: int
    expires_ms: int


def tally(policy: QuorumPolicy, roster: Roster, trade_class: TradeClass, votes: Iterable[Vote]) -> Tally:
    """Count verified votes.

    Args:
        policy: thresholds.
        roster: who was eligible when the proposal opened.
        trade_class: the large class needs more yes votes.
        votes: at most one per member; the first of a member counts, votes of strangers do not.

    Returns:
        The count, the outcome and every unmet condition.
    """
    ballots: dict[AgentId, Choice] = {}
    for vote in votes:
        if roster.member(vote.agent_id) is not None:
            ballots.setdefault(vote.agent_id, vote.choice)
    counted = list(ballots.values())
    yes, no, abstain = (counted.count(choice) for choice in (Choice.YES, Choice.NO, Choice.ABSTAIN))
    eligible = len(roster.members)
    min_yes = policy.min_yes_large if trade_class is TradeClass.LARGE else policy.min_yes
    consent = any(m.role is Role.RISK and ballots.get(m.agent_id) is Choice.YES for m in roster.members)

    reasons: list[str] = []
    if policy.threshold_denominator * yes < policy.threshold_numerator * (eligible - abstain):
        reasons.append("THRESHOLD_NOT_REACHED")
    if yes < min_yes:
        reasons.append("TOO_FEW_YES")
    if yes + no < policy.quorum:
        reasons.append("NO_QUORUM")
    if policy.require_risk_consent and not consent:
        reasons.append("NO_RISK_CONSENT")
    return Tally(
        outcome=Outcome.REJECTED if reasons else Outcome.APPROVED,
        eligible=eligible,
        yes=yes,
        no=no,
        abstain=abstain,
        missing=eligible - yes - no - abstain,
        reasons=tuple(reasons),
    )
