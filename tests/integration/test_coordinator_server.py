"""The coordinator as a server: its tools in both eras, its agents at work, its start, stop and failure."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.admission import sign_proposal, sign_vote
from coordinator.agents import AGENT_IDS
from coordinator.bootstrap import hosted_agent, open_coordinator
from coordinator.server import build
from coordinator.settings import load_coordinator_settings
from mcp_servers.hosting import ToolFailure, call, call_reply, open_client, serve_socket
from tests.coordinator_rooms import FakeRooms
from tests.coordinator_support import BUNDLED, build_intent
from tests.mcp_harness import QUICK_WAYS, Way, check_conventions, reach
from trading.adapters import codec
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import BookUpdate, MarketStreamPublisher, create_feed_key
from trading.adapters.signing import Envelope, digest
from trading.adapters.signing_keys import Ed25519Signer, create_key
from trading.adapters.sql import LedgerLocation, open_reader, open_writer
from trading.domain.errors import ConfigurationError
from trading.domain.events import (
    AgentRegistered,
    DecisionCompleted,
    ProposalDecided,
    ProposalOpened,
    ServiceStarted,
    ServiceStopped,
    VoteCast,
)
from trading.domain.identifiers import AgentId, ProposalId, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode, TradeClass, TradeProposal
from trading.domain.voting import Choice, Outcome, Vote
from trading.testing.builders import BTC_USDT, build_instrument

BINANCE = InstrumentId(Venue("binance"), BTC_USDT)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Generator[DeskHome]:
    """A desk that was never initialised, in a directory short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="co-") as directory:
        monkeypatch.setenv("GREKKO_HOME", directory)
        monkeypatch.setenv("GREKKO_BUS_PREFER_BUNDLED", "true")
        monkeypatch.delenv("REDIS_URL", raising=False)
        monkeypatch.delenv("DATABASE_URL", raising=False)
        monkeypatch.setenv("GREKKO_COORDINATOR_ROOMS", "socket")
        yield DeskHome(Path(directory)).ensure()


@asynccontextmanager
async def around(home: DeskHome, rooms: FakeRooms) -> AsyncGenerator[None]:
    """Run everything a coordinator calls: a market whose book leans to the buyers, risk and execution."""
    settings = load_coordinator_settings().desk
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(home, settings, "market", bus=BUNDLED))
        key = create_feed_key(home.keys("market") / "feed.hmac")
        publisher = await stack.enter_async_context(
            MarketStreamPublisher(redis, desk=settings.desk, key=key, clock=SystemClock(), feed=Feed.REPLAY)
        )
        publisher.publish_instrument(replace(build_instrument(), id=BINANCE))
        servers = [
            asyncio.create_task(serve_socket(rooms.build(), home.socket(room), room, stop))
            for room in ("market", "risk", "execution")
        ]

        async def keep_publishing() -> None:
            while True:
                now = SystemClock().now_ms()
                publisher.publish_book(
                    BookUpdate(BINANCE, [["60000", "9"]], [["60000.01", "1"]], venue_ts_ms=now, received_ts_ms=now)
                )
                await asyncio.sleep(0.05)

        publishing = asyncio.create_task(keep_publishing())
        try:
            yield
        finally:
            stop.set()
            publishing.cancel()
            await asyncio.wait({publishing, *servers})


async def until(client: Any, **wanted: Any) -> dict[str, Any]:
    """Ask for the status until it is as wanted."""
    async with asyncio.timeout(20):
        while True:
            status = await call(client, "coordinator_get_status")
            if all(status[name] == value for name, value in wanted.items()):
                return status
            await asyncio.sleep(0.02)


async def events_of(home: DeskHome) -> list[Any]:
    async with open_reader("coordinator", LedgerLocation.sqlite(home.path / "ledger")) as reader:
        return [event.payload for event in await reader.events_after(0, limit=10_000)]


