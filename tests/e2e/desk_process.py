"""A whole desk as a user starts it: `grekko run` in a process of its own and a scratch home."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from grekko.processes import ROOM_MODULES, running
from grekko.supervisor import answers
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import BusSettings, EmbeddedRedis

START_TIMEOUT_S = 60.0


class DeskProcess:
    """One home and the `grekko run` that lives in it, which may be killed and started again."""

    def __init__(self, home: Path, database_url: str | None = None) -> None:
        self.settings = DeskSettings.model_validate({"home": home, "REDIS_URL": None, "DATABASE_URL": database_url})
        self.process: asyncio.subprocess.Process | None = None
        self.log = home.parent / "run.log"

    @property
    def home(self) -> DeskHome:
        return self.settings.desk_home

    async def start(self, *arguments: str) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "grekko",
                "run",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
            )

    def environment(self) -> dict[str, str]:
        """Return the variables of every process of this desk, and no others of ours."""
        ours = ("GREKKO_", "REDIS_", "DATABASE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        kept |= {"GREKKO_HOME": str(self.home.path), "PYTHONUNBUFFERED": "1"}
        url = self.settings.database_url
        return kept if url is None else {**kept, "DATABASE_URL": url.get_secret_value()}

    async def wait_until_up(self) -> None:
        """Return when every room answers."""
        for room in ROOM_MODULES:
            await until(lambda room=room: answers(self.home.socket(room)), f"{room} answers", self.tail)

    async def stop(self) -> int:
        """Ask the run to stop in order and return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()

    def pid(self, name: str) -> int | None:
        """Return the process id of a room, of ``redis`` or of the ``supervisor``."""
        if name == "supervisor":
            return None if self.process is None or self.process.returncode is not None else self.process.pid
        if name == "redis":
            return EmbeddedRedis(self.home, self.settings, BusSettings()).pid()
        process = running(self.home, name)
        return None if process is None else process.pid

    def tail(self) -> str:
        """Return the end of the run's output and of every room's log, less the successful calls."""
        texts: list[str] = []
        for log in (self.log, *sorted(self.home.logs.glob("*.log"))):
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            shown = [line[:300] for line in lines if "outcome=ok" not in line][-15:]
            texts.append("\n".join([f"== {log.name}", *shown]))
        return "\n".join(texts)


async def until(holds: Callable[[], object], what: str, context: Callable[[], str] = str) -> None:
    """Wait until an (async) condition on another process holds."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                found = holds()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it never came true that {what}\n{context()}") from None


@asynccontextmanager
async def scratch_desk(database_url: str | None = None) -> AsyncGenerator[DeskProcess]:
    """Yield a desk in a scratch home; whatever of it still runs at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="grekko-e2e-") as directory:
        desk = DeskProcess(Path(directory) / "desk", database_url)
        try:
            yield desk
        finally:
            for name in ("supervisor", *ROOM_MODULES, "redis"):
                if (pid := desk.pid(name)) is not None:
                    os.kill(pid, signal.SIGKILL)
            if desk.process is not None:
                await desk.process.wait()
