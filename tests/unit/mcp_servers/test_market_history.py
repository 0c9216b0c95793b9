"""Past candles out of memory, archive and venue, and never a look ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_servers.market.backfill import Backfill
from mcp_servers.market.candle_archive import CandleArchive
from mcp_servers.market.candles import MINUTE_MS, SECOND_MS, TIMEFRAMES, CandleStore
from mcp_servers.market.history import BARS_MAX, CandleSeries, History
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.merging import merge_bars
from mcp_servers.market.spans import Watch
from tests.market_candle_support import DAY, HOUR, MINUTES, START, Venue, at, bar, opens, trade
from tests.market_support import BTC
from trading.adapters.sql.candles import CandleTables, StoredCandle, StoredSpan, open_candles_in_memory
from trading.domain.errors import InvalidValue, LedgerUnavailable, Retryable, Unavailable
from trading.domain.market_data import Candle, Feed
from trading.testing.clock import ManualClock

WEEK = 7 * DAY


class Room:
    """A live market's history: a process that may be started again over what it has kept."""

    def __init__(self, tables: CandleTables, venue: Venue | None = None) -> None:
        self.tables = tables
        self.venue = venue or Venue()
        self.clock = ManualClock(at(0))
        self.start()

    def start(self) -> None:
        self.candles = CandleStore()
        self.watch = Watch(self.candles)
        self.archive = CandleArchive(self.tables, self.candles, self.watch, self.clock, feed=Feed.LIVE)
        self.backfill = Backfill(self.venue, self.tables, self.clock, wait_s=5)
        self.history = History(
            self.candles,
            time=MarketTime(self.candles, clock=self.clock),
            watch=self.watch,
            feed=Feed.LIVE,
            shelves=(self.tables,),
            backfill=self.backfill,
        )

    async def stop(self) -> None:
        self.archive.collect(last=True)
        await self.archive.write()

    def now(self, minute: float) -> None:
        """Move the clock to so many minutes after START."""
        self.clock.advance(at(minute) - self.clock.now_ms())

    def trades(self, *minutes: float, price: float = 100) -> None:
        for minute in minutes:
            trade(self.candles, minute, price + int(minute))
        self.now(max(minutes))

    async def ask(self, timeframe: str = "1m", lookback: int = HOUR, **options: int) -> CandleSeries:
        return await self.history.candles(BTC, timeframe, lookback_ms=lookback, **options)


@pytest.fixture
async def room() -> AsyncGenerator[Room]:
    async with open_candles_in_memory() as tables:
        made = Room(tables)
        yield made
        await made.backfill.close()


def replayed(candles: CandleStore, tables: Sequence[CandleTables] = ()) -> History:
    return History(candles, time=MarketTime(candles, clock=None), feed=Feed.REPLAY, shelves=tables)


# ---- where candles come from


async def test_memory_is_enough_for_what_this_process_saw(room: Room) -> None:
    room.trades(0, 1, 2.5, 3.25)
    found = await room.ask(lookback=3 * MINUTE_MS)
    assert opens(found.candles) == [0, 1, 2, 3]
    assert [candle.closed for candle in found.candles] == [True, True, True, False]
    assert (found.sources, found.gaps, found.first_complete, found.last_closed) == (("trades",), 0, True, False)
    assert room.venue.asked == []


async def test_after_a_restart_the_archive_and_the_venue_complete_what_was_cut(room: Room) -> None:
    room.trades(0, 1, 2.1)
    await room.stop()
    room.start()
    room.trades(4.5, 5, 6.5)
    room.venue.bars = [bar(minute, 500 + minute) for minute in range(-60, 5)]
    found = await room.ask(lookback=6 * MINUTE_MS)
    assert opens(found.candles) == [0, 1, 2, 3, 4, 5, 6]
    assert [candle.open for candle in found.candles] == [100, 101, 502, 503, 504, 105, 106]
    assert found.sources == ("trades", "archive", "venue")
    assert (found.gaps, found.first_complete, found.notes) == (0, True, ())
    asked = len(room.venue.asked)
    assert (await room.ask(lookback=6 * MINUTE_MS)).candles == found.candles
    assert len(room.venue.asked) == asked


