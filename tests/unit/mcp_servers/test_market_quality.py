"""What may be believed of a book: every mark, and that no real move of the market is refused for ever."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.quality import (
    FORGET_MS,
    FUTURE_HOLD_MS,
    HOLD_MS,
    REFUSE_MS,
    Judged,
    Mark,
    QualityJudge,
    median,
)
from mcp_servers.market.settings import QualitySettings
from mcp_servers.market.sources.replay import ReplaySource
from tests.market_support import part
from trading.adapters.market_wire import BookUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, OrderBook
from trading.testing.builders import build_book
from trading.testing.clock import ManualClock

START = 1_750_000_000_000
SETTINGS = QualitySettings()  # 200 bps, 12 deviations, 2 s of skew
MAX_AGE_MS = 3_000


def judge_of(clock: ManualClock | None = None) -> QualityJudge:
    return QualityJudge(SETTINGS, clock or ManualClock(START), MAX_AGE_MS)


def a_book(
    mid: float | str, at_ms: int, *, venue: str = "binance", symbol: str = "BTC/USDT", lag_ms: int = 20
) -> BookUpdate:
    """Return a book 0.2 wide around ``mid``, received ``at_ms`` after the start and ``lag_ms`` after it was sent."""
    middle = Decimal(str(mid))
    instrument = InstrumentId(Venue(venue), Symbol(symbol))
    bid, ask = str(middle - Decimal("0.1")), str(middle + Decimal("0.1"))
    return BookUpdate(instrument, [[bid, "1"]], [[ask, "1"]], START + at_ms - lag_ms, START + at_ms)


def quiet(judge: QualityJudge, *venues: str, mid: float = 1_000, seconds: int = 30) -> int:
    """Let a market be quiet on some venues; return the time reached."""
    for second in range(seconds):
        for index, venue in enumerate(venues):
            assert judge.observe(a_book(mid + second % 2 * 0.1, second * 1_000 + index, venue=venue)) is None
    return seconds * 1_000


def test_a_lone_venue_is_refused_when_it_jumps_and_believed_when_it_comes_back() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    assert judge.observe(a_book(900, now)) is Mark.OUTLIER
    assert judge.observe(a_book(1_000, now + 50)) is None
    assert judge.observe(a_book(1_100, now + 100)) is Mark.OUTLIER


def test_a_move_below_the_limit_is_never_an_outlier() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    assert judge.observe(a_book(1_000 * 1.0195, now)) is None


def test_a_lone_venue_is_accepted_at_its_new_level_after_it_has_held() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    verdicts = [judge.observe(a_book(900 + step % 3, now + step * 100)) for step in range(HOLD_MS // 100 + 5)]
    assert verdicts[: HOLD_MS // 100] == [Mark.OUTLIER] * (HOLD_MS // 100)
    assert verdicts[HOLD_MS // 100 :] == [None] * 5


def test_another_jump_starts_the_wait_anew_but_it_has_an_end() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    accepted = [
        step
        for step in range(0, REFUSE_MS + 2_000, 1_000)
        if judge.observe(a_book(700 if step % 2_000 else 800, now + step)) is None
    ]
    assert accepted
    assert accepted[0] == REFUSE_MS


def test_what_volatility_explains_is_no_outlier() -> None:
    calm, wild = judge_of(), judge_of()
    for second in range(120):
        assert calm.observe(a_book(1_000, second * 1_000)) is None
        assert wild.observe(a_book(1_000 * (1.015 if second % 2 else 1), second * 1_000)) is None
    assert calm.observe(a_book(1_100, 120_000)) is Mark.OUTLIER
    assert wild.observe(a_book(1_100, 120_000)) is None


def test_after_a_long_silence_a_venue_starts_anew() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    assert judge.observe(a_book(100, now + FORGET_MS)) is None


def test_a_recording_that_starts_again_is_no_jump() -> None:
    judge = judge_of()
    quiet(judge, "binance", mid=1_000)
    assert judge.observe(a_book(500, 0)) is None


def test_a_jump_that_other_venues_do_not_show_is_refused_for_as_long_as_they_do_not() -> None:
    judge = judge_of()
    now = quiet(judge, "binance", "kraken")
    for step in range(0, 2 * REFUSE_MS, 1_000):
        assert judge.observe(a_book(1_000, now + step, venue="kraken")) is None
        assert judge.observe(a_book(900, now + step + 1)) is Mark.OUTLIER


def test_when_the_other_venue_falls_silent_the_wait_begins_and_not_before() -> None:
    judge = judge_of()
    now = quiet(judge, "binance", "kraken")
    for step in range(0, REFUSE_MS + 1_000, 1_000):
        judge.observe(a_book(1_000, now + step, venue="kraken"))
        assert judge.observe(a_book(900, now + step + 1)) is Mark.OUTLIER
    silent_from = now + REFUSE_MS
    verdicts = {t: judge.observe(a_book(900, silent_from + t)) for t in range(1_000, 12_000, 1_000)}
    first = min(t for t, verdict in verdicts.items() if verdict is None)
    assert HOLD_MS < first <= MAX_AGE_MS + HOLD_MS + 1_000


@pytest.mark.parametrize("venues", [("binance", "kraken"), ("binance", "kraken", "okx"), ("a", "b", "c", "d", "e")])
def test_a_move_of_the_whole_market_is_accepted_as_soon_as_others_follow(venues: tuple[str, ...]) -> None:
    judge = judge_of()
    now = quiet(judge, *venues)
    verdicts = [
        [judge.observe(a_book(900, now + step * 10 + i, venue=v)) for i, v in enumerate(venues)] for step in range(2)
    ]
    assert verdicts[0][0] is Mark.OUTLIER
    assert verdicts[0][-1] is None
    assert verdicts[1] == [None] * len(venues)


def test_a_venue_that_drifts_away_is_refused_when_two_others_disagree() -> None:
    judge = judge_of()
    now = quiet(judge, "binance", "kraken", "okx")
    verdicts: list[Mark | None] = []
    for step in range(30):
        for venue in ("kraken", "okx"):
            assert judge.observe(a_book(1_000, now + step * 1_000, venue=venue)) is None
        verdicts.append(judge.observe(a_book(1_000 - step, now + step * 1_000 + 1)))
    assert verdicts[0] is None
    assert verdicts[19] is None  # 190 bps
    assert verdicts[-1] is Mark.OUTLIER


def test_a_venue_is_not_blamed_for_the_jump_of_its_only_neighbour() -> None:
    judge = judge_of()
    now = quiet(judge, "binance", "kraken")
    assert judge.observe(a_book(500, now, venue="kraken")) is Mark.OUTLIER
    assert judge.observe(a_book(1_000, now + 1)) is None


def test_a_venue_that_comes_late_with_another_price_is_refused() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    assert judge.observe(a_book(900, now - 500, venue="kraken")) is Mark.OUTLIER


def test_dollars_are_not_compared_with_tethers() -> None:
    judge = judge_of()
    now = quiet(judge, "binance")
    assert judge.observe(a_book(900, now, venue="kraken", symbol="BTC/USD")) is None
    assert judge.reference_mid("BTC/USD", excluding="kraken") is None


def test_the_reference_is_the_exact_median_of_the_other_fresh_and_accepted_mids() -> None:
    judge = judge_of()
    for index, (venue, mid) in enumerate({"a": 1_000, "b": 1_001, "c": 1_003, "d": 1_002, "old": 990}.items()):
        judge.observe(a_book(mid, 0 if venue == "old" else 4_000 + index, venue=venue))
    assert judge.observe(a_book(500, 4_100, venue="d")) is Mark.OUTLIER
    assert judge.reference_mid("BTC/USDT", excluding="c") == Decimal("1000.5")
    assert judge.reference_mid("BTC/USDT") == 1_001
    assert judge.reference_mid("ETH/USDT") is None


async def test_nothing_in_the_recorded_market_is_an_outlier() -> None:
    judge, verdicts = judge_of(), list[Mark | None]()

    class Sink:
        def publish_instrument(self, instrument: object) -> None: ...

        def publish_trade(self, update: object) -> None: ...

        def publish_book(self, update: BookUpdate) -> None:
            verdicts.append(judge.observe(update))

    clock = ManualClock()
    await MarketPipeline(ReplaySource(part(6_000), clock, speed=0), (Sink(),), CandleStore(), clock).run()
    assert len(verdicts) > 1_000
    assert set(verdicts) == {None}


def test_books_without_two_sides_are_no_measurement() -> None:
    judge = judge_of()
    instrument = InstrumentId(Venue("binance"), Symbol("BTC/USDT"))
    for bids, asks in (([], []), ([["9", "1"]], []), ([], [["9", "1"]]), ([["9", "1"]], [["9", "1"]])):
        assert judge.observe(BookUpdate(instrument, bids, asks, START, START)) is None
    assert judge.reference_mid("BTC/USDT") is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 1e6), st.integers(0, 20_000)), max_size=60))
@settings(deadline=None)
def test_the_market_is_believed_again_whatever_came_before(history: list[tuple[str, float, int]]) -> None:
    judge, now = judge_of(), 0
    for venue, mid, wait_ms in history:
        now += wait_ms
        judge.observe(a_book(f"{mid:.6f}" if mid > 1 else "1", now, venue=venue))
    verdicts: dict[str, Mark | None] = {}
    for step in range(0, MAX_AGE_MS + REFUSE_MS + 2_000, 1_000):
        for venue in "abc":
            verdicts[venue] = judge.observe(a_book(500, now + step, venue=venue))
    assert set(verdicts.values()) == {None}


def live(clock: ManualClock, *, lag_ms: int = 20, age_ms: int = 0) -> OrderBook:
    """Return a live book published ``age_ms`` ago and sent ``lag_ms`` before that on the venue's clock."""
    at_ms = clock.now_ms() - age_ms
    return replace(build_book(now_ms=at_ms, feed=Feed.LIVE), venue_ts_ms=at_ms - lag_ms)


