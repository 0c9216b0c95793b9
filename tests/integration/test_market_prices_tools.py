"""Tickers, books, comparison and fill estimates over several venues, through a real client in both eras."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.envelope import timestamp
from mcp_servers.hosting import DeskServer, ToolFailure, build_server, call_reply, open_client, tool_kind
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.health import FeedHealth
from mcp_servers.market.prices import Prices
from mcp_servers.market.quality import QualityJudge
from mcp_servers.market.settings import QualitySettings
from mcp_servers.market.sources.base import SourceState, SourceStatus
from mcp_servers.market.tools import prices as tools
from mcp_servers.market.venues import VenueBoard
from tests.mcp_harness import check_conventions
from trading.adapters.market_stream import BookUpdate, LocalMarketFeed, TradeUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side
from trading.domain.proposals import Mode
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock

SYMBOL = Symbol("BTC/USDT")
VENUES = tuple(Venue(name) for name in ("binance", "kraken", "okx"))
RUNNING = SourceStatus(SourceState.RUNNING)


@dataclass(frozen=True)
class Room:
    """As much of the room as these tools need."""

    prices: Prices


class ThreeVenues:
    """A live feed of three venues that the test fills by hand; kraken takes four times the fee of the others."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        rules = [build_instrument(venue=venue, fee="0.004" if venue == "kraken" else "0.001") for venue in VENUES]
        self.feed = LocalMarketFeed(self.clock, feed=Feed.LIVE, instruments=rules)
        self.candles = CandleStore()
        self.judge = QualityJudge(QualitySettings(), self.clock, 3_000)
        board = VenueBoard(
            self.feed, VENUES, (SYMBOL,), judge=self.judge, clock=self.clock, health=lambda _: FeedHealth(RUNNING)
        )
        prices = Prices(
            self.feed, self.candles, self.clock,
            venue=VENUES[0], aliases=(Venue("paper"),), max_age_ms=3_000,
            source=lambda: RUNNING, judge=self.judge, board=board,
        )  # fmt: skip
        self.room = Room(prices)

    def book(self, venue: str, bids: list[list[str]], asks: list[list[str]], *, lag_ms: int = 20) -> None:
        now = self.clock.now_ms()
        update = BookUpdate(InstrumentId(Venue(venue), SYMBOL), bids, asks, now - lag_ms, now)
        if self.judge.observe(update) is not None:
            update = replace(update, bids=[], asks=[], state="outlier")
        self.feed.publish_book(update)

    def usual(self) -> None:
        self.book("binance", [["100", "1"], ["98", "10"]], [["102", "1"], ["103", "10"]])
        self.book("kraken", [["101", "2"]], [["101.9", "2"]])
        self.book("okx", [["99.5", "3"]], [["102", "5"]])

    def server(self) -> DeskServer[Room]:
        server = build_server("grekko-market", title="Market", instructions="x", lifespan=self._life, mode=Mode.PAPER)
        read = tool_kind(
            server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read"
        )
        tools.register(read)
        return server

    @asynccontextmanager
    async def _life(self) -> AsyncIterator[Room]:
        yield self.room


@pytest.fixture
def market() -> ThreeVenues:
    return ThreeVenues()


class Asker:
    def __init__(self, market: ThreeVenues, era: str) -> None:
        self._market, self._era = market, era

    async def reply(self, tool: str, **arguments: Any) -> dict[str, Any]:
        async with open_client(self._market.server(), self._era) as client:
            return await call_reply(client, f"market_{tool}", **arguments)

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self.reply(tool, **arguments))["data"]


@pytest.fixture(params=["auto", "legacy"])
def ask(request: pytest.FixtureRequest, market: ThreeVenues) -> Asker:
    return Asker(market, request.param)


async def refused(awaitable: Awaitable[Any]) -> ToolFailure:
    with pytest.raises(ToolFailure) as failure:
        await awaitable
    return failure.value


