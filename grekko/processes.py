"""One room as a supervised process: how it is started, recognised after a crash of the supervisor, and stopped.

Rules kept here:

- A process id is only trusted together with the process's start time, so a reused id is never signalled.
- A room is asked to stop (SIGTERM) and given time to close its ledger before it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil

from trading.adapters.config import DeskHome

STOP_TIMEOUT_S = 10.0
LOG_MAX = 8 * 1024 * 1024  # bytes; an older log is kept once as <room>.log.1


@dataclass(frozen=True, slots=True)
class Room:
    """A process of the desk.

    Attributes:
        name: what its socket, log and process id file are called.
        module: started as ``python -m <module>``.
        arguments: after the socket option.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def command(self, home: DeskHome) -> list[str]:
        """Return the command line that serves this room on its unix socket."""
        return [sys.executable, "-m", self.module, "--socket", str(home.socket(self.name)), *self.arguments]


ROOM_MODULES: Mapping[str, str] = {
    "market": "mcp_servers.market",
    "risk": "mcp_servers.risk",
    "execution": "mcp_servers.execution",
    "wallet": "mcp_servers.wallet",
    "coordinator": "coordinator",
}


async def start_room(room: Room, home: DeskHome) -> asyncio.subprocess.Process:
    """Start a room with its output in the log, in a session of its own, and record its process id."""
    log = home.logs / f"{room.name}.log"
    _rotate(log)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *room.command(home),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env={**os.environ, "GREKKO_HOME": str(home.path), **room.environment},
            start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone, which stops in order
        )
    finally:
        os.close(descriptor)
    record_pid(home, room.name, process.pid)
    return process


def record_pid(home: DeskHome, name: str, pid: int) -> None:
    """Write who runs under that name, with its start time."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        _pid_file(home, name).write_bytes(orjson.dumps({"pid": pid, "started": started}))


def running(home: DeskHome, name: str) -> psutil.Process | None:
    """Return the process recorded under that name if it is still the same one and alive."""
    try:
        recorded = orjson.loads(_pid_file(home, name).read_bytes())
        process = psutil.Process(recorded["pid"])
        same = abs(process.create_time() - recorded["started"]) < 0.5
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, psutil.Error):
        return None


async def stop_leftovers(home: DeskHome, names: Sequence[str]) -> list[str]:
    """Stop rooms that a killed supervisor left behind, and return their names."""
    left = {name: process for name in names if (process := running(home, name)) is not None}
    for process in left.values():
        _signal(process.pid, signal.SIGTERM)
    if left:
        await asyncio.to_thread(psutil.wait_procs, list(left.values()), timeout=STOP_TIMEOUT_S)
    for name in left:
        if (process := running(home, name)) is not None:
            _signal(process.pid, signal.SIGKILL)
    return list(left)


async def stop_process(process: asyncio.subprocess.Process, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Stop one child in good order, by force if it does not, and return its exit status."""
    if process.returncode is None:
        _signal(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            _signal(process.pid, signal.SIGKILL)
    return await process.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _pid_file(home: DeskHome, name: str) -> Path:
    return home.run / f"{name}.pid"


def _rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX:
            log.replace(log.with_suffix(".log.1"))
