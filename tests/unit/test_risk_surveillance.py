"""The breaker's own triggers: each fires with the first event that reaches its limit, and not with one before."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from mcp_servers.risk.breaker_limits import BreakerLimits
from mcp_servers.risk.document import parse_stored
from mcp_servers.risk.limits import RiskLimits, document_of
from mcp_servers.risk.tightness import compare
from mcp_servers.risk.triggers import OrderTriggers, Trigger
from tests.risk_support import (
    DATA_ID,
    Desk,
    calm_breaker,
    codes,
    open_desk,
    order,
    sell,
    wide_limits,
)
from tests.unit.test_risk_breaker import command, events, leave
from trading.adapters.signing import Ed25519Verifier
from trading.domain.approvals import Effect, TradingState
from trading.domain.events import (
    AlarmRaised,
    BreakerTripped,
    OrderInitialized,
    OrderRejected,
    OrderSubmitted,
    ReconciliationCompleted,
)
from trading.domain.identifiers import AgentId, ApprovalId, OrderId, TradeId
from trading.domain.market_data import Feed, Side, TradePrint
from trading.domain.standing_exits import PROTECTION
from trading.ports.ledger import EventDraft, Unit
from trading.testing.builders import build_approved_order, build_book
from trading.testing.keys import make_test_signer

ACTIVE, REDUCING, HALTED = TradingState.ACTIVE, TradingState.REDUCING, TradingState.HALTED
BTC = "symbol:BTC/USDT"


async def watched(**breaker: Any) -> Desk:
    return await open_desk(limits=wide_limits(breaker=calm_breaker(**breaker), daily_loss_max=Decimal(2_000)))


def state_of(desk: Desk, scope: str = "desk") -> TradingState:
    return desk.risk.live.breaker.state_of(scope)


async def show(desk: Desk, bid: str, ask: str) -> None:
    """Let one book pass, as the market's stream does."""
    desk.price([(bid, "50")], [(ask, "50")])
    await desk.risk.live.surveillance.take(desk.market.books[DATA_ID])


def printed(desk: Desk, price: str) -> TradePrint:
    now_ms = desk.clock.now_ms()
    return TradePrint(
        instrument_id=DATA_ID,
        trade_id=TradeId(f"p{price}"),
        price=Decimal(price),
        quantity=Decimal("0.1"),
        aggressor=Side.BUY,
        sequence=1,
        venue_ts_ms=now_ms,
        received_ts_ms=now_ms,
        published_ts_ms=now_ms,
        feed=Feed.REPLAY,
    )


def alarms(desk: Desk) -> list[str]:
    return [event.code for event in events(desk, AlarmRaised)]


# -- money ------------------------------------------------------------------------------------------------------------


async def test_the_first_book_that_shows_the_daily_loss_reduces_and_the_hard_limit_halts() -> None:
    desk = await watched(daily_loss_halt=Decimal(3_000))
    await desk.risk.tick()
    await desk.hold("1")
    seen = []
    for bid in ("58002", "58001", "57002", "57000"):  # bought at 60001; the mid is half above the bid
        await show(desk, bid, f"{int(bid) + 1}")
        seen.append(state_of(desk))
    assert seen == [ACTIVE, ACTIVE, REDUCING, HALTED] or seen == [ACTIVE, REDUCING, REDUCING, HALTED]
    assert [event.state for event in events(desk, BreakerTripped)] == [REDUCING, HALTED]
    assert alarms(desk) == ["BREAKER_DAILY_LOSS"] * 2


async def test_a_loss_that_lasts_for_one_book_between_two_looks_trips() -> None:
    desk = await watched()
    await desk.risk.tick()
    await desk.hold("1")
    await show(desk, "57000", "57001")
    await show(desk, "60000", "60001")
    await desk.risk.tick()
    assert state_of(desk) is REDUCING


async def test_a_loss_that_a_fill_makes_trips_without_any_new_book() -> None:
    desk = await watched()
    await desk.risk.tick()
    await show(desk, "60000", "60001")
    bought = (await desk.ask(order(amount="1"))).approved[0]
    await desk.consume(bought)
    await desk.fill(bought, "1", fee="2100")
    assert state_of(desk) is REDUCING


async def test_the_first_book_below_the_drawdown_reduces() -> None:
    desk = await open_desk(
        cash="100000", limits=wide_limits(breaker=calm_breaker(drawdown_pct=Decimal(2)), daily_loss_max=10**9)
    )
    await desk.risk.tick()
    await desk.hold("1")
    await show(desk, "60000", "60001")
    for bid, state in (("58002", ACTIVE), ("57990", REDUCING)):
        await show(desk, bid, f"{int(bid) + 1}")
        assert state_of(desk) is state
    assert alarms(desk) == ["BREAKER_DRAWDOWN"]


# -- the market -------------------------------------------------------------------------------------------------------


