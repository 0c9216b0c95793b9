"""The bytes of the market streams: what is signed, how it is checked, how it becomes domain values.

Rules kept here:

- A message is authenticated before anything in it is believed; the MAC also covers the stream's own name, so a
  message cannot be moved to another stream or desk.
- Prices and quantities are the venue's decimal text without trailing zeros; they become ``Decimal`` only in a reader.
- Every message starts with sequence, feed and publication time, so a reader can judge it without parsing the levels.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import orjson

from trading.adapters.codec import decode, encode
from trading.adapters.config import check_private, write_private
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, TradeId, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, Level, OrderBook, Side, TradePrint

MAX_LEVELS: Final = 50
KEY_BYTES: Final = 32

#: The state of a book whose stream has just begun anew; what was traded meanwhile is unknown.
BEGUN_ANEW: Final = "resync"

#: A level as it travels: [price text, quantity text], quote per base and base.
LevelText = list[str]

_HEADER: Final = re.compile(rb'\{"seq":(\d{1,16}),"feed":"([a-z]{1,16})","pub":(\d{1,16}),')
_STATE: Final = re.compile(rb'"state":"([a-z]{1,16})"')


@dataclass(frozen=True, slots=True)
class BookUpdate:
    """A book on its way to the streams, best level first.

    Attributes:
        bids, asks: at most 50 levels each, as decimal text; both empty says "there is no usable book now".
        venue_ts_ms, received_ts_ms: the venue's clock and the source's clock on arrival.
        state: ``ok``, or why the book is empty: ``gap``, ``crossed``, ``resync`` or ``outlier``.
    """

    instrument_id: InstrumentId
    bids: Sequence[LevelText]
    asks: Sequence[LevelText]
    venue_ts_ms: int
    received_ts_ms: int
    state: str = "ok"


@dataclass(frozen=True, slots=True)
class TradeUpdate:
    """A public print on its way to the streams; fields as in ``TradePrint``, numbers as decimal text."""

    instrument_id: InstrumentId
    trade_id: str
    price: str
    quantity: str
    aggressor: Side
    venue_ts_ms: int
    received_ts_ms: int


class Header(NamedTuple):
    """What stands at the front of every authenticated message."""

    sequence: int
    feed: Feed
    published_ts_ms: int


class StreamKeys(NamedTuple):
    """The Redis keys of one desk's market data."""

    desk: str

    def book(self, instrument_id: InstrumentId) -> str:
        """Return the stream of books of an instrument."""
        return f"grekko:{{{self.desk}}}:market:book:{instrument_id.venue}:{instrument_id.symbol}"

    def trade(self, instrument_id: InstrumentId) -> str:
        """Return the stream of trades of an instrument."""
        return f"grekko:{{{self.desk}}}:market:trade:{instrument_id.venue}:{instrument_id.symbol}"

    @property
    def instruments(self) -> str:
        """The hash of instrument rules."""
        return f"grekko:{{{self.desk}}}:market:instruments"

    @property
    def position(self) -> str:
        """Where a source that can resume keeps its position."""
        return f"grekko:{{{self.desk}}}:market:position"


def create_feed_key(path: Path) -> bytes:
    """Write a fresh 32-byte key as hexadecimal text, mode 0600, unless the file exists; return the key in force.

    Raises:
        ConfigurationError: the file that is there is no usable key.
    """
    try:
        write_private(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
    except FileExistsError:
        pass
    return load_feed_key(path)


def load_feed_key(path: Path) -> bytes:
    """Return the key that market, risk and execution share.

    Raises:
        ConfigurationError: missing, open to other users, or not 64 hexadecimal digits.
    """
    try:
        check_private(path)
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path.name}: no usable feed key", suggestion="run `grekko init` to make one"
        ) from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{path.name}: a feed key has {KEY_BYTES * 2} hexadecimal digits")
    return key


def mac(key: bytes, stream: str, data: bytes) -> bytes:
    """Return HMAC-SHA256 over the stream's name and the message, 64 hexadecimal digits."""
    return hmac.digest(key, stream.encode() + b"\x00" + data, "sha256").hex().encode()


def is_authentic(key: bytes, stream: str, data: bytes, tag: bytes) -> bool:
    """Return whether ``tag`` is the MAC of this message on this stream, in constant time."""
    return hmac.compare_digest(mac(key, stream, data), tag)


def encode_book(update: BookUpdate, *, sequence: int, feed: Feed, published_ts_ms: int) -> bytes:
    """Return the JSON of one book."""
    return orjson.dumps(
        {
            "seq": sequence,
            "feed": feed.value,
            "pub": published_ts_ms,
            "venue_ts": update.venue_ts_ms,
            "received_ts": update.received_ts_ms,
            "state": update.state,
            "bids": update.bids,
            "asks": update.asks,
        }
    )


