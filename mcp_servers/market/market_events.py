"""What happens to the market room itself, told to whoever listens: feeds lost, gaps, outliers, closed candles.

Rules kept here:

- Publishing never waits and never fails the feed: events queue up, a bounded number of them, and the oldest are
  dropped and counted while Redis is away.
- One bounded stream per desk, ``market:events``. Every entry is signed over the stream's name, as all market data is;
  a reader believes nothing else.
- The envelope is that of every event of the desk: ``{event_id, event_type, seq, timestamp, source_service, payload,
  metadata}``. Market events are in no ledger, so ``seq`` rises but has gaps: it starts above the wall clock in
  microseconds and above what the stream holds.
- A batch whose fate is unknown is sent again; readers drop what they have by its ``seq``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.clock import Uuid7Factory
from trading.adapters.codec import encode
from trading.adapters.market_wire import is_authentic, mac
from trading.adapters.redis_client import call
from trading.adapters.redis_streams import run_pipeline
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.events import EventMetadata
from trading.ports.clock import Clock, IdFactory

_log = logging.getLogger(__name__)

#: Every type there is.
TYPES: Final = frozenset(
    {
        "market.feed_lost",
        "market.feed_restored",
        "market.gap_detected",
        "market.outlier_detected",
        "market.venue_failed_over",
        "market.candle_closed",
        "market.rules_changed",
    }
)
EVENTS_KEPT: Final = 4_096  # stream entries
WAITING_MAX: Final = 2_000
PAYLOAD_MAX: Final = 4_000  # bytes of JSON
_BATCH: Final = 200
_BLOCK_MS: Final = 500
_CALL_TIMEOUT_S: Final = 5.0
_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

Listener = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class MarketEvent:
    """One event as it was published.

    Attributes:
        seq: rises from event to event, with gaps.
        timestamp_ms: the publisher's clock.
        payload: plain JSON data.
    """

    event_id: str
    event_type: str
    seq: int
    timestamp_ms: int
    source_service: str
    payload: Mapping[str, Any]


def events_stream(desk: str) -> str:
    """Return the name of a desk's stream of market events."""
    return f"grekko:{{{desk}}}:market:events"


