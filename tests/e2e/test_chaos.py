"""`kill -9` of any one process, thirty times, at random moments of a run: nothing is doubled, lost or unproven."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from grekko.audit import audit_desk
from grekko.ledgers import open_ledgers, read_events
from grekko.processes import ROOM_MODULES
from tests.e2e.desk_process import DeskProcess, scratch_desk, until
from trading.domain.events import OrderFilled

KILLS = 30
VICTIMS = ("market", "risk", "execution", "coordinator", "redis", "supervisor")
RUN = ("--loop", "--speed", "4")


@pytest.mark.timeout(400)
async def test_thirty_kills_leave_no_order_doubled_lost_or_unproven() -> None:
    chance = random.Random(20241122)
    async with scratch_desk() as desk:
        await desk.start(*RUN)
        await desk.wait_until_up()
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0.1, 0.6))  # the random moment is the subject
            await kill(desk, chance.choice(VICTIMS))
            await desk.wait_until_up()
            if number % 10 == 9:
                before = await fills(desk)
                await until(lambda before=before: more_fills(desk, before), "trading goes on", desk.tail)
        assert await desk.stop() == 0, desk.tail()
        audit = await audit_desk(desk.settings)
    assert audit.findings == []
    assert audit.invariants() == dict.fromkeys(audit.invariants(), True)
    assert audit.proofs.checked["orders"] >= 10
    assert audit.unresolved == 0


async def kill(desk: DeskProcess, victim: str) -> None:
    pid = desk.pid(victim)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    if victim == "supervisor":
        assert desk.process is not None
        await desk.process.wait()
        await desk.start(*RUN)
    elif victim in ROOM_MODULES:
        await until(lambda: desk.pid(victim) not in (None, pid), f"{victim} is started again", desk.tail)


async def fills(desk: DeskProcess) -> int:
    async with open_ledgers(desk.settings) as ledgers:
        return sum([1 async for event in read_events(ledgers.execution) if isinstance(event.payload, OrderFilled)])


async def more_fills(desk: DeskProcess, before: int) -> bool:
    return await fills(desk) > before
