"""Where stops lie: pure functions, checked over many plans and paths."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_servers.execution.bootstrap import protection_rules
from mcp_servers.execution.protection.bars import TrueRange
from mcp_servers.execution.protection.stops import (
    AS_PLANNED,
    Stop,
    StopKind,
    Tightening,
    behind_bps,
    deadline_ms,
    is_hit,
    is_nearer,
    nearest_stop,
    on_tick,
    tighter,
)
from mcp_servers.execution.settings import ExecutionSettings
from trading.domain.market_data import Side
from trading.domain.money import is_multiple
from trading.domain.standing_exits import ExitTerms, StopPlan

D = Decimal
TICK = D("0.01")
PRICES = st.decimals(min_value=1_000, max_value=100_000, places=2)
BPS = st.decimals(min_value=1, max_value=4_000, places=1)
SIDES = st.sampled_from(list(Side))


@st.composite
def plans(draw: st.DrawFn) -> StopPlan:
    return StopPlan(
        stop_bps=draw(BPS),
        trailing_bps=draw(st.none() | BPS),
        atr_multiple=draw(st.none() | st.decimals(min_value="0.5", max_value=10, places=1)),
        hold_max_ms=draw(st.none() | st.integers(min_value=1, max_value=10**9)),
    )


def terms(plan: StopPlan, side: Side = Side.SELL, floor: Decimal | None = None) -> ExitTerms:
    return ExitTerms(side=side, floor=floor or (D(1) if side is Side.SELL else D(10**7)), plan=plan, expires_ms=1)


def level(plan: StopPlan, side: Side = Side.SELL, **fields: object) -> Stop:
    options = {"entry": D(60_000), "best": D(60_000), "true_range": None, "asked": AS_PLANNED, "tick": TICK, **fields}
    floor = options.pop("floor", None)
    return nearest_stop(terms(plan, side, floor), **options)


def test_a_fixed_stop_lies_so_far_beyond_the_entry() -> None:
    assert level(StopPlan(stop_bps=D(500))) == Stop(D(57_000), StopKind.FIXED)
    assert level(StopPlan(stop_bps=D(500)), Side.BUY) == Stop(D(63_000), StopKind.FIXED)


def test_trailing_and_range_stops_lie_behind_the_best_price() -> None:
    trailing = StopPlan(stop_bps=D(500), trailing_bps=D(100))
    assert level(trailing, best=D(70_000)) == Stop(D(69_300), StopKind.TRAILING)
    ranged = StopPlan(stop_bps=D(500), atr_multiple=D(3))
    assert level(ranged, best=D(70_000), true_range=D(50)) == Stop(D(69_850), StopKind.ATR)
    assert level(ranged, best=D(70_000)) == Stop(D(57_000), StopKind.FIXED)  # the range is not known yet


def test_a_stop_never_lies_beyond_the_floor() -> None:
    assert level(StopPlan(stop_bps=D(5_000)), floor=D(40_000)) == Stop(D(40_000), StopKind.FLOOR)


def test_levels_are_rounded_towards_the_market() -> None:
    assert level(StopPlan(stop_bps=D(1)), entry=D("60000.01"), tick=D("0.5")).price == D("59994.5")
    assert level(StopPlan(stop_bps=D(1)), Side.BUY, entry=D("60000.01"), tick=D("0.5")).price == D(60_006)


@settings(max_examples=300)
@given(plan=plans(), side=SIDES, entry=PRICES, best=PRICES, true_range=st.none() | st.decimals(0, 500, places=2))
def test_the_nearest_of_all_stops_wins(
    plan: StopPlan, side: Side, entry: Decimal, best: Decimal, true_range: Decimal | None
) -> None:
    floor = D("0.01") if side is Side.SELL else D(10**7)
    found = level(plan, side, entry=entry, best=best, true_range=true_range, floor=floor)
    candidates = [behind_bps(side, entry, plan.stop_bps), floor]
    if plan.trailing_bps is not None:
        candidates.append(behind_bps(side, best, plan.trailing_bps))
    if plan.atr_multiple is not None and true_range is not None:
        distance = true_range * plan.atr_multiple
        candidates.append(best - distance if side is Side.SELL else best + distance)
    assert is_multiple(found.price, TICK)
    assert not any(is_nearer(side, on_tick(side, each, TICK), found.price) for each in candidates)


@settings(max_examples=200)
@given(plan=plans(), side=SIDES, entry=PRICES, path=st.lists(PRICES, min_size=1, max_size=30), data=st.data())
def test_a_stop_never_moves_away_from_the_market(
    plan: StopPlan, side: Side, entry: Decimal, path: list[Decimal], data: st.DataObject
) -> None:
    held: Stop | None = None
    best = entry
    for price in path:
        best = max(best, price) if side is Side.SELL else min(best, price)
        true_range = data.draw(st.none() | st.decimals(0, 500, places=2))
        asked = Tightening(trailing_bps=data.draw(st.none() | BPS))
        found = level(plan, side, entry=data.draw(PRICES), best=best, true_range=true_range, asked=asked)
        now = tighter(side, held, found)
        assert held is None or not is_nearer(side, held.price, now.price)
        held = now


@given(side=SIDES, stop=PRICES, price=PRICES)
def test_a_stop_is_hit_on_the_losing_side_only(side: Side, stop: Decimal, price: Decimal) -> None:
    assert is_hit(side, stop, price) is (not is_nearer(side, price, stop))


def test_an_agent_can_only_add_a_nearer_stop() -> None:
    plan = StopPlan(stop_bps=D(500))
    assert level(plan, asked=Tightening(stop_price=D(59_000))) == Stop(D(59_000), StopKind.AGENT)
    assert level(plan, asked=Tightening(stop_price=D(50_000))) == Stop(D(57_000), StopKind.FIXED)


def test_the_earlier_of_two_deadlines_counts() -> None:
    assert deadline_ms(1_000, None, AS_PLANNED) is None
    assert deadline_ms(1_000, 500, AS_PLANNED) == 1_500
    assert deadline_ms(1_000, 500, Tightening(hold_until_ms=1_200)) == 1_200
    assert deadline_ms(1_000, 500, Tightening(hold_until_ms=1_900)) == 1_500


def test_the_settings_say_how_and_never_where() -> None:
    defaults = protection_rules(ExecutionSettings())
    assert (defaults.native, defaults.close_blind_ms) == (True, None)
    wanted = {"native": False, "step_bps": "10", "close_blind_after_s": 60}
    rules = protection_rules(ExecutionSettings.model_validate({"protection": wanted}))
    assert (rules.native, rules.step_bps, rules.close_blind_ms) == (False, D(10), 60_000)
    with pytest.raises(ValidationError):
        ExecutionSettings.model_validate({"protection": {"stop_bps": "500"}})


def test_the_average_true_range_follows_wilder() -> None:
    ranges = TrueRange(3, 1_000)
    for bar, (high, low, close) in enumerate([(10, 8, 9), (11, 9, 10), (15, 12, 14), (14, 13, 13), (13, 13, 13)]):
        for price in (high, low, close):
            ranges.observe(D(price), bar * 1_000 + 10)
    # True ranges 2, 2, 5 (a gap up from 10), then 1: (2 + 2 + 5) / 3 = 3, (3 * 2 + 1) / 3; the fifth bar is open.
    assert ranges.value == D("2.333333333333")


def test_the_range_is_not_known_before_enough_bars_are_complete() -> None:
    ranges = TrueRange(2, 1_000)
    for now_ms in (0, 1_000, 1_999):
        ranges.observe(D(100), now_ms)
    assert ranges.value is None
    ranges.observe(D(100), 2_000)
    assert ranges.value == 0
