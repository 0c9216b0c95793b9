"""Short ways to make domain values in tests; every argument that matters to the test is named there."""

from __future__ import annotations

from decimal import Decimal

from trading.domain.approvals import Approval, ApprovedOrder, Effect, Epoch
from trading.domain.fills import Fill, Liquidity
from trading.domain.identifiers import (
    AccountId,
    AgentId,
    ApprovalId,
    ClientOrderId,
    Currency,
    KeyId,
    OrderId,
    RequestId,
    Symbol,
    TradeId,
    Venue,
    client_order_id_for,
)
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, Level, OrderBook, Side
from trading.domain.orders import Order
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import ExitTerms, StopPlan

PAPER = Venue("paper")
BTC_USDT = Symbol("BTC/USDT")
ACCOUNT = AccountId("paper-main")
INSTRUMENT_ID = InstrumentId(PAPER, BTC_USDT)
FIRST_EPOCH = Epoch(1, 0)


def build_instrument(*, venue: str = PAPER, fee: str = "0.001") -> Instrument:
    """Return Binance's BTC/USDT rules under another venue's name."""
    return Instrument(
        id=InstrumentId(Venue(venue), BTC_USDT),
        base=Currency("BTC"),
        quote=Currency("USDT"),
        price_tick=Decimal("0.01"),
        quantity_step=Decimal("0.00001"),
        quantity_min=Decimal("0.00001"),
        quantity_max=Decimal(9000),
        notional_min=Decimal(5),
        notional_max=Decimal(9_000_000),
        maker_fee=Decimal(fee),
        taker_fee=Decimal(fee),
    )


def build_book(
    bids: list[tuple[str, str]] | None = None,
    asks: list[tuple[str, str]] | None = None,
    *,
    venue: str = "binance",
    sequence: int = 1,
    now_ms: int = 1_750_000_000_000,
    feed: Feed = Feed.REPLAY,
) -> OrderBook:
    """Return a book published at ``now_ms``; by default 1 BTC at 60000/60001 and 10 BTC one unit deeper."""

    def levels(side: list[tuple[str, str]] | None, default: list[tuple[str, str]]) -> tuple[Level, ...]:
        return tuple(Level(Decimal(p), Decimal(q)) for p, q in (default if side is None else side))

    return OrderBook(
        instrument_id=InstrumentId(Venue(venue), BTC_USDT),
        bids=levels(bids, [("60000", "1"), ("59999", "10")]),
        asks=levels(asks, [("60001", "1"), ("60002", "10")]),
        sequence=sequence,
        venue_ts_ms=now_ms,
        received_ts_ms=now_ms,
        published_ts_ms=now_ms,
        feed=feed,
    )


def build_approved_order(
    *,
    approval_id: str = "approval-1",
    side: Side = Side.BUY,
    quantity: str = "0.01",
    limit_price: str | None = "60001",
    stop_price: str | None = None,
    order_type: OrderType = OrderType.LIMIT,
    time_in_force: TimeInForce = TimeInForce.IOC,
    post_only: bool = False,
    reduce_only: bool = False,
    venue: str = PAPER,
    account_id: str = ACCOUNT,
) -> ApprovedOrder:
    """Return an order as risk would have approved it."""
    return ApprovedOrder(
        account_id=AccountId(account_id),
        venue=Venue(venue),
        symbol=BTC_USDT,
        side=side,
        order_type=order_type,
        time_in_force=time_in_force,
        quantity=Decimal(quantity),
        limit_price=None if limit_price is None else Decimal(limit_price),
        stop_price=None if stop_price is None else Decimal(stop_price),
        post_only=post_only,
        reduce_only=reduce_only,
        client_order_id=client_order_id_for(ApprovalId(approval_id), Venue(venue)),
    )


def build_approval(
    *,
    key_id: str,
    order: ApprovedOrder | None = None,
    approval_id: str = "approval-1",
    effect: Effect = Effect.INCREASE,
    epoch: Epoch = FIRST_EPOCH,
    now_ms: int = 1_750_000_000_000,
    ttl_ms: int = 3_000,
    band: tuple[str, str] = ("59700", "60300"),
) -> Approval:
    """Return an approval issued at ``now_ms``; seal it with a test signer whose key id is ``key_id``."""
    terms = order or build_approved_order(approval_id=approval_id)
    return Approval(
        approval_id=ApprovalId(approval_id),
        request_id=RequestId(f"request-{approval_id}"),
        decision_id=None,
        agent_id=AgentId("tester"),
        mode=Mode.PAPER,
        order=terms,
        effect=effect,
        band_low=Decimal(band[0]),
        band_high=Decimal(band[1]),
        max_notional=terms.quantity * Decimal(61000),
        policy_version=1,
        policy_digest="0" * 64,
        epoch=epoch,
        risk_score=Decimal(0),
        issued_ms=now_ms,
        expires_ms=now_ms + ttl_ms,
        key_id=KeyId(key_id),
        standing_exit=build_exit_terms(entry=terms.side, now_ms=now_ms) if effect is Effect.INCREASE else None,
    )


def build_exit_terms(
    *, entry: Side = Side.BUY, floor: str | None = None, stop_bps: str = "500", now_ms: int = 1_750_000_000_000
) -> ExitTerms:
    """Return terms that close what ``entry`` opens, good for a day; by default half of 60,000 away from it."""
    return ExitTerms(
        side=entry.opposite,
        floor=Decimal(floor or ("30000" if entry is Side.BUY else "90000")),
        plan=StopPlan(stop_bps=Decimal(stop_bps)),
        expires_ms=now_ms + 86_400_000,
    )


def build_order(*, quantity: str = "1", side: Side = Side.BUY, order_id: str = "order-1") -> Order:
    """Return an initialized order at limit 100."""
    return Order(
        order_id=OrderId(order_id),
        approval_id=ApprovalId(f"approval-{order_id}"),
        agent_id=AgentId("tester"),
        effect=Effect.INCREASE,
        terms=build_approved_order(approval_id=f"approval-{order_id}", quantity=quantity, limit_price="100", side=side),
        created_ms=0,
        updated_ms=0,
    )


def build_fill(
    *,
    quantity: str = "1",
    price: str = "100",
    side: Side = Side.BUY,
    trade_id: str = "t1",
    fee: str = "0",
    fee_currency: str = "USDT",
    order_id: str = "order-1",
) -> Fill:
    """Return a fill of BTC/USDT on the paper venue."""
    return Fill(
        trade_id=TradeId(trade_id),
        order_id=OrderId(order_id),
        client_order_id=ClientOrderId(f"client-{order_id}"),
        account_id=ACCOUNT,
        instrument_id=INSTRUMENT_ID,
        side=side,
        quantity=Decimal(quantity),
        price=Decimal(price),
        fee=Decimal(fee),
        fee_currency=Currency(fee_currency),
        liquidity=Liquidity.TAKER,
        venue_ts_ms=0,
    )
