"""The real ccxt classes of OKX and Bybit against a small local server that speaks their public dialects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import WSMsgType, web

from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceUpdate
from mcp_servers.market.sources.ccxt import CcxtLiveSource, open_exchange
from tests.bus_support import eventually
from trading.adapters.clock import SystemClock
from trading.adapters.market_wire import TradeUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.market_data import Side

#: The venues' own descriptions of BTC/USDT, without the fields nobody reads.
OKX_INSTRUMENT = {
    "baseCcy": "BTC", "category": "1", "expTime": "", "instId": "BTC-USDT", "instType": "SPOT", "lever": "10",
    "listTime": "1611907686000", "lotSz": "0.00000001", "maxLmtSz": "9999999999", "minSz": "0.00001",
    "quoteCcy": "USDT", "state": "live", "tickSz": "0.1", "uly": "", "settleCcy": "", "ctVal": "", "optType": "",
}  # fmt: skip
BYBIT_INSTRUMENT = {
    "symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading", "marginTrading": "utaOnly",
    "lotSizeFilter": {"basePrecision": "0.000001", "quotePrecision": "0.0000001", "minOrderQty": "0.000001",
                      "maxOrderQty": "230", "minOrderAmt": "5", "maxOrderAmt": "8000000"},
    "priceFilter": {"tickSize": "0.1"},
}  # fmt: skip


class Dialect:
    """A venue's answers; ``number`` counts its book messages."""

    def __init__(self) -> None:
        self.number = 100

    def rest(self, path: str) -> Any:
        """Return the answer to a GET."""
        raise NotImplementedError

    def channels(self, message: dict[str, Any]) -> list[str]:
        """Return which of ``book`` and ``trades`` a message subscribes to."""
        raise NotImplementedError

    def book(self, kind: str, bids: list[list[str]], asks: list[list[str]]) -> dict[str, Any]:
        """Return a whole book or a change."""
        raise NotImplementedError

    def trade(self, number: int) -> dict[str, Any]:
        """Return a sale of 0.5 at 100.1."""
        raise NotImplementedError


class Okx(Dialect):
    name, path = "okx", "/ws/v5/public"

    def rest(self, path: str) -> Any:
        data = [{"ts": "1750000000000"}] if path == "/api/v5/public/time" else [OKX_INSTRUMENT]
        return {"code": "0", "msg": "", "data": data}

    def channels(self, message: dict[str, Any]) -> list[str]:
        return [{"books": "book", "trades": "trades"}[item["channel"]] for item in message.get("args", [])]

    def book(self, kind: str, bids: list[list[str]], asks: list[list[str]]) -> dict[str, Any]:
        before = -1 if kind == "snapshot" else self.number
        self.number += 7
        change = {"bids": [[*level, "0", "1"] for level in bids], "asks": [[*level, "0", "1"] for level in asks]}
        ids = {"ts": "1750000000123", "seqId": self.number, "prevSeqId": before}
        arg = {"channel": "books", "instId": "BTC-USDT"}
        return {"arg": arg, "action": "snapshot" if kind == "snapshot" else "update", "data": [{**change, **ids}]}

    def trade(self, number: int) -> dict[str, Any]:
        row = {"instId": "BTC-USDT", "tradeId": str(number), "px": "100.1", "sz": "0.5", "side": "sell"}
        return {"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [{**row, "ts": "1750000000124"}]}


class Bybit(Dialect):
    name, path = "bybit", "/v5/public/spot"

    def rest(self, path: str) -> Any:
        result: dict[str, Any] = {"category": "spot", "list": [BYBIT_INSTRUMENT]}
        return {"retCode": 0, "retMsg": "OK", "result": result, "time": 1_750_000_000_000}

    def channels(self, message: dict[str, Any]) -> list[str]:
        topics = message.get("args", []) if message.get("op") == "subscribe" else []
        return ["book" if topic == "orderbook.50.BTCUSDT" else "trades" for topic in topics]

    def book(self, kind: str, bids: list[list[str]], asks: list[list[str]]) -> dict[str, Any]:
        self.number += 1
        data = {"s": "BTCUSDT", "b": bids, "a": asks, "u": self.number, "seq": self.number * 10}
        return {"topic": "orderbook.50.BTCUSDT", "type": kind, "ts": 1_750_000_000_123, "data": data}

    def trade(self, number: int) -> dict[str, Any]:
        row = {"i": str(number), "T": 1_750_000_000_124, "p": "100.1", "v": "0.5", "S": "Sell", "s": "BTCUSDT"}
        return {"topic": "publicTrade.BTCUSDT", "type": "snapshot", "ts": 1_750_000_000_124, "data": [row]}


class Server:
    """One venue on a loopback port; a book subscription is answered with the book of that moment."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.bids, self.asks = {"100": "1", "99.5": "2"}, {"100.5": "3"}
        self.sockets: dict[web.WebSocketResponse, set[str]] = {}
        self.connects = 0
        self.paths: set[str] = set()
        self.port = 0

    async def _request(self, request: web.Request) -> web.StreamResponse:
        self.paths.add(request.path)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return web.json_response(self.dialect.rest(request.path))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connects += 1
        self.sockets[socket] = set()
        async for message in socket:
            if message.type is not WSMsgType.TEXT or not message.data.startswith("{"):
                continue
            channels = self.dialect.channels(json.loads(message.data))
            self.sockets[socket].update(channels)
            if "book" in channels:
                await socket.send_json(self.dialect.book("snapshot", _rows(self.bids), _rows(self.asks)))
        self.sockets.pop(socket, None)
        return socket

    async def change(self, bids: dict[str, str], *, lost: bool = False) -> None:
        """Change bids, zero removes one, and send the change unless it gets lost."""
        for price, quantity in bids.items():
            self.bids[price] = quantity
            if quantity == "0":
                del self.bids[price]
        frame = self.dialect.book("delta", _rows(bids), [])
        if not lost:
            await self.send(frame)

    async def send(self, frame: dict[str, Any]) -> None:
        for socket in tuple(self.sockets):
            await socket.send_json(frame)

    @property
    def truth(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        bids = sorted(self.bids.items(), key=lambda level: -float(level[0]))
        return bids, sorted(self.asks.items(), key=lambda level: float(level[0]))

    def subscribed(self) -> bool:
        return {"book", "trades"} <= set().union(*self.sockets.values())


def _rows(levels: dict[str, str]) -> list[list[str]]:
    return [[price, quantity] for price, quantity in levels.items()]


class Line:
    """What a live source gives from a server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        base = f"127.0.0.1:{server.port}"
        self.source = CcxtLiveSource(
            Venue(name),
            (Symbol("BTC/USDT"),),
            SystemClock(),
            open_=lambda: open_exchange(name, rest_url=f"http://{base}", ws_url=f"ws://{base}"),
            random=lambda: 0.0,
        )
        self.given: list[SourceUpdate] = []
        self.book: tuple[list[tuple[str, str]], list[tuple[str, str]]] | None = None

    async def listen(self) -> None:
        updates = cast("AsyncGenerator[SourceUpdate]", self.source.updates())
        async with aclosing(updates):
            async for update in updates:
                self.given.append(update)
                if isinstance(update, Snapshot):
                    self.book = cast("Any", (list(update.bids), list(update.asks)))
                elif isinstance(update, Restarted):
                    self.book = None

    def agrees(self) -> bool:
        return self.book == self.server.truth

    def count(self, kind: type) -> int:
        return sum(isinstance(update, kind) for update in self.given)


@asynccontextmanager
async def line_to(kind: Callable[[], Dialect]) -> AsyncIterator[Line]:
    dialect = kind()
    server = Server(dialect)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server._request)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = int(runner.addresses[0][1])
    line = Line(server, cast("Any", dialect).name)
    task = asyncio.create_task(line.listen())
    try:
        await eventually(lambda: line.agrees() and server.subscribed())
        yield line
    finally:
        task.cancel()
        await asyncio.wait([task])
        await runner.cleanup()


