"""Three venues on the wire whose clocks are right, and the market server that a user's configuration starts on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from mcp import Client

from grekko.initialization import initialize
from grekko.supervisor import answers
from mcp_servers.hosting import call, open_client
from tests.venue_wire_support import DIALECTS, rest_records, tape
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import BusSettings, EmbeddedRedis
from trading.domain.errors import TradingError
from trading.domain.money import plain
from trading.testing.venue_wire import Print, VenueServer

SYMBOL = "BTC/USDT"
VENUES = ("binance", "coinbase", "kraken")
MINUTE_MS = 60_000


class VenueClock:
    """The venues' clock, which a test sets back before the market opens to let the past happen.

    Attributes:
        behind_ms: how far it is behind this machine's.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.behind_ms = 0

    def now_ms(self) -> int:
        return self._clock.now_ms() - self.behind_ms

    def now_us(self) -> int:
        return self.now_ms() * 1_000


class Venues:
    """Binance, Coinbase and Kraken, all with Binance's recorded figures, Coinbase and Kraken some events ahead.

    Each plays at the recorded pace while ``trading``; nothing happens at one that is ``held``.
    """

    def __init__(self, servers: dict[str, VenueServer], clock: VenueClock) -> None:
        self.servers = servers
        self.clock = clock
        self.held: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def __getitem__(self, venue: str) -> VenueServer:
        return self.servers[venue]

    async def past(self, minutes: int, *, events: int) -> None:
        """Let events happen in each of the minutes before the present one."""
        present_ms = self.clock.now_ms()
        opened_ms = present_ms - present_ms % MINUTE_MS
        for minute in range(minutes, 0, -1):
            for second in (1, 30, 58):
                self.clock.behind_ms = present_ms - (opened_ms - minute * MINUTE_MS + second * 1_000)
                for server in self.servers.values():
                    await server.play(events // 3)
        self.clock.behind_ms = 0

    async def _play(self, venue: str) -> None:
        server = self.servers[venue]
        while server.market.left:
            before = server.market.peek_ts_us() or 0
            if venue not in self.held:
                await server.play(1)
            after = server.market.peek_ts_us() or before
            await asyncio.sleep(min(after - before, 100_000) / 1_000_000)

    @asynccontextmanager
    async def trading(self) -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(self._play(venue)) for venue in self.servers]
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @asynccontextmanager
    async def still(self) -> AsyncGenerator[None]:
        """Let nothing happen anywhere, and wait until every client has read what did."""
        self.held.update(self.servers)
        try:
            for server in self.servers.values():
                await server.settle()
            yield
        finally:
            self.held.clear()

    async def lose(self, venue: str) -> None:
        """Take a venue off the network."""
        await self.servers[venue].refuse()
        self.servers[venue].cut()

    async def bring_back(self, venue: str) -> None:
        await self.servers[venue].listen()

    def truth(self, venue: str) -> dict[int, tuple[str, ...]]:
        """Return every minute's open, high, low, close and volume by its start, from the trades that happened."""
        bars = self.servers[venue].market.bars(SYMBOL, MINUTE_MS)
        return {
            bar.open_ts_ms: tuple(plain(value) for value in (bar.open, bar.high, bar.low, bar.close, bar.volume))
            for bar in bars
        }

    def prints(self, venue: str) -> list[Print]:
        return self.servers[venue].prints(SYMBOL)


@asynccontextmanager
async def three_venues(*, without: str = "", past_minutes: int = 0) -> AsyncGenerator[Venues]:
    """Open the venues with a past of some minutes; Coinbase named as ``without`` does not have the symbol."""
    clock = VenueClock()
    clock.behind_ms = (past_minutes + 1) * MINUTE_MS
    async with contextlib.AsyncExitStack() as stack:
        servers: dict[str, VenueServer] = {}
        for index, venue in enumerate(VENUES):
            played, records = tape("binance"), rest_records()[venue]
            if venue == without:
                played, records = tape("coinbase"), _without_the_symbol(records)
            server = VenueServer(DIALECTS[venue], played, records, clock_us=clock.now_us)
            servers[venue] = await stack.enter_async_context(server)
            if venue != without:
                await server.play(index * 20)
        venues = Venues(servers, clock)
        await venues.past(past_minutes, events=60)
        yield venues


