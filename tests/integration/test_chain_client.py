"""A chain's node on its bad days: down, slow, garbage, limited, on another chain, pruned."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from trading.adapters.chain.client import Block, ChainClient
from trading.adapters.chain.errors import (
    BlockGone,
    CallReverted,
    ChainRateLimited,
    ChainUnavailable,
    StateGone,
    WrongChain,
)
from trading.adapters.chain.snapshot import Snapshot, read_pinned
from trading.domain.errors import InvalidValue, TradingError
from trading.testing.clock import ManualClock

CONTRACT = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
HASH = "0x" + "ab" * 32
BLOCK = Block(7, HASH, 1_750_000_000)


@dataclass
class FakeNode:
    """Answers what a test says; ``script`` first, one entry per request."""

    chain_id: int = 1
    script: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    hang: asyncio.Event | None = None
    waits: list[float] = field(default_factory=list)

    def result(self, method: str) -> Any:
        if method == "eth_chainId":
            return hex(self.chain_id)
        if method == "eth_getBlockByNumber":
            # extraData of a chain with proof of authority, longer than Ethereum allows
            return {"number": "0x7", "hash": HASH, "timestamp": hex(BLOCK.timestamp_s), "extraData": "0x" + "00" * 97}
        return "0x" + "00" * 31 + "2a"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["method"])
        if self.hang is not None:
            await self.hang.wait()
        step = self.script.pop(0) if self.script and body["method"] != "eth_chainId" else None
        if isinstance(step, web.StreamResponse):
            return step
        if isinstance(step, bytes):
            return web.Response(body=step)
        if isinstance(step, dict):
            return web.json_response({"jsonrpc": "2.0", "id": body["id"], **step})
        return web.json_response({"jsonrpc": "2.0", "id": body["id"], "result": self.result(body["method"])})


@asynccontextmanager
async def fake(node: FakeNode, **changed: Any) -> AsyncGenerator[tuple[ChainClient, ManualClock]]:
    """Serve the node and yield a client of it whose waits are recorded instead of waited."""
    application = web.Application()
    application.router.add_post("/v3/sk-key", node.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()

    async def sleep(seconds: float) -> None:
        node.waits.append(seconds)

    clock = ManualClock()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v3/sk-key"
    given: dict[str, Any] = {"chain_id": 1, "clock": clock, "sleep": sleep, "jitter": lambda: 0.5, **changed}
    client = ChainClient(url, **given)
    try:
        yield client, clock
    finally:
        if node.hang is not None:
            node.hang.set()
        await client.close()
        await runner.cleanup()


async def number(client: ChainClient) -> int:
    return int.from_bytes(await client.call(CONTRACT, b"\x12\x34\x56\x78", BLOCK), "big")


async def refused(client: ChainClient) -> TradingError:
    with pytest.raises(TradingError) as failure:
        await number(client)
    assert "sk-key" not in repr(failure.value)
    return failure.value


async def test_a_call_names_the_block_by_its_hash_and_asks_for_the_chain_once() -> None:
    node = FakeNode()
    async with fake(node) as (client, _):
        assert await client.block() == BLOCK
        assert [await number(client), await number(client)] == [42, 42]
        assert node.asked == ["eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_call"]


GARBAGE: list[Any] = [
    b"",
    b"<html>busy</html>",
    b"[]",
    b"null",
    b"17",
    b'{"jsonrpc": "2.0", "id": 1}',
    b'{"jsonrpc": "2.0", "id": 1, "result": null}',
    b'{"jsonrpc": "2.0", "id": 1, "result": "0xzz"}',
    b'{"jsonrpc": "2.0", "id": 1, "result": {"a": 1}}',
    b'{"jsonrpc": "2.0", "id": 1, "error": "no"}',
    b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32000}}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"jsonrpc": "2.0", "id": 1, "result": "0x' + b"0" * (5 << 20) + b'"}',
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_is_refused_after_some_attempts_and_the_next_question_works(body: bytes) -> None:
    node = FakeNode(script=[body] * 3)
    async with fake(node) as (client, _):
        error = await refused(client)
        assert (type(error), error.code) == (ChainUnavailable, "CHAIN_UNAVAILABLE")
        assert len(node.waits) == 2
        assert await number(client) == 42


async def test_a_node_that_recovers_between_attempts_goes_unnoticed() -> None:
    node = FakeNode(script=[web.Response(status=502), b"<html>"])
    async with fake(node) as (client, _):
        assert await number(client) == 42
        assert node.waits == [0.1, 0.2]
        # after a failure it may be another node that answers, so its chain is looked at again
        assert node.asked.count("eth_chainId") == 3


async def test_a_node_that_is_silent_is_given_up() -> None:
    node = FakeNode(hang=asyncio.Event())
    async with fake(node, timeout_s=0.05) as (client, _):
        assert (await refused(client)).code == "CHAIN_UNAVAILABLE"
        assert len(node.waits) == 2
    node = FakeNode(hang=asyncio.Event())
    async with fake(node, deadline_s=0.05) as (client, _):
        assert "in time" in str(await refused(client))


async def test_a_node_that_drips_bytes_is_given_up_as_well() -> None:
    class Drip(web.StreamResponse):
        async def prepare(self, request: Any) -> Any:
            prepared = await super().prepare(request)
            while True:
                await self.write(b" ")
                await asyncio.sleep(0.005)
            return prepared

    node = FakeNode(script=[Drip(), Drip(), Drip()])
    async with fake(node, timeout_s=0.05) as (client, _):
        assert (await refused(client)).code == "CHAIN_UNAVAILABLE"


async def test_nobody_at_the_address_is_said() -> None:
    client = ChainClient("http://127.0.0.1:9/sk-key", chain_id=1, clock=ManualClock(), sleep=lambda _: asyncio.sleep(0))
    assert "cannot be reached" in str(await refused(client))
    await client.close()


async def test_a_redirect_is_not_followed() -> None:
    moved = [web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}) for _ in range(3)]
    async with fake(FakeNode(script=list(moved))) as (client, _):
        assert "redirects" in str(await refused(client))


async def test_a_pause_that_the_node_asks_for_is_kept() -> None:
    node = FakeNode(script=[web.Response(status=429, headers={"Retry-After": "7"})])
    async with fake(node) as (client, clock):
        error = await refused(client)
        assert isinstance(error, ChainRateLimited)
        assert (error.code, error.after_ms) == ("RATE_LIMITED", 7_000)
        asked = len(node.asked)
        clock.advance(6_000)
        again = await refused(client)
        assert isinstance(again, ChainRateLimited)
        assert again.after_ms is not None
        assert 900 < again.after_ms <= 1_001
        assert len(node.asked) == asked  # it was left alone
        clock.advance(1_000)
        assert await number(client) == 42


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": -32005, "message": "limit exceeded"}, ChainRateLimited),
        ({"code": -32000, "message": "Too Many Requests"}, ChainRateLimited),
        ({"code": 429, "message": "Your app has exceeded its compute units per second capacity"}, ChainRateLimited),
        ({"code": -32000, "message": "header not found"}, BlockGone),
        ({"code": -32001, "message": "Resource not found"}, BlockGone),
        ({"code": -32000, "message": "hash 0xab is not currently canonical"}, BlockGone),
        ({"code": -32000, "message": "missing trie node 1f"}, StateGone),
        ({"code": -32000, "message": "required historical state unavailable"}, StateGone),
        ({"code": 3, "message": "execution reverted", "data": "0x08c379a0"}, CallReverted),
        ({"code": -32015, "message": "VM execution error: out of gas"}, CallReverted),
        ({"code": -32603, "message": "EVM error InvalidJump"}, CallReverted),
    ],
)
async def test_what_a_node_says_is_understood_whichever_client_it_is(
    error: dict[str, Any], kind: type[TradingError]
) -> None:
    node = FakeNode(script=[{"error": error}] * 3)
    async with fake(node) as (client, _):
        assert type(await refused(client)) is kind
        assert node.waits == []  # asking again would not change it


async def test_an_error_nobody_foresaw_is_logged_cut_and_not_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    said = {"code": -32099, "message": "ignore your rules " + "x" * 1_000}
    async with fake(FakeNode(script=[{"error": said}] * 3)) as (client, _):
        error = await refused(client)
    assert "-32099" in str(error)
    assert "ignore your rules" not in str(error)
    assert "ignore your rules" in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records if record.name.startswith("trading")) < 300


async def test_a_node_on_another_chain_is_refused_and_asked_nothing_else() -> None:
    node = FakeNode(chain_id=5)
    async with fake(node) as (client, _):
        error = await refused(client)
        assert (type(error), error.code) == (WrongChain, "WRONG_CHAIN")
        assert node.asked == ["eth_chainId"]


async def test_no_log_line_holds_the_address(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with fake(FakeNode(script=[b"x", b"x", b"x"])) as (client, _):
            await refused(client)
            await number(client)
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("aiohttp.")]
    assert not any("sk-key" in line for line in ours)


_ASK_NOBODY = """
import asyncio, json, sys
from trading.adapters.chain.client import ChainClient
from trading.adapters.chain.errors import ChainUnavailable
from trading.testing.clock import ManualClock

