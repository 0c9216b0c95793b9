"""The market room as its callers meet it: every tool through a real client, and what happens when a part fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from pydantic import SecretStr

from mcp_servers.hosting import ToolFailure, build_server, call, call_reply, open_client
from mcp_servers.market.bootstrap import open_market
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.chart.app import chart_page
from mcp_servers.market.chart.overlay import Overlay
from mcp_servers.market.health import Health
from mcp_servers.market.history import History
from mcp_servers.market.news.collection import News
from mcp_servers.market.onchain import OnChain
from mcp_servers.market.prices import Prices, base_for_quote
from mcp_servers.market.server import build, register
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import ChainSettings, MarketSettings, NewsSettings, live_venues, load_addresses
from mcp_servers.market.sources import replay
from mcp_servers.market.sources.base import SourceState, SourceStatus
from tests.bus_support import eventually
from tests.market_support import BTC
from tests.mcp_harness import ROOT, WAYS, Way, check_conventions, reach, room_command
from trading.adapters.clock import SystemClock
from trading.adapters.config import load_settings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed, MarketStreamView, TradeUpdate, load_feed_key
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import Venue
from trading.domain.market_data import Feed, Side
from trading.domain.proposals import Mode
from trading.ports.ledger import Row
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock

FAST = MarketSettings(speed=50, loop=True)
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("market_get_tickers", {"symbols": ["BTC/USDT"]}),
    ("market_get_order_book", {"symbol": "BTC/USDT", "depth": 5}),
    ("market_get_candles", {"symbol": "BTC/USDT", "timeframe": "1s", "lookback": "1m"}),
    ("market_search_instruments", {"query": "btc"}),
    ("market_get_instrument", {"symbol": "BTC/USDT", "venue": "paper"}),
    ("market_estimate_fill", {"symbol": "BTC/USDT", "side": "buy", "amount": "0.5"}),
    ("market_compare_venues", {"symbol": "BTC/USDT"}),
    ("market_get_chart", {"symbol": "BTC/USDT", "timeframe": "1s", "lookback": "1m"}),
    ("market_get_status", {}),
]
#: Tools that need more than a first price: minutes of it, a network or a node.
LATER = {
    "market_get_indicators",
    "market_get_statistics",
    "market_get_funding",
    "market_quote_onchain",
    "market_get_news",
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mkt-") as directory:
        path = Path(directory) / "h"
        path.mkdir(mode=0o700)
        (path / "config.toml").write_text("[bus]\nprefer_bundled = true\n[market]\nspeed = 50\nloop = true\n")
        monkeypatch.setenv("GREKKO_HOME", str(path))
        monkeypatch.delenv("GREKKO_CONFIG", raising=False)
        monkeypatch.delenv("REDIS_URL", raising=False)
        yield path


async def started(client: Client) -> dict[str, Any]:
    """Wait until prices are there; return the status that says so."""
    async with asyncio.timeout(15):
        while not (status := await call(client, "market_get_status"))["safe_to_trade"]:
            await asyncio.sleep(0.01)
    return status


def first_code(status: dict[str, Any]) -> str:
    """Return why the desk's own venue gives no data."""
    return status["venues"][0]["code"]


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_every_tool_answers_in_every_way(way: Way, home: Path) -> None:
    variables = {"GREKKO_HOME": str(home)}
    async with reach(way, lambda: build(FAST), room="market", command=room_command("market"), env=variables) as client:
        status = await started(client)
        assert status["role"] == "publisher"
        assert status["feeds"][0]["feed"] == "replay"
        for tool, arguments in QUESTIONS:
            reply = await call_reply(client, tool, **arguments)
            assert reply["ok"] is True
            assert reply["meta"]["mode"] == "paper"
            assert reply["meta"]["venue"] in ("binance", "all")
            assert len(json.dumps(reply)) < 10_000


async def test_the_tools_keep_the_conventions_and_the_budget() -> None:
    async with open_client(build(FAST)) as client:
        await check_conventions(client, "market")
        assert {tool.name for tool in (await client.list_tools()).tools} == {tool for tool, _ in QUESTIONS} | LATER


