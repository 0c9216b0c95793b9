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
from mcp_servers.market.settings import VenueAddresses, check_allowed, load_addresses, load_market_settings
from trading.adapters.config import DeskSettings, load_settings
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
    """Examine the configuration here, every part in a scratch home, print a table; return whether all are well.

    The scratch desk knows nothing of this one: it must not write to its home, its Redis or its database.
    """
    results = [await _timed("python", _python), await _timed("configuration", configuration)]
    with tempfile.TemporaryDirectory(prefix="grekko-doctor-") as scratch:
        ours = {"home": Path(scratch) / "desk", "redis_url": None, "database_url": None}
        settings = DeskSettings().model_copy(update=ours)
        initialize(settings)
        results.append(await _timed("redis", lambda: _redis(settings)))
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


async def configuration() -> str:
    """Return what this desk is configured to trade on; nothing is connected.

    Raises:
        ConfigurationError: a server would refuse to start with it.
    """
    desk, market = load_settings(), load_market_settings()
    check_allowed(desk, market)
    if market.source != "live":
        return f"{desk.mode}, market: a recording at speed {market.speed:g}"
    venues = dict.fromkeys((desk.market_venue, *market.venues))
    moved = [venue for venue in venues if load_addresses(venue) != VenueAddresses()]
    note = f"; at addresses of its own: {', '.join(moved)}" if moved else ""
    return f"{desk.mode}, live market: {', '.join(venues)}{note}"


async def _redis(settings: DeskSettings) -> str:
    async with open_redis(settings.desk_home, settings, "console") as redis:
        await call_redis(redis, "PING")
    return "found or started, answers, stopped again"


async def _room(settings: DeskSettings, room: str) -> str:
    command = [sys.executable, "-m", ROOM_MODULES[room]]
    ours = ("GREKKO_", "REDIS_URL", "DATABASE_URL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env["GREKKO_HOME"] = str(settings.home)
    async with open_client(command, read_timeout_s=_TIMEOUT_S, env=env) as client:
        tools = await client.list_tools()
        await call(client, STATUS_TOOLS[room])
        return f"{len(tools.tools)} tools, {STATUS_TOOLS[room]} answered"
