"""Ticks and candles on their way to a time series server: a real one, and one that refuses."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.settings import InfluxSettings
from mcp_servers.market.sources.replay import ReplaySource
from mcp_servers.market.timeseries import TimeSeries, check_url, retry_after_s
from tests.bus_support import eventually
from tests.influx_support import exported, parse_line, running_victoria_metrics, write_stub
from tests.market_candle_support import START, at, bar
from tests.market_support import BTC, part
from trading.adapters.market_wire import BookUpdate, TradeUpdate
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import Symbol
from trading.domain.market_data import Side
from trading.testing.clock import ManualClock

TOKEN = SecretStr("very-secret-token")


@pytest.fixture(scope="module")
def victoria() -> Generator[str]:
    """The address of a VictoriaMetrics server that the tests started."""
    with running_victoria_metrics() as url:
        yield url


class Pauses:
    """Sleeps that the test ends."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.go.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def series(url: str, *, buffer: int = 50_000, **options: Any) -> TimeSeries:
    settings = InfluxSettings(url=url, token=TOKEN, buffer=buffer)
    return TimeSeries(settings, ManualClock(START), flush_s=0.01, **options)


@asynccontextmanager
async def running(writer: TimeSeries) -> AsyncGenerator[TimeSeries]:
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


def trade(number: int, *, price: str = "100.5", symbol: str = "BTC/USDT", side: Side = Side.BUY) -> TradeUpdate:
    return TradeUpdate(BTC._replace(symbol=Symbol(symbol)), str(number), price, "0.25", side, at(number), at(number))


def book(bid: str, ask: str, *, ts_ms: int = START, state: str = "ok", received: int = 0) -> BookUpdate:
    return BookUpdate(BTC, [[bid, "1"], ["90", "5"]], [[ask, "2.5"]], ts_ms, received, state)


# ---- the real server


async def test_what_is_published_can_be_read_back_from_a_real_server(victoria: str) -> None:
    async with running(series(victoria)) as writer:
        for number in range(3):
            writer.publish_trade(trade(number, price=f"{100 + number}.5", side=Side.SELL if number else Side.BUY))
        writer.publish_book(book("100", "101.25"))
        writer.on_candle_closed(bar(7, 250), complete=True)
        await eventually(lambda: writer.counters["written"] == 5)
    found = {
        (item["metric"]["__name__"], item["metric"]["data_type"]): item
        for item in await exported(victoria, '{exchange="binance",symbol="BTC/USDT"}')
    }
    prices = found["market_data_price", "trade"]
    assert (prices["values"], prices["timestamps"]) == ([100.5, 101.5, 102.5], [at(0), at(1), at(2)])
    assert found["market_data_side", "trade"]["values"] == [1, -1, -1]
    assert found["market_data_quantity", "trade"]["values"] == [0.25] * 3
    assert [found[f"market_data_{name}", "quote"]["values"] for name in ("bid", "ask", "bid_size", "ask_size")] == [
        [100],
        [101.25],
        [1],
        [2.5],
    ]
    candle = {name: found[f"market_data_{name}", "candle_1m"] for name in ("open", "high", "low", "close", "volume")}
    assert [item["values"] for item in candle.values()] == [[250], [251], [249], [250], [1]]
    assert candle["open"]["timestamps"] == [at(7)]


async def test_a_recorded_feed_arrives_whole_at_a_real_server(victoria: str) -> None:
    clock = ManualClock()
    source = ReplaySource(part(4_000), clock, speed=0)
    writer = series(victoria)
    counted: list[TradeUpdate] = []
    quotes: list[tuple[str, str]] = []

    class Counting:
        def publish_instrument(self, instrument: object) -> None: ...

        def publish_book(self, update: BookUpdate) -> None:
            if update.bids and update.asks and update.state == "ok":
                quotes.append((update.bids[0][0], update.asks[0][0]))

        def publish_trade(self, update: TradeUpdate) -> None:
            counted.append(update)

    async with running(writer):
        await MarketPipeline(source, (Counting(), writer), CandleStore(), clock).run()
    assert writer.waiting == 0
    assert writer.counters["dropped"] == writer.counters["rejected"] == 0
    first, last = counted[0].venue_ts_ms, counted[-1].venue_ts_ms
    rows = await exported(victoria, '{__name__="market_data_price",data_type="trade"}')
    stored = [
        (ts, value)
        for row in rows
        for ts, value in zip(row["timestamps"], row["values"], strict=True)
        if first <= ts <= last
    ]
    assert sorted(stored) == sorted((update.venue_ts_ms, float(update.price)) for update in counted)
    assert len(counted) > 100
    assert len(quotes) > 100


