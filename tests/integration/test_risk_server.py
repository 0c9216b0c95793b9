"""Every risk tool through a real MCP client, in every way a client can reach it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.envelope import MAX_CHARS
from mcp_servers.hosting import DeskServer, ToolFailure, build_server, call, open_client
from mcp_servers.risk.server import register
from mcp_servers.risk.service import RiskService
from tests.mcp_harness import QUICK_WAYS, Way, check_conventions, reach, room_command
from tests.risk_support import Desk, open_desk, order, wide_limits, wide_symbol
from trading.adapters.approval_signer import create_approval_key
from trading.adapters.config import DeskHome
from trading.adapters.market_stream import create_feed_key
from trading.adapters.signing_keys import create_key
from trading.domain.events import AccountFunded
from trading.domain.identifiers import Currency, Symbol
from trading.domain.proposals import Mode
from trading.testing.builders import ACCOUNT, BTC_USDT

LIMIT: dict[str, Any] = {"symbol": "BTC/USDT", "side": "buy", "type": "limit", "amount": "0.01", "limit_price": "60001"}


def served(desk: Desk) -> Callable[[], DeskServer[RiskService]]:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[RiskService]:
        yield desk.risk

    def build() -> DeskServer[RiskService]:
        server: DeskServer[RiskService] = build_server(
            "grekko-risk", title="Risk", instructions="Test.", lifespan=lifespan, mode=Mode.PAPER
        )
        register(server)
        return server

    return build


@asynccontextmanager
async def client_of(desk: Desk, way: Way) -> AsyncIterator[Any]:
    async with reach(way, served(desk), room="risk") as client:
        yield client


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_walk_through_every_tool(way: Way) -> None:
    desk = await open_desk()
    async with client_of(desk, way) as client:
        check = await call(client, "risk_check_order", **LIMIT)
        assert check["passed"] is True
        assert check["notional"] == "600.01"
        assert check["fee_estimate"] == "0.60001"
        assert Decimal(check["max_allowed_now"]["quantity"]) > 1
        assert {rule["rule"] for rule in check["rules"]} >= {"POSITION_MAX", "PRICE_COLLAR"}
        assert (await call(client, "risk_get_exposure"))["reservations"] == 0

        got = await call(client, "risk_request_approval", request_id="r-1", **LIMIT)
        assert (got["approved"], got["denied"], got["replayed"]) == (1, 0, False)
        (approval,) = got["approvals"]
        assert got["approval_ids"] == [approval["approval_id"]]
        assert approval["order"]["quantity"] == "0.01"
        assert (await call(client, "risk_request_approval", request_id="r-1", **LIMIT))["replayed"] is True

        exposure = await call(client, "risk_get_exposure", scope="BTC/USDT")
        assert exposure["instruments"][0]["open_buys"] == "0.01"
        assert exposure["by_agent"] == {"local": "600.61001"}
        assert (exposure["net"], exposure["by_venue"]) == ("0", {"paper": "600.005"})
        numbers = await call(client, "risk_get_risk", basis="worst_case")
        assert numbers["history"] == dict.fromkeys(("1h", "1d"), "assumed: 2019-2021 hourly history")
        assert len(numbers["tails"]) == 16
        assert {(row["problem"], float(row["var"]) > 0) for row in numbers["tails"]} == {("", True)}
        shown = await call(client, "risk_get_approval", approval_id=approval["approval_id"])
        assert shown["envelope"] is None
        shown = await call(client, "risk_get_approval", approval_id=approval["approval_id"], include_envelope=True)
        assert "signatures" in shown["envelope"]
        released = await call(client, "risk_release_approval", approval_id=approval["approval_id"])
        assert released["state"] == "release_requested"

        limits = await call(client, "risk_get_limits")
        assert limits["version"] == 1
        assert "daily_loss_max" in limits["values"]
        assert (await call(client, "risk_get_limits", scope="BTC/USDT"))["values"]["collar_bps"] == "100"

        status = await call(client, "risk_get_status")
        assert status["safe_to_trade"] is True
        tripped = await call(client, "risk_trip_breaker", reason="test")
        assert (tripped["state"], tripped["changed"]) == ("halted", True)
        assert tripped["counter"] == status["counter"] + 1
        status = await call(client, "risk_get_status")
        assert status["safe_to_trade"] is False
        assert "halted" in status["reasons"][0]
        denied = await call(client, "risk_request_approval", request_id="r-2", **LIMIT)
        assert [failure["rule"] for failure in denied["denials"][0]["failures"]] == ["TRADING_STATE"]


async def all_pages(client: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Follow the cursor to the end; every page must be one that a model can read."""
    pages: list[dict[str, Any]] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        more = {} if cursor is None else {"cursor": cursor}
        reply = await client.call_tool("risk_request_approval", {**arguments, **more})
        assert len(reply.content[0].text) <= MAX_CHARS
        pages.append(reply.structured_content["data"])
        cursor = reply.structured_content["meta"].get("next_cursor")
        assert reply.structured_content["meta"]["truncated"] or cursor is None
    return pages


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_every_denial_and_every_id_of_a_batch_is_on_some_page(era: str) -> None:
    desk = await open_desk()
    wrong = {**LIMIT, "limit_price": "60001.001", "amount": "200"}
    orders = [wrong if number % 3 == 0 else LIMIT for number in range(256)]
    async with open_client(served(desk)(), mode=era) as client:
        pages = await all_pages(client, request_id="b", orders=orders)
        with pytest.raises(ToolFailure, match="cursor"):
            await call(client, "risk_request_approval", request_id="b", orders=orders, cursor="200")
    denied = [*range(0, 256, 3)]
    assert pages[0]["denied_at"] == denied
    assert [denial["index"] for page in pages for denial in page["denials"]] == denied
    ids = [name for page in pages for name in page["approval_ids"]]
    assert len(set(ids)) == len(ids) == 256 - len(denied)


