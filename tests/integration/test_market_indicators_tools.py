"""Indicators and statistics as a client meets them, over a replay that stands at some hour."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client

from mcp_servers.envelope import MAX_CHARS, timestamp
from mcp_servers.hosting import DeskServer, ToolFailure, build_server, call, call_reply, open_client, tool_kind
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.figures import figure
from mcp_servers.market.history import BARS_MAX, History
from mcp_servers.market.indicators import DEFINITIONS, parse_indicator
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.prices import Prices
from mcp_servers.market.sources.ohlcv import OhlcvSource
from mcp_servers.market.statistics import compare, measure
from mcp_servers.market.tools import analysis
from mcp_servers.market.tools import candles as candle_tools
from tests.market_history_support import ETH, HOUR_MS, candles, hourly
from tests.market_support import BTC
from tests.mcp_harness import check_conventions
from trading.adapters.market_stream import LocalMarketFeed
from trading.domain.identifiers import Venue
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.strategy.series import bars_of
from trading.testing.clock import ManualClock

ERAS = ("auto", "legacy")
ALL = 1 + 2 * 600  # updates of the whole recording: rules, and the bars of two instruments
EVERY = [name for name in DEFINITIONS if name != "obv"]


@dataclass(frozen=True)
class Room:
    """The parts of the market room that these tools use."""

    prices: Prices
    history: History
    time: MarketTime


async def room_at(updates: int) -> Room:
    """Return a room whose replay has given so many updates."""
    clock, store = ManualClock(), CandleStore()
    feed = LocalMarketFeed(clock, feed=Feed.REPLAY)
    source = OhlcvSource(hourly(), clock, speed=0)
    pipeline = MarketPipeline(source, (feed,), store, clock)
    series = source.updates()
    for _ in range(updates):
        pipeline.handle(await anext(series))
    prices = Prices(
        feed, store, clock, venue=Venue("binance"), aliases=(Venue("paper"),), max_age_ms=3_000, source=source.status
    )
    time = MarketTime(store, clock=None)
    return Room(prices, History(store, time=time), time)


def server_of(room: Room) -> DeskServer[Room]:
    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Room]:
        yield room

    server: DeskServer[Room] = build_server(
        "grekko-market", title="Market", instructions="x", lifespan=lifespan, mode=Mode.PAPER
    )
    read = tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read")
    analysis.register(read)
    candle_tools.register(read)
    return server


@asynccontextmanager
async def asking(updates: int = ALL, era: str = "auto") -> AsyncGenerator[Client]:
    async with open_client(server_of(await room_at(updates)), era) as client:
        yield client


async def refused(client: Client, tool: str, **arguments: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as failure:
        await call(client, tool, **arguments)
    return failure.value


RSI = {"symbol": "BTC/USDT", "timeframe": "1h", "indicators": ["rsi:14", "macd:12:26:9"]}
BOTH = {"symbols": ["BTC/USDT", "ETH/USDT"], "timeframe": "1h", "lookback": "3w"}


@pytest.mark.parametrize("era", ERAS)
async def test_indicators_come_as_columns_with_their_terms(era: str) -> None:
    async with asking(era=era) as client:
        reply = await call_reply(client, "market_get_indicators", **RSI, bars=5)
    data, bars = reply["data"], bars_of(candles(0))
    assert data["open_ts_ms"] == [candle.open_ts_ms for candle in candles(0)[-5:]]
    assert list(data["lines"]) == ["rsi:14", "macd:12:26:9.macd", "macd:12:26:9.signal", "macd:12:26:9.histogram"]
    assert "Wilder" in data["definitions"]["rsi:14"]
    assert "needs 34 bars" in data["definitions"]["macd:12:26:9"]
    assert data["unsettled"] == []
    assert data["notes"] == ["5 intervals without a whole bar"]  # the exchange was down, twice
    for key, line in data["lines"].items():
        name, _, part = key.partition(".")
        expected = parse_indicator(name).compute(bars)[part or "value"]
        for shown, exact in zip(line, expected[-5:], strict=True):
            assert Decimal(shown) == pytest.approx(figure(exact), rel=Decimal("1e-5"))
    assert reply["meta"]["as_of"] == timestamp(candles(0)[-1].open_ts_ms + HOUR_MS)
    assert (reply["meta"]["venue"], reply["meta"]["truncated"], reply["meta"]["source"]) == ("binance", False, "trades")


@pytest.mark.parametrize("era", ERAS)
async def test_statistics_come_one_value_per_symbol(era: str) -> None:
    async with asking(era=era) as client:
        reply = await call_reply(client, "market_get_statistics", **BOTH)
        alone = await call(client, "market_get_statistics", **{**BOTH, "symbols": ["ETH/USDT"]})
        led = await call(client, "market_get_statistics", **{**BOTH, "symbols": ["ETH/USDT"], "benchmark": "BTC/USDT"})
    data = reply["data"]
    asked = candles(0)[-1].open_ts_ms + HOUR_MS - 21 * 24 * HOUR_MS
    series = [[candle for candle in candles(index) if candle.open_ts_ms >= asked] for index in (0, 1)]
    measured, compared = [measure(one) for one in series], compare(series[1], series[0])
    assert data["returns"] == [one.returns for one in measured]
    for name in ("volatility", "volatility_error", "ewma", "parkinson", "garman_klass", "max_drawdown", "skew"):
        assert [Decimal(value) for value in data["figures"][name]] == [figure(getattr(one, name)) for one in measured]
    for name in ("beta", "beta_error", "correlation", "correlation_error"):
        assert Decimal(data["figures"][name][1]) == figure(getattr(compared, name))
        assert led["figures"][name] == [data["figures"][name][1]]
    assert (data["benchmark"], alone["benchmark"], led["benchmark"]) == ("BTC/USDT", None, "BTC/USDT")
    assert "beta" not in alone["figures"]
    assert "365 days" in data["definition"]
    assert data["notes"] == ["BTC/USDT: 2 returns across gaps left out", "ETH/USDT: 2 returns across gaps left out"]


async def test_the_tools_keep_the_conventions_and_their_part_of_the_budget() -> None:
    async with asking(1) as client:
        await check_conventions(client, "market")
        for tool in (await client.list_tools()).tools:
            if tool.name == "market_get_candles":
                continue
            spent = [tool.name, tool.description, tool.input_schema], tool.output_schema
            tokens = [len(json.dumps(part, separators=(",", ":"))) // 4 for part in spent]
            assert tokens[0] <= 240, (tool.name, tokens)
            assert tokens[1] <= 340, (tool.name, tokens)


async def test_before_there_are_enough_bars_the_numbers_are_named() -> None:
    async with asking(1 + 2 * 20) as client:
        failure = await refused(client, "market_get_indicators", **RSI)
        assert (failure.code, failure.retryable) == ("NOT_ENOUGH_HISTORY", "no")
        assert "macd:12:26:9 needs 34 closed bars; there are 20" in str(failure)
        young = await call(client, "market_get_indicators", **{**RSI, "indicators": ["rsi:14"]})
        assert young["bars_read"] == 20
        assert (young["symbol"], young["venue"], young["timeframe"]) == ("BTC/USDT", "binance", "1h")
        assert young["unsettled"] == ["rsi:14"]
        line = young["lines"]["rsi:14"]
        assert line[:14] == [None] * 14  # absent before the warm-up, not zero
        assert all(value is not None for value in line[14:])
        failure = await refused(client, "market_get_statistics", **BOTH)
        assert failure.code == "NOT_ENOUGH_HISTORY"
        assert "20 returns of BTC/USDT are needed; there are 19" in str(failure)


async def test_a_market_that_has_given_nothing_is_starting() -> None:
    async with asking(1) as client:
        for tool, arguments in (("market_get_indicators", RSI), ("market_get_statistics", BOTH)):
            for more in ({}, {"as_of": "2020-12-10T00:00:00Z"}):
                failure = await refused(client, tool, **arguments, **more)
                assert (failure.code, failure.retryable) == ("MARKET_STARTING", "after_ms")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("market_get_indicators", {"indicators": ["rsl:14"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["rsi:NaN"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["rsi:1000000000000000000000"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["sma:-5"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["\u0440si:14"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["🚀"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": ["rsi:14\u202e"]}, "INVALID_INDICATOR"),
    ("market_get_indicators", {"indicators": []}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"indicators": ["rsi"] * 1_000}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"indicators": ["x" * 100_000]}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"indicators": [14]}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"indicators": "rsi"}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"indicators": [None]}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"bars": 0}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"bars": 10**12}, "INVALID_ARGUMENTS"),
    ("market_get_indicators", {"timeframe": "7m"}, "INVALID_TIMEFRAME"),
    ("market_get_indicators", {"timeframe": "1m"}, "INVALID_TIMEFRAME"),
    ("market_get_indicators", {"as_of": "NaN"}, "INVALID_TIME"),
    ("market_get_indicators", {"as_of": "2020-12-10"}, "INVALID_TIME"),
    ("market_get_indicators", {"as_of": "2999-01-01T00:00:00Z"}, "LOOK_AHEAD"),
    ("market_get_indicators", {"as_of": "2020-12-01T00:00:00Z"}, "NOT_ENOUGH_HISTORY"),
    ("market_get_indicators", {"symbol": "DOGE/USDT"}, "UNKNOWN_INSTRUMENT"),
    ("market_get_indicators", {"venue": "mtgox"}, "UNKNOWN_VENUE"),
    ("market_get_indicators", {"indicators": ["sma:400"], "timeframe": "1d"}, "NOT_ENOUGH_HISTORY"),
    ("market_get_statistics", {"symbols": []}, "INVALID_ARGUMENTS"),
    ("market_get_statistics", {"symbols": ["BTC/USDT"] * 11}, "INVALID_ARGUMENTS"),
    ("market_get_statistics", {"symbols": ["BTC/USDT", "DOGE/USDT"]}, "UNKNOWN_INSTRUMENT"),
    ("market_get_statistics", {"benchmark": "DOGE/USDT"}, "UNKNOWN_INSTRUMENT"),
    ("market_get_statistics", {"benchmark": "x" * 1_000}, "INVALID_ARGUMENTS"),
    ("market_get_statistics", {"lookback": "-5d"}, "INVALID_LOOKBACK"),
    ("market_get_statistics", {"lookback": "999999w"}, "INVALID_LOOKBACK"),
    ("market_get_statistics", {"lookback": "NaN"}, "INVALID_LOOKBACK"),
    ("market_get_statistics", {"lookback": "1h"}, "NOT_ENOUGH_HISTORY"),
    ("market_get_statistics", {"as_of": "2999-01-01T00:00:00Z"}, "LOOK_AHEAD"),
    ("market_get_statistics", {"as_of": "\uff12020-12-10T00:00:00Z"}, "INVALID_TIME"),
    ("market_get_statistics", {"venue": "mtgox"}, "UNKNOWN_VENUE"),
]


@pytest.mark.parametrize("era", ERAS)
async def test_bad_input_gets_a_code_and_the_server_stays_up(era: str) -> None:
    async with asking(era=era) as client:
        for tool, arguments, code in BAD:
            good = RSI if tool == "market_get_indicators" else BOTH
            failure = await refused(client, tool, **{**good, **arguments})
            assert failure.code == code, (arguments, failure.code, str(failure))
            assert len(str(failure)) <= 600
        assert (await call(client, "market_get_indicators", **RSI))["bars_read"] > 100


async def test_the_largest_answers_stay_within_a_reply() -> None:
    several = ["macd", "bollinger", "adx", "keltner", "donchian", "stochastic", "supertrend", "obv"]
    async with asking() as client:
        reply = await call_reply(client, "market_get_indicators", **{**RSI, "indicators": several}, bars=100)
        assert len(json.dumps(reply)) <= MAX_CHARS
        assert reply["meta"]["truncated"] is True
        shown = len(reply["data"]["open_ts_ms"])
        assert 10 < shown < 100
        assert all(len(line) == shown for line in reply["data"]["lines"].values())
        assert reply["data"]["unsettled"] == ["supertrend:10:3", "obv"]  # these never forget
        reply = await call_reply(client, "market_get_indicators", **{**RSI, "indicators": ["sma"]}, bars=100)
        assert (len(reply["data"]["open_ts_ms"]), reply["meta"]["truncated"]) == (100, False)
        reply = await call_reply(client, "market_get_statistics", **{**BOTH, "lookback": "520w"})
        assert len(json.dumps(reply)) <= MAX_CHARS
        assert reply["data"]["returns"] == [597, 597]


@pytest.mark.parametrize("timeframe", ["1h", "4h", "1d"])
async def test_a_longer_timeframe_leaves_out_what_is_not_over_or_not_whole(timeframe: str) -> None:
    async with asking() as client:
        found = await call(
            client, "market_get_indicators", symbol="BTC/USDT", timeframe=timeframe, indicators=["sma:2"]
        )
    interval = {"1h": 1, "4h": 4, "1d": 24}[timeframe] * HOUR_MS
    begin, end = candles(0)[0].open_ts_ms, candles(0)[-1].open_ts_ms + HOUR_MS
    assert found["open_ts_ms"][-1] == end - end % interval - interval
    assert found["open_ts_ms"][0] >= begin


# ---- no look ahead


@settings(max_examples=25, deadline=None)
@given(
    reached=st.integers(1 + 2 * 60, ALL),
    back_ms=st.integers(-10 * HOUR_MS, 700 * HOUR_MS),
    timeframe=st.sampled_from(["1h", "4h", "1d"]),
)
async def test_no_tool_shows_what_closes_after_the_asked_moment_or_the_present(
    reached: int, back_ms: int, timeframe: str
) -> None:
    room = await room_at(reached)
    now = room.time.now_ms(BTC)
    as_of = max(0, now - back_ms)
    interval = {"1h": 1, "4h": 4, "1d": 24}[timeframe] * HOUR_MS
    questions: list[tuple[str, dict[str, Any]]] = [
        (
            "market_get_indicators",
            {"symbol": "BTC/USDT", "timeframe": timeframe, "indicators": ["sma:2", "ema:3"], "bars": 100},
        ),
        ("market_get_candles", {"symbol": "BTC/USDT", "timeframe": timeframe, "lookback": "40d"}),
        ("market_get_statistics", {"symbols": ["BTC/USDT"], "timeframe": timeframe, "lookback": "40d"}),
    ]
    async with open_client(server_of(room)) as client:
        for tool, arguments in questions:
            try:
                reply = await call_reply(client, tool, **arguments, as_of=timestamp(as_of))
            except ToolFailure as failure:
                expected = "LOOK_AHEAD" if as_of > now else "NOT_ENOUGH_HISTORY"
                assert failure.code == expected  # noqa: PT017  either outcome is checked
                continue
            assert as_of <= now
            opened = reply["data"].get("open_ts_ms", [])
            closed = opened if reply["data"].get("last_closed", True) else opened[:-1]
            assert all(at + interval <= min(as_of, now) for at in closed)
            assert all(at <= as_of for at in opened)
            assert reply["meta"]["as_of"] == timestamp(as_of)


@settings(max_examples=10, deadline=None)
@given(hour=st.integers(70, 590), later=st.integers(0, 600), timeframe=st.sampled_from(["1h", "4h"]))
async def test_what_happens_later_changes_nothing_of_an_earlier_moment(hour: int, later: int, timeframe: str) -> None:
    then, now = await room_at(1 + 2 * hour), await room_at(min(ALL, 1 + 2 * hour + later))
    moment = timestamp(then.time.now_ms(ETH))
    questions: list[tuple[str, dict[str, Any]]] = [
        (
            "market_get_indicators",
            {"symbol": "ETH/USDT", "timeframe": timeframe, "indicators": ["rsi:5", "obv", "atr:3"]},
        ),
        ("market_get_statistics", {**BOTH, "timeframe": "1h", "lookback": "30d"}),
    ]
    async with open_client(server_of(then)) as before, open_client(server_of(now)) as after:
        for tool, arguments in questions:
            first = await call(before, tool, **arguments)
            assert await call(before, tool, **arguments, as_of=moment) == first
            assert await call(after, tool, **arguments, as_of=moment) == first


async def test_every_indicator_can_be_asked_for() -> None:
    async with asking() as client:
        for start in range(0, len(EVERY), 8):
            found = await call(
                client, "market_get_indicators", **{**RSI, "indicators": EVERY[start : start + 8]}, bars=3
            )
            assert [name.split(":")[0] for name in found["definitions"]] == EVERY[start : start + 8]
            assert all(len(line) == 3 and None not in line for line in found["lines"].values())
        listed = (
            next(t for t in (await client.list_tools()).tools if t.name == "market_get_indicators").description or ""
        )
        assert all(name in listed for name in DEFINITIONS)
    assert BARS_MAX >= 2 * 400  # the longest parameters can be answered
