"""With an open position everybody else dies, alone and together: the stop closes it and nothing else passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest

from tests.bus_support import eventually
from tests.execution_support import RISK
from tests.protection_support import DAY_MS, HOUR_MS, GuardedDesk, plan
from trading.adapters import codec
from trading.adapters.signing import seal_together
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Fate, TradingState
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import EventEnvelope, OrderInitialized, OrderNotSent
from trading.domain.market_data import Side
from trading.domain.orders import OrderStatus
from trading.domain.proposals import OrderType
from trading.domain.standing_exits import ExitSlice
from trading.domain.trading_states import ScopeState
from trading.ports.ledger import Unit, Upsert
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID
from trading.testing.keys import make_test_signer
from trading.testing.venue import Fault, Operation

D = Decimal
SILENCE_MS = 10_000


@pytest.mark.parametrize("native", [False, True], ids=["watched", "resting"])
@pytest.mark.parametrize("dead", ["risk", "bus", "feed", "all"])
async def test_the_stop_closes_the_position_and_nothing_else_passes(dead: str, native: bool) -> None:
    """Risk: no heartbeat, no renewal. Bus: no heartbeat, and its ledger's news unread. Feed: books grow old.

    The coordinator is a courier of approvals: its death is an approval that is brought by somebody else.
    """
    desk = await GuardedDesk(native=native).start()
    await desk.long()
    feed = dead not in ("feed", "all")
    desk.clock.advance(SILENCE_MS)
    if dead == "feed":
        await desk.beat()
    desk.price("60000", feed=feed)
    await desk.look()
    entry = await desk.issue(quantity="0.01", ttl_ms=60_000)
    refused = await desk.refusal(entry)
    assert refused == ("GATE_PRICE_STALE" if dead == "feed" else "GATE_HEARTBEAT_STALE")
    assert desk.held == D("0.5")
    desk.price("56000", feed=feed)
    await desk.look()
    assert desk.held == 0
    assert desk.protective() == []
    assert desk.paper.exchange.working == {}
    assert await desk.refusal(entry) == refused
    made = desk.events(OrderInitialized)
    assert all(each.exit_slice is not None for each in made[1:])


async def test_after_a_restart_nobody_needs_to_be_heard_for_the_stop_to_act() -> None:
    desk = await GuardedDesk(plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    desk.price("60900")
    desk.clock.advance(2_000)
    await desk.look()
    await desk.restart(heard=False)
    assert desk.stop == D(60_291)
    desk.prices.current = None
    desk.price("60290", feed=False)
    await desk.look()
    assert desk.held == 0


@pytest.mark.parametrize("state", [TradingState.HALTED, TradingState.REDUCING])
async def test_a_halt_does_not_hold_a_stop_back(state: TradingState) -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    await desk.trip(state)
    desk.price("56000")
    await desk.look()
    assert desk.held == 0


async def test_a_freeze_holds_everything_back_and_leaves_the_stop_at_the_venue() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    (stop,) = desk.protective()
    await desk.trip(TradingState.FROZEN)
    desk.price("56000", venue=False)
    await desk.look()
    assert desk.held == D("0.5")
    assert desk.protective() == [stop]
    assert "PROTECTION_STUCK" in desk.alarms()


async def test_without_any_price_there_is_an_alarm_and_the_stop_acts_when_one_comes_back() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(SILENCE_MS)
    await desk.look()
    await desk.look(1_000)
    assert desk.alarms().count("PROTECTION_BLIND") == 1
    desk.price("56000")
    await desk.look()
    assert desk.held == 0


async def test_a_desk_may_choose_to_close_when_it_has_been_blind_for_long_enough() -> None:
    desk = await GuardedDesk(protection={"close_blind_ms": 5_000}).start()
    await desk.long()
    desk.clock.advance(SILENCE_MS)
    await desk.look()
    assert desk.held == D("0.5")
    await desk.look(5_000)
    assert desk.held == 0
    assert desk.slices()[0].terms.limit_price == D(30_000)


async def test_a_position_without_an_exit_is_an_alarm_until_risk_signs_one() -> None:
    desk = await GuardedDesk().start()
    desk.life_ms = HOUR_MS
    await desk.long()
    desk.clock.advance(HOUR_MS)
    desk.price("56000")
    await desk.look()
    await desk.look(1_000)
    assert desk.held == D("0.5")  # fail closed: an exit that has ended closes nothing
    assert desk.alarms().count("PROTECTION_MISSING") == 1
    await desk.sign_exit()
    desk.price("56000")
    await desk.look()
    assert desk.held == 0


async def test_an_exit_that_nobody_renews_is_an_alarm_long_before_it_ends() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(DAY_MS // 2 - 1)
    desk.refresh()
    await desk.look()
    assert desk.alarms() == []
    desk.clock.advance(1)
    await desk.look()
    assert desk.alarms() == ["PROTECTION_EXPIRING"]
    await desk.sign_exit()
    await desk.look()
    desk.clock.advance(DAY_MS // 2)
    desk.refresh()
    await desk.look()
    assert desk.alarms() == ["PROTECTION_EXPIRING", "PROTECTION_EXPIRING"]


async def test_only_exits_that_risk_signed_for_this_account_are_kept() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    (held,) = await desk.ledger.rows("standing_exits")
    desk.clock.advance(HOUR_MS * 2)
    await desk.sign_exit(signer=make_test_signer("forger"))
    await desk.sign_exit(signer=make_test_signer("forger"), key_id=RISK.key_id)
    await desk.sign_exit(account_id=ACCOUNT + "-2")
    assert await desk.ledger.rows("standing_exits") == [held]
    renewed = await desk.sign_exit()
    assert [row["exit_id"] for row in await desk.ledger.rows("standing_exits")] == [renewed.exit_id]


async def test_entries_in_quick_succession_write_one_exit_down() -> None:
    desk = await GuardedDesk().start()
    first = await desk.long("0.1")
    desk.clock.advance(1_000)
    desk.refresh()
    await desk.beat()
    await desk.long("0.1")
    (row,) = await desk.ledger.rows("standing_exits")
    assert row["exit_id"] == first.approval_id
    desk.plan = plan(stop_bps=D(300))
    desk.clock.advance(1_000)
    desk.refresh()
    await desk.beat()
    tightened = await desk.long("0.1")
    (row,) = await desk.ledger.rows("standing_exits")
    assert row["exit_id"] == tightened.approval_id
    assert desk.stop == D("58200.97")


async def test_an_exit_signed_while_nobody_followed_is_found_at_the_start() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.clock.advance(HOUR_MS * 2)
    desk.refresh()
    renewed = await desk.sign_exit(followed=False)
    await desk.restart()
    assert [row["exit_id"] for row in await desk.ledger.rows("standing_exits")] == [renewed.exit_id]


async def test_an_exit_that_was_signed_in_a_batch_outlives_a_restart() -> None:
    desk = await GuardedDesk().start()
    approvals = [desk.approval(quantity="0.1"), desk.approval(quantity="0.1")]
    sealed = seal_together([codec.canonical(each) for each in approvals], APPROVAL_PAYLOAD_TYPE, RISK)
    await desk.order(await desk.issue(approvals[1], envelope=sealed[1].to_json()))
    await desk.restart(heard=False)
    desk.price("50000")
    await desk.look()
    assert desk.held == 0


async def test_a_stored_exit_that_was_changed_is_not_used() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    (row,) = await desk.ledger.rows("standing_exits")
    other = desk.approval(quantity="9")
    await desk.ledger.commit(Unit(writes=(Upsert("standing_exits", {**row, "exit_id": other.approval_id}),)))
    await desk.restart()
    desk.price("50000")
    await desk.look()
    assert desk.held == D("0.5")
    assert "PROTECTION_MISSING" in desk.alarms()


async def test_the_running_manager_acts_on_a_price_and_on_time_without_being_asked() -> None:
    desk = await GuardedDesk(native=True, plan=plan(hold_max_ms=60_000)).start()
    running = asyncio.create_task(desk.stops.run())
    try:
        await desk.order(await desk.issue(quantity="0.5"))
        await eventually(lambda: len(desk.protective()) == 1)
        desk.price("56000", venue=False)
        desk.price("56500")
        await eventually(lambda: desk.held == 0)
        await eventually(lambda: desk.protective() == [] and desk.post.open_guard is None)
        desk.price("60000")
        await desk.beat()
        await desk.order(await desk.issue(quantity="0.5"))
        await eventually(lambda: len(desk.protective()) == 1)
        desk.clock.advance(60_000)
        desk.refresh()
        await eventually(lambda: desk.held == 0 and desk.alarms().count("STOP_HIT") == 2)
    finally:
        running.cancel()
        await asyncio.wait({running})


# --- crashes and doubt -------------------------------------------------------------------------------------------


async def test_a_crash_between_cancel_and_next_stop_leaves_the_watch_and_then_a_stop() -> None:
    desk = await GuardedDesk(native=True, plan=plan(trailing_bps=D(100))).start()
    await desk.long()
    desk.clock.advance(2_000)
    desk.price("60900")
    desk.ledger.fail_next_commit(LedgerUnavailable("the disk is gone"))
    with pytest.raises(LedgerUnavailable):
        await desk.look()
    await desk.restart()
    await desk.look()
    (stop,) = desk.protective()
    assert stop.terms.stop_price == D(60_291)
    assert len(desk.paper.exchange.working) == 1


@pytest.mark.parametrize("written", [False, True])
async def test_a_slice_whose_claim_may_be_written_is_never_sent_twice(written: bool) -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.price("56000")
    desk.ledger.fail_next_commit(written=written)
    with pytest.raises(LedgerUnavailable):
        await desk.look()
    assert desk.service.lifecycle.broken.is_set()
    sent = len(desk.faulty.handed_over)
    await desk.restart()
    for _ in range(12):
        desk.refresh()
        await desk.look(1_000)
    assert desk.held == 0
    assert len(set(desk.faulty.handed_over)) == len(desk.faulty.handed_over)
    assert len(desk.faulty.handed_over) == sent + 1
    numbers = [each.exit_slice.number for each in desk.slices() if each.exit_slice is not None]
    assert numbers == ([1, 2] if written else [1])
    orders = await desk.ledger.rows("orders", {"agent_id": "protection"})
    assert sorted(str(row["status"]) for row in orders) == (["absent", "filled"] if written else ["filled"])


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.DELAY_REQUEST])
async def test_a_slice_in_doubt_is_reconciled_before_the_next_one(fault: Fault) -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.faulty.script(Operation.SEND, fault)
    desk.price("56000")
    await desk.stops.attend(INSTRUMENT_ID)
    (doubtful,) = desk.protective()
    assert doubtful.status is OrderStatus.UNKNOWN
    await desk.stops.attend(INSTRUMENT_ID)
    assert len(desk.slices()) == 1
    await desk.faulty.release()
    for _ in range(12):
        desk.refresh()
        await desk.look(1_000)
    assert desk.held == 0
    assert len(desk.paper.exchange.trades) == 2
    assert len(desk.slices()) == (2 if fault is Fault.LOSE_REQUEST else 1)


async def test_a_number_that_is_taken_is_passed_over() -> None:
    desk = await GuardedDesk().start()
    entry = await desk.long()
    for number in (1, 2):
        taken = ExitSlice(exit_id=entry.approval_id, number=number).approval_id
        await desk.service.fates.void([taken], "TEST")
    desk.price("56000")
    await desk.look()
    assert desk.held == 0
    assert [each.exit_slice.number for each in desk.slices() if each.exit_slice is not None] == [4]


async def test_an_exit_that_ends_between_claim_and_send_sends_nothing() -> None:
    desk = await GuardedDesk().start()
    desk.life_ms = HOUR_MS
    await desk.long()
    desk.clock.advance(HOUR_MS - 1)
    desk.price("56000")
    commit = desk.ledger.commit

    async def slow(unit: Unit) -> Sequence[EventEnvelope]:
        desk.clock.advance(1)
        return await commit(unit)

    desk.ledger.commit = slow
    await desk.stops.attend(INSTRUMENT_ID)
    desk.ledger.commit = commit
    assert [each.code for each in desk.events(OrderNotSent)] == ["GATE_EXPIRED"]
    assert desk.held == D("0.5")


async def test_a_restart_finds_the_stop_at_the_venue_and_keeps_it() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    (stop,) = desk.protective()
    await desk.restart()
    await desk.look()
    assert [each.order_id for each in desk.protective()] == [stop.order_id]
    assert len(desk.slices()) == 1


async def test_a_stop_that_filled_while_the_room_was_down_leaves_nothing_behind() -> None:
    desk = await GuardedDesk(native=True).start()
    await desk.long()
    desk.price("56000", feed=False)
    await desk.restart()
    await desk.look()
    assert desk.held == 0
    assert desk.post.open_guard is None
    assert desk.paper.exchange.working == {}


async def test_a_venue_that_refuses_stops_is_left_alone_and_the_watch_protects() -> None:
    desk = await GuardedDesk(native=True).start()
    desk.faulty.script(Operation.SEND, None, Fault.REFUSE)
    await desk.long()
    assert desk.protective() == []
    await desk.look(10_000)
    assert len(desk.slices()) == 1
    desk.refresh()
    await desk.look(20_000)
    assert len(desk.protective()) == 1


async def test_a_slice_is_a_fate_like_any_other() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    desk.price("56000")
    await desk.look()
    (order,) = await desk.ledger.rows("orders", {"agent_id": "protection"})
    fates = {row["approval_id"]: row["fate"] for row in await desk.ledger.rows("approval_fates")}
    assert fates[order["approval_id"]] == Fate.CONSUMED
    found = await desk.order(str(order["approval_id"]))  # asked for by its name it is found, not sent again
    assert (found.terms.side, found.terms.order_type) == (Side.SELL, OrderType.LIMIT)
    assert len(desk.slices()) == 1


async def test_a_symbol_that_the_operator_froze_holds_its_stop_back_alone() -> None:
    desk = await GuardedDesk().start()
    await desk.long()
    await desk.beat(scopes=(ScopeState("symbol:BTC/USDT", TradingState.FROZEN),))
    desk.price("56000")
    await desk.look()
    assert desk.held == D("0.5")
    await desk.beat(scopes=(ScopeState("symbol:ETH/USDT", TradingState.FROZEN),))
    await desk.look(1_000)
    assert desk.held == 0
