"""The strategy is monotone over the modes, deterministic, and silent until its indicators are warm."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coordinator_support import build_intent, build_snapshot
from trading.domain.errors import InvalidValue
from trading.domain.market_data import Candle, Side
from trading.domain.proposals import OrderIntent
from trading.domain.voting import Choice
from trading.strategy import indicators
from trading.strategy.modes import AGGRESSIVE, BALANCED, CONSERVATIVE, MODES
from trading.strategy.rules import Hold, Propose, admitted, propose, round_trip_cost_bps, stance
from trading.strategy.signals import BAND, RANGE, SLOW, read
from trading.strategy.sizing import order_cap, order_size
from trading.strategy.snapshot import MarketSnapshot
from trading.testing.builders import INSTRUMENT_ID, build_book, build_instrument

RANK = {Choice.NO: 0, Choice.ABSTAIN: 1, Choice.YES: 2}
#: Numbers of which a bolder mode has less; of all others it has more.
FALLING = {"strength_min", "edge_to_cost_min", "proposal_interval_ms"}


def candles(closes: list[int], *, closed: bool = True) -> tuple[Candle, ...]:
    """Return one-second candles around 60000 that close at 60000 plus the given tenths."""
    made: list[Candle] = []
    for index, tenth in enumerate(closes):
        close = Decimal(60_000) + Decimal(tenth) / 10
        opened = made[-1].close if made else close
        made.append(
            Candle(
                instrument_id=INSTRUMENT_ID,
                interval_ms=1_000,
                open_ts_ms=index * 1_000,
                open=opened,
                high=max(opened, close),
                low=min(opened, close),
                close=close,
                volume=Decimal(1),
                trades=1,
                closed=closed,
            )
        )
    return tuple(made)


@st.composite
def snapshots(draw: st.DrawFn) -> MarketSnapshot:
    """Markets of all tempers: leaning books, wide spreads, quiet and wild candles, any position."""
    bid_quantity, ask_quantity = (str(draw(st.integers(1, 4000)) / 1000) for _ in range(2))
    spread = draw(st.sampled_from(["0.01", "1", "9", "20", "80"]))
    ask = Decimal(60_000) + Decimal(spread)
    book = build_book([("60000", bid_quantity), ("59999", "1")], [(str(ask), ask_quantity), (str(ask + 1), "1")])
    scale = draw(st.sampled_from([1, 30, 900]))
    steps = draw(st.lists(st.integers(-9, 9), max_size=14))
    held = Decimal(draw(st.integers(0, 200))) / 100
    return build_snapshot(
        instrument=build_instrument(fee=draw(st.sampled_from(["0", "0.00001", "0.001"]))),
        book=book,
        candles=candles([step * scale for step in steps]),
        held=held,
        cash=Decimal(draw(st.integers(0, 100_000))),
        book_age_ms=draw(st.sampled_from([0, 2_001])),
    )


def test_every_number_moves_one_way_from_conservative_to_aggressive() -> None:
    for cautious, bold in pairwise(MODES):
        for field in fields(cautious):
            if field.name == "name":
                continue
            low, high = getattr(cautious, field.name), getattr(bold, field.name)
            assert low > high if field.name in FALLING else low < high, field.name


@given(snapshots())
@settings(max_examples=300, deadline=None)
def test_a_bolder_mode_sees_every_signal_of_a_more_cautious_one_and_never_sizes_it_smaller(s: MarketSnapshot) -> None:
    for cautious, bold in pairwise(MODES):
        assert set(admitted(s, cautious)) <= set(admitted(s, bold))
        for side in Side:
            assert order_cap(s, cautious, side) <= order_cap(s, bold, side)
            assert order_size(s, cautious, side, 0.7) <= order_size(s, bold, side, 0.7)


@given(snapshots())
@settings(max_examples=300, deadline=None)
def test_whatever_a_cautious_mode_proposes_every_bolder_mode_votes_for(s: MarketSnapshot) -> None:
    for position, mode in enumerate(MODES):
        wish = propose(s, mode)
        if isinstance(wish, Propose):
            assert [stance(s, wish.order, other).choice for other in MODES[position:]] == [Choice.YES] * (3 - position)
            assert s.instrument.is_quantity(wish.order.quantity)
            assert wish.order.side is Side.BUY or wish.order.quantity <= s.held


@given(snapshots(), st.sampled_from(Side), st.integers(1, 300_000))
@settings(max_examples=300, deadline=None)
def test_votes_only_move_towards_yes_as_the_mode_gets_bolder(s: MarketSnapshot, side: Side, micros: int) -> None:
    order = build_intent(str(Decimal(micros) / 1_000_000), side)
    ranks = [RANK[stance(s, order, mode).choice] for mode in MODES]
    assert ranks == sorted(ranks)


@given(snapshots())
@settings(max_examples=50, deadline=None)
def test_the_same_snapshot_always_gives_the_same_answer(s: MarketSnapshot) -> None:
    assert [propose(s, mode) for mode in MODES] == [propose(s, mode) for mode in MODES]


def test_indicators_are_silent_until_warm_and_refuse_an_open_candle() -> None:
    rising = [float(value) for value in range(20)]
    for indicator, need in ((indicators.ema, 0), (indicators.rsi, 1), (indicators.z_score, 0)):
        period = 5
        assert indicator(rising[: period + need - 1], period) is None
        assert indicator(rising[: period + need], period) is not None
    assert indicators.atr_bps(candles([1] * (RANGE - 1)), RANGE) is None
    assert indicators.atr_bps(candles([1] * RANGE), RANGE) == 0
    with pytest.raises(InvalidValue, match="closed candles only"):
        indicators.closes(candles([1], closed=False))


def test_indicators_give_the_known_values() -> None:
    assert indicators.ema([1.0, 2.0, 3.0, 4.0], 3) == 3.0
    assert indicators.rsi([1.0, 2.0, 3.0, 2.0], 2) == 50.0
    assert indicators.z_score([1.0, 2.0, 3.0], 3) == pytest.approx(1.2247448713915892)
    assert indicators.z_score([5.0] * 4, 4) == 0.0
    assert indicators.z_score([9407.76, *[9406.76] * 10], 10) == 0.0  # prices that floats cannot hold exactly
    assert indicators.rsi([5.0] * 4, 3) is None
    assert indicators.imbalance(build_book([("60000", "3")], [("60001", "1")]), 5) == 0.5
    assert indicators.imbalance(build_book([], [("60001", "1")]), 5) is None


def test_each_signal_needs_exactly_its_warm_up() -> None:
    def kinds(count: int) -> set[str]:
        return {signal.kind for signal in read(build_snapshot(candles=candles([n * n for n in range(count)])))}

    leaning = build_snapshot(book=build_book([("60000", "9")], [("60001", "1")]))
    assert {signal.kind for signal in read(leaning)} == {"imbalance"}
    assert "momentum" not in kinds(SLOW - 1)
    assert "momentum" in kinds(SLOW)
    assert "reversion" not in kinds(BAND - 1)
    assert "reversion" in kinds(BAND)


def test_directions_are_right() -> None:
    up = build_snapshot(candles=candles([n * n for n in range(BAND)]))
    sides = {signal.kind: signal.side for signal in read(up)}
    assert sides["momentum"] is Side.BUY
    assert sides["reversion"] is Side.SELL


def test_a_leaning_book_makes_only_the_bold_propose_because_the_edge_does_not_pay_the_fees() -> None:
    s = build_snapshot(book=build_book([("60000", "9")], [("60000.01", "1")]))
    assert isinstance(propose(s, AGGRESSIVE), Propose)
    for mode in (CONSERVATIVE, BALANCED):
        assert propose(s, mode) == Hold("no signal is strong enough for its cost")
    assert round_trip_cost_bps(s) > 20
    order = propose(s, AGGRESSIVE)
    assert isinstance(order, Propose)
    assert [stance(s, order.order, mode).choice for mode in MODES] == [Choice.ABSTAIN, Choice.ABSTAIN, Choice.YES]


def test_the_conservative_mode_trades_when_the_edge_pays_for_the_round_trip() -> None:
    s = build_snapshot(
        instrument=build_instrument(fee="0"),
        book=build_book([("60000", "9"), ("59999", "9")], [("60000.01", "9"), ("60001", "9")]),
        candles=candles([0, 1, 0, 1, 0, 1, 0, 1, 0, -30]),
    )
    wish = propose(s, CONSERVATIVE)
    assert isinstance(wish, Propose)
    assert wish.order.side is Side.BUY
    assert wish.reason.startswith("reversion")


@pytest.mark.parametrize(
    "changes",
    [
        {"book_age_ms": 2_001},
        {"account_age_ms": 5_001},
        {"book": build_book([], [("60001", "1")])},
        {"book": build_book([("60000", "9")], [("60100", "1")])},
        {"candles": candles([0, 9_000, 0, 9_000, 0, 9_000])},
    ],
)
def test_an_unfit_market_is_neither_proposed_in_nor_consented_to(changes: dict[str, Any]) -> None:
    s = build_snapshot(**changes)
    for mode in MODES:
        assert isinstance(propose(s, mode), Hold)
        assert stance(s, build_intent(), mode).choice is Choice.NO


def test_nothing_is_sold_that_is_not_held_and_a_full_position_buys_no_more() -> None:
    selling = build_book([("60000", "1")], [("60000.01", "9")])
    assert isinstance(propose(build_snapshot(book=selling), AGGRESSIVE), Hold)
    wish = propose(build_snapshot(book=selling, held=Decimal("0.001")), AGGRESSIVE)
    assert isinstance(wish, Propose)
    order: OrderIntent = wish.order
    assert order.reduce_only
    assert order.side is Side.SELL
    assert order.quantity <= Decimal("0.001")
    buying = build_book([("60000", "9")], [("60000.01", "1")])
    full = build_snapshot(book=buying, held=Decimal(2), equity=Decimal(120_000))
    assert isinstance(propose(full, AGGRESSIVE), Hold)
