"""Recorded candles as a market: nothing before its time, nothing invented, and files that are none."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.candles import TIMEFRAMES, CandleStore
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.prices import Prices
from mcp_servers.market.sources.base import Bar, Rules, SourceState
from mcp_servers.market.sources.ohlcv import OhlcvSource
from mcp_servers.market.sources.ohlcv_files import OhlcvRecording, is_ohlcv, load_ohlcv
from mcp_servers.market.tools.prices import ticker_row
from tests.market_history_support import ETH, HISTORY, HOUR_MS, candles, hourly
from tests.market_support import BTC
from trading.adapters.market_stream import LocalMarketFeed
from trading.domain.errors import ConfigurationError, InvalidValue, StaleData
from trading.domain.identifiers import Venue
from trading.domain.market_data import Candle, Feed, Side
from trading.testing.clock import ManualClock


class Play:
    """One run of recorded candles under a manual clock."""

    def __init__(
        self,
        recordings: Sequence[OhlcvRecording] | None = None,
        *,
        speed: float = 0,
        loop: bool = False,
        resume: bytes | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.feed = LocalMarketFeed(self.clock, feed=Feed.REPLAY)
        self.candles = CandleStore()
        self.positions: list[bytes] = []
        self.source = OhlcvSource(
            recordings or hourly(), self.clock, speed=speed, loop=loop, resume=resume, sleep=self.sleep
        )
        self.pipeline = MarketPipeline(
            self.source, (self.feed,), self.candles, self.clock, on_position=self.positions.append
        )

    async def sleep(self, seconds: float) -> None:
        """Move the clock, which knows whole milliseconds only; longer sleeps end a little early, as sleeps do."""
        self.clock.advance(max(1, math.ceil(seconds * 1_000) - 2))

    async def until(self, updates: int) -> list[Bar]:
        """Carry so many updates, then stop where a killed process would; return the bars."""
        given_, series = [], self.source.updates()
        for _ in range(updates):
            update = await anext(series)
            self.pipeline.handle(update)
            if isinstance(update, Bar):
                given_.append(update)
        return given_


async def test_every_bar_is_given_once_and_the_gaps_of_the_recording_stay_gaps() -> None:
    play = Play()
    await play.pipeline.run()
    assert play.pipeline.counters["bars"] == 1_200
    assert play.pipeline.counters["malformed"] == 0
    for index, instrument in enumerate((BTC, ETH)):
        assert tuple(play.candles.candles(instrument, "1h", 10**12)) == candles(index)
    steps = {later.open_ts_ms - earlier.open_ts_ms for earlier, later in zip(candles(0), candles(0)[1:], strict=False)}
    assert steps == {HOUR_MS, 2 * HOUR_MS, 5 * HOUR_MS}
    assert (play.source.status().state, play.source.status().code) == (SourceState.ENDED, "RECORDING_ENDED")


@pytest.mark.parametrize("speed", [1, 3_600, 10_000])
async def test_a_bar_is_given_only_when_the_virtual_clock_has_passed_its_end(speed: float) -> None:
    play = Play((hourly()[0],), speed=speed)
    series = play.source.updates()
    assert isinstance(await anext(series), Rules)
    began, origin = play.clock.monotonic_ns(), candles(0)[0].open_ts_ms
    async for update in series:
        assert isinstance(update, Bar)
        virtual_ms = (play.clock.monotonic_ns() - began) / 1_000_000 * speed
        due_ms = update.candle.open_ts_ms - origin
        assert due_ms <= virtual_ms + 1e-3
        assert virtual_ms - due_ms <= 2 * speed  # not late either: a pause is never added to the next one


async def test_no_trade_and_no_book_is_invented() -> None:
    play = Play()
    await play.until(300)
    prices = Prices(
        play.feed, play.candles, play.clock, venue=Venue("binance"), max_age_ms=3_000, source=play.source.status
    )
    with pytest.raises(StaleData) as refused:
        prices.book("BTC/USDT")
    assert refused.value.code == "NO_BOOK"
    assert play.feed.last_trade(BTC) is None
    assert play.feed.status().counters["books"] == 0
    newest = play.candles.candles(BTC, "1h", HOUR_MS)[-1]
    tick = prices.tick("BTC/USDT")
    assert (tick.book, tick.last, tick.stale, tick.bar_close) == (None, None, True, newest.close)
    row = ticker_row(prices, tick)
    assert (row.last, row.last_age_ms, row.bid, row.mid, row.stale) == (newest.close, None, None, None, True)
    for side in Side:
        with pytest.raises(StaleData) as refused:
            prices.estimate("BTC/USDT", side, Decimal(1), "base")
        assert refused.value.code == "NO_BOOK"
    assert play.candles.volume(BTC, 24 * HOUR_MS) == sum(
        candle.volume for candle in play.candles.candles(BTC, "1h", 24 * HOUR_MS)
    )


async def test_longer_timeframes_are_put_together_and_shorter_ones_do_not_exist() -> None:
    play = Play()
    await play.pipeline.run()
    day = 1_607_212_800_000  # 6 December 2020
    whole = next(candle for candle in play.candles.candles(BTC, "1d", 10**12) if candle.open_ts_ms == day)
    inside = [candle for candle in candles(0) if day <= candle.open_ts_ms < day + 24 * HOUR_MS]
    assert len(inside) == 24
    assert (whole.open, whole.close) == (inside[0].open, inside[-1].close)
    assert (whole.high, whole.low) == (max(c.high for c in inside), min(c.low for c in inside))
    assert whole.volume == sum(candle.volume for candle in inside)
    assert whole.closed
    for timeframe in ("1s", "5s", "15s", "1m", "5m", "15m"):
        assert play.candles.candles(BTC, timeframe, 10**12) == []


@settings(max_examples=40, deadline=None)
@given(updates=st.integers(2, 700), timeframe=st.sampled_from(list(TIMEFRAMES)), lookback=st.integers(1, 10**10))
async def test_nothing_after_the_present_is_in_the_store(updates: int, timeframe: str, lookback: int) -> None:
    play = Play()
    bars = await play.until(updates)
    time = MarketTime(play.candles, clock=None)
    for instrument in {bar.candle.instrument_id for bar in bars}:
        now = time.now_ms(instrument)
        assert now == max(bar.candle.open_ts_ms + HOUR_MS for bar in bars if bar.candle.instrument_id == instrument)
        for candle in play.candles.candles(instrument, timeframe, lookback):
            assert candle.open_ts_ms < now
            assert candle.closed == (candle.open_ts_ms + candle.interval_ms <= now)
        assert time.check_as_of(now, instrument) == now
        with pytest.raises(InvalidValue):
            time.check_as_of(now + 1, instrument)


async def test_several_instruments_come_in_the_order_of_time() -> None:
    bars = await Play().until(1_201)
    ends = [bar.candle.open_ts_ms for bar in bars]
    assert ends == sorted(ends)
    assert {bar.candle.instrument_id for bar in bars} == {BTC, ETH}


async def test_a_killed_run_goes_on_where_it_was_with_the_same_candles() -> None:
    whole, killed = Play(), Play()
    await whole.pipeline.run()
    await killed.until(700)
    resumed = Play(resume=killed.positions[-1], speed=10_000)
    assert resumed.source.status().counters["bar"] == 699
    await resumed.pipeline.run()
    assert resumed.candles.candles(ETH, "1h", 10**12) == whole.candles.candles(ETH, "1h", 10**12)
    hours = (candles(0)[-1].open_ts_ms - candles(0)[349].open_ts_ms) // HOUR_MS
    assert resumed.clock.monotonic_ns() / 1e9 == pytest.approx(hours * 0.36, abs=0.4)  # the first part takes no time
    assert resumed.positions[-1] == whole.positions[-1]


@pytest.mark.parametrize(
    "position", [b"", b"x 0 5", b"\xff", b"BTC-USDT.csv.gz:600+ETH-USDT.csv.gz:600 0 1201", b"a b", b"-1 -1 -1"]
)
def test_a_position_that_makes_no_sense_starts_from_the_beginning(position: bytes) -> None:
    counters = Play(resume=position).source.status().counters
    assert (counters["pass"], counters["bar"]) == (0, 0)


async def test_looping_starts_a_new_pass_in_which_time_goes_on() -> None:
    play = Play(loop=True)
    bars = await play.until(1 + 1_200 + 50)
    opens = [bar.candle.open_ts_ms for bar in bars if bar.candle.instrument_id == BTC]
    assert opens == sorted(set(opens))
    assert all(opened % HOUR_MS == 0 for opened in opens)
    assert play.source.status().counters["pass"] == 1
    assert play.pipeline.counters["malformed"] == 0
    resumed = Play(loop=True, resume=play.positions[-1])
    assert (await resumed.until(2))[0].candle.open_ts_ms > candles(0)[-1].open_ts_ms
    assert Play(resume=play.source.fresh_start()).source.status().counters == {
        "pass": 2, "bar": 0, "of": 1_200, "garbage": 0
    }  # fmt: skip


GARBAGE = (
    "",
    "x",
    "1607108400000,1,2",
    "1607108400000,NaN,2,1,1,1",
    "1607108400000,1,Infinity,1,1,1",
    "1607108400000,5,4,1,2,1",  # opened above its high
    "1607108400000,1,4,2,3,1",  # opened below its low
    "1607108400000,0,4,0,3,1",
    "1607108400000,1,4,1,3,-1",
    "1607108400001,1,4,1,3,1",  # between two bars
    "99999999999999,1,4,1,3,1",  # would put everything after it into the past
    "-3600000,1,4,1,3,1",
    "1607108400000,1e400,4,1,3,1",
    "2020-99-99,1,4,1,3,1",
    "\x00\x00",
)


async def test_garbage_and_repeated_lines_are_counted_and_change_nothing() -> None:
    clean = hourly()[0]
    lines = (*clean.lines[:100], *GARBAGE, clean.lines[99], clean.lines[50], *clean.lines[100:])
    play = Play((replace(clean, lines=lines),))
    await play.pipeline.run()
    assert tuple(play.candles.candles(BTC, "1h", 10**12)) == candles(0)
    assert play.source.status().counters["garbage"] == len(GARBAGE) + 2


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(path: Path, symbol: str = "BTC/USDT") -> OhlcvRecording:
    (found,) = load_ohlcv(path, symbols=(symbol,), venue="binance")
    return found


def test_columns_may_stand_in_any_order_and_times_may_be_text(tmp_path: Path) -> None:
    text = "\ufeffVolume,Close,timestamp,Open,Low,High,extra\n5,2,2021-12-31 23:01:00.000000,1,0.5,3,x\n"
    text += "6,2,2021-12-31T23:02:00+00:00,2,1,3,x\n"
    found = load(write(tmp_path / "minutes.csv", text))
    assert found.interval_ms == 60_000
    bars = [bar for bar in found.bars() if bar is not None]
    assert [bar.open_ts_ms for bar in bars] == [1_640_991_660_000, 1_640_991_720_000]
    assert (bars[0].open, bars[0].high, bars[0].low, bars[0].close, bars[0].volume) == (
        Decimal(1), Decimal(3), Decimal("0.5"), Decimal(2), Decimal(5)
    )  # fmt: skip


HEADER = "ts,open,high,low,close,volume\n"
ROW = "{},1,1,1,1,1\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        HEADER,
        HEADER + ROW.format(0),  # one bar has no length
        HEADER + ROW.format(0) + ROW.format(7_000),  # seven seconds is no timeframe
        HEADER + ROW.format("x") * 5,
        HEADER + "0,1,1,1,1\n3600000,1,1,1,1\n",  # no sound line
        "ts,open,high,low,close\n" + ROW.format(0) + ROW.format(60_000),
        "when,open,high,low,close,volume\n" + ROW.format(0) + ROW.format(60_000),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_file_that_is_no_table_of_candles_is_refused(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load(write(tmp_path / name, text))


def test_broken_files_and_unknown_instruments_are_refused(tmp_path: Path) -> None:
    good = gzip.compress((HEADER + ROW.format(0) + ROW.format(60_000)).encode())
    for number, content in enumerate((good[:-9], b"no gzip", good[:12] + b"\xff\xff\xff" + good[15:], b"\x1f\x8b")):
        path = tmp_path / f"{number}.csv.gz"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError):
            load(path)
    fine = tmp_path / "fine.csv.gz"
    fine.write_bytes(good)
    assert load(fine).interval_ms == 60_000
    with pytest.raises(ConfigurationError):
        load(fine, "DOGE/USDT")
    with pytest.raises(ConfigurationError):
        load(tmp_path / "missing.csv")
    with pytest.raises(ConfigurationError):
        load_ohlcv(fine, symbols=("BTC/USDT", "ETH/USDT"), venue="binance")
    with pytest.raises(ConfigurationError):
        load_ohlcv(tmp_path, symbols=("BTC/USDT",), venue="binance")
    (tmp_path / "instruments.json").write_text("[{}]")
    with pytest.raises(ConfigurationError):
        load(fine)


def test_only_candles_are_taken_for_candles() -> None:
    assert is_ohlcv(HISTORY)
    assert is_ohlcv(HISTORY / "BTC-USDT.csv.gz")
    assert is_ohlcv(Path("x.csv"))
    assert not is_ohlcv(Path("rawfeed_x.jsonl.gz"))
    assert not is_ohlcv(None)


def test_the_store_takes_only_bars_that_continue_the_series() -> None:
    store, first = CandleStore(), candles(0)[0]
    store.add_bar(first)
    wrong: list[Candle] = [
        first,
        replace(first, open_ts_ms=first.open_ts_ms - HOUR_MS),
        replace(first, open_ts_ms=first.open_ts_ms + HOUR_MS, closed=False),
        replace(first, open_ts_ms=first.open_ts_ms + HOUR_MS, interval_ms=60_000),
        replace(first, open_ts_ms=first.open_ts_ms + HOUR_MS + 1),
    ]
    for bar in wrong:
        with pytest.raises(InvalidValue):
            store.add_bar(bar)
    assert store.candles(BTC, "1h", 10**12) == [first]
    assert store.now_ms(BTC) == first.open_ts_ms + HOUR_MS
