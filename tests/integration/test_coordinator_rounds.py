"""Rounds of voting over a real Redis: what is counted, what is refused, and that there is one decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from redis.exceptions import NoPermissionError

from coordinator.admission import open_vote
from coordinator.ballots import KnownVote
from coordinator.leadership import Leadership
from coordinator.round_state import Verdict
from tests.coordinator_support import MEMBERS, Desk, open_agents, open_bus, open_desk
from trading.adapters import codec
from trading.adapters.clock import SystemClock
from trading.adapters.signing import Ed25519Verifier, open_envelope
from trading.domain.approvals import DECISION_PAYLOAD_TYPE
from trading.domain.errors import LeaseLost
from trading.domain.events import ProposalDecided, ProposalOpened, ProposalRefused, VoteCast, VoteRefused
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.proposals import Mode
from trading.domain.voting import Choice, Decision, Outcome
from trading.testing.keys import make_test_signer

LEADER = Ed25519Verifier.of(make_test_signer("leader").public_key)


@pytest_asyncio.fixture
async def desk() -> AsyncGenerator[Desk]:
    async with open_bus() as (_, settings, redis), open_desk(redis, settings.key("")) as desk:
        yield desk


async def decision_of(desk: Desk, proposal_id: ProposalId) -> ProposalDecided:
    """Wait for the decision on a proposal."""
    async with asyncio.timeout(10):
        while True:
            for event in desk.events(ProposalDecided):
                if event.proposal_id == proposal_id:
                    return event
            await asyncio.sleep(0.002)


async def test_a_supported_proposal_is_approved_as_soon_as_everybody_has_voted(desk: Desk) -> None:
    proposal = await desk.opened()
    ballots = [desk.vote(proposal, name, Choice.NO if name == "momentum" else Choice.YES) for name in MEMBERS]
    assert [v.code for v in await desk.rounds.cast(ballots)] == ["COUNTED"] * 5
    decided = await decision_of(desk, proposal.value.proposal_id)

    decision = codec.decode(Decision, open_envelope(decided.envelope, LEADER, DECISION_PAYLOAD_TYPE))
    assert (decision.tally.outcome, decision.tally.yes, decision.tally.no) == (Outcome.APPROVED, 4, 1)
    assert decision.decided_ms < proposal.value.deadline_ms, "nobody was missing, so nothing was waited for"
    assert len(decision.vote_digests) == 5
    assert decision.fence == desk.leadership.fence
    kinds = [type(event.payload) for event in desk.ledger.events if not event.event_type.startswith("agent.")]
    assert kinds == [ProposalOpened, *[VoteCast] * 5, ProposalDecided], "ledger first, in this order"
    async with asyncio.timeout(5):
        while not desk.decided:
            await asyncio.sleep(0.002)
    assert desk.decided[0].decision_id == decided.decision_id
    row = await desk.journal.proposal(proposal.value.proposal_id)
    assert row is not None
    assert (row["state"], row["decision_id"]) == ("approved", decided.decision_id)


async def test_without_risk_consent_everything_is_rejected(desk: Desk) -> None:
    proposal = await desk.opened()
    await desk.rounds.cast([desk.vote(proposal, n, Choice.NO if n == "officer" else Choice.YES) for n in MEMBERS])
    decided = await decision_of(desk, proposal.value.proposal_id)
    assert decided.outcome is Outcome.REJECTED
    assert decided.tally.reasons == ("NO_RISK_CONSENT",)
    assert not desk.decided


async def test_missing_votes_count_as_not_yes_and_a_late_one_is_recorded_but_not_counted(desk: Desk) -> None:
    proposal = await desk.opened(window_ms=60)
    await desk.rounds.cast([desk.vote(proposal, name) for name in ("aggressive", "officer")])
    decided = await decision_of(desk, proposal.value.proposal_id)
    assert decided.outcome is Outcome.REJECTED
    assert (decided.tally.yes, decided.tally.missing) == (2, 3)
    assert (await desk.rounds.cast([desk.vote(proposal, "balanced")]))[0].code == "LATE"
    assert [event.reason for event in desk.events(VoteRefused)] == ["LATE"]
    assert len(desk.events(ProposalDecided)) == 1


async def test_a_forged_vote_is_refused_and_does_not_take_the_slot_of_the_genuine_one(desk: Desk) -> None:
    proposal = await desk.opened()
    forged = desk.vote(proposal, "officer", Choice.YES, key="aggressive")
    in_anothers_name = (AgentId("aggressive"), desk.vote(proposal, "officer", Choice.YES, key="aggressive")[1])
    genuine = desk.vote(proposal, "officer", Choice.NO)
    codes = [v.code for v in await desk.rounds.cast([forged, in_anothers_name, genuine])]
    assert codes == ["BAD_SIGNATURE", "WRONG_AGENT", "COUNTED"]
    others = [desk.vote(proposal, name) for name in MEMBERS if name != "officer"]
    await desk.rounds.cast(others)
    assert (await decision_of(desk, proposal.value.proposal_id)).tally.reasons == ("NO_RISK_CONSENT",)


async def test_equivocation_duplicates_strangers_and_other_digests_are_recorded_not_counted(desk: Desk) -> None:
    proposal = await desk.opened()
    first = desk.vote(proposal, "balanced", Choice.NO)
    assert (await desk.rounds.cast([first]))[0].code == "COUNTED"
    answers = await desk.rounds.cast(
        [
            first,
            desk.vote(proposal, "balanced", Choice.YES),
            desk.vote(proposal, "stranger"),
            desk.vote(proposal, "momentum", proposal_digest="0" * 64),
            desk.vote(proposal, "momentum", proposal_id=ProposalId("nowhere")),
            (AgentId("momentum"), "not an envelope"),
        ]
    )
    wanted = ["DUPLICATE", "EQUIVOCATION", "UNREGISTERED", "DIGEST_MISMATCH", "UNKNOWN_PROPOSAL", "BAD_SIGNATURE"]
    assert [answer.code for answer in answers] == wanted
    assert sorted(event.reason for event in desk.events(VoteRefused)) == sorted(wanted)
    assert [(event.agent_id, event.choice) for event in desk.events(VoteCast)] == [("balanced", Choice.NO)]


async def test_fifty_racing_deciders_make_one_decision(desk: Desk) -> None:
    proposal = await desk.opened()
    current = desk.rounds.open_rounds[0]
    await desk.rounds.cast([desk.vote(proposal, name) for name in MEMBERS])
    records = await asyncio.gather(*(desk.rounds.decide(current) for _ in range(50)))
    assert len({record.decision_id for record in records if record is not None}) == 1
    assert None not in records
    assert len(desk.events(ProposalDecided)) == 1


async def test_nobody_can_close_a_ballot_before_its_deadline(desk: Desk) -> None:
    proposal = await desk.opened()
    await desk.rounds.cast([desk.vote(proposal, "officer")])
    assert await desk.rounds.decide(desk.rounds.open_rounds[0]) is None


async def test_a_stale_fence_changes_nothing(desk: Desk) -> None:
    proposal = await desk.opened()
    stale = desk.leadership.fence
    await desk.leadership.release()
    successor = Leadership(desk.redis, desk.prefix, owner="second", ttl_ms=60_000, clock=SystemClock())
    assert await successor.try_acquire()
    assert successor.fence > stale
    vote = open_vote(desk.vote(proposal, "officer")[1], desk.registry.roster().members[-1])
    slip = KnownVote(AgentId("officer"), vote.digest, vote.envelope, 0)
    pid = proposal.value.proposal_id
    for attempt in (
        desk.ballots.open(stale, ProposalId("x"), digest="d", deadline_ms=1, envelope="", members=[]),
        desk.ballots.cast(stale, [(pid, proposal.digest, slip)]),
        desk.ballots.close(stale, pid),
        desk.ballots.settle(stale, pid, DecisionId("d"), "approved"),
    ):
        with pytest.raises(LeaseLost, match="newer fencing token"):
            await attempt
    assert await desk.ballots.votes(pid) == []
    assert not desk.leadership.is_leader
    assert not await desk.leadership.renew()


async def test_bad_proposals_are_refused_with_their_reason_and_recorded(desk: Desk) -> None:
    now = await desk.ballots.now_ms()
    good = await desk.proposal()
    cases = {
        "WRONG_MODE": desk.seal(await desk.proposal(mode=Mode.LIVE)),
        "DEADLINE_PASSED": desk.seal(
            await desk.proposal(created_ms=now - 500, deadline_ms=now - 1, expires_ms=now + 100)
        ),
        "DEADLINE_TOO_FAR": desk.seal(await desk.proposal(window_ms=600_000)),
        "FROM_THE_FUTURE": desk.seal(await desk.proposal(created_ms=now + 450)),
        "ROSTER_CHANGED": desk.seal(await desk.proposal(roster_version=1)),
        "WRONG_AGENT": desk.seal(await desk.proposal(by="balanced"), by="aggressive"),
        "BAD_SIGNATURE": desk.seal(good, by="balanced"),
    }
    for code, text in cases.items():
        assert (await desk.rounds.submit(AgentId("aggressive"), text)).code == code
    assert (await desk.rounds.submit(AgentId("stranger"), desk.seal(good))).code == "UNREGISTERED"
    assert {event.reason for event in desk.events(ProposalRefused)} == {*cases, "UNREGISTERED"}
    assert not desk.events(ProposalOpened)


async def test_the_same_proposal_twice_is_one_round_and_its_id_cannot_be_taken_by_another(desk: Desk) -> None:
    proposal = await desk.opened()
    agent = proposal.value.agent_id
    again = await desk.rounds.submit(agent, proposal.envelope)
    assert again == Verdict("DUPLICATE", proposal.value.proposal_id)
    other = await desk.proposal(proposal_id=proposal.value.proposal_id, reason="another")
    assert (await desk.rounds.submit(agent, desk.seal(other))).code == "PROPOSAL_ID_TAKEN"
    assert len(desk.events(ProposalOpened)) == 1


async def test_too_many_rounds_at_once_are_refused_as_busy() -> None:
    async with open_bus() as (_, settings, redis), open_desk(redis, settings.key(""), open_max=1) as desk:
        await desk.opened()
        second = await desk.proposal()
        assert (await desk.rounds.submit(second.agent_id, desk.seal(second))).code == "BUSY"


async def test_a_member_revoked_during_the_vote_no_longer_counts(desk: Desk) -> None:
    proposal = await desk.opened()
    await desk.rounds.cast([desk.vote(proposal, n) for n in MEMBERS if n != "momentum"])
    await desk.registry.revoke(desk.ledger, AgentId("officer"), "key lost")
    assert (await desk.rounds.cast([desk.vote(proposal, "officer", Choice.NO)]))[0].code == "UNREGISTERED"
    await desk.rounds.cast([desk.vote(proposal, "momentum")])
    decided = await decision_of(desk, proposal.value.proposal_id)
    assert decided.tally.reasons == ("NO_RISK_CONSENT",)
    assert decided.tally.missing == 1


async def test_an_agent_can_write_its_own_inbox_and_nothing_else() -> None:
    async with open_bus() as (home, settings, _), open_agents(home, settings, ("aggressive", "officer")) as agents:
        one, prefix = agents["aggressive"], settings.key("")
        await one.xadd(f"{prefix}vote:in:aggressive", {"t": "vote", "e": "x"})
        for key in ("vote:in:officer", "vote:out", "vote:cursor", "events:coordination"):
            with pytest.raises(NoPermissionError):
                await one.xadd(f"{prefix}{key}", {"t": "vote", "e": "x"})
        with pytest.raises(NoPermissionError):
            await one.set(f"{prefix}vote:leader", "me")
        with pytest.raises(NoPermissionError):
            await one.xrange(f"{prefix}vote:in:officer")
