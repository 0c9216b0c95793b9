"""Filling gaps from a venue: what is asked, what is remembered, what happens when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.backfill import EMPTY_BELIEVED_MS, Backfill, is_sound
from mcp_servers.market.candles import MINUTE_MS
from mcp_servers.market.spans import Span, aligned, covers, join, without
from mcp_servers.tool_errors import RateLimited
from tests.bus_support import eventually
from tests.market_candle_support import HOUR, MINUTES, Venue, at, bar, opens
from trading.adapters.sql.candles import CandleTables, StoredCandle, StoredSpan, open_candles_in_memory
from trading.domain.errors import Retryable
from trading.domain.identifiers import Symbol
from trading.domain.market_data import Candle
from trading.testing.clock import ManualClock


class Desk:
    """A backfill over a venue that the test makes up, at minute 1,000."""

    def __init__(self, tables: CandleTables) -> None:
        self.tables = tables
        self.clock = ManualClock(at(1_000) + 10_000)
        self.venue = Venue([bar(minute, 100 + minute) for minute in range(1_000)])
        self.filler = Backfill(self.venue, tables, self.clock, page_bars=100, pages=3, wait_s=5)

    async def fill(self, *spans: tuple[int, int]) -> str:
        return await self.filler.fill(MINUTES, [(at(start), at(end)) for start, end in spans])

    async def kept(self) -> list[int]:
        return opens([item.candle for item in await self.tables.read(MINUTES, at(0), at(2_000))])

    async def spans(self, source: str) -> list[tuple[int, int]]:
        return [
            (int(span.from_ms - at(0)) // MINUTE_MS, int(span.until_ms - at(0)) // MINUTE_MS)
            for span in await self.tables.spans(MINUTES)
            if span.source == source
        ]


@pytest.fixture
async def desk() -> AsyncGenerator[Desk]:
    async with open_candles_in_memory() as tables:
        made = Desk(tables)
        yield made
        await made.filler.close()


async def test_what_is_missing_is_fetched_in_pages_newest_first_and_kept(desk: Desk) -> None:
    assert await desk.fill((100, 350)) == ""
    assert desk.venue.asked == [("1m", 250, 350), ("1m", 150, 250), ("1m", 100, 150)]
    assert await desk.kept() == list(range(100, 350))
    assert await desk.spans("venue") == [(100, 350)]
    assert all(item.source == "venue" and item.complete for item in await desk.tables.read(MINUTES, at(0), at(999)))


async def test_what_is_known_is_not_asked_for_again(desk: Desk) -> None:
    await desk.fill((100, 200))
    assert await desk.fill((100, 200)) == ""
    assert len(desk.venue.asked) == 1
    assert await desk.fill((90, 210)) == ""
    assert desk.venue.asked[1:] == [("1m", 200, 210), ("1m", 90, 100)]


async def test_more_than_a_few_pages_take_more_than_one_question(desk: Desk) -> None:
    assert await desk.fill((0, 500)) == "older candles are not all here yet; ask again"
    assert await desk.kept() == list(range(200, 500))
    assert await desk.fill((0, 500)) == ""
    assert await desk.kept() == list(range(500))


async def test_an_outage_of_the_exchange_is_remembered_for_a_day(desk: Desk) -> None:
    desk.venue.bars = [item for item in desk.venue.bars if not at(150) <= item.open_ts_ms < at(250)]
    assert await desk.fill((100, 300)) == ""
    assert await desk.kept() == [*range(100, 150), *range(250, 300)]
    assert await desk.spans("empty") == [(150, 250)]
    asked = len(desk.venue.asked)
    assert await desk.fill((100, 300)) == ""
    assert len(desk.venue.asked) == asked
    desk.clock.advance(EMPTY_BELIEVED_MS)
    desk.venue.bars.append(bar(200))
    assert await desk.fill((100, 300)) == ""
    assert 200 in await desk.kept()


async def test_quiet_minutes_within_an_answer_are_no_reason_to_ask_again(desk: Desk) -> None:
    desk.venue.bars = [item for item in desk.venue.bars if (item.open_ts_ms // MINUTE_MS) % 3 == 0]
    assert await desk.fill((100, 200)) == ""
    assert len(desk.venue.asked) == 1
    assert await desk.spans("venue") == [(100, 200)]


async def test_a_venue_that_gives_fewer_than_asked_is_asked_for_the_rest(desk: Desk) -> None:
    desk.venue.per_call = 40
    assert await desk.fill((100, 200)) == ""
    assert desk.venue.asked == [("1m", 100, 200), ("1m", 140, 200), ("1m", 180, 200)]
    assert await desk.kept() == list(range(100, 200))


async def test_the_newest_minutes_are_not_remembered_as_empty(desk: Desk) -> None:
    late = desk.venue.bars.pop()
    assert await desk.fill((900, 1_000)) == ""
    assert (await desk.spans("venue"), await desk.spans("empty")) == ([(900, 999)], [])
    desk.venue.bars.append(late)
    assert await desk.fill((900, 1_000)) == ""
    assert len(desk.venue.asked) == 1  # asked for just now
    desk.clock.advance(16_000)
    assert await desk.fill((900, 1_000)) == ""
    assert (await desk.kept())[-1] == 999


async def test_an_open_bar_is_neither_asked_for_nor_kept(desk: Desk) -> None:
    desk.venue.bars.append(bar(1_000))
    assert await desk.fill((990, 1_010)) == ""
    assert desk.venue.asked == [("1m", 990, 1_000)]
    assert (await desk.kept())[-1] == 999


async def test_a_clock_that_runs_ahead_does_not_make_an_open_bar_closed(desk: Desk) -> None:
    desk.clock.advance(60_000)
    desk.venue.bars.append(bar(1_000))  # ten seconds old at the venue, and not over
    desk.filler = Backfill(desk.venue, desk.tables, desk.clock, wait_s=5, skew_ms=lambda _: 60_000)
    assert await desk.fill((998, 1_001)) == ""
    assert await desk.kept() == [998, 999]
    desk.clock.advance(60_000)
    desk.venue.bars[-1] = bar(1_000, 555)
    assert await desk.fill((998, 1_001)) == ""
    (kept,) = await desk.tables.read(MINUTES, at(1_000), at(1_001))
    assert kept.candle.close == 555


@pytest.mark.parametrize(
    "wrong",
    [
        replace(bar(150), high=Decimal(1)),
        replace(bar(150), low=Decimal(1_000)),
        replace(bar(150), open=Decimal("NaN")),
        replace(bar(150), volume=Decimal(-1)),
        replace(bar(150), close=Decimal("Infinity")),
        replace(bar(150), low=Decimal(0), open=Decimal(0)),
        replace(bar(150), instrument_id=MINUTES.instrument_id._replace(symbol=Symbol("ETH/USDT"))),
    ],
)
async def test_a_bar_that_makes_no_sense_is_dropped_and_its_time_stays_unknown(desk: Desk, wrong: Candle) -> None:
    desk.venue.bars[150] = wrong
    assert await desk.fill((100, 200)) == ""
    assert await desk.kept() == [*range(100, 150), *range(151, 200)]
    assert desk.filler.counters["garbage"] == 1
    assert await desk.spans("venue") == [(100, 150), (151, 200)]


async def test_bars_out_of_place_are_passed_over(desk: Desk) -> None:
    odd = replace(bar(150), open_ts_ms=at(150) + 1)
    outside = bar(5)

    async def candles(*_: object) -> list[object]:
        return [odd, outside, bar(150), bar(150, 7)]

    desk.venue.candles = candles  # type: ignore[method-assign,assignment]
    await desk.fill((149, 152))
    assert await desk.kept() == [150]


async def test_differences_to_what_was_seen_here_are_counted_and_do_not_win(desk: Desk) -> None:
    own = [StoredCandle(bar(minute, 100 + minute), complete=True, source="trades") for minute in (150, 151)]
    own.append(StoredCandle(bar(152, 7), complete=True, source="trades"))
    spans = [StoredSpan(at(150), at(153), "trades", 1)]
    await desk.tables.write(MINUTES, own, spans, now_ms=1)
    assert await desk.fill((100, 150), (153, 180)) == ""
    assert len(desk.venue.asked) == 1  # one page over what is known costs less than two
    assert desk.filler.counters["differences"] == 1
    assert await desk.tables.read(MINUTES, at(150), at(153)) == own


async def test_a_cut_candle_is_repaired(desk: Desk) -> None:
    cut = StoredCandle(bar(150, 1, trades=50), complete=False, source="trades")
    await desk.tables.write(MINUTES, [cut], [], now_ms=1)
    assert await desk.fill((150, 151)) == ""
    (found,) = await desk.tables.read(MINUTES, at(150), at(151))
    assert (found.complete, found.source, found.candle.open) == (True, "venue", 250)


async def test_who_asks_at_the_same_time_waits_for_one_fetch(desk: Desk) -> None:
    desk.venue.gate.clear()
    questions = [asyncio.create_task(desk.fill((100, 200))) for _ in range(20)]
    await eventually(lambda: len(desk.venue.asked) == 1)
    desk.venue.gate.set()
    assert await asyncio.gather(*questions) == [""] * 20
    assert len(desk.venue.asked) == 1


async def test_nobody_waits_for_ever_and_the_fetch_goes_on(desk: Desk) -> None:
    desk.filler = Backfill(desk.venue, desk.tables, desk.clock, wait_s=0.02)
    desk.venue.gate.clear()
    assert await desk.fill((100, 200)) == "history is still being fetched; ask again"
    assert await desk.fill((100, 200)) == "history is still being fetched; ask again"
    desk.venue.gate.set()
    await eventually(lambda: desk.filler.counters["bars"] == 100)
    async with asyncio.timeout(5):
        while await desk.kept() != list(range(100, 200)):
            await asyncio.sleep(0)
    assert len(desk.venue.asked) == 1


async def test_a_caller_that_gives_up_does_not_stop_the_fetch(desk: Desk) -> None:
    desk.venue.gate.clear()
    question = asyncio.create_task(desk.fill((100, 200)))
    await eventually(lambda: len(desk.venue.asked) == 1)
    question.cancel()
    await asyncio.wait({question})
    desk.venue.gate.set()
    assert await desk.fill((100, 200)) == ""
    assert len(desk.venue.asked) == 1


async def test_a_venue_that_fails_is_left_alone_for_longer_each_time(desk: Desk) -> None:
    desk.venue.error = lambda: Retryable("down", code="VENUE_DOWN")
    assert await desk.fill((100, 200)) == "binance did not give older candles (VENUE_DOWN)"
    assert await desk.fill((100, 200)) == "binance failed to give older candles a moment ago; ask again later"
    assert len(desk.venue.asked) == 1
    desk.clock.advance(2_000)
    await desk.fill((100, 200))
    desk.clock.advance(2_000)
    await desk.fill((100, 200))
    assert len(desk.venue.asked) == 2  # the second pause is four seconds
    desk.clock.advance(2_000)
    desk.venue.error = None
    assert await desk.fill((100, 200)) == ""
    assert desk.filler.counters["failures"] == 2


async def test_a_rate_limit_says_how_long(desk: Desk) -> None:
    desk.venue.error = lambda: RateLimited(60_000)
    assert await desk.fill((100, 200)) == "binance did not give older candles (RATE_LIMITED)"
    desk.clock.advance(59_999)
    await desk.fill((100, 200))
    assert len(desk.venue.asked) == 1
    desk.clock.advance(1)
    await desk.fill((100, 200))
    assert len(desk.venue.asked) == 2


async def test_a_defect_in_a_fetch_is_a_note_and_no_failure(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.venue.error = lambda: ZeroDivisionError("a defect")
    assert await desk.fill((100, 200)) == "binance did not give older candles (INTERNAL)"
    assert "a defect" in caplog.text


async def test_hours_are_asked_for_as_hours(desk: Desk) -> None:
    desk.venue.bars = [bar(hour * 60, interval=HOUR) for hour in range(16)]
    series = MINUTES._replace(interval_ms=HOUR)
    assert await desk.filler.fill(series, [(at(0), at(20 * 60))]) == ""
    assert desk.venue.asked == [("1h", 0, 960)]
    assert len(await desk.tables.read(series, at(0), at(2_000))) == 16


async def test_a_stop_ends_what_is_being_fetched(desk: Desk) -> None:
    desk.venue.gate.clear()
    question = asyncio.create_task(desk.fill((100, 200)))
    await eventually(lambda: len(desk.venue.asked) == 1)
    await desk.filler.close()
    assert await question == "history is still being fetched; ask again"


def test_a_sound_bar_is_sound() -> None:
    assert is_sound(bar(1), MINUTE_MS)
    assert not is_sound(bar(1), HOUR)


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


@settings(max_examples=150)
@given(SPANS, st.integers(0, 40), st.integers(0, 40), st.integers(1, 7))
def test_spans_are_sets_of_moments(spans: list[Span], start: int, end: int, interval: int) -> None:
    moments = {moment for first, last in spans for moment in range(first, last)}
    joined = join(spans)
    assert {moment for first, last in joined for moment in range(first, last)} == moments
    assert all(first[1] < second[0] for first, second in pairwise(joined))
    missing = without((start, end), joined)
    assert {m for first, last in missing for m in range(first, last)} == set(range(start, end)) - moments
    if start < end:
        assert covers(joined, start, end) == (set(range(start, end)) <= moments)
    wholes = {m for first, last in aligned(joined, interval) for m in range(first, last)}
    assert wholes == {
        m
        for whole in range(0, 40, interval)
        if set(range(whole, whole + interval)) <= moments
        for m in range(whole, whole + interval)
    }
