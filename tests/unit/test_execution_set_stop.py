"""What an agent may do to a position with its stop: bring it nearer, never sell with it at once."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mcp_servers.execution.protection.tightening import Wish
from tests.protection_support import GuardedDesk
from trading.domain.errors import GateRefused
from trading.domain.proposals import TimeInForce
from trading.testing.builders import INSTRUMENT_ID

D = Decimal


@pytest.mark.parametrize(
    "wish",
    [
        Wish(stop_price=D(60_000)),
        Wish(trailing_bps=D("0.0001")),  # rounded towards the market it lies at the best price itself
        Wish(hold_max_s=1),  # counted from an entry a minute ago
    ],
)
async def test_a_stop_that_would_sell_at_once_is_refused_and_changes_nothing(wish: Wish) -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(60_000)
    desk.price("60000")
    await desk.look()
    before = desk.post.guard
    with pytest.raises(GateRefused) as refused:
        await desk.stops.tighten(INSTRUMENT_ID, wish)
    assert refused.value.code == "PROTECTION_WOULD_TRIGGER"
    assert desk.post.guard == before
    await desk.look()
    assert desk.held == D("0.5")


@pytest.mark.parametrize("wish", [Wish(stop_price=D(90_000)), Wish(trailing_bps=D(1))])
async def test_without_a_price_nobody_can_say_that_a_stop_would_not_sell_at_once(wish: Wish) -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(60_000)  # the feed's price and the venue's are old now
    before = desk.stop
    with pytest.raises(GateRefused) as refused:
        await desk.stops.tighten(INSTRUMENT_ID, wish)
    assert (refused.value.code, desk.stop) == ("PRICE_STALE", before)
    desk.price("60000")
    await desk.look()
    assert desk.held == D("0.5")


async def test_a_nearer_stop_a_shorter_trail_and_a_deadline_ahead_are_an_agents_right() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(60_000)
    desk.price("60000")
    await desk.stops.tighten(INSTRUMENT_ID, Wish(stop_price=D(59_000)))
    await desk.stops.tighten(INSTRUMENT_ID, Wish(trailing_bps=D(100)))
    await desk.stops.tighten(INSTRUMENT_ID, Wish(hold_max_s=120))
    guard = desk.post.open_guard
    assert guard is not None
    assert (desk.stop, guard.asked.trailing_bps, guard.asked.hold_until_ms) == (
        D(59_400),
        D(100),
        guard.opened_ms + 120_000,
    )


async def test_a_stop_of_an_agent_sells_no_further_down_than_the_first_band_until_a_stop_of_the_plan_is_hit() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.price("60000")
    await desk.stops.tighten(INSTRUMENT_ID, Wish(stop_price=D(59_900)))
    desk.price("59900", venue=False)
    desk.price("50000", feed=False)  # nobody near the price buys
    await desk.look()
    made = desk.slices()
    assert [each.terms.limit_price for each in made] == [D(59_301)]  # 1 % beyond the price
    assert desk.held == D("0.5")
    desk.price("57000", venue=False)  # 5 % below the entry: the plan's own stop
    await desk.look(2_000)
    assert desk.held == 0
    assert desk.slices()[-1].terms.limit_price == D(30_000)


async def test_a_deadline_of_an_agent_sells_no_further_down_either() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    await desk.stops.tighten(INSTRUMENT_ID, Wish(hold_max_s=10))
    desk.clock.advance(10_000)
    desk.price("60000", venue=False)
    desk.price("50000", feed=False)
    await desk.look()
    assert [each.terms.limit_price for each in desk.slices()] == [D(59_400)]
    assert desk.held == D("0.5")


async def test_while_a_stop_closes_an_agents_exit_gets_room_only_if_it_cannot_rest() -> None:
    desk = await GuardedDesk(floor="57500").start()
    await desk.long()
    desk.price("57000")  # below the floor: the stop is hit and nobody may buy
    await desk.look()
    assert desk.post.open_guard is not None
    assert desk.post.open_guard.hit is not None
    band = ("56000", "58000")
    assert await desk.refusal(await desk.exit(limit_price="57300", band=band)) == "GATE_REDUCE_ONLY"
    await desk.order(await desk.exit(limit_price="57000", band=band, time_in_force=TimeInForce.IOC))
    assert desk.held == 0
