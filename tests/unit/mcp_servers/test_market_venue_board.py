"""Which venue answers: failing over, coming back, and what is told about it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.health import FeedHealth
from mcp_servers.market.prices import Prices
from mcp_servers.market.quality import QualityJudge
from mcp_servers.market.settings import QualitySettings
from mcp_servers.market.sources.base import SourceState, SourceStatus
from mcp_servers.market.venues import SETTLE_MS, Choice, VenueBoard
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed
from trading.domain.errors import InvalidValue, StaleData, Unavailable, UnknownInstrument
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side
from trading.domain.money import ONE
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock

BTC = Symbol("BTC/USDT")
BINANCE, KRAKEN, COINBASE = Venue("binance"), Venue("kraken"), Venue("coinbase")
VENUES = (BINANCE, KRAKEN, COINBASE)
RUNNING = FeedHealth(SourceStatus(SourceState.RUNNING))


class Desk:
    """Three venues whose books the test makes good or bad, and the board that chooses between them."""

    def __init__(self, venues: tuple[Venue, ...] = VENUES) -> None:
        self.clock = ManualClock()
        self.feed = LocalMarketFeed(
            self.clock, feed=Feed.LIVE, instruments=[build_instrument(venue=venue) for venue in venues]
        )
        self.told: list[tuple[str, Mapping[str, object]]] = []
        self.healths: dict[Venue, FeedHealth] = {}
        self.bad: set[Venue] = set(venues)
        judge = QualityJudge(QualitySettings(), self.clock, 3_000)
        self.board = VenueBoard(
            self.feed,
            venues,
            (BTC,),
            judge=judge,
            clock=self.clock,
            health=lambda venue: self.healths.get(venue, RUNNING),
            events=self,
        )
        self.prices = Prices(
            self.feed, CandleStore(), self.clock, venue=BINANCE, aliases=(Venue("paper"),), max_age_ms=3_000,
            source=lambda: self.healths.get(BINANCE, RUNNING).status, judge=judge, board=self.board,
        )  # fmt: skip

    def publish(self, event_type: str, payload: Mapping[str, object]) -> None:
        self.told.append((event_type, payload))

    def good(self, *venues: Venue) -> None:
        for venue in venues:
            self.bad.discard(venue)
            now = self.clock.now_ms()
            self.feed.publish_book(BookUpdate(InstrumentId(venue, BTC), [["99", "5"]], [["101", "5"]], now, now))

    def empty(self, *venues: Venue, state: str = "resync") -> None:
        for venue in venues:
            self.bad.add(venue)
            self.feed.publish_book(BookUpdate(InstrumentId(venue, BTC), [], [], 0, self.clock.now_ms(), state))

    def pass_ms(self, ms: int, *, step_ms: int = 200) -> None:
        """Let time pass while every good venue goes on publishing and the board looks at them."""
        for _ in range(ms // step_ms):
            self.clock.advance(step_ms)
            self.good(*(venue for venue in VENUES if venue not in self.bad))
            self.board.refresh()

    def events(self, event_type: str) -> list[Mapping[str, object]]:
        return [payload for name, payload in self.told if name == event_type]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.good(*VENUES)
    desk.board.refresh()
    return desk


def test_the_desks_own_venue_answers_while_its_book_is_usable(desk: Desk) -> None:
    assert desk.board.choose(BTC) == Choice(BINANCE)
    assert desk.board.failovers() == {}
    assert desk.told == []


def test_the_first_other_venue_with_a_usable_book_stands_in_and_says_why(desk: Desk) -> None:
    desk.empty(BINANCE, KRAKEN)
    choice = desk.board.choose(BTC)
    assert (choice.venue, choice.failed_over_from) == (COINBASE, BINANCE)
    assert choice.reason == "binance: empty, gapped"
    assert desk.events("market.venue_failed_over") == [
        {"symbol": BTC, "before": BINANCE, "venue": COINBASE, "reason": "empty, gapped"}
    ]
    desk.good(KRAKEN)
    assert desk.board.choose(BTC).venue == COINBASE  # a better one is no reason to change again


def test_a_stale_book_is_failed_over_without_any_news_from_the_venue(desk: Desk) -> None:
    desk.clock.advance(3_001)
    desk.good(KRAKEN)
    choice = desk.board.choose(BTC)
    assert (choice.venue, choice.reason) == (KRAKEN, "binance: stale (3001 ms old)")


def test_the_own_venue_answers_again_only_after_it_was_good_for_some_seconds(desk: Desk) -> None:
    desk.empty(BINANCE)
    desk.board.refresh()
    desk.good(BINANCE)
    desk.pass_ms(SETTLE_MS - 400)
    assert desk.board.choose(BTC).reason == "binance: usable again, but not yet for 5 s"
    desk.empty(BINANCE)  # one bad book, and the time counts from the beginning
    desk.board.refresh()
    desk.good(BINANCE)
    desk.pass_ms(SETTLE_MS - 400)
    assert desk.board.choose(BTC).venue == KRAKEN
    desk.pass_ms(800)
    assert desk.board.choose(BTC) == Choice(BINANCE)
    changes = [(event["before"], event["venue"]) for event in desk.events("market.venue_failed_over")]
    assert changes == [(BINANCE, KRAKEN), (KRAKEN, BINANCE)]


def test_the_own_venue_answers_at_once_when_the_one_that_stands_in_fails(desk: Desk) -> None:
    desk.empty(BINANCE)
    assert desk.board.choose(BTC).venue == KRAKEN
    desk.good(BINANCE)
    desk.empty(KRAKEN, COINBASE)
    assert desk.board.choose(BTC) == Choice(BINANCE)


def test_others_stand_in_until_the_own_venue_has_started_and_not_longer() -> None:
    desk = Desk()
    desk.good(KRAKEN)
    assert desk.board.choose(BTC).reason == "binance: no book yet"
    desk.good(BINANCE)
    assert desk.board.choose(BTC) == Choice(BINANCE)


def test_with_no_usable_book_anywhere_the_own_venue_explains_the_refusal(desk: Desk) -> None:
    desk.empty(*VENUES, state="gap")
    assert desk.board.choose(BTC) == Choice(BINANCE)
    with pytest.raises(StaleData, match=r"BTC/USDT on binance cannot be used: empty, gapped") as refused:
        desk.prices.estimate(BTC, Side.BUY, ONE, "base")
    assert refused.value.code == "STALE_DATA"


def test_a_lost_venue_is_told_once_and_restored_when_it_stayed_good(desk: Desk) -> None:
    desk.healths[BINANCE] = FeedHealth(SourceStatus(SourceState.RECONNECTING, "NO_NETWORK", "cannot be reached"))
    desk.empty(BINANCE)
    desk.pass_ms(2_000)
    assert desk.events("market.feed_lost") == [
        {"venue": BINANCE, "code": "NO_NETWORK", "reason": "BTC/USDT: empty, gapped (NO_NETWORK)"}
    ]
    desk.healths.clear()
    for _ in range(3):  # it flutters
        desk.good(BINANCE)
        desk.pass_ms(1_000)
        desk.empty(BINANCE)
        desk.pass_ms(200)
    assert len(desk.told) == 2
    desk.good(BINANCE)
    desk.pass_ms(SETTLE_MS + 400)
    assert [event["venue"] for event in desk.events("market.feed_restored")] == [BINANCE]
    assert len(desk.events("market.feed_lost")) == 1


def test_a_venue_that_never_came_up_is_told_with_its_code() -> None:
    desk = Desk()
    desk.good(BINANCE)
    desk.healths[KRAKEN] = FeedHealth(SourceStatus(SourceState.ENDED, "CONFIGURATION_ERROR", "no such market"))
    desk.pass_ms(400)
    assert [(e["venue"], e["code"]) for e in desk.events("market.feed_lost")] == [(KRAKEN, "CONFIGURATION_ERROR")]


def test_made_up_symbols_leave_nothing_behind(desk: Desk) -> None:
    for number in range(1_000):
        assert desk.board.choose(Symbol(f"X{number}/USDT")) == Choice(BINANCE)
    with pytest.raises(UnknownInstrument):
        desk.prices.tick("BTC/USD")
    assert len(desk.board._lanes) == len(VENUES)


def test_a_named_venue_is_taken_as_it_is_and_an_unknown_one_is_refused(desk: Desk) -> None:
    desk.empty(KRAKEN)
    tick = desk.prices.tick(BTC, "kraken")
    assert (tick.instrument.venue, tick.stale, tick.failed_over_from) == (KRAKEN, True, None)
    assert [mark.value for mark in tick.marks] == ["empty", "gapped"]
    with pytest.raises(StaleData, match="on kraken"):
        desk.prices.usable(BTC, "kraken")
    with pytest.raises(InvalidValue) as unknown:
        desk.prices.book(BTC, "okx")
    assert (unknown.value.code, unknown.value.allowed) == ("UNKNOWN_VENUE", ("binance", "coinbase", "kraken", "paper"))


def test_prices_name_the_venue_they_are_really_from(desk: Desk) -> None:
    desk.empty(BINANCE)
    tick, found = desk.prices.tick(BTC), desk.prices.estimate(BTC, Side.BUY, ONE, "base")
    assert (tick.instrument.venue, tick.failed_over_from, tick.stale) == (KRAKEN, BINANCE, False)
    assert (found.book.instrument_id.venue, found.failed_over_from) == (KRAKEN, BINANCE)
    assert desk.prices.book(BTC).instrument_id.venue == KRAKEN
    # The paper venue fills on the desk's own venue: its name never means another one.
    assert desk.prices.priced(BTC, "paper").instrument.venue == BINANCE
    with pytest.raises(StaleData):
        desk.prices.estimate(BTC, Side.BUY, ONE, "base", "paper")


def test_a_venue_without_rules_yet_says_what_is_wrong_with_it() -> None:
    desk = Desk((BINANCE,))
    desk.good(BINANCE)
    desk.board = VenueBoard(
        desk.feed, VENUES, (BTC,), judge=QualityJudge(QualitySettings(), desk.clock, 3_000), clock=desk.clock,
        health=lambda _: FeedHealth(SourceStatus(SourceState.RECONNECTING, "NO_NETWORK", "kraken cannot be reached")),
    )  # fmt: skip
    desk.prices.board = desk.board
    with pytest.raises(Unavailable, match="kraken cannot be reached") as refused:
        desk.prices.book(BTC, "kraken")
    assert refused.value.code == "NO_NETWORK"


def test_health_adds_up_what_is_known_of_a_venue(desk: Desk) -> None:
    desk.healths[KRAKEN] = FeedHealth(
        SourceStatus(SourceState.RUNNING), heard_ts_ms=desk.clock.now_ms() - 7, reconnects=2, gaps=3
    )
    health = desk.board.health(KRAKEN)
    assert (health.age_ms, health.reconnects, health.gaps, health.usable) == (7, 2, 3, (BTC,))
    desk.clock.advance(50)
    assert desk.board.health(COINBASE).age_ms == 50  # a follower only knows what arrived from the streams


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(VENUES), st.booleans(), st.sampled_from((0, 200, 1_000, SETTLE_MS))),
        max_size=30,
    )
)
def test_whatever_happens_the_choice_is_the_best_that_can_be_used(steps: list[tuple[Venue, bool, int]]) -> None:
    desk = Desk()
    good_since: dict[Venue, int] = {}
    before, has_answered = BINANCE, False
    for venue, becomes_good, wait_ms in steps:
        (desk.good if becomes_good else desk.empty)(venue)
        for name in VENUES:
            if name in desk.bad:
                good_since.pop(name, None)
            else:
                good_since.setdefault(name, desk.clock.now_ms())
        desk.board.refresh()
        desk.pass_ms(wait_ms)
        choice, now = desk.board.choose(BTC), desk.clock.now_ms()
        settled = now - good_since.get(BINANCE, now) >= SETTLE_MS
        assert (choice.failed_over_from is None) == (choice.venue == BINANCE) == (choice.reason == "")
        assert choice.venue in good_since or not good_since
        assert choice.venue == BINANCE or not settled
        if before != BINANCE and before in good_since and choice.venue != before:
            assert choice.venue == BINANCE  # never from one good stand-in to another
            assert settled or not has_answered
        has_answered = has_answered or (choice.venue == BINANCE and BINANCE in good_since)
        before = choice.venue