async def test_the_first_wide_spread_reduces_the_symbol_alone() -> None:
    desk = await watched(spread_bps=Decimal(100))
    await show(desk, "59702", "60299")  # 99.5 bps
    assert state_of(desk, BTC) is ACTIVE
    await show(desk, "59700", "60300")  # 100 bps
    assert (state_of(desk, BTC), state_of(desk)) == (REDUCING, ACTIVE)
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}


@pytest.mark.parametrize("wick", ["book", "print"])
async def test_a_wick_between_two_looks_reduces_the_symbol(wick: str) -> None:
    desk = await watched(range_bps=Decimal(500))
    await show(desk, "60000", "60001")
    for price, state in ((63000, ACTIVE), (63001, REDUCING)):  # 60000.5 times 1.05 is 63000.525
        if wick == "book":
            await show(desk, f"{price}", f"{price}.01")
        else:
            await desk.risk.live.surveillance.take(printed(desk, str(price)))
        await show(desk, "60000", "60001")
        await desk.risk.tick()
        assert state_of(desk, BTC) is state
    assert alarms(desk) == ["BREAKER_RANGE"]


async def test_a_slow_move_is_no_shock() -> None:
    desk = await watched(range_bps=Decimal(500), range_window_ms=60_000)
    await show(desk, "60000", "60001")
    desk.clock.advance(62_000)
    await show(desk, "64000", "64001")
    assert state_of(desk, BTC) is ACTIVE


async def test_a_symbol_that_is_not_traded_here_says_nothing() -> None:
    desk = await watched(spread_bps=Decimal(100))
    book = build_book([("1", "1")], [("2", "1")], now_ms=desk.clock.now_ms())
    await desk.risk.live.surveillance.take(replace(book, instrument_id=DATA_ID._replace(symbol="ETH/USDT")))
    assert desk.risk.live.breaker.scopes == ()


@pytest.mark.parametrize("engaged", ["position", "order", "nothing"])
async def test_a_silent_market_reduces_a_symbol_that_has_something_open(engaged: str) -> None:
    desk = await watched(stale_ms=5_000)
    if engaged == "position":
        await desk.hold("0.1")
    elif engaged == "order":
        await desk.consume((await desk.ask(order(limit_price="59990"))).approved[0])
    await desk.risk.tick()
    for waited_ms, state in ((4_999, ACTIVE), (1, REDUCING)):
        desk.clock.advance(waited_ms)
        await desk.risk.tick()
        assert state_of(desk, BTC) is (ACTIVE if engaged == "nothing" else state)


async def test_a_market_that_speaks_again_in_time_is_not_silent() -> None:
    desk = await watched(stale_ms=5_000)
    await desk.hold("0.1")
    for _ in range(3):
        desk.clock.advance(4_000)
        desk.price()
        await desk.risk.tick()
    assert state_of(desk, BTC) is ACTIVE


# -- agents -----------------------------------------------------------------------------------------------------------


async def lose(desk: Desk, agent_id: str = "tester", *, gain: bool = False) -> None:
    bought = (await desk.ask(order(amount="0.01", agent_id=agent_id))).approved[0]
    await desk.consume(bought)
    await desk.fill(bought, "0.01")
    sold = (await desk.ask(sell("0.01", agent_id=agent_id))).approved[0]
    await desk.consume(sold)
    await desk.fill(sold, "0.01", price="60100" if gain else "59990")
    desk.clock.advance(1)


async def test_the_loss_that_completes_a_streak_reduces_the_agent() -> None:
    desk = await watched(loss_streak=3)
    await lose(desk)
    await lose(desk)
    await lose(desk, gain=True)
    await lose(desk)
    await lose(desk)
    assert state_of(desk, "agent:tester") is ACTIVE
    await lose(desk)
    assert state_of(desk, "agent:tester") is REDUCING
    assert (await desk.ask(order(agent_id="other"))).approved


async def test_denials_halt_the_agent_that_storms_and_no_other() -> None:
    desk = await watched(denials=5)
    bad = order(amount="99999")
    for _ in range(4):
        assert not (await desk.ask(bad)).approved
    await desk.ask(replace(bad, agent_id=AgentId("other")))
    assert state_of(desk, "agent:tester") is ACTIVE
    await desk.ask(bad, request_id="fifth")
    await desk.risk.live.surveillance.settle()
    assert state_of(desk, "agent:tester") is HALTED
    assert state_of(desk, "agent:other") is ACTIVE


async def test_denials_of_a_halted_desk_and_answers_given_again_do_not_count() -> None:
    desk = await watched(denials=3)
    for _ in range(9):
        await desk.ask(order(amount="99999"), request_id="the same")
    await desk.risk.trip("test", "x")
    for _ in range(9):
        await desk.ask(order())
    await desk.risk.live.surveillance.settle()
    assert desk.risk.live.breaker.scopes == ()


