"""A hundred parallel requests, each inside a limit and together over it: exactly as many pass as fit, to the last one.

In process and through MCP, on a durable ledger whose commits are grouped and take their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from mcp_servers.hosting import call
from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.service import RiskService
from tests.integration.test_risk_server import LIMIT, served
from tests.mcp_harness import Way, reach
from tests.risk_support import Desk, codes, open_desk, order, replace_parts, wide_limits, wide_symbol
from trading.adapters.clock import Uuid7Factory
from trading.adapters.sql import LedgerLocation, open_writer
from trading.testing.builders import BTC_USDT

#: 37 orders of 0.01 at 60001 fit each of these; a 38th does not. Value 600.01 each, 600.61001 with fees.
FITS: Final = 37
LIMITS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "position": ("POSITION_MAX", {}, {"position_quantity_max": "0.37"}),
    "gross": ("EXPOSURE_GROSS_MAX", {"gross_exposure_max": "22200.37"}, {}),
    "net": ("EXPOSURE_NET_MAX", {"net_exposure_max": "22200.37"}, {}),
    "balance": ("BALANCE_FREE", {}, {}),  # cash of 37 orders with their fees, and not a hundredth more than needed
    "open approvals": ("OPEN_APPROVALS_MAX", {"open_approvals_max": FITS}, {}),
    "reserved": ("OPEN_APPROVALS_MAX", {"reserved_notional_max": "22222.57037"}, {}),
    "open orders of the symbol": ("OPEN_ORDERS_MAX", {}, {"symbol_open_orders_max": FITS}),
    "open orders of the desk": ("OPEN_ORDERS_MAX", {"desk_open_orders_max": FITS}, {}),
    "turnover": ("TURNOVER_MAX", {"turnover_max": "22200.37"}, {}),
    "drift": ("DRIFT_MAX", {}, {"symbol_drift_max": "22200.37"}),
    "concentration": ("CONCENTRATION_MAX", {"concentration_pct_max": "2.23"}, {}),
    "leverage": ("LEVERAGE_MAX", {"leverage_max": "0.0223"}, {}),
    "rate": ("ORDER_RATE", {"order_burst": FITS, "order_rate_per_s": 1}, {}),
}


def limits_of(name: str) -> RiskLimits:
    _, desk, symbol = LIMITS[name]
    return wide_limits(symbols={BTC_USDT: wide_symbol(**symbol)}, **desk)


@asynccontextmanager
async def durable_desk(name: str, directory: Path) -> AsyncIterator[Desk]:
    """Yield a started desk whose own ledger is a real one."""
    cash = "22222.57037" if name == "balance" else "1000000"
    desk = await open_desk(limits=limits_of(name), cash=cash, start=False)
    async with open_writer(
        "risk", LedgerLocation.sqlite(directory / "ledger"), clock=desk.clock, ids=Uuid7Factory()
    ) as ledger:
        desk.parts = replace_parts(desk.parts, ledger=ledger)
        desk.risk = RiskService(desk.parts)
        desk.pulse()
        await desk.risk.start()
        yield desk


async def assert_full(desk: Desk) -> None:
    """What was reserved fits, and is what the ledger holds."""
    stored = await desk.parts.ledger.rows("approvals", {"state": "open"})
    assert {row["approval_id"] for row in stored} == {item.approval_id for item in desk.risk.reservations}
    assert len(stored) == FITS
    assert sum((item.leaves for item in desk.risk.reservations), Decimal(0)) == FITS * Decimal("0.01")


@pytest.mark.parametrize("name", LIMITS)
async def test_in_process_exactly_as_many_pass_as_fit(name: str, tmp_path: Path) -> None:
    async with durable_desk(name, tmp_path) as desk:
        single = [desk.ask(order(amount="0.01")) for _ in range(50)]
        batches = [desk.ask(*[order(amount="0.01")] * 10) for _ in range(5)]
        answers = await asyncio.gather(*single, *batches)
        assert sum(len(answer.approved) for answer in answers) == FITS
        assert sum(len(answer.denied) for answer in answers) == 100 - FITS
        assert set().union(*map(codes, answers)) == {LIMITS[name][0]}
        await assert_full(desk)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("gross", Way("memory", "auto")),
        ("open approvals", Way("memory", "legacy")),
        ("position", Way("http", "auto")),
        ("balance", Way("http", "legacy")),
        ("turnover", Way("unix", "auto")),
    ],
    ids=str,
)
async def test_through_mcp_exactly_as_many_pass_as_fit(name: str, way: Way, tmp_path: Path) -> None:
    order_of: dict[str, Any] = {**LIMIT, "amount": "0.01", "agent_id": "tester"}
    async with durable_desk(name, tmp_path) as desk, reach(way, served(desk), room="risk") as client:
        single = [call(client, "risk_request_approval", request_id=f"s{n}", **order_of) for n in range(50)]
        batches = [call(client, "risk_request_approval", request_id=f"b{n}", orders=[order_of] * 10) for n in range(5)]
        answers = await asyncio.gather(*single, *batches)
        assert sum(answer["approved"] for answer in answers) == FITS
        assert sum(answer["denied"] for answer in answers) == 100 - FITS
        ids = [approval_id for answer in answers for approval_id in answer["approval_ids"]]
        assert {item.approval_id for item in desk.risk.reservations} == set(ids)
        assert len(set(ids)) == FITS
        failed = {row["rule"] for each in answers for denial in each["denials"] for row in denial["failures"]}
        assert failed == {LIMITS[name][0]}
        await assert_full(desk)


async def test_what_is_released_may_be_had_again_and_no_more(tmp_path: Path) -> None:
    async with durable_desk("position", tmp_path) as desk:
        answers = await asyncio.gather(*(desk.ask(order(amount="0.01")) for _ in range(100)))
        approved = [item for answer in answers for item in answer.approved]
        for item in approved[:5]:
            await desk.end(item)
        again = await asyncio.gather(*(desk.ask(order(amount="0.01")) for _ in range(100)))
        assert sum(len(answer.approved) for answer in again) == 5
        await assert_full(desk)