def encode_trades(updates: Sequence[TradeUpdate], *, sequence: int, feed: Feed, published_ts_ms: int) -> bytes:
    """Return the JSON of consecutive trades of one instrument; ``sequence`` belongs to the last of them."""
    return orjson.dumps(
        {
            "seq": sequence,
            "feed": feed.value,
            "pub": published_ts_ms,
            "trades": [
                (t.trade_id, t.price, t.quantity, t.aggressor.value, t.venue_ts_ms, t.received_ts_ms) for t in updates
            ],
        }
    )


def read_header(data: bytes) -> Header:
    """Return sequence, feed and publication time of an authenticated message.

    Raises:
        InvalidValue: it does not start as our messages do.
    """
    match = _HEADER.match(data)
    try:
        if match is None:
            raise ValueError("no header")
        return Header(int(match[1]), Feed(match[2].decode()), int(match[3]))
    except ValueError as error:
        raise InvalidValue("malformed market message", code="MALFORMED") from error


def read_state(data: bytes) -> str | None:
    """Return what an authenticated book message says of its book, without parsing the levels; None if it does not."""
    match = _STATE.search(data, 0, 200)  # it stands before the levels
    return match[1].decode() if match is not None else None


def decode_book(instrument_id: InstrumentId, data: bytes) -> OrderBook:
    """Return the book in an authenticated message.

    Raises:
        InvalidValue: a field is missing or of the wrong kind.
    """
    header = read_header(data)
    try:
        raw = cast("dict[str, Any]", orjson.loads(data))
        return OrderBook(
            instrument_id,
            _levels(raw["bids"]),
            _levels(raw["asks"]),
            header.sequence,
            int(raw["venue_ts"]),
            int(raw["received_ts"]),
            header.published_ts_ms,
            header.feed,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidValue("malformed book message", code="MALFORMED") from error


def book_from_update(update: BookUpdate, *, sequence: int, feed: Feed, published_ts_ms: int) -> OrderBook:
    """Return the same book as ``decode_book(encode_book(...))`` without going through text."""
    return OrderBook(
        update.instrument_id,
        _levels(update.bids),
        _levels(update.asks),
        sequence,
        update.venue_ts_ms,
        update.received_ts_ms,
        published_ts_ms,
        feed,
    )


def _levels(rows: Sequence[LevelText]) -> tuple[Level, ...]:
    return tuple([Level(Decimal(price), Decimal(quantity)) for price, quantity in rows])


def decode_trades(instrument_id: InstrumentId, data: bytes) -> list[TradePrint]:
    """Return the trades in an authenticated message, oldest first, with consecutive sequences.

    Raises:
        InvalidValue: a field is missing or of the wrong kind.
    """
    header = read_header(data)
    try:
        rows = cast("list[Any]", orjson.loads(data)["trades"])
        first = header.sequence - len(rows) + 1
        return [
            TradePrint(
                instrument_id,
                TradeId(str(row[0])),
                Decimal(row[1]),
                Decimal(row[2]),
                Side(row[3]),
                first + index,
                int(row[4]),
                int(row[5]),
                header.published_ts_ms,
                header.feed,
            )
            for index, row in enumerate(rows)
        ]
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidValue("malformed trade message", code="MALFORMED") from error


def trade_from_update(update: TradeUpdate, *, sequence: int, feed: Feed, published_ts_ms: int) -> TradePrint:
    """Return the same trade as ``decode_trades`` would, without going through text."""
    return TradePrint(
        update.instrument_id,
        TradeId(update.trade_id),
        Decimal(update.price),
        Decimal(update.quantity),
        update.aggressor,
        sequence,
        update.venue_ts_ms,
        update.received_ts_ms,
        published_ts_ms,
        feed,
    )


def encode_instrument(instrument: Instrument, *, key: bytes, keys: StreamKeys) -> bytes:
    """Return an instrument's rules with their MAC: ``<JSON>.<64 hexadecimal digits>``."""
    data = encode(instrument)
    return data + b"." + mac(key, f"{keys.instruments}:{instrument.venue}:{instrument.symbol}", data)


def decode_instrument(field: str, value: bytes, *, key: bytes, keys: StreamKeys) -> Instrument | None:
    """Return the rules stored under ``<venue>:<symbol>``, or None when the MAC is wrong.

    Raises:
        InvalidValue: authenticated but malformed.
    """
    data, _, tag = value.rpartition(b".")
    if not is_authentic(key, f"{keys.instruments}:{field}", data, tag):
        return None
    return decode(Instrument, data)


def parse_field(field: str) -> InstrumentId:
    """Return the instrument that a field ``<venue>:<symbol>`` names."""
    venue, _, symbol = field.partition(":")
    return InstrumentId(Venue(venue), Symbol(symbol))
