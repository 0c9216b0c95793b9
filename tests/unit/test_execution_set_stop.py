"""What an agent may do to a position with its stop: bring it nearer, never sell with it at once."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mcp_servers.execution.protection.tightening import Wish
from tests.protection_support import GuardedDesk
from trading.domain.errors import GateRefused
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
