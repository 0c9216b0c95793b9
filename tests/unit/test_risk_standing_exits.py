"""Every open position has a signed exit, renewed in time, in every state but frozen, over any restart."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.risk.protection import ProtectionLimits, is_tighter, tightest
from mcp_servers.risk.scopes import ScopeLimits
from mcp_servers.risk.service import RiskService
from mcp_servers.risk.standing_exits import is_wide
from tests.risk_support import DATA_ID, Desk, open_desk, order, replace_parts, sell, wide_limits, wide_symbol
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, open_envelope
from trading.domain.approvals import TradingState
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import ExitSigned
from trading.domain.identifiers import AgentId, Symbol
from trading.domain.market_data import Side
from trading.domain.standing_exits import STANDING_EXIT_PAYLOAD_TYPE, StandingExit, StopPlan
from trading.testing.builders import BTC_USDT, INSTRUMENT_ID, build_exit_terms
from trading.testing.keys import make_test_signer

D = Decimal
DAY_MS = 86_400_000


def signed(desk: Desk) -> list[StandingExit]:
    return [event.payload.exit for event in desk.ledger.events if isinstance(event.payload, ExitSigned)]


async def holding(quantity: str = "0.5", **parts: Any) -> Desk:
    desk = await open_desk(**parts)
    await desk.hold(quantity)
    await desk.risk.tick()
    return desk


async def pass_time(desk: Desk, ms: int) -> None:
    desk.clock.advance(ms)
    await desk.refresh()
    await desk.risk.tick()


async def test_a_desk_without_a_position_signs_nothing() -> None:
    desk = await open_desk()
    await desk.risk.tick()
    assert signed(desk) == []


async def test_an_open_position_has_an_exit_of_its_own_in_the_ledger() -> None:
    desk = await holding()
    (found,) = signed(desk)
    assert (found.instrument_id, found.terms.side, found.terms.floor) == (INSTRUMENT_ID, Side.SELL, D("30000.25"))
    assert found.terms.expires_ms == desk.clock.now_ms() + DAY_MS
    event = next(event.payload for event in desk.ledger.events if isinstance(event.payload, ExitSigned))
    verifier = Ed25519Verifier.of(make_test_signer("risk").public_key)
    payload = open_envelope(event.envelope, verifier, STANDING_EXIT_PAYLOAD_TYPE)
    assert payload == codec.canonical(found)
    (row,) = await desk.ledger.rows("standing_exits")
    assert (row["exit_id"], row["envelope"], row["state"]) == (found.exit_id, event.envelope, "current")


async def test_an_exit_that_will_do_is_not_signed_again() -> None:
    desk = await holding()
    for _ in range(5):
        await pass_time(desk, 60_000)
    await desk.restart()
    await desk.risk.tick()
    assert len(signed(desk)) == 1


async def test_an_exit_is_renewed_when_less_than_half_of_its_life_is_left() -> None:
    desk = await holding()
    await pass_time(desk, DAY_MS // 2)
    assert len(signed(desk)) == 1
    await pass_time(desk, 1)
    first, second = signed(desk)
    assert second.terms.expires_ms == desk.clock.now_ms() + DAY_MS
    states = {row["exit_id"]: row["state"] for row in await desk.ledger.rows("standing_exits")}
    assert states == {first.exit_id: "replaced", second.exit_id: "current"}


async def test_an_exit_that_ended_while_risk_was_down_is_renewed_at_the_start() -> None:
    desk = await holding()
    desk.clock.advance(3 * DAY_MS)
    desk.price()
    await desk.restart(clean=False)
    assert len(signed(desk)) == 2
    assert signed(desk)[1].terms.expires_ms > desk.clock.now_ms()


@pytest.mark.parametrize(
    ("state", "renewed"),
    [(TradingState.REDUCING, True), (TradingState.HALTED, True), (TradingState.FROZEN, False)],
)
async def test_exits_are_renewed_in_every_state_but_frozen(state: TradingState, renewed: bool) -> None:
    desk = await holding()
    await desk.risk.live.breaker.trip("test", "test", state)
    await pass_time(desk, DAY_MS)
    assert (len(signed(desk)) == 2) is renewed


@pytest.mark.parametrize(
    ("bid", "renewed"),
    [("51000", False), ("70000", False), ("48000", True), ("130000", True), ("110000", True), ("45000", True)],
)
async def test_a_floor_that_is_no_longer_far_away_is_replaced(bid: str, renewed: bool) -> None:
    desk = await holding()  # the floor is at 30000.25
    desk.price([(bid, "5")], [(str(int(bid) + 1), "5")])
    await desk.risk.tick()
    exits = signed(desk)
    assert (len(exits) == 2) is renewed
    if renewed:
        assert is_wide(exits[-1].terms, D(bid), D(5_000))


async def test_a_tighter_plan_is_signed_at_the_next_start_and_a_looser_one_is_not() -> None:
    desk = await holding()
    tight = wide_limits(symbols={BTC_USDT: wide_symbol(protection=ProtectionLimits(stop_bps=D(200)))})
    await desk.restart(limits=tight)
    assert [item.terms.plan.stop_bps for item in signed(desk)] == [D(500), D(200)]
    await desk.restart(limits=wide_limits())
    assert len(signed(desk)) == 2


async def test_a_tighter_exit_is_later_than_the_one_it_replaces_also_within_one_millisecond() -> None:
    desk = await holding()
    tight = wide_limits(symbols={BTC_USDT: wide_symbol(protection=ProtectionLimits(stop_bps=D(200)))})
    await desk.restart(limits=tight)
    first, second = signed(desk)
    assert (second.terms.plan.stop_bps, second.issued_ms) == (D(200), first.issued_ms + 1)


async def test_a_position_whose_symbol_was_taken_off_the_limits_keeps_its_plan_and_its_exit() -> None:
    own = wide_symbol(protection=ProtectionLimits(stop_bps=D(200)))
    desk = await holding(limits=wide_limits(symbols={BTC_USDT: own}))
    await desk.restart(limits=wide_limits(symbols={Symbol("ETH/USDT"): wide_symbol()}))
    assert len(signed(desk)) == 1
    await pass_time(desk, DAY_MS)
    assert signed(desk)[-1].terms.plan == StopPlan(stop_bps=D(200))


async def test_without_any_price_the_exit_reaches_below_what_was_paid() -> None:
    desk = await holding()
    other = await open_desk(start=False)  # a risk room that lost its own ledger
    other.market.books.clear()
    other.risk = RiskService(replace_parts(other.parts, execution=desk.execution))
    await other.risk.start()
    (found,) = signed(other)
    assert found.terms.floor == D("30000.5")  # half of 60001


async def test_the_last_floor_is_kept_while_there_is_no_price() -> None:
    desk = await holding()
    desk.market.books.pop(DATA_ID)
    desk.clock.advance(DAY_MS)
    await desk.restart(clean=False)
    first, second = signed(desk)
    assert (second.terms.floor, second.exit_id == first.exit_id) == (first.terms.floor, False)


async def test_a_commit_that_failed_is_signed_again_under_another_id() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    await desk.risk.tick()
    assert desk.risk.live.exits.current(INSTRUMENT_ID) is None
    await desk.risk.tick()
    assert len(signed(desk)) == 1
    assert desk.risk.live.exits.current(INSTRUMENT_ID) == signed(desk)[0]


async def test_a_closed_position_needs_no_exit_and_the_next_one_uses_what_is_there() -> None:
    desk = await holding()
    answer = await desk.ask(sell("0.5"))
    await desk.consume(answer.approved[0])
    await desk.fill(answer.approved[0], "0.5", "60000")
    await pass_time(desk, DAY_MS)
    assert len(signed(desk)) == 1
    await desk.hold("0.1")
    await desk.risk.tick()
    assert len(signed(desk)) == 2


async def test_the_exit_is_as_tight_as_the_tightest_of_those_who_built_the_position() -> None:
    limits = wide_limits(agents={AgentId("careful"): ScopeLimits(stop_bps=D(100))})
    desk = await open_desk(limits=limits)
    first = (await desk.ask(order(agent_id="careful"))).approved[0]
    await desk.consume(first)
    await desk.fill(first, "0.01")
    await desk.risk.tick()
    bold = (await desk.ask(order(agent_id="bold"))).approved[0]
    assert bold.approval.standing_exit is not None
    assert bold.approval.standing_exit.plan.stop_bps == D(100)
    await desk.restart()
    await pass_time(desk, DAY_MS)
    assert [item.terms.plan.stop_bps for item in signed(desk)] == [D(100), D(100)]


async def test_an_exit_of_old_does_not_stand_for_a_position_that_a_looser_plan_has_joined_since() -> None:
    desk = await open_desk(limits=wide_limits(agents={AgentId("careful"): ScopeLimits(stop_bps=D(100))}))
    first = (await desk.ask(order(agent_id="careful"))).approved[0]
    await desk.consume(first)
    await desk.fill(first, "0.01")
    await desk.risk.tick()
    closing = (await desk.ask(sell("0.01", agent_id="careful"))).approved[0]
    await desk.consume(closing)
    await desk.fill(closing, "0.01", "60000")
    await pass_time(desk, 3_000)
    again = (await desk.ask(order(agent_id="careful"))).approved[0]
    bold = (await desk.ask(order(agent_id="bold"))).approved[0]  # nobody holds anything yet, so its own plan
    assert bold.approval.standing_exit is not None
    assert bold.approval.standing_exit.plan.stop_bps == D(500)
    for each in (again, bold):
        await desk.consume(each)
        await desk.fill(each, "0.01")
    for _ in range(3):
        await pass_time(desk, 500)
    first_exit, second_exit = signed(desk)
    assert first_exit.terms.plan.stop_bps == second_exit.terms.plan.stop_bps == D(100)
    assert second_exit.issued_ms > bold.approval.issued_ms


BASE = StopPlan(stop_bps=D(500), trailing_bps=D(300), atr_multiple=D(3), hold_max_ms=1_000, portfolio_loss_pct=D(9))


@pytest.mark.parametrize(
    ("change", "tighter"),
    [
        ({}, False),
        ({"stop_bps": D(499)}, True),
        ({"stop_bps": D(501)}, False),
        ({"trailing_bps": D(299)}, True),
        ({"trailing_bps": None}, False),
        ({"atr_multiple": D("2.9")}, True),
        ({"atr_bars": 20}, True),
        ({"hold_max_ms": 999}, True),
        ({"hold_max_ms": 1_001, "portfolio_loss_pct": D(8)}, True),
    ],
)
def test_a_plan_is_tighter_when_any_of_its_stops_acts_sooner(change: dict[str, Any], tighter: bool) -> None:
    assert is_tighter(replace(BASE, **change), BASE) is tighter


def test_the_tightest_plan_takes_the_nearest_of_every_stop() -> None:
    other = StopPlan(stop_bps=D(400), atr_multiple=D(2), atr_bars=30, hold_max_ms=5_000)
    expected = replace(BASE, stop_bps=D(400), atr_multiple=D(2), atr_bars=30)
    assert tightest(BASE, other) == tightest(other, BASE) == expected
    assert not is_tighter(expected, expected)


@pytest.mark.parametrize(
    ("entry", "floor", "wide"),
    [
        (Side.BUY, "30000", True),
        (Side.BUY, "36001", False),
        (Side.BUY, "17999", False),
        (Side.SELL, "90000", True),
        (Side.SELL, "83999", False),
        (Side.SELL, "102001", False),
    ],
)
def test_a_floor_is_wide_between_eight_and_fourteen_tenths_of_what_is_wanted(
    entry: Side, floor: str, wide: bool
) -> None:
    assert is_wide(build_exit_terms(entry=entry, floor=floor), D(60_000), D(5_000)) is wide
