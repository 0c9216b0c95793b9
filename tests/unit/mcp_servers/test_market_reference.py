"""Questions to venues, answered by a fake exchange: what is made of the answers, and what happens without any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, cast

import pytest

from mcp_servers.hosting import ToolFailure, build_server, call_reply, open_client, tool_kind
from mcp_servers.market.cache import AnswerCache, CachedAnswer
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.prices import Prices
from mcp_servers.market.reference import Reference
from mcp_servers.market.sources.base import SourceState, SourceStatus
from mcp_servers.market.sources.ccxt.exchange import HttpFailure, RestExchange
from mcp_servers.market.sources.ccxt.failures import VenueUnavailable
from mcp_servers.market.symbol_search import compact, search, spelled
from mcp_servers.market.tools import instruments as tools
from tests.market_support import BTC
from trading.adapters.market_stream import LocalMarketFeed
from trading.domain.errors import InvalidValue, TradingError, UnknownInstrument, UnsupportedFeature
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock

MINUTE = 60_000
BINANCE = Venue("binance")


def market(symbol: str, **changes: Any) -> dict[str, Any]:
    base, quote = symbol.partition(":")[0].split("/")
    return {
        "symbol": symbol,
        "base": base,
        "quote": quote,
        "spot": ":" not in symbol,
        "swap": ":" in symbol,
        "linear": ":" in symbol,
        "active": True,
        "precision": {"price": 0.01, "amount": 1e-05},
        "limits": {"amount": {"min": 1e-05, "max": None}, "cost": {"min": 5, "max": None}},
        "maker": 0.001,
        "taker": 0.002,
        **changes,
    }


SPOT = [
    market("BTC/USDT"), market("BTC/EUR"), market("ETH/BTC"), market("WBTC/USDT"), market("OLD/USDT", active=False),
    market("中/USDT"), market("BAD/USDT", precision={"price": None, "amount": 1}),
]  # fmt: skip
PERPETUAL = [market("BTC/USDT:USDT"), market("BTC/USDC:USDC"), market("ETH/USD:ETH", linear=False)]
FUNDING: dict[str, Any] = {
    "fundingRate": -0.0001, "interval": "8h", "nextFundingTimestamp": None, "fundingTimestamp": 1_750_000_100_000,
    "markPrice": 61000.5, "indexPrice": None, "timestamp": 1_749_999_999_000,
}  # fmt: skip


class FakeRest:
    """An exchange with a table of candles; ``fault`` is raised by whatever is asked."""

    precisionMode = 4  # noqa: N815

    def __init__(self, markets: list[dict[str, Any]], *, page: int = 100) -> None:
        self.has: dict[str, Any] = {"fetchFundingRate": True, "fetchTime": True}
        self.timeframes = {"1m": "1m", "1h": "1h"}
        self.table = {item["symbol"]: item for item in markets}
        self.page = page
        self.rows: list[list[Any]] = []
        self.fault: BaseException | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.closed = False

    async def _say(self, what: tuple[Any, ...], answer: Any) -> Any:
        self.asked.append(what)
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return answer

    async def load_markets(self, reload: bool = False) -> dict[str, Any]:
        return self.table if self.asked and not reload else await self._say(("markets",), self.table)

    async def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> list[list[Any]]:
        rows = [row for row in self.rows if not isinstance(row[0], int) or row[0] >= since][:limit]
        return await self._say(("candles", since, limit), rows)

    async def fetch_ticker(self, symbol: str) -> dict[str, Any]:
        return await self._say(("ticker", symbol), {"bid": 1.5, "ask": 2, "last": None, "timestamp": 7})

    async def fetch_funding_rate(self, symbol: str) -> dict[str, Any]:
        return await self._say(("funding", symbol), FUNDING)

    async def fetch_time(self) -> int:
        return await self._say(("time",), 1_750_000_000_123)

    def feature_value_by_type(self, *_: Any) -> int | None:
        return self.page

    async def close(self) -> None:
        self.closed = True


class Desk:
    """A reference over fake exchanges."""

    def __init__(self, *venues: str, cache: AnswerCache | None = None, deadline_s: float = 5.0) -> None:
        self.clock = ManualClock()
        self.spot, self.perpetual = FakeRest(SPOT), FakeRest(PERPETUAL)
        self.opened: list[tuple[str, str]] = []
        self.reference = Reference(
            [Venue(venue) for venue in venues or ("binance",)],
            self.clock,
            open_=self._open,
            cache=cache,
            deadline_s=deadline_s,
        )

    def _open(self, venue: str, kind: str) -> RestExchange:
        self.opened.append((venue, kind))
        return cast("RestExchange", self.spot if kind == "spot" else self.perpetual)

    async def refusal(self, question: Awaitable[Any]) -> TradingError:
        with pytest.raises(TradingError) as refused:
            await question
        return refused.value


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_instruments_are_the_active_spot_markets_that_make_sense(desk: Desk) -> None:
    found = await desk.reference.instruments("binance")
    assert [item.symbol for item in found] == ["BTC/EUR", "BTC/USDT", "ETH/BTC", "WBTC/USDT"]
    rules, age_ms = await desk.reference.instrument(BTC)
    assert (rules.price_tick, rules.notional_min, age_ms) == (Decimal("0.01"), Decimal(5), 0)
    desk.clock.advance(1_000)
    assert (await desk.reference.listing("binance")).age_ms == 1_000
    assert desk.spot.asked == [("markets",)]
    desk.clock.advance(3_600_000)
    assert (await desk.reference.listing("binance")).age_ms == 0


async def test_a_listing_is_asked_for_once_however_many_want_it(desk: Desk) -> None:
    await asyncio.gather(*(desk.reference.instruments("binance") for _ in range(20)))
    assert desk.spot.asked == [("markets",)]
    assert desk.opened == [("binance", "spot")]


async def test_an_unknown_symbol_gets_the_nearest_names_and_an_unknown_venue_the_known_ones(desk: Desk) -> None:
    error = await desk.refusal(desk.reference.instrument(InstrumentId(BINANCE, Symbol("BTC/USD"))))
    assert (error.code, error.allowed[0]) == ("UNKNOWN_INSTRUMENT", "BTC/USDT")
    error = await desk.refusal(desk.reference.instruments("kraken"))
    assert (error.code, error.allowed) == ("UNKNOWN_VENUE", ("binance",))


async def test_an_empty_listing_is_garbage_and_not_a_venue_without_markets(desk: Desk) -> None:
    desk.spot.table = {}
    assert (await desk.refusal(desk.reference.instruments("binance"))).code == "GARBAGE"


async def test_fee_rates_are_assumed_and_say_where_they_are_from() -> None:
    desk = Desk("binance", "kraken")
    fees = await desk.reference.fees(BTC)
    assert (fees.maker, fees.taker, fees.assumed) == (Decimal("0.001"), Decimal("0.002"), True)
    assert "ccxt" in fees.source
    assert "public schedule" in (await desk.reference.fees(InstrumentId(Venue("kraken"), BTC.symbol))).source
    silent = Desk()
    silent.spot.table["BTC/USDT"] = market("BTC/USDT", maker=None, taker=None)
    assert "taken as 0" in (await silent.reference.fees(BTC)).source


async def test_funding_is_that_of_the_linear_perpetual_on_the_symbol(desk: Desk) -> None:
    found = await desk.reference.funding("BTC/USDT", "binance")
    assert (found.contract, found.rate, found.interval_ms) == ("BTC/USDT:USDT", Decimal("-0.0001"), 8 * 3_600_000)
    assert (found.next_ts_ms, found.mark, found.index) == (1_750_000_100_000, Decimal("61000.5"), None)
    assert desk.opened == [("binance", "perpetual")]


async def test_a_symbol_without_a_perpetual_names_those_of_its_base(desk: Desk) -> None:
    error = await desk.refusal(desk.reference.funding("BTC/EUR", "binance"))
    assert (error.code, error.allowed) == ("UNKNOWN_INSTRUMENT", ("BTC/USDC", "BTC/USDT"))
    error = await desk.refusal(desk.reference.funding("BTC/USDT:USDT", "binance"))
    assert error.code == "DERIVATIVES_UNSUPPORTED"


async def test_a_venue_without_funding_says_so_without_being_asked(desk: Desk) -> None:
    desk.perpetual.has = {"fetchFundingRate": False}
    error = await desk.refusal(desk.reference.funding("BTC/USDT", "binance"))
    assert isinstance(error, UnsupportedFeature)
    assert desk.perpetual.asked == []


async def test_krakens_contracts_are_asked_of_its_derivatives_venue() -> None:
    desk = Desk("kraken")
    assert (await desk.reference.funding("BTC/USDT", "kraken")).venue == "krakenfutures"


async def test_a_ticker_and_the_venues_time_come_over_rest(desk: Desk) -> None:
    found = await desk.reference.ticker(BTC)
    assert (found.bid, found.ask, found.last, found.venue_ts_ms) == (Decimal("1.5"), Decimal(2), None, 7)
    assert await desk.reference.server_time_ms("binance") == 1_750_000_000_123
    error = await desk.refusal(desk.reference.ticker(InstrumentId(BINANCE, Symbol("NO/PE"))))
    assert isinstance(error, UnknownInstrument)


# ---- candles


def row(minute: int, price: float = 100.0) -> list[Any]:
    return [minute * MINUTE, price, price + 1, price - 1, price, 2.5]


async def candles(desk: Desk, first: int, last: int, timeframe: str = "1m") -> list[int]:
    found = await desk.reference.candles(BTC, timeframe, first * MINUTE, last * MINUTE)
    return [candle.open_ts_ms // MINUTE for candle in found]


async def test_candles_come_page_by_page_each_once_and_in_order(desk: Desk) -> None:
    desk.spot.rows = [row(minute) for minute in range(1_000)]
    assert await candles(desk, 100, 350) == list(range(100, 350))
    assert [asked[1:] for asked in desk.spot.asked[1:]] == [
        (100 * MINUTE, 100),
        (200 * MINUTE, 100),
        (300 * MINUTE, 50),
    ]


async def test_a_stretch_without_trades_does_not_end_the_search(desk: Desk) -> None:
    desk.spot.rows = [row(minute) for minute in (5, 260)]
    assert await candles(desk, 0, 300) == [5, 260]


async def test_a_venue_that_reaches_back_less_far_gives_what_it_has(desk: Desk) -> None:
    desk.spot.rows = [row(minute) for minute in range(500, 1_000)]
    assert await candles(desk, 0, 600) == list(range(500, 600))


async def test_malformed_candles_are_left_out_and_counted(desk: Desk) -> None:
    bad = [
        [None] * 6,
        [1],
        [2 * MINUTE, 100, 90, 99, 100, 1],
        [3 * MINUTE + 1, *row(3)[1:]],
        [4 * MINUTE, "x", 1, 1, 1, 1],
    ]
    desk.spot.rows = [row(0), *bad, [5 * MINUTE, 1, 1, 1, 1, -1], [6 * MINUTE, 0, 0, 0, 0, 1], row(7)]
    assert await candles(desk, 0, 10) == [0, 7]
    assert desk.reference.counters["garbage"] == 7


async def test_a_candle_is_closed_when_its_time_is_over(desk: Desk) -> None:
    now = desk.clock.now_ms() // MINUTE
    desk.spot.rows = [row(now - 1), row(now), row(now + 1)]
    found = await desk.reference.candles(BTC, "1m", (now - 1) * MINUTE, (now + 5) * MINUTE)
    assert [(candle.open_ts_ms // MINUTE, candle.closed) for candle in found] == [(now - 1, True), (now, False)]


async def test_a_timeframe_the_venue_does_not_have_is_named_with_those_it_has(desk: Desk) -> None:
    error = await desk.refusal(desk.reference.candles(BTC, "4h", 0, MINUTE))
    assert (error.code, error.allowed) == ("INVALID_TIMEFRAME", ("1m", "1h"))
    for timeframe in ("1w", "soon", "0m", ""):
        assert (await desk.refusal(desk.reference.candles(BTC, timeframe, 0, 1))).code == "INVALID_TIMEFRAME"


async def test_more_candles_than_fit_are_refused_before_the_venue_is_asked(desk: Desk) -> None:
    error = await desk.refusal(desk.reference.candles(BTC, "1m", 0, 20_001 * MINUTE))
    assert isinstance(error, InvalidValue)
    assert desk.opened == []


# ---- bad days


async def test_a_dead_venue_is_left_alone_and_asked_again_later(desk: Desk) -> None:
    await desk.reference.ticker(BTC)
    desk.spot.fault = OSError("no route")
    for _ in range(3):
        assert (await desk.refusal(desk.reference.ticker(BTC))).code == "NO_NETWORK"
    asked = len(desk.spot.asked)
    error = await desk.refusal(desk.reference.ticker(BTC))
    assert isinstance(error, VenueUnavailable)
    assert (error.code, error.after_ms, len(desk.spot.asked)) == ("NO_NETWORK", 5_000, asked)
    desk.clock.advance(5_001)
    assert (await desk.refusal(desk.reference.ticker(BTC))).code == "NO_NETWORK"
    assert len(desk.spot.asked) == asked + 1
    error = await desk.refusal(desk.reference.ticker(BTC))
    assert isinstance(error, VenueUnavailable)
    assert error.after_ms == 10_000  # it failed again, so it is left alone for longer
    desk.clock.advance(10_001)
    desk.spot.fault = None
    assert (await desk.reference.ticker(BTC)).bid == Decimal("1.5")
    desk.spot.fault = OSError("no route")
    for _ in range(2):
        await desk.refusal(desk.reference.ticker(BTC))
    desk.spot.fault = None
    await desk.reference.ticker(BTC)  # two failures are not three


async def test_a_rate_limit_stops_every_question_at_once_for_as_long_as_the_venue_asks(desk: Desk) -> None:
    desk.spot.fault = HttpFailure(429, 12.0)
    error = await desk.refusal(desk.reference.ticker(BTC))
    assert isinstance(error, VenueUnavailable)
    assert (error.code, error.after_ms) == ("RATE_LIMITED", 12_000)
    desk.clock.advance(2_000)
    error = await desk.refusal(desk.reference.candles(BTC, "1m", 0, MINUTE))
    assert isinstance(error, VenueUnavailable)
    assert (error.code, error.after_ms, len(desk.spot.asked)) == ("RATE_LIMITED", 10_000, 1)


async def test_a_refusal_does_not_count_against_a_venue(desk: Desk) -> None:
    class ExchangeError(Exception):
        """Named as ccxt's."""

    await desk.reference.ticker(BTC)
    desk.spot.fault = ExchangeError("not for you")
    for _ in range(5):
        assert (await desk.refusal(desk.reference.ticker(BTC))).code == "VENUE_REFUSED"
    assert len(desk.spot.asked) == 7