@given(st.integers(-5_000, 5_000), st.lists(st.integers(0, 400), min_size=12, max_size=80))
@settings(deadline=None)
def test_skew_is_the_least_delay_and_marks_a_venue_beyond_the_limit(offset_ms: int, queued: list[int]) -> None:
    clock = ManualClock(START)
    judge = judge_of(clock)
    for index, delay in enumerate([0, *queued]):
        judge.observe(a_book(1_000, index * 1_000, lag_ms=offset_ms + delay))
    clock.advance(len(queued) * 1_000)
    skew = judge.skew_ms("binance")
    assert skew is not None
    # A clock that is ahead by just the limit is believed from the first frame that is not beyond it.
    spread = max(queued) if offset_ms < -SETTINGS.max_skew_ms else min(queued[-20:])
    assert offset_ms <= skew <= offset_ms + spread
    judged = judge.judge(live(clock, lag_ms=offset_ms + 400), state="ok")
    assert judged.skew_ms == skew
    assert (Mark.CLOCK_SKEW in judged.marks) == (abs(skew) > SETTINGS.max_skew_ms)
    assert judged.usable == (not judged.marks)


def test_skew_follows_a_clock_that_was_set() -> None:
    judge = judge_of()
    for second in range(300):
        judge.observe(a_book(1_000, second * 1_000, lag_ms=20 if second < 150 else 1_500))
    assert judge.skew_ms("binance") == 1_500


