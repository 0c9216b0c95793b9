"""The live source against a fake exchange: what it makes of the data, and how it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceUpdate
from mcp_servers.market.sources.ccxt_live import CcxtLiveSource, instrument_of, number_text, open_exchange
from tests.market_support import BTC
from trading.adapters.market_stream import LocalMarketFeed, TradeUpdate
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, Venue
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


class FakeExchange:
    """Gives a script of books and trades, then fails or falls silent."""

    precisionMode = 4  # noqa: N815

    def __init__(self, books: list[Any], trades: list[Any] | None = None, *, markets: Any = None) -> None:
        self.books, self.trades = list(books), list(trades or [])
        self.markets = {"BTC/USDT": MARKET} if markets is None else markets
        self.closed = False

    async def load_markets(self) -> dict[str, Any]:
        if isinstance(self.markets, Exception):
            raise self.markets
        return self.markets

    async def watch_order_book(self, symbol: str) -> dict[str, Any]:
        assert symbol == "BTC/USDT"
        return await self._next(self.books)

    async def watch_trades(self, symbol: str) -> list[dict[str, Any]]:
        return await self._next(self.trades)

    async def close(self) -> None:
        self.closed = True

    async def _next(self, script: list[Any]) -> Any:
        await asyncio.sleep(0)
        if not script:
            await asyncio.Event().wait()
        item = script.pop(0)
        if isinstance(item, Exception):
            raise item
        return item


class Line:
    """A source over a series of exchanges, with the pauses it made."""

    def __init__(self, *exchanges: FakeExchange) -> None:
        self.exchanges = list(exchanges)
        self.given = list(exchanges)
        self.pauses: list[float] = []
        self.clock = ManualClock()
        self.source = CcxtLiveSource(
            Venue("binance"), (Symbol("BTC/USDT"),), self.clock, open_=lambda: self.given.pop(0), sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def take(self, count: int) -> list[SourceUpdate]:
        updates: AsyncIterator[SourceUpdate] = self.source.updates()
        async with asyncio.timeout(5):
            return [await anext(updates) for _ in range(count)]


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
    assert line.source.status().counters == {"connections": 2, "failures": 1, "garbage": 0}


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


async def test_a_symbol_the_venue_does_not_have_is_a_refusal() -> None:
    line = Line(FakeExchange([], markets={"ETH/USDT": MARKET}))
    await line.take(1)
    assert line.source.status().code == "VENUE_REFUSED"


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
