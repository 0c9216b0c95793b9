"""The limits of a running desk: a file tightens them, only the operator's signature loosens them, a restart neither."""

from __future__ import annotations

from typing import Any

import pytest

from grekko.limits import read_history
from mcp_servers.hosting import ToolFailure, call, open_client
from tests.e2e.desk_process import DeskProcess, scratch_desk, until
from tests.e2e.test_operator import grekko

PATH = "symbols.BTC/USDT.order_notional_max"


async def ask(desk: DeskProcess, name: str, quote: str) -> dict[str, Any]:
    """Ask risk for a purchase of so much quote, as a person at the desk does."""
    order = {"symbol": "BTC/USDT", "side": "buy", "type": "market", "amount": quote, "unit": "quote"}
    async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
        return await call(risk, "risk_request_approval", request_id=name, **order)


async def limits(desk: DeskProcess) -> dict[str, Any]:
    async with open_client(f"unix:{desk.home.socket('risk')}") as risk:
        return await call(risk, "risk_get_limits")


def failed(answer: dict[str, Any]) -> list[str]:
    return [failure["rule"] for denial in answer["denials"] for failure in denial["failures"]]


@pytest.mark.timeout(180)
async def test_limits_tighten_from_a_file_and_loosen_only_by_signature() -> None:
    async with scratch_desk() as desk:
        await desk.start("--loop", "--speed", "2")
        await desk.wait_until_up()

        async def approved() -> dict[str, Any] | None:
            answer = await ask(desk, f"first-{len(answers)}", "500")
            answers.append(answer)
            return answer if answer["approved"] else None

        async def version(number: int) -> bool:
            return (await limits(desk))["version"] == number

        answers: list[dict[str, Any]] = []
        await until(approved, "risk approves", desk.tail)
        assert (await limits(desk))["version"] == 1

        code, text = await grekko(desk, "limits", "set", f"{PATH}=100")
        assert (code, "it takes effect within a second" in text) == (0, True), text
        await until(lambda: version(2), "the tighter file is in force", desk.tail)
        async with open_client(f"unix:{desk.home.socket('execution')}") as execution:
            with pytest.raises(ToolFailure) as refused:
                await call(execution, "execution_submit_order", approval_id=answers[-1]["approval_ids"][0])
        assert refused.value.code == "GATE_POLICY_VERSION"
        assert "ORDER_NOTIONAL_MAX" in failed(await ask(desk, "too-large", "500"))
        assert "ORDER_NOTIONAL_MAX" not in failed(await ask(desk, "small", "50"))

        code, text = await grekko(desk, "limits", "set", f"{PATH}=900")
        assert (code, "nothing of it takes effect before" in text) == (0, True), text

        async def waiting() -> bool:
            return "waits for the operator's signature" in (await limits(desk))["note"]

        await until(waiting, "the looser file waits", desk.tail)
        assert (await limits(desk))["version"] == 2
        assert "ORDER_NOTIONAL_MAX" in failed(await ask(desk, "still-too-large", "500"))

        code, text = await grekko(desk, "limits", "sign", "--yes", "--reason", "a larger account")
        assert (code, "limits version 3 are in force" in text) == (0, True), text
        assert "ORDER_NOTIONAL_MAX" not in failed(await ask(desk, "allowed-again", "500"))
        assert ((await limits(desk))["version"], (await limits(desk))["note"]) == (3, "")
        assert await desk.stop() == 0, desk.tail()

        code, text = await grekko(desk, "limits", "set", f"{PATH}=5000")
        assert (code, "needs the operator's signature" in text) == (0, True), text
        await desk.start("--loop", "--speed", "2")
        await desk.wait_until_up()
        await until(waiting, "what was loosened in between waits", desk.tail)
        assert (await limits(desk))["version"] == 3
        assert await desk.stop() == 0, desk.tail()  # only if the audit holds
        versions = await read_history(desk.settings)
    assert [(item.version, item.by.partition(":")[0]) for item in versions] == [
        (1, "start"),
        (2, "file"),
        (3, "operator"),
    ]
    assert versions[-1].reason == "a larger account"
