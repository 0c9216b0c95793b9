"""What risk did lately, read from its own ledger when somebody asks: refusals, halts and resumptions.

Rules kept here:

- Only what is durable is told; what a commit still holds is not in here.
- Nothing on the path of an order knows of this: the newest events are read on demand, a few at a time, so that a
  question never keeps a sign-off waiting for long.
- How far back was looked is bounded, and said.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from trading.domain.events import BreakerReset, BreakerTripped, EventEnvelope, RiskDenied
from trading.ports.ledger import LedgerReader

#: Events looked through for one question; older ones stay unread.
LOOK_BACK: Final = 2_000
_PAGE: Final = 100
_KEPT: Final = 200


class Chronicle:
    """The newest refusals and changes of the trading state, newest last.

    Args:
        ledger: risk's own.
    """

    def __init__(self, ledger: LedgerReader) -> None:
        self._ledger = ledger
        self._seq = 0
        self._reading = asyncio.Lock()
        self.denials: deque[EventEnvelope] = deque(maxlen=_KEPT)
        self.breaker: deque[EventEnvelope] = deque(maxlen=_KEPT)
        self.complete_after_seq = 0

    async def catch_up(self) -> None:
        """Read what is new, at most ``LOOK_BACK`` events; ``complete_after_seq`` says what is known without a gap.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        async with self._reading:
            last = await self._ledger.last_seq()
            if last - self._seq > LOOK_BACK:
                self._seq = self.complete_after_seq = last - LOOK_BACK
            while self._seq < last:
                events = await self._ledger.events_after(self._seq, limit=_PAGE)
                if not events:
                    return
                for event in events:
                    self._keep(event)
                self._seq = events[-1].seq
                await asyncio.sleep(0)  # to decode a page takes milliseconds; others get their turn

    def _keep(self, event: EventEnvelope) -> None:
        match event.payload:
            case RiskDenied():
                self.denials.append(event)
            case BreakerTripped() | BreakerReset():
                self.breaker.append(event)
            case _:
                pass
