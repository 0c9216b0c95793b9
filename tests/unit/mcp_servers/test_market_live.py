"""The live source against a fake exchange: what it makes of the data, and how it comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from decimal import Decimal
from typing import Any, cast

import pytest

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceUpdate
from mcp_servers.market.sources.ccxt import CcxtLiveSource, Exchange, instrument_of, number_text, open_exchange
from mcp_servers.market.sources.ccxt.exchange import TRADES_LIMIT, HttpFailure
from mcp_servers.market.sources.ccxt.failures import Resync
from tests.market_support import BTC
from trading.adapters.market_stream import LocalMarketFeed, TradeUpdate
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side
from trading.testing.clock import ManualClock

MARKET: dict[str, Any] = {
    "symbol": "BTC/USDT",
    "base": "BTC",
    "quote": "USDT",
    "spot": True,
    "precision": {"price": 0.01, "amount": 1e-05},
    "limits": {"amount": {"min": 1e-05, "max": 9000}, "cost": {"min": 5, "max": None}},
    "maker": 0.001,
    "taker": 0.001,
}
BOOK: dict[str, Any] = {"bids": [[100.5, 1e-05], [100, 2]], "asks": [[101, 1]], "timestamp": 1_000, "nonce": 7}
TRADE: dict[str, Any] = {"id": "t1", "price": 100.1, "amount": 0.3, "side": "sell", "timestamp": 1_001}


class NetworkError(Exception):
    """Named as ccxt's: the source tells the kinds apart by name, not to import ccxt for it."""


class ExchangeError(Exception):
    """Named as ccxt's."""


class InvalidNonce(NetworkError):
    """Named as ccxt's."""


class ChecksumError(InvalidNonce):
    """Named as ccxt's."""


class RateLimitExceeded(NetworkError):
    """Named as ccxt's."""


