"""Why risk said no. A denial is a value: every failed rule, its limit, what was seen, and the nearest legal order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trading.domain.identifiers import AgentId, DecisionId, RequestId
from trading.domain.proposals import OrderIntent


class Rule(StrEnum):
    """The rules of the pre-trade check, CATEGORY_CONDITION. Codes never change meaning."""

    INSTRUMENT_UNKNOWN = "INSTRUMENT_UNKNOWN"
    INSTRUMENT_RESTRICTED = "INSTRUMENT_RESTRICTED"
    PRICE_TICK = "PRICE_TICK"
    QUANTITY_STEP = "QUANTITY_STEP"
    QUANTITY_RANGE = "QUANTITY_RANGE"
    NOTIONAL_RANGE = "NOTIONAL_RANGE"
    ORDER_QUANTITY_MAX = "ORDER_QUANTITY_MAX"
    ORDER_NOTIONAL_MAX = "ORDER_NOTIONAL_MAX"
    PRICE_COLLAR = "PRICE_COLLAR"
    MARKET_STALE = "MARKET_STALE"
    MARKET_DEPTH = "MARKET_DEPTH"
    PORTFOLIO_STALE = "PORTFOLIO_STALE"
    EXECUTION_SILENT = "EXECUTION_SILENT"
    POSITION_MAX = "POSITION_MAX"
    EXPOSURE_GROSS_MAX = "EXPOSURE_GROSS_MAX"
    BALANCE_FREE = "BALANCE_FREE"
    DAILY_LOSS = "DAILY_LOSS"
    ORDER_RATE = "ORDER_RATE"
    ORDER_DUPLICATE = "ORDER_DUPLICATE"
    OPEN_APPROVALS_MAX = "OPEN_APPROVALS_MAX"
    TRADING_STATE = "TRADING_STATE"
    REDUCE_ONLY = "REDUCE_ONLY"
    ORDER_TYPE = "ORDER_TYPE"
    DECISION_INVALID = "DECISION_INVALID"
    AUTHORITY = "AUTHORITY"
    VENUE_RESTRICTED = "VENUE_RESTRICTED"
    TIME_IN_FORCE = "TIME_IN_FORCE"
    TRADE_SIZE_MULTIPLE = "TRADE_SIZE_MULTIPLE"
    SPREAD_MAX = "SPREAD_MAX"
    VOLATILITY_MAX = "VOLATILITY_MAX"
    TURNOVER_MAX = "TURNOVER_MAX"
    DRIFT_MAX = "DRIFT_MAX"
    REPEATED_EXECUTION = "REPEATED_EXECUTION"
    LOSS_STREAK = "LOSS_STREAK"
    OPEN_ORDERS_MAX = "OPEN_ORDERS_MAX"
    SELF_TRADE = "SELF_TRADE"
    EXPOSURE_NET_MAX = "EXPOSURE_NET_MAX"
    CONCENTRATION_MAX = "CONCENTRATION_MAX"
    LEVERAGE_MAX = "LEVERAGE_MAX"
    DRAWDOWN_MAX = "DRAWDOWN_MAX"
    UNRESOLVED_ORDERS_MAX = "UNRESOLVED_ORDERS_MAX"
    RISK_SCORE_MAX = "RISK_SCORE_MAX"
    RISK_SCORE_SIZE = "RISK_SCORE_SIZE"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """One rule's verdict on one order, in text a person can read.

    Attributes:
        limit: the bound in force, with its unit in the message.
        observed: what was seen; empty when there was nothing to see, which is itself a refusal.
        headroom: how much is left after this order, in the limit's unit; empty when the rule has none.
    """

    rule: Rule
    passed: bool
    limit: str
    observed: str
    message: str
    headroom: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskDenial:
    """Risk's refusal of one order.

    Attributes:
        failures: every rule that failed, at least one, in the order they were checked.
        nearest_legal: the same order at the largest size that would pass now; None when no size would.
    """

    request_id: RequestId
    agent_id: AgentId
    decision_id: DecisionId | None
    order: OrderIntent
    failures: tuple[RuleResult, ...]
    nearest_legal: OrderIntent | None
    denied_ms: int
