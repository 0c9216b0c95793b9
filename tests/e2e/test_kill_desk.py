"""An open position while the processes around it are killed: its stop closes it, and nothing else passes.

The position is bought near 60,000 with a stop 2 % below; every fall goes to 58,000. Nobody starts anything again but
the test. Each case ends with the audit, a flat account, nothing at the venue and nothing reserved.
"""

from __future__ import annotations

import asyncio
import random
import signal

import pytest

from tests.kill_support import ROOMS, KillDesk, kill_desk
from tests.live_market_support import until

FALLEN = "58000"


@pytest.mark.timeout(120)
async def test_with_everything_killed_nothing_passes_and_the_first_price_closes_the_position() -> None:
    async with kill_desk() as (desk, market):
        held = await desk.open_position()
        while_dead, afterwards = await desk.approval(), await desk.approval()
        async with desk.without_redis():
            await desk.kill("coordinator", "wallet", "risk", "market")
            await market.price(FALLEN)  # nobody is left to tell execution of it
            await until(desk.is_blind, "execution says that it is blind", desk.tail)
            await until(desk.is_deaf, "execution says that it is deaf", desk.tail)
            assert await desk.refused(while_dead) == "GATE_HEARTBEAT_STALE"
            assert (await desk.position() or {})["quantity"] == held["quantity"]
            await desk.kill("execution")
        await desk.start("execution")  # and with it Redis
        assert await restored(desk, held)
        assert await desk.refused(while_dead) == "GATE_NO_HEARTBEAT"
        await desk.start("market")
        await desk.until_flat()
        await desk.start("risk")
        assert await refused_for_good(desk, afterwards)
        await desk.conclude(bought=1)
        assert "STOP_HIT" in await desk.alarms()


async def refused_for_good(desk: KillDesk, approval_id: str) -> bool:
    """Return whether an approval of a risk room that was killed stays dead once its successor is heard."""

    async def heard() -> bool:
        return not await desk.is_deaf()

    await until(heard, "execution hears risk again", desk.tail)
    return await desk.refused(approval_id) in ("GATE_EPOCH", "GATE_FATE_WRITTEN")


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("stop_at", ["venue", "desk"])
async def test_with_risk_killed_the_stop_closes_and_no_approval_is_taken_then_or_later(stop_at: str) -> None:
    async with kill_desk(stop_at=stop_at) as (desk, market):
        await desk.open_position()
        while_dead, afterwards = await desk.approval(), await desk.approval()
        await desk.kill("risk")
        await until(desk.is_deaf, "execution says that it is deaf", desk.tail)
        assert await desk.refused(while_dead) == "GATE_HEARTBEAT_STALE"
        await market.price(FALLEN)
        await desk.until_flat()
        await market.price("60000")  # back within the band of the approvals: only risk's death is against them
        assert await desk.refused(while_dead) == "GATE_HEARTBEAT_STALE"
        await desk.start("risk")
        assert await refused_for_good(desk, afterwards)
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_with_risk_killed_a_restarted_execution_takes_no_old_heartbeat_for_a_living_risk() -> None:
    async with kill_desk() as (desk, market):
        held = await desk.open_position()
        approval = await desk.approval()
        await desk.kill("risk", "execution")
        await desk.start("execution")
        assert await restored(desk, held)
        assert await desk.refused(approval) in ("GATE_NO_HEARTBEAT", "GATE_HEARTBEAT_STALE")
        await market.price(FALLEN)
        await desk.until_flat()
        await desk.conclude(bought=1)


