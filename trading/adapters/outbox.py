"""The outbox relay: what a ledger has committed reaches the bus, in order, at least once.

The events table is the outbox and ``seq`` the cursor; the cursor is kept on the bus itself, beside the streams, so
that a bus that lost its newest second also forgets having received it. With the bus down nothing is lost: the relay
waits and goes on from the cursor.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.redis_client import call
from trading.adapters.redis_streams import STREAM_MAXLEN, backoff_s
from trading.domain.errors import TradingError, Unavailable
from trading.ports.event_bus import EventPublisher
from trading.ports.ledger import Outbox

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S: Final = 5.0


class RelayCursor(Protocol):
    """Remembers how far a service's events have been published."""

    async def load(self) -> int:
        """Return the last published sequence, 0 if none is known. Raises: Unavailable."""
        ...

    async def save(self, seq: int) -> int:
        """Remember it and return what was remembered before. Raises: Unavailable."""
        ...


class RedisCursor:
    """A relay's cursor in ``grekko:{desk}:relay:<service>``."""

    def __init__(self, redis: Redis, desk: str, service: str) -> None:
        self._redis = redis
        self._key = f"grekko:{{{desk}}}:relay:{service}"

    async def load(self) -> int:
        """Return the last published sequence, 0 if none is known.

        Raises:
            Unavailable: the bus is down.
        """
        return int(await self._call("GET", self._key) or 0)

    async def save(self, seq: int) -> int:
        """Remember the last published sequence and return the one remembered before.

        Raises:
            Unavailable: the bus is down.
        """
        # get=True tells redis-py that the reply is the old value and not an "OK" to be made a truth value of.
        return int(await self._call("SET", self._key, seq, "GET", get=True) or 0)

    async def _call(self, *command: str | int, **options: object) -> bytes | None:
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                return await call(self._redis, *command, **options)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"the relay's cursor cannot be reached: {type(error).__name__}") from error


class OutboxRelay:
    """Publishes the committed events of one room; run one beside the room's writer.

    Args:
        reader: the room's own ledger.
        publisher: where the events go.
        cursor: how far they went; ``RedisCursor`` in production.
        poll_ms: longest time until a commit is noticed that nobody announced.
        batch: most events per publish.
        replay_max: after a loss of the cursor, how many of the newest events are published again; what is older would
            be trimmed from the streams at once.
    """

    def __init__(
        self,
        reader: Outbox,
        publisher: EventPublisher,
        cursor: RelayCursor,
        *,
        poll_ms: int = 250,
        batch: int = 500,
        replay_max: int = STREAM_MAXLEN,
    ) -> None:
        self._reader = reader
        self._publisher = publisher
        self._cursor = cursor
        self._poll_s = poll_ms / 1000
        self._batch = batch
        self._replay_max = replay_max
        self._wake = asyncio.Event()
        self._stopping = False
        self._seq: int | None = None
        self._stored = 0
        self._failures = 0

    @property
    def seq(self) -> int | None:
        """The last sequence known to be published; None while the cursor has not been read."""
        return self._seq

    @property
    def healthy(self) -> bool:
        """Whether the newest attempt succeeded."""
        return self._failures == 0

    def notify(self) -> None:
        """Say that something was committed; call it from the writer's event loop, as often as you like."""
        self._wake.set()

    def stop(self) -> None:
        """Make ``run`` return after one last attempt to publish what is there."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Publish until stopped or cancelled; outages of bus and ledger are waited out."""
        while True:
            last = self._stopping
            self._wake.clear()
            moved = await self._attempt()
            if last and not moved:
                return
            if not moved:
                await self._pause()

    async def relay_once(self) -> int:
        """Publish the next batch and return how many events it held.

        The cursor moves after the publication, so a failure in between publishes the batch twice, never not at all.

        Raises:
            TradingError: bus or ledger did not answer; nothing is lost.
        """
        if self._seq is None:
            self._seq = await self._first_seq()
        events = await self._reader.wire_after(self._seq, limit=self._batch)
        if events:
            await self._publisher.publish_wire(events)
            await self._move_to(events[-1].seq)
        return len(events)

    async def _move_to(self, seq: int) -> None:
        previous = await self._cursor.save(seq)
        if previous < self._stored:
            # Between two of our calls the server was killed and came back without its newest writes, which the
            # client's own reconnect hides. What it forgot is published again.
            _log.warning("the bus forgot events after %d; publishing them again", previous)
            await self._cursor.save(previous)
            self._stored = previous
            self._seq = await self._first_seq()
            return
        self._seq = self._stored = seq

    async def _first_seq(self) -> int:
        newest = await self._reader.last_seq()
        self._stored = await self._cursor.load()
        if self._stored > newest:  # the ledger was restored from a backup
            self._stored = newest
            await self._cursor.save(newest)
        # Far below the head: the streams would not keep what we sent.
        return max(self._stored, newest - self._replay_max, 0)

    async def _attempt(self) -> int:
        try:
            moved = await self.relay_once()
        except TradingError as error:
            if self._failures == 0:
                _log.warning("events wait in the ledger (%s); trying again", error.code)
            self._failures += 1
            self._seq = None  # a bus that comes back may have lost its newest second: ask it again
            return 0
        self._failures = 0
        return moved

    async def _pause(self) -> None:
        if self._stopping:
            return
        # While failing, commits must not make us try faster than the backoff.
        wait_s = self._poll_s if self.healthy else backoff_s(self._failures - 1)
        try:
            async with asyncio.timeout(wait_s):
                await (self._wake.wait() if self.healthy else self._stopped())
        except TimeoutError:
            pass  # a poll

    async def _stopped(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
