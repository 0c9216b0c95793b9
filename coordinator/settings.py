"""The ``[coordinator]`` section: who sits at the table, how votes are counted, and where the other rooms are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from coordinator.agents import AGENT_IDS
from trading.adapters.config import DeskSettings, SectionModel, load_section, load_settings
from trading.domain.identifiers import AgentId
from trading.domain.proposals import TradeClass
from trading.domain.voting import QuorumPolicy

Millis = Annotated[int, Field(gt=0)]


class QuorumSection(SectionModel):
    """The voting rule; see ``trading.domain.voting.QuorumPolicy``. Risk's own copy is the floor."""

    threshold_numerator: Annotated[int, Field(gt=0)] = 3
    threshold_denominator: Annotated[int, Field(gt=0)] = 5
    min_yes: Annotated[int, Field(gt=0)] = 2
    min_yes_large: Annotated[int, Field(gt=0)] = 3
    quorum: Annotated[int, Field(gt=0)] = 2
    require_risk_consent: StrictBool = True

    def policy(self) -> QuorumPolicy:
        """Return the domain's form of these numbers."""
        return QuorumPolicy(**self.model_dump())


class CoordinatorSection(SectionModel):
    """How the meeting is run.

    Attributes:
        agents: which of the hosted agents sit at the table.
        outside_agents: agents that run elsewhere; each needs ``keys/public/agent-<id>.pub`` and may write its inbox or
            use the tools of this server. They trade, they do not hold the risk role.
        vote_ms: time to vote on a proposal of the fast and the large class, by Redis TIME.
        standard_vote_ms: the same for the standard class.
        proposal_life_ms: longest time from the deadline to a proposal's expiry.
        leader_ttl_ms: life of the leader's lock; a crashed leader is replaced after it.
        open_max: proposals under vote or under way at once.
        workers: decisions brought through risk and execution at once.
        call_timeout_s: how long one call to another room may take before it is asked again.
        give_up_ms: how long after a decision's expiry an answer is still asked for.
        candle_ms: length of the agents' candles, on the venue's clock.
        account_every_ms: how often the account's figures are read.
        rooms: ``socket`` calls the desk's other servers on their unix sockets, ``stdio`` starts its own, ``auto`` takes
            the sockets if they exist when this server starts.
        stop_grace_s: how long running rounds and decisions may take at a stop; what is left is resumed at the next
            start.
    """

    agents: tuple[AgentId, ...] = AGENT_IDS
    outside_agents: tuple[AgentId, ...] = ()
    vote_ms: Annotated[int, Field(ge=50, le=10_000)] = 500
    standard_vote_ms: Annotated[int, Field(ge=50, le=60_000)] = 500
    proposal_life_ms: Annotated[int, Field(ge=100, le=60_000)] = 4_500
    leader_ttl_ms: Annotated[int, Field(ge=200, le=60_000)] = 2_000
    open_max: Annotated[int, Field(gt=0, le=10_000)] = 256
    workers: Annotated[int, Field(gt=0, le=64)] = 8
    call_timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    give_up_ms: Millis = 30_000
    candle_ms: Annotated[int, Field(ge=100, le=60_000)] = 1_000
    account_every_ms: Annotated[int, Field(ge=50, le=5_000)] = 250
    rooms: Literal["auto", "socket", "stdio"] = "auto"
    stop_grace_s: Annotated[float, Field(ge=0, le=30)] = 3.0
    quorum: QuorumSection = QuorumSection()

    @property
    def windows_ms(self) -> dict[TradeClass, int]:
        """Return the longest vote by class."""
        return {
            TradeClass.FAST: self.vote_ms,
            TradeClass.LARGE: self.vote_ms,
            TradeClass.STANDARD: self.standard_vote_ms,
        }


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """The desk's settings and the room's own."""

    desk: DeskSettings
    coordinator: CoordinatorSection


def load_coordinator_settings() -> CoordinatorSettings:
    """Read the environment and the config file.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return CoordinatorSettings(load_settings(), load_section(CoordinatorSection, "coordinator"))