def _without_the_symbol(records: dict[str, Any]) -> dict[str, Any]:
    """Return Coinbase's recorded answers less one product."""
    return {"products": [row for row in records["products"] if row["product_id"] != SYMBOL.replace("/", "-")]}


def configuration(venues: Venues, *, market: str = "", rest: str = "") -> str:
    """Return the config file of a desk on these venues."""
    addresses = "\n".join(
        f'[venues.{name}]\nrest_url = "{server.rest_url}"\nws_url = "{server.ws_url}"\n'
        for name, server in venues.servers.items()
    )
    return f"""\
market_venue = "binance"
symbols = ["{SYMBOL}"]

[market]
source = "live"
venues = ["coinbase", "kraken"]
{market}

[bus]
prefer_bundled = true

{addresses}
{rest}
"""


class MarketProcess:
    """`python -m mcp_servers.market` in a home, on a unix socket of its own."""

    def __init__(self, home: DeskHome, name: str = "market") -> None:
        self.home = home
        self.socket = home.socket(name)
        self.log = home.path.parent / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mcp_servers.market", "--socket", str(self.socket), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.home),
            )
        await until(lambda: answers(self.socket), "the market server answers", self.tail)

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def rss_mb(self) -> float:
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """Ask it to stop in order and return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(20):
            return await self.process.wait()

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(line[:300] for line in lines if "grekko.mcp call" not in line)[-6_000:]

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        async with open_client(f"unix:{self.socket}") as client:
            yield client


def environment(home: DeskHome) -> dict[str, str]:
    """Return the variables of every process of this desk, and no others of ours."""
    ours = ("GREKKO_", "REDIS_", "DATABASE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"GREKKO_HOME": str(home.path), "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def market_home(config: str) -> AsyncGenerator[DeskHome]:
    """Yield a new desk's home with that configuration; its Redis is killed at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="grekko-live-") as directory:
        settings = DeskSettings.model_validate({"home": Path(directory) / "desk", "REDIS_URL": None})
        home = settings.desk_home.ensure()
        home.config_file.write_text(config, encoding="utf-8")
        initialize(settings)
        try:
            yield home
        finally:
            if (pid := redis_pid(home)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def redis_pid(home: DeskHome) -> int | None:
    """Return the process id of the desk's own Redis, None when there is none."""
    settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None})
    return EmbeddedRedis(home, settings, BusSettings()).pid()


@asynccontextmanager
async def running_market(home: DeskHome, name: str = "market", *arguments: str) -> AsyncGenerator[MarketProcess]:
    """Run a market server for the length of the block; one that still runs then is killed."""
    market = MarketProcess(home, name)
    try:
        await market.start(*arguments)
        yield market
    finally:
        if market.is_up:
            await market.kill()


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return a market tool's answer."""
    return await call(client, f"market_{tool}", **arguments)


async def ticker(client: Client, venue: str | None = None) -> dict[str, Any]:
    """Return the symbol's ticker."""
    (row,) = (await ask(client, "get_tickers", symbols=[SYMBOL], venue=venue))["tickers"]
    return row


async def refused(client: Client, tool: str, **arguments: Any) -> TradingError:
    """Return the error that a tool answers with."""
    try:
        answer = await ask(client, tool, **arguments)
    except TradingError as error:
        return error
    raise AssertionError(f"{tool} answered {answer}")


async def venue_rows(client: Client) -> dict[str, dict[str, Any]]:
    """Return each venue's row of the status."""
    return {row["venue"]: row for row in (await ask(client, "get_status"))["venues"]}


async def until(
    holds: Callable[[], Any], what: str, context: Callable[[], str] = str, *, timeout_s: float = 30.0
) -> None:
    """Wait until an (async) condition on another process holds; an error of the desk is not yet."""
    last: object = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = holds()
                    last = await found if asyncio.iscoroutine(found) else found
                    if last:
                        return
                except TradingError as error:
                    last = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never came true that {what}; last: {last!r}\n{context()}") from None
