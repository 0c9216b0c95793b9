"""Tells people what the breaker did, after it did it: a log line, and a webhook if one is configured.

Rules kept here:

- Nothing waits for it: a change is put into a short queue, the oldest is dropped when a server takes too long.
- Bounded in time and bytes, tried a few times with growing pauses, then given up with a log line.
- The address is never logged: such URLs are secrets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

import orjson

from trading.adapters.bounded_http import BoundedHttp, HttpFailed
from trading.domain.identifiers import AccountId
from trading.ports.clock import Clock

from .breaker import BreakerChange

log = logging.getLogger("grekko.risk")

_KEPT: Final = 64
_TIMEOUT_S: Final = 5.0
_ANSWER_MAX: Final = 64 * 1024  # bytes
_PAUSES_S: Final = (0.5, 2.0, 8.0)


class Alerts:
    """Notifies of changes of the breaker.

    Args:
        url: ``https``, or ``http`` on this machine; empty notifies nobody.
        http: the client; one of its own unless a test says otherwise.
        pauses_s: between one attempt and the next; one more attempt than pauses is made.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        desk: str,
        account_id: AccountId,
        http: BoundedHttp | None = None,
        pauses_s: tuple[float, ...] = _PAUSES_S,
    ) -> None:
        self._url = url
        self._clock = clock
        self._desk = desk
        self._account_id = account_id
        self._http = http
        self._pauses_s = pauses_s
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._news = asyncio.Event()
        self.sent = 0
        self.failed = 0

    def tell(self, change: BreakerChange) -> None:
        """Take a change that has happened; returns at once."""
        level = logging.WARNING if change.state.is_restricted else logging.INFO
        log.log(level, "breaker: %s is %s by %s: %s", change.scope, change.state.value, change.by, change.reason)
        if self._url:
            self.failed += len(self._waiting) == _KEPT
            self._waiting.append(self._body(change))
            self._news.set()

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        http = self._http or BoundedHttp(max_bytes=_ANSWER_MAX, timeout_s=_TIMEOUT_S, connections=1)
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._send(http, self._waiting.popleft())
        finally:
            await http.close()

    async def _send(self, http: BoundedHttp, body: bytes) -> None:
        for pause_s in (*self._pauses_s, None):
            try:
                await http.post(self._url, body, {"Content-Type": "application/json"})
            except HttpFailed as error:
                if pause_s is None:
                    self.failed += 1
                    log.error("nobody was notified (%s); the breaker acted all the same", error.failure)
                    return
                await asyncio.sleep(pause_s)
            else:
                self.sent += 1
                return

    def _body(self, change: BreakerChange) -> bytes:
        return orjson.dumps(
            {
                "desk": self._desk,
                "account": self._account_id,
                "scope": change.scope,
                "state": change.state.value,
                "reason": change.reason,
                "by": change.by,
                "alarm": change.alarm,
                "epoch": list(change.epoch),
                "at_ms": self._clock.now_ms(),
            }
        )
