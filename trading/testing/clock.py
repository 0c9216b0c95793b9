"""A clock that moves only when told, and ids that repeat under a seed."""

from __future__ import annotations

import random
import uuid


class ManualClock:
    """Time under the test's control; wall and monotonic time advance together.

    Args:
        now_ms: the first wall time, milliseconds since the epoch.
    """

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ns = now_ms * 1_000_000
        self._start_ns = self._now_ns

    def now_ms(self) -> int:
        """Return the current wall time in milliseconds."""
        return self._now_ns // 1_000_000

    def monotonic_ns(self) -> int:
        """Return nanoseconds since this clock was made."""
        return self._now_ns - self._start_ns

    def advance(self, ms: int) -> None:
        """Move time forward by ``ms`` milliseconds, >= 0."""
        if ms < 0:
            raise ValueError("time does not go back")
        self._now_ns += ms * 1_000_000


class SeededIds:
    """UUID-shaped ids that are the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def new_id(self) -> str:
        """Return the next id, 36 characters."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))
