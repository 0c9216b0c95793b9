"""The breaker: what may be traded now, and the epoch that makes every older approval worthless.

Rules kept here:

- A trip takes effect in memory and is announced before it waits for a disk; then it is committed.
- A loosening is committed first and takes effect afterwards; a trip of the same scope in between wins.
- Every start is a new generation (the ledger's lease), so a trip that was announced but lost with a crash cannot be
  undone by old approvals: they all carry an older generation.
- A start is HALTED until the reservations are rebuilt; after an unclean stop it stays so until the operator says
  otherwise, unless paper policy allows it, which is then written down.
- Each scope (desk, account, agent, symbol) has a state of its own; there is one epoch, which every change of any of
  them raises. Resuming the desk resumes nothing else, and no policy resumes a scope.
- More scopes than a heartbeat carries are not told apart: the next one restricts the desk.

Source: docs/model, "trip announced before commit, without generations: forgotten, with: clean".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from trading.domain.approvals import Epoch, TradingState
from trading.domain.errors import InvalidValue, LedgerError
from trading.domain.events import AlarmRaised, BreakerReset, BreakerTripped
from trading.domain.trading_states import DESK, SCOPES_MAX, ScopeState, is_scope
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Ledger, Row, Unit, Upsert

log = logging.getLogger("grekko.risk")

SCOPE: Final = DESK


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerAnswer:
    """What a trip or reset did.

    Attributes:
        scope: what it holds for; the desk where more scopes were restricted than can be told apart.
        changed: False when the scope was in that state, or a stricter one, already.
        durable: False when the ledger could not be written yet; the trip holds all the same and is written later.
    """

    state: TradingState
    epoch: Epoch
    changed: bool
    durable: bool
    scope: str = DESK


class BreakerChange(NamedTuple):
    """A change as it is told to people; ``alarm`` is the trigger's code, empty when a person or the start did it."""

    scope: str
    state: TradingState
    epoch: Epoch
    reason: str
    by: str
    alarm: str


@dataclass(frozen=True, slots=True)
class _Held:
    """A restriction and why."""

    state: TradingState
    reason: str


