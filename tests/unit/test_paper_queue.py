"""Where our orders stand in the queue, and that the same liquidity is never taken twice. Worked by hand."""

from __future__ import annotations

import pytest

from tests.paper_support import BUY, IOC, SELL, D, Desk, fills
from trading.domain.fills import Liquidity
from trading.ports.venue import VenueOrderState as State

BID = [("60000", "5"), ("59999", "10")]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.book(bids=BID)
    return desk


# Consumed liquidity --------------------------------------------------------------------------------------------


def take(desk: Desk, key: str, quantity: str = "100") -> str:
    """Buy as much as there is at 60001 and return how much that was."""
    order = desk.buy(key, quantity, "60001", tif=IOC)
    assert order.state is not State.REJECTED
    return str(order.filled.normalize())


@pytest.mark.parametrize(
    ("public_after", "available"),
    [
        ("4", "1"),  # unchanged: 4 public, 3 are ours
        ("6", "3"),  # grew by 2: those are new
        ("3", "1"),  # shrank by 1: that was of what we had taken, 2 of the 3 are still missing
        ("2", "1"),  # shrank by 2
        ("1", "1"),  # shrank by 3: what is left is exactly what we left
        ("0.5", "0.5"),  # shrank into what we left
    ],
)
def test_what_we_took_stays_taken_until_the_level_changes(public_after: str, available: str) -> None:
    desk = Desk(usdt="10000000")
    desk.book(asks=[("60001", "4")])
    assert take(desk, "first", "3") == "3"
    desk.book(asks=[("60001", public_after)])
    assert take(desk, "second") == available
    desk.book(asks=[("60001", public_after)])
    assert take(desk, "third") == "0"


def test_a_level_that_vanished_comes_back_fresh() -> None:
    desk = Desk(usdt="10000000")
    desk.book(asks=[("60001", "4"), ("60003", "1")])
    take(desk, "first", "4")
    desk.book(asks=[("60002", "1"), ("60003", "1")])
    desk.book(asks=[("60001", "4"), ("60003", "1")])
    assert take(desk, "second") == "4"


def test_a_level_out_of_sight_keeps_what_we_took() -> None:
    desk = Desk(usdt="10000000")
    desk.book(asks=[("60001", "4")])
    take(desk, "first", "4")
    desk.book(bids=[("59000", "1")], asks=[("59001", "1")])  # 60001 is now deeper than what is shown
    desk.book(asks=[("60001", "4")])
    assert take(desk, "second") == "0"


def test_two_orders_share_one_level_and_the_second_gets_what_the_first_left(desk: Desk) -> None:
    assert fills(desk.buy("a", "0.7", "60001", tif=IOC)) == [("60001", "0.7")]
    assert fills(desk.buy("b", "0.7", "60001", tif=IOC)) == [("60001", "0.3")]


# The queue -----------------------------------------------------------------------------------------------------


