"""Alerts: the breaker acts first; whoever is told may hang, fail or be away and holds up nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import orjson
import pytest
from pydantic import ValidationError

from mcp_servers.risk.alerts import Alerts
from mcp_servers.risk.settings import RiskSettings
from tests.bus_support import eventually
from tests.risk_support import Desk, open_desk
from trading.adapters.bounded_http import BoundedHttp
from trading.domain.approvals import TradingState


class Hook:
    """A loopback server that answers as told and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []  # None hangs; afterwards 204
        self.bodies: list[bytes] = []
        self.asked = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                )
                body = await reader.readexactly(length)
                self.asked += 1
                answer = self.answers.pop(0) if self.answers else b"204 No Content"
                if answer is None:
                    await reader.read()  # until the client gives up
                    break
                if answer.startswith(b"2"):
                    self.bodies.append(body)
                writer.write(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        writer.close()


@asynccontextmanager
async def hooked(desk: Desk, *answers: bytes | None) -> AsyncGenerator[tuple[Hook, Alerts]]:
    hook = Hook()
    hook.answers = list(answers)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?key=secret"
    http = BoundedHttp(max_bytes=1_000, timeout_s=0.2, connections=1)
    alerts = Alerts(
        hook.url, desk.clock, desk="desk", account_id=desk.parts.account_id, http=http, pauses_s=(0.01, 0.01)
    )
    desk.risk.live.breaker._told = alerts.tell
    task = asyncio.create_task(alerts.run())
    try:
        yield hook, alerts
    finally:
        task.cancel()
        await asyncio.wait([task])
        server.close()


async def test_a_trip_and_a_resume_are_told_in_order_with_scope_reason_and_epoch() -> None:
    desk = await open_desk()
    async with hooked(desk) as (hook, alerts):
        breaker = desk.risk.live.breaker
        first = await breaker.trip("too wide", "policy", TradingState.REDUCING, scope="symbol:BTC/USDT", alarm="X")
        await breaker.reset("calm again", "operator:ann", scope="symbol:BTC/USDT")
        await eventually(lambda: alerts.sent == 2)
    told = [orjson.loads(body) for body in hook.bodies]
    assert [(each["scope"], each["state"], each["reason"], each["by"], each["alarm"]) for each in told] == [
        ("symbol:BTC/USDT", "reducing", "too wide", "policy", "X"),
        ("symbol:BTC/USDT", "active", "calm again", "operator:ann", ""),
    ]
    assert told[0]["epoch"] == list(first.epoch)
    assert told[0]["desk"] == "desk"


async def test_a_server_that_hangs_holds_up_no_trip_and_is_asked_again() -> None:
    desk = await open_desk()
    async with hooked(desk, None, b"500 No") as (hook, alerts):
        async with asyncio.timeout(0.15):  # shorter than the client's patience
            for number in range(5):
                assert (await desk.risk.live.breaker.trip("x", "y", scope=f"agent:a{number}")).durable
        await eventually(lambda: alerts.sent == 5)
        assert hook.asked == 7
        assert alerts.failed == 0


async def test_a_server_that_never_answers_is_given_up_and_its_address_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    desk = await open_desk()
    async with hooked(desk, b"500 No", b"500 No", b"500 No") as (hook, alerts):
        await desk.risk.trip("x", "y")
        await eventually(lambda: alerts.failed == 1)
        await desk.risk.live.breaker.trip("x", "y", scope="agent:a")
        await eventually(lambda: alerts.sent == 1)
        assert hook.asked == 4
    assert "secret" not in caplog.text
    assert "desk is halted by y: x" in caplog.text


async def test_a_flood_of_changes_keeps_the_newest() -> None:
    desk = await open_desk()
    alerts = Alerts("http://127.0.0.1:9/", desk.clock, desk="desk", account_id=desk.parts.account_id)
    desk.risk.live.breaker._told = alerts.tell
    for number in range(50):
        await desk.risk.live.breaker.trip(f"{number}", "y", scope="agent:a")
        await desk.risk.live.breaker.reset(f"{number}", "y", scope="agent:a")
    assert alerts.failed == 100 - 64


@pytest.mark.parametrize("url", ["http://example.com/x", "ftp://example.com", "https://", "file:///etc/passwd"])
def test_only_https_or_this_machine_is_told(url: str) -> None:
    with pytest.raises(ValidationError):
        RiskSettings(notify_url=url)
    assert RiskSettings(notify_url="https://example.com/hook?key=s").notify_url
    assert "example" not in repr(RiskSettings(notify_url="https://example.com/hook?key=s"))
