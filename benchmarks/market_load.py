"""The market server under load, as its clients meet it: 10,000 messages a second for a minute, and tools called.

The server is a process of its own, started by its command line; it plays the bundled recording, again and again, fast
enough for 10,000 messages a second. Meanwhile one client calls its tools in turn over a unix socket, and the server's
resident memory is read each second. The limit is the same calls to the same server with the feed at its recorded pace.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from mcp import Client

from benchmarks.measure import Figure, percentile
from benchmarks.parts import BTC_USDT, scratch
from mcp_servers.hosting import call, open_client
from mcp_servers.market.sources.replay import load_recording
from trading.adapters.config import DeskHome
from trading.domain.errors import TradingError

_RATE: Final = 10_000
_MARGIN: Final = 1.03  # each pass of the recording begins with a stretch that is read but not published
_LOADED_S: Final = 60
_STILL_S: Final = 10
_WARM_S: Final = 10  # memory before this is the start's
_CALLS_PER_S: Final = 50
_CALLS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("market_get_tickers", {"symbols": [BTC_USDT]}),
    ("market_get_order_book", {"symbol": BTC_USDT, "depth": 20}),
    ("market_estimate_fill", {"symbol": BTC_USDT, "side": "buy", "amount": "0.5"}),
    ("market_get_candles", {"symbol": BTC_USDT, "timeframe": "1m", "lookback": "30m"}),
    ("market_get_instrument", {"symbol": BTC_USDT}),
    ("market_get_status", {}),
)


class _Run:
    """What one run of the server showed."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.rss_mb: list[float] = []
        self.updates = 0
        self.seconds = 0.0

    @property
    def growth_mb(self) -> float:
        """Resident memory at the end less that after the warm-up."""
        return self.rss_mb[-1] - self.rss_mb[min(_WARM_S, len(self.rss_mb) - 1)]


async def run() -> list[Figure]:
    """Measure the sustained feed, and the tools beside it."""
    recording = load_recording()
    pace = len(recording.lines) / (recording.span_ms / 1_000)
    still = await _play(1.0, _STILL_S)
    loaded = await _play(_RATE * _MARGIN / pace, _LOADED_S)
    rate = loaded.updates / loaded.seconds
    still_p99, loaded_p99 = percentile(still.latencies_ms, 99) or 0.0, percentile(loaded.latencies_ms, 99) or 0.0
    return [
        Figure(
            name="market.sustained",
            value=round(rate, 1),
            unit="1/s",
            limit=float(_RATE),
            ratio=round(rate / _RATE, 3),
            p50_ms=None,
            p99_ms=None,
            n=loaded.updates,
            note=f"for {loaded.seconds:.0f} s in the server's own process; resident memory {loaded.rss_mb[-1]:.0f} MB, "
            f"{loaded.growth_mb:+.1f} MB since second {_WARM_S}; limit: the pace asked for",
        ),
        Figure(
            name="market.tools",
            value=round(loaded_p99, 3),
            unit="ms p99",
            limit=round(still_p99, 3),
            ratio=round(still_p99 / loaded_p99, 3) if loaded_p99 else None,
            p50_ms=round(percentile(loaded.latencies_ms, 50) or 0.0, 3),
            p99_ms=round(loaded_p99, 3),
            n=len(loaded.latencies_ms),
            note=f"{len(_CALLS)} tools in turn over a unix socket, {_CALLS_PER_S}/s, with the feed at {rate:,.0f} "
            "updates/s; limit: the same with the feed at its recorded pace",
        ),
    ]


async def _play(speed: float, seconds: float) -> _Run:
    found = _Run()
    with scratch() as directory:
        home = DeskHome(directory / "desk").ensure()
        home.config_file.write_text("[bus]\nprefer_bundled = true\n", encoding="utf-8")
        async with _server(home, speed) as process, open_client(f"unix:{home.socket('market')}") as client:
            await _first_book(client)
            before, started = await _updates(client), time.perf_counter()
            memory = asyncio.create_task(_watch_memory(process.pid, found.rss_mb))
            try:
                await _ask(client, seconds, found.latencies_ms)
            finally:
                memory.cancel()
            found.updates, found.seconds = await _updates(client) - before, time.perf_counter() - started
    return found


async def _ask(client: Client, seconds: float, latencies_ms: list[float]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(int(seconds * _CALLS_PER_S)):
        await asyncio.sleep(max(0.0, started + number / _CALLS_PER_S - loop.time()))
        name, arguments = _CALLS[number % len(_CALLS)]
        began = time.perf_counter()
        await call(client, name, **arguments)
        latencies_ms.append((time.perf_counter() - began) * 1_000)


async def _updates(client: Client) -> int:
    return int((await call(client, "market_get_status"))["counters"].get("pipeline_updates", 0))


async def _first_book(client: Client) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await call(client, "market_get_order_book", symbol=BTC_USDT)
            except TradingError:
                await asyncio.sleep(0.05)
            else:
                return


async def _watch_memory(pid: int, rss_mb: list[float]) -> None:
    process = psutil.Process(pid)
    while True:
        rss_mb.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(1)


@asynccontextmanager
async def _server(home: DeskHome, speed: float) -> AsyncGenerator[asyncio.subprocess.Process]:
    socket: Path = home.socket("market")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_servers.market", "--market", "replay", "--loop"),
        *("--speed", f"{speed:.3f}", "--socket", str(socket), "--log-level", "WARNING"),
        env={**os.environ, "GREKKO_HOME": str(home.path)},
    )
    try:
        async with asyncio.timeout(30):
            while not socket.exists():  # noqa: ASYNC110, ASYNC240  another process makes it; a stat takes microseconds
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.terminate()
        await process.wait()