def test_one_frame_from_the_future_does_not_spoil_the_skew() -> None:
    clock = ManualClock(START)
    judge = judge_of(clock)
    judge.observe(a_book(1_000, 0))
    judge.observe(a_book(1_000, 10, lag_ms=-60_000))
    assert judge.skew_ms("binance") == 20
    assert judge.judge(live(clock, lag_ms=-60_000), state="ok").marks == (Mark.FROM_FUTURE,)
    assert judge.judge(live(clock), state="ok").marks == ()


def test_a_venue_whose_clock_stays_ahead_is_measured_in_the_end() -> None:
    clock = ManualClock(START)
    judge = judge_of(clock)
    for ms in range(0, FUTURE_HOLD_MS, 500):
        judge.observe(a_book(1_000, ms, lag_ms=-5_000))
    assert judge.skew_ms("binance") is None
    assert judge.judge(live(clock, lag_ms=-5_000), state="ok").marks == (Mark.FROM_FUTURE,)
    judge.observe(a_book(1_000, FUTURE_HOLD_MS, lag_ms=-5_000))
    assert judge.skew_ms("binance") == -5_000
    assert judge.judge(live(clock, lag_ms=-5_000), state="ok").marks == (Mark.CLOCK_SKEW,)


def test_a_book_published_in_the_future_is_marked() -> None:
    clock = ManualClock(START)
    assert judge_of(clock).judge(build_book(now_ms=START + 2_001), state=None).marks == (Mark.FROM_FUTURE,)


