"""The paper venue through its port: hand-over, answers, latency, reports, restarts."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.paper_support import BTC, BUY, IOC, SELL, USDT, D, terms
from trading.adapters.clock import SystemClock
from trading.adapters.venues.paper.journal import read_journal
from trading.adapters.venues.paper.latency import LatencySettings, SeededLatency
from trading.adapters.venues.paper.orders import Refusal
from trading.adapters.venues.paper.venue import PaperVenue
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import ConfigurationError, NonRetryable, OutcomeUnknown, Retryable
from trading.domain.identifiers import ClientOrderId, TradeId, Venue
from trading.domain.market_data import Feed, Side, TradePrint
from trading.ports.venue import ExecutionVenue, VenueQuote, VenueReport
from trading.ports.venue import VenueOrderState as State
from trading.testing.builders import INSTRUMENT_ID, build_book
from trading.testing.clock import ManualClock
from trading.testing.venue import build_paper_venue

FAR = 10**14


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "paper.journal"


@pytest.fixture
def venue(clock: ManualClock) -> PaperVenue:
    venue = build_paper_venue(clock)
    venue.on_book(build_book())
    return venue


async def send(venue: ExecutionVenue, order: ApprovedOrder, *, deadline_ms: int = FAR) -> VenueReport:
    return await venue.send(await venue.prepare(order, deadline_ms=deadline_ms))


def public_print(clock: ManualClock, aggressor: Side, price: str, quantity: str) -> TradePrint:
    now = clock.now_ms() + 1
    return TradePrint(INSTRUMENT_ID, TradeId("m"), D(price), D(quantity), aggressor, 1, now, now, now, Feed.REPLAY)


async def test_send_hands_the_order_over_before_it_returns_even_if_nobody_waits(venue: PaperVenue) -> None:
    prepared = await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=FAR)
    answer = asyncio.ensure_future(venue.send(prepared))
    answer.cancel()
    report = await venue.query(ClientOrderId("a"))
    assert report is not None
    assert report.state is State.FILLED


async def test_a_quote_is_what_an_order_would_meet_and_as_old_as_the_last_book(clock: ManualClock) -> None:
    venue = build_paper_venue(clock)
    assert await venue.quote(INSTRUMENT_ID) is None
    venue.on_book(build_book())
    seen_ms = clock.now_ms()
    clock.advance(5_000)
    assert await venue.quote(INSTRUMENT_ID) == VenueQuote(D("60000"), D("60001"), seen_ms)
    await send(venue, terms("a", BUY, "1", "60001", tif=IOC))
    assert await venue.quote(INSTRUMENT_ID) == VenueQuote(D("60000"), D("60002"), seen_ms)
    await venue.aclose()
    with pytest.raises(OutcomeUnknown):
        await venue.quote(INSTRUMENT_ID)


async def test_an_answer_carries_state_fills_and_the_venues_time(venue: PaperVenue, clock: ManualClock) -> None:
    clock.advance(250)
    report = await send(venue, terms("a", BUY, "1.5", "60002", tif=IOC))
    assert (report.state, report.filled, len(report.trades)) == (State.FILLED, D("1.5"), 2)
    assert report.venue_ts_ms == clock.now_ms() == report.trades[0].venue_ts_ms
    assert await venue.trades_since(clock.now_ms()) == list(report.trades)
    assert await venue.trades_since(clock.now_ms() + 1) == []
    assert (await venue.balances())[BTC].total == D("2.5")


async def test_the_venues_time_does_not_go_back_when_the_machines_does() -> None:
    class Adjusted(ManualClock):
        back = 0

        def now_ms(self) -> int:
            return super().now_ms() - self.back

    clock = Adjusted()
    venue = build_paper_venue(clock)
    venue.on_book(build_book())
    first = await send(venue, terms("a", BUY, "0.1", "60001"))
    clock.back = 5_000
    second = await send(venue, terms("b", BUY, "0.1", "60001"))
    assert second.venue_ts_ms == first.venue_ts_ms
    assert len(await venue.trades_since(first.venue_ts_ms)) == 2


async def test_a_refusal_is_raised_with_its_code_and_can_be_found_by_query(venue: PaperVenue) -> None:
    with pytest.raises(NonRetryable) as refused:
        await send(venue, terms("a", BUY, "1", "60001", post_only=True))
    assert refused.value.code == Refusal.POST_ONLY_WOULD_TAKE
    report = await venue.query(ClientOrderId("a"))
    assert report is not None
    assert (report.state, report.reason) == (State.REJECTED, Refusal.POST_ONLY_WOULD_TAKE)


async def test_the_same_id_again_is_answered_with_the_first_order_or_its_refusal(venue: PaperVenue) -> None:
    first = await send(venue, terms("a", BUY, "0.5", "60001"))
    assert await send(venue, terms("a", SELL, "1", "60000")) == first
    for _ in range(2):
        with pytest.raises(NonRetryable) as refused:
            await send(venue, terms("b", BUY, "1", "0.001"))
        assert refused.value.code == Refusal.PRICE_TICK
    assert len(await venue.trades_since(0)) == 1


async def test_fifty_copies_sent_at_once_make_one_order(venue: PaperVenue) -> None:
    prepared = await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=FAR)
    reports = await asyncio.gather(*(venue.send(prepared) for _ in range(50)))
    assert len({report.venue_order_id for report in reports}) == 1
    assert (await venue.balances())[BTC].total == D("1.5")


async def test_an_unknown_order_is_not_found_by_query_and_refused_by_cancel(venue: PaperVenue) -> None:
    assert await venue.query(ClientOrderId("ghost")) is None
    with pytest.raises(NonRetryable) as refused:
        await venue.cancel(ClientOrderId("ghost"))
    assert refused.value.code == Refusal.ORDER_NOT_FOUND


async def test_an_order_for_another_venue_is_refused_before_it_is_sent(venue: PaperVenue) -> None:
    with pytest.raises(NonRetryable):
        await venue.prepare(replace(terms("a", BUY, "1"), venue=Venue("binance")), deadline_ms=FAR)


async def test_open_orders_lists_stops_too_and_cancel_all_leaves_none(venue: PaperVenue) -> None:
    await send(venue, terms("limit", BUY, "1", "59000"))
    await send(venue, terms("stop", SELL, "1", stop="59000"))
    assert [each.client_order_id for each in await venue.open_orders()] == ["limit", "stop"]
    cancelled = await venue.cancel_all()
    assert {each.state for each in cancelled} == {State.CANCELED}
    assert await venue.open_orders() == []
    assert {balance.locked for balance in (await venue.balances()).values()} == {D(0)}


# Reports -------------------------------------------------------------------------------------------------------


async def test_a_fill_that_nobody_asked_for_is_reported_and_an_answered_one_is_not(
    venue: PaperVenue, clock: ManualClock
) -> None:
    reports = venue.reports()
    await send(venue, terms("taken", BUY, "0.5", "60001"))
    await send(venue, terms("rests", BUY, "1", "60000"))
    assert reports.backlog == 0
    venue.on_trade(public_print(clock, SELL, "59999", "0.4"))
    report = await anext(reports)
    assert (report.client_order_id, report.state, report.filled) == ("rests", State.OPEN, D("0.4"))


async def test_unread_reports_are_merged_per_order_and_lose_no_trade(venue: PaperVenue, clock: ManualClock) -> None:
    reports = venue.reports()
    await send(venue, terms("a", BUY, "1", "60000"))
    for _ in range(3):
        venue.on_trade(public_print(clock, SELL, "59999", "0.25"))
    assert reports.backlog == 1
    first = await anext(reports)
    venue.on_trade(public_print(clock, SELL, "59999", "0.25"))
    second = await anext(reports)
    assert ([str(t.quantity) for t in first.trades], len(second.trades)) == (["0.25"] * 3, 1)
    assert (first.state, second.state, second.filled) == (State.OPEN, State.FILLED, D(1))
    assert set(first.trades) | set(second.trades) == set(await venue.trades_since(0))


async def test_every_reader_hears_everything_and_ends_with_the_venue(venue: PaperVenue, clock: ManualClock) -> None:
    readers = [venue.reports(), venue.reports()]
    await send(venue, terms("a", SELL, "1", stop="59000"))
    venue.on_trade(public_print(clock, SELL, "59000", "1"))
    await venue.aclose()
    heard = [[report async for report in reader] for reader in readers]
    assert [[each.triggered for each in one] for one in heard] == [[True], [True]]


async def test_a_full_backlog_takes_no_new_order_until_it_is_read(clock: ManualClock) -> None:
    venue = build_paper_venue(clock, report_backlog_max=1)
    venue.on_book(build_book())
    reports = venue.reports()
    await send(venue, terms("a", BUY, "0.1", "60000"))
    venue.on_trade(public_print(clock, SELL, "59999", "1"))
    with pytest.raises(Retryable) as refused:
        await send(venue, terms("b", BUY, "0.1", "60000"))
    assert refused.value.code == "REPORTS_BACKLOG"
    await anext(reports)
    assert (await send(venue, terms("b", BUY, "0.1", "60000"))).state is State.OPEN


async def test_a_waiting_reader_is_woken_when_it_is_closed(venue: PaperVenue) -> None:
    reports = venue.reports()
    waiting = asyncio.ensure_future(anext(reports, None))
    await asyncio.sleep(0)
    await reports.aclose()
    assert await waiting is None


# Latency -------------------------------------------------------------------------------------------------------


def slow_venue(clock: ManualClock, seed: int = 1) -> PaperVenue:
    venue = build_paper_venue(clock, latency=SeededLatency(LatencySettings(median_ms=20, tail_probability=0.05), seed))
    venue.on_book(build_book())
    return venue


async def arrive(venue: PaperVenue, clock: ManualClock, answer: asyncio.Future[VenueReport]) -> int:
    """Let time pass a millisecond at a time until there is an answer; return how long that took."""
    waited = 0
    while not answer.done():
        clock.advance(1)
        waited += 1
        venue.pump()
    return waited


async def test_a_request_takes_time_there_and_back_and_is_not_found_before_it_arrives(clock: ManualClock) -> None:
    venue, sent_ms = slow_venue(clock), clock.now_ms()
    prepared = await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=FAR)
    answer = asyncio.ensure_future(venue.send(prepared))
    assert not venue.exchange.orders
    waited = await arrive(venue, clock, answer)
    report = answer.result()
    assert sent_ms < report.venue_ts_ms < sent_ms + waited
    await venue.aclose()


async def test_a_request_that_travels_past_its_deadline_is_refused_by_the_venue(clock: ManualClock) -> None:
    venue = slow_venue(clock)
    prepared = await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=clock.now_ms() + 2)
    answer = asyncio.ensure_future(venue.send(prepared))
    await arrive(venue, clock, answer)
    refusal = answer.exception()
    assert isinstance(refusal, NonRetryable)
    assert refusal.code == Refusal.DEADLINE_PASSED
    assert venue.exchange.trades == []
    await venue.aclose()


async def test_the_running_loop_lets_messages_arrive_by_itself() -> None:
    quick = SeededLatency(LatencySettings(median_ms=0.2, tail_probability=0, max_ms=1), seed=1)
    venue = build_paper_venue(SystemClock(), latency=quick)
    venue.on_book(build_book())
    assert (await send(venue, terms("a", BUY, "0.5", "60001"))).state is State.FILLED
    assert await venue.query(ClientOrderId("a")) is not None
    await venue.aclose()


async def test_a_report_overtaken_by_a_later_one_takes_no_trade_with_it(venue: PaperVenue, clock: ManualClock) -> None:
    await send(venue, terms("a", BUY, "1", "60000"))
    for _ in range(2):
        venue.on_trade(public_print(clock, SELL, "59999", "0.25"))
    reports = venue.reports()
    reports.push(ClientOrderId("a"), 1)  # the second fill arrives
    reports.push(ClientOrderId("a"), 0)  # before the first
    assert list((await anext(reports)).trades) == await venue.trades_since(0)


async def test_latency_repeats_under_its_seed(clock: ManualClock) -> None:
    async def timings(seed: int) -> list[int]:
        venue = slow_venue(own := ManualClock(), seed)
        waits: list[int] = []
        for n in range(20):
            prepared = await venue.prepare(terms(f"c{n}", BUY, "0.001", "59000"), deadline_ms=FAR)
            waits.append(await arrive(venue, own, asyncio.ensure_future(venue.send(prepared))))
        await venue.aclose()
        return waits

    first = await timings(7)
    assert first == await timings(7)
    assert first != await timings(8)
    assert 20 < sorted(first)[10] < 80


def test_latency_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        LatencySettings(median_ms=0)


def test_latency_has_a_bounded_tail() -> None:
    latency = SeededLatency(LatencySettings(median_ms=10, tail_probability=0.5, tail_factor=1_000, max_ms=50), 1)
    legs = [latency.leg_ns() for _ in range(200)]
    assert max(legs) == 50_000_000
    assert min(legs) < 20_000_000


# Memory --------------------------------------------------------------------------------------------------------


async def test_after_a_restart_orders_rest_again_and_nothing_is_forgotten(clock: ManualClock, journal: Path) -> None:
    venue = build_paper_venue(clock, journal=journal)
    venue.on_book(build_book())
    filled = await send(venue, terms("filled", BUY, "0.5", "60001"))
    resting = await send(venue, terms("resting", BUY, "1", "60001"))
    with pytest.raises(NonRetryable):
        await send(venue, terms("refused", BUY, "1", "0.001"))
    stop = await send(venue, terms("stop", SELL, "1", stop="59000"))
    balances, trades = await venue.balances(), await venue.trades_since(0)
    await venue.aclose()

    again = build_paper_venue(clock, journal=journal)
    assert await again.balances() == balances
    assert await again.trades_since(0) == trades
    assert await again.open_orders() == [resting, stop]
    assert await again.query(ClientOrderId("filled")) == filled
    with pytest.raises(NonRetryable) as refused:
        await send(again, terms("refused", BUY, "1", "60000"))
    assert refused.value.code == Refusal.PRICE_TICK
    again.on_book(build_book(bids=[("58000", "9")], asks=[("58001", "9")], sequence=2))
    assert (await again.open_orders()) == []
    fresh = await again.trades_since(0)
    assert len({trade.trade_id for trade in fresh}) == len(fresh) == 4
    assert again.exchange.accounts.imbalance() == {}
    await again.aclose()


async def test_deposits_count_once_and_a_journal_of_another_account_is_refused(
    clock: ManualClock, journal: Path
) -> None:
    for _ in range(3):
        venue = build_paper_venue(clock, journal=journal, deposits={"USDT": "500"})
        assert (await venue.balances())[USDT].total == 500
        await venue.aclose()
    with pytest.raises(ConfigurationError) as refused:
        build_paper_venue(clock, journal=journal, account_id="somebody-else")
    assert refused.value.code == "JOURNAL_ACCOUNT"


async def test_an_open_order_in_an_instrument_that_is_gone_refuses_to_start(clock: ManualClock, journal: Path) -> None:
    venue = build_paper_venue(clock, journal=journal)
    venue.on_book(build_book())
    await send(venue, terms("a", BUY, "1", "59000"))
    await venue.aclose()
    with pytest.raises(ConfigurationError) as refused:
        build_paper_venue(clock, journal=journal, instruments=[])
    assert refused.value.code == "JOURNAL_INSTRUMENT"
    reopened = build_paper_venue(clock, journal=journal)  # the refusal gave the file up
    await reopened.aclose()


async def test_requests_on_their_way_when_the_venue_stops_end_as_unknown(clock: ManualClock) -> None:
    venue = slow_venue(clock)
    prepared = await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=FAR)
    answer = venue.send(prepared)
    await venue.aclose()
    with pytest.raises(OutcomeUnknown):
        await answer
    with pytest.raises(OutcomeUnknown):
        await venue.query(ClientOrderId("a"))
    with pytest.raises(Retryable):
        await venue.prepare(terms("a", BUY, "0.5", "60001"), deadline_ms=FAR)


async def test_when_the_journal_cannot_be_written_nothing_is_answered_and_the_venue_stops(
    clock: ManualClock, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = build_paper_venue(clock, journal=journal)
    venue.on_book(build_book())
    lines = read_journal(journal).lines

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OutcomeUnknown):
            await send(venue, terms("a", BUY, "0.5", "60001"))
    with pytest.raises(OutcomeUnknown):
        await venue.query(ClientOrderId("a"))
    assert read_journal(journal).lines == lines
    await venue.aclose()
