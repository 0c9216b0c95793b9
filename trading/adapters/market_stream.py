"""Market data between rooms: one publisher signs, every other room verifies and keeps the last value.

Rules kept here:

- A reader believes nothing that fails its MAC, does not raise the sequence, comes from the future or is of a feed kind
  it does not accept, and counts every refusal.
- Raw last values are kept; decoding happens when somebody asks, once per message.
- A live trade is handed on once, also when a publisher that has just started repeats what its venue sent it again.
- Redis may go away at any time: the last values simply age, and reading goes on where it stopped.

Other rooms import everything about market data from here; the publisher is ``trading.adapters.market_publisher``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Self, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.market_feed import (
    Fanout,
    FeedStatus,
    InstrumentStatus,
    LocalMarketFeed,
    MarketFeed,
    MarketUpdate,
    Subscription,
    instrument_status,
)
from trading.adapters.market_publisher import MarketStreamPublisher
from trading.adapters.market_wire import (
    BEGUN_ANEW,
    BookUpdate,
    StreamKeys,
    TradeUpdate,
    create_feed_key,
    decode_book,
    decode_instrument,
    decode_trades,
    is_authentic,
    load_feed_key,
    parse_field,
    read_header,
    read_state,
)
from trading.domain.errors import InvalidValue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, OrderBook, TradePrint
from trading.ports.clock import Clock

__all__ = [
    "BookUpdate",
    "FeedStatus",
    "InstrumentStatus",
    "LocalMarketFeed",
    "MarketFeed",
    "MarketStreamPublisher",
    "MarketStreamView",
    "MarketUpdate",
    "StreamKeys",
    "Subscription",
    "TradeUpdate",
    "create_feed_key",
    "load_feed_key",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)

MAX_AHEAD_MS: Final = 2_000  # a publication time further in the future is refused
_TRADES_REMEMBERED: Final = 10_000  # ids of one instrument; venues repeat their last 50 to 1,000
_BREAKS_REMEMBERED: Final = 64
_BLOCK_MS: Final = 500
_CALL_TIMEOUT_S: Final = 5.0
_DISCOVER_EVERY_S: Final = 1.0
_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class MarketStreamView:
    """The newest authenticated market state, as risk, execution and the agents see it.

    Use it as an async context manager. Reading needs no await and never touches the network: raw messages are kept and
    decoded when somebody asks. It works on across restarts of Redis and of the publisher.

    Args:
        redis: a client whose ACL user may read ``market:*``; make it with ``socket_timeout=None``.
        desk: the desk's name in every key.
        key: the shared feed key, 32 bytes.
        accept_feeds: what may be believed; ``{Feed.LIVE}`` in testnet and live.
    """

    def __init__(self, redis: Redis, desk: str, key: bytes, clock: Clock, accept_feeds: Iterable[Feed]) -> None:
        self._redis: Any = redis
        self._keys = StreamKeys(desk)
        self._key = key
        self._clock = clock
        self._accept = frozenset(accept_feeds)
        self._rules: dict[InstrumentId, tuple[bytes, Instrument]] = {}
        self._streams: dict[str, tuple[InstrumentId, bool]] = {}  # name -> instrument, whether it carries books
        self._cursor: dict[str, bytes] = {}
        self._sequence: dict[str, int] = {}
        self._raw_books: dict[InstrumentId, bytes] = {}
        self._raw_trades: dict[InstrumentId, bytes] = {}
        self._decoded: dict[InstrumentId, tuple[bytes, OrderBook]] = {}
        self._given: dict[InstrumentId, dict[str, None]] = {}
        self._begun: dict[InstrumentId, deque[int]] = {}
        self._fanout = Fanout()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._discovered_s: float | None = None
        self._first_read = asyncio.Event()
        self._connected = False
        self._counts: dict[str, int] = dict.fromkeys(
            (
                "books", "trades", "trades_repeated", "bad_mac", "old_sequence", "wrong_feed", "from_future",
                "malformed", "reconnects",
            ),
            0,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read_forever(), name="market-view")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self._fanout.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=5)

    async def ready(self, timeout_s: float = 5.0) -> bool:
        """Wait until what Redis already holds has been read; return False when that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._first_read.wait()
        return self._first_read.is_set()

    @property
    def connected(self) -> bool:
        """Whether the last read succeeded."""
        return self._connected

    @property
    def reconnects(self) -> int:
        """How often reading failed; what was published meanwhile may be lost if Redis lost it."""
        return self._counts["reconnects"]

    def begun_anew(self, instrument_id: InstrumentId, after: int, until: int) -> bool:
        """Return whether an instrument's stream was begun anew between two sequences: trades may be missing there."""
        return any(after < sequence < until for sequence in self._begun.get(instrument_id, ()))

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest authenticated book, however old, or None if there never was one."""
        raw = self._raw_books.get(instrument_id)
        if raw is None:
            return None
        known = self._decoded.get(instrument_id)
        if known is not None and known[0] is raw:
            return known[1]
        book = self._decode(lambda: decode_book(instrument_id, raw))
        if book is not None:
            self._decoded[instrument_id] = (raw, book)
        return book

    def book_state(self, instrument_id: InstrumentId) -> str | None:
        """Return what the market room said of the newest authenticated book; None when nothing is known."""
        raw = self._raw_books.get(instrument_id)
        return None if raw is None else read_state(raw)

    def last_trade(self, instrument_id: InstrumentId) -> TradePrint | None:
        """Return the newest authenticated trade, however old, or None if there never was one."""
        raw = self._raw_trades.get(instrument_id)
        trades = self._decode(lambda: decode_trades(instrument_id, raw)) if raw is not None else None
        return trades[-1] if trades else None

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules as the market room published them, or None when the instrument is unknown."""
        known = self._rules.get(instrument_id)
        return known[1] if known is not None else None

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every known instrument."""
        return tuple(rules for _, rules in self._rules.values())

    def subscribe(self, *, every_book: bool = False) -> Subscription[MarketUpdate]:
        """Return books and trades in the order of their sequences, from now on.

        Args:
            every_book: a book that waits is not replaced by a newer one unless hundreds wait.
        """
        return self._fanout.open(books=True, trades=True, every_book=every_book)

    def subscribe_books(self) -> Subscription[OrderBook]:
        """Return books from now on; a book that waits is replaced by a newer one."""
        return cast("Subscription[OrderBook]", self._fanout.open(books=True, trades=False))

    def subscribe_trades(self) -> Subscription[TradePrint]:
        """Return every trade from now on."""
        return cast("Subscription[TradePrint]", self._fanout.open(books=False, trades=True))

    def status(self) -> FeedStatus:
        """Return ages on this reader's clock and counters of what was accepted and refused."""
        now = self._clock.now_ms()
        known = dict.fromkeys([*self._rules, *self._raw_books, *self._raw_trades])
        rows = tuple(instrument_status(i, self.book(i), self.last_trade(i), now) for i in known)
        return FeedStatus(self._connected, rows, {**self._counts, "overruns": self._fanout.overruns})

    async def _read_forever(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._discover()
                await self._read_once()
                self._connected, failures = True, 0
            except (RedisError, OSError, TimeoutError) as error:
                if self._connected or failures == 0:
                    _log.warning("market data cannot be read: %s", type(error).__name__)
                self._connected = False
                self._counts["reconnects"] += 1
                self._discovered_s = None
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    async def _discover(self) -> None:
        """Learn instruments from the published rules, and open their streams."""
        now = asyncio.get_running_loop().time()
        if self._discovered_s is not None and now - self._discovered_s < _DISCOVER_EVERY_S and self._streams:
            return
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            fields = cast("dict[bytes, bytes]", await self._redis.hgetall(self._keys.instruments))
            for field, value in fields.items():
                instrument_id = self._learn(field.decode(), value)
                if instrument_id is not None and self._keys.book(instrument_id) not in self._streams:
                    await self._start_streams(instrument_id)
        self._discovered_s = now
        if not self._streams:
            self._first_read.set()
            await asyncio.sleep(_BACKOFF_S[2])

    def _learn(self, field: str, value: bytes) -> InstrumentId | None:
        instrument_id = parse_field(field)
        known = self._rules.get(instrument_id)
        if known is not None and known[0] == value:
            return instrument_id
        try:
            rules = decode_instrument(field, value, key=self._key, keys=self._keys)
        except InvalidValue:
            self._counts["malformed"] += 1
            return None
        if rules is None or rules.id != instrument_id:
            self._counts["bad_mac"] += 1
            return None
        self._rules[instrument_id] = (value, rules)
        return instrument_id

    async def _start_streams(self, instrument_id: InstrumentId) -> None:
        for stream, is_book in ((self._keys.book(instrument_id), True), (self._keys.trade(instrument_id), False)):
            # What was there before this reader is history; an instrument that appears later is read from its start.
            newest = None if self._first_read.is_set() else await self._redis.xrevrange(stream, count=1)
            self._cursor[stream] = newest[0][0] if newest else b"0-0"
            self._streams[stream] = (instrument_id, is_book)
            if newest:
                self._accept_batch([(stream, newest[0][1])])

    async def _read_once(self) -> None:
        if not self._streams:
            return
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            reply = await self._redis.xread(
                self._cursor, count=512, block=1 if not self._first_read.is_set() else _BLOCK_MS
            )
        batch: list[tuple[str, dict[bytes, bytes]]] = []
        for stream, entries in _streams_of(reply):
            self._cursor[stream] = entries[-1][0]
            batch.extend((stream, fields) for _, fields in entries)
        self._accept_batch(batch)
        self._first_read.set()

    def _accept_batch(self, batch: list[tuple[str, dict[bytes, bytes]]]) -> None:
        accepted = [item for item in (self._judge(stream, fields) for stream, fields in batch) if item is not None]
        accepted.sort(key=lambda item: item[0])  # one counter numbers all streams, so this is the order of publication
        for sequence, stream, data in accepted:
            self._take(stream, data, sequence)

    def _judge(self, stream: str, fields: dict[bytes, bytes]) -> tuple[int, str, bytes] | None:
        """Return the message if it may be believed; count the reason if not."""
        data, tag = fields.get(b"d", b""), fields.get(b"h", b"")
        if not is_authentic(self._key, stream, data, tag):
            return self._refuse("bad_mac")
        try:
            header = read_header(data)
        except InvalidValue:
            return self._refuse("malformed")
        if header.sequence <= self._sequence.get(stream, 0):
            return self._refuse("old_sequence")
        if header.feed not in self._accept:
            return self._refuse("wrong_feed")
        if header.published_ts_ms > self._clock.now_ms() + MAX_AHEAD_MS:
            return self._refuse("from_future")
        self._sequence[stream] = header.sequence
        return header.sequence, stream, data

    def _refuse(self, reason: str) -> None:
        self._counts[reason] += 1

    def _take(self, stream: str, data: bytes, sequence: int) -> None:
        instrument_id, is_book = self._streams[stream]
        if is_book:
            self._counts["books"] += 1
            self._raw_books[instrument_id] = data
            if read_state(data) == BEGUN_ANEW:
                self._begun.setdefault(instrument_id, deque(maxlen=_BREAKS_REMEMBERED)).append(sequence)
            self._fanout.book(instrument_id, lambda: self._decode(lambda: decode_book(instrument_id, data)))
            return
        trades = self._decode(lambda: decode_trades(instrument_id, data)) or []
        fresh = [trade for trade in trades if self._is_new(trade)]
        if fresh or not trades:
            self._raw_trades[instrument_id] = data
        self._counts["trades"] += len(fresh)
        self._fanout.trades(fresh)

    def _is_new(self, trade: TradePrint) -> bool:
        """Return whether a trade was not handed on before. A recording may be played twice: those all count."""
        if trade.feed is not Feed.LIVE:
            return True
        given = self._given.setdefault(trade.instrument_id, {})
        if trade.trade_id in given:
            self._counts["trades_repeated"] += 1
            return False
        given[trade.trade_id] = None
        if len(given) > _TRADES_REMEMBERED:
            del given[next(iter(given))]
        return True

    def _decode(self, decode: Callable[[], T]) -> T | None:
        try:
            return decode()
        except InvalidValue:
            self._counts["malformed"] += 1
            return None


def _streams_of(reply: Any) -> list[tuple[str, list[tuple[bytes, dict[bytes, bytes]]]]]:
    """Return an XREAD reply in one shape: redis-py gives a list of pairs or, with RESP3, a mapping."""
    if not reply:
        return []
    if isinstance(reply, dict):
        mapping = cast("dict[bytes, Any]", reply)
        return [(name.decode(), [entry for part in parts for entry in part]) for name, parts in mapping.items()]
    return [(name.decode(), entries) for name, entries in cast("list[Any]", reply)]
