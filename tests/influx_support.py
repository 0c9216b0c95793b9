"""Servers that take InfluxDB line protocol: the real VictoriaMetrics, and a stub that can refuse."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, urlencode
from urllib.request import urlopen

from aiohttp import web

BINARY = Path("/usr/bin/victoria-metrics")


@contextmanager
def running_victoria_metrics() -> Generator[str]:
    """Start the server on a free port of this machine, in a directory of its own; yield its address."""
    assert BINARY.is_file(), "victoria-metrics is not installed: run make tools"
    with tempfile.TemporaryDirectory(prefix="vm-") as directory, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        process = subprocess.Popen(
            [
                str(BINARY),
                f"-httpListenAddr=127.0.0.1:{port}",
                f"-storageDataPath={directory}",
                "-retentionPeriod=100y",
                "-memory.allowedBytes=128MB",
                "-loggerLevel=ERROR",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(500):
                assert process.poll() is None, "victoria-metrics does not start"
                try:
                    with urlopen(f"{url}/health", timeout=1):
                        break
                except (URLError, OSError):
                    process_wait(process, 0.02)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def process_wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait a moment for a process that is expected to go on."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


async def exported(url: str, match: str) -> list[dict[str, Any]]:
    """Return every stored series of the server that matches, each with ``metric``, ``values`` and ``timestamps``."""

    def ask() -> bytes:
        with urlopen(f"{url}/internal/force_flush", timeout=10):
            pass
        with urlopen(f"{url}/api/v1/export?{urlencode({'match[]': match})}", timeout=10) as answer:
            return answer.read()

    return [json.loads(line) for line in (await asyncio.to_thread(ask)).splitlines()]


@dataclass(frozen=True)
class Point:
    """A point as a server of the protocol reads it."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, Any]
    time_ns: int


_FIELD = re.compile(r"(-?[0-9]+)i|(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)|(true|false)")


def parse_line(line: str) -> Point:
    """Return the point of one line of line protocol; raises ValueError for any other text."""
    head, fields, time_ns = re.split(r"(?<!\\) ", line)
    measurement, *tags = re.split(r"(?<!\\),", head)
    values: dict[str, Any] = {}
    for part in re.split(r"(?<!\\),", fields):
        name, _, text = part.partition("=")
        found = _FIELD.fullmatch(text)
        if not name or found is None:
            raise ValueError(f"unable to parse {line!r}")
        values[name] = int(found[1]) if found[1] else float(found[2]) if found[2] else found[3] == "true"

    def plain(text: str) -> str:
        return re.sub(r"\\(.)", r"\1", text)

    halves = (re.split(r"(?<!\\)=", tag) for tag in tags)
    named = {plain(name): plain(value) for name, value in halves}
    return Point(plain(measurement), named, values, int(time_ns))


@dataclass
class WriteStub:
    """A server that speaks v2 write.

    Attributes:
        answers: what to answer next, (status, headers) each; 204 when there is none left.
        gate: cleared while it does not answer.
    """

    url: str = ""
    points: list[Point] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, request: web.Request) -> web.Response:
        body = await request.read()  # unpacked by the server, as its header says
        asked = {key: values[0] for key, values in parse_qs(request.query_string).items()}
        self.requests.append({**asked, **{key.lower(): value for key, value in request.headers.items()}})
        await self.gate.wait()
        if self.answers:
            status, headers = self.answers.pop(0)
            return web.json_response({"code": "refused", "message": "refused"}, status=status, headers=headers)
        try:
            points = [parse_line(line) for line in _unpacked(body).decode().split("\n")]
        except ValueError as error:
            return web.json_response({"code": "invalid", "message": str(error)}, status=400)
        self.points += points
        self.batches.append(len(points))
        return web.Response(status=204)


def _unpacked(body: bytes) -> bytes:
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


@asynccontextmanager
async def write_stub(port: int = 0) -> AsyncGenerator[WriteStub]:
    """Serve a stub on this machine."""
    stub = WriteStub()
    stub.gate.set()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/api/v2/write", stub.write)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        assert site._server is not None
        sockets = site._server.sockets  # type: ignore[attr-defined]
        stub.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        yield stub
    finally:
        stub.gate.set()
        await runner.cleanup()
