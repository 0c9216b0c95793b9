"""One proposal under vote, the bounds of a vote, and what a submission became."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coordinator.admission import ProposalRules, Signed
from coordinator.ballots import KnownVote
from trading.domain.identifiers import AgentId, ProposalId
from trading.domain.proposals import TradeProposal
from trading.domain.voting import QuorumPolicy, Roster, Vote


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a submission: OPENED, COUNTED, DUPLICATE or the code of a refusal."""

    code: str
    proposal_id: ProposalId


@dataclass(slots=True)
class Round:
    """One proposal under vote; the only mutable thing here, owned by ``Rounds``."""

    proposal: Signed[TradeProposal]
    roster: Roster
    votes: dict[AgentId, Signed[Vote]] = field(default_factory=dict[AgentId, Signed[Vote]])
    received_ms: dict[AgentId, int] = field(default_factory=dict[AgentId, int])
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def proposal_id(self) -> ProposalId:
        """The proposal's id."""
        return self.proposal.value.proposal_id

    def known_votes(self) -> list[KnownVote]:
        """Return the recorded votes as a ballot takes them back."""
        return [KnownVote(a, v.digest, v.envelope, self.received_ms[a]) for a, v in self.votes.items()]

    def count(self, vote: Signed[Vote], received_ms: int) -> None:
        """Take a recorded vote; the first of a member stays."""
        if vote.value.agent_id not in self.votes:
            self.votes[vote.value.agent_id] = vote
            self.received_ms[vote.value.agent_id] = received_ms
        if len(self.votes) >= len(self.roster.members):
            self.complete.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """Bounds and the rule of the vote.

    Attributes:
        open_max: proposals under vote or under way at once; more are refused as BUSY.
    """

    rules: ProposalRules
    policy: QuorumPolicy = field(default_factory=QuorumPolicy)
    open_max: int = 256