async def test_the_hosted_agents_propose_vote_and_trade_through_risk_and_execution(home: DeskHome) -> None:
    rooms = FakeRooms()
    async with around(home, rooms), open_client(build()) as client:
        await until(client, state="running", safe_to_trade=True)
        async with asyncio.timeout(20):
            while len(rooms.venue_orders) < 3:
                await asyncio.sleep(0.02)
    facts = await events_of(home)
    kinds = [type(fact) for fact in facts]
    assert kinds.count(AgentRegistered) == len(AGENT_IDS)
    assert kinds[kinds.index(ServiceStarted)] is ServiceStarted
    assert kinds[-1] is ServiceStopped, "a graceful stop is the last word"
    opened = [fact for fact in facts if isinstance(fact, ProposalOpened)]
    assert {fact.agent_id for fact in opened} == {"aggressive"}
    assert len({fact.proposal_id for fact in facts if isinstance(fact, ProposalDecided)}) == len(opened)
    for decided in (fact for fact in facts if isinstance(fact, ProposalDecided)):
        assert decided.outcome is Outcome.APPROVED
        choices = {
            f.agent_id: f.choice for f in facts if isinstance(f, VoteCast) and f.proposal_id == decided.proposal_id
        }
        assert choices == {
            "conservative": Choice.ABSTAIN,
            "balanced": Choice.ABSTAIN,
            "aggressive": Choice.YES,
            "risk-officer": Choice.YES,
        }
    completed = [fact for fact in facts if isinstance(fact, DecisionCompleted)]
    assert {fact.result for fact in completed} == {"executed"}
    assert len(completed) == len(opened), "what was approved before the stop was carried out before the stop"
    assert set(rooms.venue_orders.values()) == {1}


async def test_after_a_restart_the_roster_is_the_same_and_the_fence_is_higher(home: DeskHome) -> None:
    rooms, fences = FakeRooms(), list[int]()
    async with around(home, rooms):
        for _ in range(2):
            async with open_client(build()) as client:
                status = await until(client, state="running")
                fences.append(status["fence"])
                assert status["roster_version"] == len(AGENT_IDS)
    assert fences[1] > fences[0]


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_the_tools_answer_in_every_way(way: Way, home: DeskHome) -> None:
    (home.path / "config.toml").write_text(
        '[coordinator]\nagents = ["risk-officer"]\noutside_agents = ["outsider"]\nvote_ms = 5000\n'
    )
    signer = create_key(
        home.keys("agents") / "outsider.key", "agent", public_path=home.public_keys / "agent-outsider.pub"
    )
    async with reach(way, build, room="coordinator") as client:
        await until(client, state="running", leader=True)
        agents = await call(client, "coordinator_list_agents")
        assert [(a["agent_id"], a["role"], a["hosted"]) for a in agents["agents"]] == [
            ("outsider", "trader", False),
            ("risk-officer", "risk", True),
        ]
        text, proposal_id = proposal_of("outsider", signer, roster_version=agents["roster_version"])
        assert (await call(client, "coordinator_submit_proposal", envelope=text))["outcome"] == "OPENED"
        assert (await call(client, "coordinator_submit_proposal", envelope=text))["outcome"] == "DUPLICATE"
        vote = vote_of("outsider", signer, proposal_id, text)
        assert (await call(client, "coordinator_cast_vote", envelope=vote))["outcome"] == "COUNTED"
        assert (await call(client, "coordinator_cast_vote", envelope=vote))["outcome"] == "DUPLICATE"
        async with asyncio.timeout(10):
            while (found := await call(client, "coordinator_get_proposal", proposal_id=proposal_id))["state"] == "open":
                await asyncio.sleep(0.02)
        assert found["state"] == "rejected", "the officer has no market and gives no consent"
        assert {v["agent_id"]: v["choice"] for v in found["votes"]} == {"outsider": "yes", "risk-officer": "no"}
        assert "NO_RISK_CONSENT" in found["tally"]["unmet"]
        assert (found["tally"]["share_of_cast"], found["tally"]["share_of_eligible"]) == ("50", "50")
        listed = await call_reply(client, "coordinator_list_proposals", limit=1)
        assert [row["proposal_id"] for row in listed["data"]["proposals"]] == [proposal_id]
        assert "next_cursor" not in listed["meta"]
        for tool, arguments, code in (
            ("coordinator_get_proposal", {"proposal_id": "nowhere"}, "UNKNOWN_PROPOSAL"),
            ("coordinator_submit_proposal", {"envelope": "{}"}, "ENVELOPE_MALFORMED"),
            ("coordinator_cast_vote", {"envelope": forged(vote)}, "BAD_SIGNATURE"),
            ("coordinator_cast_vote", {"envelope": as_officer(home, proposal_id, text)}, "UNREGISTERED"),
        ):
            with pytest.raises(ToolFailure) as refused:
                await call(client, tool, **arguments)
            assert refused.value.code == code


