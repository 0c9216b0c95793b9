"""What an agent or a person wants to trade, and why."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AccountId, AgentId, ProposalId, Symbol, Venue
from trading.domain.market_data import Side

REASON_MAX = 280  # characters


class Mode(StrEnum):
    """How real the money is. A mistyped mode is an error, never live."""

    PAPER = "paper"
    TESTNET = "testnet"
    LIVE = "live"


class OrderType(StrEnum):
    """FIX OrdType 40: market 1, limit 2, stop 3, stop limit 4."""

    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"


class TimeInForce(StrEnum):
    """FIX TimeInForce 59: good till cancel 1, immediate or cancel 3, fill or kill 4."""

    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"


class TradeClass(StrEnum):
    """Which deadline and which number of yes votes a proposal needs."""

    FAST = "fast"
    STANDARD = "standard"
    LARGE = "large"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderIntent:
    """An order as somebody wants it: sized in base, not yet approved and with no venue id.

    Attributes:
        quantity: base, > 0. Sizes in other units are converted and rounded down at the tool edge.
        limit_price: quote per base; required for limit and stop_limit, forbidden otherwise.
        stop_price: quote per base; required for stop and stop_limit, forbidden otherwise.
        post_only: the order must rest; only with a GTC limit.
        reduce_only: the order may only bring the position nearer to zero.
    """

    account_id: AccountId
    venue: Venue
    symbol: Symbol
    side: Side
    order_type: OrderType
    quantity: Decimal
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    time_in_force: TimeInForce = TimeInForce.GTC
    post_only: bool = False
    reduce_only: bool = False

    def __post_init__(self) -> None:
        if self.quantity <= 0:
            raise InvalidValue("quantity must be greater than zero", code="INVALID_QUANTITY")
        needs_limit = self.order_type in (OrderType.LIMIT, OrderType.STOP_LIMIT)
        needs_stop = self.order_type in (OrderType.STOP, OrderType.STOP_LIMIT)
        if needs_limit != (self.limit_price is not None):
            raise InvalidValue(
                f"a {self.order_type} order {'needs' if needs_limit else 'takes no'} limit_price",
                code="INVALID_LIMIT_PRICE",
            )
        if needs_stop != (self.stop_price is not None):
            raise InvalidValue(
                f"a {self.order_type} order {'needs' if needs_stop else 'takes no'} stop_price",
                code="INVALID_STOP_PRICE",
            )
        for name, price in (
            ("limit_price", self.limit_price),
            ("stop_price", self.stop_price),
        ):
            if price is not None and price <= 0:
                raise InvalidValue(f"{name} must be greater than zero", code="INVALID_PRICE")
        if self.post_only and (self.order_type is not OrderType.LIMIT or self.time_in_force is not TimeInForce.GTC):
            raise InvalidValue(
                "post_only needs a limit order with time_in_force gtc",
                code="INVALID_POST_ONLY",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeProposal:
    """An agent's wish, put to the vote. The signed bytes of it are what is voted on.

    Attributes:
        reason: at most 280 characters, shown to people and kept; never read by another agent or by execution.
        roster_version: the registry version whose members may vote.
        created_ms: Redis time when the proposer made it.
        deadline_ms: Redis time after which votes are recorded but not counted.
        expires_ms: after this no approval may be given on it. > deadline_ms.
    """

    proposal_id: ProposalId
    agent_id: AgentId
    mode: Mode
    trade_class: TradeClass
    order: OrderIntent
    reason: str
    roster_version: int
    created_ms: int
    deadline_ms: int
    expires_ms: int

    def __post_init__(self) -> None:
        if len(self.reason) > REASON_MAX:
            raise InvalidValue(f"reason is longer than {REASON_MAX} characters", code="REASON_TOO_LONG")
        if not self.created_ms < self.deadline_ms < self.expires_ms:
            raise InvalidValue(
                "created, deadline and expiry must be in that order",
                code="INVALID_DEADLINE",
            )
