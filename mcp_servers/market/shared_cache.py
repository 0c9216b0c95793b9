"""Answers that the processes of a desk share, in Redis, and the log by which they forget them together.

Rules kept here:

- Redis may be away: every call is bounded by 250 ms, a failure switches the store off for a second, and nothing here
  raises. A missing store costs a load, never an answer.
- A stored answer is signed over its own key and the moment its loading began; what does not verify does not exist.
- Memory in Redis is bounded: every key expires, and one process keeps at most 32 MiB of unexpired answers there, none
  larger than 256 KiB.
- Forgetting is a signed entry in the stream ``market:cache-log``. While Redis is away a bounded number of them waits;
  if there are more, everything is forgotten instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.market_wire import is_authentic, mac
from trading.adapters.redis_client import call
from trading.ports.clock import Clock

STORED_MAX: Final = 32 * 1024 * 1024  # bytes of one process
ANSWER_MAX: Final = 262_144  # bytes
_KEY_MAX: Final = 160  # characters of a key that stay readable
_TAG: Final = 64
_STAMP: Final = 16
_CALL_TIMEOUT_S: Final = 0.25
_READ_TIMEOUT_S: Final = 5.0
_OFF_S: Final = 1.0
_BLOCK_MS: Final = 500
_LOG_KEPT: Final = 1_024
_WAITING_MAX: Final = 256
_SCAN: Final = 500
_GLOB: Final = str.maketrans({character: f"\\{character}" for character in "*?[]\\^-"})


class Forgotten(NamedTuple):
    """Answers that must not be used any more: those of a kind whose key starts so; of every kind if it is empty."""

    kind: str
    prefix: str

    def covers(self, kind: str, key: str) -> bool:
        """Return whether an answer is one of them."""
        return not self.kind or (kind == self.kind and key.startswith(self.prefix))


class SharedAnswers:
    """The second level of the cache.

    Args:
        redis: a client whose ACL user may use ``market:*``.
        desk: the desk's name in every key.
        key: the shared feed key, 32 bytes.
        on_forget: told what other processes forgot.

    Attributes:
        counters: what was refused, skipped and lost.
    """

    def __init__(
        self, redis: Redis, *, desk: str, key: bytes, clock: Clock, on_forget: Callable[[Forgotten], None]
    ) -> None:
        self._redis = redis
        self._prefix = f"grekko:{{{desk}}}:market:cache"
        self._log_stream = f"{self._prefix}-log"
        self._key = key
        self._clock = clock
        self._on_forget = on_forget
        self._me = secrets.token_hex(8)
        self._off_until_ns = 0
        self._stored: list[tuple[int, int]] = []  # (expires, bytes), the next to expire first
        self._stored_bytes = 0
        self._waiting: deque[Forgotten] = deque()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._cursor: bytes | None = None
        self.ready = asyncio.Event()
        self.counters: dict[str, int] = dict.fromkeys(("bad_mac", "too_large", "full", "failures"), 0)

    async def load(self, kind: str, key: str) -> tuple[int, bytes] | None:
        """Return the moment in milliseconds at which an answer's loading began, and the answer; None without one."""
        name = self._name(kind, key)
        value = cast("bytes | None", await self._try("GET", name))
        if value is None:
            return None
        body = value[_TAG:]
        if not is_authentic(self._key, name, body, value[:_TAG]):
            self.counters["bad_mac"] += 1
            return None
        return int(body[:_STAMP]), body[_STAMP:]

    async def store(self, kind: str, key: str, data: bytes, *, began_ms: int, ttl_ms: int) -> None:
        """Keep an answer for its remaining time, if there is room."""
        left_ms = began_ms + ttl_ms - self._clock.now_ms()
        if left_ms <= 0 or not self._has_room(len(data)):
            return
        name, body = self._name(kind, key), b"%0*d" % (_STAMP, began_ms) + data
        if await self._try("SET", name, mac(self._key, name, body) + body, "PX", left_ms) is not None:
            heapq.heappush(self._stored, (began_ms + ttl_ms, len(data)))
            self._stored_bytes += len(data)

    async def drop(self, kind: str, key: str) -> None:
        """Remove one answer."""
        await self._try("UNLINK", self._name(kind, key))

    def forget(self, what: Forgotten) -> None:
        """Remove answers here and in every process of the desk; never waits."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.clear()
            what = Forgotten("", "")
        self._waiting.append(what)
        self._idle.clear()
        self._wanted.set()

    async def drained(self) -> None:
        """Wait until everything forgotten so far has been told."""
        await self._idle.wait()

    async def run_writer(self) -> None:
        """Tell the other processes what to forget, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while self._waiting:
                    what = self._waiting[0]
                    await self._tell(what)
                    if self._waiting[0] is what:  # unless there were too many meanwhile
                        self._waiting.popleft()
                self._idle.set()
            except (RedisError, OSError, TimeoutError):
                self.counters["failures"] += 1
                await asyncio.sleep(_OFF_S / 4)
                self._wanted.set()

    async def run_reader(self) -> None:
        """Hear what the other processes forget, for ever."""
        while True:
            try:
                for identifier, fields in await self._read():
                    self._cursor = identifier
                    self._hear(fields)
            except (RedisError, OSError, TimeoutError):
                self.counters["failures"] += 1
                await asyncio.sleep(_OFF_S / 4)

    async def _tell(self, what: Forgotten) -> None:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            await self._remove(what)
            data = orjson.dumps({"by": self._me, "kind": what.kind, "prefix": what.prefix})
            tag = mac(self._key, self._log_stream, data)
            await call(self._redis, "XADD", self._log_stream, "MAXLEN", "~", _LOG_KEPT, "*", "d", data, "h", tag)

    async def _remove(self, what: Forgotten) -> None:
        """Unlink every stored answer that is meant; the keys of a desk are few enough to be looked through."""
        pattern = f"{self._prefix}:*" if not what.kind else self._pattern(what)
        cursor = 0
        while True:
            found = await call(self._redis, "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN)
            cursor, names = int(found[0]), cast("list[bytes]", found[1])
            if names:
                await call(self._redis, "UNLINK", *names)
            if cursor == 0:
                return

    async def _read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            if self._cursor is None:
                newest = await call(self._redis, "XREVRANGE", self._log_stream, "+", "-", "COUNT", 1)
                self._cursor = cast("bytes", newest[0][0]) if newest else b"0-0"
            cursor, stream = self._cursor, self._log_stream
            self.ready.set()
            reply = await call(self._redis, "XREAD", "COUNT", _SCAN, "BLOCK", _BLOCK_MS, "STREAMS", stream, cursor)
        return reply[0][1] if reply else []

    def _hear(self, fields: dict[bytes, bytes]) -> None:
        data = fields.get(b"d", b"")
        if not is_authentic(self._key, self._log_stream, data, fields.get(b"h", b"")):
            self.counters["bad_mac"] += 1
            return
        said = cast("dict[str, str]", orjson.loads(data))
        if said["by"] != self._me:
            self._on_forget(Forgotten(said["kind"], said["prefix"]))

    async def _try(self, *command: bytes | str | int) -> Any:
        """Return the reply, None when there is none in time."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._off_until_ns:
            return None
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                return await call(self._redis, *command)
        except (RedisError, OSError, TimeoutError):
            self.counters["failures"] += 1
            self._off_until_ns = now_ns + int(_OFF_S * 1e9)
            return None

    def _has_room(self, size: int) -> bool:
        if size > ANSWER_MAX:
            self.counters["too_large"] += 1
            return False
        now_ms = self._clock.now_ms()
        while self._stored and self._stored[0][0] <= now_ms:
            self._stored_bytes -= heapq.heappop(self._stored)[1]
        if self._stored_bytes + size > STORED_MAX:
            self.counters["full"] += 1
            return False
        return True

    def _name(self, kind: str, key: str) -> str:
        """Return the Redis key; the end of a long one is replaced by its digest."""
        if len(key) > _KEY_MAX:
            key = f"{key[:_KEY_MAX]}#{hashlib.sha256(key.encode()).hexdigest()}"
        return f"{self._prefix}:{kind}:{key}"

    def _pattern(self, what: Forgotten) -> str:
        return f"{self._prefix}:{what.kind}:{what.prefix[:_KEY_MAX]}".translate(_GLOB) + "*"
