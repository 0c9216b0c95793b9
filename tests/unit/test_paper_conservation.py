"""Whatever happens, the paper venue neither makes nor loses money, and never holds more than it has."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tests.paper_support import BTC, BUY, USDT, D, Desk, terms
from trading.adapters.venues.paper.accounts import Accounts
from trading.adapters.venues.paper.journal import Entry, JournalContent, encode_step, revive
from trading.adapters.venues.paper.matching import PaperExchange
from trading.adapters.venues.paper.orders import Step
from trading.adapters.venues.paper.rules import FeeSchedule
from trading.domain.identifiers import ClientOrderId, TradeId
from trading.domain.market_data import Feed, Side, TradePrint, is_worse
from trading.domain.money import total
from trading.domain.proposals import TimeInForce
from trading.ports.venue import VenueOrderState as State
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID, build_book, build_instrument

from trading.adapters import codec  # isort: skip

prices = st.integers(9_990, 10_010).map(str)
quantities = st.integers(1, 300).map(lambda hundredths: str(Decimal(hundredths) / 100))
sides = st.sampled_from(list(Side))


class Conservation(RuleBasedStateMachine):
    """Random books, prints, orders, cancels and restarts against the matching core."""

    orders = Bundle("orders")

    @initialize(in_base=st.booleans(), maker=st.sampled_from(["0.001", "0", "-0.0003"]))
    def open(self, in_base: bool, maker: str) -> None:
        self.instrument = replace(build_instrument(), taker_fee=D("0.00175"), maker_fee=D(maker))
        self.fees = FeeSchedule(in_base_on_buys=in_base)
        self.desk = Desk(usdt="50000", btc="3", instrument=self.instrument, fees=self.fees)
        self.content = JournalContent()
        self.made = 0
        self.restarts = 0
        self.book("10000", 1, [("1", "1")])

    def record(self, step: Step) -> None:
        if not step.is_empty:
            line = encode_step(step, self.content.lines + 1)
            self.content.apply(codec.decode(Entry, line))

    @rule(mid=prices, spread=st.integers(1, 3), depth=st.lists(st.tuples(quantities, quantities), max_size=4))
    def book(self, mid: str, spread: int, depth: list[tuple[str, str]]) -> None:
        now, middle = self.desk.tick(), int(mid)
        bids = [(str(middle - 1 - i), bid) for i, (bid, _) in enumerate(depth)]
        asks = [(str(middle - 1 + spread + i), ask) for i, (_, ask) in enumerate(depth)]
        self.record(self.desk.exchange.on_book(build_book(bids, asks, sequence=now, now_ms=now), now))

    @rule(aggressor=sides, price=prices, quantity=quantities, late=st.integers(0, 3))
    def trade(self, aggressor: Side, price: str, quantity: str, late: int) -> None:
        now = self.desk.tick()
        printed = TradePrint(
            INSTRUMENT_ID, TradeId(f"m{now}"), D(price), D(quantity), aggressor, now, now - late, now, now, Feed.REPLAY
        )
        step = self.desk.exchange.on_trade(printed, now)
        stops = {order.client_order_id for order in step.changed if order.triggered}
        by_print = [each.quantity for each in step.trades if each.client_order_id not in stops]
        assert total(by_print) <= D(quantity)
        self.record(step)

    @rule(
        target=orders,
        side=sides,
        quantity=quantities,
        limit=st.none() | prices,
        stop=st.none() | prices,
        tif=st.sampled_from(list(TimeInForce)),
        post_only=st.booleans(),
        reduce_only=st.booleans(),
    )
    def submit(
        self,
        side: Side,
        quantity: str,
        limit: str | None,
        stop: str | None,
        tif: TimeInForce,
        post_only: bool,
        reduce_only: bool,
    ) -> str:
        self.made += 1
        key = f"c{self.made}"
        order = terms(key, side, quantity, limit, stop=stop, tif=tif, post_only=post_only, reduce_only=reduce_only)
        self.record(self.desk.exchange.submit(order, self.desk.tick()))
        taken = self.desk.exchange.orders[order.client_order_id]
        if tif is TimeInForce.FOK and not taken.waits_for_trigger:
            assert taken.filled in (0, taken.terms.quantity)
        return key

    @rule(key=orders)
    def cancel(self, key: str) -> None:
        self.record(self.desk.exchange.cancel(ClientOrderId(key), self.desk.tick()))

    @rule(key=orders)
    def repeat(self, key: str) -> None:
        known = self.desk.exchange.orders[ClientOrderId(key)]
        assert self.desk.exchange.submit(known.terms, self.desk.tick()).is_empty

    @rule()
    def restart(self) -> None:
        self.restarts += 1
        old, accounts = self.desk.exchange, Accounts()
        accounts.deposit(old.accounts.deposits)
        new = PaperExchange([self.instrument], ACCOUNT, accounts, fees=self.fees, id_prefix=f"r{self.restarts}")
        for trade in self.content.trades:
            new.restore_trade(trade)
        for order in revive(list(self.content.orders.values())):
            new.restore(order)
        assert new.accounts.balances() == old.accounts.balances()
        assert new.accounts.market == old.accounts.market
        assert list(new.working) == list(old.working)
        assert {key: order.report() for key, order in new.orders.items()} == {
            key: order.report() for key, order in old.orders.items()
        }
        self.desk.exchange = new
        self.book("10000", 2, [("1", "1"), ("2", "2")])

    @invariant()
    def money_is_conserved_to_the_last_digit(self) -> None:
        assert self.desk.exchange.accounts.imbalance() == {}

    @invariant()
    def balances_follow_from_deposits_and_trades_alone(self) -> None:
        btc, usdt = D(3), D(50_000)
        for trade in self.desk.exchange.trades:
            sign = trade.side.sign
            btc += sign * trade.quantity
            usdt -= sign * trade.quantity * trade.price
            if trade.fee_currency == BTC:
                btc -= trade.fee
            else:
                usdt -= trade.fee
        account = self.desk.exchange.accounts.account
        assert (account[BTC], account[USDT]) == (btc, usdt)

    @invariant()
    def what_is_held_is_what_working_orders_need_and_is_there(self) -> None:
        exchange = self.desk.exchange
        held = {BTC: D(0), USDT: D(0)}
        for order in exchange.working.values():
            held[order.lock_currency] += order.locked
        for currency, amount in held.items():
            assert exchange.accounts.locked.get(currency, D(0)) == amount
            assert exchange.accounts.free(currency) >= 0

    @invariant()
    def every_order_adds_up(self) -> None:
        exchange = self.desk.exchange
        assert len({trade.trade_id for trade in exchange.trades}) == len(exchange.trades)
        for order in exchange.orders.values():
            assert order.filled == total([trade.quantity for trade in order.trades]) <= order.terms.quantity
            assert (order.state is State.FILLED) == (order.leaves == 0 and order.state is not State.REJECTED)
            assert (order.state is State.OPEN) == (order.client_order_id in exchange.working)
            for trade in order.trades:
                limit = order.terms.limit_price
                assert limit is None or not is_worse(trade.price, limit, order.terms.side)

    @invariant()
    def our_own_orders_never_cross(self) -> None:
        resting = [order for order in self.desk.exchange.working.values() if not order.waits_for_trigger]
        bids = [o.terms.limit_price for o in resting if o.terms.side is BUY and o.terms.limit_price is not None]
        asks = [o.terms.limit_price for o in resting if o.terms.side is not BUY and o.terms.limit_price is not None]
        assert not bids or not asks or max(bids) < min(asks)


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