async def test_analysis_waits_for_enough_closed_bars_and_says_how_many_are_missing() -> None:
    indicators = {"symbol": "BTC/USDT", "timeframe": "1s", "indicators": ["rsi:14"]}
    statistics = {"symbols": ["BTC/USDT"], "timeframe": "1s", "lookback": "2m"}
    async with open_client(build(FAST)) as client:
        await started(client)
        with pytest.raises(ToolFailure) as early:
            await call(client, "market_get_indicators", **indicators | {"timeframe": "1h"})
        assert early.value.code == "NOT_ENOUGH_HISTORY"
        for tool, arguments in (("market_get_indicators", indicators), ("market_get_statistics", statistics)):
            async with asyncio.timeout(20):
                while (answer := await _unless_too_early(client, tool, arguments)) is None:
                    await asyncio.sleep(0.02)
            assert answer


async def _unless_too_early(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return await call(client, tool, **arguments)
    except ToolFailure as error:
        if error.code == "NOT_ENOUGH_HISTORY":
            return None
        raise


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("market_get_funding", {"symbol": "BTC/USDT"}),
        ("market_quote_onchain", {"symbol": "WETH/USDC", "side": "buy", "amount": "1"}),
        ("market_get_news", {}),
    ],
)
async def test_a_replay_shows_nothing_of_today_even_when_it_is_configured(tool: str, arguments: dict[str, Any]) -> None:
    today = FAST.model_copy(
        update={
            "news": NewsSettings(feeds=("http://127.0.0.1:9/feed",)),
            "chain": ChainSettings(rpc_url=SecretStr("http://127.0.0.1:9"), pools=("0x" + "1" * 40,)),
        }
    )
    async with open_client(build(today)) as client:
        with pytest.raises(ToolFailure) as refused:
            await call(client, tool, **arguments)
    assert refused.value.code == "NOT_CONFIGURED"
    assert refused.value.suggestion


async def test_other_rooms_see_the_same_market(home: Path) -> None:
    desk = load_settings()
    async with open_client(build(FAST)) as client:
        await started(client)
        key = load_feed_key(desk.desk_home.keys("market") / "feed.hmac")
        async with (
            open_redis(desk.desk_home, desk, "execution") as redis,
            MarketStreamView(redis, desk.desk, key, SystemClock(), {Feed.REPLAY}) as view,
        ):
            assert await view.ready()
            books = view.subscribe_books()
            async with asyncio.timeout(5):
                seen = [await anext(books) for _ in range(20)]
            assert all(book.is_two_sided and len(book.bids) == 50 for book in seen)
            assert view.instrument(BTC) is not None
            assert view.status().counters["bad_mac"] == 0


async def test_a_second_process_follows_the_first(home: Path) -> None:
    async with open_client(build(FAST)) as first, open_client(build(FAST)) as second:
        await started(first)
        status = await started(second)
        assert status["role"] == "follower"
        async with asyncio.timeout(10):
            while not (await call(second, "market_get_candles", **QUESTIONS[2][1]))["close"]:
                await asyncio.sleep(0.01)
        assert (await call(second, "market_estimate_fill", **QUESTIONS[5][1]))["unfilled"] == "0"


async def test_a_killed_process_goes_on_where_it_was(home: Path) -> None:
    desk = load_settings()
    async with open_redis(desk.desk_home, desk, "risk"):  # keeps the bus alive as the desk's other rooms do
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mcp_servers.market", "--speed", "20", stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=ROOT, env={**os.environ},
        )  # fmt: skip
        async with open_redis(desk.desk_home, desk, "execution") as redis:
            path = desk.desk_home.keys("market") / "feed.hmac"
            await eventually(path.exists, timeout_s=20)
            await eventually(lambda: path.stat().st_size > 60)
            key = load_feed_key(path)
            async with MarketStreamView(redis, desk.desk, key, SystemClock(), {Feed.REPLAY}) as view:
                trades = view.subscribe_trades()
                async with asyncio.timeout(20):
                    before = [await anext(trades) for _ in range(100)]
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
                before += trades.drain()
                async with open_client(build(FAST)) as client:
                    await started(client)
                    async with asyncio.timeout(10):
                        after = [await anext(trades) for _ in range(100)]
                    assert (await call(client, "market_get_status"))["counters"].get("source_pass", 0) == 0
                ids = [int(trade.trade_id) for trade in (*before, *after)]
                assert ids == list(range(ids[0], ids[0] + len(ids)))  # none lost, none twice
                sequences = [trade.sequence for trade in (*before, *after)]
                assert sequences == sorted(set(sequences))


