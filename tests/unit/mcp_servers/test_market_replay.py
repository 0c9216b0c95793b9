"""A recording played through the pipeline: pace, passes, resuming, candles, garbage."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path

import pytest

from mcp_servers.market.candles import TIMEFRAMES, CandleStore
from mcp_servers.market.order_book import BookState
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import SourceState
from mcp_servers.market.sources.replay import Recording, ReplaySource, load_recording
from tests.market_support import BTC, JumpingSleep, part, recorded_updates, recording
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed, TradeUpdate
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.instruments import Instrument
from trading.domain.market_data import Feed
from trading.testing.clock import ManualClock


class Recorder:
    """A sink that keeps what it was given, with the time it was given at."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.instruments: list[Instrument] = []
        self.events: list[tuple[int, BookUpdate | TradeUpdate]] = []

    def publish_instrument(self, instrument: Instrument) -> None:
        self.instruments.append(instrument)

    def publish_book(self, update: BookUpdate) -> None:
        self.events.append((self._clock.now_ms(), update))

    def publish_trade(self, update: TradeUpdate) -> None:
        self.events.append((self._clock.now_ms(), update))

    @property
    def trades(self) -> list[TradeUpdate]:
        return [update for _, update in self.events if isinstance(update, TradeUpdate)]

    @property
    def books(self) -> list[BookUpdate]:
        return [update for _, update in self.events if isinstance(update, BookUpdate)]


class Play:
    """One run of a recording under a manual clock."""

    def __init__(self, played: Recording, *, speed: float = 1, loop: bool = False, resume: bytes | None = None) -> None:
        self.clock = ManualClock()
        self.sink = Recorder(self.clock)
        self.candles = CandleStore()
        self.positions: list[bytes] = []
        sleep = JumpingSleep(self.clock)
        self.source = ReplaySource(played, self.clock, speed=speed, loop=loop, resume=resume, sleep=sleep)
        self.pipeline = MarketPipeline(
            self.source, (self.sink,), self.candles, self.clock, on_position=self.positions.append
        )

    async def until(self, messages: int) -> None:
        """Carry so many updates, then stop where a killed process would."""
        updates = self.source.updates()
        for _ in range(messages):
            self.pipeline.handle(await anext(updates))


async def test_the_same_recording_gives_the_same_events_at_the_same_times() -> None:
    first, second = Play(part(4_000)), Play(part(4_000))
    await first.pipeline.run()
    await second.pipeline.run()
    assert first.sink.events == second.sink.events
    assert len(first.sink.events) > 3_000


@pytest.mark.parametrize(("speed", "expected_ms"), [(1, 9_760), (10, 976)])
async def test_speed_divides_recorded_time(speed: float, expected_ms: int) -> None:
    played = part(1_500)
    play = Play(played, speed=speed)
    began = play.clock.now_ms()
    await play.pipeline.run()
    stamps = [int(line.split(b" ")[0]) for line in (played.lines[played.first_snapshot + 1], played.lines[-1])]
    recorded_ms = (stamps[1] - stamps[0]) / 1_000_000
    assert play.clock.now_ms() - began == pytest.approx(recorded_ms / speed, abs=3)
    assert play.source.status().state is SourceState.ENDED
    assert play.source.status().code == "RECORDING_ENDED"


async def test_the_first_published_book_is_a_good_one_with_recorded_times() -> None:
    play = Play(part(100))
    await play.pipeline.run()
    first = play.sink.books[0]
    assert first.state == "ok"
    assert len(first.bids) == len(first.asks) == 50
    assert 1_723_161_254_000 < first.received_ts_ms < 1_723_161_255_000
    assert first.venue_ts_ms > first.received_ts_ms  # the recorder's clock was behind the exchange's
    assert play.sink.instruments[0].price_tick == Decimal("0.01")


async def test_every_trade_after_the_snapshot_is_published_once_and_in_order() -> None:
    play = Play(recording(), speed=0)
    await play.pipeline.run()
    first = recording().first_snapshot
    expected = [update.trade_id for update in recorded_updates()[first:] if isinstance(update, TradeUpdate)]
    assert [trade.trade_id for trade in play.sink.trades] == expected
    assert len(expected) == 9_756  # one trade came before the snapshot


