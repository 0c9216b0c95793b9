"""The bus over Redis Streams: publishing and hearing of committed events.

Entries carry one field ``e``, the event's wire form, in one bounded stream per category. Delivery is at least once
and a hint: readers track (service, seq), refuse gaps and refill from the ledger. Work-sharing consumers are in
``redis_consumer``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Literal, Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.codec import decode_envelope, encode_envelope
from trading.adapters.redis_client import call
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.events import Category, EventEnvelope, category_of
from trading.ports.ledger import WireEvent

_log = logging.getLogger(__name__)

#: Entries kept per stream of events; older ones are in the ledgers.
STREAM_MAXLEN: Final = 10_000
_CALL_TIMEOUT_S: Final = 5.0
_PIPELINE_MAX: Final = 500
_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

Entry = tuple[bytes, dict[bytes, bytes]]


class _Pipeline(Protocol):
    def execute_command(self, *args: bytes | str | int) -> object:
        """Queue one command."""
        ...

    async def execute(self) -> list[Any]:
        """Send what is queued and return the replies."""
        ...

    async def reset(self) -> None:
        """Give the connection back."""
        ...


def events_key(desk: str, category: Category) -> str:
    """Return the stream of a category; same as ``settings.key("events", category)``."""
    return f"grekko:{{{desk}}}:events:{category}"


def pipeline(redis: Redis, *, transaction: bool) -> _Pipeline:
    """Return a pipeline that takes commands by name; ``reset`` it when done."""
    return cast("_Pipeline", cast("Any", redis).pipeline(transaction=transaction))


async def run_pipeline(redis: Redis, commands: list[tuple[bytes | str | int, ...]], *, transaction: bool) -> list[Any]:
    """Send commands together and return their replies.

    Raises:
        Unavailable: the server did not answer in time or refused one; some may have been carried out.
    """
    batch = pipeline(redis, transaction=transaction)
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            for command in commands:
                batch.execute_command(*command)
            return await batch.execute()
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"the bus did not take the commands: {error}") from error
    finally:
        await batch.reset()


class RedisPublisher:
    """Appends committed events to the streams of their categories; an ``EventPublisher``.

    Args:
        redis: a client whose ACL user may write those streams.
        desk: name of the desk.
        maxlen: entries kept per stream, about.
    """

    def __init__(self, redis: Redis, desk: str, *, maxlen: int = STREAM_MAXLEN) -> None:
        self._redis = redis
        self._desk = desk
        self._maxlen = maxlen

    async def publish(self, events: list[EventEnvelope]) -> None:
        """Append events in order, one round trip per 500.

        Raises:
            Unavailable: the bus is down; any part of the events may have been published, none is lost to the ledger.
        """
        await self.publish_wire([WireEvent(event.seq, event.event_type, encode_envelope(event)) for event in events])

    async def publish_wire(self, events: list[WireEvent]) -> None:
        """Append events that are in their wire form already, in order, one round trip per 500.

        Raises:
            Unavailable: as for ``publish``.
        """
        for start in range(0, len(events), _PIPELINE_MAX):
            commands = [self._command(event) for event in events[start : start + _PIPELINE_MAX]]
            await run_pipeline(self._redis, commands, transaction=False)

    def _command(self, event: WireEvent) -> tuple[bytes | str | int, ...]:
        key = events_key(self._desk, category_of(event.event_type))
        return ("XADD", key, b"MAXLEN", b"~", self._maxlen, b"*", b"e", event.data)


class RedisSubscriber:
    """Reads streams of events without a group, so every subscriber hears everything; an ``EventSubscriber``.

    Survives a restart of the server: it goes on after the last entry it saw.

    Args:
        start: ``$`` to hear what is published from the first step on, ``0`` to begin with what the streams still hold.
        block_ms: longest single wait on the server, > 0; also how long a lost connection can go unnoticed.
    """

    def __init__(
        self, redis: Redis, desk: str, *, start: Literal["$", "0"] = "$", block_ms: int = 1000, batch: int = 500
    ) -> None:
        self._redis = redis
        self._desk = desk
        self._start = start
        self._block_ms = block_ms
        self._batch = batch

    async def subscribe(self, categories: tuple[Category, ...]) -> AsyncIterator[EventEnvelope]:
        """Yield events as they are published, for ever; entries that cannot be read are logged and skipped."""
        async for entries in self._arrivals(categories):
            for entry_id, fields in entries:
                event = _event_of(fields, entry_id)
                if event is not None:
                    yield event

    async def wakeups(self, categories: tuple[Category, ...]) -> AsyncIterator[int]:
        """Yield how many entries have come whenever some have, unread: for a follower, who believes only the ledger."""
        async for entries in self._arrivals(categories):
            yield len(entries)

    async def _arrivals(self, categories: tuple[Category, ...]) -> AsyncIterator[list[Entry]]:
        keys = [events_key(self._desk, category) for category in categories]
        cursors: dict[bytes, bytes] = {}
        failures = 0
        while True:
            try:
                if not cursors:
                    cursors = await self._cursors(keys)
                entries = await self._read(cursors)
                failures = 0
            except (RedisError, OSError, TimeoutError) as error:
                if failures == 0:
                    _log.warning("the bus does not answer (%s); trying again", type(error).__name__)
                await asyncio.sleep(backoff_s(failures))
                failures += 1
                continue
            for key, found in entries:
                cursors[key] = found[-1][0]
                yield found

    async def _cursors(self, keys: list[str]) -> dict[bytes, bytes]:
        # "$" is resolved once: repeated after a reconnect it would skip what was published in between.
        cursors: dict[bytes, bytes] = {}
        for key in keys:
            newest: list[Entry] = []
            if self._start == "$":
                async with asyncio.timeout(_CALL_TIMEOUT_S):
                    newest = await call(self._redis, "XREVRANGE", key, "+", "-", "COUNT", 1)
            cursors[key.encode()] = newest[0][0] if newest else b"0-0"
        return cursors

    async def _read(self, cursors: dict[bytes, bytes]) -> list[tuple[bytes, list[Entry]]]:
        async with asyncio.timeout(self._block_ms / 1000 + _CALL_TIMEOUT_S):
            reply = await call(
                self._redis,
                *("XREAD", "COUNT", self._batch, "BLOCK", self._block_ms, "STREAMS"),
                *cursors.keys(),
                *cursors.values(),
            )
        return list(streams_of(reply))


def streams_of(reply: Any) -> Iterator[tuple[bytes, list[Entry]]]:
    """Yield (stream, entries) of an XREAD or XREADGROUP reply; nothing for an empty one."""
    yield from cast("list[tuple[bytes, list[Entry]]]", reply or [])


def backoff_s(failures: int) -> float:
    """Return how long to wait after that many failures in a row, 0.05 to 1 s."""
    return _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]


def _event_of(fields: dict[bytes, bytes], entry_id: bytes) -> EventEnvelope | None:
    try:
        return decode_envelope(fields[b"e"])
    except (KeyError, InvalidValue) as error:
        _log.warning("entry %s of an event stream cannot be read: %s", entry_id.decode(), type(error).__name__)
        return None