async def test_the_tools_keep_the_conventions_and_their_part_of_the_budget(market: ThreeVenues) -> None:
    async with open_client(market.server()) as client:
        await check_conventions(client, "market")
        found = (await client.list_tools()).tools
        assert len(found) == 4
        sizes = [len(json.dumps(tool.output_schema, separators=(",", ":"))) // 4 for tool in found]
        assert sum(sizes) <= 1_300, sizes


async def test_a_ticker_says_when_and_where_it_is_from(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    at = market.clock.now_ms()
    market.feed.publish_trade(TradeUpdate(InstrumentId(VENUES[0], SYMBOL), "1", "101", "1", Side.BUY, at - 20, at))
    market.clock.advance(250)
    reply = await ask.reply("get_tickers", symbols=["BTC/USDT"])
    row, now = reply["data"]["tickers"][0], market.clock.now_ms()
    assert (row["bid"], row["ask"], row["mid"], row["last"]) == ("100", "102", "101", "101")
    assert (row["venue_ts_ms"], row["received_ts_ms"]) == (now - 270, now - 250)
    assert (row["age_ms"], row["last_age_ms"], row["source"], row["marks"]) == (250, 250, "live", [])
    assert (row["stale"], row["failed_over_from"], reply["meta"]["age_ms"]) == (False, None, 250)


async def test_a_last_price_is_as_old_as_its_trade_however_late_it_was_told(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    now = market.clock.now_ms()
    told = TradeUpdate(InstrumentId(VENUES[0], SYMBOL), "1", "90", "1", Side.BUY, now - 3_600_020, now)
    market.feed.publish_trade(told)  # a venue sends its last trades to whoever connects
    (row,) = (await ask("get_tickers", symbols=["BTC/USDT"]))["tickers"]
    assert (row["last"], row["last_age_ms"], row["age_ms"]) == ("90", 3_600_000, 0)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("get_tickers", {"symbols": ["BTC/USDT"]}),
        ("get_order_book", {"symbol": "BTC/USDT"}),
        ("get_order_book", {"symbol": "BTC/USDT", "venue": "all"}),
        ("compare_venues", {"symbol": "BTC/USDT"}),
        ("estimate_fill", {"symbol": "BTC/USDT", "side": "buy", "amount": "1"}),
    ],
)
async def test_every_price_says_in_the_same_words_of_when_it_is_and_from_where(
    ask: Asker, market: ThreeVenues, tool: str, arguments: dict[str, Any]
) -> None:
    market.usual()
    arrived = market.clock.now_ms()
    market.clock.advance(250)
    meta = (await ask.reply(tool, **arguments))["meta"]
    assert (meta["as_of"], meta["age_ms"], meta["source"]) == (timestamp(arrived), 250, "live")


async def test_when_the_desks_venue_fails_another_stands_in_and_says_so(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    market.clock.advance(3_001)
    market.book("kraken", [["101", "2"]], [["103", "2"]])
    row = (await ask("get_tickers", symbols=["BTC/USDT"]))["tickers"][0]
    assert (row["venue"], row["failed_over_from"], row["stale"]) == ("kraken", "binance", False)
    own = (await ask("get_tickers", symbols=["BTC/USDT"], venue="binance"))["tickers"][0]
    assert (own["venue"], own["stale"], own["marks"]) == ("binance", True, ["stale"])
    fill = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="1")
    assert fill["venue"] == "kraken"
    assert "stale" in fill["left_out"]["binance"]


async def test_a_book_is_shown_with_its_marks_but_prices_nothing(ask: Asker, market: ThreeVenues) -> None:
    market.book("binance", [["100", "1"]], [])
    book = await ask("get_order_book", symbol="BTC/USDT", venue="binance")
    assert (book["bids"], book["asks"], book["stale"], book["marks"]) == ([["100", "1"]], [], True, ["one_sided"])
    error = await refused(ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="1", venue="binance"))
    assert (error.code, "one sided" in str(error)) == ("STALE_DATA", True)


