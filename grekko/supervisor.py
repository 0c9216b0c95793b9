"""Starts the rooms of a desk, keeps them alive, and stops them in the order that loses nothing.

A room that dies is started again with growing pauses; the ledger, not the supervisor, decides where it goes on.
Only one supervisor runs per home; one that finds rooms of a killed predecessor stops them first, because each
room is fenced and a leftover would keep its successor out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from grekko.processes import ROOM_MODULES, Room, start_room, stop_leftovers, stop_process
from trading.adapters.config import DeskHome
from trading.adapters.file_lock import FileLock
from trading.domain.errors import Unavailable

READY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: A room that answered and ran this long is healthy again, and its next restart is quick.
_HEALTHY_S = 2.0
#: The exit status of a room that refuses its configuration or finds its ledger taken; sysexits.h EX_CONFIG.
_REFUSED = 78
_WILL_NOT = "will not start:"

log = logging.getLogger("grekko.supervisor")


@dataclass(slots=True)
class Supervised:
    """One room under supervision.

    Attributes:
        restarts: how often it had to be started again.
        ready: set while it answers on its socket.
        starting: held while its process is being started, so that a stop never overlooks one.
    """

    room: Room
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Supervisor:
    """The running desk. Use ``supervise``."""

    def __init__(self, home: DeskHome, rooms: Sequence[Room]) -> None:
        self._home = home
        self._rooms = [Supervised(room) for room in rooms]
        self._stopping = False
        self._refused: asyncio.Queue[str] = asyncio.Queue()
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def rooms(self) -> dict[str, Supervised]:
        """The rooms by name."""
        return {each.room.name: each for each in self._rooms}

    async def start(self) -> None:
        """Start every room at once and return when all answer; each waits by itself for what it needs of the others.

        Raises:
            Unavailable: (ROOM_NOT_READY) a room does not answer in time, or (ROOM_REFUSED) it will not start as things
                are, so that starting it again cannot help.
        """
        self._keepers = [asyncio.create_task(self._keep(each), name=f"keep-{each.room.name}") for each in self._rooms]
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._all_ready()
        except TimeoutError:
            silent = next(each.room.name for each in self._rooms if not each.ready.is_set())
            raise Unavailable(
                f"{silent} did not answer within {READY_TIMEOUT_S:.0f} s",
                code="ROOM_NOT_READY",
                suggestion=f"read {self._home.logs / silent}.log",
            ) from None

    async def _all_ready(self) -> None:
        refused = asyncio.create_task(self._refused.get())
        ready = asyncio.create_task(self._ready())
        try:
            await asyncio.wait((refused, ready), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                name = refused.result()
                raise Unavailable(
                    f"{name} will not start: {_last_words(self._home.logs / f'{name}.log')}",
                    code="ROOM_REFUSED",
                    suggestion=f"the whole log is {self._home.logs / name}.log",
                )
        finally:
            refused.cancel()
            ready.cancel()

    async def _ready(self) -> None:
        for each in self._rooms:
            await each.ready.wait()

    async def stop(self) -> None:
        """Stop the rooms in reverse order: first who decides, then who trades, then who signs, then who watches."""
        self._stopping = True
        for each in reversed(self._rooms):
            async with each.starting:
                process = each.process
            if process is not None:
                status = await stop_process(process)
                log.info("%s stopped with status %d", each.room.name, status)
        for keeper in self._keepers:
            keeper.cancel()
        for outcome in await asyncio.gather(*self._keepers, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("supervision failed: %r", outcome)

    async def _keep(self, each: Supervised) -> None:
        failures = 0
        while not self._stopping:
            async with each.starting:
                if self._stopping:
                    return
                each.process = await start_room(each.room, self._home)
            started = asyncio.get_running_loop().time()
            watcher = asyncio.create_task(self._watch(each))
            status = await each.process.wait()
            watcher.cancel()
            answered = each.ready.is_set()
            each.ready.clear()
            if self._stopping:
                return
            if status == _REFUSED and not answered and each.restarts == 0:
                self._refused.put_nowait(each.room.name)
                return
            if answered and asyncio.get_running_loop().time() - started > _HEALTHY_S:
                failures = 0
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures += 1
            each.restarts += 1
            log.warning("%s ended with status %d; starting it again in %.1f s", each.room.name, status, pause)
            await asyncio.sleep(pause)

    async def _watch(self, each: Supervised) -> None:
        while not await answers(self._home.socket(each.room.name)):  # noqa: ASYNC110  another process; no event
            await asyncio.sleep(_POLL_S)
        each.ready.set()


@asynccontextmanager
async def supervise(home: DeskHome, rooms: Sequence[Room]) -> AsyncGenerator[Supervisor]:
    """Run the rooms for the length of the block.

    Raises:
        Unavailable: (DESK_RUNNING) another supervisor runs this home, or (ROOM_NOT_READY) a room does not start.
    """
    lock = FileLock(home.run / "supervisor.lock")
    if not lock.try_lock(shared=False):
        raise Unavailable(
            "a desk is already running in this home", code="DESK_RUNNING", suggestion="see `grekko status`"
        )
    try:
        for name in await stop_leftovers(home, tuple(ROOM_MODULES)):
            log.warning("%s was left running by a supervisor that died; stopped it", name)
        supervisor = Supervisor(home, rooms)
        try:
            await supervisor.start()
            yield supervisor
        finally:
            await supervisor.stop()
    finally:
        lock.release()


def _last_words(log_file: Path) -> str:
    """Return why a room did not start, as it said itself in its log."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines() if log_file.exists() else []
    said = next((line for line in reversed(lines) if _WILL_NOT in line), "")
    return said.partition(_WILL_NOT)[2].strip() or f"it ended with status {_REFUSED}"


async def answers(socket: Path) -> bool:
    """Return whether a server answers its health route on a unix socket."""
    try:
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(socket)), timeout=2) as client:
            return (await client.get("http://localhost/health")).status_code == 200
    except (httpx2.HTTPError, OSError):
        return False