def proposal_of(agent: str, signer: Ed25519Signer, *, roster_version: int) -> tuple[str, str]:
    now = SystemClock().now_ms()
    proposal = TradeProposal(
        proposal_id=ProposalId(Uuid7Factory().new_id()),
        agent_id=AgentId(agent),
        mode=Mode.PAPER,
        trade_class=TradeClass.FAST,
        order=build_intent(),
        reason="from outside",
        roster_version=roster_version,
        created_ms=now,
        deadline_ms=now + 5_000,
        expires_ms=now + 9_000,
    )
    return sign_proposal(proposal, signer), proposal.proposal_id


def vote_of(agent: str, signer: Ed25519Signer, proposal_id: str, envelope: str) -> str:
    vote = Vote(
        proposal_id=ProposalId(proposal_id),
        proposal_digest=digest(Envelope.from_json(envelope).payload),
        agent_id=AgentId(agent),
        choice=Choice.YES,
    )
    return sign_vote(vote, signer)


def forged(envelope: str) -> str:
    """Return the same envelope with another payload under the same signature."""
    real = Envelope.from_json(envelope)
    vote = codec.decode(Vote, real.payload)
    return replace(real, payload=codec.canonical(replace(vote, choice=Choice.NO))).to_json()


def as_officer(home: DeskHome, proposal_id: str, envelope: str) -> str:
    """Return a vote signed with a hosted agent's own key: even that does not speak through the tools."""
    seed = json.loads((home.keys("agents") / "risk-officer.key").read_text())["seed"]
    return vote_of("risk-officer", Ed25519Signer(bytes.fromhex(seed)), proposal_id, envelope)


async def test_the_tools_keep_the_conventions_and_the_budget(home: DeskHome) -> None:
    async with open_client(build()) as client:
        await check_conventions(client, "coordinator")


async def test_before_the_meeting_runs_the_tools_say_so(home: DeskHome) -> None:
    settings = load_coordinator_settings()
    location = LedgerLocation.sqlite(home.path / "ledger")
    async with (
        open_writer("coordinator", location, clock=SystemClock(), ids=Uuid7Factory()),
        open_coordinator(settings) as service,
    ):
        status = service.status()
        assert status.state in ("starting", "waiting")
        assert not status.safe_to_trade
        assert any(reason.startswith("NOT_RUNNING") for reason in status.reasons)
        with pytest.raises(Exception, match="the meeting is"):
            service.agents()


async def test_a_changed_key_refuses_to_start_and_says_so(home: DeskHome) -> None:
    settings, failures = load_coordinator_settings(), list[str]()
    async with open_coordinator(settings) as service:
        async with asyncio.timeout(10):
            while service.status().state != "running":
                await asyncio.sleep(0.01)
    (home.keys("agents") / "balanced.key").unlink()
    async with open_coordinator(settings, on_failure=lambda: failures.append("stopped")) as service:
        async with asyncio.timeout(10):
            while not failures:
                await asyncio.sleep(0.01)
        assert service.status().state == "failed"


def test_an_unknown_agent_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no hosted agent 'oracle'"):
        hosted_agent(AgentId("oracle"))


async def test_started_alone_over_stdio_it_starts_the_rooms_it_needs_and_trades(home: DeskHome) -> None:
    variables = {
        "GREKKO_HOME": str(home.path),
        "GREKKO_COORDINATOR_ROOMS": "stdio",
        "GREKKO_BUS_PREFER_BUNDLED": "true",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    from grekko.initialization import initialize

    initialize(load_coordinator_settings().desk)
    command = [sys.executable, "-m", "coordinator"]
    async with open_client(command, env=variables, read_timeout_s=30) as client:
        async with asyncio.timeout(60):
            while not (await call(client, "coordinator_get_status"))["counts"].get("executed"):
                await asyncio.sleep(0.1)
        found = await call(client, "coordinator_list_proposals", proposal_state="executed", limit=1)
        assert found["proposals"][0]["symbol"] == "BTC/USDT"
