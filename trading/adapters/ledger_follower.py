"""Following a ledger: every event of one room, once, in order, without gaps.

The cursor is ``seq``. A wake-up (a Redis stream, a commit in the same process) only makes the next read come sooner;
without any, reads come every ``poll_ms``. Nothing is believed that was not read from the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from trading.domain.errors import LedgerError, TradingError
from trading.domain.events import EventEnvelope
from trading.ports.clock import Clock
from trading.ports.ledger import LedgerReader

_log = logging.getLogger(__name__)

_PATIENCE: Final = 100  # reads for which a missing sequence may still appear
_SLOWEST_S: Final = 1.0


class LedgerFollower:
    """Iterates over batches of events, each the direct successor of the last; for one consumer.

    ::

        follower = LedgerFollower(reader, wakeups=subscriber.wakeups((Category.RISK,)))
        async for events in follower: ...

    Args:
        reader: the ledger of the room to follow.
        wakeups: whatever it yields makes the next read come sooner; if it ends or fails, polling goes on.
        poll_ms: longest time between two reads, > 0.
        from_seq: the last sequence that the consumer has already applied.
        batch: most events per step.
        clock: when given, ``checked_ns`` tells how fresh the view is.
    """

    def __init__(
        self,
        reader: LedgerReader,
        *,
        wakeups: AsyncIterator[object] | None = None,
        poll_ms: int = 50,
        from_seq: int = 0,
        batch: int = 1000,
        clock: Clock | None = None,
    ) -> None:
        self._reader = reader
        self._wakeups = wakeups
        self._poll_s = poll_ms / 1000
        self._seq = from_seq
        self._batch = batch
        self._clock = clock
        self._wake = asyncio.Event()
        self._checked_ns: int | None = None
        self._failures = 0
        self._short = 0

    @property
    def seq(self) -> int:
        """The last sequence handed out."""
        return self._seq

    @property
    def checked_ns(self) -> int | None:
        """Monotonic time at which the newest successful read began; None before the first, or without a clock."""
        return self._checked_ns

    def notify(self) -> None:
        """Make the next read come now; for a writer in the same process."""
        self._wake.set()

    async def read(self) -> list[EventEnvelope]:
        """Return the next events at once, empty when there are none yet; the iterator's single step.

        Raises:
            LedgerError: ``LEDGER_GAP``, a sequence is missing and did not appear in a hundred reads.
            TradingError: the ledger could not be read.
        """
        began = self._clock.monotonic_ns() if self._clock else None
        found = await self._reader.events_after(self._seq, limit=self._batch)
        events = _contiguous(found, self._seq)
        self._short = self._short + 1 if len(events) < len(found) and not events else 0
        if self._short >= _PATIENCE:
            raise LedgerError(
                f"event {self._seq + 1} is missing though {found[0].seq} is there",
                code="LEDGER_GAP",
                suggestion="verify the audit chain",
            )
        if events:
            self._seq = events[-1].seq
        if len(found) < self._batch:  # we have seen the head
            self._checked_ns = began
        return events

    def __aiter__(self) -> AsyncGenerator[list[EventEnvelope]]:
        return self._batches()

    async def _batches(self) -> AsyncGenerator[list[EventEnvelope]]:
        pump = asyncio.create_task(self._pump(), name="ledger-follower-wakeups")
        try:
            while True:
                # Cleared before the read: a wake-up during the read is kept for the next one.
                self._wake.clear()
                events = await self._read_or_log()
                if events:
                    yield events
                else:
                    await self._pause()
        finally:
            pump.cancel()
            await asyncio.wait([pump])

    async def _read_or_log(self) -> list[EventEnvelope]:
        try:
            events = await self.read()
        except TradingError as error:
            if error.code == "LEDGER_GAP":
                raise
            if self._failures == 0:
                _log.warning("the ledger cannot be read (%s); trying again", error.code)
            self._failures += 1
            return []
        self._failures = 0
        return events

    async def _pause(self) -> None:
        wait_s = min(self._poll_s * (1 + self._failures), _SLOWEST_S)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass  # a poll

    async def _pump(self) -> None:
        if self._wakeups is None:
            return
        try:
            async for _ in self._wakeups:
                self._wake.set()
        except TradingError as error:
            _log.warning("no more wake-ups (%s); polling goes on", error.code)


def _contiguous(events: list[EventEnvelope], after: int) -> list[EventEnvelope]:
    for index, event in enumerate(events):
        if event.seq != after + index + 1:
            return events[:index]
    return events
