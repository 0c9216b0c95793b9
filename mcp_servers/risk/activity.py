"""What was approved and traded lately: turnover, drift, repeated entries and losing streaks.

Rules kept here:

- An approval counts from the moment it is given and for the whole window, also when it is never used: a runaway is
  stopped by what it asks for, before anything is filled.
- After a restart the window is filled again from the approvals still open and from the orders in execution's ledger.
- Windows move in slices of a 60th: an entry counts up to one slice longer than the window, never shorter.
- An agent that entered too often stays stopped until a person resumes it; time alone does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import Final

from trading.domain.identifiers import AgentId, ApprovalId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, subtract

_SLICES: Final = 60
_STREAK_KEPT: Final = 1_000  # losing orders remembered of one agent
Key = tuple[AgentId, InstrumentId]


class Flow:
    """Quote approved within the window.

    Attributes:
        turnover: both sides together.
        drift: buys less sells; kept for instruments only.
    """

    __slots__ = ("drift", "turnover")

    def __init__(self) -> None:
        self.turnover = ZERO
        self.drift = ZERO


class ApprovedFlow:
    """Sums of approved quote over a moving window: of the desk, of each agent and of each instrument."""

    def __init__(self) -> None:
        self.desk = Flow()
        self._agents: dict[AgentId, Flow] = {}
        self._instruments: dict[InstrumentId, Flow] = {}
        self._slices: deque[tuple[int, dict[Key, Flow]]] = deque()

    def agent(self, agent_id: AgentId) -> Flow:
        """Return the live sums of one agent."""
        return self._agents.get(agent_id) or Flow()

    def instrument(self, instrument_id: InstrumentId) -> Flow:
        """Return the live sums of one instrument."""
        return self._instruments.get(instrument_id) or Flow()

    def expire(self, now_ms: int, window_ms: int) -> None:
        """Forget what lies before the window."""
        slices, length = self._slices, max(1, window_ms // _SLICES)
        while slices and slices[0][0] + length <= now_ms - window_ms:
            for (agent_id, instrument_id), flow in slices.popleft()[1].items():
                instrument = self._instruments[instrument_id]
                for total in (self.desk, self._agents[agent_id], instrument):
                    total.turnover = subtract(total.turnover, flow.turnover)
                instrument.drift = subtract(instrument.drift, flow.drift)
                if not self._agents[agent_id].turnover:
                    del self._agents[agent_id]

    def add(self, key: Key, side: Side, notional: Decimal, at_ms: int, window_ms: int) -> None:
        """Count an approval of so much quote (>= 0); times must not fall."""
        length = max(1, window_ms // _SLICES)
        start = at_ms - at_ms % length
        slices = self._slices
        if not slices or slices[-1][0] < start:
            slices.append((start, {}))
        signed = notional if side is Side.BUY else -notional
        agent_id, instrument_id = key
        part, instrument = slices[-1][1].get(key), self._instruments.get(instrument_id)
        if part is None:
            part = slices[-1][1][key] = Flow()
        if instrument is None:
            instrument = self._instruments[instrument_id] = Flow()
        agent = self._agents.get(agent_id)
        if agent is None:
            agent = self._agents[agent_id] = Flow()
        for flow in (part, instrument, agent, self.desk):
            flow.turnover = add(flow.turnover, notional)
        part.drift, instrument.drift = add(part.drift, signed), add(instrument.drift, signed)


class Activity:
    """What agents did lately, as far as limits are concerned.

    Args:
        entries_limit: gives (most, window in ms) for an agent and instrument.
    """

    def __init__(self, entries_limit: Callable[[AgentId, InstrumentId], tuple[int, int]] | None = None) -> None:
        self.flow = ApprovedFlow()
        self.entries_limit = entries_limit
        self.stopped: dict[Key, int] = {}
        self.rearmed_ms = 0
        self._entries: dict[Key, deque[int]] = {}
        self._losses: dict[AgentId, deque[int]] = {}
        self._replayed: set[ApprovalId] = set()
        self._losers: dict[AgentId, None] = {}
        self.rearmed_agents: dict[AgentId, int] = {}

    # -- repeated entries (RTS 6 Art. 15(3)) ------------------------------------------------------------------------

    def entered(self, agent_id: AgentId, instrument_id: InstrumentId, at_ms: int) -> bool:
        """Note that an order that adds risk was filled; True when that stops the agent in this instrument."""
        if self.entries_limit is None or at_ms <= max(self.rearmed_ms, self.rearmed_agents.get(agent_id, 0)):
            return False
        key, (most, window_ms) = (agent_id, instrument_id), self.entries_limit(agent_id, instrument_id)
        times = self._entries.setdefault(key, deque())
        times.append(at_ms)
        while times and times[0] <= at_ms - window_ms:
            times.popleft()
        if len(times) <= most or key in self.stopped:
            return False
        self.stopped[key] = at_ms
        return True

    def entries(self, key: Key, now_ms: int, window_ms: int) -> int:
        """Return how many entries were filled within the window."""
        times = self._entries.get(key)
        if not times:
            return 0
        while times and times[0] <= now_ms - window_ms:
            times.popleft()
        return len(times)

    def rearm(self, now_ms: int) -> bool:
        """Let stopped agents go on and begin all counts anew, as a person decided; True if that changed anything."""
        changed = bool(self.stopped or self._losses)
        self.rearmed_ms = now_ms
        self.stopped.clear()
        self._entries.clear()
        self._losses.clear()
        return changed

    def rearm_agent(self, agent_id: AgentId, now_ms: int) -> None:
        """Let one agent go on and begin its counts anew, as a person decided."""
        self.rearmed_agents[agent_id] = now_ms
        for key in [key for key in (*self.stopped, *self._entries) if key[0] == agent_id]:
            self.stopped.pop(key, None)
            self._entries.pop(key, None)
        self._losses.pop(agent_id, None)

    # -- losing streaks -----------------------------------------------------------------------------------------------

    def closed(self, agent_id: AgentId, result: Decimal, at_ms: int) -> None:
        """Note what an order that closed a position earned, fees included; a gain ends the streak."""
        if at_ms <= max(self.rearmed_ms, self.rearmed_agents.get(agent_id, 0)):
            return
        if result < 0:
            self._losers[agent_id] = None
            self._losses.setdefault(agent_id, deque(maxlen=_STREAK_KEPT)).append(at_ms)
        elif result > 0:
            self._losses.pop(agent_id, None)

    def take_losers(self) -> list[AgentId]:
        """Return the agents that lost since this was asked last."""
        losers = list(self._losers)
        self._losers.clear()
        return losers

    def losses(self, agent_id: AgentId, now_ms: int, window_ms: int) -> int:
        """Return how many orders in a row lost, none of them older than the window."""
        times = self._losses.get(agent_id)
        if not times:
            return 0
        while times and times[0] <= now_ms - window_ms:
            times.popleft()
        return len(times)

    # -- restart ------------------------------------------------------------------------------------------------------

    def replay(self, found: list[tuple[ApprovalId, Key, Side, Decimal, int]], now_ms: int, window_ms: int) -> None:
        """Fill the window again after a start.

        Args:
            found: (approval, agent and instrument, side, quote, when); an approval that comes twice counts once.
        """
        for approval_id, key, side, notional, at_ms in sorted(found, key=lambda item: item[4]):
            if at_ms > now_ms - window_ms and approval_id not in self._replayed:
                self._replayed.add(approval_id)
                self.flow.add(key, side, notional, at_ms, window_ms)
        self._replayed.clear()
