from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError, RedisError

from tests.bus_support import BUNDLED, eventually, server_of, settings_for, short_home
from trading.adapters import redis_server
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import EmbeddedRedis, open_redis, provision_agent, revoke_agent
from trading.adapters.file_lock import FileLock
from trading.adapters.redis_acl import read_password
from trading.adapters.redis_client import call, redis_time_ms, refused, unix_client
from trading.domain.errors import ConfigurationError, InvalidValue, Unavailable

USER_PROCESS = """
import asyncio, sys
from pathlib import Path
from tests.bus_support import BUNDLED, DeskHome, settings_for
from trading.adapters.embedded_redis import open_redis

async def main():
    home = DeskHome(Path(sys.argv[1]))
    async with open_redis(home, settings_for(home), "market", bus=BUNDLED) as redis:
        await redis.incr(settings_for(home).key("market", "processes"))
        print("joined", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[DeskHome]:
    with short_home() as made:
        yield made


async def _user_process(home: DeskHome) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", USER_PROCESS, str(home.path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"joined\n"
    return process


async def _leave(process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(30):
        await process.communicate(b"")  # the end of its input
    assert process.returncode == 0


def _is_free(path: Path) -> bool:
    lock = FileLock(path)
    taken = lock.try_lock(shared=True)
    lock.release()
    return taken


async def _kill_server(home: DeskHome) -> None:
    pid = server_of(home).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_processes_share_one_server_and_the_last_to_leave_stops_it(home: DeskHome):
    first, second = await asyncio.gather(_user_process(home), _user_process(home))
    pid = server_of(home).pid()
    async with open_redis(home, settings_for(home), "console", bus=BUNDLED) as redis:
        await _leave(first)
        second.kill()  # a process that is killed counts as gone
        await second.communicate(b"")
        assert server_of(home).pid() == pid
        assert await call(redis, "GET", settings_for(home).key("market", "processes")) == b"2"
    assert not server_of(home).alive()
    assert not (home.bus / "redis.sock").exists()


async def test_server_that_does_not_hear_the_first_request_is_stopped_by_the_next(
    home: DeskHome, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, ...]] = []
    admin = EmbeddedRedis.admin

    async def not_listening_yet(self: EmbeddedRedis, *command: str) -> object:
        if command[0] == "SHUTDOWN":
            asked.append(command)
            if len(asked) == 1:
                raise ConnectionRefusedError
        return await admin(self, *command)

    monkeypatch.setattr(EmbeddedRedis, "admin", not_listening_yet)
    async with open_redis(home, settings_for(home), "market", bus=BUNDLED):
        assert server_of(home).alive()
    assert not server_of(home).alive()
    assert len(asked) >= 2


async def test_server_stops_by_itself_when_all_its_users_were_killed(home: DeskHome):
    users = await asyncio.gather(_user_process(home), _user_process(home))
    for user in users:
        user.kill()
        await user.communicate(b"")
    assert server_of(home).alive()
    await eventually(lambda: not server_of(home).alive(), timeout_s=20)
    # Stopped in good order: the data is there for the next run, whose server gets a guard of its own.
    async with open_redis(home, settings_for(home), "console", bus=BUNDLED) as redis:
        assert await call(redis, "GET", settings_for(home).key("market", "processes")) == b"2"
        await eventually(lambda: not _is_free(home.bus / "guard.lock"))


async def test_users_in_one_process_share_too(home: DeskHome):
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_redis(home, settings_for(home), user, bus=BUNDLED))
            for user in ("market", "risk", "execution", "coordinator", "wallet", "console")
        ]
        times = [await redis_time_ms(client) for client in clients]
        assert times == sorted(times)
        assert server_of(home).alive()
    assert not server_of(home).alive()


async def test_killed_server_is_noticed_and_started_again_on_the_same_data(home: DeskHome):
    key = settings_for(home).key("risk", "heartbeat")
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED) as redis:
        await call(redis, "XADD", key, "*", "e", "one")
        first = server_of(home).pid()
        await _kill_server(home)
        await eventually(lambda: server_of(home).pid() not in (None, first))
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await call(redis, "XLEN", key) == 1
                    break
                except RedisError:
                    continue
        await call(redis, "XADD", key, "*", "e", "two")


async def test_data_outlives_a_clean_stop(home: DeskHome):
    key = settings_for(home).key("risk", "note")
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED) as redis:
        await call(redis, "SET", key, "kept")
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED) as redis:
        assert await call(redis, "GET", key) == b"kept"


async def test_stale_socket_and_process_id_are_recovered(home: DeskHome):
    (home.bus / "redis.sock").touch()
    (home.bus / "server.pid").write_text(str(os.getpid()))  # the id now belongs to somebody else
    assert server_of(home).pid() is None
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED) as redis:
        await redis_time_ms(redis)
        assert server_of(home).pid() != os.getpid()


async def test_server_listens_on_no_port_never_evicts_and_keeps_its_files_private(home: DeskHome):
    await provision_agent(home, settings_for(home), "ann")
    async with open_redis(home, settings_for(home), "admin", bus=BUNDLED) as redis:
        reply = await call(redis, "CONFIG", "GET", "*")
        config = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
        wanted = {"port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}
        assert {name: config[name] for name in wanted} == wanted
        assert int(config["maxmemory"]) == 256 * 1024 * 1024
        assert stat.S_IMODE(home.bus.stat().st_mode) == 0o700
        loose = [path.name for path in home.bus.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
        assert loose == []


async def test_nobody_gets_in_without_a_password(home: DeskHome):
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED):
        socket = server_of(home).socket
        for user, password in (("default", ""), ("risk", "guess"), ("nobody", "guess")):
            async with unix_client(socket, user=user, password=password, retries=0) as redis:
                with pytest.raises(RedisError) as caught:
                    await redis_time_ms(redis)
                assert refused(caught.value)


async def test_long_home_gets_a_socket_that_fits(home: DeskHome):
    long_home = DeskHome(home.path / ("d" * 100)).ensure()
    async with open_redis(long_home, settings_for(long_home), "risk", bus=BUNDLED) as redis:
        assert len(os.fsencode(server_of(long_home).socket)) < 108
        await redis_time_ms(redis)
    server_of(long_home).socket.parent.rmdir()


async def test_agent_can_be_provisioned_before_and_while_the_server_runs_and_revoked(home: DeskHome):
    settings = settings_for(home)
    early = await provision_agent(home, settings, "early")
    async with open_redis(home, settings, "coordinator", bus=BUNDLED):
        late = await provision_agent(home, settings, "late")
        assert await provision_agent(home, settings, "late") == late
        for user in (early, late):
            async with open_redis(home, settings, user, bus=BUNDLED) as redis:
                inbox = settings.key("vote", "in", user.removeprefix("agent-"))
                assert await call(redis, "XADD", inbox, "*", "e", "yes")
        async with open_redis(home, settings, late, bus=BUNDLED) as redis:
            await revoke_agent(home, settings, "late")
            with pytest.raises(RedisError):
                await call(redis, "XADD", settings.key("vote", "in", "late"), "*", "e", "yes")
    with pytest.raises(ConfigurationError):
        async with open_redis(home, settings, late, bus=BUNDLED):
            pass
    assert not server_of(home).alive()
    with pytest.raises(InvalidValue):
        await provision_agent(home, settings, "*")


async def test_damaged_data_refuses_to_start_and_says_why(home: DeskHome):
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED):
        pass
    (manifest,) = home.bus.glob("appendonlydir/*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(Unavailable, match="exited at start"):
        async with open_redis(home, settings_for(home), "risk", bus=BUNDLED):
            pass
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED, required=False) as redis:
        with pytest.raises(RedisError):
            await redis_time_ms(redis)


async def test_redis_url_is_used_with_its_own_credentials(home: DeskHome):
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED), AsyncExitStack() as stack:
        url = f"unix://market:{read_password(home.bus, 'market')}@{server_of(home).socket}"
        with_url = settings_for(home, redis_url=url)
        redis = await stack.enter_async_context(open_redis(home, with_url, "risk"))
        await call(redis, "SET", with_url.key("market", "x"), "1")
        with pytest.raises(NoPermissionError):
            await call(redis, "SET", with_url.key("risk", "x"), "1")
        wrong = settings_for(home, redis_url=f"unix://market:wrong@{server_of(home).socket}")
        with pytest.raises(ConfigurationError, match="refused us"):
            await stack.enter_async_context(open_redis(home, wrong, "risk"))


async def test_redis_url_that_does_not_answer_is_unavailable_unless_not_required(home: DeskHome):
    settings = settings_for(home, redis_url=f"unix://{home.path}/nobody.sock")
    with pytest.raises(Unavailable):
        async with open_redis(home, settings, "risk"):
            pass
    async with open_redis(home, settings, "risk", required=False) as redis:
        with pytest.raises(RedisError):
            await redis_time_ms(redis)
    with pytest.raises(ConfigurationError, match="not a redis"):
        async with open_redis(home, settings_for(home, redis_url="http://127.0.0.1"), "risk"):
            pass


async def test_redis_url_of_an_old_server_is_refused(home: DeskHome):
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"HELLO\r\n$1\r\n2\r\n")
        writer.write(b"*4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(old, home.run / "old.sock"):
        with pytest.raises(ConfigurationError, match=r"6\.2\.14 is older than 7\.0"):
            async with open_redis(home, settings_for(home, redis_url=f"unix://{home.run}/old.sock"), "risk"):
                pass


def _program(directory: Path, name: str, version: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o700)
    return path


async def test_server_on_path_comes_before_the_bundled_one_unless_that_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = await redis_server.find_server(prefer_bundled=False)
    _program(tmp_path, "valkey-server", "6.2.14")
    assert await redis_server.find_server(prefer_bundled=False) == bundled  # too old to count
    on_path = _program(tmp_path, "redis-server", "7.0.15")
    assert await redis_server.find_server(prefer_bundled=False) == on_path
    assert await redis_server.find_server(prefer_bundled=True) == bundled


async def test_machine_without_any_server_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server, "_bundled_server", list)
    with pytest.raises(ConfigurationError) as caught:
        await redis_server.find_server(prefer_bundled=False)
    assert "REDIS_URL" in caught.value.suggestion
