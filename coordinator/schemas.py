"""What the coordinator's tools answer with."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


class TallyRow(Row):
    """The count of a vote.

    Attributes:
        share_of_cast: yes over yes and no, percent; shown for comparison, never decided by.
        share_of_eligible: yes over eligible less abstentions, percent; this is compared with the threshold.
    """

    outcome: str
    yes: int
    no: int
    abstain: int
    missing: int
    eligible: int
    share_of_cast: DecimalText
    share_of_eligible: DecimalText
    unmet: list[str]


class OrderRow(Row):
    """The order a proposal asks for; quantity in base, prices in quote per base."""

    venue: str
    symbol: str
    side: str
    type: str
    quantity: DecimalText
    limit_price: DecimalText | None = None
    stop_price: DecimalText | None = None
    time_in_force: str
    reduce_only: bool


class VoteRow(Row):
    """One counted vote."""

    agent_id: str
    choice: str
    reason: str = Field(description="stated by the agent; not proof of cause")
    stance_age_ms: int
    received: str


class ProposalRow(Row):
    """A proposal in a list."""

    proposal_id: str
    agent_id: str
    state: str
    symbol: str
    side: str
    quantity: DecimalText
    created: str
    decision_id: str | None = None


class ProposalList(Row):
    """Proposals, newest first."""

    proposals: list[ProposalRow]


class ProposalDetail(Row):
    """Everything about one proposal.

    Attributes:
        state: open, approved, rejected, executed, denied, expired or failed.
        progress: how far an approved decision has come, or what became of it.
    """

    proposal_id: str
    agent_id: str
    state: str
    trade_class: str
    order: OrderRow
    reason: str
    created: str
    deadline: str
    expires: str
    digest: str
    roster_version: int
    votes: list[VoteRow]
    tally: TallyRow | None = None
    decision_id: str | None = None
    progress: str | None = None


class AgentRow(Row):
    """A member of the desk."""

    agent_id: str
    role: str
    family: str
    key_id: str
    hosted: bool


class AgentList(Row):
    """The present roster."""

    roster_version: int
    agents: list[AgentRow]


class Submitted(Row):
    """What became of a signed proposal or vote: OPENED, COUNTED, or DUPLICATE of one that is in already."""

    outcome: str
    proposal_id: str


class RoomRow(Row):
    """A server this one calls."""

    room: str
    connected: bool


class CoordinatorStatus(Row):
    """Whether the meeting works.

    Attributes:
        state: starting, waiting, running, stopping or failed.
        safe_to_trade: whether approved decisions can be carried out now; ``reasons`` says why not.
        fence: the leader's fencing token.
        counts: proposals, votes, decisions and results since this process started.
    """

    state: str
    safe_to_trade: bool
    reasons: list[str]
    account: str
    leader: bool
    fence: int
    roster_version: int
    open_rounds: int
    decisions_under_way: int
    account_age_ms: int | None = None
    rooms: list[RoomRow]
    counts: dict[str, int]
