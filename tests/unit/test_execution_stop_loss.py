"""The stop-loss manager on a venue that can fail, under a clock that the test moves."""

from __future__ import annotations

from decimal import Decimal

from tests.protection_support import GuardedDesk, plan
from trading.domain.market_data import Side
from trading.domain.orders import OrderStatus
from trading.domain.proposals import OrderType

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
