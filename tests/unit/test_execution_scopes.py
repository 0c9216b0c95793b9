"""Execution and the breaker's scopes: what it learns, what it takes back, and what it remembers."""

from __future__ import annotations

import pytest

from mcp_servers.execution.epochs import Learned, remembered_pulse
from mcp_servers.execution.gate import GateCode
from tests.execution_support import Desk
from trading.domain.approvals import Epoch, TradingState
from trading.domain.events import BreakerReset, BreakerTripped
from trading.domain.identifiers import AgentId
from trading.domain.orders import OrderStatus
from trading.domain.trading_states import SCOPES_MAX, ScopeState
from trading.ports.ledger import EventDraft, Unit, Upsert

SCOPES = ("agent:tester", "symbol:BTC/USDT", "account:paper-main", "venue:of-a-later-release")
HALTED = TradingState.HALTED


async def restrict(desk: Desk, scope: str, state: TradingState = HALTED) -> None:
    desk.epoch = Epoch(desk.epoch.generation, desk.epoch.counter + 1)
    await desk.beat(scopes=(ScopeState(scope, state),))


async def write_trip(desk: Desk, scope: str, state: TradingState, epoch: Epoch) -> None:
    """Let risk write a trip that no heartbeat tells of."""
    event = BreakerTripped(scope=scope, reason="test", state=state, epoch=epoch, by="x")
    row = {"scope": scope, "state": state.value, "reason": "test", "updated_ms": 1}
    row |= {"generation": epoch.generation, "counter": epoch.counter}
    await desk.risk.commit(Unit(events=(EventDraft(event),), writes=(Upsert("desk_state", row),)))


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_halted_scope_loses_its_entries_and_keeps_its_exits_also_after_a_restart(scope: str) -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    first, exit_ = await desk.resting(), await desk.order(await desk.exit("0.2"))
    await restrict(desk, scope)
    assert (await desk.stored(first)).status is OrderStatus.CANCELED
    assert (await desk.stored(exit_)).status is OrderStatus.ACCEPTED
    await desk.restart(heard=False)
    assert desk.service.pulse.scopes == (ScopeState(scope, HALTED),)
    assert desk.service.pulse == await remembered_pulse(desk.ledger, desk.rules.account_id)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("state", [TradingState.REDUCING, HALTED])
async def test_the_gate_refuses_entries_of_a_restricted_scope_and_lets_its_exits_and_cancels_pass(
    scope: str, state: TradingState
) -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    working = await desk.order(await desk.exit("0.2", reduce_only=False))
    await restrict(desk, scope, state)
    assert await desk.refusal(await desk.issue()) == GateCode.STATE
    assert (await desk.order(await desk.exit("0.3"))).status is OrderStatus.ACCEPTED
    assert (await desk.service.cancel(working.order_id, by="ann")).status is OrderStatus.CANCELED


async def test_other_agents_and_symbols_trade_on() -> None:
    desk = await Desk().start()
    entry = await desk.resting()
    for scope in ("agent:somebody", "symbol:ETH/USDT", "account:other"):
        await restrict(desk, scope)
    assert (await desk.stored(entry)).status is OrderStatus.ACCEPTED
    assert (await desk.resting()).status is OrderStatus.ACCEPTED
    mine = desk.approval(changes={"agent_id": AgentId("somebody")})
    await restrict(desk, "agent:somebody")
    assert await desk.refusal(await desk.issue(mine)) == GateCode.EPOCH


async def test_more_scopes_than_can_be_told_apart_restrict_the_desk() -> None:
    desk = await Desk().start()
    scopes = tuple(ScopeState(f"agent:a{number}", TradingState.REDUCING) for number in range(SCOPES_MAX + 1))
    desk.epoch = Epoch(1, 9)
    await desk.beat(scopes=scopes)
    assert desk.service.pulse.state is TradingState.REDUCING
    assert await desk.refusal(await desk.issue()) == GateCode.STATE


@pytest.mark.parametrize("scope", ["desk", *SCOPES])
async def test_a_trip_is_noticed_in_risks_ledger_while_no_heartbeat_comes(scope: str) -> None:
    desk = await Desk().start()
    entry, approval_id = await desk.resting(), await desk.issue()
    await write_trip(desk, scope, HALTED, Epoch(1, 5))
    await desk.follow_risk()
    assert desk.service.pulse.epoch == Epoch(1, 5)
    assert desk.service.news.is_set()
    assert await desk.refusal(approval_id) == GateCode.EPOCH
    await desk.service.act_on_news()
    assert (await desk.stored(entry)).status is OrderStatus.CANCELED


async def test_a_trip_that_was_written_while_execution_was_away_holds_from_its_start() -> None:
    desk = await Desk().start()
    entry = await desk.resting()
    await write_trip(desk, "agent:tester", HALTED, Epoch(2, 3))
    await desk.restart(heard=False)
    await desk.service.act_on_news()
    assert (await desk.stored(entry)).status is OrderStatus.CANCELED
    desk.epoch, desk.counter = Epoch(2, 3), 0
    beat = await desk.beat(scopes=(ScopeState("agent:tester", HALTED),))
    assert isinstance(beat, Learned)  # the new generation's heartbeats count from their beginning


async def test_risks_ledger_tightens_and_never_loosens() -> None:
    desk = await Desk().start()
    desk.epoch, desk.state = Epoch(1, 2), HALTED
    await desk.beat(scopes=(ScopeState("agent:tester", HALTED),))
    before = desk.service.pulse
    await write_trip(desk, "agent:tester", TradingState.REDUCING, Epoch(1, 7))
    await write_trip(desk, "desk", TradingState.REDUCING, Epoch(1, 8))
    await write_trip(desk, "symbol:BTC/USDT", HALTED, Epoch(1, 1))  # older than what is known
    for scope in ("desk", "agent:tester"):
        event = BreakerReset(scope=scope, reason="", state=TradingState.ACTIVE, epoch=Epoch(1, 9), by="x")
        await desk.risk.commit(Unit(events=(EventDraft(event),)))
    await desk.follow_risk()
    after = desk.service.pulse
    assert (after.state, after.scopes, after.heard_ns) == (before.state, before.scopes, before.heard_ns)
    assert after.epoch == Epoch(1, 8)
