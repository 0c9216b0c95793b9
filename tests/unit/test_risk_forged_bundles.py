"""Each single change of a bundle that holds is refused: bytes, signers, fields, rows, and what the leader may say."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.risk_support import open_desk, wide_limits
from tests.unit.test_risk_decisions import Bundle, bundle, pinned
from trading.adapters import codec
from trading.adapters.signing import digest, seal
from trading.domain.approvals import DECISION_PAYLOAD_TYPE, PROPOSAL_PAYLOAD_TYPE, VOTE_PAYLOAD_TYPE
from trading.domain.identifiers import AccountId, AgentId, ProposalId
from trading.domain.proposals import Mode, TradeClass
from trading.domain.voting import Choice, Decision, Outcome, QuorumPolicy, Roster, Vote, tally
from trading.ports.ledger import Unit, Upsert
from trading.testing.keys import make_test_signer

Envelope = dict[str, Any]
TABLES = {"decisions": DECISION_PAYLOAD_TYPE, "proposals": PROPOSAL_PAYLOAD_TYPE, "votes": VOTE_PAYLOAD_TYPE}


async def why_not(vote: Bundle) -> str:
    """The code of the decision's failure; empty when it was approved."""
    answer = await vote.ask()
    if answer.approved:
        return ""
    assert len(vote.desk.risk.reservations) == 0
    (failure,) = [f for f in answer.denied[0].failures if f.rule.value == "DECISION_INVALID"]
    return failure.observed.partition(":")[0]


