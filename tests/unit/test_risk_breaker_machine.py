"""The breaker as a state machine: whatever comes in whatever order, nothing loosens without the operator."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcp_servers.risk.breaker import Breaker
from trading.domain.approvals import Epoch, TradingState
from trading.domain.errors import LedgerError, LedgerUnavailable
from trading.domain.identifiers import AccountId, AgentId, Symbol
from trading.domain.trading_states import strictest
from trading.testing.clock import ManualClock, SeededIds
from trading.testing.ledger import InMemoryLedger

SCOPES = st.sampled_from(["desk", "agent:a", "agent:b", "symbol:BTC/USDT", "account:main"])
RESTRICTIONS = st.sampled_from([TradingState.REDUCING, TradingState.HALTED, TradingState.FROZEN])
LOOSER = st.sampled_from([TradingState.ACTIVE, TradingState.REDUCING])


class ScopedBreaker(RuleBasedStateMachine):
    """Trips, resets, failing disks, clean and unclean restarts."""

    breaker: Breaker

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = InMemoryLedger("risk", ManualClock(), SeededIds(1))
        self.announced: list[tuple[Epoch, dict[str, TradingState]]] = []
        #: The least that must hold; only the operator's reset lowers it.
        self.least: dict[str, TradingState] = {}
        self.epoch = Epoch(0, 0)
        self.lost = False

    def teardown(self) -> None:
        self.loop.close()

    def wait(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _announce(self) -> None:
        self.announced.append((self.breaker.epoch, self.states()))

    def states(self) -> dict[str, TradingState]:
        held = {each.scope: each.state for each in self.breaker.scopes}
        return {"desk": self.breaker.state, **held}

    @initialize()
    def begin(self) -> None:
        self.start(clean=True)

    def start(self, *, clean: bool) -> None:
        async def opened() -> None:
            rows = {str(row["scope"]): row for row in await self.ledger.rows("desk_state")}
            self.breaker = Breaker(self.ledger, ManualClock(), self._announce, restored=rows)
            assert self.breaker.state is TradingState.HALTED
            await self.breaker.open(clean=clean, may_reactivate=True)

        self.wait(opened())

    @rule(scope=SCOPES, state=RESTRICTIONS, disk=st.sampled_from(["works", "fails", "answers nothing"]))
    def trip(self, scope: str, state: TradingState, disk: str) -> None:
        if disk != "works":
            self.ledger.fail_next_commit(LedgerUnavailable("down"), written=disk == "answers nothing")
        answer = self.wait(self.breaker.trip("why", "policy", state, scope=scope))
        self.ledger._failures.clear()  # a trip that changed nothing wrote nothing
        self.lost |= not answer.durable
        before = self.least.get(scope, TradingState.ACTIVE)
        self.least[scope] = state if state.is_stricter_than(before) else before
        if answer.changed:
            assert self.announced[-1][0] == answer.epoch

    @rule(scope=SCOPES, state=LOOSER, disk=st.sampled_from(["works", "fails", "answers nothing"]))
    def operator_resets(self, scope: str, state: TradingState, disk: str) -> None:
        if disk != "works":
            self.ledger.fail_next_commit(LedgerUnavailable("down"), written=disk == "answers nothing")
        before = self.states()
        try:
            answer = self.wait(self.breaker.reset("go", "operator:x", state, scope=scope))
        except LedgerError:
            assert self.states() == before
            self.lost = True
        else:
            self.ledger._failures.clear()
            if answer.changed:
                self.least[scope] = state
                after = self.states()
                assert {k: v for k, v in after.items() if k != scope} == {k: v for k, v in before.items() if k != scope}

    @rule()
    def save(self) -> None:
        if self.wait(self.breaker.save()):
            self.lost = False

    @precondition(lambda self: not self.lost)
    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """What is in the ledger is not forgotten, whatever kind of stop it was, also with the paper policy."""
        before = self.states()
        self.ledger = self.ledger.successor()
        self.start(clean=clean)
        assert self.states() == before

    @invariant()
    def nothing_is_looser_than_the_operator_left_it(self) -> None:
        if not hasattr(self, "breaker"):
            return
        for scope, state in self.least.items():
            assert not state.is_stricter_than(self.breaker.state_of(scope)), scope

    @invariant()
    def the_epoch_never_falls_and_an_order_is_judged_by_the_strictest(self) -> None:
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.epoch >= self.epoch
        self.epoch = self.breaker.epoch
        states = self.states()
        found = strictest(
            self.breaker.state,
            self.breaker.scopes,
            account_id=AccountId("main"),
            agent_id=AgentId("a"),
            symbol=Symbol("BTC/USDT"),
        )
        covering = [state for scope, state in states.items() if scope != "agent:b"]
        assert not any(state.is_stricter_than(found.state) for state in covering)


TestScopedBreaker = ScopedBreaker.TestCase
TestScopedBreaker.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
