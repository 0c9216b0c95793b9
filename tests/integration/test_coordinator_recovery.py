"""A round survives the loss of the coordinator, of Redis, and of both; and still has one decision."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.ballots import KnownVote
from coordinator.daemon import Daemon
from tests.coordinator_support import BUNDLED, MEMBERS, Desk, open_bus, open_desk
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.embedded_redis import EmbeddedRedis
from trading.adapters.sql import LedgerLocation, open_writer
from trading.domain.events import ProposalDecided, VoteCast
from trading.domain.identifiers import AgentId, ProposalId
from trading.domain.voting import Choice, Outcome
from trading.testing.ledger import InMemoryLedger

ROOT = Path(__file__).resolve().parents[2]
#: Opens a proposal, casts some votes as their agents, and is killed before anybody can decide.
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.sql import LedgerLocation, open_writer
from tests.coordinator_support import BUNDLED, open_desk

async def main(home, window_ms, voters):
    settings = DeskSettings.model_validate({"home": home, "REDIS_URL": None})
    async with (
        open_redis(DeskHome(Path(home)), settings, "coordinator", bus=BUNDLED) as redis,
        open_writer("coordinator", LedgerLocation.sqlite(Path(home) / "ledger"), clock=SystemClock(),
                    ids=Uuid7Factory()) as ledger,
        open_desk(redis, settings.key(""), ledger=ledger, owner="child", ttl_ms=300) as desk,
    ):
        proposal = await desk.opened(window_ms=window_ms)
        await desk.rounds.cast([desk.vote(proposal, name) for name in voters])
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")))
"""


async def only_decision(ledger: InMemoryLedger) -> ProposalDecided:
    """Wait for the decision and check that it is the only one in the ledger."""
    async with asyncio.timeout(15):
        while True:
            events = [event.payload for event in await ledger.events_after(0)]
            found = [event for event in events if isinstance(event, ProposalDecided)]
            if found:
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.005)


def resumed(desk: Desk, owner: str = "second") -> AbstractAsyncContextManager[Desk]:
    """Return the desk of the next coordinator on the same ledger and Redis."""
    return open_desk(desk.redis, desk.prefix, ledger=desk.ledger.successor(), owner=owner)


async def test_a_successor_decides_with_the_votes_that_were_recorded() -> None:
    async with open_bus() as (_, settings, redis), open_desk(redis, settings.key("")) as desk:
        proposal = await desk.opened(window_ms=400)
        await desk.rounds.cast([desk.vote(proposal, name) for name in ("aggressive", "balanced", "officer")])
        await desk.rounds.stop(grace_s=0)
        await desk.leadership.release()
        async with resumed(desk) as heir:
            assert heir.leadership.fence > desk.leadership.fence
            assert await heir.rounds.recover() == 1
            decided = await only_decision(heir.ledger)
            assert (decided.outcome, decided.tally.yes, decided.tally.missing) == (Outcome.APPROVED, 3, 2)
            assert len(heir.events(VoteCast)) == 3
            assert await heir.rounds.recover() == 0, "nothing is left to resume"


async def test_a_vote_that_only_redis_knows_is_verified_again_and_counted_and_a_forged_one_is_not() -> None:
    async with open_bus() as (_, settings, redis), open_desk(redis, settings.key("")) as desk:
        proposal = await desk.opened(window_ms=300)
        pid, fence = proposal.value.proposal_id, desk.leadership.fence
        slips: list[tuple[ProposalId, str, KnownVote]] = []
        for name, key in (("aggressive", None), ("balanced", None), ("officer", None), ("momentum", "aggressive")):
            text = desk.vote(proposal, name, key=key)[1]
            slips.append((pid, proposal.digest, KnownVote(AgentId(name), f"digest of {name}", text, 0)))
        await desk.ballots.cast(fence, slips)  # as if the process died before the ledger had them
        await desk.rounds.stop(grace_s=0)
        await desk.leadership.release()
        async with resumed(desk) as heir:
            await heir.rounds.recover()
            decided = await only_decision(heir.ledger)
            assert (decided.outcome, decided.tally.yes, decided.tally.missing) == (Outcome.APPROVED, 3, 2)
            assert {vote.agent_id for vote in heir.events(VoteCast)} == {"aggressive", "balanced", "officer"}