async def rewrite(vote: Bundle, table: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the first row of a table (of votes: member b's)."""
    rows = await vote.desk.coordinator.rows(table)
    row = next(row for row in rows if table != "votes" or row["agent_id"] == "b")
    await vote.desk.coordinator.commit(Unit(writes=(Upsert(table, {**row, **change(dict(row))}),)))


def edit(change: Callable[[Envelope], None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def apply(row: dict[str, Any]) -> dict[str, Any]:
        envelope = json.loads(row["envelope"])
        change(envelope)
        return {"envelope": json.dumps(envelope, separators=(",", ":"))}

    return apply


def flip(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[len(raw) // 2] ^= 1
    return base64.b64encode(bytes(raw)).decode()


def other_type(envelope: Envelope) -> None:
    others = [kind for kind in TABLES.values() if kind != envelope["payloadType"]]
    envelope["payloadType"] = others[0]


BYTES: dict[str, Callable[[Envelope], None]] = {
    "payload": lambda e: e.update(payload=flip(e["payload"])),
    "signature": lambda e: e["signatures"][0].update(sig=flip(e["signatures"][0]["sig"])),
    "key id": lambda e: e["signatures"][0].update(keyid=make_test_signer("c").key_id),
    "type": other_type,
    "second signature": lambda e: e["signatures"].append(e["signatures"][0]),
    "extra field": lambda e: e.update(note="b"),
    "no signature": lambda e: e.update(signatures=[]),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", BYTES)
async def test_changed_envelope_is_refused_as_a_bad_signature(table: str, name: str) -> None:
    vote = await bundle()
    await rewrite(vote, table, edit(BYTES[name]))
    assert (await why_not(vote)).endswith("_SIGNATURE")


@pytest.mark.parametrize("table", TABLES)
async def test_whatever_a_member_signs_that_is_no_such_thing_is_a_refusal(table: str) -> None:
    """Signed nonsense ends as a denial in the ledger, not as a request that fails."""
    vote = await bundle()
    nonsense = codec.canonical({"proposal_id": "p-1"})
    signer = make_test_signer({"decisions": "leader", "proposals": "a", "votes": "b"}[table])
    envelope = seal(nonsense, TABLES[table], signer).to_json()
    if table == "decisions":
        await rewrite(vote, table, lambda _: {"envelope": envelope})
        assert await why_not(vote) == "MALFORMED"
        return
    name = "proposal_digest" if table == "proposals" else "vote_digests"
    value = digest(nonsense) if table == "proposals" else (digest(nonsense),)
    fresh = await bundle(decision={name: value})
    await rewrite(fresh, table, lambda _: {"envelope": envelope})
    assert await why_not(fresh) == "MALFORMED"


async def signed_again(vote: Bundle, table: str, signer: str, changes: dict[str, Any]) -> None:
    kinds: dict[str, type[Any]] = {"decisions": Decision, "votes": Vote}

    def change(row: dict[str, Any]) -> dict[str, Any]:
        payload = base64.b64decode(json.loads(row["envelope"])["payload"])
        value = replace(codec.decode(kinds[table], payload), **changes)
        return {"envelope": seal(codec.canonical(value), TABLES[table], make_test_signer(signer)).to_json()}

    await rewrite(vote, table, change)


@pytest.mark.parametrize(
    "changes",
    [
        {"choice": Choice.NO},
        {"choice": Choice.ABSTAIN},
        {"reason": "on second thoughts"},
        {"stance_age_ms": 5},
        {"proposal_id": ProposalId("p-2")},
        {"proposal_digest": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_vote_signed_again_by_its_member_is_not_the_one_that_was_counted(changes: dict[str, Any]) -> None:
    vote = await bundle()
    await signed_again(vote, "votes", "b", changes)
    assert await why_not(vote) == "VOTES_MISSING"


LEADER: list[tuple[str, Callable[[Bundle, Decision], dict[str, Any]], str]] = [
    ("one yes dropped", lambda _, d: {"vote_digests": d.vote_digests[:-1]}, "TALLY_MISMATCH"),
    ("all votes dropped", lambda _, __: {"vote_digests": ()}, "RECOUNT_REJECTS"),
    ("a vote twice", lambda _, d: {"vote_digests": (*d.vote_digests, d.vote_digests[0])}, "VOTE_TWICE"),
    ("a vote invented", lambda _, d: {"vote_digests": (*d.vote_digests, "0" * 64)}, "VOTES_MISSING"),
    ("more yes than votes", lambda _, d: {"tally": replace(d.tally, yes=d.tally.yes + 1)}, "TALLY_MISMATCH"),
    ("a no hidden", lambda _, d: {"tally": replace(d.tally, no=1)}, "TALLY_MISMATCH"),
    (
        "decided before it was proposed",
        lambda v, _: {"decided_ms": v.desk.clock.now_ms() - 401},
        "DECISION_OUT_OF_TIME",
    ),
    ("decided before its votes", lambda v, _: {"decided_ms": v.desk.clock.now_ms() - 101}, "VOTE_LATE"),
    ("unknown proposal", lambda _, __: {"proposal_id": ProposalId("p-9")}, "PROPOSAL_UNKNOWN"),
]


@pytest.mark.parametrize(("change", "code"), [each[1:] for each in LEADER], ids=[each[0] for each in LEADER])
async def test_leader_cannot_say_what_the_votes_do_not(change: Any, code: str) -> None:
    vote = await bundle()
    (row,) = await vote.desk.coordinator.rows("decisions")
    decision = codec.decode(Decision, base64.b64decode(json.loads(str(row["envelope"]))["payload"]))
    await signed_again(vote, "decisions", "leader", change(vote, decision))
    assert await why_not(vote) == code


async def test_bundle_of_this_table_holds_when_nothing_is_changed() -> None:
    assert await why_not(await bundle()) == ""


async def test_two_ballots_of_one_member_are_not_two_votes() -> None:
    """An equivocating member signs twice, and the coordinator files the second one under another name."""
    vote = await bundle()
    votes = await vote.desk.coordinator.rows("votes")
    payloads = {str(v["agent_id"]): base64.b64decode(json.loads(str(v["envelope"]))["payload"]) for v in votes}
    second = codec.canonical(replace(codec.decode(Vote, payloads["b"]), reason="again"))
    await vote.desk.coordinator.commit(
        Unit(
            writes=tuple(
                Upsert("votes", {**v, "envelope": seal(second, VOTE_PAYLOAD_TYPE, make_test_signer("b")).to_json()})
                for v in votes
                if v["agent_id"] == "c"
            )
        )
    )
    payloads["c"] = second
    await signed_again(
        vote, "decisions", "leader", {"vote_digests": tuple(sorted(digest(each) for each in payloads.values()))}
    )
    assert await why_not(vote) == "VOTE_TWICE"


async def test_abstention_of_a_revoked_key_does_not_lower_what_is_needed() -> None:
    """Three yes of five are enough, two are not; two abstentions of stolen keys would make two enough."""
    two_yes = {"a": Choice.YES, "b": Choice.ABSTAIN, "c": Choice.ABSTAIN, "r": Choice.YES}
    assert await why_not(await bundle(choices=two_yes)) == ""
    assert await why_not(await bundle(choices=two_yes, revoked={"b": 6, "c": 6})) == "RECOUNT_REJECTS"


async def test_members_left_out_of_the_roster_still_count_as_eligible() -> None:
    """The coordinator's roster is not signed; hiding members must not make a majority of the rest."""
    few = {"a": Choice.YES, "r": Choice.YES}
    vote = await bundle(choices=few, joined={"b": 9, "c": 9, "d": 9})
    lying = Bundle(vote.desk, proposal_id="p-2", decision_id="d-2", choices=few, joined=vote.joined)
    counted = tally(QuorumPolicy(), Roster(5, ()), TradeClass.FAST, [])
    lying.decision = {"tally": replace(counted, outcome=Outcome.APPROVED, yes=2, reasons=())}
    await lying.write()
    assert await why_not(lying) == "RECOUNT_REJECTS"


async def test_leader_that_was_replaced_decides_nothing_more_but_what_it_decided_stands() -> None:
    desk = await open_desk(keys=pinned(), limits=wide_limits())
    now = desk.clock.now_ms()
    before = await Bundle(desk, decision={"fence": 1, "decided_ms": now - 40}).write()
    new = await Bundle(
        desk, proposal_id="p-2", decision_id="d-2", decision={"fence": 2, "decided_ms": now - 30}
    ).write()
    after = await Bundle(
        desk, proposal_id="p-3", decision_id="d-3", decision={"fence": 1, "decided_ms": now - 20}
    ).write()
    assert (await new.ask()).approved
    assert (await before.ask()).approved
    answer = await after.ask()
    assert answer.denied[0].failures[0].observed.startswith("LEADER_REPLACED")


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "500"},
        {"proposal": {"trade_class": TradeClass.LARGE}},
        {"proposal": {"reason": "other words"}},
        {"proposal": {"roster_version": 6}},
        {"proposal": {"mode": Mode.TESTNET}},
        {"proposal": {"agent_id": AgentId("b")}},
    ],
    ids=str,
)
async def test_proposal_signed_again_by_its_author_is_not_the_one_that_was_decided(changes: dict[str, Any]) -> None:
    vote = await bundle()
    other = Bundle(vote.desk, **changes)._proposal(vote.desk.clock.now_ms())
    text = seal(codec.canonical(other), PROPOSAL_PAYLOAD_TYPE, make_test_signer("a")).to_json()
    await rewrite(vote, "proposals", lambda _: {"envelope": text})
    assert await why_not(vote) == "PROPOSAL_MISMATCH"


async def test_vote_on_another_account_covers_no_order_here() -> None:
    vote = await bundle()
    elsewhere = replace(Bundle(vote.desk)._proposal(vote.desk.clock.now_ms()).order, account_id=AccountId("other"))
    far = await Bundle(vote.desk, proposal_id="p-2", decision_id="d-2", proposal={"order": elsewhere}).write()
    assert await why_not(far) == "account_id differs from the proposal"


async def test_one_member_cannot_file_its_vote_under_anothers_name() -> None:
    vote = await bundle()
    await signed_again(vote, "votes", "b", {"agent_id": AgentId("c")})
    assert await why_not(vote) == "VOTE_SIGNATURE"
