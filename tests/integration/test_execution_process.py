"""Execution as a real process: over every transport, killed at will, with risk and market around it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from mcp import Client

from mcp_servers.execution.bootstrap import open_execution
from mcp_servers.execution.server import build
from mcp_servers.execution.settings import ExecutionSettings
from mcp_servers.hosting import ToolFailure, call
from tests.execution_process_support import Surroundings, make_home, surroundings
from tests.mcp_harness import Way, reach, room_command
from trading.adapters.config import DeskSettings
from trading.adapters.sql.verify import verify_room
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import Venue
from trading.domain.proposals import Mode, TimeInForce


async def eventually(ask: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not await ask():
            await asyncio.sleep(0.02)


async def is_safe(client: Client) -> bool:
    try:
        return bool((await call(client, "execution_get_status"))["safe_to_trade"])
    except ToolFailure as error:
        if error.code != "STARTING":
            raise
        return False


@asynccontextmanager
async def process(around: Surroundings, era: str = "auto") -> AsyncGenerator[Client]:
    """Run execution as a process of its own and wait until it would trade."""
    env = {"GREKKO_HOME": str(around.settings.home)}
    command = room_command("execution")
    async with reach(Way("stdio", era), build, room="execution", command=command, env=env) as client:
        await eventually(lambda: is_safe(client))
        yield client


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_process_trades_lapses_and_halts(era: str) -> None:
    async with surroundings() as around, process(around, era) as client:
        unbrought = await around.issue(ttl_ms=400)
        receipt = await call(client, "execution_submit_order", approval_id=await around.issue(quantity="0.1"))
        assert (receipt["state"], receipt["filled"]) == ("filled", "0.1")
        resting = await call(
            client,
            "execution_submit_order",
            approval_id=await around.issue(limit_price="59800", time_in_force=TimeInForce.GTC),
        )
        assert resting["state"] == "accepted"
        route = await call(client, "execution_plan_route", symbol="BTC/USDT", side="buy", type="market", amount="0.1")
        assert route["orders"][0]["expected_price"] == "60001"

        async with around.execution_ledger() as ledger:

            async def lapsed() -> bool:
                rows = await ledger.rows("approval_fates", {"approval_id": unbrought})
                return bool(rows) and rows[0]["fate"] == "lapsed"

            await eventually(lapsed)
            unused = await around.issue()
            await around.trip()

            async def swept() -> bool:
                order = (await call(client, "execution_get_order", id=resting["order_id"]))["order"]
                return order["state"] == "canceled"

            await eventually(swept)

            async def voided() -> bool:
                rows = await ledger.rows("approval_fates", {"approval_id": unused})
                return bool(rows) and rows[0]["fate"] == "voided"

            await eventually(voided)
        with pytest.raises(ToolFailure) as refused:
            await call(client, "execution_submit_order", approval_id=await around.issue())
        assert refused.value.code == "GATE_STATE"


async def test_a_second_process_on_the_same_account_refuses_to_start() -> None:
    async with surroundings() as around, open_execution(around.settings, ExecutionSettings()):
        with pytest.raises(ConfigurationError):
            async with open_execution(around.settings, ExecutionSettings()):
                pass


async def test_killed_again_and_again_it_never_sends_an_approval_twice() -> None:
    async with surroundings() as around:
        ids: list[str] = []
        for round_ in range(3):
            started = False
            with suppress(Exception):  # however the transport says that its process died
                async with process(around) as client:
                    started = True
                    ids += [await around.issue(quantity="0.01", ttl_ms=1_500) for _ in range(20)]
                    submitting = asyncio.create_task(call(client, "execution_submit_orders", approval_ids=ids))
                    await asyncio.sleep(0.004 * round_)  # before, during and near the end of the walk
                    os.kill(_pid(around), signal.SIGKILL)
                    await submitting
            assert started
        async with process(around) as client:
            await eventually(lambda: is_safe(client))
            batch = await call(client, "execution_submit_orders", approval_ids=ids)
            assert batch["submitted"] + batch["refused"] == 60
            assert set(batch["states"]) <= {"filled", "absent", "not_sent"}, batch
            assert (await call(client, "execution_reconcile"))["differences"] == []
            filled = batch["states"].get("filled", 0)
        async with around.execution_ledger() as ledger:
            fills = await ledger.rows("fills")
            assert len({row["client_order_id"] for row in fills}) == filled
            assert sum(float(str(row["quantity"])) for row in fills) == pytest.approx(0.01 * filled)
            public_key = (around.settings.desk_home.public_keys / "checkpoint-execution.pub").read_text().strip()
            report = await verify_room(
                ledger,
                checkpoints=around.settings.desk_home.checkpoints("execution"),
                public_key=public_key,
                projections=True,
            )
            assert report.verified, report


def _pid(around: Surroundings) -> int:
    """Return the process that holds the execution ledger's lock."""
    lock = around.settings.desk_home.path / "ledger" / "execution.sqlite.lock"
    inode = lock.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        parts = line.split()
        if parts[5].endswith(f":{inode}"):
            return int(parts[4])
    raise AssertionError("nobody holds the lock")


@pytest.mark.parametrize("mode", [Mode.TESTNET, Mode.LIVE])
async def test_a_mode_without_a_venue_refuses_to_start(mode: Mode, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with open_execution(DeskSettings(home=tmp_path / "h", mode=mode), ExecutionSettings()):
            pass
    assert refused.value.code == "MODE_UNSUPPORTED"


async def test_a_venue_that_is_not_connected_refuses_to_start(tmp_path: Path) -> None:
    settings = DeskSettings(home=tmp_path / "h", venue=Venue("kraken"))
    with pytest.raises(ConfigurationError) as refused:
        async with open_execution(settings, ExecutionSettings()):
            pass
    assert refused.value.code == "VENUE_UNSUPPORTED"


async def test_without_keys_it_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError) as refused:
        async with open_execution(DeskSettings(home=tmp_path / "h"), ExecutionSettings()):
            pass
    assert refused.value.code == "KEY_MISSING"


async def test_it_answers_starting_while_there_is_no_market(tmp_path: Path) -> None:
    settings, _ = make_home(tmp_path / "h")
    async with open_execution(settings, ExecutionSettings()) as room:
        with pytest.raises(Exception, match="waits for the market"):
            _ = room.service
