"""An order of an exit that risk signed is a stop: no alarm, and others may still close the whole position."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.risk_support import BTC, Desk, codes, open_desk, order, sell, stop_terms, wide_limits
from trading.domain.approvals import Effect
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import (
    AccountFunded,
    AlarmRaised,
    OrderAccepted,
    OrderCanceled,
    OrderFoundAbsent,
    OrderInitialized,
    OrderOutcomeUnknown,
    OrderSubmitted,
    ReservationReleased,
)
from trading.domain.identifiers import AgentId, ApprovalId, OrderId, VenueOrderId
from trading.domain.market_data import Side
from trading.domain.proposals import OrderType
from trading.domain.standing_exits import PROTECTION, ExitSlice, StandingExit
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID

D = Decimal


def alarms(desk: Desk) -> list[str]:
    return [event.payload.code for event in desk.ledger.events if isinstance(event.payload, AlarmRaised)]


async def holding(quantity: str = "0.5", *, renewed: bool = True, **parts: Any) -> tuple[Desk, StandingExit]:
    """Return a desk with a position, and the exit it was entered with or one signed alone."""
    desk = await open_desk(**parts)
    item = (await desk.ask(order(amount=quantity))).approved[0]
    await desk.consume(item)
    await desk.fill(item, quantity)
    await desk.risk.tick()
    found = desk.risk.live.exits.current(INSTRUMENT_ID) if renewed else item.approval.exit()
    assert found is not None
    return desk, found


@pytest.mark.parametrize("renewed", [True, False])
async def test_a_stop_raises_no_alarm_and_leaves_the_position_closable(renewed: bool) -> None:
    desk, found = await holding(renewed=renewed)
    await desk.protect(found, "0.5")
    assert alarms(desk) == []
    assert desk.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == D("0.5")
    assert desk.risk.reservations.promised(BTC) == 0
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).protected == D("0.5")
    answer = await desk.ask(sell("0.5", reduce_only=True))
    assert answer.approved[0].approval.effect is Effect.REDUCE


async def test_a_stop_that_fills_moves_its_quantity_to_the_position_and_is_gone() -> None:
    desk, found = await holding()
    order_id, slice_id = await desk.protect(found, "0.5")
    await desk.stop_fills(order_id, "0.2")
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).protected == D("0.3")
    assert desk.risk.portfolio.held(INSTRUMENT_ID) == D("0.3")
    await desk.stop_fills(order_id, "0.3")
    assert desk.risk.reservations.get(slice_id) is None
    assert len(desk.risk.reservations) == 0
    assert desk.risk.reservations.protective() == []
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).protected == 0
    released = [e.payload.approval_id for e in desk.ledger.events if isinstance(e.payload, ReservationReleased)]
    assert slice_id not in released  # it had no approval that could be released


async def test_a_stop_that_is_cancelled_is_gone() -> None:
    desk, found = await holding()
    order_id, _ = await desk.protect(found, "0.5")
    await desk.write(OrderCanceled(order_id=order_id, reason="asked"))
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).protected == 0
    assert len(desk.risk.reservations) == 0


async def test_a_stop_survives_a_restart_as_a_stop() -> None:
    desk, found = await holding()
    await desk.protect(found, "0.5")
    await desk.restart(clean=False)
    assert alarms(desk) == []
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).protected == D("0.5")
    assert desk.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == D("0.5")


async def test_a_stop_found_alive_after_it_was_thought_absent_is_a_stop_again() -> None:
    desk, found = await holding()
    order_id, slice_id = await desk.protect(found, "0.5")
    used = ExitSlice(exit_id=found.exit_id, number=2)
    lost = OrderId("stop-2")
    await desk.write(
        OrderCanceled(order_id=order_id, reason="asked"),
        OrderInitialized(
            order_id=lost,
            approval_id=used.approval_id,
            agent_id=PROTECTION,
            effect=Effect.REDUCE,
            terms=stop_terms(used, "0.5"),
            exit_slice=used,
        ),
        OrderSubmitted(order_id=lost),
        OrderOutcomeUnknown(order_id=lost, reason="timeout"),
        OrderFoundAbsent(order_id=lost, evidence="asked twice"),
    )
    assert desk.risk.reservations.get(slice_id) is None
    assert len(desk.risk.reservations) == 0
    await desk.write(OrderAccepted(order_id=lost, venue_order_id=VenueOrderId("v")))
    assert [item.protective for item in desk.risk.reservations] == [True]
    assert alarms(desk) == []


@pytest.mark.parametrize(
    ("event", "terms"),
    [
        ({"exit_slice": ExitSlice(exit_id=ApprovalId("nobody-signed-this"), number=1)}, {}),
        ({"exit_slice": None}, {}),
        ({"agent_id": AgentId("tester")}, {}),
        ({"effect": Effect.INCREASE}, {}),
        ({"approval_id": ApprovalId("another-name")}, {}),
        ({}, {"side": Side.BUY, "limit_price": "56000"}),
        ({}, {"limit_price": "30000.24"}),
        ({}, {"limit_price": None, "order_type": OrderType.STOP}),
        ({}, {"venue": "kraken"}),
    ],
)
async def test_an_order_that_its_exit_does_not_allow_is_an_order_without_approval(
    event: dict[str, Any], terms: dict[str, Any]
) -> None:
    desk, found = await holding()
    await desk.protect(found, "0.5", terms=terms, **event)
    assert alarms(desk) == ["ORDER_WITHOUT_APPROVAL"]
    assert [item.foreign for item in desk.risk.reservations] == [True]


async def test_an_exit_of_another_instrument_of_a_reduce_or_after_its_end_allows_nothing() -> None:
    desk, found = await holding("0.5", renewed=False)
    desk.clock.advance(found.terms.expires_ms - desk.clock.now_ms())
    await desk.protect(found, "0.5")
    assert alarms(desk) == ["ORDER_WITHOUT_APPROVAL"]


async def test_an_exit_that_cannot_be_looked_up_allows_nothing() -> None:
    desk, found = await holding()
    rows = desk.ledger.rows

    async def down(*_: Any, **__: Any) -> Any:
        raise LedgerUnavailable("down")

    desk.ledger.rows = down
    await desk.protect(found, "0.5")
    desk.ledger.rows = rows
    await desk.risk.tick()
    assert alarms(desk) == ["ORDER_WITHOUT_APPROVAL"]
    assert desk.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == 0


async def test_a_stop_that_is_read_before_its_fill_is_no_alarm() -> None:
    desk = await open_desk()
    item = (await desk.ask(order(amount="0.5"))).approved[0]
    await desk.consume(item)
    found = item.approval.exit()
    assert found is not None
    await desk.protect(found, "0.5")
    desk.risk.live.follower.watch(desk.clock.now_ms())
    desk.clock.advance(1_999)
    await desk.fill(item, "0.5")
    desk.clock.advance(5_000)
    desk.risk.live.follower.watch(desk.clock.now_ms())
    await desk.risk.tick()
    assert alarms(desk) == []


async def test_stops_that_stay_larger_than_the_position_alarm_once_and_count_in_full() -> None:
    desk, found = await holding()
    stops = [(await desk.protect(found, "0.3", number=number))[0] for number in (1, 2)]
    for wait_ms in (0, 1_999):
        desk.clock.advance(wait_ms)
        await desk.risk.tick()
        assert alarms(desk) == []
    for _ in range(2):
        desk.clock.advance(500)
        await desk.risk.tick()
    assert alarms(desk) == ["STOP_TOO_LARGE", "STOP_TOO_LARGE"]
    assert desk.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == 0
    assert desk.risk.reservations.promised(BTC) == D("0.6")
    for order_id in stops:
        await desk.write(OrderCanceled(order_id=order_id, reason="asked"))
    assert len(desk.risk.reservations) == 0
    assert desk.risk.reservations.promised(BTC) == 0
    assert desk.risk.portfolio.closable(INSTRUMENT_ID, Side.SELL) == D("0.5")


async def test_a_sale_that_adds_risk_cannot_count_on_what_a_stop_may_sell() -> None:
    desk, found = await holding()
    await desk.write(AccountFunded(account_id=ACCOUNT, currency=BTC, amount=D("0.4")))
    assert (await desk.ask(sell("0.8"))).approved  # 0.9 are held
    await desk.end((await desk.ask(sell("0.05"))).approved[0])
    other, exit_ = await holding()
    await other.write(AccountFunded(account_id=ACCOUNT, currency=BTC, amount=D("0.4")))
    await other.protect(exit_, "0.5")
    assert codes(await other.ask(sell("0.8"))) == {"BALANCE_FREE"}
    assert found.terms == exit_.terms


async def test_what_a_stop_loses_is_lost_by_those_who_built_the_position() -> None:
    limits = wide_limits(loss_streak_max=1)
    desk, found = await holding(limits=limits)
    order_id, _ = await desk.protect(found, "0.5")
    await desk.stop_fills(order_id, "0.5")
    assert "LOSS_STREAK" in codes(await desk.ask(order()))
    assert (await desk.ask(order(agent_id="other"))).approved


async def test_stops_do_not_count_as_turnover_after_a_restart() -> None:
    desk, found = await holding()
    before = desk.risk.portfolio.activity.flow.desk.turnover
    await desk.protect(found, "0.5")
    await desk.restart()
    assert desk.risk.portfolio.activity.flow.desk.turnover == before
