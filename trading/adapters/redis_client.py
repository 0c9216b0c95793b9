"""How every Redis client of the desk is made, and the few commands it sends by name.

Rules kept:

1. No read timeout: redis-py's default of 5 s silently repeats longer blocking reads (which loses messages) and
   swallows cancellation on Python 3.11. Bound a call with ``asyncio.timeout`` instead.
2. RESP2 is pinned, since the shape of stream replies depends on it; values are bytes.
3. No CLIENT SETINFO, which servers of version 7.0 do not know and an ACL would refuse.
4. A broken connection is made again and the command repeated: a command may run twice, so it must be repeatable.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from trading.domain.errors import ConfigurationError, Unavailable

_log = logging.getLogger(__name__)

OLDEST_VERSION: Final = (7, 0)
_RETRIES: Final = 3  # about 0.3 s of trying; longer outages are the caller's to wait out


class _Caller(Protocol):
    async def execute_command(self, *args: bytes | str | int | float, **options: object) -> Any:
        """Send one command."""
        ...


async def call(redis: Redis, *command: bytes | str | int | float, **options: object) -> Any:
    """Send one command by name and return redis-py's reading of the reply, which ``options`` may steer.

    Raises:
        RedisError: refused, or the connection stayed broken.
    """
    return await cast("_Caller", redis).execute_command(*command, **options)


async def redis_time_ms(redis: Redis) -> int:
    """Return the server's clock in milliseconds since the epoch; deadlines of votes are measured by it alone."""
    seconds, micros = await call(redis, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def unix_client(socket: Path, *, user: str, password: str, retries: int = _RETRIES) -> Redis:
    """Return a client for a server on a unix socket; the caller closes it."""
    return Redis(unix_socket_path=str(socket), username=user, password=password, **_options(retries))


@asynccontextmanager
async def url_client(url: str, *, required: bool) -> AsyncGenerator[Redis]:
    """Yield a client for ``REDIS_URL`` once the server's version is known to suffice.

    Args:
        url: redis://, rediss:// or unix://, with the credentials of this process.
        required: False to go on, with a warning, when the server does not answer now.

    Raises:
        Unavailable: required, and it does not answer.
        ConfigurationError: malformed URL, refused credentials, or a version older than 7.0.
    """
    try:
        client = cast("Redis", cast("Any", Redis).from_url(url, **_options(_RETRIES)))
    except ValueError as error:
        raise ConfigurationError("REDIS_URL is not a redis://, rediss:// or unix:// URL") from error
    try:
        await _check_version(client, required=required)
        yield client
    finally:
        await client.aclose()


async def _check_version(client: Redis, *, required: bool) -> None:
    try:
        reply = cast("list[bytes]", await call(client, "HELLO", 2))  # INFO may be closed to a room's user
    except (RedisError, OSError) as error:
        if refused(error):
            raise ConfigurationError(f"REDIS_URL: the server refused us: {error}") from error
        if required:
            raise Unavailable("REDIS_URL: the server does not answer", suggestion="start it or fix the URL") from error
        _log.warning("REDIS_URL: the server does not answer; going on without it")
        return
    version = dict(zip(reply[::2], reply[1::2], strict=True)).get(b"version", b"unknown").decode()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_VERSION:
        raise ConfigurationError(f"REDIS_URL: server version {version} is older than 7.0")


def refused(error: BaseException) -> bool:
    """Return whether the server answered and said no, wrong credentials included, rather than not answering."""
    # redis-py 8 wraps a refused AUTH in a plain ConnectionError; its cause tells.
    return isinstance(error, (AuthenticationError, ResponseError)) or isinstance(error.__cause__, AuthenticationError)


def _options(retries: int) -> dict[str, Any]:
    return {
        "socket_timeout": None,
        "socket_connect_timeout": 5,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.2), retries),
        "protocol": 2,
        "driver_info": None,
    }
