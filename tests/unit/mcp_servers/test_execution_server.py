"""The execution tools through a real MCP client, in both eras."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest

from mcp_servers.execution.bootstrap import ExecutionRoom
from mcp_servers.execution.server import register
from mcp_servers.hosting import DeskServer, ToolFailure, build_server, call, call_reply, open_client
from tests.execution_support import Desk
from tests.mcp_harness import QUICK_WAYS, Way, check_conventions, reach
from tests.protection_support import GuardedDesk
from trading.adapters.config import DeskSettings
from trading.domain.proposals import Mode
from trading.testing.venue import Fault, Operation

D = Decimal
BOTH = [Way("memory", "auto"), Way("memory", "legacy")]


def _server(desk: Desk, *, started: bool = True) -> DeskServer[ExecutionRoom]:
    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[ExecutionRoom]:
        room = ExecutionRoom(DeskSettings())
        if started:
            room.open(desk.service)
        yield room

    server: DeskServer[ExecutionRoom] = build_server(
        "grekko-execution", title="Execution", instructions="test", lifespan=lifespan, mode=Mode.PAPER
    )
    register(server)
    return server


async def test_the_tools_keep_the_conventions_and_the_budget() -> None:
    desk = await Desk().start()
    async with open_client(_server(desk)) as client:
        await check_conventions(client, "execution")
        assert len((await client.list_tools()).tools) == 13


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_every_tool_answers_in_every_way(way: Way) -> None:
    desk = await Desk().start()
    async with reach(way, lambda: _server(desk), room="execution") as client:
        route = await call(
            client,
            "execution_plan_route",
            symbol="BTC/USDT",
            side="buy",
            type="market",
            amount="6000.10",
            unit="quote",
        )
        child = route["orders"][0]
        assert (child["amount"], child["unit"], child["venue"], child["expected_price"]) == (
            "0.1",
            "base",
            "paper",
            "60001",
        )
        assert (child["fee"], child["fills_now"]) == ("6.0001", "0.1")

        approval_id = await desk.issue(quantity="0.1")
        receipt = await call(client, "execution_submit_order", approval_id=approval_id)
        assert (receipt["state"], receipt["filled"], receipt["average_price"]) == ("filled", "0.1", "60001")
        again = await call(client, "execution_submit_order", approval_id=approval_id)
        assert again == receipt

        batch = await call(
            client, "execution_submit_orders", approval_ids=[await desk.issue(), "nobody", await desk.issue()]
        )
        assert (batch["submitted"], batch["refused"], batch["states"]) == (2, 1, {"filled": 2})
        assert batch["failures"][0]["code"] == "GATE_NOT_FOUND"

        detail = await call(client, "execution_get_order", id=approval_id)
        assert detail["order"]["order_id"] == receipt["order_id"]
        assert [(fill["quantity"], fill["price"]) for fill in detail["fills"]] == [("0.1", "60001")]

        resting = await desk.resting()
        listed = await call(client, "execution_list_orders", state="open", symbol="BTC/USDT", since="1h")
        assert [row["order_id"] for row in listed["orders"]] == [resting.order_id]
        canceled = await call(client, "execution_cancel_order", id=resting.order_id)
        assert canceled["state"] == "canceled"

        second = await desk.resting()
        everything = await call(client, "execution_cancel_all", scope="BTC/USDT")
        assert everything == {"canceled": [second.order_id], "kept": [], "remaining": [], "foreign": []}

        account = await call(client, "execution_get_account", account="paper-main")
        assert account["positions"][0]["quantity"] == "0.12"
        assert {row["currency"] for row in account["balances"]} == {"BTC", "USDT"}
        fees = (await call(client, "execution_get_fees"))["fees"][0]
        assert (fees["maker"], fees["taker"], fees["paid"]) == ("0.001", "0.001", "0.001")
        assert "binance" in fees["source"]

        assert (await call(client, "execution_reconcile"))["clean"] is True
        metrics = await call(client, "execution_get_metrics")
        assert {row["stage"] for row in metrics["stages"]} >= {"gate", "claim", "total"}
        assert metrics["outcomes"]["order_filled"] == 3
        reply = await call_reply(client, "execution_get_status")
        assert reply["data"]["safe_to_trade"] is True, reply["data"]["reasons"]
        assert (reply["meta"]["mode"], reply["meta"]["venue"]) == ("paper", "paper")


@pytest.mark.parametrize("way", BOTH, ids=str)
async def test_a_refusal_is_a_tool_error_with_its_code(way: Way) -> None:
    desk = await Desk().start()
    async with reach(way, lambda: _server(desk), room="execution") as client:
        with pytest.raises(ToolFailure) as late:
            await call(client, "execution_submit_order", approval_id=await desk.issue(ttl_ms=0))
        assert (late.value.code, late.value.retryable) == ("GATE_EXPIRED", "no")
        desk.prices.current = None
        with pytest.raises(ToolFailure) as stale:
            await call(client, "execution_submit_order", approval_id=await desk.issue())
        assert (stale.value.code, stale.value.retryable) == ("GATE_PRICE_STALE", "after_ms")


async def test_an_unknown_outcome_says_what_to_do() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.LOSE_ANSWER)
    async with open_client(_server(desk)) as client:
        receipt = await call(client, "execution_submit_order", approval_id=await desk.issue())
        assert receipt["state"] == "unknown"
        assert "execution_reconcile" in receipt["next"]
        status = await call(client, "execution_get_status")
        assert (status["safe_to_trade"], status["unresolved"]) == (False, [receipt["order_id"]])


async def test_an_exit_is_kept_and_says_why() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    order = await desk.order(await desk.exit())
    async with open_client(_server(desk)) as client:
        with pytest.raises(ToolFailure) as refused:
            await call(client, "execution_cancel_order", id=order.order_id)
        assert refused.value.code == "CANCEL_NEEDS_APPROVAL"
        everything = await call(client, "execution_cancel_all")
        assert [row["order_id"] for row in everything["kept"]] == [order.order_id]
        account = await call(client, "execution_get_account")
        assert account["positions"][0]["protected"] == "0.5"


async def test_the_stop_of_a_position_is_shown_and_only_ever_tightened() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long("0.5")
    async with open_client(_server(desk)) as client:
        account = await call(client, "execution_get_account")
        assert account["positions"][0]["stop"] == {
            "price": "57000.95",
            "kind": "fixed",
            "at": "venue",
            "size": "0.5",
            "until_ms": None,
        }
        tightened = await call(client, "execution_set_stop", symbol="BTC/USDT", stop_price="59000", hold_max_s=3600)
        assert (tightened["price"], tightened["kind"]) == ("59000", "agent")
        assert tightened["until_ms"] == desk.clock.now_ms() + 3_600_000
        for looser, present in (
            ({"stop_price": "58000"}, "59000"),
            ({"hold_max_s": 7200}, "3600 s from the entry"),
        ):
            with pytest.raises(ToolFailure) as refused:
                await call(client, "execution_set_stop", symbol="BTC/USDT", **looser)
            assert refused.value.code == "PROTECTION_LOOSENED"
            assert present in str(refused.value)
            assert refused.value.allowed == (present.partition(" ")[0],)  # can be asked for as it stands
        trailing = await call(client, "execution_set_stop", symbol="BTC/USDT", trailing_bps="50")
        assert trailing["price"] == "59700"
        again = await call(client, "execution_set_stop", symbol="BTC/USDT", trailing_bps="50", stop_price="59700")
        assert again == trailing
        for arguments, code in (
            ({"stop_price": "60000"}, "PROTECTION_WOULD_TRIGGER"),
            ({"stop_price": "59800.001"}, "PRICE_TICK"),
            ({}, "NOTHING_ASKED"),
            ({"trailing_bps": "60"}, "PROTECTION_LOOSENED"),
        ):
            with pytest.raises(ToolFailure) as wrong:
                await call(client, "execution_set_stop", symbol="BTC/USDT", **arguments)
            assert wrong.value.code == code
        with pytest.raises(ToolFailure) as flat:
            await call(client, "execution_set_stop", symbol="ETH/USDT", stop_price="10")
        assert (flat.value.code, "ETH/USDT" in str(flat.value)) == ("NO_POSITION", True)
    await desk.restart()
    assert desk.stop == D(59_700)


async def test_an_unprotected_position_makes_the_desk_unsafe() -> None:
    desk = await GuardedDesk().start()
    desk.life_ms = 60_000
    await desk.long("0.5")
    async with open_client(_server(desk)) as client:
        assert (await call(client, "execution_get_status"))["safe_to_trade"] is True
        desk.clock.advance(60_000)
        desk.refresh()
        await desk.beat()
        await desk.look()
        status = await call(client, "execution_get_status")
        assert status["safe_to_trade"] is False
        assert [each for each in status["reasons"] if each.startswith("PROTECTION_MISSING BTC/USDT")]
        account = await call(client, "execution_get_account")
        assert account["positions"][0]["stop"]["at"] == "none"


async def test_a_full_batch_fits_the_reply_and_continues_by_cursor() -> None:
    desk = await Desk(answer_timeout_s=5.0).start()
    ids = [await desk.issue(quantity="0.001") for _ in range(256)]
    seen: list[str] = []
    async with open_client(_server(desk)) as client:
        cursor = ""
        while True:
            reply = await call_reply(client, "execution_submit_orders", approval_ids=ids, cursor=cursor)
            assert reply["data"]["submitted"] == 256
            seen += [row["approval_id"] for row in reply["data"]["orders"]]
            cursor = reply["meta"].get("next_cursor", "")
            if not cursor:
                break
    assert seen == ids
    assert len(desk.faulty.handed_over) == 256


async def test_more_than_256_approvals_are_refused() -> None:
    desk = await Desk().start()
    async with open_client(_server(desk)) as client:
        with pytest.raises(ToolFailure) as refused:
            await call(client, "execution_submit_orders", approval_ids=[f"a{n}" for n in range(257)])
        assert refused.value.code == "INVALID_ARGUMENTS"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"amount": "0.000001"}, "BELOW_MINIMUM"),
        ({"amount": "100000"}, "ABOVE_MAXIMUM"),
        ({"type": "limit"}, "INVALID_LIMIT_PRICE"),
        ({"type": "limit", "limit_price": "60000.001"}, "PRICE_TICK"),
        ({"symbol": "ETH/USDT"}, "UNKNOWN_INSTRUMENT"),
        ({"symbol": "BTC/USDT:USDT"}, "DERIVATIVES_UNSUPPORTED"),
        ({"venue": "kraken"}, "UNKNOWN_INSTRUMENT"),
        ({"account": "another"}, "UNKNOWN_ACCOUNT"),
        ({"unit": "risk_percent_to_stop", "amount": "1"}, "STOP_PRICE_NEEDED"),
    ],
)
async def test_a_route_that_cannot_be_is_explained(arguments: dict[str, str], code: str) -> None:
    desk = await Desk().start()
    wish = {"symbol": "BTC/USDT", "side": "buy", "type": "market", "amount": "0.1", **arguments}
    async with open_client(_server(desk)) as client:
        with pytest.raises(ToolFailure) as refused:
            await call(client, "execution_plan_route", **wish)
        assert refused.value.code == code


async def test_percentages_are_sized_from_equity() -> None:
    desk = await Desk().start()
    async with open_client(_server(desk)) as client:
        wish = {"symbol": "BTC/USDT", "side": "buy", "type": "limit", "limit_price": "50000"}
        half = await call(client, "execution_plan_route", **wish, amount="50", unit="percent_equity")
        # Equity is 100,000 USDT and 1 BTC at a mid of 60,000.5: half of it buys 1.600005 at 50,000, rounded down.
        assert half["orders"][0]["amount"] == "1.6"
        risk = await call(
            client, "execution_plan_route", **wish, amount="1", unit="risk_percent_to_stop", stop_price="49000"
        )
        assert risk["orders"][0]["amount"] == "1.6"


async def test_tools_answer_starting_until_the_market_is_there() -> None:
    async with open_client(_server(Desk(), started=False)) as client:
        with pytest.raises(ToolFailure) as refused:
            await call(client, "execution_get_status")
        assert (refused.value.code, refused.value.retryable) == ("STARTING", "after_ms")
