"""Coinbase Advanced Trade: whole book and changes in one numbered series of messages per connection.

The recorded figures come from the retired Exchange feed (see ``load_coinbase``). An ``l2update`` is sent as an
``l2_data`` update, its ``buy`` and ``sell`` as ``bid`` and ``offer``; a ``match`` as a ``market_trades`` update, whose
``side`` is the maker's, as it was in the older feed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trading.testing.venue_wire.dialect import Answer, Dialect, Frame, Json, Session, frame, objects, texts, whole
from trading.testing.venue_wire.market import Bar
from trading.testing.venue_wire.recorded import BookChange, Event, Print, RawLevel, rfc3339

_GRANULARITY_MS: Final = {
    "ONE_MINUTE": 60_000,
    "FIVE_MINUTE": 300_000,
    "FIFTEEN_MINUTE": 900_000,
    "ONE_HOUR": 3_600_000,
    "ONE_DAY": 86_400_000,
}
_MARKET: Final = "/api/v3/brokerage/market"
_CHANNELS: Final = ("level2", "market_trades", "heartbeats")
_CANDLES: Final = 350  # the most that one answer holds
_RECENT: Final = 50  # trades in a snapshot


class CoinbaseDialect(Dialect):
    """Coinbase Advanced Trade, public endpoints and channels."""

    venue = "coinbase"
    ws_path = "/ws"

    def rest(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """Answer products, one product, its ticker and candles, product_book, time and the v2 lists ccxt asks for."""
        if path.startswith("/v2/"):
            return self._accounts_app(path)
        if path == "/api/v3/brokerage/time":
            now = self.market.now_us
            return Answer(
                {"iso": rfc3339(now), "epochSeconds": str(now // 1_000_000), "epochMillis": str(now // 1_000)}
            )
        name = path.removeprefix(_MARKET)
        if name == "/products":
            return self._list(query)
        if name == "/product_book":
            return self._of_product(query.get("product_id", ""), "book", query)
        parts = name.split("/")
        if len(parts) in (3, 4) and parts[1] == "products":
            return self._of_product(parts[2], parts[3] if len(parts) == 4 else "", query)
        return None

    def refusal(self, status: int) -> Answer:
        """Return Coinbase's words for 429 and 5xx."""
        error = "RESOURCE_EXHAUSTED" if status == 429 else "INTERNAL"
        message = "Too many requests" if status == 429 else "internal error"
        return Answer({"error": error, "code": 8 if status == 429 else 13, "message": message}, status)

    def message(self, session: Session, message: Json) -> list[Frame]:
        """Answer subscribe and unsubscribe: the first data of the channel, then everything that is subscribed."""
        kind, channel = message.get("type"), message.get("channel")
        ids = texts(message.get("product_ids"))
        known = {str(product["product_id"]) for product in self._products()}
        if kind not in ("subscribe", "unsubscribe") or channel not in _CHANNELS or not set(ids) <= known:
            return [frame({"type": "error", "message": "failure to subscribe"})]
        symbols = [_symbol(product_id) for product_id in ids] or ([""] if channel == "heartbeats" else [])
        frames: list[Frame] = []
        for symbol in symbols:
            if kind == "unsubscribe":
                session.channels.pop((str(channel), symbol), None)
                continue
            session.channels[str(channel), symbol] = 0
            frames.extend(self._first(session, str(channel), symbol))
        listing: dict[str, list[str]] = {}
        for name, symbol in session.channels:
            listing.setdefault(name, []).append(_id(symbol))
        return [*frames, self._numbered(session, "subscriptions", {"subscriptions": listing})]

    def event(self, session: Session, event: Event) -> list[Frame]:
        """Return an ``l2_data`` or ``market_trades`` update."""
        if isinstance(event, BookChange):
            if ("level2", event.symbol) not in session.channels:
                return []
            rows = [*_rows("bid", event.bids, event.ts_us), *_rows("offer", event.asks, event.ts_us)]
            body: Json = {"type": "update", "product_id": _id(event.symbol), "updates": rows}
            return [self._numbered(session, "l2_data", body, delta=True)]
        if ("market_trades", event.symbol) not in session.channels:
            return []
        return [self._numbered(session, "market_trades", {"type": "update", "trades": [_trade(event)]})]

    def heartbeat(self, session: Session) -> list[Frame]:
        """Return a heartbeat for a session that subscribed to them."""
        if not any(channel == "heartbeats" for channel, _ in session.channels):
            return []
        now = self.market.now_us
        body: Json = {"current_time": rfc3339(now), "heartbeat_counter": str(now // 1_000_000)}
        return [self._numbered(session, "heartbeats", body)]

    def _first(self, session: Session, channel: str, symbol: str) -> list[Frame]:
        book = self.market.books.get(symbol)
        if channel == "level2" and book is not None:
            rows = [*_rows("bid", book.bids(), book.ts_us), *_rows("offer", book.asks(), book.ts_us)]
            body: Json = {"type": "snapshot", "product_id": _id(symbol), "updates": rows}
            return [self._numbered(session, "l2_data", body)]
        recent = [_trade(item) for item in self.market.prints_of(symbol)[-_RECENT:][::-1]]
        if channel == "market_trades" and recent:
            return [self._numbered(session, "market_trades", {"type": "snapshot", "trades": recent})]
        return []

    def _numbered(self, session: Session, channel: str, event: Json, *, delta: bool = False) -> Frame:
        session.sequence += 1
        head: Json = {"channel": channel, "client_id": "", "timestamp": rfc3339(self.market.now_us)}
        return frame({**head, "sequence_num": session.sequence, "events": [event]}, delta=delta)

    def _products(self) -> list[Json]:
        return objects(self.records["products"])

    def _list(self, query: Mapping[str, str]) -> Answer:
        future = query.get("product_type") == "FUTURE"  # ccxt asks for both kinds; the recording has none
        getall = getattr(query, "getall", None)
        wanted = texts(getall("product_ids", [])) if callable(getall) else []
        rows = [] if future else [p for p in self._products() if not wanted or p["product_id"] in wanted]
        return Answer({"products": [self._priced(row) for row in rows], "num_products": len(rows)})

    def _of_product(self, product_id: str, what: str, query: Mapping[str, str]) -> Answer | None:
        product = next((p for p in self._products() if p["product_id"] == product_id), None)
        if product is None or _symbol(product_id) not in self.market.books:
            return Answer({"error": "NOT_FOUND", "code": 5, "message": "valid product_id is required"}, 404)
        symbol = _symbol(product_id)
        if what == "":
            return Answer(self._priced(product))
        answers = {"ticker": self._ticker, "candles": self._candles, "book": self._book}
        return answers[what](symbol, query) if what in answers else None

    def _priced(self, product: Json) -> Json:
        """Return a product with the last price played, its 24 hours being the tape so far."""
        symbol = _symbol(str(product["product_id"]))
        for day in self.market.bars(symbol, 2**50)[:1]:  # one bar of everything; none before the first trade
            return {**product, "price": str(day.close), "volume_24h": str(day.volume)}
        return product

    def _accounts_app(self, path: str) -> Answer | None:
        """Answer the older API, of which ccxt reads the time and currencies; the recording needs none of its own."""
        if path == "/v2/time":
            return Answer({"data": {"iso": rfc3339(self.market.now_us), "epoch": self.market.now_us // 1_000_000}})
        if path in ("/v2/currencies", "/v2/currencies/crypto"):
            return Answer({"data": []})
        return Answer({"data": {"currency": "USD", "rates": {}}}) if path == "/v2/exchange-rates" else None

    def _ticker(self, symbol: str, query: Mapping[str, str]) -> Answer:
        start, end = whole(query.get("start"), 0), whole(query.get("end"), 2**62)
        kept = [item for item in self.market.prints_of(symbol) if start <= item.ts_us // 1_000_000 <= end]
        trades = [_trade(item) for item in kept[-whole(query.get("limit"), 100) :][::-1]]
        (bid,), (ask,) = self.market.books[symbol].bids(1), self.market.books[symbol].asks(1)
        return Answer({"trades": trades, "best_bid": bid[0], "best_ask": ask[0]})

    def _candles(self, symbol: str, query: Mapping[str, str]) -> Answer:
        interval_ms = _GRANULARITY_MS.get(query.get("granularity", ""))
        start, end = whole(query.get("start"), 0), whole(query.get("end"), 0)
        if interval_ms is None or (end - start) * 1_000 > _CANDLES * interval_ms:
            message = "number of candles requested should be less than 350"
            return Answer({"error": "INVALID_ARGUMENT", "code": 3, "message": message}, 400)
        bars = [bar for bar in self.market.bars(symbol, interval_ms) if start <= bar.open_ts_ms // 1_000 <= end]
        return Answer({"candles": [_candle(bar) for bar in reversed(bars)]})

    def _book(self, symbol: str, query: Mapping[str, str]) -> Answer:
        book, limit = self.market.books[symbol], whole(query.get("limit"), 0) or None
        bids, asks = ([{"price": p, "size": q} for p, q in side] for side in (book.bids(limit), book.asks(limit)))
        body: Json = {"product_id": _id(symbol), "bids": bids, "asks": asks, "time": rfc3339(book.ts_us)}
        return Answer({"pricebook": body})


def _rows(side: str, levels: tuple[RawLevel, ...] | list[RawLevel], ts_us: int) -> list[Json]:
    at = rfc3339(ts_us)
    return [{"side": side, "event_time": at, "price_level": p, "new_quantity": q} for p, q in levels]


def _trade(item: Print) -> Json:
    maker = "SELL" if item.aggressor == "buy" else "BUY"
    row: Json = {"trade_id": item.trade_id, "product_id": _id(item.symbol), "price": item.price, "size": item.quantity}
    return {**row, "time": rfc3339(item.ts_us), "side": maker}


def _candle(bar: Bar) -> Json:
    row: Json = {"start": str(bar.open_ts_ms // 1_000), "low": str(bar.low), "high": str(bar.high)}
    return {**row, "open": str(bar.open), "close": str(bar.close), "volume": str(bar.volume)}


def _symbol(product_id: str) -> str:
    return product_id.replace("-", "/")


def _id(symbol: str) -> str:
    return symbol.replace("/", "-")
