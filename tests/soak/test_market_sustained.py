"""The market server under load for a minute: 10,000 messages a second, every writer on, tools called, memory flat."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import linear_regression, quantiles
from typing import Any, NamedTuple

import pytest
from mcp import Client

from mcp_servers.market.sources.replay import Recording, load_recording
from tests.influx_support import exported, running_victoria_metrics
from tests.live_market_support import MINUTE_MS, SYMBOL, MarketProcess, ask, market_home, running_market, until
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import MarketStreamView, load_feed_key
from trading.domain.market_data import Feed, TradePrint

RATE = 10_000  # messages a second
REACHED = 0.8  # of it, at least: the machine may be busy with other things; `make bench` measures the rate
LOADED_S = 60
WARM_S = 15  # memory before that is the start's
GROWTH_MB_PER_MIN = 20.0
CALLS_PER_S = 10
CALL_P99_S = 0.5  # the machine also runs the reader, Redis and the time series database
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_tickers", {"symbols": [SYMBOL]}),
    ("get_order_book", {"symbol": SYMBOL, "depth": 20}),
    ("estimate_fill", {"symbol": SYMBOL, "side": "both", "amount": "0.5"}),
    ("get_candles", {"symbol": SYMBOL, "timeframe": "1m", "lookback": "30m"}),
    ("compare_venues", {"symbol": SYMBOL}),
    ("get_status", {}),
)


class TrueTrade(NamedTuple):
    """A trade of the recording, read with nothing of ours."""

    id: str
    price: Decimal
    quantity: Decimal
    side: str
    ts_ms: int


def true_trades(recording: Recording, *, published: bool = True) -> list[TrueTrade]:
    """Return the trades after the recording's snapshot, or with those before it, which candles count too."""
    found: list[TrueTrade] = []
    for line in recording.lines[recording.first_snapshot + 1 if published else 0 :]:
        message = json.loads(line.split(b" ", 1)[1])
        if message.get("stream", "").endswith("@trade"):
            data = message["data"]
            side = "sell" if data["m"] else "buy"
            found.append(TrueTrade(str(data["t"]), Decimal(data["p"]), Decimal(data["q"]), side, data["T"]))
    return found


def endless(trades: Sequence[TrueTrade], span_ms: int) -> Iterator[TrueTrade]:
    """Yield what is to be heard of a recording that is played again and again."""
    number = 0
    while True:
        for item in trades:
            name = f"{number}-{item.id}" if number else item.id
            yield item._replace(id=name, ts_ms=item.ts_ms + number * span_ms)
        number += 1


@dataclass
class Heard:
    """What another process of the desk heard, and what was measured meanwhile."""

    trades: list[TradePrint] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    rss_mb: list[tuple[float, float]] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    looked_at: int = -1

    def is_quiet(self) -> bool:
        """Return whether nothing more came since the last look."""
        before, self.looked_at = self.looked_at, len(self.trades)
        return before == self.looked_at

    @property
    def growth_mb_per_min(self) -> float:
        """Slope of the resident memory after the warm-up."""
        warm = [(at, mb) for at, mb in self.rss_mb if at >= WARM_S]
        return linear_regression([at for at, _ in warm], [mb for _, mb in warm]).slope * 60


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_ten_thousand_messages_a_second_lose_no_trade_and_cost_no_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recording = load_recording()
    pace = len(recording.lines) / (recording.span_ms / 1_000)
    heard = Heard()
    with running_victoria_metrics() as influx:
        config = f'[bus]\nprefer_bundled = true\n[market]\narchive = true\n[market.influx]\nurl = "{influx}"\n'
        async with (
            market_home(config) as home,
            listening(home, heard),
            running_market(
                home, "market", "--loop", "--speed", f"{RATE / pace:.3f}", "--log-level", "WARNING"
            ) as market,
            market.client() as client,
        ):
            await until(lambda: bool(heard.trades), "trades arrive", market.tail)
            rate = await load(market, client, heard)
            counters = (await ask(client, "get_status"))["counters"]
            await check_candles(client, recording)
            assert await market.stop() == 0, market.tail()
            await until(heard.is_quiet, "everything is read")
        written = await exported(influx, '{__name__="market_data_price",data_type="trade"}')
    p99_s = quantiles(heard.call_s, n=100)[-1]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{rate:,.0f} messages/s, {len(heard.trades):,} trades heard, memory {heard.rss_mb[-1][1]:.0f} MB and "
            f"{heard.growth_mb_per_min:+.1f} MB/min, {len(heard.call_s)} calls with p99 {p99_s * 1e3:.0f} ms\n"
        )
    assert rate >= REACHED * RATE
    check_trades(heard.trades, recording)
    for name in ("pipeline_malformed", "trades_dropped", "influx_dropped", "influx_rejected", "archive_lost"):
        assert counters.get(name, 0) == 0, (name, counters)
    assert sum(len(series["values"]) for series in written) == len(heard.trades)
    check_events(heard)
    assert heard.growth_mb_per_min < GROWTH_MB_PER_MIN, heard.rss_mb
    assert p99_s < CALL_P99_S


