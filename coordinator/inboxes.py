"""The agents' inboxes: one stream each, written by its agent alone, read by the leader.

An entry has two fields: ``t`` (``proposal`` or ``vote``) and ``e`` (the DSSE envelope, JSON text). Who speaks is
decided by whose inbox it is and by the signature, never by what the entry says. The entry's id is not believed either:
an agent may choose it freely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from coordinator.ballots import as_text
from trading.domain.identifiers import AgentId

_log = logging.getLogger(__name__)

#: Entries that an inbox keeps; the writer trims as well.
INBOX_MAX: Final = 2_000
_BLOCK_MS: Final = 250
_BATCH: Final = 100
_TRIM_EVERY: Final = 1_000  # entries read between two trims
_RETRY_S: Final = (0.05, 0.2, 0.5)


class InboxReader:
    """Reads all inboxes and remembers in Redis how far it came; an entry may be handled twice, never not at all.

    Args:
        redis: the coordinator's client.
        prefix: what all keys of the desk start with, colon included.
        agents: whose inboxes there are now.
    """

    def __init__(self, redis: Redis, prefix: str, agents: Callable[[], Sequence[AgentId]]) -> None:
        self._redis: Any = redis
        self._prefix = prefix
        self._agents = agents
        self._cursor_key = f"{prefix}vote:cursor"
        self._cursor: dict[AgentId, str] | None = None
        self._since_trim = 0
        self._saving: asyncio.Future[object] | None = None

    async def run(self, handle: Callable[[list[tuple[AgentId, str, str]]], Awaitable[None]]) -> None:
        """Hand over batches of (agent, kind, envelope) for ever; a batch that fails on Redis is handed over again."""
        attempt = 0
        while True:
            try:
                await self._step(handle)
                attempt = 0
            except (RedisError, OSError, TimeoutError) as error:
                if attempt == 0:
                    _log.warning("inboxes cannot be read: %s", type(error).__name__)
                self._saving = None
                self._cursor = None  # a server that lost its data starts its streams anew
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1

    async def _step(self, handle: Callable[[list[tuple[AgentId, str, str]]], Awaitable[None]]) -> None:
        if self._cursor is None:
            self._cursor = await self._load()
        streams = {self._inbox(agent): self._cursor.get(agent, "0-0") for agent in self._agents()}
        if not streams:
            await asyncio.sleep(_BLOCK_MS / 1_000)
            return
        async with asyncio.timeout(_BLOCK_MS / 1_000 + 5):
            reply = await self._redis.xread(streams, count=_BATCH, block=_BLOCK_MS)
        if not reply:
            return
        batch: list[tuple[AgentId, str, str]] = []
        moved: dict[AgentId, str] = {}
        for name, entries in cast("list[tuple[object, list[tuple[object, dict[object, object]]]]]", reply):
            agent = AgentId(as_text(name).removeprefix(f"{self._prefix}vote:in:"))
            for entry_id, raw in entries:
                fields = {as_text(key): as_text(value) for key, value in raw.items()}
                batch.append((agent, fields.get("t", ""), fields.get("e", "")))
                moved[agent] = as_text(entry_id)
        await handle(batch)
        self._cursor.update(moved)
        await self._save(moved)
        await self._trim(len(batch))

    async def _load(self) -> dict[AgentId, str]:
        raw = cast("dict[object, object]", await self._redis.hgetall(self._cursor_key))
        return {AgentId(as_text(agent)): as_text(entry_id) for agent, entry_id in raw.items()}

    async def _save(self, moved: dict[AgentId, str]) -> None:
        """Store the position while the next entries are read; at most one store is under way."""
        if self._saving is not None:
            await self._saving
        self._saving = asyncio.ensure_future(self._redis.hset(self._cursor_key, mapping=moved))

    async def _trim(self, read: int) -> None:
        self._since_trim += read
        if self._since_trim < _TRIM_EVERY:
            return
        self._since_trim = 0
        for agent in self._agents():
            await self._redis.xtrim(self._inbox(agent), maxlen=INBOX_MAX, approximate=True)

    def _inbox(self, agent_id: AgentId) -> str:
        return f"{self._prefix}vote:in:{agent_id}"
