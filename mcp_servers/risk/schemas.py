"""What the risk tools take and give, as a model sees it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, SkipValidation, TypeAdapter, WithJsonSchema

from mcp_servers.envelope import DecimalText, PositiveDecimalText, Row
from trading.domain.money import MAX_SCALE, check_decimal, plain, quantize_nearest

Side = Literal["buy", "sell"]
Type = Literal["market", "limit", "stop", "stop_limit"]
Unit = Literal["base", "quote", "percent_equity", "risk_percent_to_stop"]
Tif = Literal["gtc", "ioc", "fok"]


def _figure(value: Decimal) -> str:
    text = plain(value if value.is_finite() else check_decimal(value))
    return plain(quantize_nearest(value, MAX_SCALE)) if len(text.partition(".")[2]) > MAX_SCALE else text


#: A decimal that risk itself computed: judged as it becomes text, since hundreds of them are in one reply.
Figure = Annotated[
    Decimal,
    SkipValidation,
    PlainSerializer(_figure, return_type=str),
    WithJsonSchema(TypeAdapter(DecimalText).json_schema()),
]
SymbolText = Annotated[str, Field(max_length=41)]
NameText = Annotated[str, Field(max_length=64)]
ScopeText = Annotated[str, Field(max_length=80)]
ReasonText = Annotated[str, Field(max_length=280)]
IdText = Annotated[str, Field(min_length=1, max_length=128)]

#: More orders than this are answered by ids alone; as many denials stand in one reply.
DETAILED_MAX: Final = 8


class OrderItem(BaseModel):
    """One order of a batch; the same keys as a single order's arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: SymbolText
    side: Side
    type: Type
    amount: PositiveDecimalText
    unit: Unit = "base"
    limit_price: PositiveDecimalText | None = None
    stop_price: PositiveDecimalText | None = None
    time_in_force: Tif = "gtc"
    post_only: bool = False
    reduce_only: bool = False
    venue: NameText | None = None
    account: NameText | None = None
    agent_id: NameText | None = None
    reason: ReasonText = ""


class RuleRow(Row):
    """One rule's verdict."""

    rule: str
    passed: bool
    limit: str
    observed: str
    message: str
    headroom: str


class OrderRow(Row):
    """An order as risk sees it: base quantity after rounding, and what it may cost."""

    symbol: str
    side: str
    type: str
    quantity: DecimalText
    limit_price: DecimalText | None = None
    stop_price: DecimalText | None = None
    time_in_force: str
    reduce_only: bool
    venue: str


class Check(Row):
    """The verdict on one order; nothing was reserved."""

    passed: bool
    effect: str
    order: OrderRow
    notional: DecimalText | None
    fee_estimate: DecimalText | None
    rules: list[RuleRow]
    max_allowed_now: OrderRow | None
    nearest_legal: OrderRow | None


class ApprovalRow(Row):
    """A signed approval: one exact order, once, for a short time."""

    approval_id: str
    client_order_id: str
    order: OrderRow
    effect: str
    band_low: DecimalText
    band_high: DecimalText
    max_notional: DecimalText
    expires_at: str


class DenialRow(Row):
    """A refusal: its failed rules, the first few where meta says truncated, and the nearest legal order."""

    index: int
    order: OrderRow
    failures: list[RuleRow]
    nearest_legal: OrderRow | None


class PendingRow(Row):
    """Neither approved nor denied: it waits for the operator and reserves nothing."""

    index: int
    pending_id: str
    expires_at: str
    needs: str


class Approvals(Row):
    """What a request got. Ids are in the order of the orders, without those at ``denied_at``."""

    request_id: str
    approved: int
    denied: int
    denied_at: list[int]
    approval_ids: list[str]
    approvals: list[ApprovalRow]
    denials: list[DenialRow]
    pending_human: list[PendingRow]
    replayed: bool


class ApprovalState(Row):
    """One approval as it stands; ``fate`` is execution's word and empty while undecided."""

    approval: ApprovalRow | None
    state: str
    fate: str
    order_id: str
    expired: bool
    detail: str = ""
    envelope: str | None = None


class Release(Row):
    """What was asked; it counts until ``fate`` is voided or lapsed."""

    approval_id: str
    state: str
    fate: str
    order_id: str


class Limits(Row):
    """The limits in force; ``changed`` names those that differ from the defaults, ``note`` what waits or is refused.

    ``sources`` names, for every value that is not the default, the scope it comes from: the strictest wins.
    """

    version: int
    digest: str
    scope: str
    values: dict[str, str]
    sources: dict[str, str]
    changed: list[str]
    note: str


class ExposureRow(Row):
    """One instrument: held and promised, base; worst case in quote."""

    symbol: str
    held: Figure
    open_buys: Figure
    open_sells: Figure
    worst_case: Figure
    worst_case_quote: Figure | None
    limit: Figure | None


class Exposures(Row):
    """What the account holds and has promised."""

    quote: str
    equity: DecimalText | None
    daily_result: DecimalText | None
    daily_loss_max: DecimalText
    gross: DecimalText | None
    gross_max: DecimalText
    net: DecimalText | None
    by_venue: dict[str, Figure] = Field(description="Worst case, quote")
    by_agent: dict[str, Figure] = Field(description="Promised, quote")
    reservations: int
    instruments: list[ExposureRow]


class Trip(Row):
    """What a trip did; every unused approval of an older epoch is worthless now."""

    scope: str
    state: str
    generation: int
    counter: int
    changed: bool
    durable: bool
    open_reservations: int


class Status(Row):
    """How risk is."""

    account: str
    state: str
    state_reason: str
    generation: int
    counter: int
    policy_version: int
    policy_digest: str
    key_id: str
    safe_to_trade: bool
    reasons: list[str]
    heartbeat_age_ms: int | None
    execution_age_ms: int | None
    portfolio_age_ms: int | None
    market_age_ms: dict[str, int | None]
    open_reservations: int
    uncertain_requests: int
    unresolved_orders: int
    orders_left: int
    limits_note: str
