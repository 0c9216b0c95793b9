"""What the venue says becomes events and rows; cancels; reconciliation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from mcp_servers.execution.gate import GateCode
from tests.execution_support import BTC_USDT, INSTRUMENT_ID, Desk
from trading.adapters import codec
from trading.domain.accounts import AccountBook
from trading.domain.approvals import Effect, TradingState
from trading.domain.errors import GateRefused, LedgerUnavailable, NonRetryable, OutcomeUnknown
from trading.domain.events import (
    AccountFunded,
    AlarmRaised,
    OrderFilled,
    OrderTriggered,
    ReconciliationCompleted,
    ServiceStarted,
)
from trading.domain.fills import Liquidity
from trading.domain.identifiers import ClientOrderId, Currency, TradeId, VenueOrderId
from trading.domain.market_data import Side
from trading.domain.orders import Order, OrderStatus
from trading.domain.proposals import OrderType, TimeInForce
from trading.ports.ledger import Unit, Upsert
from trading.ports.venue import VenueOrderState, VenueReport, VenueTrade
from trading.testing.builders import build_approved_order, build_book
from trading.testing.venue import Fault, Operation

D = Decimal


def trade(order: Order, quantity: str, *, trade_id: str = "late-1", price: str = "60001") -> VenueTrade:
    """Return an execution of an order as the venue would report it."""
    return VenueTrade(
        trade_id=TradeId(trade_id),
        client_order_id=order.terms.client_order_id,
        venue_order_id=order.venue_order_id or VenueOrderId("v-1"),
        instrument_id=INSTRUMENT_ID,
        side=order.terms.side,
        quantity=D(quantity),
        price=D(price),
        fee=D("0.1"),
        fee_currency=Currency("USDT"),
        liquidity=Liquidity.MAKER,
        venue_ts_ms=1_750_000_000_000,
    )


def report(order: Order, state: VenueOrderState, *trades: VenueTrade, filled: str | None = None) -> VenueReport:
    """Return what a venue would say of an order."""
    quantity = sum((each.quantity for each in trades), D(0)) if filled is None else D(filled)
    return VenueReport(
        client_order_id=order.terms.client_order_id,
        venue_order_id=order.venue_order_id or VenueOrderId("v-1"),
        instrument_id=INSTRUMENT_ID,
        state=state,
        filled=quantity,
        trades=trades,
        venue_ts_ms=1_750_000_000_000,
    )


async def heard(desk: Desk, said: VenueReport) -> None:
    await desk.service.hear_venue(said)
    await desk.service.lifecycle.flush()


def alarms(desk: Desk) -> list[str]:
    return [each.code for each in desk.events(AlarmRaised)]


# --- the life of an order --------------------------------------------------------------------------------------------


async def test_a_report_that_comes_twice_counts_once() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    said = report(order, VenueOrderState.OPEN, trade(order, "0.004"))
    await heard(desk, said)
    await heard(desk, said)
    assert len(desk.events(OrderFilled)) == 1
    now = await desk.stored(order)
    assert (now.status, now.filled) == (OrderStatus.PARTIALLY_FILLED, D("0.004"))


async def test_a_fill_after_the_cancel_counts_and_alarms() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.faulty.script(Operation.CANCEL, Fault.FILL_AFTER_CANCEL)
    assert (await desk.service.cancel(order.order_id, by="test")).status is OrderStatus.CANCELED
    await heard(desk, report(order, VenueOrderState.CANCELED, trade(order, "0.004")))
    now = await desk.stored(order)
    assert (now.status, now.filled) == (OrderStatus.CANCELED, D("0.004"))
    assert alarms(desk) == ["FILL_AFTER_END"]
    assert desk.service.lifecycle.book.positions[INSTRUMENT_ID].quantity == D("0.004")


async def test_a_late_fill_finds_an_order_that_left_memory() -> None:
    desk = await Desk(terminal_kept=1).start()
    order = await desk.resting()
    await desk.service.cancel(order.order_id, by="test")
    await desk.bought("0.01")
    await desk.bought("0.01")
    assert desk.service.lifecycle.book.order(order.order_id) is None
    await heard(desk, report(order, VenueOrderState.CANCELED, trade(order, "0.01")))
    assert (await desk.stored(order)).status is OrderStatus.FILLED
    assert alarms(desk) == ["FILL_AFTER_END"]


async def test_an_overfill_is_recorded_and_alarms() -> None:
    desk = await Desk().start()
    order = await desk.bought("0.01")
    await heard(desk, report(order, VenueOrderState.FILLED, trade(order, "0.005"), filled="0.015"))
    assert (await desk.stored(order)).filled == D("0.015")
    assert alarms(desk) == ["OVERFILL"]


async def test_an_order_is_not_over_while_fills_are_missing() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    await heard(desk, report(order, VenueOrderState.CANCELED, filled="0.004"))
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED
    assert desk.service.lifecycle.gaps == {order.terms.client_order_id}
    await heard(desk, report(order, VenueOrderState.CANCELED, trade(order, "0.004")))
    assert (await desk.stored(order)).status is OrderStatus.CANCELED
    assert desk.service.lifecycle.gaps == set()


async def test_a_trade_before_the_answer_brings_the_venue_order_id() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.LOSE_REQUEST)
    order = await desk.order(await desk.issue())
    await heard(desk, report(order, VenueOrderState.FILLED, trade(order, "0.01")))
    now = await desk.stored(order)
    assert (now.status, now.venue_order_id) == (OrderStatus.FILLED, "v-1")


async def test_a_stop_is_triggered_once() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    order = await desk.order(
        await desk.exit(order_type=OrderType.STOP_LIMIT, stop_price="59950", limit_price="59900", quantity="0.1")
    )
    assert order.status is OrderStatus.ACCEPTED
    reports = desk.paper.reports()
    desk.show(build_book([("59940", "1")], [("59941", "1")], now_ms=desk.clock.now_ms(), sequence=5))
    await heard(desk, await anext(reports))
    assert len(desk.events(OrderTriggered)) == 1
    assert (await desk.stored(order)).status is OrderStatus.FILLED
    await reports.aclose()


async def test_a_venue_that_has_what_we_never_sent_alarms_and_changes_nothing() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    desk.service.sending.close()
    order = await desk.order(approval_id)
    await heard(desk, report(order, VenueOrderState.FILLED, trade(order, "0.01")))
    assert (await desk.stored(order)).status is OrderStatus.NOT_SENT
    assert alarms(desk) == ["VENUE_CONTRADICTS"]


async def test_a_foreign_report_alarms() -> None:
    desk = await Desk().start()
    order = await desk.bought()
    stranger = replace(order, terms=replace(order.terms, client_order_id=ClientOrderId("f" * 32)))
    await heard(desk, report(stranger, VenueOrderState.OPEN))
    assert alarms(desk) == ["FOREIGN_ORDER"]


async def test_memory_rows_and_the_fold_of_events_agree() -> None:
    desk = await Desk().start()
    await desk.bought("0.3")
    await desk.resting()
    await desk.order(await desk.exit("0.1", limit_price="60000", time_in_force=TimeInForce.IOC))
    fold = AccountBook(desk.rules.account_id)
    for event in desk.ledger.events:
        fold.apply(event.payload, now_ms=event.timestamp_ms)
    book = desk.service.lifecycle.book
    assert (book.totals, book.positions, book.open_orders) == (fold.totals, fold.positions, fold.open_orders)
    rows = {str(row["currency"]): row for row in await desk.ledger.rows("balances")}
    locked = fold.locked()
    for currency, total in fold.totals.items():
        assert D(str(rows[currency]["total"])) == total
        assert D(str(rows[currency]["locked"])) == locked.get(currency, D(0))
    before = book
    await desk.restart()
    after = desk.service.lifecycle.book
    assert (after.totals, after.positions, after.open_orders) == (before.totals, before.positions, before.open_orders)


async def test_money_comes_in_once() -> None:
    desk = await Desk().start()
    await desk.restart()
    assert sorted(each.currency for each in desk.events(AccountFunded)) == ["BTC", "USDT"]
    assert [each.clean for each in desk.events(ServiceStarted)] == [True, False]
    await desk.service.stop("test")
    await desk.restart()
    assert [each.clean for each in desk.events(ServiceStarted)] == [True, False, True]


# --- cancels ---------------------------------------------------------------------------------------------------------


async def test_a_cancel_needs_no_approval() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    assert (await desk.service.cancel(order.order_id, by="ann")).status is OrderStatus.CANCELED
    assert desk.of_order(order)[-2:] == ["order.cancel_requested", "order.canceled"]
    assert (await desk.service.cancel(order.order_id, by="ann")).status is OrderStatus.CANCELED


async def test_an_exit_of_an_open_position_is_not_cancelled_without_an_approval() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    order = await desk.order(await desk.exit("0.3"))
    with pytest.raises(GateRefused) as refused:
        await desk.service.cancel(order.order_id, by="ann")
    assert refused.value.code == "CANCEL_NEEDS_APPROVAL"
    entry = await desk.resting()
    outcome = await desk.service.cancel_all(by="ann")
    assert [each.order_id for each in outcome.canceled] == [entry.order_id]
    assert [each.order.order_id for each in outcome.kept] == [order.order_id]
    assert outcome.clean


async def test_an_exit_without_a_position_is_cancelled_like_any_order() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    order = await desk.order(await desk.exit("0.3"))
    # Sell everything elsewhere: the position is flat and the order protects nothing.
    await heard(desk, report(order, VenueOrderState.OPEN, trade(order, "0.2", trade_id="x", price="60200")))
    position = desk.service.lifecycle.book.positions[INSTRUMENT_ID]
    desk.service.lifecycle.book.positions[INSTRUMENT_ID] = replace(position, quantity=D(0), cost=D(0))
    desk.faulty.script(Operation.CANCEL, None)
    assert (await desk.service.cancel(order.order_id, by="ann")).is_terminal


async def test_a_lost_cancel_is_looked_up_and_may_be_repeated() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.faulty.script(Operation.CANCEL, Fault.LOSE_REQUEST)
    with pytest.raises(OutcomeUnknown):
        await desk.service.cancel(order.order_id, by="ann")
    assert (await desk.stored(order)).status is OrderStatus.PENDING_CANCEL
    await desk.service.reconcile()
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED
    assert (await desk.service.cancel(order.order_id, by="ann")).status is OrderStatus.CANCELED


async def test_a_cancel_whose_answer_is_lost_is_found_out() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.faulty.script(Operation.CANCEL, Fault.LOSE_ANSWER)
    with pytest.raises(OutcomeUnknown):
        await desk.service.cancel(order.order_id, by="ann")
    await desk.service.reconcile()
    assert (await desk.stored(order)).status is OrderStatus.CANCELED


async def test_a_refused_cancel_leaves_the_order_working() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.faulty.script(Operation.CANCEL, Fault.REFUSE)
    with pytest.raises(NonRetryable):
        await desk.service.cancel(order.order_id, by="ann")
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED


async def test_an_unknown_order_is_looked_up_before_it_is_cancelled() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.LOSE_ANSWER)
    order = await desk.order(await desk.issue(limit_price="59800", time_in_force=TimeInForce.GTC))
    assert order.status is OrderStatus.UNKNOWN
    assert (await desk.service.cancel(order.order_id, by="ann")).status is OrderStatus.CANCELED


async def test_an_order_that_cannot_be_found_is_not_called_cancelled() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.LOSE_REQUEST)
    order = await desk.order(await desk.issue())
    with pytest.raises(OutcomeUnknown) as unknown:
        await desk.service.cancel(order.order_id, by="ann")
    assert unknown.value.code == "ORDER_UNRESOLVED"
    outcome = await desk.service.cancel_all(by="ann")
    assert [each.order.order_id for each in outcome.remaining] == [order.order_id]


async def test_cancel_all_repeats_until_clean_and_says_what_remains() -> None:
    desk = await Desk().start()
    orders = [await desk.resting() for _ in range(3)]
    desk.faulty.script(Operation.CANCEL, Fault.LOSE_REQUEST, Fault.REFUSE, Fault.LOSE_ANSWER)
    outcome = await desk.service.cancel_all(by="ann", symbol=BTC_USDT)
    assert outcome.clean, outcome
    assert {each.order_id for each in outcome.canceled} == {order.order_id for order in orders}
    stuck = await desk.resting()
    desk.faulty.script(Operation.CANCEL, *[Fault.LOSE_REQUEST] * 20)
    outcome = await desk.service.cancel_all(by="ann")
    assert [each.order.order_id for each in outcome.remaining] == [stuck.order_id]


async def test_concurrent_cancels_are_one_request() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    outcomes = await asyncio.gather(*(desk.service.cancel(order.order_id, by="ann") for _ in range(10)))
    assert {each.status for each in outcomes} == {OrderStatus.CANCELED}
    assert desk.of_order(order).count("order.cancel_requested") == 1


async def test_a_halt_cancels_what_adds_risk_and_keeps_what_reduces_it() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    entry = await desk.resting()
    exit_ = await desk.order(await desk.exit("0.2"))
    take_profit = await desk.order(await desk.exit("0.2", reduce_only=False))
    await desk.trip(TradingState.HALTED)
    assert (await desk.stored(entry)).status is OrderStatus.CANCELED
    assert (await desk.stored(exit_)).status is OrderStatus.ACCEPTED
    assert (await desk.stored(take_profit)).status is OrderStatus.ACCEPTED


async def test_an_order_found_alive_while_halted_is_cancelled() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.DELAY_REQUEST)
    order = await desk.order(await desk.issue(limit_price="59800", time_in_force=TimeInForce.GTC))
    await desk.trip(TradingState.HALTED)
    assert (await desk.stored(order)).status is OrderStatus.UNKNOWN
    await desk.faulty.release()
    await desk.beat()
    assert (await desk.stored(order)).status is OrderStatus.CANCELED


# --- reconciliation --------------------------------------------------------------------------------------------------


async def _lost(desk: Desk) -> Order:
    desk.faulty.script(Operation.SEND, Fault.LOSE_REQUEST)
    order = await desk.order(await desk.issue(ttl_ms=1_000))
    assert order.status is OrderStatus.UNKNOWN
    return order


async def _rounds(desk: Desk, order: Order, count: int, *, every_ms: int = 500) -> OrderStatus:
    for _ in range(count):
        await desk.tick(every_ms)
        await desk.service.reconcile()
    return (await desk.stored(order)).status


async def test_absent_needs_three_spaced_not_founds_after_the_send_window() -> None:
    desk = await Desk().start()
    order = await _lost(desk)
    assert await _rounds(desk, order, 4, every_ms=300) is OrderStatus.UNKNOWN  # up to 1,200 ms: the window is 1,250
    assert await _rounds(desk, order, 1, every_ms=50) is OrderStatus.UNKNOWN  # exactly 1,250: not over yet
    assert await _rounds(desk, order, 5, every_ms=100) is OrderStatus.UNKNOWN  # one counts, the others come too soon
    assert await _rounds(desk, order, 1, every_ms=500) is OrderStatus.UNKNOWN  # two
    assert await _rounds(desk, order, 1, every_ms=500) is OrderStatus.ABSENT  # three
    assert len(desk.faulty.handed_over) == 1


async def test_an_order_that_is_heard_of_while_it_is_looked_up_is_not_called_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = await Desk().start()
    order = await _lost(desk)
    await desk.tick(2_000)
    assert await _rounds(desk, order, 2) is OrderStatus.UNKNOWN

    async def crossed(_: ClientOrderId) -> None:
        await heard(desk, report(order, VenueOrderState.OPEN))

    monkeypatch.setattr(desk.faulty, "query", crossed)
    assert await _rounds(desk, order, 1) is OrderStatus.ACCEPTED


async def test_an_order_that_was_answered_is_not_lost_by_an_older_doubt() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    stale = replace(order, status=OrderStatus.SUBMITTED)
    assert desk.service.lifecycle.lose(stale, "the venue did not answer a query").status is OrderStatus.ACCEPTED
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED


async def test_a_commit_that_dies_of_anything_is_never_taken_for_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = await Desk().start()
    order = await desk.resting()
    real = desk.ledger.commit

    async def die(_: Unit) -> None:
        monkeypatch.setattr(desk.ledger, "commit", real)
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(desk.ledger, "commit", die)
    desk.service.lifecycle.alarm("TEST", "must reach the ledger", subject=order.order_id)
    with pytest.raises(RuntimeError):
        await desk.service.lifecycle.flush()
    with pytest.raises(LedgerUnavailable):
        await desk.service.lifecycle.flush()
    assert desk.service.lifecycle.broken.is_set()


async def test_a_failed_query_is_no_not_found() -> None:
    desk = await Desk().start()
    order = await _lost(desk)
    await desk.tick(2_000)
    desk.faulty.script(Operation.QUERY, *[Fault.UNAVAILABLE, Fault.LOSE_ANSWER] * 3)
    assert await _rounds(desk, order, 6) is OrderStatus.UNKNOWN
    assert await _rounds(desk, order, 2) is OrderStatus.UNKNOWN
    assert await _rounds(desk, order, 1) is OrderStatus.ABSENT


async def test_silence_about_trades_or_open_orders_is_no_evidence() -> None:
    desk = await Desk().start()
    order = await _lost(desk)
    await desk.tick(2_000)
    desk.faulty.script(Operation.READ, *[Fault.UNAVAILABLE, None] * 6)
    assert await _rounds(desk, order, 6) is OrderStatus.UNKNOWN
    assert desk.service.reconciler.last is not None
    assert not desk.service.reconciler.last.complete


async def test_an_order_that_was_under_way_after_all_is_found_and_alarms_if_called_absent() -> None:
    desk = await Desk().start()
    desk.faulty.script(Operation.SEND, Fault.DELAY_REQUEST)
    order = await desk.order(await desk.issue(limit_price="59800", time_in_force=TimeInForce.GTC))
    order = replace(order, status=OrderStatus.ABSENT)
    desk.service.lifecycle.restore(order)
    await heard(desk, report(order, VenueOrderState.OPEN))
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED
    assert alarms(desk) == ["FOUND_AFTER_ABSENT"]


async def test_without_the_signed_expiry_the_longest_life_counts() -> None:
    desk = await Desk().start()
    order = await _lost(desk)
    row = dict((await desk.risk.rows("approvals", {"approval_id": order.approval_id}))[0])
    await desk.risk.commit(Unit(writes=(Upsert("approvals", {**row, "envelope": "forged"}),)))
    await desk.tick(60_000)
    assert await _rounds(desk, order, 5) is OrderStatus.UNKNOWN
    await desk.tick(60_000)
    assert await _rounds(desk, order, 4) is OrderStatus.ABSENT


async def test_fills_missed_while_away_are_taken_from_the_venue() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.show(build_book([("59790", "1")], [("59795", "1")], now_ms=desk.clock.now_ms(), sequence=5))
    await desk.restart()
    now = await desk.stored(order)
    assert (now.status, now.filled) == (OrderStatus.FILLED, D("0.01"))
    last = desk.service.reconciler.last
    assert last is not None
    assert last.clean


async def test_a_foreign_order_and_a_foreign_fill_restrict_the_symbol_and_are_not_booked() -> None:
    desk = await Desk().start()
    foreign = build_approved_order(approval_id="somebody-else", quantity="0.2")
    await desk.paper.send(await desk.paper.prepare(foreign, deadline_ms=desk.clock.now_ms() + 1_000))
    resting = build_approved_order(
        approval_id="somebody-elses", limit_price="59800", time_in_force=TimeInForce.GTC, quantity="0.2"
    )
    await desk.paper.send(await desk.paper.prepare(resting, deadline_ms=desk.clock.now_ms() + 1_000))
    totals = dict(desk.service.lifecycle.book.totals)
    outcome = await desk.service.reconcile()
    assert {text.split()[0] for text in outcome.differences} == {"FOREIGN_TRADE", "FOREIGN_ORDER", "BALANCE"}
    assert desk.service.lifecycle.book.totals == totals
    assert desk.events(OrderFilled) == []
    assert await desk.refusal(await desk.issue()) == GateCode.UNRECONCILED
    assert any(reason.startswith("DIFFERENCES") for reason in desk.service.inquiries.unsafe_reasons())
    assert alarms(desk).count("RECONCILIATION_DIFFERENCE") == len(outcome.differences)
    await desk.service.reconcile()
    assert alarms(desk).count("RECONCILIATION_DIFFERENCE") == len(outcome.differences)  # said once
    foreign_all = await desk.service.cancel_all(by="ann")
    assert foreign_all.foreign == (resting.client_order_id,)


async def test_a_restricted_account_may_still_reduce() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    foreign = build_approved_order(approval_id="somebody-else", quantity="0.2")
    await desk.paper.send(await desk.paper.prepare(foreign, deadline_ms=desk.clock.now_ms() + 1_000))
    await desk.service.reconcile()
    assert await desk.refusal(await desk.issue()) == GateCode.UNRECONCILED
    order = await desk.order(await desk.exit("0.5", effect=Effect.REDUCE))
    assert order.status is OrderStatus.ACCEPTED


async def test_an_order_that_the_venue_lost_is_a_difference() -> None:
    desk = await Desk().start()
    order = await desk.resting()
    desk.faulty.script(Operation.READ, None, None, None)
    desk.paper.exchange.orders.pop(order.terms.client_order_id)
    desk.paper.exchange.working.pop(order.terms.client_order_id, None)
    outcome = await desk.service.reconcile()
    assert [text.split()[0] for text in outcome.differences] == ["ORDER_LOST"]
    assert (await desk.stored(order)).status is OrderStatus.ACCEPTED


async def test_until_the_first_clean_round_only_reduces_are_sent() -> None:
    desk = Desk()
    desk.faulty.script(Operation.READ, Fault.UNAVAILABLE, Fault.UNAVAILABLE)
    await desk.start()
    assert await desk.refusal(await desk.issue()) == GateCode.UNRECONCILED
    await desk.service.reconcile()
    await desk.order(await desk.issue())


async def test_rounds_that_say_nothing_new_write_nothing() -> None:
    desk = await Desk().start()
    before = len(desk.events(ReconciliationCompleted))
    for _ in range(5):
        await desk.service.reconciler.run()
    assert len(desk.events(ReconciliationCompleted)) == before


async def test_the_row_of_an_order_holds_all_of_it() -> None:
    desk = await Desk().start()
    order = await desk.bought("0.2")
    row = (await desk.ledger.rows("orders", {"order_id": order.order_id}))[0]
    assert codec.decode(Order, str(row["order_json"])) == order
    assert (row["status"], row["symbol"], row["side"]) == ("filled", "BTC/USDT", Side.BUY.value)
