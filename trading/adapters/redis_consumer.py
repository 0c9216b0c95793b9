"""A worker of a consumer group: each event of some streams is handled by one of the group's members.

Rules kept:

1. An entry is acknowledged after it was handled, never before; a worker that dies leaves it to the others, which take
   it over with XAUTOCLAIM after ``min_idle_ms``.
2. The event id is remembered in the same transaction as the acknowledgement, so a copy of the event (a republication,
   a takeover of handled work) is acknowledged unhandled. The memory is bounded.
3. A failing handler sees the entry again, ``max_deliveries`` times in all; then it goes to the dead-letter stream with
   the reason. An entry that cannot be read goes there at once.
4. A crash between the handler's effect and the acknowledgement repeats the handler: it must be idempotent by event id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from trading.adapters.codec import decode_envelope
from trading.adapters.redis_client import call
from trading.adapters.redis_streams import Entry, backoff_s, events_key, run_pipeline, streams_of
from trading.domain.errors import InvalidValue, TradingError, Unavailable
from trading.domain.events import Category, EventEnvelope
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

DEAD_LETTERS_MAXLEN: Final = 1_000
SEEN_MAX: Final = 20_000
_CALL_TIMEOUT_S: Final = 5.0
_REASON_MAX: Final = 500

Handler = Callable[[EventEnvelope], Awaitable[None]]


class StreamConsumer:
    """One worker of a service's group over the event streams of some categories.

    Args:
        redis: a client of the service's ACL user.
        desk: name of the desk.
        service: the room; names the group and its keys ``consumers:<service>:…``.
        name: this worker, unique in the group and the same after a restart.
        categories: the streams to work on.
        handler: called once per event, one at a time; raise TradingError to have it delivered again.
        clock: orders the memory of handled ids.
        min_idle_ms: an entry unacknowledged for so long is taken over; longer than any handler takes.
        max_deliveries: attempts before an entry is a dead letter, >= 1.
        batch: most entries per read; also bounds what one worker holds.
        block_ms: longest single wait on the server, and so the delay of ``stop``.
    """

    def __init__(
        self,
        redis: Redis,
        desk: str,
        *,
        service: str,
        name: str,
        categories: tuple[Category, ...],
        handler: Handler,
        clock: Clock,
        min_idle_ms: int = 30_000,
        max_deliveries: int = 5,
        batch: int = 100,
        block_ms: int = 1000,
    ) -> None:
        self._redis = redis
        self._group = service
        self._name = name
        self._keys = tuple(events_key(desk, category) for category in categories)
        self._seen = f"grekko:{{{desk}}}:consumers:{service}:seen"
        self.dead_letters = f"grekko:{{{desk}}}:consumers:{service}:dead"
        self._handler = handler
        self._clock = clock
        self._min_idle_ms = min_idle_ms
        self._max_deliveries = max_deliveries
        self._batch = batch
        self._block_ms = block_ms
        self._stopping = False
        self._ready = False

    def stop(self) -> None:
        """Make ``run`` return after the current batch, at the latest ``block_ms`` later."""
        self._stopping = True

    async def run(self) -> None:
        """Work until stopped or cancelled; outages of the bus are waited out.

        Raises:
            Exception: whatever a handler raised that is not a TradingError: a bug, and its entry stays unacknowledged.
        """
        failures = 0
        while not self._stopping:
            try:
                await self.step()
                failures = 0
            except Unavailable as error:
                if failures == 0:
                    _log.warning("%s: %s; trying again", self._group, error)
                await asyncio.sleep(backoff_s(failures))
                failures += 1

    async def step(self) -> int:
        """Take over what is stuck, else read what is new, handle it, and return how many entries that were.

        Raises:
            Unavailable: the bus does not answer; everything unacknowledged is delivered again.
        """
        if not self._ready:
            await self._create_groups()
        done = 0
        for key in self._keys:
            done += await self._handle(key, await self._claim(key))
        for key, entries in await self._read_new(block=not done):
            done += await self._handle(key, [(entry, 1) for entry in entries])
        return done

    async def _create_groups(self) -> None:
        for key in self._keys:
            try:
                # From 0: what was published before the group existed is work too.
                await self._call("XGROUP", "CREATE", key, self._group, "0", "MKSTREAM")
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise Unavailable(f"the group cannot be made: {error}") from error
        self._ready = True

    async def _claim(self, key: str) -> list[tuple[Entry, int]]:
        """Take over entries idle for too long, our own failures included; return them with their delivery counts."""
        reply = await self._group_call(
            "XAUTOCLAIM", key, self._group, self._name, self._min_idle_ms, "0-0", "COUNT", self._batch
        )
        entries = [entry for entry in cast("list[Entry]", reply[1] if reply else []) if entry[1]]
        if not entries:
            return []
        pending = await self._group_call(
            *("XPENDING", key, self._group, entries[0][0], entries[-1][0], self._batch * 10, self._name),
            parse_detail=True,
        )
        counts = {row["message_id"]: int(row["times_delivered"]) for row in cast("list[dict[str, Any]]", pending)}
        return [(entry, counts.get(entry[0], 1)) for entry in entries]

    async def _read_new(self, *, block: bool) -> list[tuple[str, list[Entry]]]:
        wait: tuple[str | int, ...] = ("BLOCK", self._block_ms) if block else ()
        reply = await self._group_call(
            *("XREADGROUP", "GROUP", self._group, self._name, "COUNT", self._batch, *wait, "STREAMS", *self._keys),
            *(">" for _ in self._keys),
        )
        return [(key.decode(), entries) for key, entries in streams_of(reply)]

    async def _handle(self, key: str, entries: list[tuple[Entry, int]]) -> int:
        readable: list[tuple[bytes, EventEnvelope, dict[bytes, bytes], int]] = []
        for (entry_id, fields), deliveries in entries:
            try:
                readable.append((entry_id, decode_envelope(fields[b"e"]), fields, deliveries))
            except (KeyError, InvalidValue) as error:
                await self._bury(key, entry_id, fields, deliveries, f"cannot be read: {error}")
        seen = await self._seen_of([event.event_id for _, event, _, _ in readable])
        for entry_id, event, fields, deliveries in readable:
            if event.event_id in seen:
                await self._commit(("XACK", key, self._group, entry_id))
            elif deliveries > self._max_deliveries:
                await self._bury(key, entry_id, fields, deliveries, "delivered too often and never acknowledged")
            elif await self._try(key, entry_id, event, fields, deliveries):
                seen.add(event.event_id)
        return len(entries)

    async def _try(
        self, key: str, entry_id: bytes, event: EventEnvelope, fields: dict[bytes, bytes], deliveries: int
    ) -> bool:
        try:
            await self._handler(event)
        except TradingError as error:
            reason = f"{error.code}: {error}"
            if deliveries >= self._max_deliveries:
                await self._bury(key, entry_id, fields, deliveries, reason)
            else:
                _log.warning(
                    "%s: %s failed and will be delivered again (%s)", self._group, event.event_type, error.code
                )
            return False
        await self._commit(
            ("ZADD", self._seen, self._clock.now_ms(), event.event_id),
            ("ZREMRANGEBYRANK", self._seen, 0, -(SEEN_MAX + 1)),
            ("XACK", key, self._group, entry_id),
        )
        return True

    async def _seen_of(self, event_ids: list[str]) -> set[str]:
        if not event_ids:
            return set()
        scores = await self._call("ZMSCORE", self._seen, *event_ids)
        return {event_id for event_id, score in zip(event_ids, scores, strict=True) if score is not None}

    async def _bury(self, key: str, entry_id: bytes, fields: dict[bytes, bytes], deliveries: int, reason: str) -> None:
        _log.error("%s: entry %s of %s is a dead letter: %s", self._group, entry_id.decode(), key, reason)
        await self._commit(
            (
                *("XADD", self.dead_letters, "MAXLEN", "~", DEAD_LETTERS_MAXLEN, "*"),
                *("e", fields.get(b"e", b""), "stream", key, "id", entry_id),
                *("deliveries", deliveries, "reason", reason[:_REASON_MAX]),
            ),
            ("XACK", key, self._group, entry_id),
        )

    async def _commit(self, *commands: tuple[bytes | str | int, ...]) -> None:
        await run_pipeline(self._redis, list(commands), transaction=True)

    async def _group_call(self, *command: bytes | str | int, **options: object) -> Any:
        try:
            return await self._call(*command, **options)
        except ResponseError as error:
            if "NOGROUP" in str(error):  # the bus lost its data: make the group again and start over
                self._ready = False
            raise Unavailable(f"the bus refused {command[0]!s}: {error}") from error

    async def _call(self, *command: bytes | str | int, **options: object) -> Any:
        try:
            async with asyncio.timeout(self._block_ms / 1000 + _CALL_TIMEOUT_S):
                return await call(self._redis, *command, **options)
        except ResponseError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"the bus does not answer ({type(error).__name__})") from error