async def test_a_recording_that_was_stopped_in_good_order_begins_again(home: Path) -> None:
    desk = load_settings()
    async with open_redis(desk.desk_home, desk, "risk"):  # keeps the bus alive as the desk's other rooms do
        for expected in (0, 1):
            async with open_client(build(MarketSettings(speed=0))) as client:
                async with asyncio.timeout(20):
                    while first_code(status := await call(client, "market_get_status")) != "RECORDING_ENDED":
                        await asyncio.sleep(0.02)
                assert status["counters"].get("source_pass", 0) == expected


async def test_without_a_network_the_live_market_says_so_and_stays_up(home: Path) -> None:
    (home / "config.toml").write_text(
        '[bus]\nprefer_bundled = true\n[venues.binance]\nrest_url = "http://127.0.0.1:9/api/v3"\n'
    )
    async with open_client(build(MarketSettings(source="live"))) as client:
        async with asyncio.timeout(20):
            while first_code(status := await call(client, "market_get_status")) != "NO_NETWORK":
                await asyncio.sleep(0.02)
        assert status["safe_to_trade"] is False
        assert "--market replay" in status["venues"][0]["message"]
        for tool, arguments in QUESTIONS[:2]:
            with pytest.raises(ToolFailure) as refused:
                await call(client, tool, **arguments)
            assert (refused.value.code, refused.value.retryable) == ("NO_NETWORK", "after_ms")


async def test_recorded_candles_play_through_the_whole_room(home: Path) -> None:
    lines = [f"{60_000 * (number + 1)},1,2,1,2,{number + 1}" for number in range(5)]
    (home / "btc.csv").write_text("\n".join(("timestamp,open,high,low,close,volume", *lines)))
    async with open_market(load_settings(), MarketSettings(speed=0, recording=home / "btc.csv")) as service:
        await eventually(lambda: service.health().status.code == "RECORDING_ENDED")
        assert service.health().counters["pipeline_bars"] == 5
        assert service.prices.tick("BTC/USDT").volume == 15
        assert service.reasons_against() == [service.health().status.message]  # candles price no order