async def test_a_venue_that_is_down_leaves_what_is_known_with_a_note(room: Room) -> None:
    room.trades(0, 1, 2.1)
    await room.stop()
    room.start()
    room.trades(4.5, 5, 6.5)
    room.venue.error = lambda: Retryable("down", code="VENUE_DOWN")
    found = await room.ask(lookback=6 * MINUTE_MS)
    assert opens(found.candles) == [0, 1, 2, 4, 5, 6]
    assert found.complete == (True, True, False, False, True, True)
    assert found.gaps == 3  # the second minute, of which a part is known, the third and the fourth
    assert found.notes == ("binance did not give older candles (VENUE_DOWN)",)


async def test_an_archive_that_does_not_answer_is_a_note(room: Room) -> None:
    room.trades(2, 3, 4.5)

    async def spans(*_: object) -> list[object]:
        raise LedgerUnavailable("gone")

    room.tables.spans = spans  # type: ignore[method-assign,assignment]
    found = await room.history.candles(BTC, "1m", lookback_ms=4 * MINUTE_MS)
    assert opens(found.candles) == [2, 3, 4]
    assert "the archive does not answer" in found.notes


async def test_without_anything_the_answer_is_empty_and_says_why(room: Room) -> None:
    room.now(100)
    room.venue.error = lambda: Retryable("down", code="NO_NETWORK")
    found = await room.ask()
    assert (found.candles, found.first_complete, found.last_closed, found.gaps) == ((), False, False, 0)
    assert found.notes == ("binance did not give older candles (NO_NETWORK)",)


async def test_a_replay_that_has_not_begun_gives_nothing_and_refuses_a_moment() -> None:
    history = replayed(CandleStore())
    assert (await history.candles(BTC, "1m", lookback_ms=HOUR)).notes == ("the market has not given anything yet",)
    with pytest.raises(Unavailable):
        await history.candles(BTC, "1m", lookback_ms=HOUR, as_of_ms=1)


async def test_a_feed_that_died_is_completed_by_the_venue(room: Room) -> None:
    room.trades(0, 1, 2.5)
    room.venue.bars = [bar(minute, 700 + minute) for minute in range(10)]
    room.now(9.5)
    found = await room.ask(lookback=9 * MINUTE_MS)
    assert [candle.open for candle in found.candles] == [100, 101, *range(702, 709)]
    assert all(candle.closed for candle in found.candles)


async def test_a_quiet_market_is_not_taken_for_a_dead_one(room: Room) -> None:
    room.trades(0, 1.95)
    room.now(2.05)
    found = await room.ask(lookback=2 * MINUTE_MS)
    assert opens(found.candles) == [0, 1]
    assert (found.gaps, room.venue.asked) == (0, [])
    assert not found.last_closed  # a trade of that minute may be on its way


async def test_minutes_without_a_trade_are_absent_and_known(room: Room) -> None:
    room.trades(0, 5.5, 9.1)
    found = await room.ask(lookback=9 * MINUTE_MS)
    assert opens(found.candles) == [0, 5, 9]
    assert (found.gaps, room.venue.asked) == (7, [])


# ---- timeframes


async def test_longer_timeframes_are_merged_from_what_is_kept(room: Room) -> None:
    for minute in range(200):
        room.trades(minute)
        room.archive.collect()
    await room.archive.write()
    want = merge_bars(room.candles.base_bars(BTC, MINUTE_MS, 0, at(1_000)), 15 * MINUTE_MS, now_ms=at(199))
    assert (await room.ask("15m", 4 * HOUR)).candles[-len(want) :] == tuple(want)
    hours = await room.ask("1h", 4 * HOUR)
    assert opens(hours.candles) == [0, 60, 120, 180]
    assert [candle.volume for candle in hours.candles] == [60, 60, 60, 20]
    assert (hours.sources, hours.last_closed) == (("trades", "archive"), False)
    day = await room.ask("1d", DAY)
    (only,) = day.candles
    assert (only.open, only.close, only.volume, only.closed) == (100, 299, 200, False)


async def test_long_history_is_asked_for_in_long_bars(room: Room) -> None:
    room.now(30 * 24 * 60 + 90.1)
    room.venue.bars = [bar(day * 24 * 60, 900 + day, interval=DAY) for day in range(30)]
    room.venue.bars += [bar(30 * 24 * 60, 950, interval=HOUR)]
    room.venue.bars += [bar(30 * 24 * 60 + minute, 960 + minute) for minute in range(90)]
    found = await room.ask("1d", 30 * DAY)
    assert [candle.open for candle in found.candles] == [*range(900, 930), 950]
    assert found.candles[-1].close == 960 + 89
    assert {name for name, *_ in room.venue.asked} == {"1d", "1h", "1m"}
    assert [candle.closed for candle in found.candles] == [True] * 30 + [False]
    assert found.gaps == 0


