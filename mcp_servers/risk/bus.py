"""The bus as risk uses it: heartbeats out, execution's heartbeats in. Both may fail; neither stops the room."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters.redis_client import call
from trading.adapters.redis_streams import backoff_s
from trading.domain.errors import Unavailable

from .service import RiskService

log = logging.getLogger("grekko.risk")

_KEPT: Final = 64
_BLOCK_MS: Final = 500
_TIMEOUT_S: Final = 2.0


class RedisHeartbeatSink:
    """Puts heartbeats on ``risk:heartbeat``."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def send(self, envelope: str) -> None:
        """Append one envelope.

        Raises:
            Unavailable: the bus did not take it.
        """
        try:
            await call(self._redis, "XADD", self._key, "MAXLEN", "~", _KEPT, "*", "e", envelope)
        except (RedisError, OSError) as error:
            raise Unavailable(f"the bus did not take a heartbeat: {type(error).__name__}") from error


async def hear_execution(service: RiskService, redis: Redis, key: str) -> None:
    """Read execution's heartbeats for ever, the newest one that is held first."""
    cursor: bytes | None = None
    failures = 0
    while True:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if cursor is None:
                    entries: list[Any] = await call(redis, "XREVRANGE", key, "+", "-", "COUNT", 1)
                    cursor = entries[0][0] if entries else b"0-0"
                else:
                    reply = await call(redis, "XREAD", "COUNT", _KEPT, "BLOCK", _BLOCK_MS, "STREAMS", key, cursor)
                    entries = reply[0][1] if reply else []
            failures = 0
        except (RedisError, OSError, TimeoutError) as error:
            if failures == 0:
                log.warning("execution cannot be heard: %s", type(error).__name__)
            await asyncio.sleep(backoff_s(failures))
            failures += 1
            continue
        for entry_id, fields in entries:
            cursor = entry_id
            take_pulse(service, cast("dict[bytes, bytes]", fields).get(b"d", b""))


def take_pulse(service: RiskService, data: bytes) -> bool:
    """Hand one heartbeat of execution to the service; False when it cannot be read."""
    try:
        raw = cast("dict[str, Any]", orjson.loads(data))
        sent_ms, ledger_seq, unresolved = (int(raw[name]) for name in ("sent_ms", "ledger_seq", "unresolved"))
        safe = raw["safe"] is True
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        log.warning("a heartbeat of execution cannot be read")
        return False
    service.hear_execution(sent_ms=sent_ms, ledger_seq=ledger_seq, unresolved=unresolved, safe=safe)
    return True