async def test_eight_orders_refused_by_many_rules_still_fit_a_reply_and_say_that_rules_were_left_out() -> None:
    desk = await open_desk()
    desk.clock.advance(60_000)
    await desk.risk.trip("test", "tester")
    wrong = {**LIMIT, "limit_price": "1.234", "amount": "1000.0000001"}
    async with open_client(served(desk)()) as client:
        reply = await client.call_tool("risk_request_approval", {"request_id": "b", "orders": [wrong] * 8})
    assert reply.structured_content is not None
    assert len(reply.content[0].text) <= MAX_CHARS  # type: ignore[union-attr]
    assert len(reply.structured_content["data"]["denials"]) == 8
    assert reply.structured_content["meta"]["truncated"] is True


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_large_batch_answers_ids_and_continues_by_cursor(era: str) -> None:
    desk = await open_desk(limits=wide_limits(symbols={BTC_USDT: wide_symbol(position_quantity_max=Decimal("2.5"))}))
    item = {**LIMIT, "amount": "0.01"}
    async with open_client(served(desk)(), mode=era) as client:
        pages = await all_pages(client, request_id="b", orders=[item] * 256)
        assert {(page["approved"], page["denied"], len(page["denied_at"])) for page in pages} == {(250, 6, 6)}
        assert [page["replayed"] for page in pages] == [False] + [True] * (len(pages) - 1)
        assert pages[0]["approvals"] == []
        assert [denial["index"] for page in pages for denial in page["denials"]] == [*range(250, 256)]
        assert len({name for page in pages for name in page["approval_ids"]}) == 250
    assert len(desk.risk.reservations) == 250


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"request_id": "r"}, "INVALID_ORDERS"),
        ({"request_id": "r", "symbol": "BTC/USDT"}, "INVALID_ORDERS"),
        ({"request_id": "r", "orders": [LIMIT], **LIMIT}, "INVALID_ORDERS"),
        ({"request_id": "r r", **LIMIT}, "INVALID_REQUEST_ID"),
        ({"request_id": "r", **LIMIT, "amount": 0.01}, "INVALID_NUMBER"),
        ({"request_id": "r", **LIMIT, "amount": "0"}, "INVALID_NUMBER"),
        ({"request_id": "r", **LIMIT, "symbol": "BTC/USDT:USDT"}, "DERIVATIVES_UNSUPPORTED"),
        ({"request_id": "r", **LIMIT, "type": "market"}, "INVALID_LIMIT_PRICE"),
        ({"request_id": "r", "account": "other", **LIMIT}, "WRONG_ACCOUNT"),
        ({"request_id": "r", **LIMIT, "side": "hold"}, "INVALID_ARGUMENTS"),
    ],
)
async def test_malformed_request_is_an_error_and_reserves_nothing(arguments: dict[str, Any], code: str) -> None:
    desk = await open_desk()
    async with open_client(served(desk)()) as client:
        with pytest.raises(ToolFailure) as caught:
            await call(client, "risk_request_approval", **arguments)
    assert caught.value.code == code
    assert len(desk.risk.reservations) == 0