class Breaker:
    """States of one desk's scopes, and its epoch.

    Args:
        ledger: risk's own; its generation is the epoch's.
        announce: tells execution at once, out of turn; must not raise and must return soon.
        restored: rows of ``desk_state`` by scope, as earlier runs left them.
        told: hears of every change after all that; must not wait.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        announce: Callable[[], Awaitable[None]],
        *,
        restored: Mapping[str, Row],
        told: Callable[[BreakerChange], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._announce = announce
        self._told = told
        self._counter = 0
        self._epoch = Epoch(ledger.generation, 0)
        self._held = _read(restored)
        self._restored = self._held.get(DESK)
        self._starting = True
        self._scopes: tuple[ScopeState, ...] = ()
        self._hold(DESK, _Held(TradingState.HALTED, "reservations are being rebuilt"))
        self._unsaved: dict[str, Unit] = {}
        self._saving = asyncio.Lock()
        self._resets = asyncio.Lock()
        self._resetting: dict[str, bool] = {}  # scope -> whether a trip came meanwhile

    @property
    def state(self) -> TradingState:
        """What may be traded now by the desk; ``scopes`` may restrict more."""
        return self.state_of(DESK)

    @property
    def epoch(self) -> Epoch:
        """What every new approval carries."""
        return self._epoch

    @property
    def reason(self) -> str:
        """Why the desk is not ACTIVE; empty when it is."""
        return self.reason_of(DESK)

    @property
    def scopes(self) -> tuple[ScopeState, ...]:
        """Everything restricted beside the desk."""
        return self._scopes

    def state_of(self, scope: str) -> TradingState:
        """Return the scope's own state."""
        held = self._held.get(scope)
        return TradingState.ACTIVE if held is None else held.state

    def reason_of(self, scope: str) -> str:
        """Return why the scope is restricted; empty when it is not."""
        held = self._held.get(scope)
        return "" if held is None else held.reason

    async def open(self, *, clean: bool, may_reactivate: bool) -> BreakerAnswer:
        """Leave the start's HALTED once the reservations are rebuilt; other scopes stay as they are.

        Args:
            clean: the last run stopped in good order.
            may_reactivate: policy allows resuming after an unclean stop (paper only).
        """
        self._starting, wanted = False, self._restored
        if wanted is not None:  # of the last run, or tripped while rebuilding
            return await self._apply(DESK, wanted.state, wanted.reason or "restored", "start")
        if clean:
            return await self.reset("started after a clean stop", "start")
        if may_reactivate:
            return await self.reset(
                "policy reactivate_after_unclean_stop lets a paper desk resume after an unclean stop", "policy"
            )
        return await self._apply(DESK, TradingState.HALTED, "the last run did not stop in good order", "start")

    async def trip(
        self,
        reason: str,
        by: str,
        state: TradingState = TradingState.HALTED,
        *,
        scope: str = DESK,
        alarm: str = "",
    ) -> BreakerAnswer:
        """Restrict trading now; does nothing when the scope is at least as restricted already.

        Args:
            scope: as ``parse_scope`` returns it.
            alarm: code of an alarm that is committed with the trip.

        Raises:
            InvalidValue: ACTIVE is not a restriction.
        """
        if state is TradingState.ACTIVE:
            raise InvalidValue("a trip restricts; resetting is the operator's", code="INVALID_STATE")
        if scope not in self._held and len(self._scopes) >= SCOPES_MAX:
            scope, reason = DESK, f"too many scopes are restricted to tell them apart; {scope}: {reason}"
        starting = self._starting and scope == DESK
        if not state.is_stricter_than(self.state_of(scope)) and not starting and scope not in self._resetting:
            return self._unchanged(scope)
        if starting and (self._restored is None or state.is_stricter_than(self._restored.state)):
            self._restored = _Held(state, reason)
        return await self._apply(scope, state, reason, by, alarm)

    async def _apply(self, scope: str, state: TradingState, reason: str, by: str, alarm: str = "") -> BreakerAnswer:
        before = self._held.get(scope)
        kept = scope in self._resetting or self._starting
        if kept and before is not None and before.state.is_stricter_than(state):
            state = before.state
        if scope in self._resetting:
            self._resetting[scope] = True
        self._epoch = self._next_epoch()
        self._hold(scope, _Held(state, reason))
        self._restate(scope, by, alarm)
        change = BreakerChange(scope, state, self._epoch, reason, by, alarm)
        await self._announce()
        durable = await self.save()
        self._tell(change)
        return BreakerAnswer(scope=scope, state=state, epoch=change.epoch, changed=True, durable=durable)

    def _tell(self, change: BreakerChange) -> None:
        if self._told is not None:
            self._told(change)

    async def reset(
        self, reason: str, by: str, state: TradingState = TradingState.ACTIVE, *, scope: str = DESK
    ) -> BreakerAnswer:
        """Allow trading again; only the operator, and the start itself for the desk, may call this.

        Args:
            state: ACTIVE, or REDUCING to loosen by one step only.

        Raises:
            LedgerError: it could not be written, so nothing is loosened.
        """
        async with self._resets:
            if not self.state_of(scope).is_stricter_than(state):
                return self._unchanged(scope)
            self._resetting[scope] = False
            try:
                await self._save_or_raise()
                epoch = self._next_epoch()
                await self._write_reset(scope, reason, by, state, epoch)
            finally:
                overtaken = self._resetting.pop(scope)
            if overtaken:
                return await self._stand(scope)
            # A trip of another scope may have raised it further meanwhile.
            self._epoch = max(self._epoch, epoch)
            self._hold(scope, None if state is TradingState.ACTIVE else _Held(state, reason))
            change = BreakerChange(scope, state, self._epoch, reason, by, "")
            await self._announce()
            self._tell(change)
            return BreakerAnswer(scope=scope, state=state, epoch=change.epoch, changed=True, durable=True)

    async def _write_reset(self, scope: str, reason: str, by: str, state: TradingState, epoch: Epoch) -> None:
        kept = "" if state is TradingState.ACTIVE else reason
        event = BreakerReset(scope=scope, reason=reason, state=state, epoch=epoch, by=by)
        try:
            await self._ledger.commit(self._unit([EventDraft(event)], scope, state, epoch, kept))
        except LedgerError:
            self._restate(scope, "breaker: a reset got no answer from the ledger and does not count")
            raise

    async def _stand(self, scope: str) -> BreakerAnswer:
        """Keep a trip that came while a reset was on its way to disk, and make sure it is the last word there."""
        self._restate(scope, "breaker: it came during a reset")
        durable = await self.save()
        return BreakerAnswer(scope=scope, state=self.state_of(scope), epoch=self._epoch, changed=False, durable=durable)

    def _restate(self, scope: str, by: str, alarm: str = "") -> None:
        """Have the state in memory written: the ledger may hold a looser one as its last word."""
        state, reason, epoch = self.state_of(scope), self.reason_of(scope), self._epoch
        events = [EventDraft(BreakerTripped(scope=scope, reason=reason, state=state, epoch=epoch, by=by))]
        if alarm:
            events.append(EventDraft(AlarmRaised(code=alarm, message=reason, subject=scope)))
        if self._starting and scope == DESK and self._restored is not None:
            # The HALTED of this start is not what the next one finds.
            state, reason = self._restored.state, self._restored.reason
        self._unsaved[scope] = self._unit(events, scope, state, epoch, reason)

    async def save(self) -> bool:
        """Write trips that are not in the ledger yet; True when nothing is left to write."""
        try:
            await self._save_or_raise()
        except LedgerError as error:
            log.error("the breaker's state is not written yet (%s); it holds in memory", error.code)
            return False
        return True

    async def _save_or_raise(self) -> None:
        async with self._saving:
            for scope, unit in list(self._unsaved.items()):
                await self._ledger.commit(unit)
                if self._unsaved.get(scope) is unit:
                    del self._unsaved[scope]

    def _unchanged(self, scope: str) -> BreakerAnswer:
        return BreakerAnswer(
            scope=scope,
            state=self.state_of(scope),
            epoch=self._epoch,
            changed=False,
            durable=scope not in self._unsaved,
        )

    def _hold(self, scope: str, held: _Held | None) -> None:
        if held is None:
            self._held.pop(scope, None)
        else:
            self._held[scope] = held
        self._scopes = tuple([ScopeState(each, self._held[each].state) for each in sorted(self._held) if each != DESK])

    def _next_epoch(self) -> Epoch:
        self._counter += 1
        return Epoch(self._ledger.generation, self._counter)

    def _unit(self, events: Sequence[EventDraft], scope: str, state: TradingState, epoch: Epoch, reason: str) -> Unit:
        row = {
            "scope": scope,
            "state": state.value,
            "generation": epoch.generation,
            "counter": epoch.counter,
            "reason": reason,
            "updated_ms": self._clock.now_ms(),
        }
        return Unit(events=tuple(events), writes=(Upsert("desk_state", row),))


def _read(rows: Mapping[str, Row]) -> dict[str, _Held]:
    """Return what is restricted; a row that cannot be read restricts, and too many of them the desk."""
    held: dict[str, _Held] = {}
    for scope, row in rows.items():
        if not is_scope(scope):
            continue
        try:
            state = TradingState(str(row["state"]))
        except ValueError:
            state = TradingState.HALTED
        if state is not TradingState.ACTIVE:
            held[scope] = _Held(state, str(row["reason"]))
    others = sorted(held.keys() - {DESK})
    if len(others) > SCOPES_MAX:
        worst = held[others[0]]
        for each in held.values():
            worst = each if each.state.is_stricter_than(worst.state) else worst
        held = {DESK: worst, **{scope: held[scope] for scope in others[:SCOPES_MAX]}}
    return held
