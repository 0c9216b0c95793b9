"""Time and identity, the two things a pure core may not invent."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The only source of time."""

    def now_ms(self) -> int:
        """Return wall time in milliseconds since the epoch, UTC."""
        ...

    def monotonic_ns(self) -> int:
        """Return a time that never goes back, in nanoseconds from an arbitrary start."""
        ...


class IdFactory(Protocol):
    """The only source of fresh ids."""

    def new_id(self) -> str:
        """Return a UUIDv7 as text."""
        ...