async def test_a_ballot_that_was_closed_but_not_decided_is_decided_by_the_successor() -> None:
    async with open_bus() as (_, settings, redis), open_desk(redis, settings.key("")) as desk:
        proposal = await desk.opened(window_ms=60_000 // 200)
        await desk.rounds.cast([desk.vote(proposal, name) for name in MEMBERS[:2]])
        await desk.rounds.stop(grace_s=0)
        while not (await desk.ballots.close(desk.leadership.fence, proposal.value.proposal_id)).at_ms:
            await asyncio.sleep(0.01)
        await desk.leadership.release()
        async with resumed(desk) as heir:
            await heir.rounds.recover()
            decided = await only_decision(heir.ledger)
            assert (decided.outcome, decided.tally.yes) == (Outcome.REJECTED, 2)


async def test_a_redis_that_lost_everything_is_told_again_and_no_vote_can_be_changed() -> None:
    async with open_bus() as (home, settings, redis), open_desk(redis, settings.key("")) as desk:
        proposal = await desk.opened(window_ms=500)
        await desk.rounds.cast([desk.vote(proposal, name) for name in ("aggressive", "officer")])
        await EmbeddedRedis(home, settings, BUNDLED).admin("FLUSHALL")
        await desk.leadership.acquire()  # what its keeper does when the lock is gone
        assert not await desk.ballots.votes(proposal.value.proposal_id)
        verdicts = await desk.rounds.cast([desk.vote(proposal, "balanced")])
        assert verdicts[0].code == "UNKNOWN_PROPOSAL", "Redis has no ballot until the round opens it again"
        decided = await only_decision(desk.ledger)
        assert (decided.tally.yes, decided.tally.missing) == (2, 3)
        restored = await desk.ballots.votes(proposal.value.proposal_id)
        assert [vote.agent_id for vote in restored] == ["aggressive", "officer"]


async def test_a_killed_redis_comes_back_and_the_round_ends_with_one_decision() -> None:
    async with open_bus() as (home, settings, redis), open_desk(redis, settings.key("")) as desk:
        proposal = await desk.opened(window_ms=500)
        await desk.rounds.cast([desk.vote(proposal, name) for name in MEMBERS[:3]])
        pid = EmbeddedRedis(home, settings, BUNDLED).pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # The server's keeper starts it again; what it kept of the votes does not matter, the ledger has them.
        late = await desk.rounds.cast([desk.vote(proposal, "officer")])
        decided = await only_decision(desk.ledger)
        assert decided.tally.yes == (4 if late[0].code == "COUNTED" else 3)
        assert decided.outcome is (Outcome.APPROVED if late[0].code == "COUNTED" else Outcome.REJECTED)


@pytest.mark.parametrize(
    ("voters", "outcome", "redis_too"),
    [
        pytest.param("aggressive,balanced,officer", Outcome.APPROVED, False, id="coordinator"),
        pytest.param("aggressive,officer", Outcome.REJECTED, True, id="coordinator-and-redis"),
    ],
)
async def test_after_sigkill_in_the_middle_of_a_vote_a_restart_resumes_and_decides_once(
    voters: str, outcome: Outcome, redis_too: bool
) -> None:
    async with open_bus() as (home, settings, redis):
        arguments = [sys.executable, "-c", CHILD, str(home.path), "450", voters]
        child = await asyncio.to_thread(subprocess.run, arguments, cwd=ROOT, check=False)
        assert child.returncode == -signal.SIGKILL
        if redis_too:
            pid = EmbeddedRedis(home, settings, BUNDLED).pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        location = LedgerLocation.sqlite(home.path / "ledger")
        async with open_writer("coordinator", location, clock=SystemClock(), ids=Uuid7Factory()) as ledger:
            book = cast("InMemoryLedger", ledger)  # the same port; only ``events`` of the fake is not used here
            async with open_desk(redis, settings.key(""), ledger=book) as desk:
                assert await desk.rounds.recover() == 1
                decided = await only_decision(book)
                assert decided.outcome is outcome
                assert decided.tally.yes == len(voters.split(","))
                assert decided.tally.no == 0
                assert (
                    len([e for e in await book.events_after(0) if isinstance(e.payload, VoteCast)]) == decided.tally.yes
                )
                assert Choice.YES in {Choice(str(row["choice"])) for row in await book.rows("votes")}


async def test_a_round_that_is_resumed_hands_its_decision_over_once() -> None:
    ledger = InMemoryLedger("coordinator", SystemClock(), Uuid7Factory())
    taken: list[object] = []
    async with open_bus() as (_, settings, redis):
        async with open_desk(redis, settings.key(""), ledger=ledger) as desk:
            proposal = await desk.opened(window_ms=200)
            await desk.rounds.cast([desk.vote(proposal, name) for name in MEMBERS[:4]])
            await desk.rounds.cast([desk.vote(proposal, "officer")])
            await desk.rounds.stop(grace_s=0)
            desk.decided.clear()
            assert not desk.events(ProposalDecided), "the stop came before the decision"
            await desk.leadership.release()
        async with resumed(desk) as heir:

            class Slow:
                """A journal whose answer comes when whatever is under way has been decided."""

                async def unfinished(self) -> list[object]:
                    for _ in range(20):
                        if heir.decided:
                            break
                        await asyncio.sleep(0.01)
                    return list(await heir.journal.unfinished())

                proposal = heir.journal.proposal

            parts = SimpleNamespace(
                rounds=heir.rounds,
                journal=Slow(),
                registry=heir.registry,
                pipeline=SimpleNamespace(take=lambda record, _: taken.append(record)),
            )
            await Daemon._recover(cast("Any", None), cast("Any", parts))
            await only_decision(heir.ledger)
            async with asyncio.timeout(5):
                while not heir.decided:
                    await asyncio.sleep(0.01)
            assert len([*heir.decided, *taken]) == 1
