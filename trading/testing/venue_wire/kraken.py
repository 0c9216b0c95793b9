"""Kraken: REST under ``/0/public`` and WebSocket v2, whose books have a depth and carry a checksum.

A book message shows the best ``depth`` levels: what a change pushes out below is not removed by a message, the client
cuts it off itself; what moves in from below is sent as a new level. The checksum is the CRC32 of the ten best asks and
bids as Kraken prints them. Numbers are JSON numbers with all their decimals, trailing zeros included.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, cast

from trading.testing.venue_wire.dialect import Answer, Dialect, Frame, Json, Session, frame, mapping, texts, whole
from trading.testing.venue_wire.market import Bar
from trading.testing.venue_wire.recorded import BookChange, Event, Print, RawLevel, rfc3339

_DEPTHS: Final = (10, 25, 100, 500, 1_000)
_CHANNELS: Final = ("book", "trade", "instrument")
_RENAMED: Final = {"XBT": "BTC", "XDG": "DOGE"}
_ROOT: Final = "/0/public/"
_OHLC_ROWS: Final = 720


class KrakenDialect(Dialect):
    """Kraken's public spot data."""

    venue = "kraken"
    ws_path = "/v2"

    def rest(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """Answer AssetPairs, Assets, Ticker, Depth, Trades, OHLC, Time and SystemStatus."""
        name = path.removeprefix(_ROOT)
        if name in ("AssetPairs", "Assets"):
            return _result(self.records["pairs" if name == "AssetPairs" else "assets"])
        if name in ("Time", "SystemStatus"):
            now = self.market.now_us
            return _result({"unixtime": now // 1_000_000} if name == "Time" else {"status": "online"})
        answers = {"Depth": self._depth, "Trades": self._trades, "OHLC": self._ohlc}
        if name != "Ticker" and name not in answers:
            return None
        pairs = query["pair"].split(",") if "pair" in query else list(self._pairs())
        known = {pair: symbol for pair in pairs if (symbol := self._symbol(pair)) in self.market.books}
        if "pair" in query and len(known) < len(pairs):
            return Answer({"error": ["EQuery:Unknown asset pair"]})
        if name == "Ticker":
            return _result({pair: self._ticker(symbol) for pair, symbol in known.items()})
        return answers[name](pairs[0], known[pairs[0]], query)

    def refusal(self, status: int) -> Answer:
        """Return Kraken's words for 429 and 5xx."""
        return Answer({"error": ["EAPI:Rate limit exceeded" if status == 429 else "EService:Unavailable"]}, status)

    def greeting(self, session: Session) -> list[Frame]:
        """Return the status message that opens every connection."""
        del session
        data = [{"version": "2.0.10", "system": "online", "api_version": "v2", "connection_id": 1}]
        return [frame({"channel": "status", "type": "update", "data": data})]

    def heartbeat(self, session: Session) -> list[Frame]:
        """Return a heartbeat, sent about once per second while nothing else is."""
        return [frame({"channel": "heartbeat"})] if session.channels else []

    def message(self, session: Session, message: Json) -> list[Frame]:
        """Answer ping, subscribe and unsubscribe, one acknowledgement per symbol."""
        method, now = message.get("method"), rfc3339(self.market.now_us)
        reply: Json = {"method": method, "time_in": now, "time_out": now}
        if "req_id" in message:
            reply["req_id"] = message["req_id"]
        if method == "ping":
            return [frame({**reply, "method": "pong"})]
        params = mapping(message["params"]) if isinstance(message.get("params"), dict) else {}
        channel, depth = str(params.get("channel")), whole(str(params.get("depth", 10)), 0)
        if method not in ("subscribe", "unsubscribe") or channel not in _CHANNELS:
            return [frame({**reply, "error": "Malformed request", "success": False})]
        frames: list[Frame] = []
        for symbol in texts(params.get("symbol")) or [""]:
            problem = self._problem(channel, symbol, depth)
            if problem:
                frames.append(frame({**reply, "error": problem, "success": False, "symbol": symbol}))
                continue
            frames.append(frame({**reply, "result": _subscribed(channel, symbol, depth), "success": True}))
            if method == "unsubscribe":
                session.channels.pop((channel, symbol), None)
                continue
            session.channels[channel, symbol] = depth
            frames.extend(self._first(session, channel, symbol, depth, want=params.get("snapshot")))
        return frames

    def event(self, session: Session, event: Event) -> list[Frame]:
        """Return a book or trade update."""
        if isinstance(event, Print):
            shown = ("trade", event.symbol) in session.channels
            return [_trades("update", [self._print(event)])] if shown else []
        depth = session.channels.get(("book", event.symbol))
        return self._update(session, event, depth) if depth else []

    def _update(self, session: Session, event: BookChange, depth: int) -> list[Frame]:
        """Return what turns the levels that a client has into the best levels now; nothing when they are the same."""
        book, levels = self.market.books[event.symbol], self._levels(event.symbol, depth)
        changed: list[list[RawLevel]] = []
        for had, has, rests in zip(session.shown[event.symbol], levels, (book.has_bid, book.has_ask), strict=True):
            gone = [(price, "0.00000000") for price in had if not rests(price)]
            changed.append([*gone, *((price, qty) for price, qty in has.items() if had.get(price) != qty)])
        session.shown[event.symbol] = levels
        if not any(changed):
            return []
        return [self._book("update", event.symbol, changed[0], changed[1], event.ts_us)]

    def _first(self, session: Session, channel: str, symbol: str, depth: int, *, want: object) -> list[Frame]:
        if channel == "book":
            session.shown[symbol] = bids, asks = self._levels(symbol, depth)
            return [self._book("snapshot", symbol, list(bids.items()), list(asks.items()), None)]
        if channel == "trade":
            recent = [self._print(item) for item in self.market.prints_of(symbol)[-50:]]
            return [_trades("snapshot", recent)] if recent and want is True else []
        pairs = [_instrument(info) for info in self._pairs().values()]
        return [frame({"channel": "instrument", "type": "snapshot", "data": {"assets": [], "pairs": pairs}})]

    def _problem(self, channel: str, symbol: str, depth: int) -> str:
        if channel == "instrument":
            return ""
        if symbol not in self.market.books:
            return f"Currency pair not supported {symbol}"
        return "Subscription depth not supported" if channel == "book" and depth not in _DEPTHS else ""

    def _book(self, kind: str, symbol: str, bids: list[RawLevel], asks: list[RawLevel], ts_us: int | None) -> Frame:
        sides = ",".join(
            f'"{name}":[{",".join(_level(price, qty) for price, qty in rows)}]'
            for name, rows in (("bids", bids), ("asks", asks))
        )
        at = f',"timestamp":"{rfc3339(ts_us)}"' if ts_us is not None else ""
        data = f'{{"symbol":"{symbol}",{sides},"checksum":{self.checksum(symbol)}{at}}}'
        return Frame(f'{{"channel":"book","type":"{kind}","data":[{data}]}}', kind == "update")

    def checksum(self, symbol: str) -> int:
        """Return Kraken's CRC32 of the ten best asks and bids as they are now."""
        bids, asks = self._levels(symbol, 10)
        digits = (text.replace(".", "").lstrip("0") for side in (asks, bids) for row in side.items() for text in row)
        return zlib.crc32("".join(digits).encode())

    def _levels(self, symbol: str, depth: int) -> tuple[dict[str, str], dict[str, str]]:
        book = self.market.books[symbol]
        return dict(self._printed(symbol, book.bids(depth))), dict(self._printed(symbol, book.asks(depth)))

    def _printed(self, symbol: str, rows: list[RawLevel]) -> list[RawLevel]:
        price_places, qty_places = self._places(symbol)
        return [(_fixed(price, price_places), _fixed(qty, qty_places)) for price, qty in rows]

    def _places(self, symbol: str) -> tuple[int, int]:
        info = next(info for info in self._pairs().values() if _unified(info) == symbol)
        return whole(str(info["pair_decimals"]), 0), whole(str(info["lot_decimals"]), 0)

    def _print(self, item: Print) -> str:
        price, qty = self._printed(item.symbol, [(item.price, item.quantity)])[0]
        head = f'"symbol":"{item.symbol}","side":"{item.aggressor}","price":{price},"qty":{qty}'
        return f'{{{head},"ord_type":"limit","trade_id":{item.trade_id},"timestamp":"{rfc3339(item.ts_us)}"}}'

    def _depth(self, pair: str, symbol: str, query: Mapping[str, str]) -> Answer:
        book, count = self.market.books[symbol], whole(query.get("count"), 100)
        at = book.ts_us // 1_000_000
        sides = {"asks": book.asks(count), "bids": book.bids(count)}
        rows = {name: [[p, q, at] for p, q in self._printed(symbol, side)] for name, side in sides.items()}
        return _result({pair: rows})

    def _trades(self, pair: str, symbol: str, query: Mapping[str, str]) -> Answer:
        since_us = whole(query.get("since"), 0)
        since_us = since_us // 1_000 if since_us > 10**16 else since_us * 1_000_000  # nanoseconds or seconds
        kept = [item for item in self.market.prints_of(symbol) if item.ts_us > since_us]
        count = whole(query.get("count"), 1_000)
        chosen = kept[:count] if since_us else kept[-count:]
        rows = [_row(item) for item in chosen]
        return _result({pair: rows, "last": str(chosen[-1].ts_us * 1_000 if chosen else since_us * 1_000)})

    def _ohlc(self, pair: str, symbol: str, query: Mapping[str, str]) -> Answer:
        interval = query.get("interval", "1")
        recorded = mapping(mapping(self.records["ohlc"]).get(symbol, {})).get(interval)
        rows = self._bars(symbol, whole(interval, 1)) if recorded is None else cast("list[list[object]]", recorded)
        since = whole(query.get("since"), 0)
        kept = [row for row in rows if whole(str(row[0]), 0) > since][-_OHLC_ROWS:]
        return _result({pair: kept, "last": kept[-2][0] if len(kept) > 1 else since})

    def _bars(self, symbol: str, minutes: int) -> list[list[object]]:
        return [_bar(bar) for bar in self.market.bars(symbol, minutes * 60_000)]

    def _ticker(self, symbol: str) -> Json:
        """Return a ticker whose day is the tape so far."""
        book = self.market.books[symbol]
        (bid,), (ask,) = book.bids(1), book.asks(1)
        row: Json = {"a": [ask[0], "1", ask[1]], "b": [bid[0], "1", bid[1]]}
        for day in self.market.bars(symbol, 2**50)[:1]:  # one bar of everything; none before the first trade
            last, average = self.market.prints_of(symbol)[-1], str(day.quote_volume / day.volume)
            both = {"v": day.volume, "p": average, "t": day.trades, "l": day.low, "h": day.high}
            row.update({name: [str(value)] * 2 if name != "t" else [value] * 2 for name, value in both.items()})
            row.update({"c": [last.price, last.quantity], "o": str(day.open)})
        return row

    def _pairs(self) -> dict[str, Json]:
        return {pair: mapping(info) for pair, info in mapping(self.records["pairs"]).items()}

    def _symbol(self, pair: str) -> str:
        info = self._pairs().get(pair)
        return _unified(info) if info is not None else ""


def _unified(info: Json) -> str:
    return "/".join(_RENAMED.get(part, part) for part in str(info["wsname"]).split("/"))


def _result(result: object) -> Answer:
    return Answer({"error": [], "result": result})


def _subscribed(channel: str, symbol: str, depth: int) -> Json:
    base: Json = {"channel": channel, "symbol": symbol, "snapshot": channel != "trade"}
    return {**base, "depth": depth} if channel == "book" else base


def _fixed(number: str, places: int) -> str:
    """Return a number with exactly so many decimals; what the venue cannot print must not be on its tape."""
    value = Decimal(number)
    text = f"{value:.{places}f}"
    if Decimal(text) != value:
        raise ValueError(f"{number} has more than {places} decimals")
    return text


def _level(price: str, quantity: str) -> str:
    return f'{{"price":{price},"qty":{quantity}}}'


def _trades(kind: str, rows: list[str]) -> Frame:
    return Frame(f'{{"channel":"trade","type":"{kind}","data":[{",".join(rows)}]}}')


def _row(item: Print) -> list[object]:
    side = "b" if item.aggressor == "buy" else "s"
    return [item.price, item.quantity, item.ts_us / 1_000_000, side, "l", "", int(item.trade_id)]


def _bar(bar: Bar) -> list[object]:
    average = str(bar.quote_volume / bar.volume)
    prices = [str(value) for value in (bar.open, bar.high, bar.low, bar.close)]
    return [bar.open_ts_ms // 1_000, *prices, average, str(bar.volume), bar.trades]


def _instrument(info: Json) -> Json:
    price_places, qty_places = whole(str(info["pair_decimals"]), 0), whole(str(info["lot_decimals"]), 0)
    base, _, quote = _unified(info).partition("/")
    row: Json = {"symbol": f"{base}/{quote}", "base": base, "quote": quote, "status": info["status"]}
    row.update({"price_precision": price_places, "price_increment": float(str(info["tick_size"]))})
    return {**row, "qty_precision": qty_places, "qty_increment": float(Decimal(1).scaleb(-qty_places))}