# -- execution --------------------------------------------------------------------------------------------------------


async def opened(desk: Desk, agent_id: str = "tester", **changes: Any) -> OrderId:
    return await desk.consume((await desk.ask(order(agent_id=agent_id, **changes))).approved[0])


async def test_refusals_of_the_venue_halt_the_desk() -> None:
    desk = await watched(rejections=3)
    for expected in (ACTIVE, ACTIVE, HALTED):
        order_id = await opened(desk)
        await desk.write(OrderRejected(order_id=order_id, reason="no"))
        assert state_of(desk) is expected
    assert alarms(desk) == ["BREAKER_REJECTIONS"]


async def test_refusals_far_apart_do_not() -> None:
    desk = await watched(rejections=2, window_ms=1_000)
    for _ in range(4):
        await desk.write(OrderRejected(order_id=await opened(desk), reason="no"))
        desk.clock.advance(1_000)
        await desk.refresh()
    assert state_of(desk) is ACTIVE


@pytest.mark.parametrize(
    ("limit", "scope"),
    [
        ({"orders": 4}, "desk"),
        ({"agent_orders": 4}, "agent:tester"),
        ({"order_value": Decimal("2400")}, "desk"),  # four orders of 600 quote
    ],
)
async def test_the_order_that_is_one_too_many_halts(limit: dict[str, Any], scope: str) -> None:
    desk = await watched(**limit)
    for _ in range(3):
        await opened(desk)
        assert state_of(desk, scope) is ACTIVE
    await opened(desk, limit_price="60001")
    assert state_of(desk, scope) is HALTED
    assert not (await desk.ask(order())).approved
    assert len(desk.risk.live.breaker.scopes) == (scope != "desk")


def test_a_stop_that_follows_the_price_is_counted_but_not_valued() -> None:
    triggers, limits = OrderTriggers(), BreakerLimits(orders=5, agent_orders=2, order_value=Decimal("900"))
    stop = OrderInitialized(
        order_id=OrderId("stop"),
        approval_id=ApprovalId("slice"),
        agent_id=PROTECTION,
        effect=Effect.REDUCE,
        terms=build_approved_order(quantity="0.01", limit_price="60000", side=Side.SELL),
    )
    found = [triggers.opened(stop, "", limits, at_ms) for at_ms in range(5)]
    assert found[:4] == [[]] * 4
    assert [item.trigger for item in found[4]] == [Trigger.ORDERS]
    entry = replace(stop, agent_id=AgentId("tester"), effect=Effect.INCREASE)
    assert not [item for item in triggers.opened(entry, "", limits, 5) if item.trigger is Trigger.ORDER_VALUE]
    assert Trigger.ORDER_VALUE in [item.trigger for item in triggers.opened(entry, "", limits, 6)]


async def test_children_of_one_request_are_counted_together_and_of_others_apart() -> None:
    desk = await watched(order_children=3)
    for _ in range(5):
        await opened(desk)
    batch = await desk.ask(*[order(amount=f"0.0{n}") for n in range(1, 4)], request_id="one parent")
    states = []
    for item in batch.approved:
        await desk.consume(item)
        states.append(state_of(desk))
    assert states == [ACTIVE, ACTIVE, HALTED]
    assert alarms(desk) == ["BREAKER_ORDER_CHILDREN"]


async def stranger(desk: Desk) -> OrderInitialized:
    terms = (await desk.ask(order())).approved[0].approval.order
    return OrderInitialized(
        order_id=OrderId("foreign"),
        approval_id=ApprovalId("nobody-signed-this"),
        agent_id=AgentId("mallory"),
        effect="increase",  # type: ignore[arg-type]
        terms=terms,
    )


async def test_the_first_order_without_an_approval_halts_the_desk() -> None:
    desk = await watched(orders_without_approval=1)
    await desk.write(await stranger(desk))
    assert state_of(desk) is HALTED
    assert sorted(alarms(desk)) == ["BREAKER_ORDER_WITHOUT_APPROVAL", "ORDER_WITHOUT_APPROVAL"]


async def test_what_happened_while_risk_was_away_is_looked_at_before_the_desk_may_trade() -> None:
    desk = await watched(orders_without_approval=1, rejections=2)
    event, refused = await stranger(desk), [await opened(desk), await opened(desk)]
    desk.clock.advance(5)
    missed = (event, *(OrderRejected(order_id=each, reason="no") for each in refused))
    await desk.execution.commit(Unit(events=tuple(EventDraft(each) for each in missed)))
    await desk.restart(clean=False)
    assert state_of(desk) is HALTED
    assert {event.by for event in events(desk, BreakerTripped)} == {"policy", "start"}
    assert codes(await desk.ask(order())) >= {"TRADING_STATE"}


