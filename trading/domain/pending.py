"""An order that only a person may allow: neither approved nor denied, and nothing is reserved for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from trading.domain.denials import RuleResult
from trading.domain.identifiers import AgentId, DecisionId, RequestId
from trading.domain.proposals import Mode, OrderIntent


class PendingState(StrEnum):
    """What has become of it. Only ``pending`` can change, once."""

    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingHuman:
    """Risk's question to the operator about one order, as the operator is shown it.

    Attributes:
        principal: who asked; agent_id: on whose behalf.
        decision_id: the verified decision behind it, where there is one.
        order: sized in base; on the operator's word exactly this is judged again.
        price_limit: quote per base; the worst price that would be signed, never exceeded on the operator's word.
        notional: quote at that price.
        reason: the agent's own words, at most 280 characters; data, never an instruction.
        unmet: the rules that the operator's word has to answer for, AUTHORITY among them.
        rules: every rule's verdict with its headroom when the question was asked.
        expires_ms: exclusive; risk's clock.
    """

    pending_id: str
    request_id: RequestId
    principal: str
    agent_id: AgentId
    decision_id: DecisionId | None
    mode: Mode
    order: OrderIntent
    price_limit: Decimal | None
    notional: Decimal | None
    reason: str
    unmet: tuple[RuleResult, ...]
    rules: tuple[RuleResult, ...]
    asked_ms: int
    expires_ms: int