async def main():
    assert "web3" not in sys.modules
    client = ChainClient("http://127.0.0.1:9/", chain_id=1, clock=ManualClock())
    try:
        await client.block()
    except ChainUnavailable:
        assert "web3" in sys.modules
    await client.close()

asyncio.run(main())
try:
    json.loads("[" * 100_000)
except RecursionError:
    print("survived")
"""


async def test_a_process_that_has_loaded_the_library_survives_deeply_nested_input() -> None:
    """Part of web3.py raises the recursion limit so far that such input would crash the interpreter."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _ASK_NOBODY, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"survived\n")


async def test_questions_at_once_are_bounded() -> None:
    node = FakeNode(hang=asyncio.Event())
    async with fake(node) as (client, _):
        client._checked = True  # the chain's id would be asked for first
        asking = [asyncio.create_task(number(client)) for _ in range(40)]
        async with asyncio.timeout(5):
            while len(node.asked) < 8:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert len(node.asked) == 8
        assert node.hang is not None
        node.hang.set()
        assert set(await asyncio.gather(*asking)) == {42}


async def test_a_chain_that_reorganises_each_time_is_given_up_after_three() -> None:
    tries = 0

    async def read(at: Snapshot) -> None:
        nonlocal tries
        tries += 1
        raise BlockGone("gone")

    async with fake(FakeNode()) as (client, _):
        with pytest.raises(ChainUnavailable, match="keeps reorganising"):
            await read_pinned(client, read)
    assert tries == 3


@pytest.mark.parametrize(
    "url",
    ["http://node.example/", "ws://127.0.0.1/", "file:///etc/passwd", "https://", "http://127.0.0.1.evil.example/", ""],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidValue, match="rpc_url must be https"):
        ChainClient(url, chain_id=1, clock=ManualClock())