async def test_the_merged_book_names_the_venue_of_every_level(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    book = await ask("get_order_book", symbol="BTC/USDT", venue="all", depth=3)
    assert book["bids"] == [["101", "2"], ["100", "1"], ["99.5", "3"]]
    assert book["bid_venues"] == ["kraken", "binance", "okx"]
    assert book["asks"] == [["101.9", "2"], ["102", "5"], ["102", "1"]]
    assert book["ask_venues"] == ["kraken", "okx", "binance"]
    assert (book["venue"], book["left_out"], book["stale"]) == ("all", {}, False)
    paid = await ask("get_order_book", symbol="BTC/USDT", venue="all", depth=3, with_fees=True)
    assert paid["asks"][:2] == [["102.102", "5"], ["102.102", "1"]]
    assert paid["bid_venues"] == ["kraken", "binance", "okx"]
    assert paid["bids"][0] == ["100.596", "2"]
    one = await ask("get_order_book", symbol="BTC/USDT", venue="binance", depth=1, with_fees=True)
    assert (one["bids"], one["asks"], one["bid_venues"]) == ([["99.9", "1"]], [["102.102", "1"]], [])


async def test_an_unusable_venue_is_left_out_of_everything_merged_and_named(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    market.clock.advance(1_000)
    market.book("kraken", [["150", "2"]], [["151", "2"]])  # an outlier: the others still say 101
    for tool, more in (("get_order_book", {"venue": "all"}), ("compare_venues", {})):
        data = await ask(tool, symbol="BTC/USDT", **more)
        assert list(data["left_out"]) == ["kraken"], tool
        assert "outlier" in data["left_out"]["kraken"]
    compared = await ask("compare_venues", symbol="BTC/USDT")
    assert (compared["ask"], compared["ask_venue"], compared["index"]) == ("102", "okx", "100.875")
    assert {row["venue"]: row["marks"] for row in compared["venues"]}["kraken"] == ["empty", "outlier"]
    fill = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="1", venue="all")
    assert (list(fill["parts"]), list(fill["left_out"])) == (["okx"], ["kraken"])


async def test_venues_are_compared_with_spread_deviation_index_and_volume(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    for venue, amount in (("binance", "1.5"), ("okx", "2")):
        market.candles.add(InstrumentId(Venue(venue), SYMBOL), 60_000, Decimal(100), Decimal(amount))
    reply = await ask.reply("compare_venues", symbol="BTC/USDT")
    data = reply["data"]
    assert (data["bid"], data["bid_venue"], data["ask"], data["ask_venue"]) == ("101", "kraken", "101.9", "kraken")
    assert (data["index"], data["mid"], data["mark"], data["volume"]) == ("101", "101.45", "101", "3.5")
    assert data["spread_bps"] == "88.7137"
    assert Decimal(data["spread_after_fees_bps"]) > Decimal(data["spread_bps"])
    rows = {row["venue"]: row for row in data["venues"]}
    assert {venue: row["deviation_bps"] for venue, row in rows.items()} == {
        "binance": "0", "kraken": "44.5545", "okx": "-24.7525",
    }  # fmt: skip
    assert (rows["okx"]["volume"], rows["okx"]["skew_ms"], rows["okx"]["source"]) == ("2", 20, "live")
    assert rows["okx"]["received_ts_ms"] - rows["okx"]["venue_ts_ms"] == 20
    assert reply["meta"]["venue"] == "all"


async def test_a_spread_below_zero_is_shown_as_such(ask: Asker, market: ThreeVenues) -> None:
    market.book("binance", [["100", "1"]], [["100.5", "1"]])
    market.book("okx", [["101", "1"]], [["101.5", "1"]])
    data = await ask("compare_venues", symbol="BTC/USDT")
    assert (data["bid_venue"], data["ask_venue"]) == ("okx", "binance")
    assert Decimal(data["spread_bps"]) < 0
    assert data["left_out"] == {"kraken": "no book yet"}


async def test_an_order_over_all_venues_goes_where_it_is_cheapest_with_fees(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    fill = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="6.5", venue="all")
    # 102 with 10 bps at binance and okx beats 101.9 with 40 bps at kraken.
    assert fill["parts"] == {"binance": "1", "kraken": "0.5", "okx": "5"}
    assert (fill["filled"], fill["unfilled"], fill["notional"]) == ("6.5", "0", "662.95")
    assert Decimal(fill["fee"]) == Decimal("0.001") * 612 + Decimal("0.004") * Decimal("50.95")
    assert fill["fee_assumed"] is True
    alone = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="6.5", venue="binance")
    assert Decimal(alone["notional"]) + Decimal(alone["fee"]) > Decimal(fill["notional"]) + Decimal(fill["fee"])
    spent = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="612", unit="quote", venue="all")
    assert (spent["requested"], spent["notional"]) == ("6", "612")


