"""The machine's clock and UUIDv7; the only place that reads either."""

from __future__ import annotations

import time

import uuid_utils


class SystemClock:
    """Wall and monotonic time of this machine."""

    def now_ms(self) -> int:
        """Return wall time in milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ns(self) -> int:
        """Return a time that never goes back, in nanoseconds."""
        return time.monotonic_ns()


class Uuid7Factory:
    """Fresh UUIDv7 ids."""

    def new_id(self) -> str:
        """Return a UUIDv7 as 36 characters of text."""
        return str(uuid_utils.uuid7())