@pytest.mark.parametrize(("age_ms", "marks"), [(MAX_AGE_MS, ()), (MAX_AGE_MS + 1, (Mark.STALE,))])
def test_age_counts_from_publication(age_ms: int, marks: tuple[Mark, ...]) -> None:
    clock = ManualClock(START)
    for feed in Feed:
        judged = judge_of(clock).judge(build_book(now_ms=START - age_ms, feed=feed), state="ok")
        assert (judged.marks, judged.age_ms) == (marks, age_ms)


def test_a_live_book_also_ages_by_the_clock_of_its_venue() -> None:
    clock = ManualClock(START)
    judge = judge_of(clock)
    judge.observe(a_book(1_000, 0, lag_ms=1_000))
    fresh = judge.judge(live(clock, lag_ms=1_000 + MAX_AGE_MS), state="ok")
    assert (fresh.marks, fresh.age_ms) == ((), MAX_AGE_MS)
    assert judge.judge(live(clock, lag_ms=1_001 + MAX_AGE_MS), state="ok").marks == (Mark.STALE,)


def test_without_a_measurement_the_tolerated_skew_is_allowed_for() -> None:
    clock = ManualClock(START)
    limit = MAX_AGE_MS + SETTINGS.max_skew_ms
    assert judge_of(clock).judge(live(clock, lag_ms=limit), state=None).marks == ()
    assert judge_of(clock).judge(live(clock, lag_ms=limit + 1), state=None).marks == (Mark.STALE,)


def test_a_recording_may_be_as_old_as_it_is() -> None:
    clock = ManualClock(START)
    judge = judge_of(clock)
    judge.observe(a_book(1_000, 0, lag_ms=900_000))
    book = replace(build_book(now_ms=START), venue_ts_ms=1, received_ts_ms=2)
    assert judge.judge(book, state="ok") == Judged(book, (), 0, 900_000)


@pytest.mark.parametrize(
    ("book", "state", "marks"),
    [
        (build_book([], []), "ok", (Mark.EMPTY,)),
        (build_book([("1", "1")], []), "ok", (Mark.ONE_SIDED,)),
        (build_book([], [("1", "1")]), "ok", (Mark.ONE_SIDED,)),
        (build_book([("2", "1")], [("1", "1")]), "ok", (Mark.CROSSED,)),
        (build_book([("1", "1")], [("1", "1")]), "ok", (Mark.CROSSED,)),
        (build_book([], []), "crossed", (Mark.EMPTY, Mark.CROSSED)),
        (build_book([], []), "gap", (Mark.EMPTY, Mark.GAPPED)),
        (build_book([], []), "resync", (Mark.EMPTY, Mark.GAPPED)),
        (build_book([], []), "outlier", (Mark.EMPTY, Mark.OUTLIER)),
        (build_book(), "gap", (Mark.GAPPED,)),
        (build_book(), "ok", ()),
        (build_book(), None, ()),
        (build_book([], []), "ended", (Mark.EMPTY,)),
    ],
)
def test_every_defect_has_its_mark(book: OrderBook, state: str | None, marks: tuple[Mark, ...]) -> None:
    judged = judge_of().judge(book, state=state)
    assert judged.marks == marks
    assert judged.usable is (not marks)


def test_the_book_that_stands_for_an_outlier_says_so_without_being_told() -> None:
    judge = judge_of()
    now = quiet(judge, "binance", mid=60_000)
    judge.observe(a_book(50_000, now))
    assert judge.judge(build_book([], []), state=None).marks == (Mark.EMPTY, Mark.OUTLIER)
    judge.observe(a_book(60_000, now + 1))
    assert judge.judge(build_book([], []), state=None).marks == (Mark.EMPTY,)


@given(st.lists(st.decimals(1, 1_000, places=2), min_size=1, max_size=9))
def test_the_median_has_as_many_values_below_as_above(values: list[Decimal]) -> None:
    middle = median(values)
    assert middle is not None
    assert sum(value < middle for value in values) <= len(values) // 2
    assert sum(value > middle for value in values) <= len(values) // 2


def test_nothing_has_no_median() -> None:
    assert median([]) is None