@pytest.mark.parametrize("kind", [Okx, Bybit])
async def test_books_and_trades_arrive_as_the_venue_sent_them(kind: Callable[[], Dialect]) -> None:
    async with line_to(kind) as line:
        server = line.server
        await server.change({"100.1": "0.25", "99.5": "0"})
        await eventually(line.agrees)
        await server.send(server.dialect.trade(7))
        await server.send(server.dialect.trade(7))
        await server.send(server.dialect.trade(8))
        await eventually(lambda: line.count(TradeUpdate) == 2)
        trade = next(update for update in line.given if isinstance(update, TradeUpdate))
        assert (trade.price, trade.quantity, trade.aggressor, trade.venue_ts_ms) == (
            "100.1", "0.5", Side.SELL, 1_750_000_000_124,
        )  # fmt: skip
        rules = next(update for update in line.given if isinstance(update, Rules)).instruments[0]
        assert (str(rules.price_tick), rules.symbol) == ("0.1", "BTC/USDT")
        newest = [update for update in line.given if isinstance(update, Snapshot)][-1]
        assert newest.venue_ts_ms == 1_750_000_000_123
        assert cast("Any", server.dialect).path in server.paths
        status = line.source.status()
        assert (status.state, status.counters["sequence_checked"]) == (SourceState.RUNNING, 1)


@pytest.mark.parametrize("kind", [Okx, Bybit])
async def test_a_lost_change_shows_with_the_next_one_and_a_fresh_book_follows(kind: Callable[[], Dialect]) -> None:
    async with line_to(kind) as line:
        server = line.server
        await server.change({"99.9": "5"}, lost=True)
        assert not line.agrees()
        await server.change({"99.8": "6"})
        await eventually(lambda: line.count(Restarted) == 1)
        await eventually(lambda: line.agrees() and server.subscribed())
        await server.change({"99.7": "7"})
        await eventually(line.agrees)
        assert server.connects == 2
        counters = line.source.status().counters
        assert (counters["gaps"], counters["resyncs"], counters["failures"]) == (1, 1, 0)


@pytest.mark.parametrize("kind", [Okx, Bybit])
async def test_garbage_is_survived_and_a_cut_connection_is_made_again(kind: Callable[[], Dialect]) -> None:
    async with line_to(kind) as line:
        server = line.server
        for socket in tuple(server.sockets):
            await socket.send_str('{"broken": ')
        await server.change({"100.2": "1"})
        await eventually(line.agrees)
        assert line.source.status().counters["garbage"] == 1
        for socket in tuple(server.sockets):
            await socket.close()
        await eventually(lambda: line.count(Restarted) == 1)
        await eventually(lambda: line.agrees() and server.subscribed())
        assert line.source.status().counters["connections"] == 2
