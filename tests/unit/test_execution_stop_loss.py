"""The stop-loss manager on a venue that can fail, under a clock that the test moves."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.protection_support import DAY_MS, GuardedDesk, plan
from trading.domain.errors import GateRefused
from trading.domain.market_data import Side
from trading.domain.orders import OrderStatus
from trading.domain.proposals import OrderType, TimeInForce
from trading.testing.builders import INSTRUMENT_ID, build_book
from trading.testing.venue import Fault, Operation

D = Decimal


async def test_a_fixed_stop_closes_the_position_with_slices_of_its_exit() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    assert desk.stop == D("57000.95")  # 5 % below 60,001
    desk.price("57001")
    await desk.look()
    assert desk.held == D("0.5")
    desk.price("57000")
    await desk.look()
    assert desk.held == 0
    made = desk.slices()
    assert [each.exit_slice.number for each in made if each.exit_slice is not None] == [1]
    assert made[0].terms.side is Side.SELL
    assert made[0].terms.reduce_only
    assert made[0].terms.limit_price == D(56_430)  # 1 % beyond the price
    assert "STOP_HIT" in desk.alarms()


async def test_a_stop_rests_at_the_venue_and_closes_there() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    (stop,) = desk.protective()
    assert (stop.terms.order_type, stop.terms.stop_price, stop.leaves) == (
        OrderType.STOP_LIMIT,
        D("57000.95"),
        D("0.5"),
    )
    desk.price("57000", feed=False)  # the feed says nothing, nobody here looks: the venue itself acts
    await desk.take_reports()
    assert desk.held == 0
    await desk.look()
    assert desk.protective() == []
    assert desk.alarms() == ["STOP_HIT"]


async def test_a_trailing_stop_follows_the_best_price_and_never_turns_back() -> None:
    desk = await GuardedDesk(plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    desk.price("70000")
    assert desk.stop == D(69_300)
    desk.price("69400")
    assert desk.stop == D(69_300)
    desk.price("69300")
    await desk.look()
    assert desk.held == 0


async def test_the_order_of_a_slice_looks_like_any_other_in_orders_and_fills() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.price("50000")
    await desk.look()
    row = (await desk.ledger.rows("orders", {"agent_id": "protection"}))[0]
    assert row["status"] == OrderStatus.FILLED
    assert [fill["side"] for fill in await desk.ledger.rows("fills", {"order_id": row["order_id"]})] == ["sell"]
    fate = (await desk.ledger.rows("approval_fates", {"approval_id": row["approval_id"]}))[0]
    assert fate["order_id"] == row["order_id"]


async def test_a_stop_by_range_waits_for_its_bars_and_then_lies_nearer() -> None:
    ranged = plan(atr_multiple=D(2), atr_bars=2, atr_bar_ms=1_000)
    desk = await GuardedDesk(plan=ranged).start()
    await desk.long("0.1")
    assert desk.stop == D("57000.95")
    for bar in ("60000", "60100", "60100", "60000"):
        desk.clock.advance(500)
        desk.price(bar)
    desk.clock.advance(1_000)
    desk.price("60100")
    await desk.look()
    assert desk.post.ranges is not None
    assert desk.post.ranges.value == D(75)  # true ranges 0 and 100, then 100
    assert desk.stop == D(59_950)  # two ranges behind the best bid


async def test_a_position_is_closed_when_it_was_held_for_long_enough() -> None:
    desk = await GuardedDesk(plan=plan(hold_max_ms=60_000)).start()
    await desk.long()
    desk.clock.advance(59_999)
    desk.refresh()
    await desk.look()
    assert desk.held == D("0.5")
    await desk.look(1)
    assert desk.held == 0


async def test_every_position_is_closed_when_the_day_has_lost_too_much() -> None:
    desk = await GuardedDesk(plan=plan(stop_bps=D(4_000), portfolio_loss_pct=D(2))).start()
    await desk.long()
    await desk.stops.value()
    desk.price("58200")  # 1.5 BTC lost 1,800 each of about 160,000: 1.7 %
    await desk.stops.value()
    await desk.look()
    assert desk.held == D("0.5")
    desk.price("57700")
    await desk.stops.value()
    await desk.look()
    assert desk.held == 0
    assert desk.slices()


async def test_the_level_of_the_day_is_kept_over_a_restart_and_renewed_at_midnight() -> None:
    desk = await GuardedDesk().start()
    await desk.stops.value()
    (row,) = await desk.ledger.rows("equity_days")
    desk.price("50000")
    await desk.restart()
    await desk.stops.value()
    assert (await desk.ledger.rows("equity_days"))[0] == row
    assert desk.stops.day.lost_pct is not None
    assert desk.stops.day.lost_pct > 6
    desk.clock.advance(DAY_MS)
    desk.refresh()
    await desk.stops.value()
    assert desk.stops.day.lost_pct == 0


async def test_a_clock_set_back_over_midnight_does_not_forget_what_the_day_has_lost() -> None:
    desk = await GuardedDesk().start()
    day, now_ms = desk.stops.day, desk.clock.now_ms()
    midnight_ms = (now_ms // DAY_MS + 1) * DAY_MS
    await day.observe(D(1_000), midnight_ms)
    await day.observe(D(900), midnight_ms - 1)
    assert day.lost_pct == 10
    await day.observe(D(890), midnight_ms)
    assert day.lost_pct == 11


async def test_a_short_position_is_bought_back() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.order(await desk.issue(side=Side.SELL, quantity="0.3", limit_price="60000"))
    await desk.look()
    assert desk.held == D("-0.3")
    assert desk.stop == D(63_000)
    assert desk.protective() == []  # nothing rests for it on spot
    desk.price("63000")
    await desk.look()
    assert desk.held == 0


async def test_slices_reach_further_until_the_position_is_closed() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    book = build_book(
        [("57000", "0.1"), ("56000", "0.1"), ("50000", "1")], [("57001", "1")], now_ms=desk.clock.now_ms()
    )
    desk.show(book)
    await desk.look()
    assert desk.held == 0
    assert [each.terms.limit_price for each in desk.slices()] == [D(56_430), D(55_290), D(51_300), D(30_000)]
    assert [each.terms.quantity for each in desk.slices()] == [D("0.5"), D("0.4"), D("0.3"), D("0.3")]


async def test_nothing_is_sold_below_the_floor_and_that_is_an_alarm() -> None:
    desk = await GuardedDesk(floor="55000").start()
    await desk.long()
    desk.price("54000")
    await desk.look()
    assert desk.held == D("0.5")
    assert all(each.terms.limit_price == D(55_000) for each in desk.slices())
    assert "PROTECTION_STUCK" in desk.alarms()
    tried = len(desk.slices())
    await desk.look(500)
    assert len(desk.slices()) == tried  # not again at once
    desk.clock.advance(600)
    desk.price("56000")
    await desk.look()
    assert desk.held == 0  # it was hit: closed although the price has come back


async def test_a_stop_at_the_venue_moves_with_the_level_in_steps_and_never_stands_twice() -> None:
    desk = await GuardedDesk(native=True, plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    (first,) = desk.protective()
    desk.clock.advance(2_000)
    desk.price("60010")  # 1.7 bps: not worth a new order
    await desk.look()
    assert desk.protective() == [first]
    desk.price("61000")
    await desk.look()
    (second,) = desk.protective()
    assert second.terms.stop_price == D(60_390)
    assert len(desk.paper.exchange.working) == 1
    assert [each.exit_slice.number for each in desk.slices() if each.exit_slice is not None] == [1, 2]


async def test_a_partial_close_keeps_the_level_and_fits_the_size() -> None:
    desk = await GuardedDesk(native=True, plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    desk.clock.advance(2_000)
    desk.price("61000")
    await desk.look()
    await desk.beat()
    desk.refresh()
    sold = await desk.order(
        await desk.exit("0.2", limit_price="61000", time_in_force=TimeInForce.IOC, band=("60000", "62000"))
    )
    assert sold.status is OrderStatus.FILLED
    await desk.look()
    (stop,) = desk.protective()
    assert (stop.leaves, stop.terms.stop_price, desk.stop) == (D("0.3"), D(60_390), D(60_390))


async def test_an_approved_reduce_gets_the_room_that_the_stop_held() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    assert desk.service.lifecycle.reducible(INSTRUMENT_ID, Side.SELL) == 0  # the stop holds all of it
    resting = await desk.order(await desk.exit("0.2"))
    assert resting.status is OrderStatus.ACCEPTED
    await desk.look()
    (stop,) = desk.protective()
    assert stop.leaves == D("0.3")  # what is left is protected anew
    assert await desk.refusal(await desk.exit("0.6")) == "GATE_REDUCE_ONLY"
    assert [each.order_id for each in desk.protective()] == [stop.order_id]


async def test_an_approved_reduce_is_refused_when_the_stop_cannot_be_withdrawn() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    desk.faulty.script(Operation.CANCEL, Fault.LOSE_REQUEST)
    assert await desk.refusal(await desk.exit("0.2")) == "GATE_REDUCE_ONLY"
    assert [each.leaves for each in desk.protective()] == [D("0.5")]
    await desk.look()
    assert desk.service.lifecycle.slack(INSTRUMENT_ID, Side.SELL) == 0


async def test_a_position_closed_by_an_agent_leaves_no_stop_behind() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    await desk.order(await desk.exit(limit_price="60000", time_in_force=TimeInForce.IOC))
    assert desk.held == 0
    await desk.look()
    assert desk.protective() == []
    assert desk.paper.exchange.working == {}
    assert desk.post.open_guard is None


async def test_a_new_position_starts_anew() -> None:
    desk = await GuardedDesk(plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    desk.price("60900")
    desk.price("60200")
    await desk.look()
    assert desk.held == 0
    bought = await desk.long(limit_price="60201")
    assert bought.status is OrderStatus.FILLED
    assert desk.stop == D(59_598)  # 1 % behind 60,200, not behind 60,900
    numbers = [each.exit_slice.number for each in desk.slices() if each.exit_slice is not None]
    desk.price("59000")
    await desk.look()
    assert desk.held == 0
    assert len(desk.slices()) == len(numbers) + 1  # no slice was used twice


async def test_the_take_profit_of_an_agent_gives_way_to_the_stop() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    await desk.order(await desk.exit())
    await desk.look()
    assert desk.protective() == []  # the agent's exit holds all of it; the watch protects
    desk.price("57000")
    await desk.look()
    assert desk.held == 0
    assert desk.paper.exchange.working == {}


async def test_only_the_desk_itself_may_take_a_stop_away() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    (stop,) = desk.protective()
    with pytest.raises(GateRefused) as refused:
        await desk.service.cancel(stop.order_id, by="agent")
    assert refused.value.code == "CANCEL_NEEDS_APPROVAL"
    swept = await desk.service.cancel_all(by="agent")
    assert [each.order.order_id for each in swept.kept] == [stop.order_id]
