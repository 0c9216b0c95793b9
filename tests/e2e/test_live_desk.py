"""`grekko run --market live`: a whole desk on three venues of the wire, through the loss of its own venue."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp import Client

from mcp_servers.hosting import call, open_client
from tests.e2e.desk_process import DeskProcess, scratch_desk
from tests.live_market_support import SYMBOL, VENUES, Venues, ask, configuration, three_venues, ticker, until

BUY = {"symbol": SYMBOL, "side": "buy", "type": "market"}


async def reasons_against(risk: Client) -> set[str]:
    """Return the rules that would deny a purchase; its size is no other order's, which would make it a duplicate."""
    check = await call(risk, "risk_check_order", **BUY, amount="0.0071")
    found = {row["rule"] for row in check["rules"] if not row["passed"]}
    assert check["passed"] is not bool(found)
    return found


async def would_sign(risk: Client) -> bool:
    return not await reasons_against(risk)


async def refuses_the_market(risk: Client) -> bool:
    return "MARKET_STALE" in await reasons_against(risk)


async def is_fresh(market: Client, venue: str) -> bool:
    return not (await ticker(market, venue))["stale"]


async def answered_by(market: Client, venue: str) -> bool:
    row = await ticker(market)
    return (row["venue"], row["stale"]) == (venue, False)


@pytest.mark.timeout(120)
async def test_a_desk_on_live_data_fails_closed_while_its_own_venue_is_lost() -> None:
    async with three_venues(past_minutes=3) as venues, venues.trading(), scratch_desk() as desk:
        desk.home.ensure().config_file.write_text(configuration(venues), encoding="utf-8")
        report_file = desk.home.path.parent / "report.json"
        await desk.start("--market", "live", "--report", str(report_file))
        await desk.wait_until_up()
        async with (
            open_client(f"unix:{desk.home.socket('market')}") as market,
            open_client(f"unix:{desk.home.socket('risk')}") as risk,
            open_client(f"unix:{desk.home.socket('execution')}") as execution,
        ):
            for venue in VENUES:  # whoever is there first when the desk's own is lost stands in for it
                await until(lambda venue=venue: is_fresh(market, venue), f"{venue} is fresh", desk.tail)
            await until(lambda: would_sign(risk), "risk would sign", desk.tail)
            receipt = await buy(risk, execution, "before", "0.008")
            assert receipt["state"] == "filled"
            await lose_the_own_venue(desk, venues, market, risk)
            assert (await buy(risk, execution, "after", "0.009"))["state"] == "filled"
        assert await desk.stop() == 0, desk.tail()
        check_report(json.loads(report_file.read_text()))


async def buy(risk: Client, execution: Client, request_id: str, amount: str) -> dict[str, Any]:
    answer = await call(risk, "risk_request_approval", request_id=request_id, **BUY, amount=amount)
    (approval,) = answer["approvals"]
    return await call(execution, "execution_submit_order", approval_id=approval["approval_id"])


async def lose_the_own_venue(desk: DeskProcess, venues: Venues, market: Client, risk: Client) -> None:
    """Tools fail over to another venue; risk does not."""
    await venues.lose("binance")
    await until(lambda: answered_by(market, "coinbase"), "Coinbase stands in for whoever asks", desk.tail)
    await until(lambda: refuses_the_market(risk), "risk prices nothing on another venue", desk.tail)
    assert await answered_by(market, "coinbase")
    assert await refuses_the_market(risk)
    await venues.bring_back("binance")
    await until(lambda: would_sign(risk), "risk would sign again", desk.tail)
    await until(lambda: answered_by(market, "binance"), "Binance answers again", desk.tail)
    assert (await ask(market, "get_status"))["failover"] == []


def check_report(report: dict[str, Any]) -> None:
    assert (report["mode"], report["market"]) == ("paper", "live")
    assert report["orders"]["filled"] >= 2
    assert report["audit"]["verified"] is True
    assert report["audit"]["findings"] == []
    assert all(report["invariants"].values()), report["invariants"]
