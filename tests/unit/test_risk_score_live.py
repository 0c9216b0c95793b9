"""The risk score on a running desk: 1 unless it is known, looked up and never worked out for an order, only tighter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.risk.candle_closes import ArchiveCloses
from mcp_servers.risk.context import Frame, OrderContext
from mcp_servers.risk.limits import RiskLimits, policy_of
from mcp_servers.risk.orders import OrderRequest, intent_of
from mcp_servers.risk.policies.pipeline import RULES, evaluate
from mcp_servers.risk.pricing import build_context
from mcp_servers.risk.scopes import ScopeLimits
from mcp_servers.risk.score import features, live
from mcp_servers.risk.score.live import HOUR_MS, MAX_AGE_MS, LiveScores, PastBar, Score, features_of
from mcp_servers.risk.score.model import shipped_model
from mcp_servers.risk.score.rows import score_rows
from tests.risk_support import DATA_ID, Desk, codes, open_desk, order, sell, wide_limits, wide_symbol
from trading.adapters.sql.candles import Series, StoredCandle, StoredSpan, open_candles_in_memory
from trading.domain.denials import Rule
from trading.domain.errors import LedgerUnavailable
from trading.domain.identifiers import AgentId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed
from trading.testing.builders import BTC_USDT, PAPER

HERE = InstrumentId(PAPER, BTC_USDT)


class Archive:
    """Hourly bars up to the last closed hour; a test may let some be missing, the newest late, or all of them wild."""

    def __init__(self, *, missing: int = 0, late: int = 0, wild: float = 1.0, down: bool = False) -> None:
        self.missing, self.late, self.wild, self.down, self.asked = missing, late, wild, down, 0

    async def bars(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> Sequence[PastBar]:
        self.asked += 1
        assert (feed, instrument_id, interval_ms) == (Feed.REPLAY, DATA_ID, HOUR_MS)
        if self.down:
            raise LedgerUnavailable("away")
        hours = range(from_ms // HOUR_MS + self.missing, until_ms // HOUR_MS - self.late)
        moves = np.random.default_rng(2).normal(0, 0.006, len(hours))
        moves[-24 if self.wild > 1 else -144 :] *= self.wild
        prices = 60_000 * np.exp(np.cumsum(moves))
        return [
            PastBar(hour * HOUR_MS, float(price), float(price) * 0.998, float(price) * 1.002, 5.0)
            for hour, price in zip(hours, prices, strict=True)
        ]


def scored(**limits: Any) -> RiskLimits:
    return wide_limits(symbols={BTC_USDT: wide_symbol(**limits)})


async def desk_with(archive: Archive | None, limits: RiskLimits | None = None, **parts: Any) -> Desk:
    desk = await open_desk(limits=limits, bars=archive, **parts)
    await desk.risk.scores.refresh(desk.risk.frame())
    return desk


def score_of(desk: Desk) -> Score:
    return desk.risk.scores.of(HERE, desk.clock.now_ms())


# -- what is known ---------------------------------------------------------------------------------------------------


async def test_an_approval_carries_what_the_shipped_model_says_of_the_archive() -> None:
    archive = Archive()
    desk = await desk_with(archive)
    until = desk.clock.now_ms() // HOUR_MS * HOUR_MS
    bars = await archive.bars(Feed.REPLAY, DATA_ID, HOUR_MS, until - features.LOOKBACK * HOUR_MS, until)
    exact = shipped_model().probability(features_of(bars))
    (approved,) = (await desk.ask(order())).approved
    score = approved.approval.risk_score
    assert Decimal(repr(exact)) <= score < Decimal(repr(exact)) + Decimal("0.0001")  # four digits, never rounded down
    assert 0 < score < 1
    assert f'"risk_score":"{score}"' in approved.payload.decode()


async def test_a_check_and_the_risk_numbers_say_event_and_model() -> None:
    desk = await desk_with(Archive())
    (rule,) = [item for item in desk.risk.check_order(order()).results if item.rule is Rule.RISK_SCORE_MAX]
    assert (rule.limit, rule.observed) == ("none", str(score_of(desk).value))
    (row,) = score_rows(desk.risk.frame())
    assert (row.name, row.value, row.horizon, row.n) == ("risk_score_BTC/USDT", score_of(desk).value, "24h", 721)
    for text in (rule.message, row.note):
        assert shipped_model().event in text
        assert shipped_model().digest[:8] in text
        assert "2019-01-30..2021-12-31" in text


async def test_candles_are_read_once_an_hour_and_never_for_an_order() -> None:
    archive = Archive()
    desk = await desk_with(archive)
    for number in range(5):
        await desk.ask(order(limit_price=f"{60_001 - number}"))
        desk.risk.check_order(order())
        await desk.risk.scores.refresh(desk.risk.frame())
    assert archive.asked == 1
    desk.clock.advance(HOUR_MS)
    desk.price()
    await desk.risk.scores.refresh(desk.risk.frame())
    assert archive.asked == 2


async def test_a_feature_that_drifted_is_looked_at_again_when_the_next_hour_has_closed() -> None:
    archive = Archive(wild=30)
    desk = await desk_with(archive)
    await desk.risk.scores.refresh(desk.risk.frame())
    assert (score_of(desk).value, archive.asked) == (1, 1)
    archive.wild = 1.0
    desk.clock.advance(HOUR_MS)
    desk.price()
    await desk.risk.scores.refresh(desk.risk.frame())
    assert score_of(desk).reason == ""


async def test_a_bar_that_comes_late_is_looked_for_again() -> None:
    archive = Archive(late=1)
    desk = await desk_with(archive)
    before = score_of(desk)
    assert before.reason == ""
    archive.late = 0
    await desk.risk.scores.refresh(desk.risk.frame())
    assert archive.asked == 2
    assert score_of(desk).until_ms == before.until_ms + HOUR_MS


# -- what is not known is 1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (None, "there is no archive of closed candles"),
        (Archive(missing=22), "the archive has 699 of the last 721 hourly candles"),
        (Archive(missing=721), "the archive has 0 of the last 721 hourly candles"),
        (Archive(late=3), "the newest hourly candle closed"),
        (Archive(down=True), "the market archive does not answer (LEDGER_UNAVAILABLE)"),
        (Archive(wild=30), "feature vol_24h = "),
        (Archive(wild=0.0001), "feature vol_24h = "),
    ],
    ids=["none", "short", "empty", "old", "down", "wilder than training", "calmer than training"],
)
async def test_what_is_not_known_scores_one_with_the_reason(archive: Archive | None, reason: str) -> None:
    desk = await desk_with(archive, scored(score_max=Decimal("0.99")))
    assert score_of(desk).value == 1
    assert score_of(desk).reason.startswith(reason)
    answer = await desk.ask(order())
    assert codes(answer) == {"RISK_SCORE_MAX"}
    (failure,) = answer.denied[0].failures
    assert (failure.limit, failure.observed) == ("0.99", "1")
    assert f"1 because {reason}" in failure.message


async def test_a_score_that_nobody_refreshed_grows_old_and_is_one() -> None:
    desk = await desk_with(Archive())
    age = desk.clock.now_ms() % HOUR_MS
    desk.clock.advance(MAX_AGE_MS - age)
    assert score_of(desk).reason == ""
    desk.clock.advance(1)
    assert (score_of(desk).value, score_of(desk).reason) == (1, "the newest score is too old")


async def test_before_the_first_refresh_and_without_a_book_it_is_one() -> None:
    desk = await open_desk(bars=Archive())
    assert score_of(desk).reason == "no score has been worked out yet"
    desk.market.books.clear()
    await desk.risk.scores.refresh(desk.risk.frame())
    assert score_of(desk).reason == "there is no market data"


async def test_an_archive_that_fails_later_takes_the_score_with_it() -> None:
    archive = Archive()
    desk = await desk_with(archive)
    assert score_of(desk).value < 1
    archive.down = True
    desk.clock.advance(HOUR_MS)
    desk.price()
    await desk.risk.scores.refresh(desk.risk.frame())
    assert score_of(desk).value == 1


def test_the_run_time_asks_for_as_many_bars_as_the_features_need() -> None:
    assert live.LOOKBACK == features.LOOKBACK
    assert live.BARS_MIN == features.BASE_MIN + 1


# -- whose model counts ----------------------------------------------------------------------------------------------


async def test_a_model_file_counts_only_if_the_limits_name_its_digest(tmp_path: Path) -> None:
    own = replace(shipped_model(), name="own")
    path = tmp_path / "model.json"
    path.write_text(own.to_json(), encoding="utf-8")
    named = wide_limits(score_model_digest=own.digest)
    for limits, file, reason in (
        (wide_limits(), path, "the limits do not name the model file"),
        (wide_limits(score_model_digest="0" * 64), path, "the limits name another model file: 00000000"),
        (named, None, "the limits name another model file"),
        (named, tmp_path / "none.json", "the model file"),
    ):
        desk = await desk_with(Archive(), limits, score_model=file)
        assert score_of(desk).value == 1
        assert reason in score_of(desk).reason
    desk = await desk_with(Archive(), named, score_model=path)
    assert score_of(desk).reason == ""
    assert "own@" in desk.risk.scores.words(HERE, desk.clock.now_ms())


async def test_a_model_that_the_limits_cease_to_name_counts_no_more() -> None:
    desk = await desk_with(Archive())
    assert score_of(desk).value < 1
    changed = policy_of(wide_limits(score_model_digest="0" * 64), version=2)
    await desk.risk.scores.refresh(replace(desk.risk.frame(), policy=changed))
    assert score_of(desk).value == 1


async def test_a_model_file_that_was_mended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text("{", encoding="utf-8")
    desk = await desk_with(Archive(), wide_limits(score_model_digest=shipped_model().digest), score_model=path)
    assert "not a model file" in score_of(desk).reason
    path.write_text(shipped_model().to_json(), encoding="utf-8")
    await desk.risk.scores.refresh(desk.risk.frame())
    assert score_of(desk).reason == ""


# -- it can only tighten ---------------------------------------------------------------------------------------------


async def test_above_the_bound_nothing_is_added_and_everything_can_be_closed() -> None:
    desk = await desk_with(Archive())
    await desk.hold("1")
    desk = await desk.restart(limits=scored(score_max=Decimal("0.0001")))  # nothing is known right after a start
    await desk.refresh()
    assert codes(await desk.ask(order())) == {"RISK_SCORE_MAX"}
    assert (await desk.ask(sell("1", reduce_only=True))).approved


async def test_below_the_bound_the_order_passes_and_a_scope_can_only_tighten() -> None:
    tighter = scored(score_max=Decimal("0.5")).model_copy(
        update={"agents": {AgentId("nervous"): ScopeLimits(score_max=Decimal("0.001"))}}
    )
    desk = await desk_with(Archive(), tighter)
    assert score_of(desk).value < Decimal("0.5")
    assert (await desk.ask(order())).approved
    assert codes(await desk.ask(order(agent_id="nervous"))) == {"RISK_SCORE_MAX"}


async def test_the_size_shrinks_with_the_score_and_the_nearest_legal_order_passes() -> None:
    desk = await desk_with(Archive(), scored(score_notional_max=Decimal(10_000)))
    score = score_of(desk).value
    assert 0 < score < 1
    (denied,) = (await desk.ask(order(amount="1"))).denied
    assert {failure.rule for failure in denied.failures} == {Rule.RISK_SCORE_SIZE}
    assert Decimal(denied.failures[0].limit) == 10_000 * (1 - score)
    nearest = denied.nearest_legal
    assert nearest is not None
    assert nearest.quantity == (10_000 * (1 - score) / 60_001).quantize(Decimal("0.00001"), "ROUND_FLOOR")
    assert (await desk.ask(order(amount=nearest.quantity))).approved


async def test_without_a_bound_a_score_of_one_stops_nothing() -> None:
    desk = await desk_with(None)
    (approved,) = (await desk.ask(order())).approved
    assert approved.approval.risk_score == 1


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """An empty desk and one that holds something."""

    async def open_both() -> list[Frame]:
        empty, full = await open_desk(), await open_desk()
        await full.hold("1")
        return [empty.risk.frame(), full.risk.frame()]

    return asyncio.run(open_both())


requests = st.builds(
    lambda sold, amount, price, only: (sell if sold else order)(amount=amount, limit_price=price, reduce_only=only),
    st.booleans(),
    st.sampled_from(["0.00001", "0.01", "0.1666", "0.5", "1", "3", "20"]),
    st.sampled_from(["50000", "59990", "60001", "60050", "61000"]),
    st.booleans(),
)
shares = st.decimals(0, 1, places=4)
bounds = st.one_of(st.none(), st.decimals(0, Decimal("0.9999"), places=4))
amounts = st.one_of(st.none(), st.decimals(1, 100_000, places=0))


def passes(frame: Frame, request: OrderRequest, limits: RiskLimits, score: Decimal) -> bool:
    scores = LiveScores(None, lambda item: item)
    scores._set(HERE, Score(score, "", frame.now_ms + 1))  # as if worked out
    asked = replace(frame, policy=policy_of(limits, version=1), scores=scores)
    context: OrderContext = build_context(
        asked, intent_of(asked, request, decided=False), request.agent_id, decided=False
    )
    return evaluate(context, RULES).passed


@given(requests, shares, shares, bounds, amounts, st.sampled_from([0, 1]))
def test_no_order_passes_with_a_score_that_would_not_pass_without_and_a_higher_score_allows_no_more(
    frames: list[Frame],
    request_: OrderRequest,
    one: Decimal,
    two: Decimal,
    bound: Decimal | None,
    amount: Decimal | None,
    which: int,
) -> None:
    frame, limits = frames[which], scored(score_max=bound, score_notional_max=amount)
    low, high = sorted((one, two))
    without = passes(frame, request_, scored(), high)
    at_low, at_high = passes(frame, request_, limits, low), passes(frame, request_, limits, high)
    assert at_low <= without
    assert at_high <= at_low
    if bound is None and amount is None:
        assert at_high == without


# -- the archive -----------------------------------------------------------------------------------------------------


async def test_the_archive_gives_whole_candles_alone() -> None:
    def candle(hour: int) -> Candle:
        price = Decimal(100 + hour)
        return Candle(
            DATA_ID, HOUR_MS, hour * HOUR_MS, price, price + 2, price - 2, price + 1, Decimal(7), 3, closed=True
        )

    async with open_candles_in_memory() as tables:
        series = Series(Feed.REPLAY, DATA_ID, HOUR_MS)
        stored = [StoredCandle(candle(1), True, "trades"), StoredCandle(candle(2), False, "trades")]
        await tables.write(series, stored, [StoredSpan(HOUR_MS, 3 * HOUR_MS, "trades", 0)], now_ms=0)
        found = await ArchiveCloses(tables).bars(Feed.REPLAY, DATA_ID, HOUR_MS, 0, 10 * HOUR_MS)
    assert found == [PastBar(HOUR_MS, 102.0, 99.0, 103.0, 7.0)]
