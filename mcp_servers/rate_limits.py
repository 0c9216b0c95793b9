"""A token bucket per principal, so that one caller's loop cannot starve the others."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from mcp_servers.tool_errors import RateLimited
from trading.ports.clock import Clock

#: Principals remembered; the one that has been quiet longest is forgotten first, and starts with a full bucket again.
_MAX_PRINCIPALS: Final = 1_024
_NS: Final = 1_000_000_000


class RateLimiter:
    """Let each principal make ``burst`` requests at once and ``per_s`` in the long run.

    Args:
        clock: monotonic time is read.
        per_s: requests per second, > 0.
        burst: requests at once, >= 1.
    """

    def __init__(self, clock: Clock, *, per_s: float, burst: int) -> None:
        if per_s <= 0 or burst < 1:
            raise ValueError("per_s must be positive and burst at least 1")
        self._clock = clock
        self._per_ns = per_s / _NS
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, principal: str) -> None:
        """Count one request of ``principal``.

        Raises:
            RateLimited: its bucket is empty; ``after_ms`` says when the next request fits.
        """
        now = self._clock.monotonic_ns()
        level, seen = self._buckets.pop(principal, (self._burst, now))
        level = min(self._burst, level + (now - seen) * self._per_ns)
        allowed = level >= 1
        self._buckets[principal] = (level - 1 if allowed else level, now)
        if len(self._buckets) > _MAX_PRINCIPALS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimited(after_ms=math.ceil((1 - level) / self._per_ns / 1_000_000))