class MarketEvents:
    """The writing end. Use it as an async context manager; what is published before that waits.

    Args:
        redis: a client whose ACL user may write ``market:*``.
        desk: the desk's name in every key.
        key: the shared feed key, 32 bytes.

    Attributes:
        counters: events by fate.
    """

    def __init__(self, redis: Redis, *, desk: str, key: bytes, clock: Clock, ids: IdFactory | None = None) -> None:
        self._redis = redis
        self._stream = events_stream(desk)
        self._key = key
        self._clock = clock
        self._ids = ids or Uuid7Factory()
        self._waiting: deque[tuple[str, int, bytes]] = deque()
        self._unsent: list[bytes] = []
        self._seq: int | None = None
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self.counters: dict[str, int] = dict.fromkeys(("published", "sent", "dropped", "malformed", "failures"), 0)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send_forever(), name="market-events")
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.drained()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=5)

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with type and payload of every event published by this process, at once."""
        self._listeners.append(listener)

    def publish(self, event_type: str, payload: Mapping[str, object]) -> None:
        """Publish an event; never waits.

        Args:
            event_type: one of ``TYPES``.
            payload: JSON data without floats; one that is too large or has no JSON form is dropped and counted.

        Raises:
            InvalidValue: no such type, which is a mistake of ours.
        """
        if event_type not in TYPES:
            raise InvalidValue(f"there is no market event {event_type[:64]!r}", code="UNKNOWN_EVENT")
        try:
            data = encode(dict(payload))
        except InvalidValue:
            data = b""
        if not 0 < len(data) <= PAYLOAD_MAX:
            self.counters["malformed"] += 1
            return
        self.counters["published"] += 1
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self.counters["dropped"] += 1
        self._waiting.append((event_type, self._clock.now_ms(), data))
        self._idle.clear()
        self._wanted.set()
        for listener in self._listeners:
            listener(event_type, payload)

    async def drained(self) -> None:
        """Wait until everything published so far is in Redis."""
        await self._idle.wait()

    async def _send_forever(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while self._waiting or self._unsent:
                    await self._send()
                failures = 0
                self._idle.set()
            except (Unavailable, RedisError, OSError, TimeoutError) as error:
                if failures == 0:
                    _log.warning("market events cannot be published: %s", type(error).__name__)
                self.counters["failures"] += 1
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                self._wanted.set()

    async def _send(self) -> None:
        if self._seq is None:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                self._seq = max(self._clock.now_ms() * 1_000, await self._stored_seq())
        while self._waiting and len(self._unsent) < _BATCH:
            self._seq += 1
            self._unsent.append(self._envelope(*self._waiting.popleft(), seq=self._seq))
        kept = ("MAXLEN", "~", EVENTS_KEPT)
        await run_pipeline(
            self._redis,
            [("XADD", self._stream, *kept, "*", "d", data, "h", self._tag(data)) for data in self._unsent],
            transaction=True,
        )
        self.counters["sent"] += len(self._unsent)
        self._unsent = []

    async def _stored_seq(self) -> int:
        newest = await call(self._redis, "XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        for _, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", newest):
            event = read_event(self._key, self._stream, fields)
            return 0 if event is None else event.seq
        return 0

    def _tag(self, data: bytes) -> bytes:
        return mac(self._key, self._stream, data)

    def _envelope(self, event_type: str, timestamp_ms: int, payload: bytes, *, seq: int) -> bytes:
        return orjson.dumps(
            {
                "event_id": self._ids.new_id(),
                "event_type": event_type,
                "seq": seq,
                "timestamp": timestamp_ms,
                "source_service": "market",
                "payload": orjson.Fragment(payload),
                "metadata": orjson.Fragment(encode(EventMetadata())),
            }
        )


def read_event(key: bytes, stream: str, fields: Mapping[bytes, bytes]) -> MarketEvent | None:
    """Return the event in a stream's entry; None when it is not authentic or not an event."""
    data = fields.get(b"d", b"")
    if not is_authentic(key, stream, data, fields.get(b"h", b"")):
        return None
    try:
        raw = cast("dict[str, Any]", orjson.loads(data))
        return MarketEvent(
            str(raw["event_id"]),
            str(raw["event_type"]),
            int(raw["seq"]),
            int(raw["timestamp"]),
            str(raw["source_service"]),
            dict(raw["payload"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


class MarketEventReader:
    """Follows a desk's market events; iterate over :meth:`follow`.

    Args:
        redis: a client whose ACL user may read ``market:*``.
        desk: the desk's name in every key.
        key: the shared feed key, 32 bytes.
        from_start: give first what the stream still holds.

    Attributes:
        ready: set once the place to read from is known, so that nothing published later is missed.
        counters: events given, entries refused, connections lost.
    """

    def __init__(self, redis: Redis, *, desk: str, key: bytes, from_start: bool = False) -> None:
        self._redis = redis
        self._stream = events_stream(desk)
        self._key = key
        self._cursor: bytes | None = b"0-0" if from_start else None
        self._seq = 0
        self.ready = asyncio.Event()
        self.counters: dict[str, int] = dict.fromkeys(("events", "refused", "repeated", "failures"), 0)

    async def follow(self) -> AsyncIterator[MarketEvent]:
        """Yield events as they are published, for ever, across restarts of Redis and of the publisher."""
        failures = 0
        while True:
            try:
                entries = await self._read()
                failures = 0
            except (RedisError, OSError, TimeoutError) as error:
                if failures == 0:
                    _log.warning("market events cannot be read: %s", type(error).__name__)
                self.counters["failures"] += 1
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                continue
            for identifier, fields in entries:
                self._cursor = identifier
                event = self._accept(fields)
                if event is not None:
                    yield event

    async def _read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            if self._cursor is None:
                newest = await call(self._redis, "XREVRANGE", self._stream, "+", "-", "COUNT", 1)
                self._cursor = cast("bytes", newest[0][0]) if newest else b"0-0"
            cursor = self._cursor
            self.ready.set()
            reply = await call(
                self._redis, "XREAD", "COUNT", _BATCH, "BLOCK", _BLOCK_MS, "STREAMS", self._stream, cursor
            )
        return reply[0][1] if reply else []

    def _accept(self, fields: Mapping[bytes, bytes]) -> MarketEvent | None:
        event = read_event(self._key, self._stream, fields)
        if event is None:
            self.counters["refused"] += 1
            return None
        if event.seq <= self._seq:
            self.counters["repeated"] += 1
            return None
        self._seq = event.seq
        self.counters["events"] += 1
        return event