class FakeClient:
    """A socket that the test feeds with raw frames."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.error: Exception | None = None
        self.subscriptions: dict[str, Any] = {"depth::BTC/USDT": True}
        self.delivered: list[Any] = []
        self.handle_message: Callable[[Any], None] = lambda message: self.on_message_callback(self, json.loads(message))
        self.on_message_callback: Callable[[Any, Any], None] = lambda _, frame: self.delivered.append(frame)

    def on_error(self, error: Exception) -> None:
        self.error = error

    def reject(self, result: Exception) -> None:
        self.error = result


class FakeExchange:
    """Gives a script of books and trades, then fails or falls silent; a callable in the script is called."""

    precisionMode = 4  # noqa: N815

    def __init__(self, books: list[Any], trades: list[Any] | None = None, *, markets: Any = None) -> None:
        self.books, self.trades = list(books), list(trades or [])
        self.answer = {"BTC/USDT": MARKET} if markets is None else markets
        self.has: dict[str, Any] = {}
        self.markets: dict[str, Any] | None = None
        self.orderbooks: dict[str, Any] = {"BTC/USDT": BOOK}
        self.loads = 0
        self.closed = False
        self.client: Callable[[str], Any] = FakeClient

    async def load_markets(self, reload: bool = False) -> dict[str, Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.markets is None or reload:
            self.loads += 1
            self.markets = self.answer
        return self.markets or {}

    def set_markets(self, markets: list[Any]) -> None:
        self.markets = {market["symbol"]: market for market in markets}

    async def watch_order_book(self, symbol: str, limit: int | None = None) -> dict[str, Any]:
        assert symbol == "BTC/USDT"
        return await self._next(self.books)

    async def watch_trades(self, symbol: str, *, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return await self._next(self.trades)

    async def fetch_time(self) -> int | None:
        return ManualClock().now_ms() - 250

    async def close(self) -> None:
        self.closed = True

    async def _next(self, script: list[Any]) -> Any:
        await asyncio.sleep(0)
        if not script:
            await asyncio.Event().wait()
        item = script.pop(0)
        if callable(item):
            item = item()
        if isinstance(item, BaseException):
            raise item
        return item


class Line:
    """A source over a series of exchanges, with the pauses it made."""

    def __init__(
        self,
        *exchanges: FakeExchange,
        venue: str = "binance",
        random: float = 1.0,
        silence_s: float = 30.0,
        symbols: tuple[str, ...] = ("BTC/USDT",),
    ) -> None:
        self.exchanges = list(exchanges)
        self.given = list(exchanges)
        self.pauses: list[float] = []
        self.clock = ManualClock()
        self.source = CcxtLiveSource(
            Venue(venue),
            tuple(Symbol(symbol) for symbol in symbols),
            self.clock,
            open_=lambda: cast("Exchange", self.given.pop(0)),
            sleep=self._sleep,
            random=lambda: random,
            silence_s=silence_s,
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def take(self, count: int) -> list[SourceUpdate]:
        async with asyncio.timeout(5), aclosing(cast("AsyncGenerator[SourceUpdate]", self.source.updates())) as updates:
            return [await anext(updates) for _ in range(count)]

    @property
    def counters(self) -> dict[str, int]:
        return {name: count for name, count in self.source.status().counters.items() if count}


async def test_books_and_trades_become_updates_in_exact_decimals() -> None:
    line = Line(FakeExchange([BOOK], [[TRADE]]))
    rules, *rest = await line.take(3)
    assert isinstance(rules, Rules)
    assert rules.instruments[0].quantity_step == Decimal("0.00001")
    assert rules.instruments[0].notional_max is None
    book = next(update for update in rest if isinstance(update, Snapshot))
    assert list(book.bids) == [("100.5", "0.00001"), ("100", "2")]
    assert book.venue_ts_ms == 1_000
    trade = next(update for update in rest if isinstance(update, TradeUpdate))
    assert (trade.price, trade.quantity, trade.aggressor) == ("100.1", "0.3", Side.SELL)
    assert line.source.status().state is SourceState.RUNNING
    assert line.source.feed is Feed.LIVE


async def test_a_broken_connection_empties_the_book_and_is_made_again() -> None:
    line = Line(FakeExchange([BOOK, NetworkError("reset")]), FakeExchange([BOOK]))
    updates = await line.take(5)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Rules, Snapshot]
    assert line.exchanges[0].closed
    assert line.source.status().state is SourceState.RUNNING
    assert line.counters == {"connections": 2, "failures": 1, "sequence_checked": 1}
    assert [exchange.loads for exchange in line.exchanges] == [1, 0]  # the rules are still good


async def test_without_a_network_it_says_so_and_keeps_trying_ever_more_slowly() -> None:
    line = Line(*(FakeExchange([], markets=NetworkError("no route")) for _ in range(9)))
    updates = await line.take(8)
    assert {type(update) for update in updates} == {Restarted}
    assert line.pauses == [1, 2, 4, 8, 16, 30, 30]
    status = line.source.status()
    assert (status.state, status.code) == (SourceState.RECONNECTING, "NO_NETWORK")
    assert "--market replay" in status.message


async def test_a_refusal_by_the_venue_has_another_code() -> None:
    line = Line(FakeExchange([ExchangeError("banned")]))
    await line.take(2)
    assert line.source.status().code == "VENUE_REFUSED"


async def test_without_any_of_its_symbols_the_venue_is_of_no_use() -> None:
    line = Line(FakeExchange([], markets={"ETH/USDT": MARKET}))
    await line.take(1)
    status = line.source.status()
    assert status.code == "UNKNOWN_INSTRUMENT"
    assert "BTC/USDT" in status.message


async def test_a_symbol_the_venue_does_not_have_is_left_out_and_named() -> None:
    line = Line(FakeExchange([BOOK]), symbols=("BTC/USDT", "DOGE/XYZ"))
    rules, _ = await line.take(2)
    assert isinstance(rules, Rules)
    assert [item.symbol for item in rules.instruments] == ["BTC/USDT"]
    status = line.source.status()
    assert (status.state, status.code, status.counters["missing_symbols"]) == (SourceState.RUNNING, "", 1)
    assert "DOGE/XYZ" in status.message


async def test_the_wait_is_a_random_part_of_ever_longer_ones() -> None:
    line = Line(*(FakeExchange([], markets=NetworkError("no route")) for _ in range(4)), random=0.25)
    await line.take(4)
    assert line.pauses == [0.25, 0.5, 1]


async def test_a_connection_that_lasted_begins_the_waits_anew() -> None:
    lasting = FakeExchange([BOOK, NetworkError("reset")])
    failing = [FakeExchange([], markets=NetworkError("no route")) for _ in range(3)]
    line = Line(*failing, lasting, FakeExchange([]))
    lasting.books.insert(1, lambda: line.clock.advance(10_000) or BOOK)
    updates = await line.take(8)
    assert isinstance(updates[-1], Rules)
    assert line.pauses == [1, 2, 4, 1]


async def test_a_rate_limit_is_obeyed_and_named() -> None:
    limited = FakeExchange([], markets=HttpFailure(429, 42.0))
    line = Line(limited, FakeExchange([], markets=RateLimitExceeded("slow down")), FakeExchange([BOOK]))
    await line.take(1)
    status = line.source.status()
    assert (status.code, "42 s" in status.message) == ("RATE_LIMITED", True)
    line = Line(limited, FakeExchange([], markets=RateLimitExceeded("slow down")), FakeExchange([BOOK]))
    await line.take(4)
    assert line.pauses == [42, 10]  # the second answer does not say how long
    assert line.source.status().state is SourceState.RUNNING


async def test_a_lost_change_empties_the_book_at_once_and_is_resynchronised_on_the_same_exchange() -> None:
    exchange = FakeExchange([])

    def frame(first: int, last: int) -> str:
        return json.dumps({"e": "depthUpdate", "s": "BTCUSDT", "U": first, "u": last})

    def begin() -> Any:
        socket.append(exchange.client("ws://venue"))
        socket[-1].handle_message(frame(1, 5))
        return BOOK

    def lose() -> Any:  # the gap arrives after ccxt has answered and before the answer is read
        socket[-1].handle_message(frame(7, 9))
        return BOOK

    socket: list[Any] = []
    exchange.books = [begin, lose, begin]
    line = Line(exchange)
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Snapshot]
    assert updates[2] == Restarted((BTC,), "gap")
    assert isinstance(socket[0].error, Resync)
    assert len(socket[0].delivered) == 1  # the frame behind the gap was never applied
    assert line.counters == {"connections": 1, "gaps": 1, "resyncs": 1, "sequence_checked": 1}
    assert line.pauses == []


async def test_what_ccxt_finds_out_of_sequence_is_a_lost_change_too() -> None:
    line = Line(FakeExchange([BOOK, ChecksumError("mismatch"), BOOK]))
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Snapshot]


async def test_books_that_never_stay_in_sequence_end_the_connection() -> None:
    exchange = FakeExchange([])

    def lose() -> Any:
        client = exchange.client(f"ws://venue/{len(exchange.books)}")
        for first, last in ((1, 5), (7, 9)):
            client.handle_message(json.dumps({"e": "depthUpdate", "s": "BTCUSDT", "U": first, "u": last}))
        return BOOK

    exchange.books = [lose] * 10
    line = Line(exchange)
    updates = await line.take(2)
    assert [type(update) for update in updates] == [Rules, Restarted]
    assert line.source.status().code == "GARBAGE"
    assert line.source.status().counters["resyncs"] == 6


async def test_a_frame_that_cannot_be_read_is_counted_and_survived() -> None:
    exchange = FakeExchange([])

    def garbage() -> Any:
        client = exchange.client("ws://venue")
        for message in ("not json", '{"e": "depthUpdate"}', "[1]", '{"fine": 1}'):
            client.handle_message(message)
        assert client.delivered == [[1], {"fine": 1}]
        assert client.error is None
        return BOOK

    exchange.books = [garbage]
    line = Line(exchange)
    await line.take(2)
    assert line.source.status().counters["garbage"] == 2


async def test_garbage_of_a_venue_without_a_sequence_check_costs_the_book() -> None:
    exchange = FakeExchange([])

    def garbage() -> Any:
        exchange.client("ws://venue").handle_message("not json")
        return BOOK

    exchange.books = [BOOK, garbage, BOOK]
    line = Line(exchange, venue="kucoin")
    updates = await line.take(4)
    assert updates[2] == Restarted((InstrumentId(Venue("kucoin"), Symbol("BTC/USDT")),), "garbage")
    assert line.source.status().counters["sequence_checked"] == 0


async def test_a_venue_that_gives_nothing_at_all_is_taken_for_down() -> None:
    line = Line(FakeExchange([]), FakeExchange([BOOK]), silence_s=0.02)
    line.clock.advance(1_000)
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Restarted, Rules, Snapshot]
    assert isinstance(updates[1], Restarted)
    assert updates[1].reason == "VENUE_DOWN"


async def test_a_book_that_falls_silent_is_not_alive_because_other_frames_come() -> None:
    exchange = FakeExchange([])

    def quiet() -> Any:
        exchange.client("ws://venue").handle_message('{"channel": "heartbeat"}')
        return TimeoutError()

    exchange.books = [BOOK, quiet, BOOK]
    line = Line(exchange)
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Snapshot]
    assert updates[2] == Restarted((BTC,), "silent")
    assert (line.counters["silent"], line.counters["resyncs"]) == (1, 1)


async def test_a_refused_subscription_is_the_reason_when_no_book_comes() -> None:
    exchange = FakeExchange([])

    def refuse() -> Any:
        exchange.client("ws://venue").handle_message(
            '{"method": "subscribe", "success": false, "error": "no such pair"}'
        )
        return TimeoutError()

    exchange.books = [refuse]
    line = Line(exchange)
    await line.take(2)
    status = line.source.status()
    assert (status.code, status.counters["refused"]) == ("VENUE_REFUSED", 1)


async def test_a_refused_subscription_does_not_take_the_books_that_come() -> None:
    exchange = FakeExchange([])

    def refuse() -> Any:
        exchange.client("ws://venue").handle_message('{"op": "subscribe", "success": false, "ret_msg": "no"}')
        return TimeoutError()

    exchange.books = [BOOK, refuse, BOOK]
    line = Line(exchange)
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Snapshot]
    assert line.source.status().state is SourceState.RUNNING


async def test_trades_that_come_again_after_a_reconnect_are_given_once() -> None:
    later = {**TRADE, "id": "t2"}
    line = Line(FakeExchange([], [[TRADE], NetworkError("reset")]), FakeExchange([], [[TRADE, later]]))
    updates = await line.take(5)
    assert [update.trade_id for update in updates if isinstance(update, TradeUpdate)] == ["t1", "t2"]
    assert line.source.status().counters["trades_repeated"] == 1


async def test_a_batch_as_long_as_what_ccxt_keeps_is_declared() -> None:
    batch = [{**TRADE, "id": str(number)} for number in range(TRADES_LIMIT)]
    line = Line(FakeExchange([], [batch]))
    updates = await line.take(TRADES_LIMIT + 1)
    assert len({update.trade_id for update in updates if isinstance(update, TradeUpdate)}) == TRADES_LIMIT
    assert line.source.status().counters["trades_overrun"] == 1


async def test_coinbase_names_the_maker_so_the_aggressor_is_the_other_side() -> None:
    line = Line(FakeExchange([], [[TRADE]]), venue="coinbase")
    line.exchanges[0].subscribe = lambda *_: asyncio.Event().wait()  # type: ignore[attr-defined]
    trade = (await line.take(2))[1]
    assert isinstance(trade, TradeUpdate)
    assert trade.aggressor is Side.BUY


async def test_the_venues_clock_is_compared_with_ours() -> None:
    exchange = FakeExchange([BOOK])
    exchange.has = {"fetchTime": True}
    line = Line(exchange)
    await line.take(2)
    assert line.source.clock_offset_ms == 250


async def test_a_socket_that_ccxt_closes_does_not_end_a_subscription_unnoticed() -> None:
    line = Line(FakeExchange([BOOK, asyncio.CancelledError(), BOOK]))
    updates = await line.take(4)
    assert [type(update) for update in updates] == [Rules, Snapshot, Restarted, Snapshot]


async def test_whoever_stops_listening_closes_the_exchange() -> None:
    line = Line(FakeExchange([BOOK]))
    await line.take(2)
    assert line.exchanges[0].closed


async def test_garbage_from_the_venue_is_counted_and_skipped() -> None:
    bad = [{"bids": [[None, 1]], "asks": []}, {"bids": [["x", 1]], "asks": []}, {"asks": []}]
    bad_trades = [[{**TRADE, "side": None}, {**TRADE, "price": float("nan")}, {**TRADE, "amount": 0}, {}]]
    line = Line(FakeExchange([*bad, BOOK], bad_trades))
    updates = await line.take(2)
    assert isinstance(updates[1], Snapshot)
    assert line.source.status().counters["garbage"] == 7


async def test_a_lost_connection_shows_as_an_empty_book_in_the_feed() -> None:
    line = Line(FakeExchange([BOOK, NetworkError("reset")]), FakeExchange([]))
    feed = LocalMarketFeed(line.clock, feed=Feed.LIVE)
    pipeline = MarketPipeline(line.source, (feed,), CandleStore(), line.clock)
    seen: list[bool] = []
    for update in await line.take(3):
        pipeline.handle(update)
        book = feed.book(BTC)
        seen.append(book is not None and book.is_two_sided)
    assert seen == [False, True, False]


async def test_a_lost_change_is_told_to_other_rooms() -> None:
    told: list[tuple[str, Mapping[str, object]]] = []

    class Events:
        def publish(self, event_type: str, payload: Mapping[str, object]) -> None:
            told.append((event_type, payload))

    line = Line(FakeExchange([BOOK, ChecksumError("mismatch"), NetworkError("reset")]), FakeExchange([]))
    feed = LocalMarketFeed(line.clock, feed=Feed.LIVE)
    pipeline = MarketPipeline(line.source, (feed,), CandleStore(), line.clock, events=Events())
    for update in await line.take(4):
        pipeline.handle(update)
    assert told == [("market.gap_detected", {"venue": "binance", "symbol": "BTC/USDT"})]


def test_precision_in_decimal_places_becomes_a_step() -> None:
    places = {**MARKET, "precision": {"price": 2, "amount": 5}}
    assert instrument_of(Venue("x"), places, tick_size=False).quantity_step == Decimal("0.00001")
    with pytest.raises(InvalidValue):
        instrument_of(Venue("x"), {**MARKET, "precision": {"price": None, "amount": 1}}, tick_size=True)


@pytest.mark.parametrize(("value", "text"), [(1e-05, "0.00001"), (61837.63, "61837.63"), ("2.50", "2.5"), (3, "3")])
def test_numbers_keep_their_shortest_text(value: object, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize("value", [0, -1, float("inf"), None, "abc", True])
def test_what_is_no_positive_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidValue):
        number_text(value)


async def test_ccxt_has_what_the_source_needs() -> None:
    exchange = open_exchange("binance", rest_url="http://127.0.0.1:9/bn/api/v3", ws_url="ws://127.0.0.1:9/stream/ws")
    raw: Any = exchange
    try:
        assert exchange.precisionMode == 4
        assert raw.urls["api"]["public"].startswith("http://127.0.0.1:9")
        assert raw.urls["api"]["ws"]["spot"].startswith("ws://127.0.0.1:9")
        assert all(callable(getattr(exchange, name)) for name in ("load_markets", "watch_order_book", "watch_trades"))
    finally:
        await exchange.close()
    with pytest.raises(ConfigurationError):
        open_exchange("no_such_venue")
