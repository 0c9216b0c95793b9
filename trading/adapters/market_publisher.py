"""The writing end of the market streams. Only the market room may use it.

Rules kept here:

- Trades are never conflated: what arrives while a batch is on its way goes into the next one, whole. Books are last
  values: only the newest of an instrument is sent with a batch.
- One counter numbers every message. It starts above the wall clock in microseconds and above whatever it finds in
  Redis, so it rises strictly across restarts.
- A batch is one transaction with the source's position: a killed publisher leaves all of it or nothing. A batch whose
  fate is unknown is sent again under the same sequences, so readers drop what they already have.
- When Redis is away the backlog is bounded, and what does not fit is counted.
- A live publisher begins with an empty book of each instrument: nobody may price on what an earlier one said, and a
  reader that counts trades learns that some may be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final, NamedTuple, Self, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.market_wire import (
    BEGUN_ANEW,
    BookUpdate,
    StreamKeys,
    TradeUpdate,
    encode_book,
    encode_instrument,
    encode_trades,
    is_authentic,
    mac,
    parse_field,
    read_header,
)
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

BOOKS_KEPT: Final = 256  # stream entries
TRADES_KEPT: Final = 8_192  # stream entries; one entry holds at least one trade
TRADES_PER_MESSAGE: Final = 256
BACKLOG_LIMIT: Final = 100_000  # trades waiting for Redis
_RULES_EVERY_S: Final = 5.0  # a server that lost its data learns the rules again, without noticing its restart
_CALL_TIMEOUT_S: Final = 5.0
_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class _Batch(NamedTuple):
    """Encoded and signed messages: (stream, JSON, MAC, entries kept), the position's value, and what they carry."""

    messages: list[tuple[str, bytes, bytes, int]]
    position: bytes | None
    books: int
    trades: int


