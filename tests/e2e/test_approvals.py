"""A person's word on a running desk: nothing is sent without it, and with it the desk sends at once, exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from grekko.ledgers import open_ledgers, read_events
from grekko.supervisor import answers
from mcp_servers.hosting import call, open_client
from tests.e2e.desk_process import DeskProcess, scratch_desk, until
from tests.e2e.test_operator import grekko
from trading.domain.events import OrderInitialized

ORDER: dict[str, Any] = {"symbol": "BTC/USDT", "side": "buy", "type": "market", "unit": "quote"}
LIMITS = """
[risk.limits]
pending_ttl_ms = 30000

[risk.limits.agents.local]
authority = "human"
"""


async def ask(desk: DeskProcess, name: str, amount: str) -> str:
    """Ask as a model does and return the id of the question; nothing is approved by that."""
    async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
        answer = await call(risk, "risk_request_approval", request_id=name, amount=amount, reason="\x1b[2Jbuy", **ORDER)
    assert (answer["approved"], answer["denied"]) == (0, 0), answer
    (waiting,) = answer["pending_human"]
    assert "grekko approvals" in waiting["needs"]
    return str(waiting["pending_id"])


async def poll(desk: DeskProcess, pending_id: str) -> dict[str, Any]:
    async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
        return await call(risk, "risk_get_approval", approval_id=pending_id)


async def filled(desk: DeskProcess, pending_id: str) -> None:
    async def used() -> bool:
        return bool((await poll(desk, pending_id))["order_id"])

    await until(used, "the desk submitted it by itself", desk.tail)
    order_id = (await poll(desk, pending_id))["order_id"]

    async def done() -> bool:
        async with open_client(f"unix:{desk.home.socket('execution')}") as execution:
            order = await call(execution, "execution_get_order", id=order_id)
        return bool(order["order"]["state"] == "filled")

    await until(done, "the order filled", desk.tail)


@asynccontextmanager
async def asking_desk() -> AsyncGenerator[DeskProcess]:
    """Yield a running desk whose model named local needs the operator for every entry."""
    async with scratch_desk() as desk:
        assert (await grekko(desk, "init"))[0] == 0
        config = Path(desk.home.path) / "config.toml"
        text = await asyncio.to_thread(config.read_text)
        await asyncio.to_thread(config.write_text, text + LIMITS)
        await desk.start("--loop", "--speed", "1")
        await desk.wait_until_up()
        await until(lambda: may_trade(desk), "risk may trade", desk.tail)
        yield desk


async def may_trade(desk: DeskProcess) -> bool:
    if not await answers(desk.home.socket("risk")):
        return False
    async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
        return bool((await call(risk, "risk_get_status"))["safe_to_trade"])


async def sent_for_the_model(desk: DeskProcess) -> int:
    assert await desk.stop() == 0, desk.tail()
    async with open_ledgers(desk.settings) as ledgers:
        events = [e.payload async for e in read_events(ledgers.execution)]
    return len([e for e in events if isinstance(e, OrderInitialized) and e.agent_id == "local"])


@pytest.mark.timeout(120)
async def test_desk_sends_what_the_person_approves_and_nothing_else() -> None:
    async with asking_desk() as desk:
        good, bad = await ask(desk, "good", "50"), await ask(desk, "bad", "60")
        code, page = await grekko(desk, "approvals", "list")
        assert (code, good in page, bad in page) == (0, True, True), page
        code, page = await grekko(desk, "approvals", "show", good)
        assert "needs the operator's word" in page
        assert "POSITION_MAX" in page
        assert "not checked by anybody: ' [2Jbuy'" in page
        assert "\x1b" not in page

        code, page = await grekko(desk, "approvals", "approve", good, "--reason", "fine")
        assert (code, page.startswith("approved: ")) == (0, True), page
        await filled(desk, good)
        code, page = await grekko(desk, "approvals", "approve", good, "--reason", "again")
        assert (code, page.startswith("approved: ")) == (0, True), page
        code, page = await grekko(desk, "approvals", "refuse", bad, "--reason", "too much")
        assert (code, page) == (0, "refused: too much\n")
        code, page = await grekko(desk, "approvals", "approve", bad, "--reason", "after all")
        assert (code, "PENDING_REFUSED" in page) == (1, True), page
        assert (await poll(desk, bad))["state"] == "refused"
        assert await sent_for_the_model(desk) == 1


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_question_outlives_a_killed_risk_and_time_ends_it() -> None:
    async with asking_desk() as desk:
        forgotten, survivor = await ask(desk, "forgotten", "40"), await ask(desk, "survivor", "70")
        before = desk.pid("risk")
        assert before is not None
        os.kill(before, signal.SIGKILL)

        async def again() -> bool:
            return desk.pid("risk") not in (None, before) and await may_trade(desk)

        await until(again, "risk was started again and may trade", desk.tail)
        code, page = await grekko(desk, "approvals", "approve", survivor, "--reason", "still fine")
        assert (code, page.startswith("approved: ")) == (0, True), page
        await filled(desk, survivor)

        async def expired() -> bool:
            return bool((await poll(desk, forgotten))["state"] == "expired")

        await until(expired, "the other question expired", desk.tail)
        code, page = await grekko(desk, "approvals", "approve", forgotten, "--reason", "too late")
        assert (code, "PENDING_EXPIRED" in page) == (1, True), page
        assert await sent_for_the_model(desk) == 1