def test_a_print_at_our_price_first_serves_those_ahead_of_us(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.trade(SELL, "60000", "4")
    assert (order.ahead, order.filled) == (D(1), D(0))
    desk.trade(SELL, "60000", "1.5")
    assert fills(order) == [("60000", "0.5")]
    desk.trade(SELL, "60000", "9")
    assert fills(order) == [("60000", "0.5"), ("60000", "1.5")]
    assert order.state is State.FILLED
    assert order.trades[0].liquidity is Liquidity.MAKER


def test_a_print_by_an_aggressor_of_our_own_side_does_not_fill_us(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.trade(BUY, "60000", "50")
    assert (order.filled, order.ahead) == (D(0), D(5))


def test_a_print_above_our_bid_does_not_fill_us(desk: Desk) -> None:
    order = desk.buy("a", "2", "59999")
    desk.trade(SELL, "60000", "50")
    assert (order.filled, order.ahead) == (D(0), D(10))


def test_a_print_through_our_price_fills_us_at_our_price_up_to_its_size(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.trade(SELL, "59999.99", "1.25")
    assert fills(order) == [("60000", "1.25")]
    assert order.ahead == 0


def test_two_of_our_orders_at_one_price_are_served_in_order_and_share_one_print(desk: Desk) -> None:
    first = desk.buy("a", "2", "60000")  # behind 5
    desk.book(bids=[("60000", "7"), ("59999", "10")])  # 2 more join behind the first
    second = desk.buy("b", "2", "60000")  # behind 7
    desk.trade(SELL, "60000", "10")  # 5 others, 2 of the first, 2 others, 1 of the second
    assert (fills(first), fills(second)) == ([("60000", "2")], [("60000", "1")])


def test_better_prices_are_served_first_and_a_print_is_never_given_out_twice(desk: Desk) -> None:
    worse, better = desk.buy("w", "1", "59999"), desk.buy("b", "1", "60000")
    desk.trade(SELL, "59998", "1.5")
    assert (better.filled, worse.filled) == (D(1), D("0.5"))


def test_a_level_that_shrinks_without_prints_brings_us_forward_only_when_those_ahead_must_have_left(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")  # behind 5
    desk.book(bids=[("60000", "9"), ("59999", "10")])
    desk.book(bids=[("60000", "5"), ("59999", "10")])  # the 4 who left may all have been behind us
    assert order.ahead == 5
    desk.book(bids=[("60000", "3"), ("59999", "10")])
    assert order.ahead == 3
    desk.book(bids=[("60000", "8"), ("59999", "10")])  # new ones join behind us
    assert order.ahead == 3


def test_a_level_that_vanished_leaves_us_first(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.book(bids=[("59999", "10")])
    assert order.ahead == 0
    desk.trade(SELL, "60000", "0.5")
    assert fills(order) == [("60000", "0.5")]


def test_a_print_and_the_shrinkage_it_caused_are_not_counted_twice_in_either_order(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")  # behind 5
    desk.book(bids=[("60000", "8")])  # 3 join behind
    printed_at = desk.now
    desk.book(bids=[("60000", "4")])  # contains a print of 4 that arrives only now: 5 - 4 = 1 are ahead
    assert order.ahead == 4
    desk.late_print(SELL, "60000", "4", venue_ts_ms=printed_at + 1)
    assert (order.ahead, order.filled) == (D(1), D(0))
    desk.trade(SELL, "60000", "1")
    assert (order.ahead, order.filled) == (D(0), D(0))


def test_a_newer_print_ends_the_credit_that_an_older_one_might_have_used(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")  # behind 5
    desk.book(bids=[("60000", "4")])
    assert (order.ahead, order.credit) == (D(4), D(1))
    desk.trade(SELL, "60000", "3")
    assert (order.ahead, order.credit) == (D(1), D(0))


def test_we_do_not_queue_behind_what_we_sold_into_ourselves(desk: Desk) -> None:
    desk.sell("s", "2", "60000", tif=IOC)
    assert desk.buy("a", "1", "60000").ahead == 3


def test_of_a_level_that_holds_our_own_order_only_what_is_ahead_of_it_is_taken(desk: Desk) -> None:
    desk.buy("own", "1", "60000")  # behind 5
    desk.book(bids=[("60000", "9"), ("59999", "10")])  # 4 join behind it
    newest = desk.sell("new", "7", "60000")
    assert (fills(newest), newest.reason) == ([("60000", "5")], "SELF_TRADE")


def test_a_print_older_than_the_trigger_is_history_to_a_stop_limit_that_then_rests(desk: Desk) -> None:
    order = desk.sell("s", "0.5", "59450", stop="59500")
    desk.book(bids=[("59400", "2")], asks=[("59440", "1"), ("59450", "3")])
    triggered_at = desk.now
    assert (order.triggered, order.ahead) == (True, D(3))
    desk.late_print(BUY, "59460", "9", venue_ts_ms=triggered_at)
    assert order.filled == 0
    desk.trade(BUY, "59460", "9")
    assert order.filled == D("0.5")


def test_a_print_older_than_the_order_is_history(desk: Desk) -> None:
    seen = desk.now
    order = desk.buy("a", "2", "60000")
    desk.late_print(SELL, "59000", "50", venue_ts_ms=seen)
    assert (order.filled, order.ahead) == (D(0), D(5))


def test_an_order_deeper_than_the_visible_book_waits_until_its_level_is_seen(desk: Desk) -> None:
    order = desk.buy("a", "1", "50000")
    assert order.ahead is None
    desk.trade(SELL, "50000", "100")
    assert order.filled == 0
    desk.book(bids=[("50000", "6")], asks=[("50001", "1")])
    assert order.ahead == 6


def test_a_book_that_crosses_our_price_fills_us_as_maker_at_our_price_by_what_crossed(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.book(bids=[("59990", "1")], asks=[("59995", "0.4"), ("60000", "0.6"), ("60001", "9")])
    assert fills(order) == [("60000", "1.0")]
    assert order.trades[0].liquidity is Liquidity.MAKER
    desk.book(bids=[("59990", "1")], asks=[("59995", "0.4"), ("60000", "0.6"), ("60001", "9")])
    assert order.filled == 1  # the same quantity does not cross twice
    assert desk.buy("b", "1", "60000", tif=IOC).filled == 0  # nor can it be taken


def test_a_crossed_public_book_is_ignored(desk: Desk) -> None:
    order = desk.buy("a", "2", "60000")
    desk.book(bids=[("60010", "1")], asks=[("59995", "5")])
    assert order.filled == 0
    assert fills(desk.buy("b", "1", "60001", tif=IOC)) == [("60001", "1")]


def test_a_partly_filled_order_holds_only_what_its_rest_needs(desk: Desk) -> None:
    order = desk.sell("a", "2", "60001")
    desk.trade(BUY, "60001", "1.5")
    assert order.filled == D("0.5")
    assert desk.locked(order.lock_currency) == D("1.5")
