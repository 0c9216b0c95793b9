"""What the coordinator writes: who belongs to the desk, proposals, votes and decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trading.domain.identifiers import AgentId, ApprovalId, DecisionId, KeyId, OrderId, ProposalId
from trading.domain.voting import Choice, Outcome, Role, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRegistered:
    """A member joined the registry; the roster version rises by one."""

    TYPE: ClassVar[str] = "agent.registered"
    agent_id: AgentId
    role: Role
    family: str
    key_id: KeyId
    public_key: str
    roster_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRevoked:
    """A member's key no longer counts, from this roster version on."""

    TYPE: ClassVar[str] = "agent.revoked"
    agent_id: AgentId
    roster_version: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalOpened:
    """A verified proposal went to the vote. ``envelope`` is the proposer's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "proposal.opened"
    proposal_id: ProposalId
    agent_id: AgentId
    envelope: str
    digest: str
    roster_version: int
    deadline_ms: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRefused:
    """A proposal was not put to the vote; ``reason`` is a stable code."""

    TYPE: ClassVar[str] = "proposal.refused"
    proposal_id: ProposalId
    agent_id: AgentId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteCast:
    """A verified vote was counted. ``envelope`` is the voter's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "vote.cast"
    proposal_id: ProposalId
    agent_id: AgentId
    choice: Choice
    reason: str
    envelope: str
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRefused:
    """A vote was recorded but not counted; ``reason`` is LATE, BAD_SIGNATURE, UNREGISTERED, EQUIVOCATION and so on."""

    TYPE: ClassVar[str] = "vote.refused"
    proposal_id: ProposalId
    agent_id: AgentId
    reason: str
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalDecided:
    """The one decision on a proposal. ``envelope`` is the leader's DSSE envelope, JSON text."""

    TYPE: ClassVar[str] = "proposal.decided"
    decision_id: DecisionId
    proposal_id: ProposalId
    outcome: Outcome
    tally: Tally
    envelope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionCompleted:
    """The coordinator has taken an approved decision through risk and execution as far as it goes.

    Attributes:
        result: ``executed``, ``denied``, ``expired`` or ``failed``.
        detail: a stable code that says more, or empty.
    """

    TYPE: ClassVar[str] = "decision.completed"
    decision_id: DecisionId
    proposal_id: ProposalId
    result: str
    detail: str
    approval_ids: tuple[ApprovalId, ...]
    order_ids: tuple[OrderId, ...]
