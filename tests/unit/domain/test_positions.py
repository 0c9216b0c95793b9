"""Positions and accounts conserve money to the last digit."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trading.domain.accounts import AccountBook
from trading.domain.approvals import Effect
from trading.domain.events import AccountFunded, OrderAccepted, OrderFilled, OrderInitialized, OrderSubmitted
from trading.domain.identifiers import AgentId, ApprovalId, Currency, OrderId, VenueOrderId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, multiply, subtract
from trading.domain.positions import Position
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID, build_approved_order, build_fill

USDT, BTC = Currency("USDT"), Currency("BTC")
quantities = st.decimals(min_value="0.00001", max_value=5, places=5)
prices = st.decimals(min_value="0.01", max_value=100_000, places=2)
fees = st.decimals(min_value="-0.5", max_value=3, places=8)


def flat() -> Position:
    return Position(account_id=ACCOUNT, instrument_id=INSTRUMENT_ID, base=BTC, quote=USDT)


def test_a_round_trip_realizes_the_difference_and_keeps_fees_apart() -> None:
    position = flat().apply(build_fill(quantity="2", price="100", fee="0.2"))
    position = position.apply(build_fill(quantity="2", price="110", side=Side.SELL, fee="0.22", trade_id="t2"))
    assert (position.quantity, position.cost, position.realized) == (0, 0, 20)
    assert position.fees == {USDT: Decimal("0.42")}
    assert position.net(Decimal(1)) == Decimal("19.58")


def test_a_sell_through_zero_closes_at_average_cost_and_opens_at_the_fill_price() -> None:
    position = flat().apply(build_fill(quantity="1", price="100"))
    position = position.apply(build_fill(quantity="3", price="90", side=Side.SELL, trade_id="t2"))
    assert (position.quantity, position.cost, position.realized) == (-2, -180, -10)
    assert position.average_price == 90
    assert position.unrealized(Decimal(80)) == 20


def test_a_fee_in_base_reduces_what_is_held() -> None:
    position = flat().apply(build_fill(quantity="1", price="100", fee="0.001", fee_currency="BTC"))
    assert (position.quantity, position.cost) == (Decimal("0.999"), 100)


class PositionMachine(RuleBasedStateMachine):
    """Cash plus cost minus realized is zero after any fills, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.position = flat()
        self.cash = ZERO
        self.base = ZERO
        self.paid: dict[Currency, Decimal] = {}
        self.count = 0

    @rule(
        side=st.sampled_from(Side),
        quantity=quantities,
        price=prices,
        fee=fees,
        currency=st.sampled_from([USDT, BTC, Currency("BNB")]),
    )
    def fill(self, side: Side, quantity: Decimal, price: Decimal, fee: Decimal, currency: Currency) -> None:
        self.count += 1
        fill = build_fill(
            quantity=str(quantity),
            price=str(price),
            side=side,
            fee=str(fee),
            fee_currency=currency,
            trade_id=f"t{self.count}",
        )
        self.position = self.position.apply(fill)
        self.cash = subtract(self.cash, multiply(Decimal(side.sign), fill.notional))
        self.base = add(self.base, multiply(Decimal(side.sign), quantity))
        self.paid[currency] = add(self.paid.get(currency, ZERO), fee)

    @invariant()
    def money_is_conserved(self) -> None:
        assert self.cash == self.position.realized - self.position.cost
        assert self.position.quantity == self.base - self.paid.get(BTC, ZERO)
        assert {c: f for c, f in self.position.fees.items() if f} == {c: f for c, f in self.paid.items() if f}

    @invariant()
    def profit_and_loss_is_worth_minus_cash_at_any_mark(self) -> None:
        for mark in (Decimal("0.01"), Decimal("61234.56")):
            worth = multiply(self.position.quantity, mark)
            assert self.position.realized + self.position.unrealized(mark) == self.cash + worth


TestPositionMachine = PositionMachine.TestCase
TestPositionMachine.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


def test_an_account_follows_its_events_and_ignores_a_repeated_trade() -> None:
    book = AccountBook(ACCOUNT)
    book.apply(AccountFunded(account_id=ACCOUNT, currency=USDT, amount=Decimal(1000)), now_ms=0)
    terms = build_approved_order(quantity="2", limit_price="100")
    order_id = OrderId("order-1")
    book.apply(
        OrderInitialized(
            order_id=order_id,
            approval_id=ApprovalId("a"),
            agent_id=AgentId("tester"),
            effect=Effect.INCREASE,
            terms=terms,
        ),
        now_ms=1,
    )
    assert book.locked() == {USDT: 200}
    book.apply(OrderSubmitted(order_id=order_id), now_ms=2)
    book.apply(OrderAccepted(order_id=order_id, venue_order_id=VenueOrderId("v1")), now_ms=3)
    fill = build_fill(quantity="0.5", price="100", fee="0.05")
    filled = OrderFilled(fill=fill, status="partially_filled", filled=Decimal("0.5"))
    for _ in range(2):
        book.apply(filled, now_ms=4)
    assert book.totals == {USDT: Decimal("949.95"), BTC: Decimal("0.5")}
    snapshot = book.snapshot(now_ms=5, ledger_seq=6)
    assert snapshot.balances[USDT].locked == 150
    assert snapshot.equity(USDT, {BTC: Decimal(100)}) == Decimal("999.95")
    assert snapshot.equity(USDT, {}) is None
