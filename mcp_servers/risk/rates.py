"""Order rates and repeated content, counted for every order asked for, refused ones included."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from trading.domain.identifiers import AgentId
from trading.domain.instruments import InstrumentId

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

    def retune(self, rate_per_s: int, burst: int, now_ms: int) -> None:
        """Go on at another rate; what was used up stays used up."""
        self.tokens(now_ms)
        self._rate, self._burst = rate_per_s, burst * 1_000
        self._units = min(self._units, self._burst)

    def take(self, now_ms: int) -> bool:
        """Use one token; False when there was none."""
        if now_ms != self._at_ms:
            self.tokens(now_ms)
        if self._units < 1_000:
            return False
        self._units -= 1_000
        return True


Rate = tuple[int, int]
"""Orders a second, and how many at once."""


@dataclass(frozen=True, slots=True)
class OrderPace:
    """How many orders the limits allow.

    Attributes:
        per_agent: gives the rate of one agent.
        desk: of all agents together.
        per_symbol, per_venue: orders of all agents in one symbol, at one venue; None sets no bound.
    """

    per_agent: Callable[[AgentId], Rate]
    desk: Rate
    per_symbol: Rate | None = None
    per_venue: Rate | None = None


class OrderRates:
    """Token buckets of every agent, of every symbol and venue where a limit asks for them, and of the desk."""

    def __init__(self, pace: OrderPace, now_ms: int) -> None:
        self._pace = pace
        self._buckets: OrderedDict[tuple[str, ...], TokenBucket] = OrderedDict()
        self._desk = TokenBucket(*pace.desk, now_ms)
        self._together: dict[tuple[AgentId, InstrumentId | None], list[TokenBucket]] = {}

    def retune(self, pace: OrderPace, now_ms: int) -> None:
        """Follow other limits; nobody gets back what was used up already."""
        self._pace = pace
        self._desk.retune(*pace.desk, now_ms)
        self._together.clear()
        unbounded = {name for name, rate in (("symbol", pace.per_symbol), ("venue", pace.per_venue)) if rate is None}
        for key in list(self._buckets):
            if key[0] in unbounded:
                del self._buckets[key]
            else:
                self._buckets[key].retune(*self._rate(key), now_ms)

    def take(self, agent_id: AgentId, now_ms: int, instrument_id: InstrumentId | None = None) -> bool:
        """Count one order; False when the agent, its symbol, its venue or the desk is over its rate."""
        taken = [bucket.take(now_ms) for bucket in self._of(agent_id, now_ms, instrument_id)]
        return False not in taken

    def tokens(self, agent_id: AgentId, now_ms: int, instrument_id: InstrumentId | None = None) -> int:
        """Return how many orders the agent may send now."""
        return min([bucket.tokens(now_ms) for bucket in self._of(agent_id, now_ms, instrument_id)])

    def agents(self) -> list[AgentId]:
        """Return the agents that asked lately."""
        return [AgentId(key[1]) for key in self._buckets if key[0] == "agent"]

    def _of(self, agent_id: AgentId, now_ms: int, instrument_id: InstrumentId | None) -> list[TokenBucket]:
        buckets = self._together.get((agent_id, instrument_id))
        if buckets is not None:
            return buckets
        buckets = [self._desk, self._bucket(("agent", agent_id), now_ms)]
        if instrument_id is not None:
            if self._pace.per_symbol is not None:
                buckets.append(self._bucket(("symbol", *instrument_id), now_ms))
            if self._pace.per_venue is not None:
                buckets.append(self._bucket(("venue", instrument_id.venue), now_ms))
        if len(self._together) >= _KEPT_MAX:
            self._together.clear()
        if len(self._buckets) < _KEPT_MAX:  # else one of them may have been forgotten for another just now
            self._together[agent_id, instrument_id] = buckets
        return buckets

    def _bucket(self, key: tuple[str, ...], now_ms: int) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= _KEPT_MAX:
                self._buckets.popitem(last=False)
                self._together.clear()  # nobody may go on counting in a bucket that was forgotten
            bucket = self._buckets[key] = TokenBucket(*self._rate(key), now_ms)
        return bucket

    def _rate(self, key: tuple[str, ...]) -> Rate:
        found = {"symbol": self._pace.per_symbol, "venue": self._pace.per_venue}.get(key[0])
        return found if found is not None else self._pace.per_agent(AgentId(key[1]))


class RecentOrders:
    """Content of approved orders, so that the same one asked again at once is seen as a mistake.

    Attributes:
        window_ms: how long "at once" is; may change, then what was forgotten under the old one stays forgotten.
    """

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._seen: OrderedDict[Hashable, int] = OrderedDict()

    def age_ms(self, content: Hashable, now_ms: int) -> int | None:
        """Return how long ago the same content was approved; None when not within the window."""
        at_ms = self._seen.get(content)
        if at_ms is None or now_ms - at_ms >= self.window_ms:
            return None
        return now_ms - at_ms

    def add(self, content: Hashable, now_ms: int) -> None:
        """Remember an approved order."""
        if not self.window_ms:
            return
        self._seen[content] = now_ms
        self._seen.move_to_end(content)
        while self._seen and (
            len(self._seen) > _KEPT_MAX or now_ms - next(iter(self._seen.values())) >= self.window_ms
        ):
            self._seen.popitem(last=False)

    def forget(self, content: Hashable) -> None:
        """Take back an order whose approval was never given."""
        self._seen.pop(content, None)
