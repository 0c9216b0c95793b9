"""What leaves the pipeline when a book cannot be believed, and what is told about it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.order_book import BookState
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.quality import Mark, QualityJudge
from mcp_servers.market.settings import QualitySettings
from mcp_servers.market.sources.base import Difference, Restarted, Rules, Snapshot
from tests.market_venue_support import FakeSource, Told
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed, TradeUpdate
from trading.domain.instruments import Instrument
from trading.domain.market_data import Feed, Side
from trading.testing.clock import ManualClock


class Sink:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.books: list[BookUpdate] = []

    def publish_instrument(self, instrument: Instrument) -> None:
        """Take the rules."""

    def publish_book(self, update: BookUpdate) -> None:
        """Keep a book."""
        self.books.append(update)

    def publish_trade(self, update: TradeUpdate) -> None:
        """Take a trade."""


class Bench:
    """A pipeline under the test's hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.source = FakeSource("binance", self.clock)
        self.feed, self.sink, self.told = LocalMarketFeed(self.clock, feed=Feed.LIVE), Sink(), Told()
        self.judge = QualityJudge(QualitySettings(), self.clock, 3_000)
        self.candles = CandleStore()
        self.pipeline = MarketPipeline(
            self.source, (self.feed, self.sink), self.candles, self.clock, judge=self.judge, events=self.told
        )

    def book(self, mid: int, *, last_id: int = 0) -> None:
        self.clock.advance(100)
        now = self.clock.now_ms()
        levels = [[str(mid - 1), "5"]], [[str(mid + 1), "5"]]
        self.pipeline.handle(Snapshot(self.source.id, last_id, *levels, now, now))


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("unit", [1_000, 0.001], ids=["microseconds", "seconds"])
def test_times_of_another_unit_do_not_move_the_market(bench: Bench, unit: float) -> None:
    now, candles = bench.clock.now_ms(), bench.candles
    wrong = int(now * unit)
    bench.pipeline.handle(TradeUpdate(bench.source.id, "1", "100", "9", Side.BUY, wrong, now))
    bench.pipeline.handle(Snapshot(bench.source.id, 0, [["99", "1"]], [["101", "1"]], wrong, now))
    bench.pipeline.handle(TradeUpdate(bench.source.id, "2", "100", "1", Side.BUY, now, now))
    assert (candles.since_ms(bench.source.id), candles.now_ms(bench.source.id)) == (now, now)
    assert candles.volume(bench.source.id, 86_400_000) == 1
    assert bench.pipeline.counters["malformed"] == 1
    assert bench.feed.last_trade(bench.source.id).trade_id == "2"  # pyright: ignore[reportOptionalMemberAccess]


def test_a_trade_told_late_may_open_a_candle_but_not_close_it(bench: Bench) -> None:
    start = bench.clock.now_ms() - bench.clock.now_ms() % 60_000
    for number, (second, price) in enumerate([(20, "103"), (40, "104"), (30, "105"), (10, "101")]):
        at = start + second * 1_000
        bench.pipeline.handle(TradeUpdate(bench.source.id, str(number), price, "1", Side.BUY, at, at))
    (candle,) = bench.candles.candles(bench.source.id, "1m", 60_000)
    assert [candle.open, candle.high, candle.low, candle.close, candle.trades] == [101, 105, 101, 104, 4]


def test_an_outlier_leaves_as_an_empty_book_that_says_so(bench: Bench) -> None:
    for _ in range(20):
        bench.book(10_000)
    bench.book(20_000)
    published = bench.sink.books[-1]
    assert (list(published.bids), list(published.asks), published.state) == ([], [], "outlier")
    assert bench.pipeline.book_status()[bench.source.id][0] is BookState.OUTLIER
    book = bench.feed.book(bench.source.id)
    assert book is not None
    judged = bench.judge.judge(book, state=bench.feed.book_state(bench.source.id))
    assert set(judged.marks) == {Mark.EMPTY, Mark.OUTLIER}
    bench.book(20_000)
    assert bench.told.events == [
        ("market.outlier_detected", {"venue": "binance", "symbol": "BTC/USDT", "bid": "19999", "ask": "20001"})
    ]
    bench.book(10_000)
    assert (bench.sink.books[-1].state, bench.pipeline.counters["outliers"]) == ("ok", 2)


def test_an_outlier_that_holds_is_the_market_and_is_believed(bench: Bench) -> None:
    for _ in range(20):
        bench.book(10_000)
    for _ in range(60):
        bench.book(20_000)
    assert bench.sink.books[-1].state == "ok"
    assert bench.pipeline.book_status()[bench.source.id][0] is BookState.OK


def test_a_gap_is_told_once_and_the_book_is_empty(bench: Bench) -> None:
    bench.book(100, last_id=10)
    for first in (15, 20):
        now = bench.clock.now_ms()
        bench.pipeline.handle(Difference(bench.source.id, first, first, [], [], now, now))
    assert bench.sink.books[-1].state == "gap"
    assert bench.feed.book_state(bench.source.id) == "gap"
    assert bench.told.events == [("market.gap_detected", {"venue": "binance", "symbol": "BTC/USDT"})]


def test_a_restart_empties_the_book_at_once(bench: Bench) -> None:
    bench.book(100)
    bench.pipeline.handle(Restarted((bench.source.id,), "NO_NETWORK"))
    assert (list(bench.sink.books[-1].bids), bench.sink.books[-1].state) == ([], "resync")


def test_an_abandoned_pipeline_leaves_no_book_behind(bench: Bench) -> None:
    bench.book(100)
    bench.pipeline.abandon()
    assert (list(bench.sink.books[-1].asks), bench.sink.books[-1].state) == ([], "resync")


def test_changed_rules_are_told_and_repeated_ones_are_not(bench: Bench) -> None:
    instrument = bench.source.instrument
    for rules in (instrument, instrument, replace(instrument, taker_fee=Decimal("0.002"))):
        bench.pipeline.handle(Rules((rules,)))
    assert bench.told.types == ["market.rules_changed"]


def test_the_pipeline_knows_when_it_heard_last(bench: Bench) -> None:
    assert bench.pipeline.heard_ts_ms is None
    bench.book(100)
    heard = bench.clock.now_ms()
    bench.clock.advance(500)
    assert bench.pipeline.heard_ts_ms == heard