async def test_both_sides_at_once_and_what_the_round_trip_costs(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    fill = await ask("estimate_fill", symbol="BTC/USDT", side="both", amount="1", venue="binance")
    sell = fill["opposite"]
    assert (fill["side"], fill["vwap"], sell["side"], sell["vwap"], sell["opposite"]) == (
        "buy", "102", "sell", "100", None,
    )  # fmt: skip
    assert (fill["impact_bps"], sell["impact_bps"]) == ("99.0099", "99.0099")
    bought, sold = Decimal("102.102"), Decimal("99.9")
    assert Decimal(fill["break_even_bps"]) == round((bought / sold - 1) * 10_000, 4)
    assert Decimal(sell["break_even_bps"]) == round((1 - sold / bought) * 10_000, 4)
    once = await ask("estimate_fill", symbol="BTC/USDT", side="sell", amount="1", venue="binance")
    assert {**once, "opposite": None} == sell
    deep = await ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="50", venue="binance")
    assert deep["unfilled"] == "39"
    assert Decimal(deep["break_even_bps"]) > Decimal(fill["break_even_bps"])


async def test_with_no_usable_venue_everything_that_prices_is_refused(ask: Asker, market: ThreeVenues) -> None:
    market.usual()
    market.clock.advance(5_000)
    error = await refused(ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="1", venue="all"))
    assert (error.code, error.retryable) == ("STALE_DATA", "after_ms")
    assert all(venue in str(error) for venue in VENUES)
    compared = await ask("compare_venues", symbol="BTC/USDT")
    assert (compared["bid"], compared["index"], compared["spread_bps"]) == (None, None, None)
    assert len(compared["venues"]) == len(compared["left_out"]) == 3
    book = await ask("get_order_book", symbol="BTC/USDT", venue="all")
    assert (book["bids"], book["asks"], book["stale"]) == ([], [], True)


async def test_before_any_book_and_for_unknown_names_the_refusal_says_which(ask: Asker, market: ThreeVenues) -> None:
    for tool, more in (("get_order_book", {"venue": "all"}), ("compare_venues", {})):
        assert (await refused(ask(tool, symbol="BTC/USDT", **more))).code == "NO_BOOK"
        assert (await refused(ask(tool, symbol="BTC/USD", **more))).code == "UNKNOWN_INSTRUMENT"
    error = await refused(ask("estimate_fill", symbol="BTC/USDT", side="buy", amount="1", venue="nyse"))
    assert (error.code, "kraken" in error.allowed) == ("UNKNOWN_VENUE", True)


@pytest.mark.parametrize(
    ("amount", "code"),
    [("0.00000001", "QUANTITY_TOO_SMALL"), ("0.04", "QUANTITY_TOO_SMALL"), ("1e999", "INVALID_NUMBER")],
)
async def test_an_amount_that_no_venue_takes_is_refused(
    ask: Asker, market: ThreeVenues, amount: str, code: str
) -> None:
    market.usual()  # the least notional is 5 USDT
    for venue in ("all", "binance"):
        error = await refused(ask("estimate_fill", symbol="BTC/USDT", side="buy", amount=amount, venue=venue))
        assert error.code == code


async def test_the_longest_answers_stay_within_the_bound(ask: Asker, market: ThreeVenues) -> None:
    for venue in VENUES:
        bids = [[f"{60_000 - i / 100:.2f}", f"{i + 1}.12345"] for i in range(50)]
        asks = [[f"{60_001 + i / 100:.2f}", f"{i + 1}.12345"] for i in range(50)]
        market.book(venue, bids, asks)
    book = await ask.reply("get_order_book", symbol="BTC/USDT", venue="all", depth=50, with_fees=True)
    tickers = await ask.reply("get_tickers", symbols=["BTC/USDT"] * 20)
    assert len(book["data"]["bids"]) == 50
    assert max(len(json.dumps(reply, separators=(",", ":"))) for reply in (book, tickers)) < 10_000