async def test_what_was_seen_before_a_restart_does_not_trip_again() -> None:
    desk = await watched(rejections=2)
    for _ in range(1):
        await desk.write(OrderRejected(order_id=await opened(desk), reason="no"))
    desk.clock.advance(1)
    await desk.restart()
    await desk.write(OrderRejected(order_id=await opened(desk), reason="no"))
    assert state_of(desk) is ACTIVE


async def test_a_difference_with_the_venue_reduces_the_account() -> None:
    desk = await watched(differences=1)
    account = desk.parts.account_id
    for differences, state in (((), ACTIVE), (("balance BTC 1 against 2",), REDUCING)):
        done = ReconciliationCompleted(
            account_id=account, orders_checked=1, resolved=0, unresolved=0, differences=differences
        )
        await desk.write(done)
        assert state_of(desk, f"account:{account}") is state
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}


# -- all of them ------------------------------------------------------------------------------------------------------


async def test_a_trip_is_announced_before_it_and_its_alarm_are_written() -> None:
    desk = await watched(spread_bps=Decimal(100))
    done: list[str] = []
    send, commit = desk.sink.send, desk.ledger.commit

    async def watched_send(envelope: str) -> None:
        done.append("announced")
        await send(envelope)

    async def watched_commit(unit: Unit) -> Any:
        done.append(" ".join(event.payload.TYPE for event in unit.events))
        return await commit(unit)

    desk.sink.send, desk.ledger.commit = watched_send, watched_commit
    await show(desk, "50000", "60000")
    assert done == ["announced", "breaker.tripped alarm.raised"]


async def test_none_switches_every_trigger_off() -> None:
    desk = await open_desk(limits=wide_limits(daily_loss_max=10**9))
    await desk.hold("1")
    event = await stranger(desk)
    await show(desk, "1000", "9000")
    await desk.write(
        event, OrderSubmitted(order_id=event.order_id), OrderRejected(order_id=event.order_id, reason="no")
    )
    assert desk.risk.live.breaker.scopes == ()
    assert state_of(desk) is ACTIVE


async def test_resuming_a_scope_begins_its_counts_anew(tmp_path: Any) -> None:
    operator = Ed25519Verifier.of(make_test_signer("operator").public_key)
    desk = await open_desk(
        limits=wide_limits(breaker=calm_breaker(range_bps=Decimal(500), loss_streak=2, denials=2)),
        operator=operator,
        operator_directory=tmp_path / "operator",
    )
    await lose(desk)
    await lose(desk)
    await show(desk, "60000", "60001")
    await show(desk, "66000", "66001")
    assert {each.scope for each in desk.risk.live.breaker.scopes} == {"agent:tester", BTC}
    for number, scope in enumerate(("agent:tester", BTC), start=1):
        leave(tmp_path, command(desk, ACTIVE, number, scope=scope))
    await desk.risk.tick()
    await show(desk, "66000", "66001")
    assert desk.risk.live.breaker.scopes == ()
    desk.clock.advance(1)
    await desk.restart(clean=False)
    assert desk.risk.live.breaker.scopes == ()
    await desk.refresh()
    await lose(desk)
    assert state_of(desk, "agent:tester") is ACTIVE
    await lose(desk)
    assert state_of(desk, "agent:tester") is REDUCING


def test_a_file_switches_a_trigger_off_by_name_and_a_window_never() -> None:
    assert BreakerLimits.model_validate({"range_bps": "off", "orders": "off"}) == BreakerLimits(
        range_bps=None, orders=None
    )
    with pytest.raises(ValidationError):
        BreakerLimits.model_validate({"window_ms": "off"})
    written = BreakerLimits(range_bps=None).model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    assert written == {"range_bps": "off"}
    assert parse_stored(document_of(RiskLimits(breaker=BreakerLimits(range_bps=None)))).breaker.range_bps is None
    off, on = (RiskLimits(breaker=BreakerLimits(range_bps=each)) for each in (None, Decimal(500)))
    assert [change.needs_signature for change in compare(on, off)] == [True]
    assert [change.needs_signature for change in compare(off, on)] == [False]


def test_the_defaults_are_far_from_what_the_default_limits_let_pass() -> None:
    limits, breaker = RiskLimits(), BreakerLimits()
    seconds = breaker.window_ms // 1_000
    assert breaker.daily_loss_halt is not None
    assert breaker.daily_loss_halt > limits.daily_loss_max
    assert breaker.agent_orders is not None
    assert breaker.agent_orders > limits.order_rate_per_s * seconds + limits.order_burst
    assert breaker.orders is not None
    assert breaker.orders > limits.desk_rate_per_s * seconds + limits.desk_burst
    assert breaker.order_children is not None
    assert breaker.order_children > 256  # one full batch
    assert breaker.order_value is not None
    assert breaker.order_value > limits.desk_turnover_max
