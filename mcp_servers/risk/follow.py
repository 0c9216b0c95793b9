"""Follows execution's ledger: rebuilds the reservations at a start and releases them as orders end."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

from trading.adapters.ledger_follower import LedgerFollower
from trading.domain.errors import LedgerError
from trading.domain.events import AlarmRaised, EventEnvelope, ReservationReleased
from trading.ports.clock import Clock
from trading.ports.ledger import Ledger, LedgerReader, Row

from .assessment import reservation_of
from .journal import OPEN, RELEASE_ASKED, approved_of, release_unit
from .portfolio import Changes, Portfolio
from .protective import KnownExits

log = logging.getLogger("grekko.risk")

_POLL_MS: Final = 50
_MISSED_KEPT: Final = 20_000  # events of the time without risk that are looked at; the newest


class ExecutionFollower:
    """Keeps the portfolio and the reservations at the newest execution event.

    Args:
        ledger: risk's own, where releases are written.
        execution: execution's, read only.
        rows: the ``approvals`` rows of open reservations by id, shared with the sign-off.
        wakeups: hints that there is something new; without them the ledger is polled.
        watch: looks at events once they are applied, before anything is written.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        execution: LedgerReader,
        portfolio: Portfolio,
        rows: dict[str, Row],
        clock: Clock,
        wakeups: AsyncIterator[object] | None = None,
        watch: Callable[[Iterable[EventEnvelope], Changes], Awaitable[None]] | None = None,
    ) -> None:
        self._ledger = ledger
        self._portfolio = portfolio
        self._rows = rows
        self._watch = watch
        self._follower = LedgerFollower(execution, wakeups=wakeups, poll_ms=_POLL_MS, clock=clock)
        self._exits = KnownExits(ledger)
        portfolio.covers = self._exits.covers
        self._pending: list[ReservationReleased] = []
        self._alarms: list[AlarmRaised] = []
        self._writing = asyncio.Lock()

    @property
    def checked_ns(self) -> int | None:
        """Monotonic time of the newest complete read, None before the first."""
        return self._follower.checked_ns

    async def rebuild(self, since_ms: int | None = None) -> int:
        """Load what is open and fold execution's whole ledger; return how many reservations are open then.

        Args:
            since_ms: events after this time were missed; they are watched once they are folded.

        Raises:
            LedgerError: one of the ledgers cannot be read.
        """
        for row in await self._ledger.rows("approvals", {"state": [OPEN, RELEASE_ASKED]}):
            approved = approved_of(row)
            self._portfolio.reservations.add(reservation_of(approved.approval))
            self._rows[approved.approval.approval_id] = row
        missed: deque[EventEnvelope] = deque(maxlen=_MISSED_KEPT)
        while events := await self._follower.read():
            await self._exits.learn(events)
            self._collect(self._portfolio.apply(events, live=False))
            if since_ms is not None:
                missed.extend([event for event in events if event.timestamp_ms > since_ms])
        for foreign in self._portfolio.foreign_orders():
            message = "an open order has no approval of this desk; it counts against the limits"
            self._alarms.append(
                AlarmRaised(code="ORDER_WITHOUT_APPROVAL", message=message, subject=foreign.order_id or "")
            )
        if self._watch is not None:
            await self._watch(missed, Changes(alarms=tuple(self._alarms)))
        await self.write()
        return len(self._portfolio.reservations)

    async def step(self) -> int:
        """Apply what is new now; return how many events there were."""
        events = await self._follower.read()
        await self._take(events)
        return len(events)

    async def run(self) -> None:
        """Follow until cancelled."""
        async for events in self._follower:
            await self._take(events)

    def watch(self, now_ms: int) -> None:
        """Raise an alarm for stops that stay larger than what they protect; ``write`` writes it."""
        self._alarms.extend(self._portfolio.judge_stops(now_ms))

    def notify(self) -> None:
        """Make the next read come now."""
        self._follower.notify()

    async def write(self) -> None:
        """Write releases and alarms that are not in the ledger yet; what fails is kept for the next time.

        The reservations are gone from memory already: the evidence is in execution's ledger, and after a restart the
        same evidence releases them again.
        """
        async with self._writing:
            released, alarms = self._pending, self._alarms
            if not released and not alarms:
                return
            self._pending, self._alarms = [], []
            try:
                await self._ledger.commit(release_unit(released, alarms, self._rows))
            except LedgerError as error:
                log.warning("releases are not written yet (%s)", error.code)
                self._pending, self._alarms = released + self._pending, alarms + self._alarms
                return
            for event in released:
                self._rows.pop(event.approval_id, None)

    def _collect(self, changes: Changes) -> None:
        self._pending.extend(changes.released)
        self._alarms.extend(changes.alarms)

    async def _take(self, events: Sequence[EventEnvelope]) -> None:
        try:
            await self._exits.learn(events)
        except LedgerError as error:  # an exit that cannot be looked up is unknown: its order raises an alarm
            log.error("standing exits cannot be looked up (%s)", error.code)
        changes = self._portfolio.apply(events, live=True)
        self._collect(changes)
        if self._watch is not None and events:
            await self._watch(events, changes)
        await self.write()
