"""With the stops that execution places on signed exits no worst case passes a limit, and agents can still close."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.orders import OrderRequest
from tests.risk_support import USDT, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.approvals import Fate
from trading.domain.errors import LedgerUnavailable, Unavailable
from trading.domain.events import OrderCanceled
from trading.domain.identifiers import ApprovalId, OrderId
from trading.domain.market_data import Side
from trading.testing.builders import BTC_USDT, INSTRUMENT_ID

T = TypeVar("T")

#: (position, base; gross exposure, quote; cash, quote): each set makes another limit the one that binds.
BOUNDS = [
    (Decimal("0.7"), Decimal(1_000_000), Decimal(1_000_000)),
    (Decimal(50), Decimal(42_000), Decimal(1_000_000)),
    (Decimal(50), Decimal(1_000_000), Decimal(42_000)),
]
KINDS = st.sampled_from(["limit", "limit", "market", "sell", "reduce"])
QUANTITIES = st.integers(1, 60_000).map(lambda steps: Decimal(steps) / 100_000)


def _asked(kind: str, quantity: Decimal) -> OrderRequest:
    match kind:
        case "limit":
            return order(amount=quantity)
        case "market":
            return market(quantity)
        case _:
            return sell(quantity, reduce_only=kind == "reduce")


class WorstCase(RuleBasedStateMachine):
    """The oracle keeps its own list of everything that may still trade and never asks risk."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.unused: list[Approved] = []
        self.working: dict[int, tuple[Approved, Decimal]] = {}
        self.held = Decimal(0)
        self.cash = Decimal(0)
        self.number = 0
        self.stop: tuple[OrderId, ApprovalId, Decimal] | None = None
        self.slices = 0

    def run_now(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.loop.close()

    @initialize(bounds=st.sampled_from(BOUNDS))
    def open(self, bounds: tuple[Decimal, Decimal, Decimal]) -> None:
        self.position_max, self.gross_max, self.cash = bounds
        limits = wide_limits(
            symbols={BTC_USDT: wide_symbol(position_quantity_max=self.position_max)},
            gross_exposure_max=self.gross_max,
            daily_loss_max=Decimal(1_000_000),
        )
        self.desk = self.run_now(open_desk(limits=limits, cash=str(self.cash)))

    @rule(
        wanted=st.lists(st.tuples(KINDS, QUANTITIES), min_size=1, max_size=4),
        fails=st.integers(0, 5).map(lambda n: n == 1),
    )
    def ask(self, wanted: list[tuple[str, Decimal]], fails: bool) -> None:
        asked = [_asked(kind, quantity) for kind, quantity in wanted]
        self.number += 1
        request_id = f"r-{self.number}"
        if fails:
            self.desk.ledger.fail_next_commit(LedgerUnavailable("lost"), written=self.number % 2 == 0)
            with pytest.raises(Unavailable):
                self.run_now(self.desk.ask(*asked, request_id=request_id))
            self.run_now(self.desk.risk.live.sign_off.settle())
            if self.number % 2:
                return  # the commit never landed and the request was made void
        approved = self.run_now(self.desk.ask(*asked, request_id=request_id)).approved
        self.unused += approved
        if any(item.approval.order.side is Side.SELL for item in approved):
            assert self._sells(self.unused) + self._working_sells() <= self.held, "promised to sell more than there is"

    @precondition(lambda self: self.unused)
    @rule(data=st.data(), fate=st.sampled_from([Fate.LAPSED, Fate.VOIDED]))
    def end_unused(self, data: st.DataObject, fate: Fate) -> None:
        item = self.unused.pop(data.draw(st.integers(0, len(self.unused) - 1)))
        self.run_now(self.desk.end(item, fate))

    @precondition(lambda self: self.unused)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        item = self.unused.pop(data.draw(st.integers(0, len(self.unused) - 1)))
        if item.approval.order.side is Side.SELL:
            self.make_room(item.approval.order.quantity)
            if item.approval.order.quantity > self.held - self._working_sells():
                self.run_now(self.desk.end(item, Fate.VOIDED))  # a stop was faster
                return
        self.run_now(self.desk.consume(item))
        self.number += 1
        self.working[self.number] = (item, item.approval.order.quantity)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), share=st.integers(1, 4))
    def fill(self, data: st.DataObject, share: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.working)))
        item, leaves = self.working[number]
        terms = item.approval.order
        quantity = max(Decimal("0.00001"), (leaves / share).quantize(Decimal("0.00001"), rounding="ROUND_DOWN"))
        assert terms.limit_price is not None
        fee = quantity * terms.limit_price * Decimal("0.001")
        self.run_now(self.desk.fill(item, quantity, str(terms.limit_price), str(fee)))
        sign = terms.side.sign
        self.held += sign * quantity
        self.cash -= sign * quantity * terms.limit_price + fee
        if leaves == quantity:
            del self.working[number]
        else:
            self.working[number] = (item, leaves - quantity)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item, _ = self.working.pop(data.draw(st.sampled_from(sorted(self.working))))
        self.run_now(self.desk.cancel(item))

    # -- stops, as execution places them --------------------------------------------------------------------------

    def _sells(self, items: list[Approved]) -> Decimal:
        orders = [item.approval.order for item in items]
        return sum((order.quantity for order in orders if order.side is Side.SELL), Decimal(0))

    def _working_sells(self) -> Decimal:
        working = self.working.values()
        return sum((leaves for item, leaves in working if item.approval.order.side is Side.SELL), Decimal(0))

    def make_room(self, quantity: Decimal) -> None:
        """Withdraw the stop when a reduce needs what it protects."""
        if self.stop is not None and quantity > self.held - self._working_sells() - self.stop[2]:
            self.withdraw_stop()

    @precondition(lambda self: self.stop is not None)
    @rule()
    def withdraw_stop(self) -> None:
        assert self.stop is not None
        self.run_now(self.desk.write(OrderCanceled(order_id=self.stop[0], reason="moved")))
        self.stop = None

    @precondition(lambda self: self.stop is None and self.held > self._working_sells())
    @rule(share=st.integers(1, 3))
    def protect(self, share: int) -> None:
        self.run_now(self.desk.refresh())
        self.run_now(self.desk.risk.tick())
        found = self.desk.risk.live.exits.current(INSTRUMENT_ID)
        assert found is not None, "an open position without an exit"
        free = self.held - self._working_sells()
        quantity = max(Decimal("0.00001"), (free / share).quantize(Decimal("0.00001"), rounding="ROUND_DOWN"))
        self.slices += 1
        order_id, slice_id = self.run_now(self.desk.protect(found, quantity, number=self.slices))
        self.stop = order_id, slice_id, quantity

    @precondition(lambda self: self.stop is not None)
    @rule(share=st.integers(1, 3))
    def stop_fills(self, share: int) -> None:
        assert self.stop is not None
        order_id, slice_id, leaves = self.stop
        quantity = max(Decimal("0.00001"), (leaves / share).quantize(Decimal("0.00001"), rounding="ROUND_DOWN"))
        self.run_now(self.desk.stop_fills(order_id, quantity, "60000"))
        self.held -= quantity
        self.cash += quantity * 60_000
        self.stop = None if quantity == leaves else (order_id, slice_id, leaves - quantity)

    @rule(ms=st.integers(1, 200_000))
    def let_time_pass(self, ms: int) -> None:
        self.desk.clock.advance(ms)
        self.run_now(self.desk.refresh())
        self.run_now(self.desk.risk.tick())

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        self.run_now(self.desk.restart(clean=clean))

    @invariant()
    def worst_case_is_inside_every_limit(self) -> None:
        if not hasattr(self, "desk"):
            return
        live = [(i.approval.order, i.approval.order.quantity) for i in self.unused]
        live += [(i.approval.order, leaves) for i, leaves in self.working.values()]
        buys = sum((q for terms, q in live if terms.side is Side.BUY), Decimal(0))
        sells = self._working_sells() + (Decimal(0) if self.stop is None else self.stop[2])
        cost = sum((q * (terms.limit_price or 0) for terms, q in live if terms.side is Side.BUY), Decimal(0))
        assert self.held + buys <= self.position_max
        assert (self.held + buys) * Decimal("60000.5") <= self.gross_max
        assert self.held - sells >= 0, "sold more than there is"
        assert self.cash - cost * Decimal("1.001") >= 0, "promised more than there is"

    @invariant()
    def risk_counts_exactly_what_may_still_trade(self) -> None:
        if not hasattr(self, "desk"):
            return
        known = {i.approval.approval_id for i in self.unused} | {
            i.approval.approval_id for i, _ in self.working.values()
        }
        if self.stop is not None:
            known.add(self.stop[1])
        risk = self.desk.risk
        assert risk.portfolio.foreign_orders() == []
        assert {reservation.approval_id for reservation in risk.reservations} == known
        assert risk.portfolio.held(INSTRUMENT_ID) == self.held
        assert risk.portfolio.total(USDT) == self.cash


TestWorstCase = WorstCase.TestCase
TestWorstCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
