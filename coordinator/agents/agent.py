"""What an agent is: something that looks, may wish, and must answer."""

from __future__ import annotations

from typing import Protocol

from trading.domain.identifiers import AgentId
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Role
from trading.strategy.rules import Hold, Propose, Stance
from trading.strategy.snapshot import MarketSnapshot


class Agent(Protocol):
    """Judges; its seat gives it ids, times and a signature. Answers at once: deliberation happens in between."""

    @property
    def agent_id(self) -> AgentId:
        """Its name on the desk."""
        ...

    @property
    def role(self) -> Role:
        """What it is there for."""
        ...

    @property
    def family(self) -> str:
        """What it thinks with: ``rules`` or a model family. Members of a family err together."""
        ...

    @property
    def proposal_interval_ms(self) -> int:
        """Least time between two proposals; 0 for an agent that never proposes."""
        ...

    def observe(self, snapshot: MarketSnapshot) -> None:
        """Take in the present state of one instrument."""
        ...

    def propose(self) -> Propose | Hold:
        """Return an order to put to the vote, or why there is none."""
        ...

    def vote(self, proposal: TradeProposal) -> Stance:
        """Return a ballot on a verified proposal, on what was observed last."""
        ...
