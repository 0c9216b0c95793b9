"""Stops the embedded Redis when every process that used it was killed; runs beside the server as a process of its own.

A process that leaves in good order stops the server itself (see ``embedded_redis``). If the last ones are killed
instead, the kernel drops their locks and nobody is left to act but this guard, which looks every two seconds. It is
started as a file, with the standard library only, so that it costs little.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

_LOOK_S: Final = 2.0
_STOP_S: Final = 10.0
_STEP_S: Final = 0.02


def _take(path: Path) -> int | None:
    """Return a descriptor that holds the lock exclusively, or None if somebody else has it.

    Raises:
        FileNotFoundError: the desk's home is being removed; nothing is created in it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_free(path: Path) -> bool:
    descriptor = _take(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _finished(directory: Path, guard: int) -> bool:
    """Look once; return whether the guard's work is done. Holds the start lock, so nobody joins or starts meanwhile."""
    start = _take(directory / "start.lock")
    if start is None:
        return False
    try:
        alive = directory / "server.lock"
        if not _is_free(alive):
            if not _is_free(directory / "users.lock"):
                return False
            os.kill(int((directory / "server.pid").read_text(encoding="ascii")), signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while not _is_free(alive) and time.monotonic() < deadline:
                time.sleep(_STEP_S)
        os.close(guard)  # before the start lock: the guard of the next server must find this one gone
        return True
    finally:
        os.close(start)


def watch(directory: Path) -> None:
    """Return when the server of that directory has stopped, by itself or because nobody used it any more."""
    guard = _take(directory / "guard.lock")
    while guard is not None:
        try:
            if _finished(directory, guard):
                return
        except (FileNotFoundError, ProcessLookupError, ValueError):
            if not (directory / "guard.lock").exists():
                return
        time.sleep(_LOOK_S)


def main() -> None:
    """Leave the starter's process tree, then watch."""
    if os.fork():
        os._exit(0)
    watch(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
