"""The breaker: what may be traded now, and the epoch that makes every older approval worthless.

Rules kept here:

- A trip takes effect in memory and is announced before it waits for a disk; then it is committed.
- A loosening is committed first and takes effect afterwards; a trip in between wins.
- Every start is a new generation (the ledger's lease), so a trip that was announced but lost with a crash cannot be
  undone by old approvals: they all carry an older generation.
- A start is HALTED until the reservations are rebuilt; after an unclean stop it stays so until the operator says
  otherwise, unless paper policy allows it, which is then written down.

Source: docs/model, "trip announced before commit, without generations: forgotten, with: clean".
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from trading.domain.approvals import Epoch, TradingState
from trading.domain.errors import InvalidValue, LedgerError
from trading.domain.events import BreakerReset, BreakerTripped
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Ledger, Row, Unit, Upsert

log = logging.getLogger("grekko.risk")

SCOPE: Final = "desk"
_STRICTNESS: Final = {
    TradingState.ACTIVE: 0,
    TradingState.REDUCING: 1,
    TradingState.HALTED: 2,
    TradingState.FROZEN: 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerAnswer:
    """What a trip or reset did.

    Attributes:
        changed: False when the desk was in that state, or a stricter one, already.
        durable: False when the ledger could not be written yet; the trip holds all the same and is written later.
    """

    state: TradingState
    epoch: Epoch
    changed: bool
    durable: bool


class Breaker:
    """State and epoch of one desk.

    Args:
        ledger: risk's own; its generation is the epoch's.
        announce: tells execution at once, out of turn; must not raise and must return soon.
        restored: the row of an earlier run, None for a new desk.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        announce: Callable[[], Awaitable[None]],
        *,
        restored: Row | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._announce = announce
        self._counter = 0
        self._epoch = Epoch(ledger.generation, 0)
        self._state = TradingState.HALTED
        self._reason = "reservations are being rebuilt"
        self._restored = TradingState(str(restored["state"])) if restored else TradingState.ACTIVE
        self._restored_reason = str(restored["reason"]) if restored else ""
        self._unsaved: Unit | None = None
        self._resetting = False

    @property
    def state(self) -> TradingState:
        """What may be traded now."""
        return self._state

    @property
    def epoch(self) -> Epoch:
        """What every new approval carries."""
        return self._epoch

    @property
    def reason(self) -> str:
        """Why the state is not ACTIVE; empty when it is."""
        return self._reason

    async def open(self, *, clean: bool, may_reactivate: bool) -> BreakerAnswer:
        """Leave the start's HALTED once the reservations are rebuilt.

        Args:
            clean: the last run stopped in good order.
            may_reactivate: policy allows resuming after an unclean stop (paper only).
        """
        if self._counter:  # tripped while rebuilding: that stands
            return BreakerAnswer(state=self._state, epoch=self._epoch, changed=False, durable=self._unsaved is None)
        if self._restored is not TradingState.ACTIVE:
            return await self._apply(self._restored, self._restored_reason or "restored", "start")
        if clean:
            return await self.reset("started after a clean stop", "start")
        if may_reactivate:
            return await self.reset(
                "policy reactivate_after_unclean_stop lets a paper desk resume after an unclean stop", "policy"
            )
        return await self._apply(TradingState.HALTED, "the last run did not stop in good order", "start")

    async def trip(self, reason: str, by: str, state: TradingState = TradingState.HALTED) -> BreakerAnswer:
        """Restrict trading now; does nothing when the desk is at least as restricted already.

        Raises:
            InvalidValue: ACTIVE is not a restriction.
        """
        if state is TradingState.ACTIVE:
            raise InvalidValue("a trip restricts; resetting is the operator's", code="INVALID_STATE")
        starting = self._counter == 0
        if _STRICTNESS[state] <= _STRICTNESS[self._state] and not starting and not self._resetting:
            return BreakerAnswer(state=self._state, epoch=self._epoch, changed=False, durable=self._unsaved is None)
        return await self._apply(state, reason, by)

    async def _apply(self, state: TradingState, reason: str, by: str) -> BreakerAnswer:
        epoch = self._next_epoch()
        state = max(state, self._state, key=_STRICTNESS.__getitem__) if self._resetting else state
        self._epoch, self._state, self._reason = epoch, state, reason
        event = BreakerTripped(scope=SCOPE, reason=reason, state=state, epoch=epoch, by=by)
        self._unsaved = self._unit(EventDraft(event), state, epoch, reason)
        await self._announce()
        return BreakerAnswer(state=state, epoch=epoch, changed=True, durable=await self.save())

    async def reset(self, reason: str, by: str, state: TradingState = TradingState.ACTIVE) -> BreakerAnswer:
        """Allow trading again; only the operator, and the start itself, may call this.

        Args:
            state: ACTIVE, or REDUCING to loosen by one step only.

        Raises:
            LedgerError: it could not be written, so nothing is loosened.
        """
        if _STRICTNESS[state] >= _STRICTNESS[self._state]:
            return BreakerAnswer(state=self._state, epoch=self._epoch, changed=False, durable=self._unsaved is None)
        await self._save_or_raise()
        epoch = self._next_epoch()
        kept = "" if state is TradingState.ACTIVE else reason
        event = BreakerReset(scope=SCOPE, reason=reason, state=state, epoch=epoch, by=by)
        self._resetting = True
        try:
            await self._ledger.commit(self._unit(EventDraft(event), state, epoch, kept))
        except LedgerError:
            self._restate("breaker: a reset got no answer from the ledger and does not count")
            raise
        finally:
            self._resetting = False
        if self._counter != epoch.counter:
            return await self._stand()
        self._epoch, self._state, self._reason = epoch, state, kept
        await self._announce()
        return BreakerAnswer(state=state, epoch=epoch, changed=True, durable=True)

    async def _stand(self) -> BreakerAnswer:
        """Keep a trip that came while a reset was on its way to disk, and make sure it is the last word there."""
        self._restate("breaker: it came during a reset")
        return BreakerAnswer(state=self._state, epoch=self._epoch, changed=False, durable=await self.save())

    def _restate(self, by: str) -> None:
        """Have the state in memory written once more: the ledger may hold a looser one as its last word."""
        event = BreakerTripped(scope=SCOPE, reason=self._reason, state=self._state, epoch=self._epoch, by=by)
        self._unsaved = self._unit(EventDraft(event), self._state, self._epoch, self._reason)

    async def save(self) -> bool:
        """Write a trip that is not in the ledger yet; True when nothing is left to write."""
        try:
            await self._save_or_raise()
        except LedgerError as error:
            log.error("the breaker's state is not written yet (%s); it holds in memory", error.code)
            return False
        return True

    async def _save_or_raise(self) -> None:
        unit = self._unsaved
        if unit is None:
            return
        await self._ledger.commit(unit)
        if self._unsaved is unit:
            self._unsaved = None

    def _next_epoch(self) -> Epoch:
        self._counter += 1
        return Epoch(self._ledger.generation, self._counter)

    def _unit(self, event: EventDraft, state: TradingState, epoch: Epoch, reason: str) -> Unit:
        row = {
            "scope": SCOPE,
            "state": state.value,
            "generation": epoch.generation,
            "counter": epoch.counter,
            "reason": reason,
            "updated_ms": self._clock.now_ms(),
        }
        return Unit(events=(event,), writes=(Upsert("desk_state", row),))
