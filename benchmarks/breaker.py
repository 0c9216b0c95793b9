"""The breaker: from risk's trip to execution refusing to send, across two processes and the real Redis.

Risk runs here, execution in a process of its own. Execution's clock stops at the first refusal of its own last check
after a heartbeat. Both read one monotonic clock. The limit is a bare XADD that a blocked XREAD of that same other
process receives, sent in turn with the trips.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from redis.asyncio import Redis

from benchmarks.market import BUNDLED
from benchmarks.measure import Figure, latency_figure
from benchmarks.parts import CLOCK, RiskRoom, StillMarket, open_execution_room, open_risk_room, scratch
from mcp_servers.execution.background import act_on_news, hear_risk
from mcp_servers.execution.epochs import Ignored, Learned
from mcp_servers.execution.gate import check_state
from mcp_servers.risk.bus import RedisHeartbeatSink
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.redis_client import call
from trading.adapters.sql import LedgerLocation, open_reader
from trading.domain.approvals import Epoch, TradingState
from trading.domain.errors import GateRefused
from trading.testing.builders import build_approval
from trading.testing.keys import make_test_signer

_TRIPS = 150
_TIMEOUT_S = 30


async def run() -> list[Figure]:
    """Measure trips."""
    with scratch() as directory:
        home = DeskHome(directory / "desk").ensure()
        settings = DeskSettings.model_validate({"home": home.path, "REDIS_URL": None, "DATABASE_URL": None})
        async with open_redis(home, settings, "risk", bus=BUNDLED) as redis:
            sink = RedisHeartbeatSink(redis, _stream(settings))
            async with open_risk_room(home.path / "ledger", heartbeats=sink) as room:
                breaker = room.service.live.breaker
                sent: dict[str, int] = {}
                bare: dict[str, int] = {}
                async with _execution(home.path) as other:
                    assert other.stdout is not None
                    async with _beating(room):
                        await asyncio.wait_for(other.stdout.readline(), _TIMEOUT_S)
                    for number in range(_TRIPS):
                        await room.service.live.heartbeats.beat()
                        await _send_bare(redis, settings, str(number), bare)
                        await asyncio.sleep(0.005)
                        started_ns = time.monotonic_ns()
                        answer = await breaker.trip("benchmark", "bench")
                        sent[_name(answer.epoch)] = started_ns
                        await asyncio.sleep(0.005)
                        await breaker.reset("benchmark", "bench", TradingState.ACTIVE)
                    seen = await _results(other)
    trips = [(seen["silent"][name] - at) / 1e6 for name, at in sent.items()]
    limits = [(seen["bare"][name] - at) / 1e6 for name, at in bare.items()]
    note = (
        "signed heartbeat over Redis to another process until its last check refuses; the trip's own durable commit"
        " follows; limit: bare XADD to blocked XREAD, the same two processes"
    )
    return [latency_figure("breaker.trip_to_silence", trips, limits, note)]


@asynccontextmanager
async def _beating(room: RiskRoom) -> AsyncGenerator[None]:
    """Give signs of life, as the room does, until the other process has heard a fresh one."""

    async def beat() -> None:
        while True:
            await room.service.live.heartbeats.beat()
            await asyncio.sleep(0.5)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _send_bare(redis: Redis, settings: DeskSettings, name: str, bare: dict[str, int]) -> None:
    bare[name] = time.monotonic_ns()
    await call(redis, "XADD", settings.key("risk", "bench"), "*", "n", name)


async def _results(other: asyncio.subprocess.Process) -> dict[str, dict[str, int]]:
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write(b"end\n")
    await other.stdin.drain()
    return orjson.loads(await asyncio.wait_for(other.stdout.readline(), _TIMEOUT_S))


def _stream(settings: DeskSettings) -> str:
    return settings.key("risk", "heartbeat")


def _name(epoch: Epoch) -> str:
    return f"{epoch.generation}.{epoch.counter}"


@asynccontextmanager
async def _execution(home: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.breaker", str(home)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
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


async def _be_execution(home: Path) -> None:
    """Be the other process: hear risk, refuse, and print when that was."""
    settings = DeskSettings.model_validate({"home": home, "REDIS_URL": None, "DATABASE_URL": None})
    silent: dict[str, int] = {}
    bare: dict[str, int] = {}
    async with (
        open_redis(settings.desk_home, settings, "execution", bus=BUNDLED) as redis,
        open_reader("risk", LedgerLocation.sqlite(home / "ledger")) as risk,
        open_execution_room(home / "execution", risk, StillMarket()) as execution,
    ):
        learn = execution.learn

        def learn_and_look(text: str) -> Learned | Ignored:
            before = execution.pulse.epoch
            outcome = learn(text)
            if execution.pulse.epoch > before:
                approval = build_approval(key_id=make_test_signer("risk").key_id, epoch=before, now_ms=CLOCK.now_ms())
                try:
                    check_state(approval, execution.pulse, execution.rules, execution.moment())
                except GateRefused:
                    silent[_name(execution.pulse.epoch)] = time.monotonic_ns()
            return outcome

        execution.learn = learn_and_look
        tasks = [
            asyncio.create_task(hear_risk(execution, redis, _stream(settings))),
            asyncio.create_task(act_on_news(execution)),
            asyncio.create_task(_hear_bare(redis, settings.key("risk", "bench"), bare)),
        ]
        while execution.pulse.heard_ns is None:  # noqa: ASYNC110  the other process speaks
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        told = await asyncio.to_thread(sys.stdin.buffer.readline)
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        if told:
            print(orjson.dumps({"silent": silent, "bare": bare}).decode(), flush=True)


async def _hear_bare(redis: Redis, stream: str, bare: dict[str, int]) -> None:
    cursor: bytes | str = "0-0"
    while True:
        for _, entries in await call(redis, "XREAD", "BLOCK", 500, "STREAMS", stream, cursor) or ():
            now_ns = time.monotonic_ns()
            bare.update({fields[b"n"].decode(): now_ns for _, fields in entries})
            cursor = entries[-1][0]


if __name__ == "__main__":
    asyncio.run(_be_execution(Path(sys.argv[1])))
