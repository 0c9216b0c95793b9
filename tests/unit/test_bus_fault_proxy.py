from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from trading.testing.fault_proxy import FaultProxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def _proxied() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    try:
        async with FaultProxy(server.sockets[0].getsockname()[:2]) as proxy:
            yield proxy
    finally:
        server.close()


@asynccontextmanager
async def _connection(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> bytes:
    streams[1].write(data)
    async with asyncio.timeout(5):
        return await streams[0].readexactly(len(data))


async def test_healthy_proxy_relays_both_ways_unchanged():
    data = bytes(range(256)) * 400
    async with _proxied() as proxy, _connection(proxy) as streams:
        assert await _ask(streams, data) == data
        assert proxy.relayed == 2 * len(data)


async def test_delay_is_added_in_each_direction():
    async with _proxied() as proxy, _connection(proxy) as streams:
        await _ask(streams, b"warm")
        proxy.delay_s = 0.03
        began = asyncio.get_running_loop().time()
        await _ask(streams, b"slow")
        assert asyncio.get_running_loop().time() - began >= 0.06


async def test_throttle_limits_throughput():
    async with _proxied() as proxy, _connection(proxy) as streams:
        proxy.bytes_per_s = 100_000
        began = asyncio.get_running_loop().time()
        await _ask(streams, b"x" * 5_000)
        assert asyncio.get_running_loop().time() - began >= 0.05


async def test_cut_resets_open_connections_and_new_ones_work():
    async with _proxied() as proxy:
        async with _connection(proxy) as streams:
            await _ask(streams, b"fine")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(5):
                    await streams[0].readexactly(1)
        async with _connection(proxy) as streams:
            assert await _ask(streams, b"again") == b"again"
        assert proxy.accepted == 2


async def test_half_open_connection_stays_open_and_answers_nothing():
    async with _proxied() as proxy, _connection(proxy) as streams:
        await _ask(streams, b"fine")
        before = proxy.relayed
        proxy.half_open = True
        streams[1].write(b"anybody there?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await streams[0].read(1)
        assert proxy.open_connections == 1
        assert proxy.relayed == before


async def test_garble_corrupts_the_answer_and_only_as_often_as_asked():
    async with _proxied() as proxy, _connection(proxy) as streams:
        proxy.garble(1)
        assert await _ask(streams, b"\x00\x0f") == b"\xff\xf0"
        assert await _ask(streams, b"\x00\x0f") == b"\x00\x0f"


async def test_refused_connection_ends_at_once_and_healing_lets_the_next_in():
    async with _proxied() as proxy:
        proxy.refuse = True
        async with _connection(proxy) as streams:
            async with asyncio.timeout(5):
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await streams[0].readexactly(1)
        proxy.heal()
        async with _connection(proxy) as streams:
            assert await _ask(streams, b"in") == b"in"


async def test_target_that_is_down_ends_the_connection(tmp_path: Path):
    async with FaultProxy(tmp_path / "nobody.sock") as proxy, _connection(proxy) as streams:
        async with asyncio.timeout(5):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await streams[0].readexactly(1)
