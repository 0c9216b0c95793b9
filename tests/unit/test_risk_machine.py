"""Under any order of what can happen no worst case passes a limit, and in the end nothing is reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.sign_off import Answer
from tests.risk_machine_bounds import BOUNDS, Bounds
from tests.risk_machine_support import (
    AGENTS,
    FEE,
    STEP,
    SYMBOLS,
    Commit,
    Oracle,
    open_wide_desk,
    refresh_books,
    resolve,
    send,
    wanted_order,
)
from tests.risk_support import USDT
from trading.domain.approvals import Approval, Effect, Fate, TradingState
from trading.domain.errors import LeaseLost, Unavailable
from trading.domain.events import OrderExpired, OrderRejected
from trading.domain.identifiers import Currency, OrderId, Symbol
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.testing.builders import ACCOUNT, PAPER

T = TypeVar("T")

KINDS = st.sampled_from(["limit", "most", "most", "passive", "market", "sell", "reduce"])
WANTED = st.lists(
    st.tuples(st.sampled_from(AGENTS), st.sampled_from(SYMBOLS), KINDS, st.integers(10, 45_000)),
    min_size=1,
    max_size=6,
)
#: What execution and the venue do next, to which of those it can be done to, and to what part of an order.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("send", "send", "send", "fill", "fill", "fill", "fill", "end", "lapse", "void", "time out", "find", "lose")
        ),
        st.integers(0, 1_000),
        st.integers(1, 4),
    ),
    min_size=5,
    max_size=30,
)
SCOPES = ("desk", f"account:{ACCOUNT}", *(f"agent:{each}" for each in AGENTS), *(f"symbol:{each}" for each in SYMBOLS))


class WorstCase(RuleBasedStateMachine):
    """Plays agents, execution, venue, operator and a failing machine; judges by the raw logs alone."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds
        self.loop = asyncio.new_event_loop()
        self.opened = False
        self.sound = False  # whether the invariants held after the last step
        self.unused: list[Approved] = []
        self.unknown: dict[OrderId, Approved] = {}
        self.working: dict[OrderId, Approved] = {}
        self.restricted: dict[str, TradingState] = {}
        self.number = 0

    def run_now(self, work: Coroutine[Any, Any, T]) -> T:
        self.sound = False
        return self.loop.run_until_complete(work)

    @initialize()
    def open(self) -> None:
        self.desk = self.run_now(open_wide_desk(self.bounds.limits(), self.bounds.cash))
        self.opened = True

    # -- agents -----------------------------------------------------------------------------------------------------

    @rule(wanted=WANTED)
    def ask(self, wanted: list[tuple[Any, ...]]) -> None:
        self._together([wanted], [Commit.WRITTEN], lambda: None)

    @rule(data=st.data(), requests=st.lists(WANTED, min_size=1, max_size=4))
    def ask_at_once(self, data: st.DataObject, requests: list[list[tuple[Any, ...]]]) -> None:
        """Several requests hang in the ledger together; each ends as it likes, in any order, and a halt may come."""
        outcomes = data.draw(st.lists(st.sampled_from(Commit), min_size=len(requests), max_size=len(requests)))
        halted = data.draw(st.sampled_from([None] * 12 + list(SCOPES)))

        def meanwhile() -> Coroutine[Any, Any, object] | None:
            return None if halted is None else self._halt(halted, TradingState.HALTED)

        self._together(requests, outcomes, meanwhile, data.draw(st.permutations(range(len(requests)))))

    @rule(requests=st.lists(WANTED, min_size=1, max_size=3))
    def crash_while_asking(self, requests: list[list[tuple[Any, ...]]]) -> None:
        """The process is replaced while commits hang: they come too late, and nobody gets an answer."""
        answers = self.run_now(self._crash(requests))
        assert all(isinstance(answer, (LeaseLost, Unavailable)) for answer in answers)

    def _together(self, requests: list[Any], outcomes: list[Commit], meanwhile: Any, order: Any = (0,)) -> None:
        restricted, before = dict(self.restricted), Oracle.of(self.desk)
        answers = self.run_now(self._answers(requests, outcomes, meanwhile, order))
        left: list[Approved] = []
        for answer, outcome in zip(answers, outcomes, strict=True):
            assert isinstance(answer, Answer) is (outcome is Commit.WRITTEN), answer
            left += answer.approved if isinstance(answer, Answer) else []
        # An answer that was lost is in the ledger, where a courier could find it: it counts like any other.
        written = [each for name, each in Oracle.of(self.desk).approvals.items() if name not in before.approvals]
        assert {item.approval.approval_id for item in left} <= {each.approval_id for each in written}
        self._check(before, sorted(written, key=lambda each: int(each.request_id.removeprefix("r-"))), restricted)
        for each in written:
            report = self.run_now(self.desk.risk.get_approval(each.approval_id))
            assert report.approved is not None
            assert report.approved.approval == each
            self.unused.append(report.approved)
        assert {item.envelope for item in left} <= {item.envelope for item in self.unused}, "what left is as stored"

    async def _answers(self, requests: list[Any], outcomes: list[Commit], meanwhile: Any, order: Any) -> list[Any]:
        ledger: Any = self.desk.ledger
        tasks = await self._hang(requests)
        if (work := meanwhile()) is not None:
            await work
        for index in order:
            ledger.waiting[index].set_result(outcomes[index])
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        ledger.gated = False
        ledger.waiting.clear()
        await self.desk.risk.live.sign_off.settle()
        return answers

    async def _hang(self, requests: list[Any]) -> list[asyncio.Task[Answer]]:
        ledger: Any = self.desk.ledger
        ledger.gated, tasks = True, list[asyncio.Task[Answer]]()
        for wanted in requests:
            self.number += 1
            asked = [self._wanted(*each) for each in wanted]
            tasks.append(asyncio.ensure_future(self.desk.ask(*asked, request_id=f"r-{self.number}")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(ledger.waiting) == len(tasks)
        assert not any(task.done() for task in tasks), "a signature left before its commit"
        return tasks

    def _wanted(self, agent: str, symbol: Symbol, kind: str, notional: int) -> OrderRequest:
        """Return the order; ``most`` asks for exactly what risk says may be had now, to the last step."""
        found = wanted_order(agent, symbol, kind, notional)
        if kind == "most" and (most := self.desk.risk.check_order(found).max_allowed_now) is not None:
            return replace(found, amount=most.quantity)
        return found

    async def _crash(self, requests: list[Any]) -> list[Any]:
        ledger: Any = self.desk.ledger
        tasks = await self._hang(requests)
        await self.desk.restart(clean=False)
        for gate in ledger.waiting:
            gate.set_result(Commit.WRITTEN)
        return await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self, oracle: Oracle, approvals: list[Approval], restricted: dict[str, TradingState]) -> None:
        """Each approval, in its turn, was inside every limit and allowed by every scope it belongs to."""
        for each in approvals:
            oracle.promise(each)
            if each.effect is Effect.INCREASE:
                scopes = {"desk", f"account:{ACCOUNT}", f"agent:{each.agent_id}", f"symbol:{each.order.symbol}"}
                assert not scopes & restricted.keys(), "approved although restricted"
                broken = self.bounds.broken_by(oracle, each, each.issued_ms)
                assert not broken, broken

    @precondition(lambda self: self.unused)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.unused))
        report = self.run_now(self.desk.risk.release_approval(item.approval.approval_id))
        assert report.state == "release_requested"

    # -- execution and venue ----------------------------------------------------------------------------------------

    @rule(steps=STEPS)
    def trade(self, steps: list[tuple[str, int, int]]) -> None:
        self.run_now(self._trade(steps))

    @rule(steps=STEPS)
    def trade_on(self, steps: list[tuple[str, int, int]]) -> None:
        self.run_now(self._trade(steps))

    async def _trade(self, steps: list[tuple[str, int, int]]) -> None:
        for what, number, share in steps:
            if await self._step(what, number, share):
                self._judge()

    async def _step(self, what: str, number: int, share: int) -> bool:
        """Do one thing to one of those it can be done to; return whether there was one."""
        match what:
            case "send" | "time out" | "lapse" | "void" if self.unused:
                item = self.unused.pop(number % len(self.unused))
                if what in ("lapse", "void"):
                    await self.desk.end(item, Fate.LAPSED if what == "lapse" else Fate.VOIDED)
                    return True
                order_id = await send(self.desk, item, known=what == "send")
                (self.working if what == "send" else self.unknown)[order_id] = item
            case "find" | "lose" if self.unknown:
                order_id = list(self.unknown)[number % len(self.unknown)]
                item = self.unknown.pop(order_id)
                await resolve(self.desk, order_id, found=what == "find")
                if what == "find":
                    self.working[order_id] = item
            case "fill" if self.working:
                await self._fill(list(self.working)[number % len(self.working)], share, fee_in_base=number % 3 == 0)
            case "end" if self.working:
                await self._end(self.working.pop(list(self.working)[number % len(self.working)]), share)
            case _:
                return False
        return True

    async def _fill(self, order_id: OrderId, share: int, *, fee_in_base: bool) -> None:
        item = self.working[order_id]
        promise = Oracle.of(self.desk).open[item.approval.approval_id]
        quantity = max(STEP, (promise.leaves / share).quantize(STEP, rounding="ROUND_DOWN"))
        currency, fee = USDT, quantity * promise.price * FEE
        if fee_in_base and promise.is_buy:
            currency, fee = Currency(promise.symbol.partition("/")[0]), quantity * FEE
        await self.desk.fill(item, quantity, str(promise.price), str(fee), currency)
        if quantity == promise.leaves:
            del self.working[order_id]

    async def _end(self, item: Approved, how: int) -> None:
        order_id = OrderId(f"order-{item.approval.approval_id}")
        if how == 1:
            await self.desk.write(OrderExpired(order_id=order_id, reason="day over"))
        elif how == 2 and order_id not in self.desk.filled:
            await self.desk.write(OrderRejected(order_id=order_id, reason="refused"))
        else:
            await self.desk.cancel(item)

    # -- time, operator, machine ------------------------------------------------------------------------------------

    @rule(ms=st.integers(1, 200_000))
    def let_time_pass(self, ms: int) -> None:
        self.desk.clock.advance(ms)
        self.run_now(self._refresh())

    async def _refresh(self) -> None:
        refresh_books(self.desk)
        self.desk.pulse()
        await self.desk.risk.live.follower.step()
        await self.desk.risk.tick()

    @rule(scope=st.sampled_from(SCOPES), state=st.sampled_from([TradingState.HALTED, TradingState.REDUCING]))
    def halt(self, scope: str, state: TradingState) -> None:
        self.run_now(self._halt(scope, state))

    async def _halt(self, scope: str, state: TradingState) -> None:
        breaker = self.desk.risk.live.breaker
        before = breaker.epoch
        answer = await breaker.trip("test", "tester", state, scope=scope)
        if answer.changed:
            assert breaker.epoch > before
            self.restricted[scope] = answer.state

    @precondition(lambda self: self.restricted)
    @rule(only=st.sampled_from([None, *SCOPES]))
    def resume(self, only: str | None) -> None:
        for scope in sorted(self.restricted.keys() & {only or scope for scope in self.restricted}):
            breaker, before = self.desk.risk.live.breaker, self.desk.risk.live.breaker.epoch
            self.run_now(breaker.reset("test", "operator:tester", scope=scope))
            del self.restricted[scope]
            assert breaker.epoch > before

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        self.run_now(self.desk.restart(clean=clean))

    # -- what must hold ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.opened)
    @invariant()
    def nothing_is_passed_and_nothing_is_forgotten(self) -> None:
        self._judge()
        breaker = self.desk.risk.live.breaker
        assert {scope: breaker.state_of(scope) for scope in SCOPES if breaker.state_of(scope).is_restricted} == (
            self.restricted
        )
        self.sound = True

    def _judge(self) -> None:
        """The worst case is inside every limit, and risk counts exactly what may still trade."""
        oracle, risk = Oracle.of(self.desk), self.desk.risk
        broken = self.bounds.broken_now(oracle)
        assert not broken, broken
        assert {each.approval_id: each.leaves for each in risk.reservations} == {
            name: promise.leaves for name, promise in oracle.open.items()
        }
        for symbol in SYMBOLS:
            exposure = risk.reservations.exposure(InstrumentId(PAPER, symbol))
            assert (exposure.buy_open, exposure.sell_open) == (oracle.buys(symbol), oracle.sells(symbol))
            assert risk.portfolio.held(InstrumentId(PAPER, symbol)) == oracle.held[symbol]
        assert risk.portfolio.total(USDT) == oracle.cash
        assert {item.approval.approval_id for item in self._items()} == oracle.open.keys()

    def _items(self) -> list[Approved]:
        return [*self.unused, *self.unknown.values(), *self.working.values()]

    def teardown(self) -> None:
        try:
            if self.sound:
                self.loop.run_until_complete(self._finish())
        finally:
            self.loop.close()

    async def _finish(self) -> None:
        """Everything ends: then nothing is reserved, in memory, in the ledger, and after another start."""
        for item in self.unused:
            await self.desk.end(item, Fate.LAPSED)
        for order_id in self.unknown:
            await resolve(self.desk, order_id, found=False)
        for item in self.working.values():
            await self.desk.cancel(item)
        oracle, book = Oracle.of(self.desk), self.desk.risk.reservations
        assert not oracle.open
        assert sorted(oracle.released) == sorted(oracle.approvals), "each is released once"
        assert len(book) == 0
        assert book.at_venue(PAPER) == 0
        for exposure in book.exposures().values():
            assert (exposure.buy_open, exposure.sell_open, exposure.buy_cost, exposure.orders) == (0, 0, 0, 0)
            assert {exposure.best_resting(side) for side in Side} == {None}
        for use in book.agents().values():
            assert (use.unused, use.notional) == (0, 0)
        assert {book.promised(USDT), *(book.promised(Currency(each.partition("/")[0])) for each in SYMBOLS)} == {
            Decimal(0)
        }
        assert {row["state"] for row in await self.desk.ledger.rows("approvals")} <= {"released"}
        await self.desk.restart(clean=False)
        assert len(self.desk.risk.reservations) == 0


def _factory(bounds: Bounds) -> Any:
    return lambda: WorstCase(bounds)


@pytest.mark.parametrize("bounds", BOUNDS, ids=[each.name for each in BOUNDS])
def test_no_worst_case_passes_a_limit_and_in_the_end_nothing_is_reserved(bounds: Bounds) -> None:
    run_state_machine_as_test(
        _factory(bounds), settings=settings(max_examples=10, stateful_step_count=30, deadline=None)
    )


@pytest.mark.soak
@pytest.mark.parametrize("bounds", BOUNDS, ids=[each.name for each in BOUNDS])
def test_no_worst_case_passes_a_limit_in_long_runs(bounds: Bounds) -> None:
    run_state_machine_as_test(
        _factory(bounds), settings=settings(max_examples=300, stateful_step_count=80, deadline=None)
    )
