"""Recorded market data in one neutral form, whatever venue it came from.

Numbers stay the text that the venue sent; times are microseconds since the epoch on the venue's clock.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final, cast

#: One level: price text and quantity text; quantity zero removes it.
RawLevel = tuple[str, str]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StartingBook:
    """The whole book before the first event.

    Attributes:
        last_id: the venue's update id, 0 where it has none.
    """

    bids: tuple[RawLevel, ...]
    asks: tuple[RawLevel, ...]
    last_id: int
    ts_us: int


@dataclass(frozen=True, slots=True)
class BookChange:
    """Changed levels of one symbol; ``first_id`` and ``last_id`` are 0 where the venue numbers nothing."""

    symbol: str
    first_id: int
    last_id: int
    bids: tuple[RawLevel, ...]
    asks: tuple[RawLevel, ...]
    ts_us: int


@dataclass(frozen=True, slots=True)
class Print:
    """A public trade; ``aggressor`` is ``buy`` or ``sell``, the side that took liquidity."""

    symbol: str
    trade_id: str
    price: str
    quantity: str
    aggressor: str
    ts_us: int


Event = BookChange | Print


@dataclass(frozen=True)
class Tape:
    """What happened at a venue: where every book began, and what followed, in order."""

    books: dict[str, StartingBook]
    events: tuple[Event, ...]

    def renamed(self, symbol: str, to: str) -> Tape:
        """Return one symbol's part under another name: a venue's figures to be played as another's."""
        events = tuple(replace(event, symbol=to) for event in self.events if event.symbol == symbol)
        return Tape({to: self.books[symbol]}, events)


def load_rest(path: Path) -> dict[str, dict[str, object]]:
    """Return the recorded REST answers by venue from a gzipped JSON file."""
    return cast("dict[str, dict[str, object]]", json.loads(gzip.decompress(path.read_bytes())))


def load_binance(path: Path, *, symbol: str = "BTC/USDT") -> Tape:
    """Return the depth and trade messages of a raw Binance feed, from its REST snapshot on.

    Args:
        path: gzipped lines ``<receive time ns> <combined stream message or REST snapshot>``.
    """
    start: StartingBook | None = None
    early: list[BookChange] = []
    events: list[Event] = []
    for message in _binance_messages(path):
        if "lastUpdateId" in message:
            ts_us = early[-1].ts_us if early else 0
            last_id = _integer(message["lastUpdateId"])
            start = StartingBook(_levels(message["bids"]), _levels(message["asks"]), last_id, ts_us)
            # The feed runs ahead of the snapshot: what it already contains is no event any more.
            events.extend(change for change in early if change.last_id > last_id)
            continue
        event = _binance_event(symbol, message)
        if event is None:
            continue
        if start is not None:
            events.append(event)
        elif isinstance(event, BookChange):
            early.append(event)
    if start is None:
        raise ValueError(f"{path.name} holds no snapshot")
    return Tape({symbol: start}, tuple(events))


def _binance_messages(path: Path) -> Iterator[dict[str, object]]:
    for line in gzip.decompress(path.read_bytes()).splitlines():
        message = cast("dict[str, object]", json.loads(line.partition(b" ")[2]))
        yield cast("dict[str, object]", message.get("data", message))


def _binance_event(symbol: str, data: dict[str, object]) -> Event | None:
    if data.get("e") == "depthUpdate":
        ids = _integer(data["U"]), _integer(data["u"])
        return BookChange(symbol, *ids, _levels(data["b"]), _levels(data["a"]), _integer(data["E"]) * 1_000)
    if data.get("e") == "trade":
        aggressor = "sell" if data["m"] else "buy"  # m: the buyer was the maker
        price, quantity = str(data["p"]), str(data["q"])
        return Print(symbol, str(data["t"]), price, quantity, aggressor, _integer(data["T"]) * 1_000)
    return None


def load_coinbase(path: Path) -> Tape:
    """Return a capture of the retired Coinbase Exchange feed.

    Its figures are used as they are: an ``l2update`` becomes a change of levels, a ``match`` a print. The feed names
    the maker's side of a match, so the aggressor is the other one. It numbers no book changes.

    Args:
        path: gzipped lines ``<receive time s>: <message>``.
    """
    books: dict[str, StartingBook] = {}
    events: list[Event] = []
    for line in gzip.decompress(path.read_bytes()).splitlines():
        received, _, text = line.partition(b": ")
        message = cast("dict[str, object]", json.loads(text))
        symbol = str(message["product_id"]).replace("-", "/")
        if message["type"] == "snapshot":
            ts_us = int(Decimal(received.decode()) * 1_000_000)
            books[symbol] = StartingBook(_levels(message["bids"]), _levels(message["asks"]), 0, ts_us)
        elif message["type"] == "l2update":
            events.append(_coinbase_change(symbol, message))
        elif message["type"] == "match":
            aggressor = "sell" if message["side"] == "buy" else "buy"
            ts_us = microseconds(str(message["time"]))
            price, size = str(message["price"]), str(message["size"])
            events.append(Print(symbol, str(message["trade_id"]), price, size, aggressor, ts_us))
    return Tape(books, tuple(events))


def _coinbase_change(symbol: str, message: dict[str, object]) -> BookChange:
    rows = cast("list[list[str]]", message["changes"])
    bids, asks = (tuple((row[1], row[2]) for row in rows if row[0] == side) for side in ("buy", "sell"))
    return BookChange(symbol, 0, 0, bids, asks, microseconds(str(message["time"])))


def microseconds(text: str) -> int:
    """Return an RFC 3339 time with up to six decimals as microseconds since the epoch."""
    return (datetime.fromisoformat(text.replace("Z", "+00:00")) - _EPOCH) // timedelta(microseconds=1)


def rfc3339(ts_us: int) -> str:
    """Return microseconds since the epoch as RFC 3339 text with six decimals, ending in Z."""
    return (_EPOCH + timedelta(microseconds=ts_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _levels(rows: object) -> tuple[RawLevel, ...]:
    return tuple((str(row[0]), str(row[1])) for row in cast("Sequence[Sequence[object]]", rows))


def _integer(value: object) -> int:
    return int(cast("int | str", value))
