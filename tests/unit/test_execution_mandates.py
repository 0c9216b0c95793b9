"""What the operator approved is submitted by execution itself: at once, once, and never when it has expired."""

from __future__ import annotations

from typing import Any

from mcp_servers.risk.pending import pending_row
from tests.execution_support import Desk
from trading.domain.approvals import Fate, TradingState
from trading.domain.events import AlarmRaised, HumanAnswered, OrderInitialized
from trading.domain.identifiers import AgentId, ApprovalId, RequestId
from trading.domain.orders import OrderStatus
from trading.domain.pending import PendingHuman, PendingState
from trading.domain.proposals import Mode, OrderIntent, OrderType
from trading.ports.ledger import EventDraft, Insert, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER


async def approve(desk: Desk, **fields: Any) -> ApprovalId:
    """Let risk write what it writes on the operator's yes."""
    approval = desk.approval(**fields)
    await desk.issue(approval)
    order = approval.order
    intent = OrderIntent(
        account_id=ACCOUNT,
        venue=PAPER,
        symbol=BTC_USDT,
        side=order.side,
        order_type=OrderType.LIMIT,
        quantity=order.quantity,
        limit_price=order.limit_price,
    )
    item = PendingHuman(
        pending_id=f"pending-{approval.approval_id}",
        request_id=RequestId(approval.request_id),
        principal="local",
        agent_id=AgentId("tester"),
        decision_id=None,
        mode=Mode.PAPER,
        order=intent,
        price_limit=order.limit_price,
        notional=None,
        reason="",
        unmet=(),
        rules=(),
        asked_ms=0,
        expires_ms=1,
    )
    event = HumanAnswered(
        pending_id=item.pending_id,
        state=PendingState.APPROVED,
        by="operator:ann",
        reason="",
        approval_id=approval.approval_id,
    )
    row = pending_row(item, PendingState.APPROVED, 0, approval_id=approval.approval_id)
    await desk.risk.commit(Unit(events=(EventDraft(event),), writes=(Insert("pending", row),)))
    return approval.approval_id


async def test_operators_approval_becomes_an_order_without_a_courier() -> None:
    desk = await Desk().start()
    approval_id = await approve(desk)
    await desk.follow_risk()
    await desk.service.mandates.step()
    order = desk.service.lifecycle.order_of_approval(approval_id)
    assert order is not None
    assert order.status is OrderStatus.FILLED
    assert not desk.service.mandates.waiting


async def test_it_is_sent_once_whoever_else_brings_it_and_over_a_restart() -> None:
    desk = await Desk().start()
    approval_id = await approve(desk)
    await desk.order(approval_id)
    await desk.follow_risk()
    await desk.service.mandates.step()
    await desk.restart()
    assert not desk.service.mandates.waiting
    await desk.service.mandates.step()
    assert len(desk.events(OrderInitialized)) == 1


async def test_execution_that_was_down_meanwhile_finds_it_at_its_start() -> None:
    desk = await Desk().start()
    approval_id = await approve(desk)
    await desk.restart()
    assert desk.service.mandates.waiting == {approval_id}
    await desk.service.mandates.step()
    assert desk.service.lifecycle.order_of_approval(approval_id) is not None


async def test_it_waits_for_risks_heartbeat_and_never_goes_out_expired() -> None:
    desk = await Desk().start()
    waits, dies = await approve(desk), await approve(desk, ttl_ms=500)
    await desk.restart(heard=False)
    await desk.service.mandates.step()
    assert desk.service.mandates.waiting == {waits, dies}
    desk.clock.advance(600)
    desk.refresh()
    await desk.service.fates.lapse_due()
    await desk.beat()
    await desk.service.mandates.step()
    assert desk.service.lifecycle.order_of_approval(waits) is not None
    assert desk.service.fates.fate(dies) is Fate.LAPSED
    assert len(desk.events(OrderInitialized)) == 1


async def test_halt_before_the_send_voids_it_and_what_cannot_be_sent_is_an_alarm() -> None:
    desk = await Desk().start()
    await approve(desk)
    await desk.follow_risk()
    await desk.trip(TradingState.HALTED)
    await desk.service.mandates.step()
    assert not desk.service.mandates.waiting
    approval_id = await approve(desk)
    await desk.follow_risk()
    await desk.service.mandates.step()
    assert [(each.code, each.subject) for each in desk.events(AlarmRaised)] == [("MANDATE_NOT_SENT", approval_id)]
    assert not desk.events(OrderInitialized)


async def test_refused_question_and_anothers_approval_are_no_mandate() -> None:
    desk = await Desk().start()
    await desk.issue()
    refused = HumanAnswered(pending_id="p", state=PendingState.REFUSED, by="operator:ann", reason="")
    await desk.risk.commit(Unit(events=(EventDraft(refused),)))
    await desk.follow_risk()
    assert not desk.service.mandates.waiting
