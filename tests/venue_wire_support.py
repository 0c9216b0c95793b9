"""A venue on the wire and the market room's live line to it: real ccxt, pipeline and feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import SourceState
from mcp_servers.market.sources.ccxt import CcxtLiveSource, open_exchange
from tests.bus_support import eventually, running
from trading.adapters.clock import SystemClock
from trading.adapters.market_feed import LocalMarketFeed
from trading.adapters.market_wire import BookUpdate, TradeUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, Side
from trading.testing.venue_wire import (
    BinanceDialect,
    BookChange,
    CoinbaseDialect,
    Event,
    KrakenDialect,
    Print,
    Tape,
    Top,
    VenueServer,
    load_binance,
    load_coinbase,
    load_rest,
)

DATA = Path(__file__).parent / "data" / "venue_wire"
VENUES = ("binance", "coinbase", "kraken")
SYMBOLS = {"binance": "BTC/USDT", "coinbase": "SKL/USD", "kraken": "BTC/USDT"}
#: What a subscription to books and one to trades is called on each venue.
CHANNELS = {"binance": ("depth", "trade"), "coinbase": ("level2", "market_trades"), "kraken": ("book", "trade")}
DIALECTS = {"binance": BinanceDialect, "coinbase": CoinbaseDialect, "kraken": KrakenDialect}

#: Identity, price, quantity, side and venue time of a trade, in comparable text.
TradeRow = tuple[str, str, str, Side, int]


@cache
def rest_records() -> dict[str, dict[str, object]]:
    """Return the recorded REST answers of every venue."""
    return load_rest(DATA / "rest_ccxt_static.json.gz")


@cache
def tape(venue: str) -> Tape:
    """Return what happens at a venue; Kraken's figures are Binance's."""
    if venue == "coinbase":
        return load_coinbase(DATA / "coinbase_exchange_20210417.txt.gz")
    recordings = Path(str(files("mcp_servers.market").joinpath("recordings")))
    return load_binance(recordings / "rawfeed_binance_spot_BTCUSDT_20240808.jsonl.gz")


def venue_server(venue: str) -> VenueServer:
    """Return a server of a venue that is to be entered."""
    return VenueServer(DIALECTS[venue], tape(venue), rest_records()[venue])


class Recorder:
    """Keeps everything that was published."""

    def __init__(self) -> None:
        self.books: list[BookUpdate] = []
        self.trades: list[TradeUpdate] = []

    def publish_instrument(self, instrument: Instrument) -> None:
        """Keep nothing: the feed knows the rules."""

    def publish_book(self, update: BookUpdate) -> None:
        self.books.append(update)

    def publish_trade(self, update: TradeUpdate) -> None:
        self.trades.append(update)


class Line:
    """The room's end: a live source of one symbol, its pipeline and what was published."""

    def __init__(
        self,
        server: VenueServer,
        venue: str,
        *,
        port: int | None,
        symbol: str | None,
        silence_s: float,
        timeout_ms: int | None,
    ) -> None:
        self.server = server
        self.venue = venue
        self.symbol = symbol or SYMBOLS[venue]
        self.id = InstrumentId(Venue(venue), Symbol(self.symbol))
        self.pauses: list[float] = []
        clock, at = SystemClock(), port or server.port
        self.source = CcxtLiveSource(
            self.id.venue,
            (self.id.symbol,),
            clock,
            open_=lambda: _open(venue, server.rest_url_at(at), server.ws_url_at(at), timeout_ms),
            sleep=self._pause,
            random=lambda: 1.0,
            silence_s=silence_s,
        )
        self.feed = LocalMarketFeed(clock, feed=Feed.LIVE)
        self.published = Recorder()
        self.pipeline = MarketPipeline(self.source, (self.feed, self.published), CandleStore(), clock)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0.005)

    @property
    def code(self) -> str:
        """Why the source has no data now; empty when it has."""
        return self.source.status().code

    @property
    def counters(self) -> dict[str, int]:
        """What the source counts."""
        return self.source.status().counters

    def top(self) -> Top | None:
        """Return the published book as text; None when it is empty or there is none."""
        self.pipeline.tick()  # what changed below the best levels is published now, not 50 ms later
        book = self.feed.book(self.id)
        if book is None or not book.bids:
            return None
        bids, asks = (tuple((format(p, "f"), format(q, "f")) for p, q in side) for side in (book.bids, book.asks))
        return Top(bids, asks)

    def agrees(self) -> bool:
        """Return whether the published book is the true one, level by level and digit by digit."""
        return self.top() == self.server.top(self.symbol)

    async def ready(self) -> None:
        """Wait until books and trades are subscribed and the first book is the true one."""
        await eventually(lambda: all(self.server.subscribers(channel, self.symbol) for channel in CHANNELS[self.venue]))
        await eventually(self.agrees)

    async def failing(self, code: str) -> None:
        """Wait until the source says that it has no data, and why."""
        await eventually(lambda: self.code == code)
        assert self.source.status().state is SourceState.RECONNECTING
        assert self.venue in self.source.status().message

    def trade_rows(self, *, since: int = 0) -> list[TradeRow]:
        """Return the published trades."""
        return [(t.trade_id, t.price, t.quantity, t.aggressor, t.venue_ts_ms) for t in self.published.trades[since:]]

    def emptied(self, *, since: int) -> bool:
        """Return whether an empty book was published after the first ``since`` ones."""
        return any(not book.bids and not book.asks for book in self.published.books[since:])


def _open(venue: str, rest_url: str, ws_url: str, timeout_ms: int | None) -> Any:
    exchange: Any = open_exchange(venue, rest_url=rest_url, ws_url=ws_url)
    exchange.enableRateLimit = False  # the local venue has no limit, and the client's own pauses are no subject here
    exchange.timeout_on_exit = 0  # it waits for TLS to say goodbye, and there is none here
    if timeout_ms is not None:
        exchange.timeout = timeout_ms
    return exchange


@asynccontextmanager
async def live_line(
    server: VenueServer,
    venue: str,
    *,
    port: int | None = None,
    symbol: str | None = None,
    silence_s: float = 30.0,
    timeout_ms: int | None = None,
) -> AsyncIterator[Line]:
    """Run a line to a server, or to what stands on ``port`` before it; it must never fail by itself.

    Args:
        timeout_ms: the longest wait for a REST answer; the room's own unless a test says otherwise.
    """
    line = Line(server, venue, port=port, symbol=symbol, silence_s=silence_s, timeout_ms=timeout_ms)
    task = asyncio.create_task(line.pipeline.run())
    with running(task):
        try:
            yield line
            assert not task.done(), "the feed must outlive whatever the venue does"
        finally:
            task.cancel()
            await asyncio.wait([task])


def print_rows(prints: list[Print]) -> list[TradeRow]:
    """Return the venue's trades as the room should publish them."""
    return [
        (item.trade_id, _plain(item.price), _plain(item.quantity), Side(item.aggressor), item.ts_us // 1_000)
        for item in prints
    ]


def _plain(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def next_visible_change(server: VenueServer, symbol: str) -> int:
    """Return how many events lie before the next change among the ten best levels as they are now."""
    bids, asks = server.top(symbol, 10)
    worst_bid, worst_ask = float(bids[-1][0]), float(asks[-1][0])

    def visible(event: Event) -> bool:
        if not isinstance(event, BookChange) or event.symbol != symbol:
            return False
        prices = [float(price) for price, _ in (*event.bids, *event.asks)]
        return any(worst_bid <= price <= worst_ask for price in prices)

    return server.market.events_until(visible)
