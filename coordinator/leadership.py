"""Who leads: one coordinator at a time, with a fencing token that rises with every change.

The token is the real protection: every change of a ballot carries it and an old one changes nothing. The lock only
keeps two healthy coordinators from taking turns. The ledger's own lease is the second fence.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from coordinator import scripts
from coordinator.ballots import as_text, run_script
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

#: A holder acts on its lock only for this part of its life, so that it stops before a successor can start.
_TRUSTED_SHARE = 0.8
_TOKENS_PER_GENERATION = 1_000_000


class Leadership:
    """Holds or waits for the lock ``vote:leader``.

    Args:
        redis: the coordinator's client.
        prefix: what all keys of the desk start with, colon included.
        owner: unique to this process.
        ttl_ms: the lock's life; renewed at a third of it.
        clock: its monotonic half measures how long the lock may be trusted.
    """

    def __init__(self, redis: Redis, prefix: str, *, owner: str, ttl_ms: int, clock: Clock) -> None:
        self._redis: Any = redis
        self._lock = f"{prefix}vote:leader"
        self._fence = f"{prefix}vote:fence"
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._clock = clock
        self._token = 0
        self._floor = 0
        self._trusted_until_ns = 0
        self._renewed = asyncio.Event()

    @property
    def fence(self) -> int:
        """The token of the present or last leadership; 0 before the first."""
        return self._token

    @property
    def is_leader(self) -> bool:
        """Whether the lock is certainly still ours: it was renewed lately enough."""
        return self._token > 0 and self._clock.monotonic_ns() < self._trusted_until_ns

    async def led(self) -> None:
        """Return as soon as this process leads."""
        while not self.is_leader:
            self._renewed.clear()
            await self._renewed.wait()

    async def try_acquire(self) -> bool:
        """Take the lock if it is free or already ours.

        Raises:
            RedisError: the server does not answer.
        """
        asked_ns = self._clock.monotonic_ns()
        keys, args = [self._lock, self._fence], [self._owner, self._ttl_ms, self._floor]
        token, holder = await run_script(self._redis, scripts.ACQUIRE, keys, args)
        if not int(token):
            _log.debug("led by %s", as_text(holder))
            return False
        self._token = int(token)
        self._trust_from(asked_ns)
        return True

    async def bind(self, generation: int) -> int:
        """Lift the token above that of every earlier writer of the ledger, and return it.

        A Redis that lost its data would begin to count anew and could give a token twice; the ledger's generation
        cannot.

        Args:
            generation: the ledger lease's, taken while this lock was held.
        """
        self._floor = generation * _TOKENS_PER_GENERATION
        return await self.acquire()

    async def acquire(self) -> int:
        """Wait for the lock, however long it takes, and return the fencing token."""
        warned = False
        while True:
            try:
                if await self.try_acquire():
                    return self._token
            except (RedisError, OSError) as error:
                if not warned:
                    _log.warning("no leadership: Redis does not answer (%s)", type(error).__name__)
                warned = True
            await asyncio.sleep(self._ttl_ms / 10_000)

    async def renew(self) -> bool:
        """Extend the lock; False when it is no longer ours.

        Raises:
            RedisError: the server does not answer; the lock is trusted until its time is over.
        """
        asked_ns = self._clock.monotonic_ns()
        if not int(await run_script(self._redis, scripts.RENEW, [self._lock], [self._holding, self._ttl_ms])):
            self._trusted_until_ns = 0
            return False
        self._trust_from(asked_ns)
        return True

    async def keep(self) -> None:
        """Renew for ever; when the lock is lost, stop being leader and take it again as soon as it is free."""
        while True:
            await asyncio.sleep(self._ttl_ms / 3_000)
            try:
                async with asyncio.timeout(self._ttl_ms / 1_000):
                    held = await self.renew()
            except (RedisError, OSError, TimeoutError):
                continue
            if not held:
                _log.warning("leadership %d is lost", self._token)
                self._floor = max(self._floor, self._token)
                await self.acquire()
                _log.warning("leading again with token %d", self._token)

    async def release(self) -> None:
        """Give the lock back so that a successor need not wait; a server that does not answer is left alone."""
        self._trusted_until_ns = 0
        try:
            async with asyncio.timeout(1):
                await run_script(self._redis, scripts.RELEASE, [self._lock], [self._holding])
        except (RedisError, OSError, TimeoutError):
            _log.info("the lock was not released; it ends by itself")

    @property
    def _holding(self) -> str:
        return f"{self._owner}|{self._token}"

    def _trust_from(self, asked_ns: int) -> None:
        self._trusted_until_ns = asked_ns + int(self._ttl_ms * _TRUSTED_SHARE) * 1_000_000
        self._renewed.set()
