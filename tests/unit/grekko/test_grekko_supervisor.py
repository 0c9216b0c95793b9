"""A stop leaves no room behind, whatever the supervisor was doing when it came."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import grekko.supervisor
from grekko.processes import Room
from grekko.supervisor import Supervisor
from trading.adapters.config import DeskHome


async def test_a_room_that_is_being_started_when_the_stop_comes_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, started = asyncio.Event(), list[asyncio.subprocess.Process]()

    async def slow_start(room: Room, home: DeskHome) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
        started.append(process)
        begun.set()
        await asyncio.sleep(0.1)  # the start is not over when the stop comes
        return process

    monkeypatch.setattr(grekko.supervisor, "start_room", slow_start)
    supervisor = Supervisor(DeskHome(tmp_path / "desk").ensure(), [Room("risk", "none")])
    starting = asyncio.create_task(supervisor.start())
    await begun.wait()
    await supervisor.stop()
    starting.cancel()
    try:
        assert [process.returncode is not None for process in started] == [True]
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
                await process.wait()
