"""`grekko doctor`: does every part start here, and does it answer over real MCP?"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grekko.initialization import initialize
from grekko.processes import ROOM_MODULES
from mcp_servers.hosting import call, open_client
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.redis_client import call as call_redis
from trading.domain.errors import TradingError

_TIMEOUT_S = 30.0
#: The tool of each server that answers without side effects.
STATUS_TOOLS = {room: f"{room}_get_status" for room in ROOM_MODULES}


@dataclass(frozen=True, slots=True)
class Examined:
    """One part and what became of it."""

    part: str
    good: bool
    detail: str
    seconds: float


async def examine(console: Console) -> bool:
    """Examine every part in a scratch home, print a table, and return whether all are well."""
    with tempfile.TemporaryDirectory(prefix="grekko-doctor-") as scratch:
        home = Path(scratch) / "desk"
        settings = DeskSettings(home=home)
        initialize(settings)
        results = [await _timed("python", _python), await _timed("redis", lambda: _redis(settings))]
        results += [await _timed(room, lambda room=room: _room(settings, room)) for room in ROOM_MODULES]
    table = Table("part", "state", "detail", "seconds", box=None)
    for each in results:
        state = "[green]ok[/]" if each.good else "[red]FAILED[/]"
        table.add_row(each.part, state, each.detail, f"{each.seconds:.1f}")
    console.print(table)
    return all(each.good for each in results)


async def _timed(part: str, check: Callable[[], Awaitable[str]]) -> Examined:
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            detail, good = await check(), True
    except (TradingError, OSError, TimeoutError, ExceptionGroup) as error:
        detail, good = f"{type(error).__name__}: {error}", False
    return Examined(part, good, detail, loop.time() - started)


async def _python() -> str:
    packages = ("mcp", "redis", "sqlalchemy", "ccxt", "web3")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


async def _redis(settings: DeskSettings) -> str:
    async with open_redis(settings.desk_home, settings, "console") as redis:
        await call_redis(redis, "PING")
    return "found or started, answers, stopped again"


async def _room(settings: DeskSettings, room: str) -> str:
    command = [sys.executable, "-m", ROOM_MODULES[room]]
    env = {**os.environ, "GREKKO_HOME": str(settings.home)}
    async with open_client(command, read_timeout_s=_TIMEOUT_S, env=env) as client:
        tools = await client.list_tools()
        await call(client, STATUS_TOOLS[room])
        return f"{len(tools.tools)} tools, {STATUS_TOOLS[room]} answered"
