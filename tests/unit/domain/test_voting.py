"""The tally rule against an independent oracle, and the property that makes it safe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AgentId, KeyId, ProposalId
from trading.domain.proposals import TradeClass
from trading.domain.voting import Choice, QuorumPolicy, Role, Roster, RosterMember, Vote, tally

BALLOTS: tuple[Choice | None, ...] = (Choice.YES, Choice.NO, Choice.ABSTAIN, None)
POLICY = QuorumPolicy()


def roster_of(size: int, *, risk: int = 0) -> Roster:
    return Roster(
        1,
        tuple(
            RosterMember(
                agent_id=AgentId(f"agent-{index}"),
                role=Role.RISK if index == risk else Role.TRADER,
                key_id=KeyId(f"{index:016x}"),
                public_key=f"{index:064x}",
                family="rules",
            )
            for index in range(size)
        ),
    )


def votes_of(ballots: Iterable[Choice | None]) -> list[Vote]:
    return [
        Vote(proposal_id=ProposalId("p"), proposal_digest="d", agent_id=AgentId(f"agent-{index}"), choice=choice)
        for index, choice in enumerate(ballots)
        if choice is not None
    ]


def oracle(ballots: Sequence[Choice | None], min_yes: int) -> bool:
    """Return the rule as the specification words it, in fractions rather than in integers."""
    yes, no, abstain = (sum(ballot is choice for ballot in ballots) for choice in Choice)
    entitled = len(ballots) - abstain
    share_is_enough = entitled == 0 or yes / entitled >= 0.6 - 1e-12
    return share_is_enough and yes >= min_yes and yes + no >= 2 and ballots[0] is Choice.YES


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize(("trade_class", "min_yes"), [(TradeClass.FAST, 2), (TradeClass.LARGE, 3)])
def test_every_ballot_of_small_rosters_agrees_with_the_oracle(size: int, trade_class: TradeClass, min_yes: int) -> None:
    roster = roster_of(size)
    for ballots in itertools.product(BALLOTS, repeat=size):
        assert tally(POLICY, roster, trade_class, votes_of(ballots)).approved == oracle(ballots, min_yes), ballots


@pytest.mark.parametrize("size", range(1, 8))
def test_dropping_votes_never_turns_a_rejection_into_an_approval(size: int) -> None:
    roster = roster_of(size)
    verdicts = {
        ballots: tally(POLICY, roster, TradeClass.FAST, votes_of(ballots)).approved
        for ballots in itertools.product(BALLOTS, repeat=size)
    }
    for ballots, approved in verdicts.items():
        for index in range(size):
            if not approved and ballots[index] is not None:
                dropped = (*ballots[:index], None, *ballots[index + 1 :])
                assert not verdicts[dropped], (ballots, index)


def test_the_naive_share_of_cast_votes_would_fail_that_property() -> None:
    def naive(ballots: Sequence[Choice | None]) -> bool:
        yes, no = ballots.count(Choice.YES), ballots.count(Choice.NO)
        return yes + no > 0 and 5 * yes >= 3 * (yes + no)

    assert not naive([Choice.YES, Choice.NO, Choice.ABSTAIN])
    assert naive([Choice.YES, None, Choice.ABSTAIN])


def test_a_vote_of_a_stranger_and_a_second_vote_of_a_member_do_not_count() -> None:
    roster = roster_of(3)
    votes = votes_of([Choice.YES, Choice.NO, Choice.NO])
    second = Vote(proposal_id=ProposalId("p"), proposal_digest="d", agent_id=AgentId("agent-1"), choice=Choice.YES)
    stranger = Vote(proposal_id=ProposalId("p"), proposal_digest="d", agent_id=AgentId("mallory"), choice=Choice.YES)
    count = tally(POLICY, roster, TradeClass.FAST, [*votes, second, stranger])
    assert (count.yes, count.no, count.missing) == (1, 2, 0)


def test_silence_of_the_risk_role_is_not_consent() -> None:
    count = tally(POLICY, roster_of(5, risk=4), TradeClass.FAST, votes_of([Choice.YES] * 4))
    assert count.reasons == ("NO_RISK_CONSENT",)


def test_every_unmet_condition_is_named() -> None:
    count = tally(POLICY, roster_of(5), TradeClass.LARGE, votes_of([None, Choice.NO]))
    assert count.reasons == ("THRESHOLD_NOT_REACHED", "TOO_FEW_YES", "NO_QUORUM", "NO_RISK_CONSENT")


def test_a_roster_that_lists_an_agent_twice_is_refused() -> None:
    member = roster_of(1).members[0]
    with pytest.raises(InvalidValue):
        Roster(1, (member, member))
