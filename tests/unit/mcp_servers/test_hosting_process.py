"""A room as a process: standard streams, sockets, addresses, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from mcp_servers.hosting import call, open_client, serve_http, serve_socket
from mcp_servers.serving import parse_address
from tests.hosting_sample import build
from tests.mcp_harness import ROOT, listening
from trading.domain.errors import ConfigurationError

COMMAND = [sys.executable, "-m", "tests.hosting_sample"]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:  # short enough for a socket
        yield Path(path)


@asynccontextmanager
async def process(*arguments: str, **variables: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def _until(started: asyncio.subprocess.Process, text: bytes) -> str:
    """Return the line of standard error that has ``text`` in it."""
    assert started.stderr is not None
    async with asyncio.timeout(20):
        while text not in (line := await started.stderr.readline()):
            assert line, "the process ended"
    return line.decode()


async def test_standard_output_carries_the_protocol_alone(directory: Path) -> None:
    trace = directory / "trace"
    requests = [
        {"method": "initialize", "id": 1, "params": _hello()},
        {"method": "notifications/initialized"},
        {"method": "tools/call", "id": 2, "params": {"name": "sample_fail_somehow", "arguments": {"how": "crash"}}},
        {"method": "tools/call", "id": 3, "params": {"name": "sample_echo_arguments", "arguments": {"amount": "2"}}},
    ]
    async with process(GREKKO_SAMPLE_TRACE=str(trace)) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        lines: list[dict[str, object]] = []
        async with asyncio.timeout(20):
            for request in requests:
                started.stdin.write(json.dumps({"jsonrpc": "2.0", **request}).encode() + b"\n")
                if "id" in request:
                    lines.append(json.loads(await started.stdout.readline()))
            started.stdin.close()
            rest, errors = await started.communicate()
    assert [line["id"] for line in lines] == [1, 2, 3]
    assert rest == b""
    assert b"stray output" in errors  # what a tool prints goes to standard error
    assert b"hunter2" in errors  # and so do the details of a crash
    assert started.returncode == 0
    assert trace.read_text().split() == ["up", "down"]


@pytest.mark.parametrize(
    ("transport", "number"),
    [("stdio", signal.SIGTERM), ("stdio", signal.SIGINT), ("http", signal.SIGINT), ("socket", signal.SIGTERM)],
)
async def test_a_stop_signal_ends_the_lifespan_and_then_the_process(
    transport: str, number: signal.Signals, directory: Path
) -> None:
    trace, path = directory / "trace", directory / "s.sock"
    options = {"stdio": (), "http": ("--http", "127.0.0.1:0"), "socket": ("--socket", str(path))}[transport]
    async with process(*options, GREKKO_SAMPLE_TRACE=str(trace)) as started:
        if transport == "stdio":
            assert started.stdin is not None
            assert started.stdout is not None
            started.stdin.write(
                json.dumps({"jsonrpc": "2.0", "method": "initialize", "id": 1, "params": _hello()}).encode() + b"\n"
            )
            async with asyncio.timeout(20):
                await started.stdout.readline()
            started.send_signal(number)  # with standard input still open
        else:
            line = await _until(started, b"listens on")
            target = f"unix:{path}" if transport == "socket" else line.split()[-4]
            async with open_client(target, "legacy") as client:  # a session holds an event stream open
                await call(client, "sample_echo_arguments", amount="1")
                started.send_signal(number)
                async with asyncio.timeout(15):
                    await started.wait()
        async with asyncio.timeout(15):
            assert await started.wait() == 0
    assert trace.read_text().split() == ["up", "down"]
    assert not path.exists()


async def test_a_socket_is_private_and_a_leftover_is_replaced_only_when_dead(directory: Path) -> None:
    path = directory / "room.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    stop = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(serve_socket(build(), path, "sample", stop, ready.set_result))
    target = await ready
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="already listens"):
        await serve_socket(build(), path, "sample", stop)
    async with open_client(target) as client:  # the second one did not take it away
        await call(client, "sample_echo_arguments", amount="1")
    stop.set()
    await first
    assert not path.exists()


async def test_a_file_in_the_way_of_a_socket_is_left_alone(directory: Path) -> None:
    path = directory / "room.sock"
    path.write_text("precious", encoding="ascii")
    with pytest.raises(ConfigurationError, match="is not a socket"):
        await serve_socket(build(), path, "sample", asyncio.Event())
    assert path.read_text(encoding="ascii") == "precious"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:{port}"}, 421),
        ({"host": "127.0.0.1:1"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://localhost:{port}"}, 200),
        ({}, 200),
    ],
)
async def test_a_request_with_a_forged_host_or_origin_is_refused(headers: dict[str, str], status: int) -> None:
    async with listening(build(), room="sample", transport="http") as target:
        port = target.split(":")[2].split("/")[0]
        sent = {name: value.format(port=port) for name, value in headers.items()}
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.post(
                target,
                json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": _hello()},
                headers={"accept": "application/json, text/event-stream", **sent},
            )
    assert answer.status_code == status


async def test_a_web_page_cannot_use_the_socket(directory: Path) -> None:
    async with listening(build(), room="sample", transport="unix") as target:
        transport = httpx2.AsyncHTTPTransport(uds=target.removeprefix("unix:"))
        async with httpx2.AsyncClient(transport=transport) as http:
            answer = await http.post("http://localhost/mcp", json={}, headers={"origin": "http://localhost"})
            health = await http.get("http://localhost/health")
    assert answer.status_code == 403
    assert health.json() == {"ok": True, "server": "sample", "mode": "paper", "pid": os.getpid()}


async def test_an_address_that_is_taken_refuses_to_start() -> None:
    async with listening(build(), room="sample", transport="http") as target:
        address = target.removeprefix("http://").removesuffix("/mcp")
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await serve_http(build(), address, "sample", asyncio.Event())


@pytest.mark.parametrize("text", ["", "8000", ":8000", "host:", "host:x", "host:99999", "host:٣"])
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


def test_addresses_of_both_families_are_read() -> None:
    assert parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_address("[::1]:80") == ("::1", 80)


@pytest.mark.parametrize(
    ("config", "arguments", "told"),
    [
        ("[wallet]\nprivate_key = 'sk-1'\n", (), b"private_key"),
        ("mode = 'testnet'\n", ("--http", "127.0.0.1:0"), b"without checking tokens"),
    ],
)
async def test_a_configuration_that_refuses_to_start_is_named_and_exits_with_78(
    config: str, arguments: tuple[str, ...], told: bytes, directory: Path
) -> None:
    (directory / "config.toml").write_text(config, encoding="ascii")
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_servers.wallet", *arguments),
        cwd=ROOT,
        env={**os.environ, "GREKKO_HOME": str(directory)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, errors = await started.communicate()
    assert started.returncode == 78
    assert out == b""
    assert told in errors
    assert b"sk-1" not in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize("transport", ["stdio", "http", "socket"])
async def test_a_room_that_cannot_open_says_why_and_exits_though_its_input_stays_open(
    transport: str, directory: Path
) -> None:
    socket_path = str(directory / "s.sock")
    options = {"stdio": (), "http": ("--http", "127.0.0.1:0"), "socket": ("--socket", socket_path)}[transport]
    async with process(*options, GREKKO_SAMPLE_REFUSES="1") as started:
        line = await _until(started, b"will not start")
        async with asyncio.timeout(10):
            assert await started.wait() == 78
    assert "another process holds the lock (LOCKED)" in line


def _hello() -> dict[str, object]:
    return {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
