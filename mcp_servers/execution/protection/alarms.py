"""Alarms of the stop-loss manager: each is raised once for as long as its cause lasts."""

from __future__ import annotations

from mcp_servers.execution.lifecycle import Lifecycle
from trading.domain.instruments import InstrumentId

#: A position has no stop that could act.
MISSING = "PROTECTION_MISSING"
#: Neither feed nor venue has a price for an open position.
BLIND = "PROTECTION_BLIND"
#: The exit of an open position nears its end and risk has not renewed it.
EXPIRING = "PROTECTION_EXPIRING"
#: The close of a position whose stop was hit does not get on.
STUCK = "PROTECTION_STUCK"
#: A stop was hit and the position is being closed.
HIT = "STOP_HIT"

#: What makes a desk unsafe to trade on.
UNSAFE = (MISSING, BLIND, EXPIRING, STUCK)


class Episodes:
    """Remembers which alarms stand."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._standing: dict[tuple[str, InstrumentId], str] = {}

    def begin(self, code: str, about: InstrumentId, message: str) -> None:
        """Raise the alarm unless it stands already."""
        if (code, about) not in self._standing:
            self._standing[code, about] = message
            self._lifecycle.alarm(code, message, subject=str(about))

    def end(self, code: str, about: InstrumentId) -> None:
        """Note that its cause is gone; the next one is raised again."""
        self._standing.pop((code, about), None)

    def end_all(self, about: InstrumentId) -> None:
        """Note that nothing about this instrument is of concern any more."""
        for key in [key for key in self._standing if key[1] == about]:
            del self._standing[key]

    def standing(self, *codes: str) -> list[str]:
        """Return the alarms of these codes that stand, each as code, instrument and cause."""
        return [f"{code} {about.symbol}: {text}" for (code, about), text in self._standing.items() if code in codes]