# ---- the protocol, to the letter


async def test_a_write_is_v2_line_protocol_with_token_and_gzip() -> None:
    async with write_stub() as stub:
        async with running(series(stub.url)) as writer:
            writer.publish_trade(trade(1, symbol="ODD, =SYM/USDT"))
            writer.publish_trade(trade(1))
            await eventually(lambda: writer.counters["written"] == 2)
        (sent,) = stub.requests
        assert (sent["bucket"], sent["org"], sent["precision"]) == ("grekko", "grekko", "ns")
        assert (sent["authorization"], sent["content-encoding"]) == (f"Token {TOKEN.get_secret_value()}", "gzip")
        odd, plain = stub.points
        assert odd.tags == {"symbol": "ODD, =SYM/USDT", "exchange": "binance", "data_type": "trade"}
        assert (plain.measurement, plain.fields) == ("market_data", {"price": 100.5, "quantity": 0.25, "side": 1})
        assert odd.time_ns // 1_000_000 == plain.time_ns // 1_000_000 == at(1)
        assert odd.time_ns != plain.time_ns  # else one trade would replace the other


async def test_a_quote_is_written_when_it_changes_and_never_from_an_unusable_book() -> None:
    async with write_stub() as stub:
        async with running(series(stub.url)) as writer:
            writer.publish_book(book("100", "101", ts_ms=at(1)))
            writer.publish_book(book("100", "101", ts_ms=at(2)))
            writer.publish_book(book("100", "102", ts_ms=0, received=at(3)))
            writer.publish_book(book("1", "2", ts_ms=at(4), state="outlier"))
            writer.publish_book(BookUpdate(BTC, [], [], at(5), 0, "gap"))
            writer.publish_book(book("100", "102", ts_ms=at(6)))
            await eventually(lambda: writer.counters["written"] == 3)
        assert [(point.time_ns // 1_000_000, point.fields["ask"]) for point in stub.points] == [
            (at(1), 101),
            (at(3), 102),
            (at(6), 102),
        ]


# ---- a server that is away or refuses


async def test_while_the_server_is_away_the_oldest_are_dropped_and_counted_and_it_goes_on_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, pauses = free_port(), Pauses()
    async with running(series(f"http://127.0.0.1:{port}", buffer=100, sleep=pauses)) as writer:
        for number in range(250):
            writer.publish_trade(trade(number))
        await eventually(lambda: bool(pauses.asked))
        assert (writer.waiting, writer.counters["dropped"], writer.counters["failures"]) == (100, 150, 1)
        async with write_stub(port) as stub:
            pauses.go.set()
            await eventually(lambda: writer.waiting == 0)
            assert [point.time_ns // 1_000_000 for point in stub.points] == [at(n) for n in range(150, 250)]
            writer.publish_trade(trade(999))
            await eventually(lambda: writer.counters["written"] == 101)
    assert writer.counters["points"] == writer.counters["written"] + writer.counters["dropped"] == 251
    assert TOKEN.get_secret_value() not in caplog.text


async def test_the_feed_is_the_same_whether_the_server_is_there_or_not() -> None:
    async def played(*others: TimeSeries) -> tuple[dict[str, int], int]:
        clock, candles = ManualClock(), CandleStore()
        pipeline = MarketPipeline(ReplaySource(part(3_000), clock, speed=0), others, candles, clock)
        await pipeline.run()
        return pipeline.counters, candles.now_ms(BTC)

    expected = await played()
    async with running(series(f"http://127.0.0.1:{free_port()}", buffer=100, stop_s=0.05)) as writer:
        assert await played(writer) == expected
        assert writer.counters["dropped"] >= writer.counters["points"] - 100 > 0


async def test_points_pushed_out_while_they_are_on_their_way_are_not_counted_as_dropped() -> None:
    async with write_stub() as stub:
        stub.gate.clear()
        async with running(series(stub.url, buffer=100)) as writer:
            for number in range(100):
                writer.publish_trade(trade(number))
            await eventually(lambda: bool(stub.requests))
            for number in range(100, 130):
                writer.publish_trade(trade(number))
            stub.gate.set()
            await eventually(lambda: writer.waiting == 0)
        assert sorted(point.time_ns // 1_000_000 for point in stub.points) == [at(number) for number in range(130)]
        assert (writer.counters["written"], writer.counters["dropped"]) == (130, 0)


@pytest.mark.parametrize(
    ("status", "headers", "least_s", "most_s"),
    [
        (429, {"Retry-After": "7"}, 7, 7),
        (503, {"Retry-After": "Sun, 15 Jun 2025 00:00:30 GMT"}, 30, 30),
        (503, {}, 0.25, 0.5),
        (500, {"Retry-After": "soon"}, 0.25, 0.5),
        (401, {}, 0.25, 0.5),
        (307, {"Location": "http://127.0.0.1:9/api/v2/write"}, 0.25, 0.5),
    ],
)
async def test_a_refusal_that_may_pass_is_asked_again_when_it_says(
    status: int, headers: dict[str, str], least_s: float, most_s: float
) -> None:
    async with write_stub() as stub:
        stub.answers.append((status, headers))
        pauses = Pauses()
        async with running(series(stub.url, sleep=pauses)) as writer:
            writer.publish_trade(trade(1))
            await eventually(lambda: bool(pauses.asked))
            assert least_s <= pauses.asked[0] <= most_s
            assert (writer.waiting, stub.points) == (1, [])
            pauses.go.set()
            await eventually(lambda: writer.counters["written"] == 1)
        assert len(stub.points) == 1


async def test_pauses_grow_and_differ_and_are_bounded() -> None:
    async with write_stub() as stub:
        stub.answers += [(503, {})] * 12
        pauses = Pauses()
        pauses.go.set()
        async with running(series(stub.url, sleep=pauses, jitter=random.Random(4).random)) as writer:
            writer.publish_trade(trade(1))
            await eventually(lambda: writer.counters["written"] == 1)
    assert len(set(pauses.asked)) == 12
    assert pauses.asked[3] > pauses.asked[0]
    assert max(pauses.asked) <= 60


async def test_points_that_are_called_malformed_do_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with write_stub() as stub, running(series(stub.url)) as writer:
        writer.publish_trade(trade(1, price="NaN"))
        await eventually(lambda: writer.counters["rejected"] == 1)
        writer.publish_trade(trade(2))
        await eventually(lambda: writer.counters["written"] == 1)
    assert "malformed" in caplog.text


async def test_a_batch_that_is_too_large_is_halved() -> None:
    async with write_stub() as stub:
        stub.answers += [(413, {})] * 2
        async with running(series(stub.url, batch=100)) as writer:
            for number in range(200):
                writer.publish_trade(trade(number))
            await eventually(lambda: writer.counters["written"] == 200)
        assert max(stub.batches) <= 25 * 2
        assert writer.counters["rejected"] == 0


async def test_a_stop_sends_what_is_left() -> None:
    async with write_stub() as stub:
        writer = series(stub.url, batch=10)
        async with running(writer):
            await eventually(lambda: writer._api is not None)
            for number in range(95):
                writer.publish_trade(trade(number))
        assert (len(stub.points), writer.counters["written"]) == (95, 95)


async def test_a_stop_before_the_start_counts_what_is_lost() -> None:
    writer = series("http://127.0.0.1:9")
    task = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    writer.publish_trade(trade(1))
    task.cancel()
    await asyncio.wait({task})
    assert (writer.waiting, writer.counters["dropped"]) == (0, 1)


async def test_a_stop_is_not_held_up_by_a_server_that_hangs() -> None:
    async with write_stub() as stub:
        stub.gate.clear()
        writer = series(stub.url, stop_s=0.05)
        async with asyncio.timeout(5), running(writer):
            for number in range(10):
                writer.publish_trade(trade(number))
            await eventually(lambda: bool(stub.requests))
        assert (writer.waiting, writer.counters["dropped"], writer.counters["written"]) == (0, 10, 0)


# ---- addresses and headers


@pytest.mark.parametrize("url", ["http://127.0.0.1:8428", "http://localhost", "http://[::1]:1", "https://db.example/x"])
def test_a_safe_address_is_taken(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url", ["", "http://db.example", "ftp://127.0.0.1", "http://127.0.0.1.evil.example", "https://"]
)
def test_an_address_that_would_show_the_token_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        TimeSeries(InfluxSettings(url=url), ManualClock())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("12", 12),
        ("99999", 300),
        ("9" * 40, 0),
        ("-5", 0),
        ("soon", 0),
        ("Sat, 14 Jun 2025 00:00:00 GMT", 0),
        ("Sun, 15 Jun 2025 00:01:00 GMT", 60),
        ("Sun, 15 Jun 2025 00:01:00", 60),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_bounded(text: str | None, seconds: float) -> None:
    assert retry_after_s(text, now_ms=START) == seconds


def test_the_stub_reads_the_protocol_strictly() -> None:
    assert parse_line("m,a=b x=1i,y=2.5,z=true 7").fields == {"x": 1, "y": 2.5, "z": True}
    for wrong in ("m x=NaN 7", "m x= 7", "m 7", "m x=1"):
        with pytest.raises(ValueError, match=r"unpack|unable"):
            parse_line(wrong)
