"""What the paper venue does with each kind of order. The default book is 1 at 60000/60001 and 10 one unit deeper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.paper_support import BTC, BUY, FOK, IOC, SELL, USDT, D, Desk, fills, terms
from trading.adapters.venues.paper.book import Plan
from trading.adapters.venues.paper.orders import Refusal
from trading.adapters.venues.paper.rules import FeeSchedule, affordable
from trading.domain.approvals import ApprovedOrder
from trading.domain.fills import Liquidity
from trading.domain.identifiers import AccountId, Symbol, Venue
from trading.domain.market_data import Level, Side
from trading.domain.proposals import OrderType
from trading.ports.venue import VenueOrderState as State
from trading.testing.builders import build_instrument


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.book()
    return desk


# Taking --------------------------------------------------------------------------------------------------------


def test_a_market_order_walks_the_book_level_by_level(desk: Desk) -> None:
    order = desk.buy("a", "3")
    assert fills(order) == [("60001", "1"), ("60002", "2")]
    assert order.state is State.FILLED


def test_a_market_order_larger_than_the_book_takes_all_and_the_rest_is_cancelled(desk: Desk) -> None:
    order = desk.buy("a", "11.5")
    assert (order.filled, order.state, order.reason) == (D(11), State.CANCELED, Refusal.IOC_REMAINDER)


def test_an_ioc_limit_takes_nothing_worse_than_its_price_and_never_rests(desk: Desk) -> None:
    order = desk.buy("a", "3", "60001", tif=IOC)
    assert fills(order) == [("60001", "1")]
    assert (order.state, order.reason) == (State.CANCELED, Refusal.IOC_REMAINDER)
    assert not desk.exchange.working
    assert desk.locked(USDT) == 0


def test_an_ioc_that_meets_no_price_is_cancelled_without_a_fill(desk: Desk) -> None:
    order = desk.sell("a", "1", "60000.01", tif=IOC)
    assert (order.state, order.filled) == (State.CANCELED, D(0))


def test_a_fok_that_can_be_filled_is_filled_whole(desk: Desk) -> None:
    assert desk.sell("a", "5", "59999", tif=FOK).state is State.FILLED


def test_a_fok_that_cannot_be_filled_whole_takes_nothing(desk: Desk) -> None:
    before = desk.exchange.accounts.balances()
    order = desk.buy("a", "1.00001", "60001", tif=FOK)
    assert (order.state, order.reason, order.trades) == (State.CANCELED, Refusal.FOK_NOT_FILLABLE, [])
    assert desk.exchange.accounts.balances() == before
    assert fills(desk.buy("b", "1", "60001", tif=IOC)) == [("60001", "1")]  # the level was not touched


def test_a_gtc_limit_takes_what_crosses_and_rests_with_the_remainder(desk: Desk) -> None:
    order = desk.buy("a", "3", "60001")
    assert (order.state, order.filled, order.leaves) == (State.OPEN, D(1), D(2))
    assert desk.locked(USDT) == D(2) * D(60001) * D("1.001")


def test_a_resting_buy_holds_enough_for_the_dearer_of_both_fees() -> None:
    for taker, maker in (("0.002", "0"), ("0", "0.002")):
        desk = Desk(instrument=replace(build_instrument(), taker_fee=D(taker), maker_fee=D(maker)))
        desk.book()
        desk.buy("a", "1", "60000")
        assert desk.locked(USDT) == D(60_120)


def test_a_taker_pays_the_taker_fee_in_quote_exactly() -> None:
    desk = Desk(instrument=replace(build_instrument(), taker_fee=D("0.00075"), maker_fee=D("-0.0001")))
    desk.book()
    trade = desk.buy("a", "0.12345", "60001", tif=IOC).trades[0]
    assert (trade.fee, trade.fee_currency, trade.liquidity) == (
        D("0.12345") * D(60001) * D("0.00075"),
        USDT,
        Liquidity.TAKER,
    )
    assert desk.free(USDT) == D(1_000_000) - D("0.12345") * D(60001) * D("1.00075")


def test_a_maker_gets_the_maker_rate_and_a_rebate_is_paid_out() -> None:
    desk = Desk(instrument=replace(build_instrument(), taker_fee=D("0.00075"), maker_fee=D("-0.0001")))
    desk.book(bids=[("60000", "0.5")])
    order = desk.buy("a", "1", "60000")
    desk.trade(SELL, "60000", "1.5")
    assert (order.trades[0].fee, order.trades[0].liquidity) == (D(-6), Liquidity.MAKER)
    assert desk.free(USDT) == D(1_000_000) - D(60000) + D(6)
    assert desk.locked(USDT) == 0


def test_fees_in_base_are_taken_from_what_a_buy_receives_and_sells_pay_in_quote() -> None:
    desk = Desk(btc="1", fees=FeeSchedule(in_base_on_buys=True))
    desk.book()
    bought = desk.buy("a", "1", "60001", tif=IOC).trades[0]
    sold = desk.sell("b", "1", "60000", tif=IOC).trades[0]
    assert (bought.fee, bought.fee_currency) == (D("0.001"), BTC)
    assert (sold.fee, sold.fee_currency) == (D(60), USDT)
    assert desk.free(BTC) == D("0.999")


# Refusing ------------------------------------------------------------------------------------------------------

REFUSED = [
    ("a price off the tick", terms("a", BUY, "1", "60000.001"), Refusal.PRICE_TICK),
    ("a stop price off the tick", terms("a", SELL, "1", stop="59000.001"), Refusal.PRICE_TICK),
    ("a negative price", terms("a", BUY, "1", "-1"), Refusal.PRICE_TICK),
    ("a quantity off the step", terms("a", BUY, "0.000011", "60000"), Refusal.QUANTITY_STEP),
    ("a quantity of zero", terms("a", BUY, "0", "60000"), Refusal.QUANTITY_STEP),
    ("more than the largest quantity", terms("a", BUY, "9000.00001", "60000"), Refusal.QUANTITY_MAX),
    ("a notional below the minimum", terms("a", BUY, "0.00008", "60000"), Refusal.NOTIONAL_MIN),
    ("a market order below the minimum notional", terms("a", BUY, "0.00008"), Refusal.NOTIONAL_MIN),
    ("a notional above the maximum", terms("a", BUY, "150.01", "60000"), Refusal.NOTIONAL_MAX),
    ("a buy that its fee makes too dear", terms("a", BUY, "16.66666", "60000"), Refusal.INSUFFICIENT_FUNDS),
    ("a sale of more than is held", terms("a", SELL, "10.00001", "60000"), Refusal.INSUFFICIENT_FUNDS),
    ("a post-only that would take", terms("a", BUY, "1", "60001", post_only=True), Refusal.POST_ONLY_WOULD_TAKE),
    ("a post-only IOC", terms("a", BUY, "1", "60000", post_only=True, tif=IOC), Refusal.INVALID_ORDER),
    ("a buy stop below the market", terms("a", BUY, "1", stop="60001"), Refusal.STOP_WOULD_TRIGGER),
    ("a sell stop above the market", terms("a", SELL, "1", stop="60000"), Refusal.STOP_WOULD_TRIGGER),
    ("a reduce-only buy", terms("a", BUY, "1", "60000", reduce_only=True), Refusal.REDUCE_ONLY_WOULD_INCREASE),
    ("a reduce-only sale of too much", terms("a", SELL, "11", reduce_only=True), Refusal.REDUCE_ONLY_WOULD_INCREASE),
    ("a limit order without a price", replace(terms("a", BUY, "1"), order_type=OrderType.LIMIT), Refusal.INVALID_ORDER),
    ("another account", replace(terms("a", BUY, "1"), account_id=AccountId("x")), Refusal.UNKNOWN_ACCOUNT),
    ("an unknown symbol", replace(terms("a", BUY, "1"), symbol=Symbol("ETH/USDT")), Refusal.UNKNOWN_SYMBOL),
    ("another venue", replace(terms("a", BUY, "1"), venue=Venue("binance")), Refusal.UNKNOWN_SYMBOL),
]  # fmt: skip


@pytest.mark.parametrize(("order", "code"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED])
def test_the_venue_refuses_with_a_stable_code_and_moves_nothing(
    desk: Desk, order: ApprovedOrder, code: Refusal
) -> None:
    before = desk.exchange.accounts.balances()
    refused = desk.submit(order)
    assert (refused.state, refused.reason) == (State.REJECTED, code)
    assert desk.exchange.accounts.balances() == before
    assert not desk.exchange.working


def test_a_quantity_below_the_minimum_is_refused() -> None:
    desk = Desk(instrument=replace(build_instrument(), quantity_min=D("0.001")))
    desk.book()
    assert desk.buy("a", "0.0009", "60000").reason == Refusal.QUANTITY_MIN


def test_an_order_before_the_first_book_is_refused() -> None:
    assert Desk().buy("a", "1", "60000").reason == Refusal.NO_MARKET


def test_an_order_that_arrives_after_its_deadline_is_refused_and_one_at_the_deadline_is_not(desk: Desk) -> None:
    desk.exchange.submit(terms("late", BUY, "1", "60001"), 5_001, deadline_ms=5_000)
    desk.exchange.submit(terms("just", BUY, "1", "60001"), 5_000, deadline_ms=5_000)
    late, just = desk.exchange.orders.values()
    assert (late.state, late.reason) == (State.REJECTED, Refusal.DEADLINE_PASSED)
    assert just.state is State.FILLED


def test_the_same_client_order_id_never_makes_a_second_order_whatever_became_of_the_first(desk: Desk) -> None:
    for key, quantity, price in (("filled", "0.1", "60001"), ("resting", "1", "59000"), ("refused", "1", "0.001")):
        first = desk.buy(key, quantity, price)
        state, trades = first.state, list(first.trades)
        again = desk.sell(key, "0.5", "60000")
        assert again is first
        assert (again.state, again.trades) == (state, trades)
    desk.cancel("resting")
    assert desk.buy("resting", "1", "59000").state is State.CANCELED
    assert len(desk.exchange.orders) == 3


def test_funds_held_by_a_resting_order_cannot_be_spent_again_until_it_is_cancelled(desk: Desk) -> None:
    desk.sell("a", "10", "61000")
    assert desk.free(BTC) == 0
    assert desk.sell("b", "0.1", "60000").reason == Refusal.INSUFFICIENT_FUNDS
    desk.cancel("a")
    assert desk.sell("c", "0.1", "60000").state is State.FILLED


def test_cancelling_an_order_that_is_over_changes_nothing(desk: Desk) -> None:
    order = desk.buy("a", "0.1", "60001")
    assert desk.exchange.cancel(order.client_order_id, desk.tick()).is_empty
    assert order.state is State.FILLED


def test_a_sale_that_only_reduces_is_taken(desk: Desk) -> None:
    assert desk.sell("a", "10", "59999", reduce_only=True, tif=IOC).state is State.FILLED


# Not trading with ourselves ------------------------------------------------------------------------------------


def test_an_order_that_would_meet_our_own_is_cancelled_and_the_resting_one_stays(desk: Desk) -> None:
    resting = desk.sell("old", "1", "60000.50")
    new = desk.buy("new", "2", "60001")
    assert (new.state, new.reason, new.filled) == (State.CANCELED, Refusal.SELF_TRADE, D(0))
    assert resting.state is State.OPEN


def test_what_lies_in_front_of_our_own_order_is_taken_before_the_newest_is_cancelled(desk: Desk) -> None:
    resting = desk.sell("old", "1", "60002")  # behind 10 of others
    new = desk.buy("new", "12", "60003")
    assert fills(new) == [("60001", "1"), ("60002", "10")]
    assert (new.reason, resting.filled) == (Refusal.SELF_TRADE, D(0))


def test_an_order_that_is_satisfied_before_it_meets_our_own_is_filled(desk: Desk) -> None:
    desk.sell("old", "1", "60002")
    assert desk.buy("new", "11", "60003").state is State.FILLED


# Stops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "stop", "short_of", "reaches"),
    [(SELL, "59000", "59000.01", "59000"), (BUY, "61000", "60999.99", "61000")],
    ids=["a sell stop triggers at or below", "a buy stop triggers at or above"],
)
def test_a_stop_triggers_on_its_own_side_by_a_print(
    desk: Desk, side: Side, stop: str, short_of: str, reaches: str
) -> None:
    order = desk.submit(terms("s", side, "0.5", stop=stop))
    desk.trade(side, short_of, "1")
    assert (order.state, order.triggered) == (State.OPEN, False)
    desk.trade(side, reaches, "1")
    assert order.triggered
    assert order.state is State.FILLED


def test_a_print_from_before_a_stop_does_not_trigger_it(desk: Desk) -> None:
    before = desk.now
    order = desk.sell("s", "0.5", stop="59000")
    desk.late_print(SELL, "58000", "1", venue_ts_ms=before)  # a venue repeats its last trades when it connects again
    assert (order.state, order.triggered) == (State.OPEN, False)
    desk.late_print(SELL, "59000", "1", venue_ts_ms=desk.now + 1)
    assert order.triggered


def test_a_sell_stop_triggers_when_the_best_bid_falls_to_it_and_not_by_the_ask(desk: Desk) -> None:
    order = desk.sell("s", "0.5", stop="59500")
    desk.book(bids=[("59500.01", "1")], asks=[("59500.02", "1")])
    assert not order.triggered
    desk.book(bids=[("59400", "2")], asks=[("59600", "1")])
    assert fills(order) == [("59400", "0.5")]


def test_a_buy_stop_triggers_when_the_best_ask_rises_to_it(desk: Desk) -> None:
    order = desk.buy("s", "0.5", stop="60500")
    desk.book(bids=[("60498", "1")], asks=[("60500", "2")])
    assert fills(order) == [("60500", "0.5")]


def test_a_triggered_stop_limit_rests_when_the_market_has_run_past_its_limit(desk: Desk) -> None:
    order = desk.sell("s", "0.5", "59450", stop="59500")
    desk.book(bids=[("59400", "2")], asks=[("59500", "1")])
    assert (order.state, order.triggered, order.filled) == (State.OPEN, True, D(0))
    desk.book(bids=[("59460", "2")], asks=[("59500", "1")])
    assert fills(order) == [("59450", "0.5")]


def test_a_triggered_buy_stop_spends_no_more_than_the_account_has() -> None:
    desk = Desk(usdt="70000", btc="0")
    desk.book()
    order = desk.buy("s", "1", stop="61000")
    desk.book(bids=[("79999", "1")], asks=[("80000", "1")])
    assert order.state is State.CANCELED
    assert order.filled == D("0.87412")  # 70000 / (80000 * 1.001), cut to the step
    assert 0 <= desk.free(USDT) < D(80000) * D("0.00001") * D("1.001")


def test_what_an_account_can_afford_is_cut_to_the_step_even_where_the_quotient_rounds_up() -> None:
    instrument = replace(build_instrument(), quantity_step=D(1))
    plan = Plan([Level(D(3), D(5))], D(5), meets_self=False)
    funds = D("2." + "9" * 40)  # 34 digits of funds / 3 are exactly 1
    assert affordable(plan, funds, D(1), instrument).filled == 0
    assert affordable(plan, D(3), D(1), instrument).filled == 1
    assert affordable(plan, D(15), D(1), instrument) == plan


def test_stops_that_trigger_together_act_in_the_order_of_arrival(desk: Desk) -> None:
    first, second = desk.sell("s1", "1", stop="59500"), desk.sell("s2", "1", stop="59600")
    desk.book(bids=[("59400", "1"), ("59300", "1")], asks=[("59401", "1")])
    assert (fills(first), fills(second)) == ([("59400", "1")], [("59300", "1")])


def test_a_cancelled_stop_never_triggers(desk: Desk) -> None:
    order = desk.sell("s", "1", stop="59500")
    desk.cancel("s")
    desk.trade(SELL, "59000", "1")
    assert (order.state, order.triggered, desk.locked(BTC)) == (State.CANCELED, False, D(0))