async def test_an_hour_that_was_cut_is_put_together_from_its_minutes() -> None:
    async with open_candles_in_memory() as tables:
        series = MINUTES._replace(feed=Feed.REPLAY)
        minutes = [StoredCandle(bar(minute), complete=True, source="trades") for minute in range(70)]
        del minutes[30:35]
        spans = [StoredSpan(at(0), at(30), "trades", 1), StoredSpan(at(35), at(70), "trades", 1)]
        await tables.write(series, minutes, spans, now_ms=1)
        candles = CandleStore()
        trade(candles, 130)
        found = await replayed(candles, (tables,)).candles(BTC, "1h", lookback_ms=3 * HOUR)
        assert [(candle.volume, candle.closed) for candle in found.candles] == [(55, True), (10, True), (1, False)]
        assert found.complete == (False, False, False)
        assert found.sources == ("trades", "archive")


async def test_the_archive_of_a_recording_is_not_the_live_one(room: Room) -> None:
    room.trades(0, 1, 2.5)
    await room.stop()
    candles = CandleStore()
    trade(candles, 5)
    found = await replayed(candles, (room.tables,)).candles(BTC, "1m", lookback_ms=HOUR)
    assert opens(found.candles) == [5]


async def test_seconds_come_from_memory_alone(room: Room) -> None:
    room.trades(0, 0.5, 1.01)
    found = await room.ask("15s", HOUR)
    assert [(candle.open_ts_ms - START) // SECOND_MS for candle in found.candles] == [0, 30, 60]
    assert (found.sources, room.venue.asked) == (("trades",), [])


async def test_a_market_of_finished_bars_has_no_shorter_ones() -> None:
    candles = CandleStore()
    for hour in range(6):
        candles.add_bar(bar(hour * 60, 100 + hour, interval=HOUR))
    history = replayed(candles)
    found = await history.candles(BTC, "4h", lookback_ms=DAY)
    assert [(candle.open, candle.close, candle.closed) for candle in found.candles] == [
        (100, 103, True),
        (104, 105, False),
    ]
    assert found.first_complete
    past = await history.candles(BTC, "4h", lookback_ms=DAY, as_of_ms=at(119))
    assert [(candle.close, candle.closed) for candle in past.candles] == [(100, False)]
    with pytest.raises(InvalidValue) as refused:
        await history.candles(BTC, "15m", lookback_ms=DAY)
    assert (refused.value.code, refused.value.allowed) == ("INVALID_TIMEFRAME", ("1h", "4h", "1d"))


async def test_an_unknown_timeframe_is_refused_with_the_known_ones(room: Room) -> None:
    with pytest.raises(InvalidValue) as refused:
        await room.ask("7m")
    assert (refused.value.code, refused.value.allowed) == ("INVALID_TIMEFRAME", tuple(TIMEFRAMES))


# ---- bounds


async def test_the_newest_bars_are_given_and_that_there_are_more(room: Room) -> None:
    room.trades(*range(50))
    found = await room.ask(lookback=40 * MINUTE_MS, limit=10)
    assert (opens(found.candles), found.truncated) == (list(range(40, 50)), True)
    assert not (await room.ask(lookback=9 * MINUTE_MS, limit=10)).truncated


async def test_an_absurd_question_stays_bounded(room: Room) -> None:
    room.now(2_000_000.1)
    room.venue.bars = [bar(minute) for minute in range(1_998_900, 2_000_000)]
    found = await room.ask(lookback=3_660 * DAY, limit=10**9)
    assert (len(found.candles), found.truncated) == (BARS_MAX, True)
    assert len(room.venue.asked) <= 8


async def test_many_questions_at_once_ask_the_venue_once(room: Room) -> None:
    room.now(200.1)
    room.venue.bars = [bar(minute) for minute in range(200)]
    found = await asyncio.gather(*(room.ask(lookback=HOUR) for _ in range(30)))
    assert len({item.candles for item in found}) == 1
    assert room.venue.asked == [("1m", 140, 200)]


# ---- never ahead


async def test_a_moment_that_has_not_come_is_refused(room: Room) -> None:
    room.trades(0, 1)
    with pytest.raises(InvalidValue) as refused:
        await room.ask(as_of_ms=room.clock.now_ms() + 1)
    assert refused.value.code == "LOOK_AHEAD"


async def test_a_bar_that_closes_after_the_moment_is_rebuilt_as_it_stood_then(room: Room) -> None:
    for minute in range(200):
        room.trades(minute, minute + 0.25, minute + 0.75)
    found = await room.ask("1h", 2 * HOUR, as_of_ms=at(130.5))
    last = found.candles[-1]
    assert (opens([last]), last.closed, last.trades) == ([120], False, 3 * 10 + 2)
    assert (last.open, last.close) == (220, 230)
    assert (await room.ask("1m", HOUR, as_of_ms=at(130.5))).candles[-1].trades == 2
    assert (await room.ask("1m", HOUR, as_of_ms=at(130))).candles[-1].open_ts_ms == at(129)


async def test_what_is_only_known_in_minutes_is_cut_at_the_minute(room: Room) -> None:
    room.now(600)
    room.venue.bars = [bar(minute, 100 + minute) for minute in range(600)]
    found = await room.ask("5m", HOUR, as_of_ms=at(303.5))
    last = found.candles[-1]
    assert (opens([last]), last.close, last.closed, found.complete[-1]) == ([300], 402, False, False)


MOMENTS = st.lists(st.integers(0, 400_000), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moments=MOMENTS,
    cuts=st.lists(st.integers(0, 400_000), max_size=3),
    offset=st.integers(0, 400_000),
    timeframe=st.sampled_from(["1s", "5s", "15s", "1m", "5m"]),
)
def test_no_answer_holds_anything_of_after_its_moment(
    moments: list[int], cuts: list[int], offset: int, timeframe: str
) -> None:
    asyncio.run(_check_no_look_ahead(sorted(moments), sorted(cuts), offset, timeframe))


async def _check_no_look_ahead(moments: list[int], cuts: list[int], offset: int, timeframe: str) -> None:
    """Play trades, with restarts, then ask for a moment and compare with what the trades up to it make."""
    async with open_candles_in_memory() as tables:
        room = Room(tables)
        for number, moment in enumerate(moments):
            if cuts and moment >= cuts[0]:
                cuts = [cut for cut in cuts if cut > moment]
                await room.stop()
                room.start()
            room.candles.add(BTC, START + moment, Decimal(number + 1), Decimal(1))
            room.clock.advance(max(0, START + moment - room.clock.now_ms()))
            room.archive.collect()
        as_of = START + min(offset, moments[-1])
        found = await room.ask(timeframe, HOUR, as_of_ms=as_of)
        seen = [number + 1 for number, moment in enumerate(moments) if START + moment <= as_of]
        for candle, complete in zip(found.candles, found.complete, strict=True):
            assert candle.open_ts_ms <= as_of
            assert candle.closed <= (candle.open_ts_ms + candle.interval_ms <= as_of)
            assert max(candle.open, candle.high, candle.low, candle.close) <= max(seen, default=0)
            if complete and candle.closed:
                within = [
                    Decimal(number + 1)
                    for number, moment in enumerate(moments)
                    if candle.open_ts_ms <= START + moment < candle.open_ts_ms + candle.interval_ms
                ]
                assert (candle.open, candle.high, candle.low, candle.close, candle.trades) == (
                    within[0], max(within), min(within), within[-1], len(within),
                )  # fmt: skip
        await room.backfill.close()


async def test_a_venue_cannot_smuggle_in_the_future(room: Room) -> None:
    room.now(100.1)
    room.venue.bars = [bar(minute) for minute in range(200)]
    found = await room.ask(lookback=HOUR)
    assert opens(found.candles)[-1] == 99
    room.venue.candles = _always(bar(150))  # type: ignore[method-assign,assignment]
    assert opens((await room.ask(lookback=2 * HOUR)).candles)[-1] == 99


def _always(candle: Candle) -> Callable[..., Awaitable[list[Candle]]]:
    async def candles(*_: object) -> list[Candle]:
        return [candle]

    return candles


# ---- merging


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), min_size=1, max_size=60))
def test_merging_in_two_steps_is_merging_in_one(parts: list[tuple[int, int]]) -> None:
    bars = [replace(bar(minute, price), volume=Decimal(price)) for minute, price in sorted(dict(parts).items())]
    once = merge_bars(bars, HOUR, now_ms=at(300))
    twice = merge_bars(merge_bars(bars, 5 * MINUTE_MS, now_ms=at(300)), HOUR, now_ms=at(300))
    assert once == twice
    assert sum(candle.volume for candle in once) == sum(item.volume for item in bars)
    assert sum(candle.trades for candle in once) == len(bars)