class MarketStreamPublisher:
    """Signs and publishes one source's updates. Use it as an async context manager; only the market room may.

    Args:
        redis: a client whose ACL user may write ``market:*``.
        desk: the desk's name in every key.
        key: the shared feed key, 32 bytes.
        feed: what the data is; part of every signed message.
    """

    def __init__(self, redis: Redis, *, desk: str, key: bytes, clock: Clock, feed: Feed) -> None:
        self._redis: Any = redis
        self._keys = StreamKeys(desk)
        self._key = key
        self._clock = clock
        self._feed = feed
        self._sequence = 0
        self._rules: dict[str, bytes] = {}
        self._rules_due_s = 0.0
        self._begun: list[InstrumentId] = []
        self._books: dict[InstrumentId, BookUpdate] = {}
        self._trades: dict[InstrumentId, list[TradeUpdate]] = {}
        self._waiting_trades = 0
        self._position: bytes | None = None
        self._unsent: _Batch | None = None
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.connected = False
        self.counters: dict[str, int] = dict.fromkeys(
            ("books", "books_conflated", "trades", "trades_dropped", "batches", "failures"), 0
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._flush_forever(), name="market-publisher")
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.drained()
        self._stopping = True
        self._wanted.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=5)

    def publish_instrument(self, instrument: Instrument) -> None:
        """Publish an instrument's rules; they are published again whenever Redis comes back."""
        field = f"{instrument.venue}:{instrument.symbol}"
        if field not in self._rules and self._feed is Feed.LIVE:
            self._begun.append(instrument.id)
        self._rules[field] = encode_instrument(instrument, key=self._key, keys=self._keys)
        self.connected = False  # the next batch looks at the new instrument's streams first
        self._wake()

    def publish_book(self, update: BookUpdate) -> None:
        """Publish a book with the next batch, replacing one of the same instrument that still waits."""
        if update.instrument_id in self._books:
            self.counters["books_conflated"] += 1
        self._books[update.instrument_id] = update
        self._wake()

    def publish_trade(self, update: TradeUpdate) -> None:
        """Publish a trade with the next batch; when Redis is away too long the newest are dropped and counted."""
        if self._waiting_trades >= BACKLOG_LIMIT:
            self.counters["trades_dropped"] += 1
            return
        self._trades.setdefault(update.instrument_id, []).append(update)
        self._waiting_trades += 1
        self._wake()

    def set_position(self, position: bytes) -> None:
        """Store the source's position in the same transaction as the updates published so far."""
        self._position = position
        self._wake()

    async def load_position(self) -> bytes | None:
        """Return the position stored last, None when there is none or it was not written by this desk.

        Raises:
            Unavailable: Redis does not answer.
        """
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                stored = cast("bytes | None", await self._redis.get(self._keys.position))
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable("the bus does not answer") from error
        data, _, tag = (stored or b"").rpartition(b".")
        return data if is_authentic(self._key, self._keys.position, data, tag) else None

    async def watch(self) -> None:
        """Wait for ever; whoever publishes should hear of it when that ends.

        Raises:
            Exception: something unforeseen ended the publishing; nothing leaves this process any more.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def drained(self) -> None:
        """Wait until everything published so far is in Redis."""
        await self._idle.wait()

    def _wake(self) -> None:
        self._idle.clear()
        self._wanted.set()

    async def _flush_forever(self) -> None:
        failures = 0
        while not self._stopping:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while self._has_work():
                    await self._flush()
                failures = 0
                self._idle.set()
            except (RedisError, OSError, TimeoutError) as error:
                if self.connected or failures == 0:
                    _log.warning("market data cannot be published: %s", type(error).__name__)
                self.connected = False
                self.counters["failures"] += 1
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                self._wanted.set()

    def _has_work(self) -> bool:
        waiting = self._unsent is not None or self._begun or self._books or self._trades or self._position is not None
        return bool(waiting) or not self.connected

    async def _flush(self) -> None:
        if not self.connected:
            await self._connect()
        if self._unsent is None:
            self._unsent = self._take_batch()
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            await self._send(self._unsent)
        self.counters["batches"] += 1
        self.counters["books"] += self._unsent.books
        self.counters["trades"] += self._unsent.trades
        self._unsent = None

    async def _connect(self) -> None:
        """Find out how far the sequence got, and publish the rules (again)."""
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            self._sequence = max(self._sequence, self._clock.now_ms() * 1_000)
            seen: set[str] = set()
            while unseen := self._rules.keys() - seen:  # another venue's may come while Redis answers
                for field in unseen:
                    await self._look_at(parse_field(field))
                seen |= unseen
        self._rules_due_s = 0.0
        self.connected = True

    async def _look_at(self, instrument_id: InstrumentId) -> None:
        for stream in (self._keys.book(instrument_id), self._keys.trade(instrument_id)):
            newest = await self._redis.xrevrange(stream, count=1)
            if newest:
                self._sequence = max(self._sequence, self._stored_sequence(stream, newest[0][1]))

    def _stored_sequence(self, stream: str, fields: dict[bytes, bytes]) -> int:
        data = fields.get(b"d", b"")
        if not is_authentic(self._key, stream, data, fields.get(b"h", b"")):
            return 0  # somebody else's; a forged huge number must not exhaust the counter
        with contextlib.suppress(InvalidValue):
            return read_header(data).sequence
        return 0

    def _take_batch(self) -> _Batch:
        """Number, stamp and sign everything that waits; trades come before the books that already show them."""
        begun, books, trades, position = self._begun, self._books, self._trades, self._position
        self._begun, self._books, self._trades, self._position, self._waiting_trades = [], {}, {}, None, 0
        now = self._clock.now_ms()
        messages = [self._book_message(BookUpdate(each, [], [], 0, now, BEGUN_ANEW), now) for each in begun]
        for instrument_id, waiting in trades.items():
            stream = self._keys.trade(instrument_id)
            for start in range(0, len(waiting), TRADES_PER_MESSAGE):
                part = waiting[start : start + TRADES_PER_MESSAGE]
                self._sequence += len(part)
                data = encode_trades(part, sequence=self._sequence, feed=self._feed, published_ts_ms=now)
                messages.append((stream, data, mac(self._key, stream, data), TRADES_KEPT))
        messages += [self._book_message(update, now) for update in books.values()]
        stored = position + b"." + mac(self._key, self._keys.position, position) if position is not None else None
        return _Batch(messages, stored, len(books), sum(len(waiting) for waiting in trades.values()))

    def _book_message(self, update: BookUpdate, now_ms: int) -> tuple[str, bytes, bytes, int]:
        stream = self._keys.book(update.instrument_id)
        self._sequence += 1
        data = encode_book(update, sequence=self._sequence, feed=self._feed, published_ts_ms=now_ms)
        return stream, data, mac(self._key, stream, data), BOOKS_KEPT

    async def _send(self, batch: _Batch) -> None:
        now_s = asyncio.get_running_loop().time()
        async with self._redis.pipeline(transaction=True) as pipe:
            if self._rules and now_s >= self._rules_due_s:
                pipe.hset(self._keys.instruments, mapping=dict(self._rules))
            for stream, data, tag, kept in batch.messages:
                pipe.xadd(stream, {"d": data, "h": tag}, maxlen=kept, approximate=True)
            if batch.position is not None:
                pipe.set(self._keys.position, batch.position)
            await pipe.execute()
        if now_s >= self._rules_due_s:
            self._rules_due_s = now_s + _RULES_EVERY_S
