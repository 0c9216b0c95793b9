"""Risk's signed sign of life, and execution's unsigned one.

Rules kept here:

- One heartbeat every 500 ms and one at once on every change; each has a higher counter, so none can be replayed.
- Sending never blocks the breaker for long: a bus that does not answer is given up after a quarter of a second, and
  execution, hearing nothing, stops sending by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from trading.adapters import codec
from trading.adapters.signing import seal
from trading.domain.approvals import HEARTBEAT_PAYLOAD_TYPE, Epoch, Heartbeat, TradingState
from trading.domain.errors import TradingError
from trading.domain.identifiers import AccountId
from trading.domain.trading_states import ScopeState
from trading.ports.clock import Clock
from trading.ports.signing import Signer

log = logging.getLogger("grekko.risk")

PERIOD_S: Final = 0.5
_SEND_TIMEOUT_S: Final = 0.25


class HeartbeatSink(Protocol):
    """Where heartbeats go."""

    async def send(self, envelope: str) -> None:
        """Publish one envelope.

        Raises:
            TradingError: it could not be published.
        """
        ...


class Heartbeats:
    """Signs and sends heartbeats.

    Args:
        now_in_force: gives (epoch, desk's state, min policy version, restricted scopes) at the moment of signing.
    """

    def __init__(
        self,
        account_id: AccountId,
        signer: Signer,
        clock: Clock,
        sink: HeartbeatSink,
        now_in_force: Callable[[], tuple[Epoch, TradingState, int, tuple[ScopeState, ...]]],
    ) -> None:
        self._account_id = account_id
        self._signer = signer
        self._clock = clock
        self._sink = sink
        self._now_in_force = now_in_force
        self._counter = 0
        self._failing = False
        self.sent_ms: int | None = None

    def sign(self) -> str:
        """Return the next heartbeat's envelope, JSON text."""
        epoch, state, min_policy_version, scopes = self._now_in_force()
        self._counter += 1
        beat = Heartbeat(
            account_id=self._account_id,
            epoch=epoch,
            state=state,
            counter=self._counter,
            sent_ms=self._clock.now_ms(),
            min_policy_version=min_policy_version,
            scopes=scopes,
        )
        return seal(codec.canonical(beat), HEARTBEAT_PAYLOAD_TYPE, self._signer).to_json()

    async def beat(self) -> None:
        """Send one heartbeat now; a bus that fails is logged once and tried again with the next."""
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await self._sink.send(self.sign())
        except (TradingError, TimeoutError, OSError) as error:
            if not self._failing:
                log.warning("heartbeats do not reach the bus (%s)", type(error).__name__)
            self._failing = True
            return
        self._failing = False
        self.sent_ms = self._clock.now_ms()


class ExecutionPulse:
    """The last thing execution said of itself.

    Attributes:
        ledger_seq: how far execution says its ledger goes.
        unresolved: orders whose outcome it does not know.
        safe: whether it thinks it may trade.
    """

    def __init__(self) -> None:
        self._heard_ms: int | None = None
        self._sent_ms = 0
        self.ledger_seq = 0
        self.unresolved = 0
        self.safe = False

    def hear(self, *, sent_ms: int, ledger_seq: int, unresolved: int, safe: bool, now_ms: int) -> bool:
        """Take a heartbeat; an older one than the last is ignored. Return whether it was taken."""
        if sent_ms <= self._sent_ms:
            return False
        # Counted from the earlier of both clocks: a message that waited in the bus is as old as it says.
        self._heard_ms, self._sent_ms = min(now_ms, sent_ms), sent_ms
        self.ledger_seq, self.unresolved, self.safe = ledger_seq, unresolved, safe
        return True

    def age_ms(self, now_ms: int) -> int | None:
        """Return milliseconds since execution last spoke; None when it never did."""
        return None if self._heard_ms is None else max(0, now_ms - self._heard_ms)
