"""Seats and agents: what is verified before a vote, when the officer consents, and what candles are made of."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import pytest

from coordinator.admission import Signed, open_proposal, open_vote, sign_proposal, sign_vote
from coordinator.agents.risk_officer import RiskOfficer
from coordinator.agents.rule_agent import RuleAgent
from coordinator.agents.seat import Seat, SeatSettings
from coordinator.refusals import RefusalBudget
from coordinator.snapshots import SnapshotBook, balances_of
from tests.coordinator_support import build_intent, build_snapshot, signer_of
from trading.adapters.signing import key_id_of
from trading.domain.identifiers import AgentId, Currency, Symbol, TradeId, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side, TradePrint
from trading.domain.proposals import Mode, TradeProposal
from trading.domain.voting import Choice, Role, Roster, RosterMember
from trading.strategy.candles import CandleBuilder
from trading.strategy.modes import AGGRESSIVE
from trading.strategy.rules import Propose
from trading.strategy.snapshot import MarketSnapshot
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER, build_book, build_instrument
from trading.testing.clock import ManualClock, SeededIds

BINANCE = InstrumentId(Venue("binance"), BTC_USDT)
CLOCK = ManualClock()


def member(name: str, role: Role = Role.TRADER) -> RosterMember:
    key = signer_of(name).public_key
    return RosterMember(agent_id=AgentId(name), role=role, key_id=key_id_of(key), public_key=key, family="rules")


class Fixed:
    """A market that is always the same, or unknown."""

    def __init__(self, snapshot: MarketSnapshot | None) -> None:
        self._snapshot = snapshot

    def snapshot(self, symbol: Symbol) -> MarketSnapshot | None:
        return self._snapshot


def seat(agent: RuleAgent | RiskOfficer, snapshot: MarketSnapshot | None = None) -> Seat:
    roster = Roster(2, (member("aggressive"), member("officer", Role.RISK)))
    return Seat(
        agent,
        signer_of(agent.agent_id),
        cast("Any", None),  # nothing here talks to Redis
        roster=lambda: roster,
        snapshots=Fixed(snapshot),
        settings=SeatSettings(prefix="grekko:{desk}:", mode=Mode.PAPER, symbols=(BTC_USDT,)),
        clock=CLOCK,
        ids=SeededIds(),
    )


AGGRESSOR = RuleAgent(AgentId("aggressive"), AGGRESSIVE)
LEANING = build_snapshot(book=build_book([("60000", "9")], [("60000.01", "1")]))


def signed(**changes: Any) -> Signed[TradeProposal]:
    made = seat(AGGRESSOR).proposal(Propose(build_intent(), "because"), now_ms=1_000)
    text = sign_proposal(replace(made, **changes), signer_of("aggressive"))
    return open_proposal(text, member("aggressive"))


def test_a_seat_believes_only_what_a_member_signed() -> None:
    listener, good = seat(AGGRESSOR), signed()
    assert listener.verify(good.envelope, good.digest) == good
    assert listener.verify(good.envelope, "0" * 64) is None
    assert listener.verify("junk", good.digest) is None
    stranger = sign_proposal(good.value, signer_of("stranger"))
    assert listener.verify(stranger, good.digest) is None
    in_anothers_name = sign_proposal(replace(good.value, agent_id=AgentId("officer")), signer_of("aggressive"))
    assert listener.verify(in_anothers_name, good.digest) is None


def test_a_proposal_carries_the_roster_version_the_deadline_and_the_expiry() -> None:
    value = signed().value
    assert (value.roster_version, value.created_ms, value.deadline_ms, value.expires_ms) == (2, 1_000, 1_500, 6_000)


def test_a_ballot_is_signed_over_the_proposal_and_without_a_market_nobody_says_yes() -> None:
    good = signed()
    seeing = seat(RuleAgent(AgentId("aggressive"), AGGRESSIVE), LEANING)
    vote = seeing.ballot(good)
    assert (vote.choice, vote.proposal_digest, vote.stance_age_ms) == (Choice.YES, good.digest, 10)
    assert open_vote(sign_vote(vote, signer_of("aggressive")), member("aggressive")).value == vote
    seeing._snapshots = Fixed(None)
    assert seeing.ballot(good).choice is Choice.ABSTAIN, "it saw a market before, but not now"
    assert seat(RiskOfficer(AgentId("officer"))).ballot(good).choice is Choice.NO


@pytest.mark.parametrize(
    ("changes", "order", "choice"),
    [
        ({}, {}, Choice.YES),
        ({"book_age_ms": 1_501}, {}, Choice.NO),
        ({"account_age_ms": 5_001}, {}, Choice.NO),
        ({"book": build_book([("60000", "1")], [("60200", "1")])}, {}, Choice.NO),
        ({"book": build_book([], [("60200", "1")])}, {}, Choice.NO),
        ({}, {"quantity": "0.2"}, Choice.NO),
        ({"held": Decimal("1.58")}, {}, Choice.NO),
        ({"held": Decimal("1.58")}, {"side": Side.SELL}, Choice.YES),
        ({"held": Decimal("0.001")}, {"side": Side.SELL}, Choice.NO),
    ],
)
def test_the_officer_consents_within_exposure_spread_and_age(
    changes: dict[str, Any], order: dict[str, Any], choice: Choice
) -> None:
    officer = RiskOfficer(AgentId("officer"))
    officer.observe(build_snapshot(**changes))
    assert officer.vote(signed(order=build_intent(**order)).value).choice is choice


def test_an_agent_that_has_seen_nothing_holds_and_abstains() -> None:
    blind = RuleAgent(AgentId("aggressive"), AGGRESSIVE)
    assert not isinstance(blind.propose(), Propose)
    assert blind.vote(signed().value).choice is Choice.ABSTAIN
    assert not isinstance(RiskOfficer(AgentId("officer")).propose(), Propose)


def trade(at_ms: int, price: str, quantity: str = "1") -> TradePrint:
    return TradePrint(
        BINANCE,
        TradeId(str(at_ms)),
        Decimal(price),
        Decimal(quantity),
        Side.BUY,
        at_ms,
        at_ms,
        at_ms,
        at_ms,
        Feed.REPLAY,
    )


def test_candles_close_by_venue_time_fill_silence_and_ignore_the_past() -> None:
    builder = CandleBuilder(BINANCE, interval_ms=1_000, kept=4)
    for at_ms, price in ((1_100, "10"), (1_200, "12"), (1_900, "11")):
        builder.add(trade(at_ms, price))
    assert builder.closed == ()
    builder.add(trade(4_000, "20"))
    builder.add(trade(1_000, "99"))
    first, *silent = builder.closed
    assert (first.open, first.high, first.low, first.close, first.volume, first.trades) == (10, 12, 10, 11, 3, 3)
    assert [(c.open_ts_ms, c.close, c.trades, c.closed) for c in silent] == [(2_000, 11, 0, True), (3_000, 11, 0, True)]
    builder.advance(5_000)
    assert builder.closed[-1].close == 20
    builder.advance(900_000)
    assert len(builder.closed) == 4, "a long silence makes no more candles than are kept"


class Shelf:
    """A market view with one book."""

    def book(self, instrument_id: InstrumentId) -> Any:
        return build_book(now_ms=CLOCK.now_ms()) if instrument_id == BINANCE else None

    def instrument(self, instrument_id: InstrumentId) -> Any:
        return replace(build_instrument(), id=BINANCE) if instrument_id == BINANCE else None


class Teller:
    """Execution, as far as the account goes."""

    async def call(self, tool: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        assert (tool, arguments) == ("execution_get_account", {"account": ACCOUNT})
        return {
            "balances": [
                {"currency": "USDT", "total": "40000", "locked": "1000"},
                {"currency": "BTC", "total": "0.5", "locked": "0.1"},
            ]
        }


async def test_a_snapshot_needs_the_account_and_relabels_the_instrument() -> None:
    book = SnapshotBook(
        Shelf(),
        Teller(),
        account_id=ACCOUNT,
        venue=PAPER,
        market_venue=Venue("binance"),
        symbols=(BTC_USDT,),
        quote=Currency("USDT"),
        candle_ms=1_000,
        clock=CLOCK,
    )
    assert book.snapshot(BTC_USDT) is None
    await book.read_account()
    snapshot = book.snapshot(BTC_USDT)
    assert snapshot is not None
    assert snapshot.instrument.id == InstrumentId(PAPER, BTC_USDT)
    # What a stop at the venue locks is held all the same; money that an order locks cannot be spent again.
    assert (snapshot.held, snapshot.cash) == (Decimal("0.5"), Decimal(39_000))
    assert snapshot.equity == Decimal("70000.25")
    assert book.snapshot(Symbol("ETH/USDT")) is None


def test_balances_without_a_lock_are_free() -> None:
    assert balances_of({"balances": [{"currency": "USDT", "total": "5"}]})[Currency("USDT")].free == 5
    assert balances_of({}) == {}


def test_refusals_are_recorded_within_a_budget_for_each_agent() -> None:
    clock = ManualClock()
    budget = RefusalBudget(clock, per_s=2, burst=3)
    assert [budget.take(AgentId("a")) for _ in range(4)] == [True, True, True, False]
    assert budget.take(AgentId("b"))
    clock.advance(500)
    assert [budget.take(AgentId("a")) for _ in range(2)] == [True, False]