async def test_a_venue_that_does_not_answer_is_not_waited_for_longer_than_the_deadline() -> None:
    desk = Desk(deadline_s=0.02)
    desk.spot.load_markets = lambda reload=False: asyncio.Event().wait()  # type: ignore[assignment,method-assign]
    assert (await desk.refusal(desk.reference.ticker(BTC))).code == "VENUE_DOWN"


async def test_every_exchange_is_closed_in_the_end(desk: Desk) -> None:
    await desk.reference.ticker(BTC)
    await desk.reference.funding("BTC/USDT", "binance")
    await desk.reference.aclose()
    assert desk.spot.closed
    assert desk.perpetual.closed


class MemoryCache:
    """Keeps everything for ever."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    async def get(self, kind: str, key: str, ttl_s: float, load: Callable[[], Awaitable[bytes]]) -> CachedAnswer:
        if (kind, key) not in self.kept:
            self.kept[kind, key] = await load()
            return CachedAnswer(self.kept[kind, key], 0, "loaded")
        return CachedAnswer(self.kept[kind, key], 400, "l2")


async def test_answers_are_kept_and_come_back_as_they_were() -> None:
    cache = cast("AnswerCache", MemoryCache())
    first, second = Desk(cache=cache), Desk(cache=cache)
    for ask in ("instruments", "ticker", "funding"):
        arguments: tuple[Any, ...] = {"instruments": ("binance",), "ticker": (BTC,)}.get(ask, ("BTC/USDT", "binance"))
        loaded = await getattr(first.reference, ask)(*arguments)
        assert await getattr(second.reference, ask)(*arguments) == loaded
    assert second.spot.asked == []
    assert (await second.reference.listing("binance")).age_ms == 400


# ---- search


@pytest.mark.parametrize("text", ["BTCUSDT", "btc-usdt", "Btc/Usdt", "XBTUSDT", "btc usdt"])
def test_a_symbol_may_be_spelled_in_many_ways(text: str) -> None:
    assert spelled(text, [Symbol("BTC/USDT"), Symbol("ETH/USDT")]) == "BTC/USDT"
    assert compact(text) == "BTCUSDT"


def test_a_spelling_of_nothing_or_of_two_is_none_of_them() -> None:
    assert spelled("DOGE", [Symbol("BTC/USDT")]) is None
    assert spelled("ABCD", [Symbol("AB/CD"), Symbol("ABC/D")]) is None


async def test_the_best_match_comes_first_and_what_has_a_feed_before_its_equals(desk: Desk) -> None:
    known = await desk.reference.instruments("binance")

    def found(query: str, *first: str) -> list[str]:
        live = frozenset(InstrumentId(BINANCE, Symbol(symbol)) for symbol in first)
        return [item.symbol for item in search(query, known, first=live)]

    assert found("btc") == ["BTC/USDT", "BTC/EUR", "WBTC/USDT", "ETH/BTC"]
    assert found("xbt", "BTC/EUR") == ["BTC/EUR", "BTC/USDT", "WBTC/USDT", "ETH/BTC"]
    assert found("btc-eur") == ["BTC/EUR"]
    assert found("Bitcoin") == found("btc")
    assert found("!?") == []
    assert len(found("")) == 4


# ---- the tools


class Room:
    """What the tools need, over a still feed and a fake venue."""

    def __init__(self, desk: Desk | None, *, live: bool = True) -> None:
        clock = desk.clock if desk else ManualClock()
        known = [build_instrument(venue="binance")] if live else []
        feed = LocalMarketFeed(clock, feed=Feed.LIVE, instruments=known)
        status = SourceStatus(SourceState.RECONNECTING, "NO_NETWORK", "binance cannot be reached")
        self.prices = Prices(
            feed,
            CandleStore(),
            clock,
            venue=BINANCE,
            max_age_ms=3_000,
            source=lambda: status,
            aliases=(Venue("paper"),),
        )
        self.reference = desk.reference if desk else None

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[Room]:
        yield self

    async def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        server = build_server(
            "grekko-market", title="Market", instructions="x", lifespan=self._lifespan, mode=Mode.PAPER
        )
        tools.register(
            tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read")
        )
        async with open_client(server) as client:
            return await call_reply(client, tool, **arguments)

    async def refusal(self, tool: str, **arguments: Any) -> ToolFailure:
        with pytest.raises(ToolFailure) as failure:
            await self.ask(tool, **arguments)
        return failure.value


async def test_search_covers_the_whole_venue_and_says_what_is_left_out(desk: Desk) -> None:
    reply = await Room(desk).ask("market_search_instruments", query="btc", limit=2)
    assert [item["symbol"] for item in reply["data"]["instruments"]] == ["BTC/USDT", "BTC/EUR"]
    assert (reply["data"]["total"], reply["meta"]["truncated"], reply["data"]["complete"]) == (4, True, True)
    reply = await Room(desk).ask("market_search_instruments", query="BTX/USDT", venue="paper")
    assert (reply["data"]["instruments"], "BTC/USDT" in reply["data"]["did_you_mean"]) == ([], True)
    assert (await Room(desk).refusal("market_search_instruments", venue="nowhere")).code == "UNKNOWN_VENUE"


async def test_without_a_network_search_finds_what_has_a_feed_and_says_so(desk: Desk) -> None:
    desk.spot.fault = OSError("no route")
    data = (await Room(desk).ask("market_search_instruments", query="btc"))["data"]
    assert ([item["symbol"] for item in data["instruments"]], data["complete"]) == (["BTC/USDT"], False)


async def test_rules_come_with_fee_rates_that_say_what_they_are(desk: Desk) -> None:
    reply = await Room(desk).ask("market_get_instrument", symbol="BTC/USDT")
    data = reply["data"]
    assert (data["fees_assumed"], data["live"], "ccxt" in data["fee_source"]) == (True, True, True)
    assert desk.opened == []  # the feed knows them
    desk.clock.advance(10)
    reply = await Room(desk).ask("market_get_instrument", symbol="eth-btc", venue="binance")
    assert (reply["data"]["symbol"], reply["data"]["live"], reply["meta"]["age_ms"]) == ("ETH/BTC", False, 0)
    assert (await Room(desk).refusal("market_get_instrument", symbol="NO/PE")).code == "UNKNOWN_INSTRUMENT"


async def test_funding_names_contract_venue_and_age(desk: Desk) -> None:
    reply = await Room(desk).ask("market_get_funding", symbol="BTC/USDT")
    data = reply["data"]
    assert (data["rate"], data["interval_h"], data["rate_per_year"]) == ("-0.0001", 8, "-0.1095")
    assert (data["contract"], data["venue"], reply["meta"]["age_ms"]) == ("BTC/USDT:USDT", "binance", 0)
    failure = await Room(desk).refusal("market_get_funding", symbol="BTC/EUR")
    assert (failure.code, failure.allowed) == ("UNKNOWN_INSTRUMENT", ("BTC/USDC", "BTC/USDT"))


async def test_without_a_venue_the_first_that_has_such_a_contract_answers() -> None:
    desk = Desk("coinbase", "binance")
    other = FakeRest([])
    other.has = {}
    opened = desk.reference._open
    desk.reference._open = lambda venue, kind: (
        cast("RestExchange", other) if venue == "coinbase" else opened(venue, kind)
    )
    assert (await Room(desk).ask("market_get_funding", symbol="BTC/USDT"))["meta"]["venue"] == "binance"
    assert (await Room(desk).refusal("market_get_funding", symbol="BTC/USDT", venue="coinbase")).code == (
        "UNSUPPORTED_FEATURE"
    )


async def test_a_replay_answers_from_its_recording_and_has_no_funding() -> None:
    room = Room(None)
    found = await room.ask("market_search_instruments", query="xbt")
    assert ([item["symbol"] for item in found["data"]["instruments"]], found["data"]["complete"]) == (
        ["BTC/USDT"],
        True,
    )
    assert (await room.ask("market_get_instrument", symbol="BTC/USDT"))["data"]["fee_source"] == "the recording"
    assert (await room.refusal("market_get_instrument", symbol="ETH/USDT")).code == "UNKNOWN_INSTRUMENT"
    assert (await room.refusal("market_get_funding", symbol="BTC/USDT")).code == "NOT_CONFIGURED"


async def test_before_the_feed_has_rules_the_venue_is_asked_and_its_silence_is_named(desk: Desk) -> None:
    room = Room(desk, live=False)
    assert (await room.ask("market_get_instrument", symbol="BTC/USDT"))["data"]["live"] is False
    silent = Desk()
    silent.spot.fault = OSError("no route")
    failure = await Room(silent, live=False).refusal("market_get_instrument", symbol="BTC/USDT")
    assert (failure.code, failure.retryable) == ("NO_NETWORK", "after_ms")