async def test_a_feed_that_dies_stops_the_server_with_its_reason(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> list[object]:
        raise RuntimeError("a defect")

    monkeypatch.setattr(replay, "_shifted", broken)
    monkeypatch.setattr(replay, "_stamp", broken)
    stopped = asyncio.Event()
    async with open_market(load_settings(), FAST, on_failure=stopped.set):
        async with asyncio.timeout(10):
            await stopped.wait()
    assert "the market feed has failed" in caplog.text


# ---- answers from a market that stands still


class NoLedger:
    """The execution ledger of a desk that has none."""

    async def last_seq(self) -> int:
        return 0

    async def rows(self, *_: object, **__: object) -> list[Row]:
        return []

    async def rows_between(self, *_: object, **__: object) -> list[Row]:
        return []


class Still:
    """A service over a feed that the test fills by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.feed = LocalMarketFeed(self.clock, feed=Feed.REPLAY, instruments=[build_instrument(venue="binance")])
        self.candles = CandleStore()
        self.state = SourceStatus(SourceState.RUNNING)
        prices = Prices(
            self.feed,
            self.candles,
            self.clock,
            venue=Venue("binance"),
            aliases=(Venue("paper"),),
            max_age_ms=3_000,
            source=lambda: self.state,
        )
        self.service = MarketService(
            prices=prices,
            history=History(self.candles),
            health=lambda: Health("publisher", "replay", self.state, True),
            onchain=OnChain(ChainSettings(), self.clock),
            news=News((), self.clock),
            overlay=Overlay(NoLedger(), venue=Venue("paper")),
        )

    def book(self, bids: list[list[str]], asks: list[list[str]]) -> None:
        self.feed.publish_book(BookUpdate(BTC, bids, asks, 5, 6))


@pytest.fixture
def still() -> Still:
    return Still()


class Asker:
    """Calls tools of a server over a still market, in one protocol era."""

    def __init__(self, still: Still, era: str) -> None:
        self._still = still
        self._era = era

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[MarketService]:
        yield self._still.service

    async def reply(self, tool: str, **arguments: Any) -> dict[str, Any]:
        server = build_server(
            "grekko-market",
            title="Market",
            instructions="x",
            lifespan=self._lifespan,
            mode=Mode.PAPER,
            extensions=[chart_page()],
        )
        register(server)
        async with open_client(server, self._era) as client:
            return await call_reply(client, tool, **arguments)

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self.reply(tool, **arguments))["data"]


@pytest.fixture(params=["auto", "legacy"])
def ask(request: pytest.FixtureRequest, still: Still) -> Asker:
    return Asker(still, request.param)


DEEP = ([["99", "1"], ["98", "10"]], [["101", "1"], ["103", "1"], ["105", "2"]])


async def refused(awaitable: Awaitable[Any]) -> ToolFailure:
    with pytest.raises(ToolFailure) as failure:
        await awaitable
    return failure.value


async def test_a_fill_is_estimated_by_walking_the_book(ask: Asker, still: Still) -> None:
    still.book(*DEEP)
    found = await ask("market_estimate_fill", symbol="BTC/USDT", side="buy", amount="2")
    assert (found["vwap"], found["worst_price"], found["notional"]) == ("102", "103", "204")
    assert (found["fee"], found["impact_bps"], found["unfilled"]) == ("0.204", "200", "0")
    sold = await ask("market_estimate_fill", symbol="BTC/USDT", side="sell", amount="20")
    assert (sold["filled"], sold["unfilled"]) == ("11", "9")
    assert Decimal(sold["impact_bps"]) > 0
    spent = await ask("market_estimate_fill", symbol="BTC/USDT", side="buy", amount="204", unit="quote")
    assert (spent["requested"], spent["notional"]) == ("2", "204")


async def test_a_stale_book_is_marked_and_no_fill_is_estimated_from_it(ask: Asker, still: Still) -> None:
    still.book(*DEEP)
    still.clock.advance(3_001)
    book = await ask.reply("market_get_order_book", symbol="BTC/USDT")
    assert (book["data"]["stale"], book["data"]["age_ms"], book["meta"]["age_ms"]) == (True, 3_001, 3_001)
    assert (await ask("market_get_tickers", symbols=["BTC/USDT"]))["tickers"][0]["stale"] is True
    error = await refused(ask("market_estimate_fill", symbol="BTC/USDT", side="buy", amount="1"))
    assert (error.code, error.retryable) == ("STALE_DATA", "after_ms")
    status = await ask("market_get_status")
    assert (status["safe_to_trade"], status["reasons"]) == (False, ["BTC/USDT on binance: stale (3001 ms old)"])


async def test_an_empty_or_crossed_book_prices_nothing(ask: Asker, still: Still) -> None:
    for bids, asks in (([], []), ([["101", "1"]], [["100", "1"]])):
        still.book(bids, asks)
        error = await refused(ask("market_estimate_fill", symbol="BTC/USDT", side="buy", amount="1"))
        assert error.code == "STALE_DATA"
        ticker = (await ask("market_get_tickers", symbols=["BTC/USDT"]))["tickers"][0]
        assert (ticker["bid"], ticker["mid"], ticker["stale"]) == (None, None, True)
        assert (await ask("market_get_status"))["safe_to_trade"] is False


async def test_before_the_first_book_the_answer_is_a_refusal(ask: Asker) -> None:
    assert (await refused(ask("market_get_order_book", symbol="BTC/USDT"))).code == "NO_BOOK"


async def test_an_unknown_symbol_gets_the_nearest_name(ask: Asker) -> None:
    error = await refused(ask("market_get_instrument", symbol="BTCUSDT"))
    assert (error.code, error.suggestion, error.allowed) == (
        "UNKNOWN_INSTRUMENT",
        "did you mean BTC/USDT?",
        ("BTC/USDT",),
    )
    error = await refused(ask("market_get_instrument", symbol="ETH/USDT"))
    assert error.suggestion == "use market_search_instruments"  # another asset is no misspelling of this one
    error = await refused(ask("market_get_instrument", symbol="BTC/USDT", venue="kraken"))
    assert (error.code, error.allowed) == ("UNKNOWN_VENUE", ("binance", "paper"))
    error = await refused(ask("market_get_instrument", symbol="BTC/USDT", venue="Binance"))
    assert error.suggestion == "did you mean binance?"
    error = await refused(ask("market_get_tickers", symbols=["BTC/USDT"], venue="all"))
    assert error.suggestion == "name one of the allowed, or leave venue out"
    assert (await ask("market_search_instruments", query="doge"))["instruments"] == []
    assert len((await ask("market_search_instruments"))["instruments"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"amount": "0"}, "INVALID_NUMBER"),
        ({"amount": "-1"}, "INVALID_NUMBER"),
        ({"amount": 1.5}, "INVALID_NUMBER"),
        ({"amount": "NaN"}, "INVALID_NUMBER"),
        ({"amount": "0.000001"}, "QUANTITY_TOO_SMALL"),
        ({"amount": "1", "unit": "percent"}, "INVALID_ARGUMENTS"),
        ({"amount": "1", "side": "hold"}, "INVALID_ARGUMENTS"),
        ({"amount": "1", "sise": "buy"}, "INVALID_ARGUMENTS"),
    ],
)
async def test_wrong_arguments_are_named(ask: Asker, still: Still, arguments: dict[str, Any], code: str) -> None:
    still.book(*DEEP)
    asked = {"symbol": "BTC/USDT", "side": "buy", **arguments}
    assert (await refused(ask("market_estimate_fill", **asked))).code == code


async def test_candles_come_as_equal_columns_and_say_when_some_were_left_out(ask: Asker, still: Still) -> None:
    for second in range(150):
        still.candles.add(BTC, 60_000 + second * 1_000, Decimal(100 + second), Decimal("0.1"))
    asked = {"symbol": "BTC/USDT", "timeframe": "1s", "lookback": "1h"}
    reply = await ask.reply("market_get_candles", **asked)
    data = reply["data"]
    assert {len(data[name]) for name in ("open_ts_ms", "open", "high", "low", "close", "volume")} == {100}
    assert data["open_ts_ms"][-1] == 60_000 + 149_000
    assert (reply["meta"]["truncated"], data["last_closed"], data["first_complete"]) == (True, False, True)
    recent = await ask("market_get_candles", **{**asked, "timeframe": "1m", "lookback": "1m"})
    assert (recent["open"], recent["close"]) == (["160", "220"], ["219", "249"])
    assert (await refused(ask("market_get_candles", **{**asked, "lookback": "soon"}))).code == "INVALID_LOOKBACK"
    assert (await refused(ask("market_get_candles", **{**asked, "timeframe": "7m"}))).code == "INVALID_TIMEFRAME"


async def test_the_ticker_shows_last_price_volume_and_age(ask: Asker, still: Still) -> None:
    still.book(*DEEP)
    still.feed.publish_trade(TradeUpdate(BTC, "1", "100.5", "2", Side.BUY, 5, 6))
    still.candles.add(BTC, 5, Decimal("100.5"), Decimal(2))
    still.clock.advance(40)
    ticker = (await ask("market_get_tickers", symbols=["BTC/USDT"], venue="paper"))["tickers"][0]
    expected = {
        "symbol": "BTC/USDT",
        "venue": "binance",
        "bid": "99",
        "ask": "101",
        "mid": "100",
        "last": "100.5",
        "volume": "2",
        "age_ms": 40,
        "stale": False,
        "source": "replay",
    }
    assert {name: ticker[name] for name in expected} == expected


async def test_an_ended_recording_is_a_reason_not_to_trade(ask: Asker, still: Still) -> None:
    still.book(*DEEP)
    still.state = SourceStatus(SourceState.ENDED, "RECORDING_ENDED", "the recording is over")
    status = await ask("market_get_status")
    assert (first_code(status), status["reasons"]) == ("RECORDING_ENDED", ["the recording is over"])


def test_quote_beyond_the_book_counts_at_the_last_price() -> None:
    levels = [(Decimal(100), Decimal(1)), (Decimal(200), Decimal(1))]
    assert base_for_quote(levels, Decimal(50)) == Decimal("0.5")
    assert base_for_quote(levels, Decimal(700)) == Decimal(4)


# ---- settings


@pytest.mark.parametrize(("mode", "source"), [("testnet", "replay"), ("live", "replay")])
def test_real_modes_refuse_recorded_prices(mode: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREKKO_MODE", mode)
    monkeypatch.setenv("GREKKO_MARKET_SOURCE", source)
    with pytest.raises(ConfigurationError, match="live market data only"):
        build()


@pytest.mark.parametrize("line", ["speed = -1", "speed = nan", 'source = "synthetic"', "spead = 1", "max_age_ms = 1"])
def test_a_wrong_section_refuses_to_start(line: str, home: Path) -> None:
    (home / "config.toml").write_text(f"[market]\n{line}\n")
    with pytest.raises(ConfigurationError):
        build()


@pytest.mark.parametrize(
    "text",
    [
        'market_venue = "binanse"\n[market]\nsource = "live"\n',
        '[market]\nsource = "live"\nvenues = ["kraken", "binanse"]\n',
        '[market]\nsource = "live"\n[venues.binanse]\nrest_url = "http://127.0.0.1:1"\n',
    ],
)
def test_a_live_venue_that_does_not_exist_refuses_to_start_with_the_nearest_name(text: str, home: Path) -> None:
    (home / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="binanse") as caught:
        build()
    assert caught.value.code == "UNKNOWN_VENUE"
    assert caught.value.allowed[0] == "binance"
    assert "binance" in caught.value.suggestion
    (home / "config.toml").write_text(text.replace("binanse", "binance"))
    build()


def test_a_recording_needs_no_venue_that_can_be_read_live(home: Path) -> None:
    (home / "config.toml").write_text('market_venue = "mtgox"\n[market]\nsource = "replay"\n')
    build()


def test_the_venues_with_live_data_are_those_that_ccxt_knows() -> None:
    import ccxt.pro as ccxt_pro  # takes a second

    assert live_venues() == tuple(sorted(ccxt_pro.exchanges))


@pytest.mark.parametrize("line", ['rest_ur = "http://127.0.0.1:1"', "rest_url = 7", 'ws_url = ["ws://127.0.0.1:1"]'])
def test_a_venue_is_not_read_at_its_real_address_because_of_a_typing_error(line: str, home: Path) -> None:
    (home / "config.toml").write_text(f"[venues.binance]\n{line}\n")
    with pytest.raises(ConfigurationError, match=line.partition(" ")[0]):
        load_addresses("binance")


def test_other_addresses_must_be_encrypted_or_local(home: Path) -> None:
    write: Callable[[str], int] = (home / "config.toml").write_text
    write('[venues.binance]\nrest_url = "http://evil.example"\n')
    with pytest.raises(ConfigurationError):
        load_addresses("binance")
    write('[venues.binance]\nws_url = "ws://localhost:1/stream"\nrest_url = "https://testnet.example"\n')
    assert load_addresses("binance").ws_url == "ws://localhost:1/stream"
