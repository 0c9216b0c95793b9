"""What the coordinator's tests share: a desk of agents over a real embedded Redis and a ledger in memory."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from coordinator.admission import ProposalRules, Signed, open_proposal, sign_proposal, sign_vote
from coordinator.ballots import Ballots
from coordinator.journal import DecisionRecord, Journal
from coordinator.leadership import Leadership
from coordinator.registry import Registry
from coordinator.round_state import RoundSettings
from coordinator.rounds import Rounds
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import BusSettings, open_redis, provision_agent
from trading.adapters.signing_keys import Ed25519Signer
from trading.domain.events import DomainEvent
from trading.domain.identifiers import AgentId, ProposalId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderIntent, OrderType, TimeInForce, TradeClass, TradeProposal
from trading.domain.voting import Choice, Role, Vote
from trading.strategy.snapshot import MarketSnapshot
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER, build_book, build_instrument
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger

BUNDLED = BusSettings(prefer_bundled=True, watch_ms=20)
WINDOW_MS = 500
MEMBERS = ("aggressive", "balanced", "conservative", "momentum", "officer")
RULES = ProposalRules(
    mode=Mode.PAPER,
    account_id=ACCOUNT,
    venue=PAPER,
    symbols=(BTC_USDT,),
    window_ms={TradeClass.FAST: WINDOW_MS, TradeClass.STANDARD: WINDOW_MS, TradeClass.LARGE: WINDOW_MS},
)


def build_snapshot(**changes: Any) -> MarketSnapshot:
    """Return a fresh market without candles, a flat account of 100,000 USDT."""
    values: dict[str, Any] = {
        "account_id": ACCOUNT,
        "instrument": build_instrument(),
        "book": build_book(),
        "candles": (),
        "held": Decimal(0),
        "equity": Decimal(100_000),
        "cash": Decimal(100_000),
        "book_age_ms": 10,
        "account_age_ms": 10,
    }
    return MarketSnapshot(**{**values, **changes})


def build_intent(quantity: str = "0.01", side: Side = Side.BUY) -> OrderIntent:
    return OrderIntent(
        account_id=ACCOUNT,
        venue=PAPER,
        symbol=BTC_USDT,
        side=side,
        order_type=OrderType.MARKET,
        quantity=Decimal(quantity),
        time_in_force=TimeInForce.IOC,
    )


@dataclass
class Desk:
    """One coordinator's parts, and the means to speak as any member."""

    redis: Redis
    prefix: str
    ledger: InMemoryLedger
    journal: Journal
    ballots: Ballots
    registry: Registry
    leadership: Leadership
    rounds: Rounds
    signers: dict[str, Ed25519Signer]
    decided: list[DecisionRecord] = field(default_factory=list[DecisionRecord])

    async def proposal(self, by: str = "aggressive", *, window_ms: int = WINDOW_MS, **changes: Any) -> TradeProposal:
        now = await self.ballots.now_ms()
        values: dict[str, Any] = {
            "proposal_id": ProposalId(Uuid7Factory().new_id()),
            "agent_id": AgentId(by),
            "mode": Mode.PAPER,
            "trade_class": TradeClass.FAST,
            "order": build_intent(),
            "reason": "because",
            "roster_version": self.registry.version,
            "created_ms": now,
            "deadline_ms": now + window_ms,
            "expires_ms": now + window_ms + 5_000,
        }
        return TradeProposal(**{**values, **changes})

    def seal(self, proposal: TradeProposal, by: str | None = None) -> str:
        return sign_proposal(proposal, self.signers[by or proposal.agent_id])

    async def opened(self, **arguments: Any) -> Signed[TradeProposal]:
        """Put a good proposal to the vote and return it once its ballot is open."""
        proposal = await self.proposal(**arguments)
        text = self.seal(proposal)
        verdict = await self.rounds.submit(proposal.agent_id, text)
        assert verdict.code == "OPENED", verdict
        member = self.registry.roster().member(proposal.agent_id)
        assert member is not None
        current = next(r for r in self.rounds.open_rounds if r.proposal_id == proposal.proposal_id)
        await self.rounds._open_ballot(current)
        return open_proposal(text, member)

    def vote(
        self,
        proposal: Signed[TradeProposal],
        by: str,
        choice: Choice = Choice.YES,
        *,
        key: str | None = None,
        **changes: Any,
    ) -> tuple[AgentId, str]:
        """Return what a member would leave in its inbox."""
        values: dict[str, Any] = {
            "proposal_id": proposal.value.proposal_id,
            "proposal_digest": proposal.digest,
            "agent_id": AgentId(by),
            "choice": choice,
        }
        return AgentId(by), sign_vote(Vote(**{**values, **changes}), self.signers[key or by])

    def events(self, *kinds: type[DomainEvent]) -> list[Any]:
        return [event.payload for event in self.ledger.events if isinstance(event.payload, kinds)]


def signer_of(name: str) -> Ed25519Signer:
    return make_test_signer(f"agent {name}")


@asynccontextmanager
async def open_bus() -> AsyncGenerator[tuple[DeskHome, DeskSettings, Redis]]:
    """Start a private Redis and yield the coordinator's client."""
    with tempfile.TemporaryDirectory(prefix="desk-") as directory:
        home = DeskHome(Path(directory)).ensure()
        settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None})
        async with open_redis(home, settings, "coordinator", bus=BUNDLED) as redis:
            yield home, settings, redis


@asynccontextmanager
async def open_desk(
    redis: Redis,
    prefix: str,
    *,
    ledger: InMemoryLedger | None = None,
    owner: str = "first",
    ttl_ms: int = 60_000,
    backlog: Callable[[], int] = lambda: 0,
    open_max: int = 256,
) -> AsyncGenerator[Desk]:
    """Lead a desk of five members, the officer with the risk role."""
    clock, ids = SystemClock(), Uuid7Factory()
    book = ledger or InMemoryLedger("coordinator", clock, ids)
    leadership = Leadership(redis, prefix, owner=owner, ttl_ms=ttl_ms, clock=clock)
    await leadership.acquire()
    await leadership.bind(book.generation)
    registry = await Registry.load(book)
    for name in MEMBERS:
        await registry.register(
            book,
            agent_id=AgentId(name),
            role=Role.RISK if name == "officer" else Role.TRADER,
            family="rules",
            public_key=signer_of(name).public_key,
        )
    journal, ballots, decided = Journal(book, clock), Ballots(redis, prefix), list[DecisionRecord]()
    rounds = Rounds(
        journal,
        ballots,
        registry,
        leadership,
        make_test_signer("leader"),
        RoundSettings(rules=RULES, open_max=open_max),
        clock=clock,
        ids=ids,
        on_decided=lambda record, _: decided.append(record),
        backlog=backlog,
    )
    signers = {name: signer_of(name) for name in (*MEMBERS, "stranger")}
    desk = Desk(redis, prefix, book, journal, ballots, registry, leadership, rounds, signers, decided)
    try:
        yield desk
    finally:
        await rounds.stop(grace_s=0)


@asynccontextmanager
async def open_agents(
    home: DeskHome, settings: DeskSettings, names: tuple[str, ...] = MEMBERS
) -> AsyncGenerator[dict[str, Redis]]:
    """Yield a connection of each agent's own Redis user."""
    async with AsyncExitStack() as stack:
        clients: dict[str, Redis] = {}
        for name in names:
            user = await provision_agent(home, settings, name)
            clients[name] = await stack.enter_async_context(open_redis(home, settings, user, bus=BUNDLED))
        yield clients
