"""A desktop MCP host and `grekko doctor`: every server starts on its own and answers over real MCP."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.hosting import call, open_client
from tests.e2e.desk_process import scratch_desk

EXAMPLE = Path(__file__).parents[2] / "claude_desktop_config.example.json"
PLACEHOLDER = "/ABSOLUTE/PATH/TO/grekko/.venv/bin/grekko"


def servers() -> dict[str, list[str]]:
    """Return the example's commands with this interpreter in place of the path a user fills in."""
    config: dict[str, Any] = json.loads(EXAMPLE.read_text())
    commands: dict[str, list[str]] = {}
    for name, server in config["mcpServers"].items():
        assert server["command"] == PLACEHOLDER
        commands[name] = [sys.executable, "-m", "grekko", *server["args"]]
    return commands


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_example_configuration_starts_four_servers_that_trade_together(mode: str) -> None:
    async with scratch_desk() as desk, AsyncExitStack() as stack:
        env = desk.environment()
        clients = {
            name: await stack.enter_async_context(open_client(command, mode=mode, env=env))
            for name, command in servers().items()
        }
        assert set(clients) == {"grekko-market", "grekko-risk", "grekko-execution", "grekko-wallet"}
        risk, execution = clients["grekko-risk"], clients["grekko-execution"]
        async with asyncio.timeout(30):
            while not (await call(risk, "risk_get_status"))["safe_to_trade"]:
                await asyncio.sleep(0.1)
        order = {"symbol": "BTC/USDT", "side": "buy", "type": "market", "amount": "100", "unit": "quote"}
        answer = await call(risk, "risk_request_approval", request_id="from-the-desktop", **order)
        (approval,) = answer["approvals"]
        receipt = await call(execution, "execution_submit_order", approval_id=approval["approval_id"])
        again = await call(execution, "execution_submit_order", approval_id=approval["approval_id"])
        assert receipt["state"] == "filled"
        assert again["order_id"] == receipt["order_id"]
        account = await call(execution, "execution_get_account")
        assert len(account["positions"]) == 1


@pytest.mark.timeout(120)
async def test_doctor_finds_every_part_in_order() -> None:
    async with scratch_desk() as desk:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "grekko",
            "doctor",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=desk.environment(),
        )
        output, _ = await process.communicate()
        assert not desk.home.path.exists(), "the desk itself is left alone"
    assert process.returncode == 0, output.decode()
    for part in ("python", "configuration", "redis", "market", "risk", "execution", "wallet", "coordinator"):
        assert part in output.decode()
