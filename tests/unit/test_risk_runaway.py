"""A runaway as at Knight Capital, between the real risk room and the real execution room.

Knight sent four million orders for 212 parents within 45 minutes and no system of its own stopped it. Source: SEC
release 34-70694 (2013). Here risk reads what execution writes, whoever asked for it, and stops it after a number of
child orders that the limits name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.execution.gate import GateCode
from mcp_servers.risk.service import RiskService
from tests.execution_support import Desk as ExecutionDesk
from tests.risk_support import Desk as RiskDesk
from tests.risk_support import calm_breaker, order, replace_parts, sell, wide_limits
from trading.domain.approvals import Effect, TradingState
from trading.domain.events import BreakerTripped, OrderInitialized, RiskApproved
from trading.domain.orders import OrderStatus
from trading.domain.proposals import TimeInForce

CHILDREN = 20


class Wire:
    """Carries risk's heartbeats to execution, or loses them."""

    def __init__(self) -> None:
        self.execution: ExecutionDesk | None = None
        self.down = False

    async def send(self, envelope: str) -> None:
        if not self.down and self.execution is not None:
            self.execution.service.learn(envelope)


class Rooms:
    """Risk and execution on each other's ledgers."""

    def __init__(self, risk: RiskDesk, execution: ExecutionDesk, wire: Wire) -> None:
        self.risk = risk
        self.execution = execution
        self.wire = wire

    async def settle(self) -> None:
        """Let both rooms read what the other wrote, and act."""
        while await self.risk.risk.live.follower.step():
            pass
        await self.execution.follow_risk()
        await self.execution.service.act_on_news()

    async def trade(self, number: int, agent_id: str = "tester") -> bool:
        """Ask, submit and settle once; whether an order was opened."""
        asked = order(amount="0.001", limit_price="59990", agent_id=agent_id)
        answer = await self.risk.ask(asked, request_id=f"child-{agent_id}-{number}")
        opened = 0
        for item in answer.approved:
            outcome = await self.execution.submit(item.approval.approval_id)
            opened += hasattr(outcome, "order")
        await self.settle()
        return bool(opened)

    def opened(self) -> int:
        return len([e for e in self.execution.ledger.events if isinstance(e.payload, OrderInitialized)])


@asynccontextmanager
async def both(**breaker: Any) -> AsyncGenerator[Rooms]:
    from tests.risk_support import open_desk

    wire = Wire()
    risk = await open_desk(cash="0", start=False, limits=wide_limits(breaker=calm_breaker(**breaker)))
    execution = ExecutionDesk()
    wire.execution = execution
    # One clock and one pair of ledgers for both.
    parts = replace_parts(
        risk.parts,
        clock=execution.clock,
        ledger=execution.risk,
        execution=execution.ledger,
        heartbeats=wire,
    )
    risk.clock, risk.ledger, risk.execution, risk.parts = execution.clock, execution.risk, execution.ledger, parts
    risk.risk = RiskService(parts)
    await execution.start(heard=False)
    risk.price()
    risk.pulse()
    await risk.risk.start()
    rooms = Rooms(risk, execution, wire)
    await rooms.settle()
    yield rooms


async def test_a_runaway_agent_is_halted_within_its_first_children_and_nothing_passes_afterwards() -> None:
    async with both(agent_orders=CHILDREN) as rooms:
        results = [await rooms.trade(number) for number in range(CHILDREN * 3)]
        assert results == [True] * CHILDREN + [False] * (CHILDREN * 2)
        assert rooms.opened() == CHILDREN
        assert rooms.risk.risk.live.breaker.state_of("agent:tester") is TradingState.HALTED
        # What it had resting was taken back, and everybody else trades on.
        open_orders = rooms.execution.service.lifecycle.book.open_orders
        assert not [each for each in open_orders.values() if each.effect is Effect.INCREASE]
        assert await rooms.trade(0, agent_id="other")


async def test_children_of_one_parent_halt_the_desk() -> None:
    async with both(order_children=CHILDREN) as rooms:
        batch = [order(amount=f"0.00{n:02d}", limit_price="59990") for n in range(10, 10 + CHILDREN * 2)]
        approved = (await rooms.risk.ask(*batch, request_id="parent")).approved
        assert len(approved) == CHILDREN * 2
        for item in approved:
            await rooms.execution.submit(item.approval.approval_id)
            await rooms.settle()
        assert rooms.opened() == CHILDREN
        assert rooms.risk.risk.live.breaker.state is TradingState.HALTED
        assert await rooms.execution.refusal(approved[-1].approval.approval_id) in (
            GateCode.EPOCH,
            GateCode.FATE_WRITTEN,
        )


async def test_an_execution_room_that_runs_away_by_itself_is_noticed_with_its_first_order() -> None:
    """Approvals that risk never gave, as an execution room with a stolen key would find them."""
    async with both(orders_without_approval=1) as rooms:
        epoch, before = rooms.risk.risk.live.breaker.epoch, rooms.opened()
        ids = [
            await rooms.execution.issue(limit_price="59800", time_in_force=TimeInForce.GTC, epoch=epoch)
            for _ in range(3)
        ]
        for number, approval_id in enumerate(ids):
            outcome = await rooms.execution.submit(approval_id)
            assert hasattr(outcome, "order") == (number == 0)
            await rooms.settle()
        assert rooms.opened() == before + 1
        assert rooms.risk.risk.live.breaker.state is TradingState.HALTED


async def test_a_halt_by_runaway_keeps_exits_and_cancels_open() -> None:
    async with both(agent_orders=2) as rooms:
        bought = await rooms.risk.ask(order(amount="0.5", limit_price="60001"))
        filled = await rooms.execution.order(bought.approved[0].approval.approval_id)
        assert filled.status is OrderStatus.FILLED
        await rooms.settle()
        await rooms.trade(1)
        assert rooms.risk.risk.live.breaker.state_of("agent:tester") is TradingState.HALTED
        exit_ = (await rooms.risk.ask(sell("0.2", limit_price="60200"))).approved[0]
        resting = await rooms.execution.order(exit_.approval.approval_id)
        assert resting.status is OrderStatus.ACCEPTED
        canceled = await rooms.execution.service.cancel(resting.order_id, by="ann")
        assert canceled.status is OrderStatus.CANCELED


@pytest.mark.parametrize("scope", ["desk", "agent:tester", "symbol:BTC/USDT"])
async def test_with_a_dead_bus_execution_notices_the_trip_in_risks_ledger(scope: str) -> None:
    async with both() as rooms:
        assert await rooms.trade(0)
        ready = (await rooms.risk.ask(order(amount="0.001", limit_price="59990"))).approved[0]
        rooms.wire.down = True
        await rooms.risk.risk.trip("by hand", "ann", scope)
        await rooms.settle()
        assert await rooms.execution.refusal(ready.approval.approval_id) in (GateCode.EPOCH, GateCode.FATE_WRITTEN)
        open_orders = rooms.execution.service.lifecycle.book.open_orders
        assert not [each for each in open_orders.values() if each.effect is Effect.INCREASE]
        trips = [e.payload for e in rooms.risk.ledger.events if isinstance(e.payload, BreakerTripped)]
        assert rooms.execution.service.pulse.epoch == trips[-1].epoch
        approved = [e for e in rooms.risk.ledger.events if isinstance(e.payload, RiskApproved)]
        assert len(approved) == 2
        assert Decimal(rooms.opened()) == 1
