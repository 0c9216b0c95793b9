"""The faulty venue: each fault does what it says, and the venue behind keeps the truth."""

from __future__ import annotations

import asyncio

import pytest

from tests.paper_support import BUY, SELL, D, terms
from trading.adapters.venues.paper.orders import Refusal
from trading.adapters.venues.paper.venue import PaperVenue
from trading.domain.errors import NonRetryable, OutcomeUnknown, Retryable
from trading.domain.identifiers import ClientOrderId, TradeId
from trading.domain.market_data import Feed, TradePrint
from trading.ports.venue import ExecutionVenue, PreparedOrder
from trading.ports.venue import VenueOrderState as State
from trading.testing.builders import INSTRUMENT_ID, build_book
from trading.testing.clock import ManualClock
from trading.testing.venue import Fault, FaultyVenue, Operation, build_paper_venue

A = ClientOrderId("a")


class Rig:
    """A faulty venue and the good one behind it."""

    def __init__(self, *, seed: int = 0, rates: dict[tuple[Operation, Fault], float] | None = None) -> None:
        self.clock = ManualClock()
        self.inner: PaperVenue = build_paper_venue(self.clock)
        self.inner.on_book(build_book())
        self.venue = FaultyVenue(self.inner, seed=seed, rates=rates)

    async def prepare(self, price: str = "60001", key: str = "a") -> PreparedOrder:
        deadline = self.clock.now_ms() + 1_000
        return await self.venue.prepare(terms(key, BUY, "0.3", price), deadline_ms=deadline)

    def trade(self, price: str, quantity: str) -> None:
        now = self.clock.now_ms() + 1
        self.inner.on_trade(
            TradePrint(INSTRUMENT_ID, TradeId("m"), D(price), D(quantity), SELL, 1, now, now, now, Feed.REPLAY)
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_without_a_fault_it_is_the_venue_behind(rig: Rig) -> None:
    port: ExecutionVenue = rig.venue
    report = await port.send(await rig.prepare())
    assert report == await port.query(A) == await rig.inner.query(A)
    assert await port.trades_since(0) == list(report.trades)
    assert (await port.balances(), await port.open_orders()) == (await rig.inner.balances(), [])
    assert await port.instruments() == await rig.inner.instruments()
    assert rig.venue.handed_over == ["a"]


async def test_a_lost_answer_means_the_venue_has_the_order(rig: Rig) -> None:
    rig.venue.script(Operation.SEND, Fault.LOSE_ANSWER)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.send(await rig.prepare())
    report = await rig.venue.query(A)
    assert report is not None
    assert report.state is State.FILLED


async def test_a_lost_request_means_it_does_not(rig: Rig) -> None:
    rig.venue.script(Operation.SEND, Fault.LOSE_REQUEST)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.send(await rig.prepare())
    assert await rig.venue.query(A) is None
    assert rig.venue.handed_over == ["a"]


async def test_a_delayed_request_is_not_found_until_it_arrives(rig: Rig) -> None:
    rig.venue.script(Operation.SEND, Fault.DELAY_REQUEST)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.send(await rig.prepare())
    assert await rig.venue.query(A) is None
    await rig.venue.release()
    assert await rig.venue.query(A) is not None


async def test_a_request_delayed_past_its_deadline_is_refused_by_the_venue_behind(rig: Rig) -> None:
    rig.venue.script(Operation.SEND, Fault.DELAY_REQUEST)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.send(await rig.prepare())
    rig.clock.advance(1_001)
    await rig.venue.release()
    report = await rig.venue.query(A)
    assert report is not None
    assert (report.state, report.reason) == (State.REJECTED, Refusal.DEADLINE_PASSED)


async def test_a_held_answer_comes_at_release_though_the_order_was_done_at_once(rig: Rig) -> None:
    rig.venue.script(Operation.SEND, Fault.HOLD_ANSWER)
    answer = asyncio.ensure_future(rig.venue.send(await rig.prepare()))
    assert await rig.venue.query(A) is not None
    assert not answer.done()
    await rig.venue.release()
    assert (await answer).state is State.FILLED


async def test_scripted_refusals_never_reach_the_venue_behind(rig: Rig) -> None:
    rig.venue.script(Operation.PREPARE, Fault.UNAVAILABLE, Fault.REFUSE, None)
    with pytest.raises(Retryable):
        await rig.prepare()
    with pytest.raises(NonRetryable):
        await rig.prepare()
    rig.venue.script(Operation.SEND, Fault.REFUSE)
    with pytest.raises(NonRetryable):
        await rig.venue.send(await rig.prepare())
    assert await rig.inner.query(A) is None


async def test_a_false_not_found_lasts_as_long_as_its_script(rig: Rig) -> None:
    await rig.venue.send(await rig.prepare())
    rig.venue.script(Operation.QUERY, Fault.NOT_FOUND, Fault.NOT_FOUND, Fault.UNAVAILABLE, Fault.LOSE_ANSWER)
    assert [await rig.venue.query(A) for _ in range(2)] == [None, None]
    with pytest.raises(Retryable):
        await rig.venue.query(A)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.query(A)
    assert await rig.venue.query(A) is not None


async def test_a_refused_cancel_leaves_the_order_and_a_lost_answer_does_not(rig: Rig) -> None:
    await rig.venue.send(await rig.prepare("59000"))
    rig.venue.script(Operation.CANCEL, Fault.REFUSE, Fault.LOSE_ANSWER)
    with pytest.raises(NonRetryable):
        await rig.venue.cancel(A)
    assert len(await rig.venue.open_orders()) == 1
    with pytest.raises(OutcomeUnknown):
        await rig.venue.cancel(A)
    assert await rig.venue.open_orders() == []


async def test_a_fill_can_become_known_after_the_cancel_it_raced_with(rig: Rig) -> None:
    rig.venue.script(Operation.REPORT, Fault.LOSE_REQUEST)
    reports = rig.venue.reports()
    await rig.venue.send(await rig.prepare("60000"))
    rig.trade("59999", "0.2")
    rig.venue.script(Operation.CANCEL, Fault.FILL_AFTER_CANCEL)
    answer = await rig.venue.cancel(A)
    assert (answer.state, answer.filled, answer.trades) == (State.CANCELED, D(0), ())
    await rig.venue.release()
    late = await anext(reports)
    assert (late.state, late.filled, len(late.trades)) == (State.CANCELED, D("0.2"), 1)
    await reports.aclose()


async def test_reports_are_doubled_lost_and_out_of_order_as_scripted(rig: Rig) -> None:
    reports = rig.venue.reports()
    rig.venue.script(Operation.REPORT, Fault.HOLD_ANSWER, Fault.DUPLICATE, Fault.LOSE_REQUEST, None)
    for key in "abcd":
        await rig.venue.send(await rig.prepare("60000", key))
    rig.trade("59999", "9")  # fills all four, in this order
    heard = [(await anext(reports)).client_order_id for _ in range(4)]
    assert heard == ["b", "b", "a", "d"]
    await reports.aclose()


async def test_a_reader_that_gives_up_waiting_loses_no_report(rig: Rig) -> None:
    reports = rig.venue.reports()
    await rig.venue.send(await rig.prepare("60000"))
    waiting = asyncio.ensure_future(anext(reports))
    await asyncio.sleep(0)
    waiting.cancel()
    rig.trade("59999", "9")
    assert (await anext(reports)).client_order_id == "a"
    await reports.aclose()


async def test_random_faults_repeat_under_their_seed() -> None:
    rates = {(Operation.SEND, Fault.LOSE_ANSWER): 0.3, (Operation.SEND, Fault.LOSE_REQUEST): 0.3}

    async def outcomes(seed: int) -> str:
        rig, seen = Rig(seed=seed, rates=rates), ""
        for n in range(40):
            try:
                await rig.venue.send(await rig.prepare("59000", f"c{n}"))
            except OutcomeUnknown:
                seen += "?"
            except NonRetryable:
                seen += "-"
            else:
                seen += "+"
        return seen

    first = await outcomes(1)
    assert first == await outcomes(1)
    assert first != await outcomes(2)
    assert 0 < first.count("?") < 40