async def test_candles_add_up_to_the_recorded_trades() -> None:
    play = Play(recording(), speed=0)
    await play.pipeline.run()
    trades = [update for update in recorded_updates() if isinstance(update, TradeUpdate)]
    total = sum((Decimal(trade.quantity) for trade in trades), Decimal(0))
    assert total == Decimal("212.03315")  # the published table of the same trades
    for timeframe, interval in TIMEFRAMES.items():
        candles = play.candles.candles(BTC, timeframe, 10**9)
        assert sum((candle.volume for candle in candles), Decimal(0)) == total
        assert sum(candle.trades for candle in candles) == 9_757
        assert candles[0].open == Decimal(trades[0].price)
        assert candles[-1].close == Decimal(trades[-1].price)
        assert max(candle.high for candle in candles) == max(Decimal(trade.price) for trade in trades)
        assert min(candle.low for candle in candles) == min(Decimal(trade.price) for trade in trades)
        assert all(candle.open_ts_ms % interval == 0 for candle in candles)
        assert all(candle.closed for candle in candles[:-1])
    assert not play.candles.candles(BTC, "1d", 10**9)[-1].closed


async def test_one_candle_equals_its_trades() -> None:
    play = Play(recording(), speed=0)
    await play.pipeline.run()
    start = 1_723_161_300_000
    candle = next(c for c in play.candles.candles(BTC, "1m", 10**9) if c.open_ts_ms == start)
    inside = [
        Decimal(update.price)
        for update in recorded_updates()
        if isinstance(update, TradeUpdate) and start <= update.venue_ts_ms < start + 60_000
    ]
    assert [candle.open, candle.high, candle.low, candle.close] == [inside[0], max(inside), min(inside), inside[-1]]
    assert candle.trades == len(inside)


async def test_a_late_trade_still_counts_in_its_own_interval() -> None:
    store = CandleStore()
    for ts, price in ((1_000, "10"), (3_500, "12"), (2_100, "11"), (1_900, "9")):
        store.add(BTC, ts, Decimal(price), Decimal(1))
    candles = store.candles(BTC, "1s", 10_000)
    assert [(candle.open_ts_ms, candle.trades, candle.low) for candle in candles] == [
        (1_000, 2, 9),
        (2_000, 1, 11),
        (3_000, 1, 12),
    ]
    assert [candle.closed for candle in candles] == [True, True, False]
    with pytest.raises(InvalidValue):
        store.candles(BTC, "7m", 1_000)


async def test_a_killed_run_goes_on_where_it_was_with_the_same_book() -> None:
    whole = Play(part(3_000), speed=0)
    await whole.pipeline.run()
    killed = Play(part(3_000), speed=0)
    await killed.until(1_700)
    resumed = Play(part(3_000), speed=0, resume=killed.positions[-1])
    await resumed.pipeline.run()
    trades = [trade.trade_id for trade in (*killed.sink.trades, *resumed.sink.trades)]
    assert trades == [trade.trade_id for trade in whole.sink.trades]
    assert resumed.sink.books[-1] == whole.sink.books[-1]
    assert resumed.candles.candles(BTC, "1s", 10**6) == whole.candles.candles(BTC, "1s", 10**6)


@pytest.mark.parametrize("position", [b"", b"other 0 5", b"part x 5", b"part 0 999999", b"part -1 5", b"\xff"])
async def test_a_position_that_makes_no_sense_starts_from_the_beginning(position: bytes) -> None:
    play = Play(part(50), speed=0, resume=position)
    await play.until(1)
    assert play.source.status().counters["message"] == 0


async def test_looping_starts_a_new_pass_in_which_time_goes_on() -> None:
    played = part(600)
    play = Play(played, speed=0, loop=True)
    await play.until(2 + 2 * 600)
    status = play.source.status()
    assert status.counters["pass"] == 1
    assert status.state is SourceState.RUNNING
    times = [trade.venue_ts_ms for trade in play.sink.trades]
    assert times == sorted(times)
    ids = [trade.trade_id for trade in play.sink.trades]
    assert len(set(ids)) == len(ids)
    assert any(identity.startswith("1-") for identity in ids)
    assert all(book.state == "ok" for book in play.sink.books)
    resumed = Play(played, speed=0, loop=True, resume=play.positions[-1])
    await resumed.until(1)
    assert resumed.source.status().counters["pass"] == 1


