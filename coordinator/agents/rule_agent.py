"""An agent that follows one mode of ``trading.strategy``; it never leaves its numbers."""

from __future__ import annotations

from trading.domain.identifiers import AgentId, Symbol
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Choice, Role
from trading.strategy.modes import ModeNumbers
from trading.strategy.rules import Hold, Propose, Stance, propose, stance
from trading.strategy.snapshot import MarketSnapshot


class RuleAgent:
    """Proposes and votes by the rules of a mode.

    Args:
        agent_id: its name.
        mode: its temperament.
    """

    def __init__(self, agent_id: AgentId, mode: ModeNumbers) -> None:
        self._agent_id = agent_id
        self._mode = mode
        self._seen: dict[Symbol, MarketSnapshot] = {}

    @property
    def agent_id(self) -> AgentId:
        """Its name on the desk."""
        return self._agent_id

    @property
    def role(self) -> Role:
        """A trader."""
        return Role.TRADER

    @property
    def family(self) -> str:
        """Rules."""
        return "rules"

    @property
    def proposal_interval_ms(self) -> int:
        """The mode's."""
        return self._mode.proposal_interval_ms

    def observe(self, snapshot: MarketSnapshot) -> None:
        """Remember the newest state of an instrument."""
        self._seen[snapshot.instrument.symbol] = snapshot

    def propose(self) -> Propose | Hold:
        """Return the first order the mode wants, going through the instruments by name."""
        answer: Propose | Hold = Hold("nothing was observed yet")
        for _, snapshot in sorted(self._seen.items()):
            answer = propose(snapshot, self._mode)
            if isinstance(answer, Propose):
                break
        return answer

    def vote(self, proposal: TradeProposal) -> Stance:
        """Return the mode's stance; it abstains on an instrument it has not seen."""
        snapshot = self._seen.get(proposal.order.symbol)
        if snapshot is None:
            return Stance(Choice.ABSTAIN, "this instrument was not observed")
        return stance(snapshot, proposal.order, self._mode)
