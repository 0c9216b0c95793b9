"""What a newcomer sees: one command, half a minute, and a report that can be proven."""

from __future__ import annotations

import asyncio
import json
import sys
from decimal import Decimal
from typing import Any

import pytest

from grekko.audit import audit_desk
from grekko.explain import page, tell
from grekko.ledgers import open_ledgers, read_events
from tests.e2e.desk_process import DeskProcess, scratch_desk
from tests.postgres_support import scratch_database
from trading.adapters.config import DeskSettings
from trading.domain.events import OrderFilled, OrderInitialized


@pytest.mark.timeout(150)
async def test_half_a_minute_of_trading_is_reported_and_proven() -> None:
    async with scratch_desk() as desk:
        report_file = desk.home.path.parent / "report.json"
        await desk.start("--for", "30", "--report", str(report_file))
        assert desk.process is not None
        async with asyncio.timeout(120):
            assert await desk.process.wait() == 0, desk.tail()
        report = json.loads(report_file.read_text())
        check_report(report)
        await check_orders_against_approvals(desk.settings, report)
        await check_explain(desk.settings)
        await check_command_line(desk)


@pytest.mark.timeout(120)
async def test_the_same_desk_runs_on_postgresql(postgres_server: str) -> None:
    async with scratch_database(postgres_server) as url, scratch_desk(url) as desk:
        report_file = desk.home.path.parent / "report.json"
        await desk.start("--for", "10", "--report", str(report_file))
        assert desk.process is not None
        async with asyncio.timeout(90):
            assert await desk.process.wait() == 0, desk.tail()
        report = json.loads(report_file.read_text())
        assert not list(desk.home.path.rglob("*.sqlite"))
    assert report["orders"]["filled"] >= 1
    assert report["audit"]["verified"] is True
    assert all(report["invariants"].values())


def check_report(report: dict[str, Any]) -> None:
    assert report["mode"] == "paper"
    assert report["market"] == "replay"
    assert report["proposals"] >= 20
    assert report["votes"] >= 3 * report["decisions_approved"]
    assert report["approvals"] >= 10
    assert sum(report["denials"].values()) >= 1
    assert report["orders"]["filled"] >= 10
    assert report["fills"] >= report["orders"]["filled"]
    assert Decimal(report["fees"]) > 0
    assert report["audit"]["verified"] is True
    assert report["audit"]["findings"] == []
    assert all(report["invariants"].values()), report["invariants"]
    assert set(report["latency_ms"]) >= {"vote", "risk", "claim", "venue", "decision_to_fill"}


async def check_orders_against_approvals(settings: DeskSettings, report: dict[str, Any]) -> None:
    audit = await audit_desk(settings)
    assert audit.kept
    async with open_ledgers(settings) as ledgers:
        orders = [e async for e in read_events(ledgers.execution) if isinstance(e.payload, OrderInitialized)]
    assert len(orders) == sum(report["orders"].values())
    assert len(set(audit.proofs.orders.values())) == len(orders)
    assert audit.venue.orders <= len(orders)


async def check_explain(settings: DeskSettings) -> None:
    async with open_ledgers(settings) as ledgers:
        filled = [e.payload async for e in read_events(ledgers.execution) if isinstance(e.payload, OrderFilled)]
        text = "\n".join(page(await tell(settings.desk_home, ledgers, filled[0].fill.order_id)))
    for expected in ("proposes", "votes yes", "risk signs", "fill:", "signatures verify"):
        assert expected in text


async def check_command_line(desk: DeskProcess) -> None:
    for command in (["orders"], ["positions"], ["audit", "verify"]):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "grekko",
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=desk.environment(),
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert output.strip()