async def test_a_lost_difference_publishes_an_empty_book_at_once() -> None:
    lines = list(part(2_000).lines)
    depth = [index for index, line in enumerate(lines) if b"@depth" in line[:60]]
    del lines[depth[40]]
    play = Play(Recording("torn", recording().instrument, tuple(lines)), speed=0)
    await play.pipeline.run()
    gap = next(book for book in play.sink.books if book.state == "gap")
    assert (list(gap.bids), list(gap.asks)) == ([], [])
    assert play.sink.books[-1].state == "gap"
    state, counters = play.pipeline.book_status()[BTC]
    assert (state, counters["gaps"]) == (BookState.GAP, 1)


async def test_a_new_snapshot_brings_a_torn_book_back() -> None:
    lines = list(part(2_000).lines)
    depth = [index for index, line in enumerate(lines) if b"@depth" in line[:60]]
    snapshot = lines[recording().first_snapshot]
    gone = lines.pop(depth[40])
    wanted = int(gone.split(b'"u":')[1].split(b",")[0])
    stamp = lines[depth[45]].split(b" ")[0]
    fresh = snapshot.partition(b" ")[2].replace(b'"lastUpdateId":50093239218', b'"lastUpdateId":%d' % wanted)
    lines.insert(depth[45] + 1, stamp + b" " + fresh)
    play = Play(Recording("mended", recording().instrument, tuple(lines)), speed=0)
    await play.pipeline.run()
    assert play.sink.books[-1].state in ("ok", "crossed")  # the snapshot's other levels are older than its id says
    assert play.pipeline.book_status()[BTC][1]["snapshots"] == 2
    assert play.pipeline.book_status()[BTC][1]["gaps"] == 1


GARBAGE = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"stream":"btcusdt@trade"}',
    b'{"stream":"btcusdt@trade","data":{"t":1,"p":"x","q":"1","T":1,"m":true}}',
    b'{"stream":"btcusdt@trade","data":{"t":1,"p":"0","q":"1","T":1,"m":true}}',
    b'{"stream":"btcusdt@bookTicker","data":{"u":99999999999999,"b":"2","B":"1","a":"1","A":"1"}}',
    b'{"stream":"btcusdt@depth@100ms","data":{"U":5,"u":4,"E":1,"b":[],"a":[]}}',
    b'{"stream":"btcusdt@depth@100ms","data":{"U":50093421613,"u":50093421614,"E":1,"b":[["1"]],"a":[]}}',
    b'{"stream":"btcusdt@unknown","data":{}}',
    b"\xff\xfe\x00",
)


async def test_garbage_is_counted_and_changes_nothing() -> None:
    clean = part(600)
    stamp = clean.lines[300].split(b" ")[0]
    torn = (*clean.lines[:300], *(stamp + b" " + frame for frame in GARBAGE), b"not-a-time {}", *clean.lines[300:])
    quiet, noisy = Play(clean, speed=0), Play(Recording("noisy", clean.instrument, torn), speed=0)
    await quiet.pipeline.run()
    await noisy.pipeline.run()
    assert noisy.sink.trades == quiet.sink.trades
    assert noisy.sink.books[-1] == quiet.sink.books[-1]
    refused = noisy.source.status().counters["garbage"] + noisy.pipeline.counters["malformed"]
    assert refused == len(GARBAGE)  # the unknown stream is no garbage, the line without a time is


async def test_deeper_changes_are_published_by_the_timer_and_silence_publishes_nothing() -> None:
    play = Play(part(200), speed=0)
    await play.pipeline.run()
    play.pipeline.tick()
    count = len(play.sink.books)
    play.clock.advance(10_000)
    play.pipeline.tick()
    assert len(play.sink.books) == count


async def test_the_local_feed_answers_from_the_pipeline() -> None:
    clock = ManualClock()
    feed = LocalMarketFeed(clock, feed=Feed.REPLAY)
    source = ReplaySource(part(1_000), clock, speed=0)
    books, trades = feed.subscribe_books(), feed.subscribe_trades()
    await MarketPipeline(source, (feed,), CandleStore(), clock).run()
    book = feed.book(BTC)
    assert book is not None
    assert book.is_two_sided
    assert book.feed is Feed.REPLAY
    assert books.drain() == [book]  # a book nobody took is replaced by the next
    taken = trades.drain()
    assert [trade.sequence for trade in taken] == sorted(trade.sequence for trade in taken)
    assert feed.last_trade(BTC) == taken[-1]
    clock.advance(5_000)
    status = feed.status()
    assert status.instruments[0].book_age_ms == 5_000


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b""), gzip.compress(b"no stamp\n")])
def test_a_file_that_is_no_recording_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        load_recording(path)
    with pytest.raises(ConfigurationError):
        load_recording(symbol="ETH/USDT")
