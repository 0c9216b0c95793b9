"""The numbers of a whole desk: its book, its history or the bundled one, its equity curve, stress and leaving."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from mcp_servers.risk.numbers.bundled import ASSETS, HOUR_MS, LABEL, bundled, pack, unpack
from mcp_servers.risk.numbers.desk import History
from mcp_servers.risk.numbers.equity_curve import CurveState, EquityCurve, read_curve
from mcp_servers.risk.numbers.liquidity import Holding, flatten
from mcp_servers.risk.numbers.report import Report
from mcp_servers.risk.numbers.rows import risk_row
from mcp_servers.risk.numbers.stress import replay
from tests.risk_support import DATA_ID, Desk, open_desk, order
from trading.domain.errors import LedgerUnavailable, Unavailable
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.testing.builders import build_book

DAY = 86_400_000


class Closes:
    """An archive that a test fills."""

    def __init__(self, bars: int, *, gap: int | None = None) -> None:
        self.bars, self.gap, self.down, self.asked = bars, gap, False, 0

    async def closes(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> Sequence[tuple[int, float]]:
        self.asked += 1
        if self.down:
            raise LedgerUnavailable("away")
        assert instrument_id == DATA_ID, "the market venue's candles, not the paper venue's"
        moves = np.random.default_rng(1).normal(0, 0.02, self.bars)
        prices = 60_000 * np.exp(np.cumsum(moves))
        times = [until_ms - interval_ms * (self.bars - n) for n in range(self.bars)]
        return [
            (time, float(price))
            for n, (time, price) in enumerate(zip(times, prices, strict=True))
            if time >= from_ms and n != self.gap
        ]


async def holding(amount: str = "2", closes: Closes | None = None) -> Desk:
    desk = await open_desk(closes=closes)
    await desk.hold(amount)
    await desk.refresh()
    return desk


async def report_of(desk: Desk, history: History = "best") -> Report:
    return await desk.risk.numbers.report(desk.risk.frame(), history=history)


def value(report: Report, name: str, horizon: str = "") -> float:
    (found,) = [item for item in report.figures if item.name == name and item.horizon == horizon]
    assert found.value is not None, found.note
    return found.value


# -- the book ----------------------------------------------------------------------------------------------------------


async def test_a_fresh_desk_rests_on_the_bundled_years_and_says_so() -> None:
    report = await report_of(await holding())
    assert set(report.history.values()) == {LABEL}
    btc = bundled().returns(24)[:, ASSETS.index("BTC")]
    (tail,) = [t for t in report.tails if (t.tail.method, t.tail.confidence, t.horizon) == ("historical", 0.99, "1d")]
    gross = 2 * 60_000.5
    assert tail.tail.var == pytest.approx(-gross * np.sort(btc)[int(0.01 * len(btc))], rel=1e-9)
    assert (tail.window, tail.tail.n) == ("2019-01-01..2021-12-31", len(btc))
    assert value(report, "gross") == pytest.approx(gross)
    assert value(report, "beta_btc", "1d") == pytest.approx(1.0)
    assert value(report, "concentration_hhi") == 1.0


async def test_promises_count_in_the_worst_case_only() -> None:
    desk = await holding("2")
    await desk.ask(order(amount="3"))
    frame = desk.risk.frame()
    held = await desk.risk.numbers.report(frame, basis="held")
    worst = await desk.risk.numbers.report(frame, basis="worst_case")
    for one, other in zip(held.tails, worst.tails, strict=True):
        assert one.tail.var is not None
        assert other.tail.var == pytest.approx(2.5 * one.tail.var)


async def test_an_empty_book_may_lose_nothing() -> None:
    report = await report_of(await open_desk())
    assert {item.tail.var for item in report.tails} == {0.0}
    assert {item.value for item in report.figures if item.name.startswith("stress")} == {0.0}
    assert {item.value for item in report.figures if item.name == "volatility"} == {None}
    assert "nan" not in risk_row(report, quote="USDT", basis="held").model_dump_json().lower()


async def test_what_has_no_price_is_refused_and_a_stale_price_is_told() -> None:
    desk = await holding()
    desk.clock.advance(3_600_000)
    report = await report_of(desk)
    assert report.notes == ["valued at the last known price: BTC/USDT"]
    assert value(report, "flatten_left") == 100.0
    bare = await open_desk(start=False)
    bare.market.books.clear()
    await bare.risk.start()
    bare.risk.portfolio.book.totals["BTC"] = Decimal(1)  # type: ignore[index]
    with pytest.raises(Unavailable, match="never had a price"):
        await report_of(bare)


# -- the desk's own history --------------------------------------------------------------------------------------------


async def test_own_history_is_used_when_every_method_can_answer_from_it() -> None:
    closes = Closes(501)
    desk = await holding(closes=closes)
    report = await report_of(desk)
    feed = desk.market.books[DATA_ID].feed.value
    assert report.history == dict.fromkeys(("1h", "1d"), f"own: closed candles of the market archive ({feed})")
    assert {item.tail.n for item in report.tails} == {500, 470}
    before = closes.asked
    await report_of(desk)
    assert closes.asked == before, "read again only when another candle has closed"


async def test_too_little_own_history_falls_back_or_says_how_much_is_missing() -> None:
    desk = await holding(closes=Closes(101))
    assert set((await report_of(desk)).history.values()) == {LABEL}
    own = await report_of(desk, "own")
    problems = {(item.tail.method.value, item.tail.confidence): item.tail.problem for item in own.tails}
    assert problems["historical", 0.95] == ""
    assert problems["historical", 0.99] == "not enough history: has 100 returns, needs 200"
    none = await report_of(await holding(), "own")
    assert {item.tail.var for item in none.tails} == {None}
    assert set(none.history.values()) == {"no history"}


async def test_a_return_over_a_gap_is_left_out() -> None:
    report = await report_of(await holding(closes=Closes(401, gap=200)), "own")
    assert {item.tail.n for item in report.tails} == {398, 368}


async def test_an_archive_that_is_away_is_told_and_does_not_stop_the_answer() -> None:
    closes = Closes(501)
    closes.down = True
    report = await report_of(await holding(closes=closes))
    assert set(report.history.values()) == {LABEL}
    assert report.notes == ["the market archive does not answer (LEDGER_UNAVAILABLE)"]


# -- the bundled history and stress ------------------------------------------------------------------------------------


def test_packed_closes_come_back_within_half_a_step(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    closes = np.exp(np.cumsum(random.normal(0, 0.03, (500, 4)), axis=0))
    hours = np.cumsum(random.integers(1, 4, 500))
    pack(tmp_path / "x.npz", hours, closes)
    back = unpack(tmp_path / "x.npz")
    np.testing.assert_array_equal(back.open_hours, hours)
    np.testing.assert_allclose(back.levels, closes / closes[0], rtol=1e-5)
    for bad in (-closes, np.asarray([[1.0], [2.0]])):
        with pytest.raises(ValueError, match=r"positive|too large"):
            pack(tmp_path / "y.npz", hours[: len(bad)], bad)


def test_the_bundled_history_is_small_and_spans_three_years() -> None:
    held = bundled()
    assert len(held.open_hours) == 26_245
    assert held.open_hours[0] * HOUR_MS == 1_546_300_800_000
    assert (np.diff(held.open_hours) > 0).all()
    (file,) = (Path(__file__).parents[2] / "mcp_servers/risk/numbers/data").glob("*.npz")
    assert file.stat().st_size < 200_000


def test_stress_replays_the_known_crashes_on_the_book_as_it_is() -> None:
    losses = {(item.scenario, item.horizon): item.amount for item in replay(np.asarray([100.0, 0, 0, 0]))}
    assert 44 < losses["march_2020", "1d"] < 50  # from close to close; the widely told "halved in a day"
    assert 15 < losses["may_2021", "1d"] < 30
    assert losses["march_2020", "1h"] < losses["march_2020", "1d"] < losses["march_2020", "7d"]
    strange = {(i.scenario, i.horizon): i.amount for i in replay(np.zeros(4), 100.0)}
    assert all(strange[key] >= loss for key, loss in losses.items())
    short = replay(np.asarray([-100.0, 0, 0, 0]))
    assert all(item.amount > 0 for item in short)


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_flattening_walks_the_book_and_says_what_it_cannot_take() -> None:
    book = build_book([("100", "1"), ("90", "1")], [("102", "1")], now_ms=0)
    found = flatten([Holding(Decimal("1.5"), Decimal(101), book), Holding(Decimal(0), Decimal(5), None)])
    assert (found.cost, found.left, found.positions) == (pytest.approx(1 + 5.5), 0.0, 1)
    found = flatten([Holding(Decimal(3), Decimal(101), book), Holding(Decimal(2), Decimal(5), None)])
    assert (found.taken, found.left) == (pytest.approx(202), pytest.approx(101 + 10))
    short = flatten([Holding(Decimal(-1), Decimal(101), book)])
    assert short.cost == pytest.approx(1)


# -- the equity curve --------------------------------------------------------------------------------------------------


def follow(points: Sequence[tuple[float, float]], curve: EquityCurve | None = None, start: int = 0) -> CurveState:
    found = curve or EquityCurve()
    for day, (equity, result) in enumerate(points):
        found.sample(Decimal(str(equity)), Decimal(str(result)), (start + day) * DAY)
    assert found.state is not None
    return found.state


def test_drawdown_and_time_under_water_of_a_curve() -> None:
    state = follow([(100, 0), (120, 20), (90, -10), (108, 8), (126, 26), (120, 20)])
    assert state.deepest == pytest.approx(0.25)
    assert state.drawdown == pytest.approx(6 / 126)
    assert (state.under_water_ms, state.longest_ms) == (DAY, 3 * DAY)


def test_a_deposit_is_no_profit_and_a_withdrawal_no_drawdown() -> None:
    state = follow([(100, 0), (1_100, 0), (550, 0), (540, -10)])
    assert state.deepest == pytest.approx(10 / 550)
    assert state.peak == 1.0


def test_what_is_not_known_or_not_later_is_left_out() -> None:
    curve = EquityCurve()
    curve.sample(None, Decimal(1), 1)
    curve.sample(Decimal(0), Decimal(1), 2)
    assert curve.state is None
    follow([(100, 0), (90, -10)], curve)
    before = curve.state
    curve.sample(Decimal(1), Decimal(-99), DAY)
    assert curve.state == before


def test_a_restart_goes_on_where_the_curve_stopped_and_nonsense_is_not_read() -> None:
    curve = EquityCurve()
    follow([(100, 0), (80, -20)], curve)
    row = curve.unsaved(5)
    assert row is not None
    curve.saved(5)
    assert curve.unsaved(60_004) is None
    assert curve.unsaved(60_005) is not None
    state = follow([(90, -10)], EquityCurve(read_curve(row.row)), start=2)
    assert (state.deepest, state.drawdown) == (pytest.approx(0.2), pytest.approx(0.1))
    for text in ("", "[]", "{}", '{"index": 1}', str(row.row["reason"]).replace("80.0", "NaN")):
        assert read_curve({**row.row, "reason": text}) is None


async def test_the_running_desk_keeps_its_curve_over_a_restart() -> None:
    desk = await holding("2")
    await desk.risk.tick()
    desk.clock.advance(61_000)
    desk.price(bids=[("50000", "50")], asks=[("50001", "50")])
    desk.pulse()
    await desk.risk.live.follower.step()
    await desk.risk.tick()
    before = desk.risk.numbers.curve.state
    assert before is not None
    assert 0.015 < before.drawdown < 0.025
    again = await desk.restart(clean=False)
    assert again.risk.numbers.curve.state == before
    assert value(await report_of(again), "drawdown_max") == pytest.approx(100 * before.deepest)