async def restored(desk: KillDesk, held: dict[str, object]) -> bool:
    """Wait until execution shows the position that it had, with the stop that it had."""

    async def same() -> bool:
        found = await desk.position()
        return found is not None and (found["quantity"], found["stop"]) == (held["quantity"], held["stop"])

    await until(same, f"the stop is restored: {held}", desk.tail)
    return True


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_with_risk_stopped_the_stop_closes_and_nothing_is_taken_until_it_goes_on() -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        approval = await desk.approval()
        desk.signal("risk", signal.SIGSTOP)
        await until(desk.is_deaf, "execution says that it is deaf", desk.tail)
        assert await desk.refused(approval) == "GATE_HEARTBEAT_STALE"
        await market.price(FALLEN)
        await desk.until_flat()
        assert await desk.refused(approval) == "GATE_HEARTBEAT_STALE"
        desk.signal("risk", signal.SIGCONT)
        await desk.release(approval)
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_with_the_coordinator_killed_the_stop_closes() -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        await desk.kill("coordinator", "wallet")
        await market.price(FALLEN)
        await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_with_redis_killed_nothing_passes_and_its_return_closes_the_position() -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        approval = await desk.approval()
        async with desk.without_redis():
            await market.price(FALLEN)
            await until(desk.is_blind, "execution says that it is blind", desk.tail)
            await until(desk.is_deaf, "execution says that it is deaf", desk.tail)
            assert await desk.refused(approval) == "GATE_HEARTBEAT_STALE"
        await desk.until_flat()
        await desk.release(approval)
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_with_redis_stopped_nothing_passes_and_its_return_closes_the_position() -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        approval = await desk.approval()
        desk.signal("redis", signal.SIGSTOP)
        await market.price(FALLEN)
        await until(desk.is_blind, "execution says that it is blind", desk.tail)
        await until(desk.is_deaf, "execution says that it is deaf", desk.tail)
        assert await desk.refused(approval) == "GATE_HEARTBEAT_STALE"
        desk.signal("redis", signal.SIGCONT)
        await desk.until_flat()
        await desk.release(approval)
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("lost", ["process", "line"])
async def test_with_the_feed_lost_nothing_passes_and_its_first_price_closes_the_position(lost: str) -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        approval = await desk.approval()
        if lost == "process":
            await desk.kill("market")
        else:
            await market.server.refuse()
            market.server.cut()
        await market.price(FALLEN)
        await until(desk.is_blind, "execution says that it is blind", desk.tail)
        assert await desk.refused(approval) == "GATE_PRICE_STALE"
        assert not await desk.is_flat()
        if lost == "process":
            await desk.start("market")
        else:
            await market.server.listen()
        await desk.until_flat()
        await desk.release(approval)
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_a_desk_that_says_so_closes_blindly_with_everything_else_dead() -> None:
    async with kill_desk(execution="close_blind_after_s = 2") as (desk, _):
        await desk.open_position()
        async with desk.without_redis():
            await desk.kill("coordinator", "wallet", "risk", "market")
            await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_a_time_stop_closes_with_risk_and_coordinator_dead() -> None:
    async with kill_desk(protection="hold_max_ms = 6000") as (desk, _):
        await desk.open_position()
        await desk.kill("risk", "coordinator", "wallet")
        await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("stop_at", ["venue", "desk"])
@pytest.mark.parametrize("falls", ["while it is dead", "afterwards"])
async def test_execution_killed_has_its_stop_back_and_closes_once(stop_at: str, falls: str) -> None:
    async with kill_desk(stop_at=stop_at) as (desk, market):
        held = await desk.open_position()
        await desk.kill("execution")
        if falls == "while it is dead":
            await market.price(FALLEN)
            await desk.start("execution")
        else:
            await desk.start("execution")
            assert await restored(desk, held)
            await market.price(FALLEN)
        await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("victims", [("execution",), ("execution", "risk", "market", "coordinator")])
@pytest.mark.parametrize("stop_at", ["venue", "desk"])
async def test_a_stop_that_was_hit_goes_on_closing_although_the_price_came_back(
    stop_at: str, victims: tuple[str, ...]
) -> None:
    async with kill_desk(stop_at=stop_at) as (desk, market):
        held = await desk.open_position()
        await market.price(FALLEN, depth="0.001")  # five levels: half of the position finds a buyer

        async def partly_closed() -> bool:
            found = await desk.position()
            return found is not None and found["quantity"] != held["quantity"]

        await until(partly_closed, "part of the position is closed", desk.tail)
        await desk.kill(*victims)
        await market.price("60500")
        await desk.start(*(name for name in victims if name in ("market", "execution")))
        await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stop_at", ["venue", "desk"])
async def test_execution_killed_at_random_moments_of_a_close_sells_each_position_once(stop_at: str) -> None:
    chance = random.Random(20261122)
    rounds = 6
    async with kill_desk(stop_at=stop_at) as (desk, market):
        for _ in range(rounds):
            await until(desk.would_trade, "the desk would trade", desk.tail)
            await desk.open_position()
            await market.price(FALLEN)
            await asyncio.sleep(chance.uniform(0.0, 0.15))  # the random moment is the subject
            await desk.kill("execution")
            await desk.start("execution")
            await desk.until_flat()
            await market.price("60000")
        await desk.conclude(bought=rounds)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_a_trailing_stop_keeps_the_level_it_had_reached_when_execution_and_risk_are_killed() -> None:
    async with kill_desk(protection='trailing_bps = "100"') as (desk, market):
        await desk.open_position()
        await market.price("60600")

        async def trailed() -> bool:
            found = await desk.position()
            return found is not None and (found["stop"]["kind"], found["stop"]["price"]) == ("trailing", "59994")

        await until(trailed, "the stop lies 1 % below 60,600", desk.tail)
        await market.price("60100")
        await desk.kill("risk", "execution")
        await desk.start("execution")
        await until(trailed, "the stop lies there again", desk.tail)
        await market.price("59900")  # 0.2 % below the entry: a stop that began anew would lie far below
        await desk.until_flat()
        await desk.conclude(bought=1)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_all_processes_killed_in_one_moment_and_started_again_close_the_position_once() -> None:
    async with kill_desk() as (desk, market):
        await desk.open_position()
        approval = await desk.approval()
        await desk.kill(*ROOMS, "redis")
        await market.price(FALLEN)
        await desk.start(*ROOMS)
        await desk.until_flat()
        assert await refused_for_good(desk, approval)
        await desk.conclude(bought=1)
