"""The order table: every legal move, every absent move, and a machine that walks it at random."""

from __future__ import annotations

import itertools
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trading.domain.errors import InvalidTransition
from trading.domain.money import total
from trading.domain.orders import (
    POSSIBLY_LIVE,
    TERMINAL,
    TRANSITIONS,
    Order,
    OrderAlarm,
    OrderStatus,
    OrderTrigger,
    next_status,
)
from trading.testing.builders import build_fill, build_order

S, T = OrderStatus, OrderTrigger
FILLS = {T.FILL, T.FILL_PARTLY}


def test_a_move_that_the_table_does_not_list_is_refused() -> None:
    for status, trigger in itertools.product(S, T):
        if (status, trigger) in TRANSITIONS:
            assert next_status(status, trigger) is TRANSITIONS[status, trigger]
        else:
            with pytest.raises(InvalidTransition):
                next_status(status, trigger)


def test_only_a_fill_or_the_venue_itself_can_reopen_a_finished_order() -> None:
    reopening = {(s, t) for (s, t), after in TRANSITIONS.items() if s in TERMINAL and after not in TERMINAL}
    assert reopening == {(S.ABSENT, T.ACCEPT), (S.ABSENT, T.FILL_PARTLY)}


def test_nothing_that_was_never_sent_can_fill() -> None:
    for status in (S.INITIALIZED, S.DENIED, S.NOT_SENT):
        assert not any((status, trigger) in TRANSITIONS for trigger in FILLS)


def test_an_unknown_order_ends_only_on_evidence_from_the_venue() -> None:
    evidence = {T.ACCEPT, T.REJECT, T.FIND_ABSENT, T.TRIGGER, T.CANCEL, T.EXPIRE, *FILLS}
    assert {trigger for status, trigger in TRANSITIONS if status is S.UNKNOWN} == evidence


def test_every_state_can_be_reached_and_every_working_state_can_end() -> None:
    reached, frontier = {S.INITIALIZED}, [S.INITIALIZED]
    while frontier:
        here = frontier.pop()
        for (status, _), after in TRANSITIONS.items():
            if status is here and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(S)
    for status in POSSIBLY_LIVE:
        assert any(after in TERMINAL for (s, _), after in TRANSITIONS.items() if s is status)


def test_a_late_fill_after_cancel_counts_and_alarms() -> None:
    order = accepted().move(T.REQUEST_CANCEL, now_ms=3).move(T.CANCEL, now_ms=4)
    order, alarm = order.fill(build_fill(quantity="0.4"), now_ms=5)
    assert (order.status, order.filled, order.leaves, alarm) == (
        S.CANCELED,
        Decimal("0.4"),
        Decimal(0),
        OrderAlarm.FILL_AFTER_END,
    )


def test_an_overfill_is_recorded_and_alarms() -> None:
    order, alarm = accepted().fill(build_fill(quantity="1.5"), now_ms=5)
    assert (order.status, order.filled, alarm) == (S.FILLED, Decimal("1.5"), OrderAlarm.OVERFILL)


def test_the_same_trade_applies_once() -> None:
    order, _ = accepted().fill(build_fill(quantity="0.4"), now_ms=5)
    assert order.fill(build_fill(quantity="0.4"), now_ms=6) == (order, None)


def accepted() -> Order:
    return build_order(quantity="1").move(T.SUBMIT, now_ms=1).move(T.ACCEPT, now_ms=2)


class OrderMachine(RuleBasedStateMachine):
    """Any sequence of venue messages, in any order, keeps the books straight."""

    def __init__(self) -> None:
        super().__init__()
        self.order = build_order(quantity="1")
        self.fills: dict[str, Decimal] = {}

    @rule(trigger=st.sampled_from([trigger for trigger in T if trigger not in FILLS]))
    def move(self, trigger: OrderTrigger) -> None:
        before = self.order
        try:
            self.order = self.order.move(trigger, now_ms=before.updated_ms + 1)
        except InvalidTransition:
            assert (before.status, trigger) not in TRANSITIONS
            assert self.order is before

    @precondition(lambda self: self.order.status in POSSIBLY_LIVE | {S.CANCELED, S.EXPIRED, S.ABSENT})
    @rule(number=st.integers(0, 5), tenths=st.integers(1, 6))
    def fill(self, number: int, tenths: int) -> None:
        trade_id = f"t{number}"
        quantity = self.fills.get(trade_id, Decimal(tenths) / 10)
        fill = build_fill(quantity=str(quantity), trade_id=trade_id, fee="0.01")
        self.order, alarm = self.order.fill(fill, now_ms=self.order.updated_ms + 1)
        self.fills[trade_id] = quantity
        assert (alarm is OrderAlarm.OVERFILL) <= (self.order.filled > 1)

    @invariant()
    def filled_is_the_sum_of_unique_trades(self) -> None:
        assert self.order.filled == total(list(self.fills.values()))
        assert set(self.order.trade_ids) == set(self.fills)
        assert self.order.filled_notional == self.order.filled * 100
        assert sum(self.order.fees.values()) == Decimal("0.01") * len(self.fills)

    @invariant()
    def filled_and_leaves_make_up_the_quantity_while_the_order_works(self) -> None:
        if self.order.is_terminal:
            assert self.order.leaves == 0
        else:
            assert self.order.filled + self.order.leaves == self.order.terms.quantity

    @invariant()
    def a_complete_order_says_filled(self) -> None:
        if self.order.filled >= 1:
            assert self.order.status is S.FILLED


TestOrderMachine = OrderMachine.TestCase
TestOrderMachine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
