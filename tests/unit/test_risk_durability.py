"""No approval leaves the process before it is in the ledger, wherever its commit fails or hangs."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.hosting import ToolFailure, call, open_client
from tests.bus_support import eventually
from tests.integration.test_risk_resources import read, server_of
from tests.integration.test_risk_server import LIMIT
from tests.risk_machine_bounds import Bounds
from tests.risk_machine_support import SYMBOLS, Commit, GatedLedger, Oracle, open_wide_desk, wanted_order
from tests.risk_support import Desk
from trading.domain.approvals import Fate
from trading.domain.errors import InvalidValue, LeaseLost, TradingError, Unavailable
from trading.domain.events import RiskApproved

BTC = SYMBOLS[0]


async def hanging(**ledger: Any) -> tuple[Desk, GatedLedger]:
    """Return a desk whose commits of answers hang."""
    desk = await open_wide_desk(Bounds("wide").limits(), Decimal(1_000_000))
    assert isinstance(desk.ledger, GatedLedger)
    desk.ledger.gated = True
    for name, value in ledger.items():
        setattr(desk.ledger, name, value)
    return desk, desk.ledger


def start(desk: Desk, request_id: str = "r") -> asyncio.Task[Any]:
    return asyncio.ensure_future(desk.ask(wanted_order("steady", BTC, "limit", 600), request_id=request_id))


async def seen_outside(desk: Desk) -> list[str]:
    """Ids of approvals that anybody but risk itself can see, wherever an id or a signature might appear."""
    ids = [item.approval_id for item in desk.risk.reservations]
    found: list[str] = []
    async with open_client(server_of(desk)) as client:
        for name in ids:
            try:
                found.append((await call(client, "risk_get_approval", approval_id=name))["approval"]["approval_id"])
            except ToolFailure:
                continue
        shown = (await read(client, "risk://approvals"))["data"]["approvals"]
        found += [row["approval"]["approval_id"] for row in shown]
    found += [name for name in ids if any(name in sent for sent in desk.sink.sent)]
    return found


async def settled_tasks() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_while_the_commit_hangs_nothing_of_the_approval_can_be_seen() -> None:
    desk, ledger = await hanging()
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    desk.clock.advance(1_000)
    await desk.risk.tick()
    await settled_tasks()
    assert not task.done()
    assert len(desk.risk.reservations) == 1  # it counts from here on
    assert await seen_outside(desk) == []
    ledger.waiting[0].set_result(Commit.WRITTEN)
    (item,) = (await task).approved
    assert await seen_outside(desk) == [item.approval.approval_id] * 2


async def test_written_but_not_confirmed_is_not_answered_yet() -> None:
    desk, ledger = await hanging(hold_answers=True)
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    ledger.waiting[0].set_result(Commit.WRITTEN)
    await eventually(lambda: len(ledger.answered) == 1)
    await settled_tasks()
    assert not task.done()
    ledger.answered[0].set()
    (item,) = (await task).approved
    assert [event.payload.approval for event in ledger.events if isinstance(event.payload, RiskApproved)] == [
        item.approval
    ]


async def test_a_repetition_waits_for_the_same_commit_and_gets_the_same_signature() -> None:
    desk, ledger = await hanging()
    first, second = start(desk), start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    await settled_tasks()
    assert len(ledger.waiting) == 1
    assert not first.done()
    assert not second.done()
    ledger.waiting[0].set_result(Commit.WRITTEN)
    assert (await first).approved[0].envelope == (await second).approved[0].envelope


async def test_a_caller_that_goes_away_leaves_the_commit_alone_and_finds_the_answer_again() -> None:
    desk, ledger = await hanging()
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    task.cancel()
    await settled_tasks()
    again = start(desk)
    await settled_tasks()
    assert not again.done()
    ledger.waiting[0].set_result(Commit.WRITTEN)
    answer = await again
    assert answer.replayed
    assert Oracle.of(desk).approvals.keys() == {answer.approved[0].approval.approval_id}


@pytest.mark.parametrize("outcome", [Commit.LOST, Commit.ANSWER_LOST])
@pytest.mark.parametrize("then", ["repeat", "settle", "restart"])
async def test_an_unknown_commit_hands_nothing_out_and_counts_exactly_what_was_written(
    outcome: Commit, then: str
) -> None:
    desk, ledger = await hanging()
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    ledger.waiting[0].set_result(outcome)
    with pytest.raises(Unavailable) as caught:
        await task
    assert caught.value.code == "COMMIT_UNKNOWN"
    assert len(desk.risk.reservations) == 1  # held until it is known
    ledger.gated = False
    if then == "repeat":
        answer = await start(desk)
        assert answer.replayed is (outcome is Commit.ANSWER_LOST)
        await desk.risk.live.sign_off.settle()
    elif then == "settle":
        await desk.risk.live.sign_off.settle()
        if outcome is Commit.LOST:
            with pytest.raises(InvalidValue) as void:
                await start(desk)
            assert void.value.code == "REQUEST_VOID"
    else:
        await desk.restart(clean=False)
    oracle = Oracle.of(desk)
    assert {item.approval_id for item in desk.risk.reservations} == oracle.open.keys()
    assert len(oracle.open) == (0 if outcome is Commit.LOST and then != "repeat" else 1)


async def test_a_commit_that_comes_after_another_process_took_over_hands_nothing_out() -> None:
    desk, ledger = await hanging()
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    old = desk.risk
    await desk.restart(clean=False)
    ledger.waiting[0].set_result(Commit.WRITTEN)
    with pytest.raises(LeaseLost):
        await task
    assert not Oracle.of(desk).approvals
    assert len(desk.risk.reservations) == 0
    with pytest.raises(TradingError):
        await old.request_approval("local", "again", (wanted_order("steady", BTC, "limit", 600),))  # type: ignore[arg-type]


@pytest.mark.parametrize("meanwhile", ["halt", "limit", "stop"])
async def test_what_happens_while_a_commit_hangs_finds_the_reservation_counted(meanwhile: str) -> None:
    desk, ledger = await hanging()
    task = start(desk)
    await eventually(lambda: len(ledger.waiting) == 1)
    if meanwhile == "halt":
        before = desk.risk.live.breaker.epoch
        await desk.risk.trip("test", "tester")
        ledger.waiting[0].set_result(Commit.WRITTEN)
        assert (await task).approved[0].approval.epoch == before < desk.risk.live.breaker.epoch
    elif meanwhile == "limit":
        free = desk.risk.check_order(wanted_order("steady", BTC, "limit", 600)).max_allowed_now
        ledger.waiting[0].set_result(Commit.LOST)
        with pytest.raises(Unavailable):
            await task
        ledger.gated = False
        await desk.risk.live.sign_off.settle()
        more = desk.risk.check_order(wanted_order("steady", BTC, "limit", 600)).max_allowed_now
        assert free is not None
        assert more is not None
        assert free.quantity < more.quantity
    else:
        stopping = asyncio.ensure_future(desk.risk.stop())
        await settled_tasks()
        assert not stopping.done(), "a clean stop waits for what is under way"
        ledger.waiting[0].set_result(Commit.WRITTEN)
        await stopping
        assert len((await task).approved) == 1


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_client_that_timed_out_gets_the_one_approval_by_repeating(era: str) -> None:
    desk, ledger = await hanging()
    async with open_client(server_of(desk), era) as client:
        asked = asyncio.ensure_future(call(client, "risk_request_approval", request_id="r", **LIMIT))
        await eventually(lambda: len(ledger.waiting) == 1)
        asked.cancel()
        await asyncio.wait({asked})
        ledger.waiting[0].set_result(Commit.WRITTEN)
        answer = await call(client, "risk_request_approval", request_id="r", **LIMIT)
        assert answer["replayed"] is True
    assert list(Oracle.of(desk).approvals) == answer["approval_ids"]


async def test_each_of_a_batch_is_in_the_ledger_when_the_answer_leaves() -> None:
    desk, ledger = await hanging()
    orders = [wanted_order("steady", symbol, "limit", 600) for symbol in SYMBOLS] * 80
    task = asyncio.ensure_future(desk.ask(*orders, request_id="r"))
    await eventually(lambda: len(ledger.waiting) == 1)
    assert not Oracle.of(desk).approvals
    ledger.waiting[0].set_result(Commit.WRITTEN)
    answer = await task
    stored = {row["approval_id"]: row["envelope"] for row in await ledger.rows("approvals")}
    assert stored == {item.approval.approval_id: item.envelope for item in answer.approved}
    assert len(stored) == 240
    ledger.gated = False
    for item in answer.approved:
        await desk.end(item, Fate.LAPSED)
    assert len(desk.risk.reservations) == 0
