"""Reach a server in every way a client can: four transports times both protocol eras.

For the tests of every room::

    from tests.mcp_harness import WAYS, Way, check_conventions, reach

    @pytest.mark.parametrize("way", WAYS, ids=str)
    async def test_status_answers_in_every_way(way: Way, tmp_path: Path) -> None:
        home = {"GREKKO_HOME": str(tmp_path)}
        async with reach(way, build, room="risk", command=room_command("risk"), env=home) as client:
            assert (await call(client, "risk_get_status"))["safe_to_trade"] is True

    async def test_the_schemas_fit_the_budget() -> None:
        async with open_client(build()) as client:
            await check_conventions(client, "risk")

``memory``, ``http`` and ``unix`` run ``build()`` in the test's own event loop, with real sockets and a real stop;
``stdio`` starts ``command`` as a process (1-2 s), so a room's cheap tests take ``QUICK_WAYS`` and one test takes all
of ``WAYS``. A different server per call: do not share ``build()``'s result between ways.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp import Client
from pydantic import SecretStr

from mcp_servers.hosting import DeskServer, open_client, serve_http, serve_socket

ROOT: Final = Path(__file__).resolve().parent.parent
#: Budgets of one server in tokens, estimated as a quarter of the characters of compact JSON.
INPUT_TOKENS: Final = 3_000
OUTPUT_TOKENS: Final = 5_000


@dataclass(frozen=True)
class Way:
    """One transport in one era."""

    transport: str
    era: str

    def __str__(self) -> str:
        return f"{self.transport}-{self.era}"


WAYS: Final = [Way(transport, era) for transport in ("memory", "stdio", "http", "unix") for era in ("auto", "legacy")]
QUICK_WAYS: Final = [way for way in WAYS if way.transport != "stdio"]


def room_command(room: str) -> list[str]:
    """Return the command line that serves a room on standard input and output."""
    return [sys.executable, "-m", f"mcp_servers.{room}"]


@asynccontextmanager
async def reach(
    way: Way,
    build: Callable[[], DeskServer[Any]],
    *,
    room: str,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    token: SecretStr | None = None,
    read_timeout_s: float = 20.0,
) -> AsyncGenerator[Client]:
    """Run a server and yield a client that is connected to it.

    Args:
        way: how.
        build: makes the server; not called for ``stdio``.
        room: its name.
        command: what ``stdio`` starts, from the root of the repository.
        env: variables for ``command``.
        token: bearer token for ``http``.
        read_timeout_s: how long the client waits for an answer.
    """
    if way.transport == "memory":
        async with open_client(build(), way.era, read_timeout_s=read_timeout_s) as client:
            yield client
    elif way.transport == "stdio":
        variables = {"PYTHONPATH": str(ROOT), **(env or {})}
        async with open_client(command, way.era, env=variables, read_timeout_s=read_timeout_s) as client:
            yield client
    else:
        async with (
            listening(build(), room=room, transport=way.transport) as target,
            open_client(target, way.era, token=token, read_timeout_s=read_timeout_s) as client,
        ):
            yield client


@asynccontextmanager
async def listening(server: DeskServer[Any], *, room: str, transport: str) -> AsyncGenerator[str]:
    """Serve ``http`` (on a free loopback port) or ``unix`` in this event loop and yield the client's target."""
    stop = asyncio.Event()
    target: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory() as directory:  # short: a socket's path is bounded
        if transport == "http":
            run = serve_http(server, "127.0.0.1:0", room, stop, target.set_result)
        else:
            run = serve_socket(server, Path(directory) / f"{room}.sock", room, stop, target.set_result)
        task = asyncio.create_task(run)
        try:
            await asyncio.wait({task, target}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()  # raises why it could not start
            yield target.result()
        finally:
            stop.set()
            await task


async def check_conventions(client: Client, prefix: str) -> None:
    """Assert what every server promises about its tools: names, titles, hints, closed schemas, the token budgets.

    Args:
        client: connected to the server.
        prefix: what every tool's name starts with, without the underscore.
    """
    tools = (await client.list_tools()).tools
    assert tools
    for item in tools:
        hints = item.annotations
        assert item.name.startswith(f"{prefix}_"), item.name
        assert item.title, item.name
        assert item.description, item.name
        assert len(item.description.split(".")[0].split()) <= 20, f"{item.name}: first sentence over 20 words"
        assert hints is not None
        assert None not in (
            hints.read_only_hint,
            hints.destructive_hint,
            hints.idempotent_hint,
            hints.open_world_hint,
        ), item.name
        assert item.input_schema["additionalProperties"] is False, item.name
        assert item.output_schema is not None
        assert set(item.output_schema["properties"]) == {"ok", "data", "meta"}, item.name
    spent_in = sum(_tokens([item.name, item.description, item.input_schema]) for item in tools)
    spent_out = sum(_tokens(item.output_schema) for item in tools)
    assert spent_in <= INPUT_TOKENS, f"{prefix}: names, descriptions and arguments take {spent_in} tokens"
    assert spent_out <= OUTPUT_TOKENS, f"{prefix}: output schemas take {spent_out} tokens"


def _tokens(node: object) -> int:
    return len(json.dumps(node, separators=(",", ":"))) // 4
