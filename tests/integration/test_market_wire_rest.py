"""Real ccxt over REST against recorded answers: rules, candles, tickers and the venue's time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, cast

import pytest

from mcp_servers.market.reference import Reference
from mcp_servers.market.sources.ccxt import open_exchange
from tests.venue_wire_support import SYMBOLS, VENUES, rest_records, venue_server
from trading.domain.errors import TradingError
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.testing.clock import ManualClock
from trading.testing.venue_wire import Print, VenueServer

each_venue = pytest.mark.parametrize("venue", VENUES)
_MINUTE = 60_000
_HOUR = 3_600_000
_HOURLY = 1_706_630_400_000  # the first of the recorded hourly candles that Binance and Kraken share


@asynccontextmanager
async def asking(server: VenueServer, venue: str, *, now_ms: int | None = None) -> AsyncIterator[Reference]:
    """Yield what asks a venue at a time of its recording."""

    def open_(name: str, kind: Any) -> Any:
        exchange: Any = open_exchange(name, rest_url=server.rest_url, ws_url=server.ws_url, kind=kind)
        exchange.enableRateLimit = False
        exchange.timeout_on_exit = 0
        return exchange

    reference = Reference((Venue(venue),), ManualClock(now_ms or server.market.now_us // 1_000), open_=open_)
    try:
        yield reference
    finally:
        await reference.aclose()


def an_id(venue: str) -> InstrumentId:
    return InstrumentId(Venue(venue), Symbol(SYMBOLS[venue]))


def recorded_steps(venue: str) -> dict[str, tuple[Decimal, Decimal]]:
    """Return tick and step by symbol, read from the raw answers without ccxt."""
    records = cast("dict[str, Any]", rest_records()[venue])
    steps: dict[str, tuple[Decimal, Decimal]] = {}
    if venue == "binance":
        for info in records["symbols"]:
            filters = {item["filterType"]: item for item in info["filters"]}
            tick, step = filters["PRICE_FILTER"]["tickSize"], filters["LOT_SIZE"]["stepSize"]
            steps[f"{info['baseAsset']}/{info['quoteAsset']}"] = Decimal(tick), Decimal(step)
    elif venue == "coinbase":
        for info in records["products"]:
            increments = Decimal(info["quote_increment"]), Decimal(info["base_increment"])
            steps[info["product_id"].replace("-", "/")] = increments
    else:
        for info in records["pairs"].values():
            symbol = info["wsname"].replace("XBT", "BTC").replace("XDG", "DOGE")
            steps[symbol] = Decimal(info["tick_size"]), Decimal(1).scaleb(-int(info["lot_decimals"]))
    return steps


def candles_of(prints: list[Print]) -> list[tuple[int, str, str, str, str, Decimal]]:
    """Return one-minute candles, counted here once more."""
    rows: dict[int, list[Print]] = {}
    for item in prints:
        rows.setdefault(item.ts_us // 60_000_000 * _MINUTE, []).append(item)
    candles: list[tuple[int, str, str, str, str, Decimal]] = []
    for start, items in rows.items():
        prices = sorted(Decimal(item.price) for item in items)
        texts = [str(price.normalize()) for price in (prices[-1], prices[0])]
        first, last = (str(Decimal(item.price).normalize()) for item in (items[0], items[-1]))
        candles.append((start, first, texts[0], texts[1], last, sum((Decimal(i.quantity) for i in items), Decimal(0))))
    return candles


@each_venue
async def test_every_recorded_market_becomes_an_instrument_with_its_own_steps(venue: str) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        found = {str(item.symbol): (item.price_tick, item.quantity_step) for item in await reference.instruments(venue)}
        assert found == recorded_steps(venue)
        await reference.instruments(venue)
        assert sum(count for path, count in server.asked.items() if "xchangeInfo" in path or "Pairs" in path) <= 1


@each_venue
async def test_candles_are_those_of_the_trades(venue: str) -> None:
    async with venue_server(venue) as server:
        while server.market.left and len(candles_of(server.prints(SYMBOLS[venue]))) < 3:
            await server.play(500)
        now = server.market.now_us // 1_000
        async with asking(server, venue) as reference:
            found = await reference.candles(an_id(venue), "1m", now - _HOUR, now + _MINUTE)
        rows = [
            (c.open_ts_ms, *(str(x.normalize()) for x in (c.open, c.high, c.low, c.close)), c.volume) for c in found
        ]
        assert len(rows) >= 1
        assert rows == candles_of(server.prints(SYMBOLS[venue]))


@pytest.mark.parametrize(("venue", "close"), [("binance", "43488.71"), ("kraken", "43485.0")])
async def test_recorded_hours_arrive_as_recorded(venue: str, close: str) -> None:
    async with venue_server(venue) as server, asking(server, venue, now_ms=_HOURLY + 9 * _HOUR) as reference:
        found = await reference.candles(an_id(venue), "1h", _HOURLY, _HOURLY + 3 * _HOUR)
        assert [candle.open_ts_ms for candle in found] == [_HOURLY, _HOURLY + _HOUR, _HOURLY + 2 * _HOUR]
        assert found[0].close == Decimal(close)
        assert all(candle.low <= candle.open <= candle.high for candle in found)


@each_venue
async def test_a_ticker_is_the_best_of_the_book_and_the_last_trade(venue: str) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        await server.play(300)
        ticker = await reference.ticker(an_id(venue))
        (bid,), (ask,) = server.top(SYMBOLS[venue], 1)
        assert (ticker.bid, ticker.ask) == (Decimal(bid[0]), Decimal(ask[0]))
        assert ticker.last == Decimal(server.prints(SYMBOLS[venue])[-1].price)


@each_venue
async def test_the_venues_clock_can_be_read(venue: str) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        assert abs(await reference.server_time_ms(venue) - server.market.now_us // 1_000) <= 1_000


@each_venue
async def test_an_unknown_symbol_is_named_without_asking_the_venue_for_it(venue: str) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        with pytest.raises(TradingError) as refused:
            await reference.ticker(InstrumentId(Venue(venue), Symbol("NOPE/USD")))
        assert refused.value.code == "UNKNOWN_INSTRUMENT"
        assert not [path for path in server.asked if "icker" in path]


@pytest.mark.parametrize(
    ("status", "code", "after_ms"), [(429, "RATE_LIMITED", 7_000), (418, "RATE_LIMITED", 7_000), (503, "VENUE_DOWN", 0)]
)
@each_venue
async def test_a_refused_question_says_why_and_when_to_ask_again(
    venue: str, status: int, code: str, after_ms: int
) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        await reference.instruments(venue)
        await server.play(10)
        server.faults.answer(status, retry_after_s=7, times=None)
        with pytest.raises(TradingError) as refused:
            await reference.ticker(an_id(venue))
        assert refused.value.code == code
        assert getattr(refused.value, "after_ms", 0) >= after_ms
        server.faults.heal()


@each_venue
async def test_a_web_page_instead_of_data_is_garbage(venue: str) -> None:
    async with venue_server(venue) as server, asking(server, venue) as reference:
        await reference.instruments(venue)
        server.faults.answer_html(times=None)
        with pytest.raises(TradingError) as refused:
            await reference.ticker(an_id(venue))
        assert refused.value.code == "GARBAGE"
