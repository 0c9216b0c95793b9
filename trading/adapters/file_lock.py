"""Locks between processes that the kernel drops when their holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final

from trading.domain.errors import Unavailable

_POLL_S: Final = 0.005


class FileLock:
    """An advisory lock on a file; it dies with the process, and is inherited with its descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = -1

    def try_lock(self, *, shared: bool) -> bool:
        """Take the lock if it is free; return whether it was."""
        if self.descriptor < 0:
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            return False
        return True

    async def lock(self, *, timeout_s: float) -> None:
        """Wait for the exclusive lock.

        Raises:
            Unavailable: somebody held it for the whole time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.try_lock(shared=False):  # noqa: ASYNC110  other processes hold it; there is no event
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise Unavailable(f"{self._path.name} is held by another process") from error

    def release(self) -> None:
        """Give the lock back."""
        if self.descriptor >= 0:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Close our descriptor; a child that inherited it keeps the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
