"""Market data: from a recorded raw message to a book or trade that another process can query.

Here the recording is read, parsed and built into books, and what changed is signed and published on the real Redis; a
process of its own follows with a ``MarketStreamView``. Every message carries its number as its receive time, which
comes back with what it caused, so a latency is that of one very message. Both processes read one monotonic clock.

The limit loop signs JSON of the usual size with an HMAC, appends it in pipelines of one hundred and reads it back.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from redis.asyncio import Redis

from benchmarks.measure import Figure, Sample, percentile, rate_figure
from benchmarks.parts import CLOCK, DATA_ID, scratch
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.pipeline import MarketPipeline
from mcp_servers.market.sources.base import SourceUpdate
from mcp_servers.market.sources.replay import Recording, ReplaySource, load_recording
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import BusSettings, open_redis
from trading.adapters.market_stream import MarketStreamPublisher, MarketStreamView
from trading.domain.market_data import Feed, OrderBook

BUNDLED = BusSettings(prefer_bundled=True)
_KEY = bytes(32)
_PACED_PER_S = 5_000
_PACED = 10_000
_END = b"end\n"
_FIRST = 2_000_000_000_000  # the first message's number: what arrives long before the venue's own time is refused
_TIMEOUT_S = 60


async def run() -> list[Figure]:
    """Measure the market room."""
    with scratch() as directory:
        home = DeskHome(directory / "desk").ensure()
        settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None, "DATABASE_URL": None})
        async with open_redis(home, settings, "market", bus=BUNDLED) as redis:
            limit = await _limit(redis, settings.key("market", "bench"))
            lines = _numbered(load_recording())
            flat_out = await _play(redis, settings, lines, speed=0)
            paced = await _play(redis, settings, replace(lines, lines=lines.lines[:_PACED]), speed=_PACED_PER_S / 1_000)
    note = (
        f"{flat_out.n:,} raw messages as fast as they are taken, {flat_out.cpu} here;"
        f" latencies at {_PACED_PER_S:,} messages/s (flat out: p99 {percentile(flat_out.latencies_ms, 99):,.0f} ms);"
        " limit: JSON, HMAC, XADD by the hundred, XREAD"
    )
    both = Sample(flat_out.n, flat_out.seconds, paced.latencies_ms, flat_out.cpu_seconds)
    return [rate_figure("market.update", both, limit, note)]


def _numbered(recording: Recording) -> Recording:
    """Return the recording, the message's number as its receive time in milliseconds.

    What comes before the snapshot stays: without it the snapshot does not meet the differences, and there is no book.
    """
    messages = [line.split(b" ", 1)[1] for line in recording.lines]
    return replace(recording, lines=tuple(b"%d000000 %b" % (_FIRST + n, text) for n, text in enumerate(messages)))


class _TimedPipeline(MarketPipeline):
    """Notes when each message's update was taken in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken_ns: dict[int, int] = {}

    def handle(self, update: SourceUpdate) -> None:
        """Take one update in."""
        number = getattr(update, "received_ts_ms", None)
        if number is not None:
            self.taken_ns.setdefault(number, time.monotonic_ns())
        super().handle(update)


async def _play(redis: Redis, settings: DeskSettings, recording: Recording, *, speed: float) -> Sample:
    """Play the recording while another process watches; return messages a second and the latency of each update."""
    feed = Feed.REPLAY
    async with (
        MarketStreamPublisher(redis, desk=settings.desk, key=_KEY, clock=CLOCK, feed=feed) as publisher,
        _watcher(settings.home) as watcher,
    ):
        source = ReplaySource(recording, CLOCK, speed=speed)
        pipeline = _TimedPipeline(source, (publisher,), CandleStore(), CLOCK, on_position=publisher.set_position)
        publisher.publish_instrument(recording.instrument)
        await publisher.drained()
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        await asyncio.wait_for(watcher.stdout.readline(), _TIMEOUT_S)  # it knows the instrument
        started_ns, cpu = time.monotonic_ns(), time.process_time()
        await pipeline.run()
        pipeline.tick()
        await publisher.drained()
        cpu = time.process_time() - cpu
        watcher.stdin.write(_END)
        await watcher.stdin.drain()
        seen = dict(orjson.loads(await asyncio.wait_for(watcher.stdout.readline(), _TIMEOUT_S)))
    pairs = [(int(number), seen_ns) for number, seen_ns in seen.items() if int(number) in pipeline.taken_ns]
    assert len(pairs) > 100, "the watcher saw almost nothing"
    latencies = [(seen_ns - pipeline.taken_ns[number]) / 1e6 for number, seen_ns in pairs]
    return Sample(len(recording.lines), (max(ns for _, ns in pairs) - started_ns) / 1e9, latencies, cpu)


@asynccontextmanager
async def _watcher(home: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.market", str(home)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
        env={**os.environ, "GREKKO_HOME": str(home)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _watch(home: Path) -> None:
    """Be the other process: note when each message's book or trade became queryable; print it when told to."""
    settings = DeskSettings.model_validate({"home": home, "REDIS_URL": None, "DATABASE_URL": None})
    seen: dict[str, int] = {}

    async def note(view: MarketStreamView) -> None:
        async for update in view.subscribe():
            now_ns = time.monotonic_ns()
            if isinstance(update, OrderBook):
                assert view.book(update.instrument_id) is not None
            seen.setdefault(str(update.received_ts_ms), now_ns)

    async with (
        open_redis(settings.desk_home, settings, "console", bus=BUNDLED) as redis,
        MarketStreamView(redis, settings.desk, _KEY, CLOCK, {Feed.REPLAY}) as view,
    ):
        task = asyncio.create_task(note(view))
        while view.instrument(DATA_ID) is None:  # noqa: ASYNC110  another process publishes it
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        told = await asyncio.to_thread(sys.stdin.buffer.readline)
        await asyncio.sleep(0.3)  # what is on its way arrives
        task.cancel()
        if told == _END:
            print(orjson.dumps(seen).decode(), flush=True)


async def _limit(redis: Redis, stream: str) -> Sample:
    """Sign, append and read messages of the usual size with nothing around it."""
    client: Any = redis
    message = {"s": 1, "f": "replay", "p": 1_750_000_000_000, "t": [["60000.01", "0.00100", "buy", "123456789"] * 2]}
    count, step, cursor = 20_000, 100, b"0-0"
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, step):
        async with client.pipeline(transaction=False) as pipe:
            for number in range(start, start + step):
                data = orjson.dumps({**message, "s": number})
                pipe.xadd(stream, {"d": data, "h": hmac.digest(_KEY, data, "sha256").hex()}, maxlen=8_192)
            await pipe.execute()
        (_, entries), *_ = await client.xread({stream: cursor}, count=step)
        cursor = entries[-1][0]
        for _, fields in entries:
            assert hmac.compare_digest(hmac.digest(_KEY, fields[b"d"], "sha256").hex().encode(), fields[b"h"])
            orjson.loads(fields[b"d"])
    seconds = time.perf_counter() - started
    await client.delete(stream)
    return Sample(count, seconds, [], time.process_time() - cpu)


if __name__ == "__main__":
    asyncio.run(_watch(Path(sys.argv[1])))
