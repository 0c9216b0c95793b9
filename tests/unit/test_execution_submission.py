"""Submit: at most one venue order per approval, whatever happens between the claim and the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.execution.gate import GateCode
from mcp_servers.execution.rows import fate_row
from mcp_servers.execution.walks import Receipt, Refusal, Walk
from tests.execution_support import Desk
from trading.domain.approvals import ApprovedOrder, Fate, TradingState
from trading.domain.errors import LeaseLost, LedgerUnavailable
from trading.domain.events import ApprovalEnded, OrderFilled, OrderInitialized, OrderNotSent
from trading.domain.identifiers import ApprovalId, VenueOrderId
from trading.domain.orders import OrderStatus
from trading.ports.ledger import Insert, Row, Unit
from trading.ports.venue import PreparedOrder, VenueOrderState, VenueReport
from trading.testing.clock import ManualClock
from trading.testing.venue import Fault, FaultyVenue, Operation, build_paper_venue

D = Decimal


class Watched(FaultyVenue):
    """A venue that lets a test act at the moments that matter."""

    def __init__(self, desk_clock: ManualClock) -> None:
        self.paper = build_paper_venue(desk_clock)
        super().__init__(self.paper)
        self.during_prepare: Any = None
        self.at_send: Any = None
        self.wire_quantity: Decimal | None = None

    async def prepare(self, order: ApprovedOrder, *, deadline_ms: int) -> PreparedOrder:
        """Prepare, with the test in between."""
        prepared = await super().prepare(order, deadline_ms=deadline_ms)
        if self.during_prepare is not None:
            await self.during_prepare()
        if self.wire_quantity is not None:
            prepared = replace(prepared, wire_quantity=self.wire_quantity)
        return prepared

    def send(self, prepared: PreparedOrder) -> Awaitable[VenueReport]:
        """Send, and tell the test."""
        if self.at_send is not None:
            self.at_send(prepared)
        return super().send(prepared)


def _watched() -> tuple[Desk, Watched]:
    desk = Desk()
    venue = Watched(desk.clock)
    desk.venue, desk.paper = venue, venue.paper
    desk.service = desk._build()
    return desk, venue


async def test_an_approved_order_is_filled_and_everything_about_it_is_durable() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(quantity="0.5")
    order = await desk.order(approval_id)
    assert (order.status, order.filled, order.average_price) == (OrderStatus.FILLED, D("0.5"), D(60001))
    assert desk.of_order(order) == ["order.initialized", "order.submitted", "order.accepted", "order.filled"]
    assert await desk.stored(order) == order
    fate = (await desk.ledger.rows("approval_fates"))[0]
    assert (fate["approval_id"], fate["fate"], fate["order_id"]) == (approval_id, "consumed", order.order_id)
    fill = (await desk.ledger.rows("fills"))[0]
    assert (fill["quantity"], fill["price"], fill["order_id"]) == ("0.5", "60001", order.order_id)
    balances = {row["currency"]: row["total"] for row in await desk.ledger.rows("balances")}
    truth = {currency: format(each.total, "f") for currency, each in (await desk.paper.balances()).items()}
    assert {c: D(str(v)) for c, v in balances.items()} == {c: D(v) for c, v in truth.items()}


async def test_the_claim_is_durable_before_the_venue_is_called() -> None:
    desk, venue = _watched()
    await desk.start()
    seen: list[int] = []
    venue.at_send = lambda _: seen.append(len(desk.events(OrderInitialized)))
    await desk.order(await desk.issue())
    assert seen == [1]


async def test_the_same_approval_again_gives_the_same_order() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    first = await desk.order(approval_id)
    desk.clock.advance(60_000)  # long expired: the stored receipt is given all the same
    assert await desk.order(approval_id) == first
    assert len(desk.faulty.handed_over) == 1


async def test_fifty_concurrent_submits_of_one_approval_make_one_order() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    outcomes = await asyncio.gather(*(desk.service.submit([approval_id, approval_id]) for _ in range(50)))
    orders = {outcome.order.order_id for pair in outcomes for outcome in pair if isinstance(outcome, Receipt)}
    assert len(orders) == 1
    assert len(desk.faulty.handed_over) == 1
    assert len(desk.events(OrderInitialized)) == 1


async def test_two_services_on_one_ledger_make_one_order() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    rival = desk._build()
    await rival.start()
    rival.learn(desk.heartbeat())
    mine, theirs = await asyncio.gather(desk.service.submit([approval_id]), rival.submit([approval_id]))
    assert len(desk.faulty.handed_over) == 1
    assert isinstance(mine[0], Receipt)
    assert isinstance(theirs[0], Receipt)
    assert mine[0].order.order_id == theirs[0].order.order_id


async def test_a_batch_is_counted_order_by_order() -> None:
    desk = await Desk().start()
    good = [await desk.issue() for _ in range(20)]
    outcomes = await desk.service.submit([*good[:10], "approval-of-nobody", *good[10:], good[0]])
    assert [isinstance(each, Receipt) for each in outcomes] == [True] * 10 + [False] + [True] * 11
    assert len(desk.faulty.handed_over) == 20


async def test_submits_that_arrive_together_share_one_read_and_one_claim_commit() -> None:
    desk = await Desk().start()
    ids = [await desk.issue() for _ in range(40)]
    claims: list[int] = []
    real = desk.ledger.commit

    async def counted(unit: Any) -> Any:
        if unit.claims:
            claims.append(len(unit.claims))
        return await real(unit)

    desk.ledger.commit = counted
    outcomes = await asyncio.gather(*(desk.service.submit([each]) for each in ids))
    assert all(isinstance(each, Receipt) for (each,) in outcomes)
    assert claims == [40]
    assert len(desk.faulty.handed_over) == 40


async def test_a_submit_does_not_wait_for_the_answers_of_those_before_it() -> None:
    desk = await Desk(answer_timeout_s=30).start()
    desk.faulty.script(Operation.SEND, Fault.HOLD_ANSWER)
    slow = asyncio.create_task(desk.service.submit([await desk.issue()]))
    while not desk.faulty.handed_over:
        await asyncio.sleep(0)
    assert (await desk.order(await desk.issue())).status is OrderStatus.FILLED
    assert not slow.done()
    await desk.faulty.release()
    assert isinstance((await slow)[0], Receipt)


async def test_a_prepare_that_hangs_holds_up_nobody_else() -> None:
    desk, venue = _watched()
    await desk.start()
    hung, go = asyncio.Event(), asyncio.Event()

    async def hang_once() -> None:
        if not hung.is_set():
            hung.set()
            await go.wait()

    venue.during_prepare = hang_once
    slow = asyncio.create_task(desk.service.submit([await desk.issue()]))
    await hung.wait()
    assert (await desk.order(await desk.issue())).status is OrderStatus.FILLED
    assert not slow.done()
    go.set()
    assert isinstance((await slow)[0], Receipt)


async def test_a_fault_in_one_order_leaves_its_neighbours_alone() -> None:
    desk, venue = _watched()
    await desk.start()
    faults = iter([RuntimeError("adapter")])

    async def fail_once() -> None:
        for fault in faults:
            raise fault

    venue.during_prepare = fail_once
    ids = [await desk.issue() for _ in range(3)]
    outcomes = [each for (each,) in await asyncio.gather(*(desk.service.submit([each]) for each in ids))]
    assert [isinstance(each, Receipt) for each in outcomes] == [False, True, True]
    assert (await desk.order(ids[0])).status is OrderStatus.FILLED  # nothing was claimed, so it may be tried again


async def test_a_batch_that_fails_does_not_answer_for_an_approval_that_was_asked_for_again() -> None:
    desk, venue = _watched()
    await desk.start()
    claiming, fail, preparing, go = (asyncio.Event() for _ in range(4))
    real = desk.service.submissions._claim

    async def fail_once(walks: Any) -> Any:
        desk.service.submissions._claim = real
        claiming.set()
        await fail.wait()
        raise LedgerUnavailable("the first batch fails")

    async def wait() -> None:
        preparing.set()
        await go.wait()

    desk.service.submissions._claim = fail_once
    good = await desk.issue()
    early = await desk.issue(changes={"issued_ms": desk.clock.now_ms() + 300})
    first = asyncio.gather(desk.service.submit([good]), desk.submit(early))
    await claiming.wait()
    await desk.tick(100)
    venue.during_prepare = wait
    again = asyncio.create_task(desk.submit(early))
    await preparing.wait()
    fail.set()
    (failed,), from_future = await first
    assert isinstance(failed, Refusal)
    assert isinstance(from_future, Refusal)
    assert desk.service.submissions.under_way == {early}
    go.set()
    assert isinstance(await again, Receipt)


async def test_a_replay_after_memory_forgot_is_answered_from_the_ledger() -> None:
    desk = await Desk(terminal_kept=2).start()
    ids = [await desk.issue() for _ in range(6)]
    orders = [await desk.order(each) for each in ids]
    assert desk.service.lifecycle.order_of_approval(orders[0].approval_id) is None
    assert (await desk.order(ids[0])).order_id == orders[0].order_id
    assert len(desk.faulty.handed_over) == 6


async def test_a_wire_quantity_that_differs_is_not_sent() -> None:
    desk, venue = _watched()
    await desk.start()
    venue.wire_quantity = D("0.02")
    assert await desk.refusal(await desk.issue()) == GateCode.ORDER_MISMATCH
    assert venue.handed_over == []
    assert await desk.ledger.rows("approval_fates") == []


async def test_a_trip_during_prepare_ends_the_order_as_not_sent() -> None:
    desk, venue = _watched()
    await desk.start()
    venue.during_prepare = desk.trip
    order = await desk.order(await desk.issue())
    assert (order.status, order.reason) == (OrderStatus.NOT_SENT, GateCode.EPOCH)
    assert venue.handed_over == []
    assert [event.code for event in desk.events(OrderNotSent)] == [GateCode.EPOCH]


async def test_a_trip_while_the_venue_refuses_to_prepare_leaves_the_approval_to_the_next_round() -> None:
    desk, venue = _watched()
    await desk.start()
    approval_id = await desk.issue()
    venue.during_prepare = desk.trip
    venue.wire_quantity = D("0.02")
    assert await desk.refusal(approval_id) == GateCode.ORDER_MISMATCH
    await desk.tick(500)
    assert desk.service.fates.fate(ApprovalId(approval_id)) is Fate.VOIDED
    assert await desk.refusal(approval_id) == GateCode.FATE_WRITTEN


async def test_an_approval_that_expires_during_prepare_is_not_sent() -> None:
    desk, venue = _watched()
    await desk.start()

    async def dawdle() -> None:
        desk.clock.advance(3_000)

    venue.during_prepare = dawdle
    order = await desk.order(await desk.issue(ttl_ms=3_000))
    assert (order.status, order.reason) == (OrderStatus.NOT_SENT, GateCode.EXPIRED)
    assert venue.handed_over == []


async def test_nothing_runs_between_the_last_check_and_the_send() -> None:
    """A trip that is ready to run when the last check passes runs only after the whole batch was handed over."""
    desk, venue = _watched()
    await desk.start()
    checks: list[int] = []
    heard: list[int] = []
    real = desk.service.sending._last_check

    def check(walk: Walk) -> None:
        real(walk)
        if not checks:
            asyncio.get_running_loop().call_soon(lambda: heard.append(len(venue.handed_over)))
        checks.append(len(venue.handed_over))

    desk.service.sending._last_check = check
    await desk.service.submit([await desk.issue() for _ in range(5)])
    assert checks == [0, 1, 2, 3, 4]  # each check is followed by its own send before the next check
    assert heard == [5]


async def test_a_trip_learned_between_two_orders_of_the_loop_stops_the_rest() -> None:
    """The state is read anew for every order: what a send itself brings about is seen by the next check."""
    desk, venue = _watched()
    await desk.start()
    text = desk.heartbeat(state=TradingState.HALTED)
    venue.at_send = lambda _: desk.service.epochs.observe(text, desk.service.moment())
    outcomes = await desk.service.submit([await desk.issue() for _ in range(3)])
    assert [each.order.status for each in outcomes if isinstance(each, Receipt)] == [
        OrderStatus.FILLED,
        OrderStatus.NOT_SENT,
        OrderStatus.NOT_SENT,
    ]
    assert len(venue.handed_over) == 1


async def test_a_caller_that_goes_away_stops_neither_the_commit_nor_the_send() -> None:
    desk, venue = _watched()
    await desk.start()
    gate = asyncio.Event()
    venue.during_prepare = gate.wait
    approval_id = await desk.issue()
    caller = asyncio.create_task(desk.service.submit([approval_id]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    assert (await desk.order(approval_id)).status is OrderStatus.FILLED
    assert len(venue.handed_over) == 1


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.DELAY_REQUEST])
async def test_an_unknown_outcome_is_never_sent_again(fault: Fault) -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, fault)
    approval_id = await desk.issue()
    assert (await desk.order(approval_id)).status is OrderStatus.UNKNOWN
    assert (await desk.order(approval_id)).status is OrderStatus.UNKNOWN
    await desk.restart()
    assert (await desk.order(approval_id)).status in (OrderStatus.UNKNOWN, OrderStatus.FILLED)
    assert len(desk.faulty.handed_over) == 1


async def test_an_unknown_outcome_is_resolved_by_a_query() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.LOSE_ANSWER)
    order = await desk.order(await desk.issue())
    outcome = await desk.service.reconcile()
    assert outcome.clean
    found = await desk.service.inquiries.find_order(order.order_id)
    assert (found.status, found.filled) == (OrderStatus.FILLED, D("0.01"))
    assert found.venue_order_id is not None


async def test_an_answer_that_comes_too_late_is_still_taken() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.HOLD_ANSWER)
    order = await desk.order(await desk.issue())
    assert order.status is OrderStatus.UNKNOWN
    await desk.faulty.release()
    await asyncio.sleep(0)
    await desk.service.lifecycle.flush()
    assert (await desk.stored(order)).status is OrderStatus.FILLED


async def test_a_definitive_refusal_is_rejected() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.REFUSE)
    order = await desk.order(await desk.issue())
    assert (order.status, order.reason.partition(":")[0]) == (OrderStatus.REJECTED, "VENUE_REFUSED")


async def test_a_venue_that_cannot_prepare_leaves_the_approval_unused() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.PREPARE, Fault.UNAVAILABLE)
    approval_id = await desk.issue()
    assert await desk.refusal(approval_id) == "VENUE_DOWN"
    assert (await desk.order(approval_id)).status is OrderStatus.FILLED


async def test_an_answer_about_another_order_is_no_answer() -> None:
    desk = await Desk().start()
    other = await desk.bought("0.01")

    def mixed_up(prepared: PreparedOrder) -> Awaitable[VenueReport]:
        answer: asyncio.Future[VenueReport] = asyncio.get_running_loop().create_future()
        answer.set_result(
            VenueReport(
                client_order_id=other.terms.client_order_id,
                venue_order_id=VenueOrderId("v"),
                instrument_id=prepared.order.instrument_id,
                state=VenueOrderState.CANCELED,
                filled=D(0),
                venue_ts_ms=0,
            )
        )
        return answer

    desk.venue.send = mixed_up
    assert (await desk.order(await desk.issue())).status is OrderStatus.UNKNOWN


async def test_an_adapter_that_raises_while_sending_may_have_sent() -> None:
    desk, venue = _watched()
    await desk.start()

    def fail(_: PreparedOrder) -> None:
        raise RuntimeError("socket")

    venue.at_send = fail
    assert (await desk.order(await desk.issue())).status is OrderStatus.UNKNOWN


# --- the ledger fails ------------------------------------------------------------------------------------------------


async def test_a_claim_that_was_not_written_sends_nothing_and_may_be_tried_again() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    desk.ledger.fail_next_commit()
    assert await desk.refusal(approval_id) == "LEDGER_UNAVAILABLE"
    assert desk.faulty.handed_over == []
    assert (await desk.order(approval_id)).status is OrderStatus.FILLED


async def test_a_claim_whose_answer_was_lost_sends_nothing_and_ends_as_not_sent() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    desk.ledger.fail_next_commit(written=True)
    order = await desk.order(approval_id)
    assert order.status is OrderStatus.NOT_SENT
    assert desk.faulty.handed_over == []
    assert await desk.stored(order) == order


async def test_a_ledger_that_cannot_say_who_was_first_does_not_strand_the_others_of_the_batch() -> None:
    desk = await Desk().start()
    first, second = await desk.issue(), await desk.issue()
    ledger, commit, rows = desk.ledger, desk.ledger.commit, desk.ledger.rows

    async def no_rows(table: str, where: Row | None = None, *, limit: int | None = None) -> list[Row]:
        ledger.rows = rows
        raise LedgerUnavailable("the database failed (injected)")

    async def raced(unit: Unit) -> Any:
        if len(unit.claims) == 2:
            voided = fate_row(ApprovalId(first), Fate.VOIDED.value, None, 1)
            await commit(Unit(events=(), claims=(Insert("approval_fates", voided),), writes=()))
            ledger.rows = no_rows
        return await commit(unit)

    ledger.commit = raced
    lost, won = await desk.service.submit([ApprovalId(first), ApprovalId(second)])
    assert isinstance(lost, Refusal)
    assert lost.code == LedgerUnavailable.code
    assert isinstance(won, Receipt)
    assert won.order.status is OrderStatus.FILLED
    assert await desk.refusal(first) == GateCode.FATE_WRITTEN.value


async def test_a_lost_lease_stops_the_room_before_anything_is_sent() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    desk.ledger.successor()
    assert await desk.refusal(approval_id) == LeaseLost.code
    assert desk.service.lifecycle.broken.is_set()
    assert desk.faulty.handed_over == []
    assert await desk.refusal(await desk.issue()) == LeaseLost.code


async def test_a_ledger_that_fails_after_the_send_stops_the_room_and_the_restart_finds_the_order() -> None:
    desk, venue = _watched()
    await desk.start()
    approval_id = await desk.issue()
    venue.at_send = lambda _: desk.ledger.fail_next_commit()
    assert await desk.refusal(approval_id) == LedgerUnavailable.code
    assert desk.service.lifecycle.broken.is_set()
    assert any(reason.startswith("LEDGER_FAILED") for reason in desk.service.inquiries.unsafe_reasons())
    await desk.restart()
    order = await desk.order(approval_id)
    assert (order.status, order.filled) == (OrderStatus.FILLED, D("0.01"))
    assert len(venue.handed_over) == 1
    assert len(desk.events(OrderFilled)) == 1


# --- crashes between claim and answer --------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


async def _crash_in(desk: Desk, approval_id: str) -> None:
    """Submit, and abandon the service at the point where the test raises."""
    task = asyncio.create_task(desk.service.submit([approval_id]))
    await asyncio.wait({task}, timeout=0.2)
    for walk in list(desk.service.submissions._walks):
        walk.cancel()
    task.cancel()
    await asyncio.gather(task, *desk.service.submissions._walks, return_exceptions=True)


async def test_a_crash_after_the_claim_and_before_the_send_ends_as_absent_and_is_never_sent() -> None:
    desk, venue = _watched()
    await desk.start()
    approval_id = await desk.issue(ttl_ms=1_000)
    never = asyncio.Event()
    real = desk.ledger.commit

    async def commit_then_hang(unit: Any) -> Any:
        result = await real(unit)
        if unit.claims:
            await never.wait()
        return result

    desk.ledger.commit = commit_then_hang
    await _crash_in(desk, approval_id)
    await desk.restart()
    assert (await desk.order(approval_id)).status is OrderStatus.UNKNOWN
    for _ in range(4):
        await desk.tick(600)
        await desk.service.reconcile()
    assert (await desk.order(approval_id)).status is OrderStatus.UNKNOWN  # two answers after the window so far
    await desk.tick(600)
    await desk.service.reconcile()
    assert (await desk.order(approval_id)).status is OrderStatus.ABSENT
    assert venue.handed_over == []


async def test_a_crash_after_the_send_and_before_the_answer_finds_the_order_at_the_venue() -> None:
    desk = await Desk(answer_timeout_s=30.0).start()
    approval_id = await desk.issue()
    desk.faulty.script(Operation.SEND, Fault.HOLD_ANSWER)
    await _crash_in(desk, approval_id)
    await desk.restart()
    order = await desk.order(approval_id)
    assert (order.status, order.filled) == (OrderStatus.FILLED, D("0.01"))
    assert len(desk.faulty.handed_over) == 1
    await desk.faulty.release()


async def test_a_crash_before_the_claim_leaves_the_approval_usable() -> None:
    desk, venue = _watched()
    await desk.start()
    approval_id = await desk.issue()
    venue.during_prepare = asyncio.Event().wait
    await _crash_in(desk, approval_id)
    venue.during_prepare = None
    await desk.restart()
    assert (await desk.order(approval_id)).status is OrderStatus.FILLED
    assert len(venue.handed_over) == 1


async def test_a_submit_after_the_stop_is_not_sent() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    desk.service.sending.close()
    assert (await desk.order(approval_id)).status is OrderStatus.NOT_SENT
    assert desk.faulty.handed_over == []


async def test_refusals_write_nothing() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(changes={"policy_version": 0})
    outcome = await desk.submit(approval_id)
    assert isinstance(outcome, Refusal)
    assert desk.events(ApprovalEnded) == []
