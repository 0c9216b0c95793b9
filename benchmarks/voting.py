"""Five members who always say yes, and signed decisions of theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from benchmarks.parts import CLOCK, IDS
from coordinator.admission import Signed, open_proposal, open_vote, sign_proposal, sign_vote
from coordinator.journal import DecisionRecord, Journal
from coordinator.registry import Registry
from mcp_servers.risk.decisions import PinnedKeys
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, digest, seal
from trading.adapters.signing_keys import Ed25519Signer
from trading.adapters.sql import LedgerLocation, open_writer
from trading.domain.approvals import DECISION_PAYLOAD_TYPE
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderIntent, OrderType, TimeInForce, TradeClass, TradeProposal
from trading.domain.voting import Choice, Decision, QuorumPolicy, Role, Vote, tally
from trading.ports.ledger import Ledger
from trading.ports.signing import Signer
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER
from trading.testing.keys import make_test_signer

MEMBERS = tuple(AgentId(name) for name in ("aggressive", "balanced", "conservative", "momentum", "officer"))
OFFICER = MEMBERS[-1]
SIGNERS = {name: make_test_signer(f"agent {name}") for name in MEMBERS}
LEADER = make_test_signer("leader")


def pinned_keys() -> PinnedKeys:
    """Return the public keys of members and leader, as risk pins them."""
    agents = {name: signer.public_key for name, signer in SIGNERS.items()}
    return PinnedKeys(
        agents=agents,
        voters=Ed25519Verifier.of(*agents.values()),
        leader=Ed25519Verifier.of(LEADER.public_key),
    )


def market_buy(quantity: str = "0.001") -> OrderIntent:
    """Return a small market buy."""
    return OrderIntent(
        account_id=ACCOUNT,
        venue=PAPER,
        symbol=BTC_USDT,
        side=Side.BUY,
        order_type=OrderType.MARKET,
        quantity=Decimal(quantity),
        time_in_force=TimeInForce.IOC,
    )


def propose(by: AgentId, roster_version: int, *, window_ms: int = 500, life_ms: int = 60_000) -> TradeProposal:
    """Return a fresh proposal of a small market buy."""
    now_ms = CLOCK.now_ms()
    return TradeProposal(
        proposal_id=ProposalId(IDS.new_id()),
        agent_id=by,
        mode=Mode.PAPER,
        trade_class=TradeClass.FAST,
        order=market_buy(),
        reason="benchmark",
        roster_version=roster_version,
        created_ms=now_ms,
        deadline_ms=now_ms + window_ms,
        expires_ms=now_ms + window_ms + life_ms,
    )


@dataclass(frozen=True, slots=True)
class Table:
    """The coordinator's ledger with the five registered.

    Attributes:
        signers: the members' keys by name.
    """

    ledger: Ledger
    registry: Registry
    journal: Journal
    signers: Mapping[AgentId, Ed25519Signer]

    async def decide(
        self, by: AgentId = MEMBERS[0], *, leader: Signer = LEADER
    ) -> tuple[DecisionRecord, Signed[TradeProposal]]:
        """Write a proposal, everybody's signed yes and the leader's signed decision; return decision and proposal."""
        roster = self.registry.roster()
        member = roster.member(by)
        assert member is not None
        proposal = open_proposal(sign_proposal(propose(by, roster.version), self.signers[by]), member)
        await self.journal.opened(proposal, fence=1)
        votes: list[Signed[Vote]] = []
        for voter in roster.members:
            vote = Vote(
                proposal_id=proposal.value.proposal_id,
                proposal_digest=proposal.digest,
                agent_id=voter.agent_id,
                choice=Choice.YES,
            )
            votes.append(open_vote(sign_vote(vote, self.signers[voter.agent_id]), voter))
        for vote in votes:
            await self.journal.vote_cast(vote, received_ms=proposal.value.created_ms)
        decision = Decision(
            decision_id=DecisionId(IDS.new_id()),
            proposal_id=proposal.value.proposal_id,
            proposal_digest=proposal.digest,
            tally=tally(QuorumPolicy(), roster, TradeClass.FAST, [vote.value for vote in votes]),
            vote_digests=tuple(sorted(vote.digest for vote in votes)),
            roster_version=roster.version,
            fence=1,
            decided_ms=CLOCK.now_ms(),
            expires_ms=proposal.value.expires_ms,
        )
        payload = codec.canonical(decision)
        text = seal(payload, DECISION_PAYLOAD_TYPE, leader).to_json()
        return await self.journal.decided(proposal, Signed(decision, text, digest(payload))), proposal


@asynccontextmanager
async def open_table(directory: Path) -> AsyncGenerator[Table]:
    """Open a fresh coordinator's ledger with the five members on its roster."""
    async with open_writer("coordinator", LedgerLocation.sqlite(directory), clock=CLOCK, ids=IDS) as ledger:
        yield await seat_members(ledger, SIGNERS)


async def seat_members(ledger: Ledger, signers: Mapping[AgentId, Ed25519Signer], officer: AgentId = OFFICER) -> Table:
    """Put the members on the roster of a coordinator's ledger."""
    registry = await Registry.load(ledger)
    for name, signer in signers.items():
        await registry.register(
            ledger,
            agent_id=name,
            role=Role.RISK if name == officer else Role.TRADER,
            family="rules",
            public_key=signer.public_key,
        )
    return Table(ledger, registry, Journal(ledger, CLOCK), signers)
