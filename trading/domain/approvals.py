"""What risk signs: one exact order, once, for a short time.

The approval travels as a DSSE envelope (``trading.adapters.signing``); this module knows its content only.
Nothing in it may be changed by the courier, and execution sends nothing that differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from trading.domain.identifiers import (
    AccountId,
    AgentId,
    ApprovalId,
    ClientOrderId,
    DecisionId,
    KeyId,
    RequestId,
    Symbol,
    Venue,
)
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import ExitTerms, StandingExit
from trading.domain.trading_states import Effect, ScopeState, TradingState

APPROVAL_PAYLOAD_TYPE: Final = "application/vnd.grekko.approval+json;v=1"


class Epoch(NamedTuple):
    """Risk's incarnation. A higher one kills every approval of a lower one.

    Attributes:
        generation: committed anew at every start of the risk server.
        counter: raised by every trip and reset within a generation.
    """

    generation: int
    counter: int


class Fate(StrEnum):
    """What became of an approval. Written once, by execution alone."""

    CONSUMED = "consumed"
    LAPSED = "lapsed"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedOrder:
    """The order that will be sent, after rounding, exactly as the venue will see it.

    Attributes:
        order_type: never ``market``: market orders leave as IOC limits at the edge of the band.
        quantity: base, on the step.
        limit_price: quote per base, on the tick; None only for a stop that becomes a market order at the venue.
        reduce_only: may only bring the position nearer to zero.
    """

    account_id: AccountId
    venue: Venue
    symbol: Symbol
    side: Side
    order_type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    limit_price: Decimal | None
    stop_price: Decimal | None
    post_only: bool
    reduce_only: bool
    client_order_id: ClientOrderId

    @property
    def instrument_id(self) -> InstrumentId:
        """Venue and symbol."""
        return InstrumentId(self.venue, self.symbol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Risk's permission to send one order once.

    Attributes:
        band_low: quote per base; the live price must not be below it when the order is sent.
        band_high: quote per base; nor above this.
        max_notional: quote including fees; the most that may be spent or received.
        policy_version: version of the limits it was checked against; rises with every change.
        policy_digest: SHA-256 of those limits, 64 hexadecimal digits.
        risk_score: in [0, 1] as decimal text; 1 when it is not known.
        standing_exit: the permission to close what this order opens; on every order that can add risk.
        issued_ms: risk's clock. expires_ms: exclusive; the gate also bounds the time since first seen.
    """

    approval_id: ApprovalId
    request_id: RequestId
    decision_id: DecisionId | None
    agent_id: AgentId
    mode: Mode
    order: ApprovedOrder
    effect: Effect
    band_low: Decimal
    band_high: Decimal
    max_notional: Decimal
    policy_version: int
    policy_digest: str
    epoch: Epoch
    risk_score: Decimal
    issued_ms: int
    expires_ms: int
    key_id: KeyId
    standing_exit: ExitTerms | None = None

    def exit(self) -> StandingExit | None:
        """Return the standing exit that came with this approval, under the approval's own id."""
        if self.standing_exit is None:
            return None
        return StandingExit(
            exit_id=self.approval_id,
            account_id=self.order.account_id,
            mode=self.mode,
            venue=self.order.venue,
            symbol=self.order.symbol,
            terms=self.standing_exit,
            policy_version=self.policy_version,
            issued_ms=self.issued_ms,
            key_id=self.key_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Risk's signed sign of life. Execution sends nothing after a start until it has a fresh one.

    Attributes:
        counter: rises with every heartbeat of a generation, so an old one cannot be replayed.
        sent_ms: risk's clock.
        min_policy_version: approvals under an older policy are refused.
        scopes: what is restricted beyond ``state``, which is the desk's; at most 32, else the desk is.
    """

    account_id: AccountId
    epoch: Epoch
    state: TradingState
    counter: int
    sent_ms: int
    min_policy_version: int
    scopes: tuple[ScopeState, ...] = ()


HEARTBEAT_PAYLOAD_TYPE: Final = "application/vnd.grekko.heartbeat+json;v=1"
PROPOSAL_PAYLOAD_TYPE: Final = "application/vnd.grekko.proposal+json;v=1"
VOTE_PAYLOAD_TYPE: Final = "application/vnd.grekko.vote+json;v=1"
DECISION_PAYLOAD_TYPE: Final = "application/vnd.grekko.decision+json;v=1"
