"""The operator's hand on a running desk: halt stops new risk at once, only a signed resume allows it again."""

from __future__ import annotations

import asyncio
import sys

import pytest

from grekko.ledgers import open_ledgers, read_events
from mcp_servers.hosting import call, open_client
from tests.e2e.desk_process import DeskProcess, scratch_desk, until
from trading.domain.approvals import Approval, Effect
from trading.domain.events import BreakerReset, BreakerTripped, RiskApproved


async def grekko(desk: DeskProcess, *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "grekko",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=desk.environment(),
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def approvals(desk: DeskProcess) -> int:
    async with open_ledgers(desk.settings) as ledgers:
        return sum([1 async for event in read_events(ledgers.risk) if isinstance(event.payload, RiskApproved)])


@pytest.mark.timeout(120)
async def test_a_halt_stops_new_risk_and_only_a_signed_resume_ends_it() -> None:
    async with scratch_desk() as desk:
        await desk.start("--loop", "--speed", "2")
        await desk.wait_until_up()
        await until(lambda: approvals(desk), "something was approved", desk.tail)

        code, text = await grekko(desk, "halt", "--reason", "testing the brake")
        assert (code, text.startswith("trading is halted, epoch 1.")) == (0, True), text
        code, text = await grekko(desk, "status")
        assert code == 1
        assert "breaker halted" in text
        async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
            order = {"symbol": "BTC/USDT", "side": "buy", "type": "market", "amount": "50", "unit": "quote"}
            answer = await call(risk, "risk_request_approval", request_id="while-halted", **order)
            tools = {tool.name for tool in (await risk.list_tools()).tools}
        assert answer["approved"] == 0
        assert "TRADING_STATE" in [failure["rule"] for failure in answer["denials"][0]["failures"]]
        assert not [name for name in tools if "reset" in name or "resume" in name]

        before = await approvals(desk)
        assert (await grekko(desk, "resume", "--reason", "it works"))[0] == 0

        async def more() -> bool:
            return await approvals(desk) > before

        await until(more, "something is approved again", desk.tail)
        assert await desk.stop() == 0, desk.tail()
        async with open_ledgers(desk.settings) as ledgers:
            events = [event async for event in read_events(ledgers.risk)]
    tripped = next(e.seq for e in events if isinstance(e.payload, BreakerTripped))
    resumed = next(e.seq for e in events if isinstance(e.payload, BreakerReset) and e.seq > tripped)
    while_halted = [
        e.payload.approval for e in events if tripped < e.seq < resumed and isinstance(e.payload, RiskApproved)
    ]
    assert all(approval.effect is Effect.REDUCE for approval in while_halted)


async def approved(desk: DeskProcess) -> list[tuple[int, Approval]]:
    async with open_ledgers(desk.settings) as ledgers:
        return [
            (event.seq, event.payload.approval)
            async for event in read_events(ledgers.risk)
            if isinstance(event.payload, RiskApproved)
        ]


@pytest.mark.timeout(180)
async def test_one_agent_is_halted_survives_a_restart_of_the_desk_and_is_resumed_by_name() -> None:
    async with scratch_desk() as desk:
        await desk.start("--loop", "--speed", "2")
        await desk.wait_until_up()
        await until(lambda: approvals(desk), "something was approved", desk.tail)
        agent = (await approved(desk))[0][1].agent_id
        scope = f"agent:{agent}"

        code, text = await grekko(desk, "halt", "--scope", "agent:nobody-of-ours", "--reason", "a typo")
        assert code == 1
        assert "UNKNOWN_SCOPE" in text or "this desk has no" in text
        code, text = await grekko(desk, "halt", "--scope", scope)
        assert (code, text.startswith(f"{scope} is halted")) == (0, True), text
        code, text = await grekko(desk, "status")
        assert f"{scope} halted: halted by hand" in text
        assert "breaker active" in text

        assert await desk.stop() == 0, desk.tail()
        code, text = await grekko(desk, "halt", "--reason", "nothing runs")
        assert code == 1
        assert "risk is not running" in text
        await desk.start("--loop", "--speed", "2")
        await desk.wait_until_up()
        code, text = await grekko(desk, "resume", "--scope", scope, "--reason", "  ")
        assert code == 1
        assert f"{scope} halted" in (await grekko(desk, "status"))[1]
        others = len(await approved(desk))
        code, text = await grekko(desk, "resume", "--scope", scope, "--reason", "it was a test")
        assert (code, text.startswith(f"{scope} is active")) == (0, True), text
        assert f"{scope} halted" not in (await grekko(desk, "status"))[1]

        async def trades_again() -> bool:
            return any(each.agent_id == agent for _, each in (await approved(desk))[others:])

        await until(trades_again, f"{agent} is approved again", desk.tail)
        assert await desk.stop() == 0, desk.tail()
        found = await approved(desk)
        async with open_ledgers(desk.settings) as ledgers:
            events = [event async for event in read_events(ledgers.risk)]
    of_scope = [e for e in events if getattr(e.payload, "scope", "") == scope]
    assert [type(e.payload) for e in of_scope] == [BreakerTripped, BreakerReset]
    tripped, resumed = (e.seq for e in of_scope)
    halted = [each for seq, each in found if tripped < seq < resumed and each.agent_id == agent]
    assert all(each.effect is Effect.REDUCE for each in halted)
    assert not [e for e in events if isinstance(e.payload, BreakerTripped) and e.payload.by == "policy"]
