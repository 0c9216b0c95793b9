"""What the execution tools answer: prices in quote per base, quantities in base, times in milliseconds."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


class Child(Row):
    """An order for one venue, in the arguments that risk_request_approval takes, and what it would do now."""

    symbol: str
    side: str
    type: str
    amount: DecimalText
    unit: str
    limit_price: DecimalText | None
    stop_price: DecimalText | None
    time_in_force: str
    post_only: bool
    reduce_only: bool
    venue: str
    account: str
    expected_price: DecimalText
    worst_price: DecimalText | None
    notional: DecimalText
    fee: DecimalText
    slippage_bps: DecimalText = Field(description="Against the mid; positive is worse")
    fills_now: DecimalText


class Route(Row):
    """Children in the order in which to ask for approval and submit."""

    orders: list[Child]


class Receipt(Row):
    """An order as far as it is known."""

    approval_id: str
    order_id: str
    client_order_id: str
    state: str
    filled: DecimalText
    average_price: DecimalText | None
    reason: str
    next: str = Field(description="What to do about it, empty if nothing")


class BatchRow(Row):
    """One submitted order."""

    approval_id: str
    order_id: str
    state: str
    filled: DecimalText


class Failure(Row):
    """One approval that became no order."""

    approval_id: str
    code: str
    message: str


class Batch(Row):
    """Counts cover the whole batch; the lists may be cut."""

    submitted: int
    refused: int
    states: dict[str, int]
    orders: list[BatchRow]
    failures: list[Failure]


class OrderRow(Row):
    """One order."""

    order_id: str
    approval_id: str
    client_order_id: str
    venue_order_id: str | None
    agent_id: str
    symbol: str
    side: str
    type: str
    time_in_force: str
    effect: str
    reduce_only: bool
    quantity: DecimalText
    limit_price: DecimalText | None
    stop_price: DecimalText | None
    state: str
    filled: DecimalText
    average_price: DecimalText | None
    fees: dict[str, DecimalText]
    reason: str
    created_ms: int
    updated_ms: int


class FillRow(Row):
    """One execution."""

    trade_id: str
    quantity: DecimalText
    price: DecimalText
    fee: DecimalText
    fee_currency: str
    liquidity: str
    venue_ts_ms: int


class OrderDetail(Row):
    """An order with its executions, oldest first."""

    order: OrderRow
    fills: list[FillRow]


class Orders(Row):
    """Newest first."""

    orders: list[OrderRow]


class Left(Row):
    """An order that still works, and why."""

    order_id: str
    state: str
    reason: str


class Canceled(Row):
    """What the venue has confirmed."""

    canceled: list[str]
    kept: list[Left] = Field(description="Exits of open positions")
    remaining: list[Left] = Field(description="Call again")
    foreign: list[str] = Field(description="Client order ids at the venue that are not this desk's")


class BalanceRow(Row):
    """An amount of one currency."""

    currency: str
    total: DecimalText
    locked: DecimalText
    free: DecimalText


class StopRow(Row):
    """The stop that closes a position; the nearest of all that are set."""

    price: DecimalText | None
    kind: str = Field(description="fixed, trailing, atr, floor, agent")
    at: str = Field(description="venue, desk (watched here), none")
    size: DecimalText = Field(description="Base that it would close")
    until_ms: int | None = Field(description="Closed then at the latest")


class PositionRow(Row):
    """What our fills add up to."""

    symbol: str
    quantity: DecimalText
    average_price: DecimalText | None
    mark: DecimalText | None
    realized: DecimalText
    unrealized: DecimalText | None
    fees: dict[str, DecimalText]
    protected: DecimalText = Field(description="Base covered by working reduce-only orders")
    stop: StopRow


class Account(Row):
    """Money, positions and profit."""

    account: str
    quote: str
    equity: DecimalText | None = Field(description="In quote; null without a fresh price")
    balances: list[BalanceRow]
    positions: list[PositionRow]


class FeeRow(Row):
    """Rates of notional: 0.001 is 10 bps."""

    symbol: str
    maker: DecimalText
    taker: DecimalText
    source: str
    paid: DecimalText | None = Field(description="Quote fees over notional of recent orders")


class Fees(Row):
    """One row per symbol."""

    fees: list[FeeRow]


class Reconciled(Row):
    """Ledger against venue."""

    clean: bool
    complete: bool = Field(description="False: the venue did not answer everything")
    checked: int
    resolved: int
    unresolved: list[str]
    differences: list[str]
    next: str


class StageRow(Row):
    """Latency of one stage of a submit."""

    stage: str
    orders: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class MetricsData(Row):
    """Since the start of the process."""

    stages: list[StageRow]
    outcomes: dict[str, int]
    fates: dict[str, int]
    heartbeats_ignored: dict[str, int]


class Status(Row):
    """Whether new risk would be taken now, and why not."""

    safe_to_trade: bool
    reasons: list[str]
    account: str
    venue: str
    trading_state: str
    epoch: list[int]
    risk_heard_ms_ago: int | None
    open_orders: int
    unresolved: list[str]
    open_approvals: int
    price_age_ms: dict[str, int | None]
    reconciled_ms_ago: int | None
    ledger_seq: int
