"""An approval must be of the very trade that was decided on, and a proposal is decided once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from grekko.initialization import initialize
from grekko.ledgers import Ledgers
from grekko.proofs import Prover
from trading.adapters import codec
from trading.adapters.approval_signer import load_approval_signer
from trading.adapters.config import DeskSettings
from trading.adapters.signing import digest, seal
from trading.adapters.signing_keys import load_signer
from trading.domain.approvals import (
    APPROVAL_PAYLOAD_TYPE,
    DECISION_PAYLOAD_TYPE,
    PROPOSAL_PAYLOAD_TYPE,
    VOTE_PAYLOAD_TYPE,
    Approval,
)
from trading.domain.events import (
    AgentRegistered,
    DomainEvent,
    ProposalDecided,
    ProposalOpened,
    RiskApproved,
    VoteCast,
)
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderIntent, OrderType, TradeClass, TradeProposal
from trading.domain.voting import Choice, Decision, QuorumPolicy, Role, Roster, RosterMember, Vote, tally
from trading.ports.ledger import EventDraft, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER, build_approval, build_approved_order
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.ledger import InMemoryLedger

MEMBERS = {AgentId("aggressive"): Role.TRADER, AgentId("risk-officer"): Role.RISK}
DECISION = DecisionId("decision-1")


class Desk:
    """A desk with real keys on which one proposal for 0.05 BTC was approved by vote."""

    def __init__(self, home: Path) -> None:
        self.settings = DeskSettings(home=home)
        initialize(self.settings)
        self.keys = self.settings.desk_home.keys
        self.ledgers = {
            room: InMemoryLedger(room, ManualClock(), SeededIds()) for room in ("coordinator", "risk", "execution")
        }

    async def write(self, room: str, *events: DomainEvent) -> None:
        await self.ledgers[room].commit(Unit(events=tuple(EventDraft(event) for event in events)))

    async def decide(self) -> ProposalDecided:
        """Write a whole signed round and return its decision."""
        signers = {agent: load_signer(self.keys("agents") / f"{agent}.key", "agent") for agent in MEMBERS}
        members = [
            RosterMember(agent_id=a, role=MEMBERS[a], key_id=s.key_id, public_key=s.public_key, family="rules")
            for a, s in signers.items()
        ]
        for version, m in enumerate(members, 1):
            await self.write(
                "coordinator",
                AgentRegistered(
                    agent_id=m.agent_id,
                    role=m.role,
                    family=m.family,
                    key_id=m.key_id,
                    public_key=m.public_key,
                    roster_version=version,
                ),
            )
        proposer = AgentId("aggressive")
        proposal = TradeProposal(
            proposal_id=ProposalId("proposal-1"),
            agent_id=proposer,
            mode=Mode.PAPER,
            trade_class=TradeClass.FAST,
            order=OrderIntent(
                account_id=ACCOUNT,
                venue=PAPER,
                symbol=BTC_USDT,
                side=Side.BUY,
                order_type=OrderType.MARKET,
                quantity=Decimal("0.05"),
            ),
            reason="a test",
            roster_version=2,
            created_ms=1,
            deadline_ms=500,
            expires_ms=5000,
        )
        payload = codec.canonical(proposal)
        votes = [
            Vote(proposal_id=proposal.proposal_id, proposal_digest=digest(payload), agent_id=a, choice=Choice.YES)
            for a in signers
        ]
        ballots = {v.agent_id: codec.canonical(v) for v in votes}
        count = tally(QuorumPolicy(), Roster(2, tuple(members)), TradeClass.FAST, votes)
        decision = Decision(
            decision_id=DECISION,
            proposal_id=proposal.proposal_id,
            proposal_digest=digest(payload),
            tally=count,
            vote_digests=tuple(sorted(digest(ballot) for ballot in ballots.values())),
            roster_version=2,
            fence=1,
            decided_ms=400,
            expires_ms=5000,
        )
        leader = load_signer(self.keys("coordinator") / "leader.key", "leader")
        decided = ProposalDecided(
            decision_id=DECISION,
            proposal_id=proposal.proposal_id,
            outcome=count.outcome,
            tally=count,
            envelope=seal(codec.canonical(decision), DECISION_PAYLOAD_TYPE, leader).to_json(),
        )
        await self.write(
            "coordinator",
            ProposalOpened(
                proposal_id=proposal.proposal_id,
                agent_id=proposer,
                envelope=seal(payload, PROPOSAL_PAYLOAD_TYPE, signers[proposer]).to_json(),
                digest=digest(payload),
                roster_version=2,
                deadline_ms=500,
                fence=1,
            ),
            *(
                VoteCast(
                    proposal_id=proposal.proposal_id,
                    agent_id=a,
                    choice=Choice.YES,
                    reason="",
                    envelope=seal(ballot, VOTE_PAYLOAD_TYPE, signers[a]).to_json(),
                    received_ms=300,
                )
                for a, ballot in ballots.items()
            ),
            decided,
        )
        return decided

    async def approve(
        self, number: int, quantity: str = "0.03", side: Side = Side.BUY, agent: str = "aggressive"
    ) -> None:
        """Write an approval with risk's real signature, as a risk server gone wrong could."""
        signer = load_approval_signer(self.settings.desk_home)
        approval_id = f"approval-{number}"
        order = build_approved_order(approval_id=approval_id, quantity=quantity, side=side)
        approval: Approval = replace(
            build_approval(key_id=signer.key_id, order=order, approval_id=approval_id),
            decision_id=DECISION,
            agent_id=AgentId(agent),
        )
        envelope = seal(codec.canonical(approval), APPROVAL_PAYLOAD_TYPE, signer).to_json()
        await self.write("risk", RiskApproved(approval=approval, envelope=envelope))

    async def findings(self) -> list[str]:
        proofs = await Prover(self.settings.desk_home).run(Ledgers(**self.ledgers))
        return [finding.what for finding in proofs.findings]


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


async def test_an_approval_within_what_was_decided_is_proven(desk: Desk) -> None:
    await desk.decide()
    await desk.approve(1)
    assert await desk.findings() == []


async def test_approvals_that_add_up_to_more_than_was_decided_are_named(desk: Desk) -> None:
    await desk.decide()
    await desk.approve(1)
    await desk.approve(2)
    assert ["more than was decided on" in what for what in await desk.findings()] == [True]


@pytest.mark.parametrize(("side", "agent"), [(Side.SELL, "aggressive"), (Side.BUY, "balanced")])
async def test_an_approval_of_another_trade_than_the_one_decided_on_is_named(
    desk: Desk, side: Side, agent: str
) -> None:
    await desk.decide()
    await desk.approve(1, side=side, agent=agent)
    assert ["another trade" in what for what in await desk.findings()] == [True]


async def test_a_second_decision_on_one_proposal_is_named(desk: Desk) -> None:
    decided = await desk.decide()
    await desk.write("coordinator", decided)
    assert ["a second decision" in what for what in await desk.findings()] == [True]


async def test_an_outcome_that_differs_from_the_signed_one_is_named(desk: Desk) -> None:
    decided = await desk.decide()
    await desk.write("coordinator", replace(decided, decision_id=DecisionId("decision-2")))
    assert ["not the signed one" in what for what in await desk.findings()] == [True]