async def load(market: MarketProcess, client: Client, heard: Heard) -> float:
    """Call tools and watch the memory for a minute; return how many messages a second were taken in."""
    loop = asyncio.get_running_loop()
    before, began = await updates(client), loop.time()
    for number in range(LOADED_S * CALLS_PER_S):
        await asyncio.sleep(max(0.0, began + number / CALLS_PER_S - loop.time()))
        tool, arguments = CALLS[number % len(CALLS)]
        asked = loop.time()
        await ask(client, tool, **arguments)
        heard.call_s.append(loop.time() - asked)
        if number % CALLS_PER_S == 0:
            heard.rss_mb.append((loop.time() - began, market.rss_mb))
    return (await updates(client) - before) / (loop.time() - began)


async def updates(client: Client) -> int:
    return int((await ask(client, "get_status"))["counters"]["pipeline_updates"])


@asynccontextmanager
async def listening(home: DeskHome, heard: Heard) -> AsyncGenerator[None]:
    """Be another room of the desk: read the signed streams of trades, and the market's events."""
    settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None})
    key = load_feed_key(home.keys("market") / "feed.hmac")

    async def read(view: MarketStreamView) -> None:
        trades = view.subscribe_trades()
        async for trade in trades:
            heard.trades.append(trade)
            assert trades.overruns == 0, "this reader is too slow"

    async with open_redis(home, settings, "risk") as redis:
        async with MarketStreamView(redis, settings.desk, key, SystemClock(), {Feed.REPLAY}) as view:
            task = asyncio.create_task(read(view))
            try:
                yield
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.wait([task])
        async with open_redis(home, settings, "admin") as admin:
            rows: Any = await admin.xrange(settings.key("market", "events"))
            heard.events += [json.loads(row[b"d"]) for _, row in rows]


def check_trades(heard: Sequence[TradePrint], recording: Recording) -> None:
    """Every trade that happened was heard, once, in order, as it was."""
    true = true_trades(recording)
    assert len(heard) > LOADED_S * RATE * len(true) / len(recording.lines) * REACHED
    for index, (mine, truth) in enumerate(zip(heard, endless(true, recording.span_ms), strict=False)):
        side = mine.aggressor.value
        found = TrueTrade(str(mine.trade_id), mine.price, mine.quantity, side, mine.venue_ts_ms)
        assert found == truth, index


async def check_candles(client: Client, recording: Recording) -> None:
    """The candles of the last half hour of recorded time are those of the trades that happened."""
    found = await ask(client, "get_candles", symbol=SYMBOL, timeframe="1m", lookback="30m")
    columns = [map(Decimal, found[name]) for name in ("open", "high", "low", "close", "volume")]
    rows = dict(zip(found["open_ts_ms"], zip(*columns, strict=True), strict=True))
    by_minute: dict[int, list[TrueTrade]] = defaultdict(list)
    for item in endless(true_trades(recording, published=False), recording.span_ms):
        if item.ts_ms >= found["open_ts_ms"][-1]:
            break
        by_minute[item.ts_ms - item.ts_ms % MINUTE_MS].append(item)
    assert len(rows) >= 25
    for opened in found["open_ts_ms"][1:-1]:
        prices = [item.price for item in by_minute[opened]]
        volume = sum((item.quantity for item in by_minute[opened]), Decimal(0))
        assert rows[opened] == (prices[0], max(prices), min(prices), prices[-1], volume), opened


def check_events(heard: Heard) -> None:
    """A candle that closed is told once, and nothing bad happened."""
    closed = [event["payload"]["open_ts_ms"] for event in heard.events if event["event_type"] == "market.candle_closed"]
    minutes = (heard.trades[-1].venue_ts_ms - heard.trades[0].venue_ts_ms) // MINUTE_MS
    assert abs(len(closed) - minutes) <= 2
    assert closed == sorted(set(closed))
