"""How many refusals of one agent are written down: enough to see what it did, not enough to fill the disk."""

from __future__ import annotations

from trading.domain.identifiers import AgentId
from trading.ports.clock import Clock


class RefusalBudget:
    """A token bucket for each agent; the counters of the service count what is no longer recorded.

    Args:
        clock: its monotonic half.
        per_s: refusals recorded in the long run.
        burst: at once before that holds.
    """

    def __init__(self, clock: Clock, *, per_s: float = 5.0, burst: int = 50) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = float(burst)
        self._left: dict[AgentId, tuple[float, int]] = {}

    def take(self, agent_id: AgentId) -> bool:
        """Return whether one more refusal of that agent is recorded."""
        now_ns = self._clock.monotonic_ns()
        left, at_ns = self._left.get(agent_id, (self._burst, now_ns))
        left = min(self._burst, left + (now_ns - at_ns) / 1e9 * self._per_s)
        taken = left >= 1
        self._left[agent_id] = (left - 1 if taken else left, now_ns)
        return taken
