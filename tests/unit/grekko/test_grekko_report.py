"""Latency, profit and wording: small pure parts of the report."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from grekko.latency import LatencyBook
from grekko.picture import DeskPicture
from grekko.report import profit
from grekko.status import order_row
from grekko.wording import clock_text, describe, number, order_text
from trading.domain.approvals import Effect
from trading.domain.events import (
    AccountFunded,
    DomainEvent,
    EventEnvelope,
    EventMetadata,
    OrderAccepted,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderFilled,
    OrderInitialized,
    OrderSubmitted,
    RiskApproved,
)
from trading.domain.identifiers import AgentId, ApprovalId, Currency, OrderId, VenueOrderId
from trading.domain.market_data import Side
from trading.domain.orders import Order
from trading.domain.proposals import OrderType
from trading.domain.standing_exits import PROTECTION, ExitSlice
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID, build_approval, build_approved_order, build_fill

USDT = Currency("USDT")


def envelope(payload: DomainEvent, at_ms: int, seq: int = 1, service: str = "execution") -> EventEnvelope:
    return EventEnvelope(
        event_id=f"e{seq}",
        seq=seq,
        timestamp_ms=at_ms,
        source_service=service,
        payload=payload,
        metadata=EventMetadata(),
    )


def test_each_stage_ends_where_the_next_begins_and_only_the_first_fill_counts() -> None:
    book = LatencyBook()
    order_id = OrderId("order-1")
    approval = build_approval(key_id="0" * 16)
    book.take(envelope(RiskApproved(approval=approval, envelope=""), 1000, service="risk"))
    terms = approval.order
    book.take(
        envelope(
            OrderInitialized(
                order_id=order_id,
                approval_id=approval.approval_id,
                agent_id=AgentId("a"),
                effect=Effect.INCREASE,
                terms=terms,
            ),
            1007,
        )
    )
    for at, trade in ((1010, "t1"), (2000, "t2")):
        fill = build_fill(trade_id=trade)
        book.take(envelope(OrderFilled(fill=fill, status="filled", filled=fill.quantity), at))
    assert book.percentiles() == {"claim": {"p50": 7, "p99": 7, "n": 1}, "venue": {"p50": 3, "p99": 3, "n": 1}}


def test_profit_of_a_run_is_the_change_of_worth_less_its_own_fees() -> None:
    picture = DeskPicture(ACCOUNT, since_ms=100)
    early = build_fill(quantity="1", price="100", fee="5", trade_id="early")
    late = build_fill(quantity="1", price="130", fee="2", trade_id="late", side=Side.SELL)
    for fill, at in ((early, 50), (late, 150)):
        picture.take([envelope(OrderFilled(fill=fill, status="filled", filled=fill.quantity), at)])
    earned = profit(picture, {INSTRUMENT_ID: Decimal(110)}, {INSTRUMENT_ID: Decimal(140)}, quote=USDT)
    assert (earned.realized, earned.unrealized, earned.fees, earned.net) == (30, -10, 2, 18)


def test_orders_are_counted_by_the_state_they_are_in_now() -> None:
    picture = DeskPicture(ACCOUNT)
    terms = build_approved_order(quantity="1", limit_price="100")
    initialized = OrderInitialized(
        order_id=OrderId("order-1"),
        approval_id=ApprovalId("a"),
        agent_id=AgentId("a"),
        effect=Effect.INCREASE,
        terms=terms,
    )
    fill = build_fill(quantity="1", price="100")
    steps: list[tuple[DomainEvent, str]] = [
        (initialized, "initialized"),
        (OrderSubmitted(order_id=OrderId("order-1")), "submitted"),
        (OrderAccepted(order_id=OrderId("order-1"), venue_order_id=VenueOrderId("v")), "accepted"),
        (OrderFilled(fill=fill, status="filled", filled=fill.quantity), "filled"),
    ]
    for seq, (event, state) in enumerate(steps, 1):
        picture.take([envelope(event, seq, seq)])
        assert picture.order_states() == {state: 1}


def test_stops_are_counted_among_the_orders_and_told_apart() -> None:
    picture = DeskPicture(ACCOUNT)
    for seq, (name, used) in enumerate((("entry", None), ("stop", ExitSlice(exit_id=ApprovalId("x"), number=1))), 1):
        opened = OrderInitialized(
            order_id=OrderId(name),
            approval_id=ApprovalId(name) if used is None else used.approval_id,
            agent_id=AgentId("a") if used is None else PROTECTION,
            effect=Effect.INCREASE if used is None else Effect.REDUCE,
            terms=build_approved_order(),
            exit_slice=used,
        )
        picture.take([envelope(opened, seq, seq)])
    assert (picture.order_states(), picture.stop_states()) == ({"initialized": 2}, {"initialized": 1})


def test_what_sets_a_stop_apart_stands_in_the_list_of_orders() -> None:
    order = Order(
        order_id=OrderId("o"),
        approval_id=ApprovalId("a"),
        agent_id=PROTECTION,
        effect=Effect.REDUCE,
        terms=replace(build_approved_order(), order_type=OrderType.STOP_LIMIT, stop_price=Decimal(59_000)),
        created_ms=0,
        updated_ms=0,
    )
    assert {"protection", "stop_limit 60,001 at 59,000"} <= set(order_row(order))


def test_an_event_is_told_in_one_line() -> None:
    asked = OrderCancelRequested(order_id=OrderId("o"), by="protection")
    assert describe(asked) == "cancel asked for by protection"
    assert describe(OrderCancelRefused(order_id=OrderId("o"), reason="filled")) == "not canceled, it works on: filled"
    funded = AccountFunded(account_id=ACCOUNT, currency=USDT, amount=Decimal(100_000))
    assert describe(funded) == "account funded with 100,000 USDT"
    assert describe(OrderSubmitted(order_id=OrderId("o"))) == "order.submitted"


def test_an_order_reads_as_a_trader_would_say_it() -> None:
    assert order_text(build_approved_order(quantity="0.010")) == "buy 0.01 BTC/USDT limit 60,001 IOC"
    resting = replace(build_approved_order(), post_only=True, reduce_only=True)
    assert order_text(resting).endswith("post-only reduce-only")


def test_numbers_and_times_are_readable() -> None:
    assert [number(Decimal(text)) for text in ("1234567.8900", "0", "-0.00100")] == ["1,234,567.89", "0", "-0.001"]
    assert number(Decimal("2.5"), places=2) == "2.50"
    assert clock_text(86_399_999) == "23:59:59.999"
