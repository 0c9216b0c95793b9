"""A decision counts only if every signature, digest and number of it holds; forgeries are told apart by their code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.risk.decisions import PinnedKeys
from mcp_servers.risk.sign_off import Answer
from tests.risk_support import Desk, codes, market, open_desk, order, wide_limits
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, digest, seal
from trading.domain.approvals import DECISION_PAYLOAD_TYPE, PROPOSAL_PAYLOAD_TYPE, VOTE_PAYLOAD_TYPE
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderIntent, OrderType, TimeInForce, TradeClass, TradeProposal
from trading.domain.voting import Choice, Decision, Outcome, QuorumPolicy, Role, Roster, RosterMember, Vote, tally
from trading.ports.ledger import Insert, Unit, Upsert
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER
from trading.testing.keys import make_test_signer

MEMBERS = {"a": Role.TRADER, "b": Role.TRADER, "c": Role.TRADER, "d": Role.TRADER, "r": Role.RISK}
ALL_YES = dict.fromkeys(MEMBERS, Choice.YES)


def pinned(*without: str) -> PinnedKeys:
    agents = {AgentId(n): make_test_signer(n).public_key for n in MEMBERS if n not in without}
    return PinnedKeys(
        agents=agents,
        voters=Ed25519Verifier.of(*agents.values()),
        leader=Ed25519Verifier.of(make_test_signer("leader").public_key),
    )


@dataclass
class Bundle:
    """A vote as the coordinator would have written it; a test changes one thing."""

    desk: Desk
    proposal_id: str = "p-1"
    decision_id: str = "d-1"
    choices: dict[str, Choice] = field(default_factory=lambda: dict(ALL_YES))
    leader: str = "leader"
    proposer: str = "a"
    signed_by: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    revoked: dict[str, int] = field(default_factory=dict)
    joined: dict[str, int] = field(default_factory=dict)
    quantity: str = "0.05"
    proposal: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    uncounted: dict[str, Choice] = field(default_factory=dict)

    async def write(self) -> Bundle:
        ledger, now = self.desk.coordinator, self.desk.clock.now_ms()
        proposal = self._proposal(now)
        payload = codec.canonical(proposal)
        envelope = seal(payload, PROPOSAL_PAYLOAD_TYPE, make_test_signer(self.proposer)).to_json()
        votes = {n: self._vote(n, choice, digest(payload)) for n, choice in {**self.choices, **self.uncounted}.items()}
        counted = [votes[n] for n in self.choices]
        decision = self._decision(proposal, digest(payload), counted, now)
        rows: list[Insert | Upsert] = [Upsert("roster", self._member(n)) for n in MEMBERS]
        rows.append(
            Upsert(
                "proposals",
                {
                    "proposal_id": self.proposal_id,
                    "agent_id": "a",
                    "state": "approved",
                    "envelope": envelope,
                    "digest": digest(payload),
                    "roster_version": proposal.roster_version,
                    "deadline_ms": proposal.deadline_ms,
                    "expires_ms": proposal.expires_ms,
                    "decision_id": self.decision_id,
                    "updated_ms": now,
                },
            )
        )
        for name, vote in votes.items():
            if name in self.left_out:
                continue
            signer = make_test_signer(self.signed_by.get(name, name))
            rows.append(
                Insert(
                    "votes",
                    {
                        "proposal_id": self.proposal_id,
                        "agent_id": name,
                        "choice": vote.choice.value,
                        "envelope": seal(codec.canonical(vote), VOTE_PAYLOAD_TYPE, signer).to_json(),
                        "received_ms": proposal.deadline_ms + 1 if name in self.late else now - 100,
                    },
                )
            )
        rows.append(
            Insert(
                "decisions",
                {
                    "decision_id": self.decision_id,
                    "proposal_id": self.proposal_id,
                    "outcome": "approved",
                    "envelope": seal(
                        codec.canonical(decision), DECISION_PAYLOAD_TYPE, make_test_signer(self.leader)
                    ).to_json(),
                    "state": "decided",
                    "detail": "",
                    "updated_ms": now,
                },
            )
        )
        await ledger.commit(Unit(writes=tuple(rows)))
        return self

    def _proposal(self, now: int) -> TradeProposal:
        intent = OrderIntent(
            account_id=ACCOUNT,
            venue=PAPER,
            symbol=BTC_USDT,
            side=Side.BUY,
            order_type=OrderType.LIMIT,
            quantity=Decimal(self.quantity),
            limit_price=Decimal("60001"),
        )
        values: dict[str, Any] = {
            "proposal_id": ProposalId(self.proposal_id),
            "agent_id": AgentId("a"),
            "mode": Mode.PAPER,
            "trade_class": TradeClass.FAST,
            "order": intent,
            "reason": "",
            "roster_version": 5,
            "created_ms": now - 400,
            "deadline_ms": now - 50,
            "expires_ms": now + 2_000,
        }
        return TradeProposal(**{**values, **self.proposal})

    def _vote(self, name: str, choice: Choice, proposal_digest: str) -> Vote:
        return Vote(
            proposal_id=ProposalId(self.proposal_id),
            proposal_digest=proposal_digest,
            agent_id=AgentId(name),
            choice=choice,
        )

    def _decision(self, proposal: TradeProposal, proposal_digest: str, votes: list[Vote], now: int) -> Decision:
        members = tuple(
            RosterMember(
                agent_id=AgentId(n), role=role, key_id=make_test_signer(n).key_id, public_key="", family="rules"
            )
            for n, role in MEMBERS.items()
        )
        values: dict[str, Any] = {
            "decision_id": DecisionId(self.decision_id),
            "proposal_id": proposal.proposal_id,
            "proposal_digest": proposal_digest,
            "tally": tally(QuorumPolicy(), Roster(5, members), proposal.trade_class, votes),
            "vote_digests": tuple(sorted(digest(codec.canonical(vote)) for vote in votes)),
            "roster_version": proposal.roster_version,
            "fence": 1,
            "decided_ms": now - 20,
            "expires_ms": proposal.expires_ms,
        }
        return Decision(**{**values, **self.decision})

    def _member(self, name: str) -> dict[str, object]:
        signer = make_test_signer(name)
        return {
            "agent_id": name,
            "role": MEMBERS[name].value,
            "family": "rules",
            "key_id": signer.key_id,
            "public_key": signer.public_key,
            "roster_version": self.joined.get(name, 1),
            "revoked_version": self.revoked.get(name),
        }

    async def ask(self, *orders: Any, request_id: str = "") -> Answer:
        children = orders or (order(amount=self.quantity),)
        return await self.desk.ask(*children, request_id=request_id or self.decision_id, decision_id=self.decision_id)


async def bundle(keys: PinnedKeys | None = None, limits: Any = None, **changes: Any) -> Bundle:
    desk = await open_desk(keys=keys or pinned(), limits=limits or wide_limits(undecided_notional_max=Decimal(100)))
    return await Bundle(desk, **changes).write()


async def test_decision_that_holds_gives_what_one_voice_may_not() -> None:
    vote = await bundle()
    assert codes(await vote.desk.ask(order(amount="0.05"))) == {"AUTHORITY"}
    approval = (await vote.ask()).approved[0].approval
    assert approval.decision_id == "d-1"
    assert approval.agent_id == "a"
    assert approval.expires_ms == vote.desk.clock.now_ms() + 2_000  # the proposal's, before our three seconds
    assert approval.band_high == Decimal("60600.50")  # 100 bps, wider than without a decision
    (used,) = await vote.desk.ledger.rows("decisions_used")
    assert (used["proposal_id"], used["decision_id"]) == ("p-1", "d-1")


async def test_decision_without_orders_means_its_own_order() -> None:
    vote = await bundle()
    answer = await vote.desk.ask(decision_id="d-1", request_id="d-1")
    assert answer.approved[0].approval.order.quantity == Decimal("0.05")


async def test_children_may_split_the_proposal_and_be_better_priced() -> None:
    vote = await bundle()
    answer = await vote.ask(order(amount="0.02"), order(amount="0.03", limit_price="59999"))
    assert len(answer.approved) == 2


async def test_same_request_again_is_the_same_answer() -> None:
    vote = await bundle()
    first = await vote.ask()
    assert (await vote.ask()).approved[0].envelope == first.approved[0].envelope
    assert len(vote.desk.risk.reservations) == 1


FORGERIES: list[tuple[str, dict[str, Any], str]] = [
    ("wrong leader", {"leader": "mallory"}, "LEADER_SIGNATURE"),
    ("leader is only a voter", {"leader": "a"}, "LEADER_SIGNATURE"),
    ("rejected vote", {"choices": {**ALL_YES, "r": Choice.NO}}, "NOT_APPROVED"),
    ("other decision's envelope", {"decision": {"decision_id": DecisionId("d-9")}}, "DECISION_MISMATCH"),
    ("expired decision", {"decision": {"expires_ms": 1}}, "DECISION_EXPIRED"),
    ("from the future", {"decision": {"decided_ms": 9_000_000_000_000}}, "DECISION_FROM_FUTURE"),
    ("swapped proposal", {"decision": {"proposal_digest": "0" * 64}}, "PROPOSAL_MISMATCH"),
    ("other roster", {"decision": {"roster_version": 4}}, "PROPOSAL_MISMATCH"),
    ("expired proposal", {"proposal": {"created_ms": 1, "deadline_ms": 2, "expires_ms": 3}}, "DECISION_EXPIRED"),
    ("live proposal on paper", {"proposal": {"mode": Mode.LIVE}}, "WRONG_MODE"),
    ("proposal signed by another member", {"proposer": "b"}, "PROPOSER_SIGNATURE"),
    ("proposal signed by a stranger", {"proposer": "mallory"}, "PROPOSER_SIGNATURE"),
    ("vote signed by a stranger", {"signed_by": {"b": "mallory"}}, "VOTE_SIGNATURE"),
    ("one member votes for another", {"signed_by": {"b": "c"}}, "VOTE_SIGNATURE"),
    ("counted vote missing", {"left_out": ("b",)}, "VOTES_MISSING"),
    ("counted vote came late", {"late": ("b",)}, "VOTE_LATE"),
    ("yes of keys revoked since", {"revoked": {"b": 6, "c": 6, "d": 6}}, "RECOUNT_REJECTS"),
    ("risk's consent revoked since", {"revoked": {"r": 6}}, "RECOUNT_REJECTS"),
    ("voter not yet registered", {"joined": {"b": 6}}, "VOTER_UNKNOWN"),
    ("voter revoked before", {"revoked": {"b": 5}}, "VOTER_UNKNOWN"),
]


@pytest.mark.parametrize(("changes", "code"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
async def test_forged_bundle_is_denied_with_its_code(changes: dict[str, Any], code: str) -> None:
    vote = await bundle(**changes)
    answer = await vote.ask()
    assert not answer.approved
    (failure,) = [f for f in answer.denied[0].failures if f.rule.value == "DECISION_INVALID"]
    assert failure.observed.startswith(code)
    assert len(vote.desk.risk.reservations) == 0
    assert not await vote.desk.ledger.rows("decisions_used")


async def test_leader_that_calls_a_rejected_ballot_approved_is_caught_by_the_recount() -> None:
    vote = await bundle(choices={"a": Choice.YES, "b": Choice.NO, "c": Choice.NO, "d": Choice.NO, "r": Choice.YES})
    assert "NOT_APPROVED" in (await vote.ask()).denied[0].failures[0].observed
    lying = Bundle(vote.desk, proposal_id="p-2", decision_id="d-2", choices=vote.choices)
    honest = tally(QuorumPolicy(), Roster(5, ()), TradeClass.FAST, [])
    lying.decision = {"tally": replace(honest, outcome=Outcome.APPROVED, reasons=())}
    await lying.write()
    assert "RECOUNT_REJECTS" in (await lying.ask()).denied[0].failures[0].observed


async def test_late_genuine_votes_cannot_re_assemble_a_rejected_ballot() -> None:
    """A courier that adds real but uncounted yes votes to the ledger changes nothing."""
    vote = await bundle(
        choices={"a": Choice.YES, "b": Choice.NO, "r": Choice.YES}, uncounted={"c": Choice.YES, "d": Choice.YES}
    )
    assert not (await vote.ask()).approved


async def test_key_that_the_operator_did_not_pin_does_not_count() -> None:
    vote = await bundle(keys=pinned("b"))
    assert "VOTE_SIGNATURE" in (await vote.ask()).denied[0].failures[0].observed


async def test_unpinned_member_still_counts_as_eligible() -> None:
    """Leaving voters out of the pinned keys must not make a majority of the rest."""
    vote = await bundle(keys=pinned("b", "c", "d"), choices={"a": Choice.YES, "r": Choice.YES})
    assert not (await vote.ask()).approved


async def test_proposal_is_used_once_whatever_the_request_is_called() -> None:
    vote = await bundle()
    assert (await vote.ask(request_id="one")).approved
    again = await vote.ask(request_id="two")
    assert codes(again) == {"DECISION_INVALID"}
    assert "PROPOSAL_USED" in again.denied[0].failures[0].observed
    assert len(vote.desk.risk.reservations) == 1


async def test_unknown_decision_is_denied() -> None:
    vote = await bundle()
    answer = await vote.desk.ask(order(), decision_id="nothing")
    assert "DECISION_UNKNOWN" in answer.denied[0].failures[0].observed


async def test_desk_without_pinned_keys_accepts_no_decision() -> None:
    desk = await open_desk()
    vote = await Bundle(desk).write()
    assert "DECISION_INVALID" in codes(await vote.ask())


@pytest.mark.parametrize(
    "children",
    [
        [order(amount="0.06")],
        [order(amount="0.03"), order(amount="0.03")],
        [order(amount="0.05", limit_price="60002")],
        [order(amount="0.05", side=Side.SELL)],
        [market("0.05")],
        [order(amount="0.05", post_only=True, limit_price="59000")],
        [order(amount="0.05", time_in_force=TimeInForce.IOC)],
    ],
    ids=["larger", "larger together", "worse price", "other side", "other type", "post-only", "other time in force"],
)
async def test_order_that_the_proposal_does_not_cover_is_denied(children: list[Any]) -> None:
    vote = await bundle()
    answer = await vote.ask(*children)
    assert not answer.approved
    assert "DECISION_INVALID" in codes(answer)


async def test_risks_own_quorum_is_the_floor() -> None:
    limits = wide_limits(quorum={"min_yes": 5})
    vote = await bundle(limits=limits, choices={**ALL_YES, "d": Choice.NO})
    assert "TOO_FEW_YES" in (await vote.ask()).denied[0].failures[0].observed


async def test_consent_of_the_named_agent_only() -> None:
    vote = await bundle(limits=wide_limits(quorum={"consent_agents": ["x"]}))
    assert "NO_RISK_CONSENT" in (await vote.ask()).denied[0].failures[0].observed
