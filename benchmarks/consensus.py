"""Consensus: five signed agents over the real Redis, from a proposal in an inbox to the decision in the ledger.

The proposer signs and appends to its own inbox with its own Redis user; the leader verifies and opens the ballot; five
seats verify the proposal, vote and sign; the leader verifies every vote, counts it in Redis and in the ledger, decides
and signs. Everything real; only the agents' judgement is always yes.

The limit loop does the bare signatures and verifications of one decision (7 and 11), and its round trips: XADD, read
and announced, five votes appended and read, five EVALSHA in one pipeline, and the same rows durable by the bare driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from benchmarks.bare import open_bare_ledger
from benchmarks.market import BUNDLED
from benchmarks.measure import Figure, Sample, in_flight, percentile, rate_figure
from benchmarks.parts import CLOCK, IDS, scratch
from benchmarks.voting import LEADER, MEMBERS, OFFICER, SIGNERS, Table, propose, seat_members
from coordinator.admission import ProposalRules, sign_proposal
from coordinator.agents.seat import Seat, SeatSettings
from coordinator.ballots import Ballots
from coordinator.inboxes import InboxReader
from coordinator.leadership import Leadership
from coordinator.rounds import Rounds, RoundSettings
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis, provision_agent
from trading.adapters.signing import Ed25519Verifier
from trading.adapters.sql import LedgerLocation, open_writer
from trading.domain.identifiers import AgentId, ProposalId, Symbol
from trading.domain.proposals import Mode, TradeClass, TradeProposal
from trading.domain.voting import Choice, Role
from trading.strategy.rules import Hold, Stance
from trading.strategy.snapshot import MarketSnapshot
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER, build_book, build_instrument

_ALONE = 150
_CROWD = 640
_WIDTH = 32
_WINDOW_MS = 5_000  # a busy machine must not turn a measurement into a rejection


async def run() -> list[Figure]:
    """Measure the vote."""
    with scratch() as directory:
        home = DeskHome(directory / "desk").ensure()
        settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None, "DATABASE_URL": None})
        async with open_redis(home, settings, "coordinator", bus=BUNDLED) as redis:
            limit = await _limit(redis, settings.key("vote", "bench"), directory / "limit.sqlite")
            async with _meeting(home, settings, redis) as meeting:
                await in_flight(meeting.decide, count=10, width=1)
                alone = await in_flight(meeting.decide, count=_ALONE, width=1)
                crowd = await in_flight(meeting.decide, count=_CROWD, width=_WIDTH)
    note = (
        f"decisions/s at {_WIDTH} at once (p99 {percentile(crowd.latencies_ms, 99):,.0f} ms), latencies of one alone;"
        f" {crowd.cpu}, limit {limit.cpu}: bare Ed25519, XADD and EVALSHA round trips, durable rows"
    )
    both = Sample(crowd.n, crowd.seconds, alone.latencies_ms)
    return [rate_figure("consensus.signed_5", both, limit, note)]


class _Yes:
    """An agent that agrees to everything and wants nothing."""

    family = "rules"
    proposal_interval_ms = 0

    def __init__(self, agent_id: AgentId) -> None:
        self.agent_id = agent_id
        self.role = Role.RISK if agent_id == OFFICER else Role.TRADER

    def observe(self, snapshot: MarketSnapshot) -> None:
        """Look away."""

    def propose(self) -> Hold:
        """Want nothing."""
        return Hold("the benchmark proposes")

    def vote(self, proposal: TradeProposal) -> Stance:  # noqa: ARG002  the protocol names it
        """Agree."""
        return Stance(Choice.YES, "benchmark")


class _Market:
    """One fresh snapshot for everybody."""

    def __init__(self) -> None:
        self._snapshot = MarketSnapshot(
            account_id=ACCOUNT,
            instrument=build_instrument(),
            book=build_book(),
            candles=(),
            held=Decimal(0),
            equity=Decimal(100_000),
            cash=Decimal(100_000),
            book_age_ms=10,
            account_age_ms=10,
        )

    def snapshot(self, symbol: Symbol) -> MarketSnapshot | None:
        """Return the snapshot."""
        return self._snapshot if symbol == BTC_USDT else None


@dataclass(slots=True)
class _Meeting:
    """A running vote, and what waits for its decisions."""

    table: Table
    inboxes: dict[AgentId, Any]
    prefix: str
    waiting: dict[ProposalId, asyncio.Future[None]]

    async def decide(self, number: int) -> None:
        """Propose as one of the members and wait until the decision is durable."""
        by = MEMBERS[number % 4]
        proposal = propose(by, self.table.registry.version, window_ms=_WINDOW_MS, life_ms=5_000)
        self.waiting[proposal.proposal_id] = decided = asyncio.get_running_loop().create_future()
        envelope = sign_proposal(proposal, SIGNERS[by])
        await self.inboxes[by].xadd(f"{self.prefix}vote:in:{by}", {"t": "proposal", "e": envelope})
        await asyncio.wait_for(decided, 10)


@asynccontextmanager
async def _meeting(home: DeskHome, settings: DeskSettings, redis: Redis) -> AsyncGenerator[_Meeting]:
    prefix = settings.key("")
    waiting: dict[ProposalId, asyncio.Future[None]] = {}
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            open_writer("coordinator", LedgerLocation.sqlite(home.path / "ledger"), clock=CLOCK, ids=IDS)
        )
        leadership = Leadership(redis, prefix, owner="bench", ttl_ms=60_000, clock=CLOCK)
        await leadership.acquire()
        await leadership.bind(ledger.generation)
        table = await seat_members(ledger, SIGNERS)
        rules = ProposalRules(
            mode=Mode.PAPER,
            account_id=ACCOUNT,
            venue=PAPER,
            symbols=(BTC_USDT,),
            window_ms=dict.fromkeys(TradeClass, _WINDOW_MS),
        )
        rounds = Rounds(
            table.journal,
            Ballots(redis, prefix),
            table.registry,
            leadership,
            LEADER,
            RoundSettings(rules=rules),
            clock=CLOCK,
            ids=IDS,
            on_decided=lambda record, _: waiting.pop(record.proposal_id).set_result(None),
        )
        inboxes: dict[AgentId, Redis] = {}
        jobs = [InboxReader(redis, prefix, lambda: MEMBERS).run(rounds.take)]
        seat_settings = SeatSettings(prefix=prefix, mode=Mode.PAPER, symbols=(BTC_USDT,), window_ms=_WINDOW_MS)
        for name in MEMBERS:
            user = await provision_agent(home, settings, name)
            inboxes[name] = await stack.enter_async_context(open_redis(home, settings, user, bus=BUNDLED))
            listening = await stack.enter_async_context(open_redis(home, settings, user, bus=BUNDLED))
            seat = Seat(
                _Yes(name),
                SIGNERS[name],
                listening,
                roster=table.registry.roster,
                snapshots=_Market(),
                settings=seat_settings,
                clock=CLOCK,
                ids=IDS,
            )
            jobs.append(seat.run())
        tasks = [asyncio.create_task(job) for job in jobs]
        try:
            yield _Meeting(table, inboxes, prefix, waiting)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await rounds.stop(grace_s=0)


_COUNT_VOTE = """if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'n', 1)"""


async def _limit(redis: Redis, prefix: str, path: Path) -> Sample:
    client: Any = redis
    message, signer = b"x" * 400, SIGNERS[MEMBERS[0]]
    verifier, signature = Ed25519Verifier.of(signer.public_key), signer.sign(message)
    text = message.decode()
    async with open_bare_ledger(path, {"proposals": 2, "votes": 2, "decisions": 2, "events": 2}) as ledger:

        def work(signs: int, verifies: int) -> None:
            for _ in range(signs):
                signer.sign(message)
            for _ in range(verifies):
                verifier.verify(signer.key_id, message, signature)

        async def decide(number: int) -> None:
            name = str(number)
            work(1, 1)
            entry = await client.xadd(f"{prefix}:in", {"e": text}, maxlen=1_000)
            await client.xrange(f"{prefix}:in", entry, entry)
            await ledger.commit({"proposals": [(name, text)], "events": [(f"{name}-opened", text)]})
            await client.xadd(f"{prefix}:out", {"e": text}, maxlen=1_000)
            work(5, 10)
            async with client.pipeline(transaction=False) as pipe:
                for _ in MEMBERS:
                    pipe.xadd(f"{prefix}:votes", {"e": text}, maxlen=1_000)
                await pipe.execute()
            async with client.pipeline(transaction=False) as pipe:
                for member in MEMBERS:
                    pipe.eval(_COUNT_VOTE, 1, f"{prefix}:{name}", member, "yes")
                pipe.expire(f"{prefix}:{name}", 60)
                await pipe.execute()
            votes = [(f"{name}-{member}", text) for member in MEMBERS]
            await ledger.commit({"votes": votes, "events": votes})
            work(1, 0)
            await ledger.commit({"decisions": [(name, text)], "events": [(f"{name}-decided", text)]})

        return await in_flight(decide, count=_CROWD, width=_WIDTH)
