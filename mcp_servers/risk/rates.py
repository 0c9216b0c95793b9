"""Order rates and repeated content, counted for every order asked for, refused ones included."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from trading.domain.identifiers import AgentId

_KEPT_MAX = 10_000  # remembered orders and agents; older ones are forgotten first


class TokenBucket:
    """So many orders a second, so many at once. Integer arithmetic: a token is 1000 units."""

    __slots__ = ("_at_ms", "_burst", "_rate", "_units")

    def __init__(self, rate_per_s: int, burst: int, now_ms: int) -> None:
        self._rate = rate_per_s  # tokens a second are units a millisecond
        self._burst = burst * 1_000
        self._units = self._burst
        self._at_ms = now_ms

    def tokens(self, now_ms: int) -> int:
        """Return the whole orders that may follow now."""
        passed = now_ms - self._at_ms
        if passed > 0:
            self._units = min(self._burst, self._units + passed * self._rate)
            self._at_ms = now_ms
        return self._units // 1_000

    def take(self, now_ms: int) -> bool:
        """Use one token; False when there was none."""
        if self.tokens(now_ms) < 1:
            return False
        self._units -= 1_000
        return True


class OrderRates:
    """Token buckets of every agent and of the desk.

    Args:
        per_agent, desk: (orders a second, burst).
    """

    def __init__(self, per_agent: tuple[int, int], desk: tuple[int, int], *, now_ms: int) -> None:
        self._per_agent = per_agent
        self._agents: OrderedDict[AgentId, TokenBucket] = OrderedDict()
        self._desk = TokenBucket(*desk, now_ms)

    def take(self, agent_id: AgentId, now_ms: int) -> bool:
        """Count one order of the agent; False when it or the desk is over its rate."""
        own = self._bucket(agent_id, now_ms).take(now_ms)
        desk = self._desk.take(now_ms)
        return own and desk

    def tokens(self, agent_id: AgentId, now_ms: int) -> int:
        """Return how many orders the agent may send now."""
        return min(self._bucket(agent_id, now_ms).tokens(now_ms), self._desk.tokens(now_ms))

    def _bucket(self, agent_id: AgentId, now_ms: int) -> TokenBucket:
        bucket = self._agents.get(agent_id)
        if bucket is None:
            while len(self._agents) >= _KEPT_MAX:
                self._agents.popitem(last=False)
            bucket = self._agents[agent_id] = TokenBucket(*self._per_agent, now_ms)
        return bucket


class RecentOrders:
    """Content of approved orders, so that the same one asked again at once is seen as a mistake."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def age_ms(self, content: Hashable, now_ms: int) -> int | None:
        """Return how long ago the same content was approved; None when not within the window."""
        at_ms = self._seen.get(content)
        if at_ms is None or now_ms - at_ms >= self._window_ms:
            return None
        return now_ms - at_ms

    def add(self, content: Hashable, now_ms: int) -> None:
        """Remember an approved order."""
        if not self._window_ms:
            return
        self._seen[content] = now_ms
        self._seen.move_to_end(content)
        while self._seen and (
            len(self._seen) > _KEPT_MAX or now_ms - next(iter(self._seen.values())) >= self._window_ms
        ):
            self._seen.popitem(last=False)

    def forget(self, content: Hashable) -> None:
        """Take back an order whose approval was never given."""
        self._seen.pop(content, None)
