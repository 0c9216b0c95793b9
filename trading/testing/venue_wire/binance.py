"""Binance spot: depth differences with update ids around a REST snapshot, single trades, numbered requests.

WebSocket paths end in ``/stream/ws/<anything>``: ccxt tells a spot stream by the word in its address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, cast

from trading.testing.venue_wire.dialect import (
    Answer,
    Dialect,
    Frame,
    Json,
    Session,
    frame,
    mapping,
    objects,
    texts,
    whole,
)
from trading.testing.venue_wire.market import Bar
from trading.testing.venue_wire.recorded import BookChange, Event, Print

_INTERVAL_MS: Final = {"1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "1d": 86_400_000}
_STREAMS: Final = {"depth@100ms": "depth", "depth": "depth", "trade": "trade"}


class BinanceDialect(Dialect):
    """Binance spot, ``/api/v3`` and raw streams."""

    venue = "binance"
    rest_root = "/api/v3"
    ws_path = "/stream/ws"

    def rest(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """Answer exchangeInfo, depth, ticker/24hr, ticker/bookTicker, klines, trades, aggTrades, time and ping."""
        name = path.removeprefix(f"{self.rest_root}/")
        if name in ("ping", "time"):
            return Answer({} if name == "ping" else {"serverTime": self._now_ms()})
        if name == "exchangeInfo":
            symbols = [info for info in self._infos() if query.get("symbol") in (None, info["symbol"])]
            now = self._now_ms()
            return Answer({"timezone": "UTC", "serverTime": now, "rateLimits": [], "symbols": symbols})
        if name in ("ticker/24hr", "ticker/bookTicker"):
            return self._tickers(query)
        answers = {"depth": self._depth, "klines": self._klines, "trades": self._trades, "aggTrades": self._aggregates}
        answer = answers.get(name)
        if answer is None:
            return None
        symbol = self._symbol(query.get("symbol", ""))
        if symbol is None or symbol not in self.market.books:
            return Answer({"code": -1121, "msg": "Invalid symbol."}, 400)
        return answer(symbol, query)

    def refusal(self, status: int) -> Answer:
        """Return Binance's words for 418, 429 and 5xx."""
        if status in (418, 429):
            return Answer({"code": -1003, "msg": "Too much request weight used; please use WebSocket Streams."}, status)
        return Answer({"code": -1000, "msg": "An unknown error occurred while processing the request."}, status)

    def message(self, session: Session, message: Json) -> list[Frame]:
        """Answer SUBSCRIBE, UNSUBSCRIBE and LIST_SUBSCRIPTIONS."""
        method, number = message.get("method"), message.get("id")
        if method == "LIST_SUBSCRIPTIONS":
            known = [f"{self._id(symbol).lower()}@{name}" for name, symbol in session.channels]
            return [frame({"result": known, "id": number})]
        if method not in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return [self._error(number, "unknown method")]
        wanted = [self._stream(text) for text in texts(message.get("params"))]
        if not wanted or None in wanted:
            return [self._error(number, "invalid stream")]
        for key in wanted:
            if key is not None and method == "SUBSCRIBE":
                session.channels[key] = 0
            elif key is not None:
                session.channels.pop(key, None)
        return [frame({"result": None, "id": number})]

    def event(self, session: Session, event: Event) -> list[Frame]:
        """Return a depthUpdate or trade message."""
        kind = "depth" if isinstance(event, BookChange) else "trade"
        if (kind, event.symbol) not in session.channels:
            return []
        at_ms, market_id = event.ts_us // 1_000, self._id(event.symbol)
        if isinstance(event, BookChange):
            ids = {"U": event.first_id, "u": event.last_id}
            levels = {"b": event.bids, "a": event.asks}
            return [frame({"e": "depthUpdate", "E": at_ms, "s": market_id, **ids, **levels}, delta=True)]
        print_ = {"t": int(event.trade_id), "p": event.price, "q": event.quantity, "T": at_ms}
        maker = {"m": event.aggressor == "sell", "M": True}
        return [frame({"e": "trade", "E": at_ms, "s": market_id, **print_, **maker})]

    def _depth(self, symbol: str, query: Mapping[str, str]) -> Answer:
        book, limit = self.market.books[symbol], whole(query.get("limit"), 100)
        return Answer({"lastUpdateId": book.last_id, "bids": book.bids(limit), "asks": book.asks(limit)})

    def _klines(self, symbol: str, query: Mapping[str, str]) -> Answer:
        interval = query.get("interval", "")
        if interval not in _INTERVAL_MS:
            return Answer({"code": -1120, "msg": "Invalid interval."}, 400)
        rows = self._recorded_klines(symbol, interval) or [
            _kline(bar, _INTERVAL_MS[interval]) for bar in self.market.bars(symbol, _INTERVAL_MS[interval])
        ]
        start, end = whole(query.get("startTime"), 0), whole(query.get("endTime"), 2**62)
        kept = [row for row in rows if start <= whole(str(row[0]), 0) <= end]
        limit = whole(query.get("limit"), 500)
        return Answer(kept[:limit] if "startTime" in query else kept[-limit:])

    def _recorded_klines(self, symbol: str, interval: str) -> list[list[object]]:
        of_symbol = mapping(mapping(self.records["klines"]).get(symbol, {}))
        return cast("list[list[object]]", of_symbol.get(interval, []))

    def _trades(self, symbol: str, query: Mapping[str, str]) -> Answer:
        prints = self.market.prints_of(symbol)[-whole(query.get("limit"), 500) :]
        return Answer([_trade(item) for item in prints])

    def _aggregates(self, symbol: str, query: Mapping[str, str]) -> Answer:
        start, end = whole(query.get("startTime"), 0), whole(query.get("endTime"), 2**62)
        first, limit = whole(query.get("fromId"), 0), whole(query.get("limit"), 500)
        kept = [
            item
            for item in self.market.prints_of(symbol)
            if start <= item.ts_us // 1_000 <= end and int(item.trade_id) >= first
        ]
        chosen = kept[:limit] if {"startTime", "fromId"} & set(query) else kept[-limit:]
        return Answer([_aggregate(item) for item in chosen])

    def _tickers(self, query: Mapping[str, str]) -> Answer:
        ids: list[str] | None = None
        if "symbol" in query:
            ids = [query["symbol"]]
        elif "symbols" in query:
            ids = texts(json.loads(query["symbols"]))
        symbols = list(self.market.books) if ids is None else [self._symbol(market_id) for market_id in ids]
        if any(symbol not in self.market.books for symbol in symbols):
            return Answer({"code": -1121, "msg": "Invalid symbol."}, 400)
        rows = [self._ticker(symbol) for symbol in symbols if symbol is not None]
        return Answer(rows[0] if "symbol" in query else rows)

    def _ticker(self, symbol: str) -> Json:
        """Return a ticker whose 24 hours are the tape so far."""
        book, now = self.market.books[symbol], self._now_ms()
        row: Json = {"symbol": self._id(symbol), "openTime": now - 86_400_000, "closeTime": now}
        (bid,), (ask,) = book.bids(1), book.asks(1)
        row.update({"bidPrice": bid[0], "bidQty": bid[1], "askPrice": ask[0], "askQty": ask[1]})
        for day in self.market.bars(symbol, 2**50)[:1]:  # one bar of everything; none before the first trade
            last = self.market.prints_of(symbol)[-1]
            row.update({"lastPrice": last.price, "lastQty": last.quantity, "openPrice": str(day.open)})
            row.update({"highPrice": str(day.high), "lowPrice": str(day.low), "volume": str(day.volume)})
            row.update({"quoteVolume": str(day.quote_volume), "count": day.trades})
        return row

    def _infos(self) -> list[Json]:
        return objects(self.records["symbols"])

    def _symbol(self, market_id: str) -> str | None:
        return next((_unified(info) for info in self._infos() if info["symbol"] == market_id), None)

    def _id(self, symbol: str) -> str:
        return symbol.replace("/", "")

    def _stream(self, text: str) -> tuple[str, str] | None:
        market_id, _, name = text.partition("@")
        symbol = self._symbol(market_id.upper())
        return (_STREAMS[name], symbol) if name in _STREAMS and symbol in self.market.books and symbol else None

    def _error(self, number: object, reason: str) -> Frame:
        return frame({"error": {"code": 2, "msg": f"Invalid request: {reason}"}, "id": number})

    def _now_ms(self) -> int:
        return self.market.now_us // 1_000


def _unified(info: Json) -> str:
    return f"{info['baseAsset']}/{info['quoteAsset']}"


def _kline(bar: Bar, interval_ms: int) -> list[object]:
    prices = [str(value) for value in (bar.open, bar.high, bar.low, bar.close, bar.volume)]
    end = bar.open_ts_ms + interval_ms - 1
    return [bar.open_ts_ms, *prices, end, str(bar.quote_volume), bar.trades, "0", "0", "0"]


def _trade(item: Print) -> Json:
    maker = item.aggressor == "sell"
    row: Json = {"id": int(item.trade_id), "price": item.price, "qty": item.quantity, "time": item.ts_us // 1_000}
    return {**row, "isBuyerMaker": maker, "isBestMatch": True}


def _aggregate(item: Print) -> Json:
    number = int(item.trade_id)
    row: Json = {"a": number, "p": item.price, "q": item.quantity, "f": number, "l": number}
    return {**row, "T": item.ts_us // 1_000, "m": item.aggressor == "sell", "M": True}
