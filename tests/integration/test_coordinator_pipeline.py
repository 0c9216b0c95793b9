"""An approved decision walks through risk and execution once, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.admission import Signed, open_proposal, sign_proposal
from coordinator.journal import DecisionRecord, Journal
from coordinator.pipeline import Pipeline, PipelineSettings
from coordinator.rooms import RoomLink
from mcp_servers.hosting import open_client
from tests.coordinator_rooms import FakeRooms, linked, unavailable
from tests.coordinator_support import build_intent, signer_of
from trading.adapters.signing import digest, key_id_of
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.events import DecisionCompleted
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.proposals import Mode, TradeClass, TradeProposal
from trading.domain.voting import Decision, Outcome, Role, RosterMember, Tally
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.ledger import InMemoryLedger

NOW = 1_750_000_000_000


@dataclass
class Walk:
    """A ledger with approved decisions and a pipeline that may be replaced."""

    ledger: InMemoryLedger
    journal: Journal
    clock: ManualClock
    rooms: FakeRooms
    link: RoomLink

    def pipeline(self, **settings: Any) -> Pipeline:
        return Pipeline(
            self.journal,
            risk=self.link,
            execution=self.link,
            settings=PipelineSettings(**{"call_timeout_s": 0.2, **settings}),
            now_ms=self.clock.now_ms,
        )

    async def decided(self, name: str = "1") -> tuple[DecisionRecord, Signed[TradeProposal]]:
        """Write an approved decision as a round does."""
        proposal = TradeProposal(
            proposal_id=ProposalId(f"proposal-{name}"),
            agent_id=AgentId("aggressive"),
            mode=Mode.PAPER,
            trade_class=TradeClass.FAST,
            order=build_intent(),
            reason="because",
            roster_version=1,
            created_ms=NOW,
            deadline_ms=NOW + 500,
            expires_ms=NOW + 5_000,
        )
        signer = signer_of("aggressive")
        member = RosterMember(
            agent_id=proposal.agent_id,
            role=Role.TRADER,
            key_id=key_id_of(signer.public_key),
            public_key=signer.public_key,
            family="rules",
        )
        signed = open_proposal(sign_proposal(proposal, signer), member)
        await self.journal.opened(signed, fence=1)
        count = Tally(outcome=Outcome.APPROVED, eligible=2, yes=2, no=0, abstain=0, missing=0, reasons=())
        decision = Decision(
            decision_id=DecisionId(f"decision-{name}"),
            proposal_id=proposal.proposal_id,
            proposal_digest=signed.digest,
            tally=count,
            vote_digests=(),
            roster_version=1,
            fence=1,
            decided_ms=NOW + 100,
            expires_ms=proposal.expires_ms,
        )
        return await self.journal.decided(signed, Signed(decision, "envelope", digest(b""))), signed

    async def run(self, pipeline: Pipeline, *decisions: tuple[DecisionRecord, Signed[TradeProposal]]) -> None:
        """Let a pipeline finish these decisions."""
        task = asyncio.create_task(pipeline.run())
        for each in decisions:
            pipeline.take(*each)
        try:
            async with asyncio.timeout(10):
                await pipeline.drained()
        finally:
            task.cancel()
            await asyncio.wait({task})

    @property
    def completed(self) -> list[DecisionCompleted]:
        return [event.payload for event in self.ledger.events if isinstance(event.payload, DecisionCompleted)]


@asynccontextmanager
async def open_walk() -> AsyncGenerator[Walk]:
    clock = ManualClock(NOW + 200)
    ledger, rooms = InMemoryLedger("coordinator", clock, SeededIds()), FakeRooms()
    async with linked(rooms) as link:
        yield Walk(ledger, Journal(ledger, clock), clock, rooms, link)


async def test_an_approved_decision_is_routed_signed_submitted_and_completed() -> None:
    async with open_walk() as walk:
        await walk.run(walk.pipeline(), await walk.decided())
        (done,) = walk.completed
        assert (done.result, done.detail) == ("executed", "")
        assert done.approval_ids == ("approval-0-0",)
        assert done.order_ids == ("order-of-approval-0-0",)
        (orders,) = walk.rooms.contents.values()
        assert orders[0]["account"] == "paper-main"
        assert orders[0]["amount"] == "0.01"
        assert orders[0]["agent_id"] == "aggressive"
        (row,) = await walk.ledger.rows("decisions")
        assert (row["state"], row["detail"]) == ("done", "executed")
        (proposal,) = await walk.ledger.rows("proposals")
        assert proposal["state"] == "executed"
        assert await walk.journal.unfinished() == []


async def test_a_denial_ends_the_walk_with_every_failed_rule() -> None:
    async with open_walk() as walk:
        walk.rooms.deny = ["POSITION_MAX", "ORDER_RATE"]
        await walk.run(walk.pipeline(), await walk.decided())
        assert [(d.result, d.detail) for d in walk.completed] == [("denied", "POSITION_MAX,ORDER_RATE")]
        assert not walk.rooms.orders


@pytest.mark.parametrize("tool", ["plan", "approve", "submit"])
@pytest.mark.parametrize("fault", ["hang", "lose"])
async def test_an_answer_that_never_comes_is_asked_for_again_and_nothing_is_done_twice(tool: str, fault: str) -> None:
    async with open_walk() as walk:
        getattr(walk.rooms, fault)[tool] = 2
        pipeline = walk.pipeline()
        await walk.run(pipeline, await walk.decided())
        assert [d.result for d in walk.completed] == ["executed"]
        assert walk.rooms.calls[tool] >= 3
        assert len(walk.rooms.requests) == 1
        assert set(walk.rooms.venue_orders.values()) == {1}
        assert pipeline.counts["asked_again"] >= 2


async def test_a_room_that_is_not_ready_is_asked_again() -> None:
    async with open_walk() as walk:
        walk.rooms.refuse["approve"] = [unavailable(), ValueError("nobody foresaw this")]
        await walk.run(walk.pipeline(), await walk.decided())
        assert [d.result for d in walk.completed] == ["executed"]


async def test_a_definite_refusal_is_not_asked_again() -> None:
    async with open_walk() as walk:
        walk.rooms.refuse["plan"] = [InvalidValue("too small", code="BELOW_MINIMUM")]
        await walk.run(walk.pipeline(), await walk.decided())
        assert [(d.result, d.detail) for d in walk.completed] == [("failed", "BELOW_MINIMUM")]
        assert walk.rooms.calls == {"plan": 1}


async def test_a_refusal_that_a_moment_can_change_is_submitted_again_and_others_are_not() -> None:
    async with open_walk() as walk:
        walk.rooms.gate = ["GATE_NO_HEARTBEAT", "GATE_PRICE_STALE"]
        await walk.run(walk.pipeline(), await walk.decided())
        walk.rooms.gate = ["GATE_PRICE_BAND"]
        await walk.run(walk.pipeline(), await walk.decided("2"))
        assert [(d.result, d.detail) for d in walk.completed] == [("executed", ""), ("failed", "GATE_PRICE_BAND")]
        assert walk.rooms.calls["submit"] == 4


@pytest.mark.parametrize(
    ("state", "result"),
    [("unknown", "executed"), ("rejected", "failed"), ("canceled", "failed"), ("accepted", "executed")],
)
async def test_the_result_follows_the_state_of_the_order(state: str, result: str) -> None:
    async with open_walk() as walk:
        walk.rooms.state = state
        await walk.run(walk.pipeline(), await walk.decided())
        assert [d.result for d in walk.completed] == [result]


async def test_a_decision_that_expired_before_it_was_brought_to_risk_ends_as_expired() -> None:
    async with open_walk() as walk:
        decision = await walk.decided()
        walk.clock.advance(5_000)
        await walk.run(walk.pipeline(), decision)
        assert [(d.result, d.detail) for d in walk.completed] == [("expired", "NOT_BROUGHT_TO_RISK")]
        assert not walk.rooms.calls


async def test_a_room_that_stays_silent_is_given_up_after_the_grace_and_the_decision_ends_as_failed() -> None:
    async with open_walk() as walk:
        walk.rooms.refuse["approve"] = [unavailable() for _ in range(3)]
        walk.clock.advance(4_799)
        await walk.run(walk.pipeline(give_up_ms=1), await walk.decided())
        assert [d.result for d in walk.completed] == ["failed"]
        assert walk.completed[0].detail.startswith("GAVE_UP")


@pytest.mark.parametrize("tool", ["plan", "approve", "submit"])
async def test_a_restart_in_the_middle_goes_on_with_the_same_ids(tool: str) -> None:
    async with open_walk() as walk:
        walk.rooms.hang[tool] = 1
        first = asyncio.create_task((before := walk.pipeline(call_timeout_s=30)).run())
        decision = await walk.decided()
        before.take(*decision)
        async with asyncio.timeout(5):
            while not walk.rooms.calls[tool] or walk.rooms.hang[tool]:
                await asyncio.sleep(0.002)
        first.cancel()
        await asyncio.wait({first})
        assert not walk.completed

        (record,) = await walk.journal.unfinished()
        await walk.run(walk.pipeline(), (record, decision[1]))
        assert [d.result for d in walk.completed] == ["executed"]
        assert len(walk.rooms.requests) == 1, "one request at risk, however often it was asked"
        assert set(walk.rooms.venue_orders.values()) == {1}


async def test_a_ledger_that_lost_its_answer_does_not_complete_a_decision_twice() -> None:
    async with open_walk() as walk:
        record, proposal = await walk.decided()
        walk.ledger.fail_next_commit(written=True)
        await walk.journal.completed(record, proposal, result="executed", detail="")
        assert len(walk.completed) == 1
        record, proposal = await walk.decided("2")
        walk.ledger.fail_next_commit()
        await walk.journal.completed(record, proposal, result="executed", detail="")
        assert len(walk.completed) == 2


async def test_many_decisions_go_through_a_bounded_number_of_workers() -> None:
    async with open_walk() as walk:
        decisions = [await walk.decided(str(number)) for number in range(20)]
        await walk.run(walk.pipeline(workers=3), *decisions)
        assert [d.result for d in walk.completed] == ["executed"] * 20
        assert len(walk.rooms.venue_orders) == 20


async def test_a_link_reconnects_after_its_server_went_away() -> None:
    rooms, refused = FakeRooms(), [True, True]

    def connect() -> Any:
        if refused:
            refused.pop()
            raise Unavailable("nobody is there")
        return open_client(rooms.build(), read_timeout_s=5)

    link = RoomLink("fake", connect)
    with pytest.raises(Unavailable):
        await link.call("execution_get_account", timeout_s=0.01, account="a")
    task = asyncio.create_task(link.run())
    try:
        rooms.lose["account"] = 1
        with pytest.raises(Exception, match="did not answer"):
            await link.call("execution_get_account", timeout_s=1, account="a")
        assert (await link.call("execution_get_account", timeout_s=5, account="a"))["balances"]
        assert link.connections == 2
    finally:
        task.cancel()
        await asyncio.wait({task})