async def test_reused_request_id_and_unknown_names_are_errors_with_advice() -> None:
    desk = await open_desk()
    async with open_client(served(desk)()) as client:
        await call(client, "risk_request_approval", request_id="r", **LIMIT)
        for tool in ("risk_get_limits", "risk_get_exposure"):
            plain = await call(client, tool, scope="BTC/USDT")
            assert await call(client, tool, scope="symbol:BTC/USDT") == plain  # the breaker's name of it
        for tool, arguments, code in (
            ("risk_request_approval", {"request_id": "r", **LIMIT, "amount": "0.02"}, "REQUEST_ID_REUSED"),
            ("risk_get_approval", {"approval_id": "x"}, "UNKNOWN_APPROVAL"),
            ("risk_get_limits", {"scope": "ETH/USDT"}, "UNKNOWN_SCOPE"),
            ("risk_get_exposure", {"scope": "ETH/USDT"}, "UNKNOWN_SCOPE"),
            ("risk_trip_breaker", {"reason": "x", "scope": "everything"}, "UNKNOWN_SCOPE"),
        ):
            with pytest.raises(ToolFailure) as caught:
                await call(client, tool, **arguments)
            assert caught.value.code == code


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_two_hundred_positions_are_paged_and_each_page_fits_a_reply(era: str) -> None:
    symbols = (BTC_USDT, *(Symbol(f"C{number:03d}/USDT") for number in range(199)))
    desk = await open_desk(symbols=symbols)
    for symbol in symbols:
        base = Currency(symbol.partition("/")[0])
        await desk.write(AccountFunded(account_id=ACCOUNT, currency=base, amount=Decimal("1.123456789012345678")))
    seen: list[str] = []
    async with open_client(served(desk)(), mode=era) as client:
        cursor: dict[str, Any] = {}
        while not seen or cursor:
            reply = (await client.call_tool("risk_get_exposure", {"limit": 100, **cursor})).structured_content
            assert len(json.dumps(reply)) <= MAX_CHARS
            seen += [row["symbol"] for row in reply["data"]["instruments"]]
            assert reply["meta"]["truncated"] is (len(seen) < 200)
            cursor = {"cursor": reply["meta"]["next_cursor"]} if "next_cursor" in reply["meta"] else {}
        assert seen == sorted(symbols)
        assert len((await call(client, "risk_get_exposure"))["instruments"]) == 20
        one = await call(client, "risk_get_exposure", scope="C007/USDT")
        assert [row["symbol"] for row in one["instruments"]] == ["C007/USDT"]


async def test_promises_of_many_agents_keep_their_sum() -> None:
    desk = await open_desk()
    await desk.ask(*(order(agent_id=f"agent-{number}") for number in range(60)))
    async with open_client(served(desk)()) as client:
        by_agent = (await call(client, "risk_get_exposure"))["by_agent"]
    assert len(by_agent) == 40
    assert sum(map(Decimal, by_agent.values())) == 60 * Decimal("600.61001")


async def test_no_tool_can_resume_trading() -> None:
    desk = await open_desk()
    async with open_client(served(desk)()) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
    assert names == {
        "risk_check_order",
        "risk_request_approval",
        "risk_get_approval",
        "risk_release_approval",
        "risk_get_limits",
        "risk_get_exposure",
        "risk_get_risk",
        "risk_trip_breaker",
        "risk_get_status",
    }


async def test_conventions_and_budget_are_kept() -> None:
    desk = await open_desk()
    async with open_client(served(desk)()) as client:
        await check_conventions(client, "risk")


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_room_starts_as_a_process_and_denies_while_nothing_else_runs(era: str, tmp_path: Path) -> None:
    home = new_home(tmp_path)
    way = Way("stdio", era)
    async with reach(way, served_nothing, room="risk", command=room_command("risk"), env=home) as client:
        status = await call(client, "risk_get_status")
        assert status["state"] == "active"  # a new desk counts as cleanly stopped
        assert status["safe_to_trade"] is False
        answer = await call(client, "risk_request_approval", request_id="r", **LIMIT)
        rules = {failure["rule"] for failure in answer["denials"][0]["failures"]}
        assert {"INSTRUMENT_UNKNOWN", "MARKET_STALE", "EXECUTION_SILENT"} <= rules
        assert (await call(client, "risk_trip_breaker", reason="test"))["durable"] is True
    async with reach(way, served_nothing, room="risk", command=room_command("risk"), env=home) as client:
        status = await call(client, "risk_get_status")
        assert (status["state"], status["generation"]) == ("halted", 2)  # a halt outlives the process
        again = await call(client, "risk_request_approval", request_id="r", **LIMIT)
        assert again["replayed"] is True


def served_nothing() -> DeskServer[Any]:
    raise AssertionError("the process is the subject")


def new_home(tmp_path: Path) -> dict[str, str]:
    """Make the keys that the room needs and return its environment."""
    home = DeskHome(tmp_path / "desk").ensure()
    create_approval_key(home)
    create_key(home.keys("risk") / "checkpoint.key", "checkpoint", public_path=home.public_keys / "checkpoint-risk.pub")
    create_key(home.keys("operator") / "operator.key", "operator", public_path=home.public_keys / "operator.pub")
    create_feed_key(home.keys("market") / "feed.hmac")
    return {"GREKKO_HOME": str(home.path)}
